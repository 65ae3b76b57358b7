"""Who is at the other end of a connection: the process that connected, as the kernel knows it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple

from agentwatch.errors import PermissionDenied

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77  # Linux 6.5; not in Python's socket module yet

MEMBERSHIPS = 256  # groups of a process that are asked for: getsockopt gives 1024 bytes

_UCRED = struct.Struct("=iII")  # pid, uid, gid
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_REMEDY = "connect from the process that asks, in the daemon's PID namespace or one below it"


class Credentials(NamedTuple):
    """Of the process that connected, at that moment. pid: 0 when it is not visible from here."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Credentials:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return cls(*_UCRED.unpack(raw))


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected. pidfd: ours to close, and the proof that `pid` is still it.

    groups: every one it was in when it connected.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int
    groups: frozenset[int] = frozenset()

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Raises PermissionDenied where that process has ended or is not visible from here.

        Raises OSError when there is no descriptor left for it.
        """
        pid, uid, gid = Credentials.of(connection)
        if pid <= 0:
            raise PermissionDenied("the process that connected is not visible from here", _REMEDY)
        peer = cls(pid, uid, gid, _pidfd(connection, pid), _groups(connection) | {gid})
        if not peer.alive:
            peer.close()
            raise _gone(pid)
        return peer

    @property
    def alive(self) -> bool:
        """Whether the process that connected still runs.

        One that inherited the connection, or was handed it, is somebody else.
        """
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        os.close(self.pidfd)


def _groups(connection: socket.socket) -> frozenset[int]:
    """Supplementary ones; of more than MEMBERSHIPS none are known."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MEMBERSHIPS)
    except OSError:
        return frozenset()
    return frozenset(number for (number,) in struct.iter_unpack("=I", raw))


def _pidfd(connection: socket.socket, pid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        if error.errno != errno.ENOPROTOOPT:
            raise _gone(pid) from None
    try:
        # An older kernel. The pid may be somebody else's since the connect: right after accept that
        # takes a full turn of all pids in the meantime, and a peer that ended on purpose.
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise _gone(pid) from None


def _gone(pid: int) -> PermissionDenied:
    return PermissionDenied(f"process {pid}, which connected, has ended", _REMEDY)
