"""Where journals lie: DIR/CHAIN/00000001.journal, 00000002.journal, ...

A chain belongs to one writer: DIR/run-TIME-PID for `agentwatch run`, DIR/daemon for the daemon.
Chains are 0750 and files 0640, made by the writer's own user, which nobody else may replace:
everything is opened below directories that were checked from / on (ancestors). A chain
whose group is somebody's own can be read by that person; then DIR shows the names of its chains.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.errors import AgentwatchError, JournalError, PermissionDenied
from agentwatch.sinks import ancestors

DEFAULT_DIRECTORY = Path("/var/log/agentwatch")
DIRECTORY_MODE = 0o750
SHARED_MODE = 0o755  # DIR, where chains belong to several people
FILE_MODE = 0o640
SEGMENT_MAX = 256 << 20
"""Bytes of a segment that are read; a writer stays well below."""

HOLD_TRIES, HOLD_PAUSE = 50, 0.002  # how often, and s between two

_SEGMENT = re.compile(r"([0-9]{8})\.journal")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_SEGMENT = "a segment is a file: ask who could put something else there"


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


def number_of(name: str) -> int:
    """The number of a segment by its name, or 0 where it is none."""
    found = _SEGMENT.fullmatch(name)
    return int(found[1]) if found else 0


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
    segments = tuple((n, directory / name) for name in names if (n := number_of(name)))
    if not segments:
        return None
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
    JournalError where somebody else could change the journal, or put another in its place.
    """
    try:
        mode = DIRECTORY_MODE if group is None else SHARED_MODE
        outer, _ = ancestors.open_directory(directory, mode)
        try:
            inner = _enter(name, outer, directory / name)
            if group is not None:
                os.fchown(inner, -1, group)
                os.fchmod(inner, DIRECTORY_MODE)
        finally:
            os.close(outer)
    except OSError as error:
        raise unwritable(directory, error) from None
    return inner, directory / name


def _enter(name: str, above: int, path: Path) -> int:
    """Open a chain, making it if need be, and make sure that it is the writer's own."""
    try:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
        made = True
    except FileExistsError:
        made = False
    fd = os.open(name, _LIST | os.O_NOFOLLOW, dir_fd=above)
    try:
        if made:
            os.fchmod(fd, DIRECTORY_MODE)
        ancestors.check(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(path: Path) -> tuple[bytes, int]:
    """(a segment's bytes, at most SEGMENT_MAX of them; how many more there are).

    Raises AgentwatchError for what cannot be read, and for what is no file: a FIFO or a link is
    neither waited for nor followed.
    """
    try:
        fd = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise JournalError(f"{path} is a symbolic link", _NO_SEGMENT) from None
        raise unreadable(path, error) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise JournalError(f"{path} is no file", _NO_SEGMENT)
    with os.fdopen(fd, "rb", buffering=0) as file:
        size = min(status.st_size, SEGMENT_MAX)
        try:
            data = _bytes(file, size)
        except OSError as error:
            raise unreadable(path, error) from None
        except MemoryError:
            message = f"there is no memory for the {size} bytes of {path}"
            raise JournalError(message, "free some, or read it on another machine") from None
    return data, status.st_size - size


def _bytes(file: io.FileIO, size: int) -> bytes:
    """Up to `size` bytes: fewer where the file got shorter meanwhile."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def distrust(one: Chain) -> str:
    """Why the chain may be another than its writer's: "" when only root and the reader could."""
    try:
        statuses = (os.lstat(one.directory), os.stat(one.directory))
    except OSError as error:
        return f"its directory cannot be examined: {error.strerror}"
    for status in statuses:
        if status.st_uid not in (0, os.geteuid()):
            return f"its directory belongs to uid {status.st_uid}, who could have replaced it"
    if statuses[1].st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to its directory, and could have replaced it"
    return ""


def create(directory: int, number: int) -> int:
    """A new, empty segment, append-only for this descriptor. Raises OSError."""
    fd = os.open(segment_name(number), _CREATE, FILE_MODE, dir_fd=directory)
    share(fd, directory)
    return fd


def share(fd: int, directory: int) -> None:
    """A new file gets the mode, and the group, that files of this chain have. Raises OSError.

    The directory has no setgid bit that would do so: hardened services may not set one.
    """
    group = os.fstat(directory).st_gid
    if os.fstat(fd).st_gid != group:
        with suppress(PermissionError):  # somebody made the directory another group's
            os.fchown(fd, -1, group)
    os.fchmod(fd, FILE_MODE)


def hold(directory: int) -> bool:
    """Have this chain for ourselves, as readers can tell; False where another writer has it.

    Where the file system knows no locks it is ours.
    """
    for _ in range(HOLD_TRIES):
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a reader that looks has it for a moment, too
            time.sleep(HOLD_PAUSE)
        except OSError:
            return True
        else:
            return True
    return False


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
    if error.errno == errno.EROFS:
        remedy = "mount it read-write; a service's own view is widened by ReadWritePaths="
        return JournalError(f"{path} cannot be written: {error.strerror}", remedy)
    return JournalError(
        f"the journal in {path} cannot be written: {error.strerror}",
        "name another: `journal.dir` in the configuration, --journal of run",
    )
