"""The daemon's place in the file system: a socket nobody else can swap, and a lock for life.

The lock file beside the socket says whether a daemon runs; a socket without one is left over from a
daemon that was killed, and is replaced. The lock file itself stays: who removes it while another
has just opened it makes two daemons.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agentwatch.errors import AgentwatchError, UsageError

SOCKET_MODE = 0o666  # who may do what is decided by who asks, see peer
DIRECTORY_MODE = 0o755
LOCK_MODE = 0o600  # who may open it could lock it, and keep the daemon from starting
PATH_MAX = 107  # bytes, sockaddr_un's less the NUL

_READ_ONLY = "mount it read-write; a service's own view is widened by ReadWritePaths="
_REMEDY = "set `socket` to a path that only root may change, for example in /run/agentwatch"


class Listener:
    """A listening socket at `path`. Raises AgentwatchError where there cannot be one."""

    def __init__(self, path: Path, backlog: int) -> None:
        with _told(path):
            self.path = _directory(path.parent) / path.name
            self._lock = _locked(self.path)
            try:
                self.socket = _bound(self.path, backlog)
            except BaseException:
                os.close(self._lock)
                raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Removes the socket, then gives up the lock."""
        with suppress(OSError):
            os.unlink(self.path)
        self.socket.close()
        os.close(self._lock)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses is said with the paths in question."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror}"
        remedy = _READ_ONLY if error.errno == errno.EROFS else _REMEDY
        raise AgentwatchError(f"no control socket at {path}: {reason}", remedy) from None


def _directory(path: Path) -> Path:
    """The directory without symbolic links in it, made if missing; only root and we may change it.

    Every directory above it is checked too: who may write there may swap what is below.
    """
    real = Path(os.path.realpath(path))
    for directory in (*reversed(real.parents), real):
        with suppress(FileExistsError):
            os.mkdir(directory, DIRECTORY_MODE)
            os.chmod(directory, DIRECTORY_MODE)  # whatever the umask
        _check(directory, sticky=directory != real)
    return real


def _check(directory: Path, sticky: bool) -> None:
    """sticky: others may write to it if they cannot rename there what is not theirs."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise AgentwatchError(f"{directory} is no directory", _REMEDY)
    if status.st_uid not in (0, os.geteuid()):
        message = f"{directory} belongs to uid {status.st_uid}, who could replace the socket"
        raise AgentwatchError(message, _REMEDY)
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not (sticky and status.st_mode & stat.S_ISVTX):
        message = f"others may write to {directory}, and could replace the socket"
        raise AgentwatchError(message, f"chmod go-w {directory}, or {_REMEDY}")


def _locked(path: Path) -> int:
    """The descriptor that holds the lock. Raises AgentwatchError where a daemon runs."""
    name = path.with_name(path.name + ".lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    lock = os.open(name, flags, LOCK_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(lock, LOCK_MODE)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        who = os.pread(lock, 32, 0).strip()
        os.close(lock)
        pid = f" (pid {int(who)})" if who.isdigit() else ""
        remedy = "ask it with `agentwatch status`, or stop it first: systemctl stop agentwatch"
        raise AgentwatchError(f"a daemon runs already{pid}", remedy) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _bound(path: Path, backlog: int) -> socket.socket:
    """With the lock held: nobody else binds here, so a socket that is there is nobody's."""
    if len(os.fsencode(path)) > PATH_MAX:
        message = f"{path} is too long for a socket: over {PATH_MAX} bytes"
        raise UsageError(message, "set `socket` to a shorter path")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            message = f"{path} is there and is no socket"
            raise AgentwatchError(message, f"move it away, or {_REMEDY}")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fsencode(path))
        os.chmod(path, SOCKET_MODE)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
