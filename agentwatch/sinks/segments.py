"""Where journals lie: DIR/CHAIN/00000001.journal, 00000002.journal, ...

A chain belongs to one writer: DIR/run-TIME-PID for `agentwatch run`, DIR/daemon for the daemon.
Chains are 0750 and files 0640, made by the writer's own user, which nobody else may replace:
everything is opened relative to directories that were checked, without following links. A chain
whose group is somebody's own can be read by that person; then DIR shows the names of its chains.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.errors import AgentwatchError, JournalError, PermissionDenied

DEFAULT_DIRECTORY = Path("/var/log/agentwatch")
DIRECTORY_MODE = 0o750
SHARED_MODE = 0o755  # DIR, where chains belong to several people
FILE_MODE = 0o640

_SEGMENT = re.compile(r"(\d{8})\.journal")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Chain:
    """One writer's segments on disk. segments: (number, path), in order."""

    name: str
    directory: Path
    segments: tuple[tuple[int, Path], ...]

    @property
    def live(self) -> bool:
        """A writer holds the chain open at this moment."""
        try:
            fd = os.open(self.directory, _LIST)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False


def segment_name(number: int) -> str:
    return f"{number:08d}.journal"


def chains(directory: Path) -> tuple[Chain, ...]:
    """The chains of DIR, or the one chain that `directory` itself is.

    Raises JournalError when there is none, PermissionDenied when it cannot be read.
    """
    own = _chain(directory)
    if own is not None:
        return (own,)
    try:
        inside = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError as error:
        raise unreadable(directory, error) from None
    found, refused = [], None
    for name in inside:
        try:
            found.append(_chain(directory / name))
        except PermissionDenied as error:  # somebody else's
            refused = error
    readable = tuple(chain for chain in found if chain is not None)
    if refused is not None and not readable:
        raise refused
    if not readable:
        raise JournalError(f"there is no journal in {directory}", "name another with --journal DIR")
    return readable


def _chain(directory: Path) -> Chain | None:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise unreadable(directory, error) from None
    matches = [(match, name) for name in names if (match := _SEGMENT.fullmatch(name))]
    if not matches:
        return None
    segments = tuple((int(match[1]), directory / name) for match, name in matches)
    return Chain(directory.resolve().name, directory, segments)


def unreadable(path: Path, error: OSError) -> AgentwatchError:
    """The error for a journal that cannot be opened for reading."""
    if isinstance(error, FileNotFoundError):
        return JournalError(f"there is no journal at {path}", "name another with --journal DIR")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{path} may not be read by you", "run this as root, with sudo")
    return JournalError(f"{path} cannot be read: {error.strerror}", "name a journal directory")


def make_directory(directory: Path, name: str, group: int | None = None) -> tuple[int, Path]:
    """Make (or open) DIR and DIR/name; (descriptor of DIR/name, its path).

    group: whose members may read the chain, its files to come included. Raises PermissionDenied, or
    JournalError where somebody else could change the journal.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        mode = DIRECTORY_MODE if group is None else SHARED_MODE
        outer = _enter(str(directory), None, directory, mode)
        try:
            inner = _enter(name, outer, directory / name)
            if group is not None:
                os.fchown(inner, -1, group)
                os.fchmod(inner, DIRECTORY_MODE | stat.S_ISGID)
        finally:
            os.close(outer)
    except OSError as error:
        raise unwritable(directory, error) from None
    return inner, directory / name


def _enter(name: str, above: int | None, path: Path, mode: int = DIRECTORY_MODE) -> int:
    """Open a directory, making it if need be, and make sure that it is the writer's own."""
    try:
        os.mkdir(name, mode, dir_fd=above)
        made = True
    except FileExistsError:
        made = False
    fd = os.open(name, _LIST | (os.O_NOFOLLOW if above is not None or made else 0), dir_fd=above)
    try:
        if made:
            os.fchmod(fd, mode)
        _check_owner(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise JournalError(
            f"{path} belongs to uid {status.st_uid}, who could replace the journal",
            "name a directory of your own, or one that does not exist yet",
        )
    open_to_all = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if open_to_all and not status.st_mode & stat.S_ISVTX:
        raise JournalError(f"others may write to {path}", f"chmod go-w {path}")


def create(directory: int, number: int) -> int:
    """A new, empty segment, append-only for this descriptor. Raises OSError."""
    fd = os.open(segment_name(number), _CREATE, FILE_MODE, dir_fd=directory)
    os.fchmod(fd, FILE_MODE)
    return fd


def hold(directory: int) -> None:
    """Tell readers that this chain has a living writer. Never fails: it is only a hint."""
    with suppress(OSError):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)


def unwritable(path: Path, error: OSError) -> AgentwatchError:
    """The error for a journal that cannot be written, with what to do about it."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"{path} may not be written by you", "run as root, or name your own with --journal DIR"
        )
    return write_failed(path, error)


def write_failed(path: Path, error: OSError) -> JournalError:
    """The same for a journal that could be written until now."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space; what waits is written as soon as there is room"
        return JournalError(f"no room for the journal in {path}: {error.strerror}", remedy)
    return JournalError(
        f"the journal in {path} cannot be written: {error.strerror}",
        "name another directory with --journal DIR",
    )
