"""`$project`: the directory an agent works in, worked out once where its session began."""

from __future__ import annotations

import functools
import os
import pwd
from pathlib import Path

from agentwatch.mounts import MOUNTINFO, unescape

SHARED_PLACES = frozenset({"/", "/tmp", "/var/tmp"})
REMOTE = ("nfs", "cifs", "smb", "fuse", "autofs", "ceph", "afs", "9p", "coda", "lustre")
"""Beginnings of the types of file systems that somebody else answers for, or nobody."""


def project_of(cwd: Path, home: str) -> str | None:
    """The git top above the working directory, else that directory itself.

    None where that would be a place everything is in: /, a home directory, a shared scratch one.
    """
    top = next((d for d in (cwd, *cwd.parents) if os.path.lexists(d / ".git")), cwd)
    return None if str(top) in SHARED_PLACES | _homes() | {home} else str(top)


@functools.lru_cache(256)
def home_of(uid: int) -> str:
    """A user's home directory; "/" for a uid that nobody has."""
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


@functools.cache
def _homes() -> frozenset[str]:
    """Everybody's. Asked once: where users come from a server, it may take its time."""
    return frozenset(entry.pw_dir for entry in pwd.getpwall())


def project_here(cwd: str, home: str) -> str | None:
    """The same for somebody else's process, by its canonical working directory.

    A file system that may keep us waiting is not looked into: there it is the directory itself.
    """
    if not cwd.startswith("/"):
        return None
    try:
        if answers_at_once(cwd, os.fsdecode(MOUNTINFO.read_bytes())):
            return project_of(Path(cwd), home)
    except OSError:
        pass
    return None if cwd in SHARED_PLACES | _homes() | {home} else cwd


def answers_at_once(path: str, mountinfo: str) -> bool:
    """Whether no file system on the way to `path` is a remote or a user's own one."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point, kind = unescape(fields.split(" ")[4]), rest.split(" ")[0]
        under = path == point or path.startswith(point.rstrip("/") + "/")
        if under and point != "/" and kind.startswith(REMOTE):
            return False
    return True
