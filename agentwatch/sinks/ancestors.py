"""Directories that nobody else can swap: every one from / down is root's or the writer's own.

Who may write to a directory may rename what lies in it and put something else there. So each
component, those that symbolic links lead to included, is opened by itself, below one that was
checked already, without following links, and is checked before the next.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

from agentwatch.errors import JournalError

ANCESTOR_MODE = 0o755
LINKS_MAX = 40
SYSTEM_UID_MAX = 999

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(path: Path, mode: int) -> tuple[int, bool]:
    """(descriptor of `path`, was it made). What is missing is made, `path` itself with `mode`.

    Raises JournalError where somebody else could replace it, and OSError.
    """
    with ExitStack() as opened:
        fd, made = _Descent(path, mode, opened).run()
        found = os.open(".", _LIST, dir_fd=fd)
    if made:
        os.fchmod(found, mode)
    return found, made


def check(status: os.stat_result, path: Path, groups: bool = False) -> None:
    """Raises JournalError where somebody but root and us could change what is in the directory.

    groups: one that may write to it is fine when no person but us belongs to it.
    """
    check_owner(status, path)
    if status.st_mode & stat.S_ISVTX:
        return
    by_group = status.st_mode & stat.S_IWGRP and not (groups and _is_nobodys(status.st_gid))
    if status.st_mode & stat.S_IWOTH or by_group:
        raise JournalError(f"others may write to {path}", f"chmod go-w {path}, or {_remedy()}")


def check_owner(status: os.stat_result, path: Path) -> None:
    """Raises JournalError when it belongs to somebody but root and us."""
    if status.st_uid not in (0, os.geteuid()):
        message = f"{path} belongs to uid {status.st_uid}, who could replace the journal"
        raise JournalError(message, _remedy())


class _Descent:
    """A path on its way down. stack: (descriptor, name) of each directory from / to here."""

    def __init__(self, path: Path, mode: int, opened: ExitStack) -> None:
        self._mode = mode
        self._opened = opened
        self._left = deque(Path(os.path.join(os.getcwd(), path)).parts[1:])
        self._links = 0
        self._made = False
        self._stack: list[tuple[int, Path]] = []
        self._enter("/", None, Path("/"))

    def run(self) -> tuple[int, bool]:
        while self._left:
            name = self._left.popleft()
            if name == "..":
                del self._stack[max(1, len(self._stack) - 1) :]
                self._made = False
                continue
            above, where = self._stack[-1]
            self._enter(name, above, where / name)
        return self._stack[-1][0], self._made

    def _enter(self, name: str, above: int | None, path: Path) -> None:
        fd = self._look(name, above)
        status = os.fstat(fd)
        if stat.S_ISLNK(status.st_mode):
            check_owner(status, path)
            self._follow(os.readlink("", dir_fd=fd))
            return
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        check(status, path, groups=bool(self._left))
        self._stack.append((fd, path))

    def _look(self, name: str, above: int | None) -> int:
        """A descriptor of the component itself, made if it is missing."""
        self._made = False
        try:
            fd = os.open(name, _LOOK, dir_fd=above)
        except FileNotFoundError:
            with suppress(FileExistsError):  # who was quicker is checked like anybody
                os.mkdir(name, ANCESTOR_MODE if self._left else self._mode, dir_fd=above)
                self._made = True
            fd = os.open(name, _LOOK, dir_fd=above)
        self._opened.callback(os.close, fd)
        return fd

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        parts = Path(target).parts
        if parts[:1] and parts[0].startswith("/"):
            del self._stack[1:]
            parts = parts[1:]
        self._left.extendleft(reversed(parts))


def _is_nobodys(group: int) -> bool:
    """No person but us is a member: root's, a system's (/var/log may be syslog's), our own."""
    try:
        names = grp.getgrgid(group).gr_mem
    except KeyError:
        names = []
    members = {account.pw_uid for account in pwd.getpwall() if account.pw_gid == group}
    for name in names:
        with suppress(KeyError):
            members.add(pwd.getpwnam(name).pw_uid)
    return all(uid <= SYSTEM_UID_MAX or uid == os.geteuid() for uid in members)


def _remedy() -> str:
    if os.geteuid() == 0:
        return "name a directory that only root may change, for example /var/log/agentwatch"
    return "name a directory of your own, or one that does not exist yet"
