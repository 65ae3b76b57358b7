"""The daemon's side of the control socket, inside a loop that is somebody else's:

    for fd, mask in poller.poll(timeout):
        if fd in server:
            server.ready(fd, mask)
    server.tick()

No call blocks or does more than a bounded piece of work: a client that is slow, hostile or many
gets its own share of nothing, and the loop goes on.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agentwatch.control import wire
from agentwatch.control.connection import Connection, Limits, Poller, State, Stream
from agentwatch.control.listener import Listener
from agentwatch.control.peer import Credentials, Peer
from agentwatch.errors import AgentwatchError

__all__ = ["Connection", "Handler", "Limits", "Server", "Stream"]

CHECK = 0.5  # s between two looks at whose time is up

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_HUNG_UP = select.EPOLLHUP | select.EPOLLERR
_LATER = "try again in a moment"

# The answer, or None where it comes later, by connection.reply or connection.stream. May raise
# AgentwatchError, which is then the answer.
Handler = Callable[[Peer, wire.Request, Connection], wire.Reply | None]


class Server:
    """Listens at `path`. Raises AgentwatchError where a daemon runs already, or cannot."""

    def __init__(
        self, path: Path, handle: Handler, poller: Poller, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.failure = ""  # the last error of a handler that was no AgentwatchError
        self._handle, self._poller = handle, poller
        self._connections: dict[int, Connection] = {}
        self._by_uid: Counter[int] = Counter()
        self._listener = Listener(path, self.limits.backlog)
        self._listening = self._closed = False
        self._checked = time.monotonic()
        self._listen()

    def __contains__(self, fd: int) -> bool:
        return fd in self._connections or (not self._closed and fd == self._listener.fileno())

    def __len__(self) -> int:
        """Connections."""
        return len(self._connections)

    @property
    def subscribers(self) -> int:
        """Connections that are streams."""
        # A copy: a scrape asks, too, from a thread of its own.
        connections = tuple(self._connections.values())
        return sum(one.state is State.STREAMING for one in connections)

    def ready(self, fd: int, mask: int) -> None:
        """Handles what the poller said of a descriptor: one request, or a piece of one."""
        connection = self._connections.get(fd)
        if connection is None:
            if not self._closed and fd == self._listener.fileno():
                self._accept()
        elif mask & _HUNG_UP and connection.hung_up():
            connection.close()
        elif mask & select.EPOLLOUT:
            connection.flush()
        elif mask & select.EPOLLIN:
            request = connection.read()
            if request is not None:
                self._answer(connection, request)

    def tick(self, now: float | None = None) -> None:
        """Closes connections whose time is up. To be called in every turn; now: s, monotonic."""
        now = time.monotonic() if now is None else now
        if self._closed or now - self._checked < CHECK:
            return
        self._checked = now
        self._listen()
        for connection in tuple(self._connections.values()):
            connection.check(now)

    def close(self, reason: str) -> None:
        """Ends every stream, answers who still waits, as far as that does not block, and goes."""
        if self._closed:
            return
        self._closed = True
        self._pause()
        self._listener.close()
        for connection in tuple(self._connections.values()):
            if connection.state is State.ANSWERING:
                connection.refuse(AgentwatchError(f"no answer: {reason}", _LATER))
            elif connection.subscription is not None:
                connection.subscription.end(reason)
            connection.close()

    # Requests.

    def _answer(self, connection: Connection, request: wire.Request) -> None:
        if not connection.peer.alive:  # whoever inherited the connection is not who it says
            connection.close()
            return
        try:
            reply = self._handle(connection.peer, request, connection)
        except AgentwatchError as error:
            reply = wire.Reply(error=error)
        except Exception as error:  # the daemon watches on, whatever is wrong with one answer
            self.failure = f"{request.verb}: {type(error).__name__}: {error}"
            message = f"the daemon failed at {request.verb}: {type(error).__name__}"
            reply = wire.Reply(error=AgentwatchError(message, "see `agentwatch status` as root"))
        if reply is None:
            return
        if connection.state is State.ANSWERING:
            connection.reply(reply)
        else:  # it failed with its answer half given
            connection.close()

    # Connections.

    def _accept(self) -> None:
        for _ in range(self.limits.accepts):
            try:
                connected, _ = self._listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORTAGES:
                    # The poller would say so again at once, and for ever: until the next check.
                    self._pause()
                    return
                continue
            self._admit(connected)

    def _admit(self, connected: socket.socket) -> None:
        try:
            self._check_room(Credentials.of(connected).uid)
            peer = Peer.of(connected)
        except AgentwatchError as error:
            _turn_away(connected, error)
        except OSError as error:
            message = f"the daemon cannot take another connection: {error.strerror}"
            _turn_away(connected, AgentwatchError(message, _LATER))
        else:
            connection = Connection(connected, peer, self._poller, self.limits, self._forget)
            self._connections[connection.fd] = connection
            self._by_uid[peer.uid] += 1

    def _check_room(self, uid: int) -> None:
        """Raises AgentwatchError where there is no slot left for another of this uid."""
        limits, root = self.limits, self._by_uid[0]
        if uid and self._by_uid[uid] >= limits.per_uid:
            message = f"uid {uid} has {limits.per_uid} connections to the daemon already"
            raise AgentwatchError(message, "close some of them")
        others = len(self._connections) - root
        room = limits.connections - (limits.reserved if uid else 0)
        if len(self._connections) >= limits.connections or (uid and others >= room):
            raise AgentwatchError(f"the daemon has {len(self)} connections already", _LATER)

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection.fd]
        uid = connection.peer.uid
        self._by_uid[uid] -= 1
        if not self._by_uid[uid]:
            del self._by_uid[uid]

    def _listen(self) -> None:
        if not self._listening:
            self._poller.register(self._listener.fileno(), select.EPOLLIN)
            self._listening = True

    def _pause(self) -> None:
        if self._listening:
            self._poller.unregister(self._listener.fileno())
            self._listening = False


def _turn_away(connected: socket.socket, error: AgentwatchError) -> None:
    """Says why, if that does not block, and closes."""
    with connected, suppress(OSError):
        frame = wire.encode_reply(wire.Reply(error=error))
        connected.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
