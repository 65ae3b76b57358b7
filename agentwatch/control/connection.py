"""One client of the daemon: a request at a time, or a stream, and never more memory than its share.

Nothing here blocks. A frame is read to its last byte and no further, so what a client sends ahead
waits in its own socket, and nothing is read while an answer is being made or waits to be sent. All
of it belongs to the thread of the loop.
"""

from __future__ import annotations

import enum
import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from agentwatch.control import wire
from agentwatch.control.peer import Peer
from agentwatch.errors import AgentwatchError

_WRITE_MAX = 256 << 10  # bytes in one go, more or less a frame
_VECTOR_MAX = 64  # frames in one go


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may have. connections: in all, of which `reserved` are for uid 0 alone.

    queue: bytes that wait for one subscriber. accepts: new connections in one turn of the loop.
    request_time: s from a request's first byte to its last, and for an error or the end of a stream
    to be read. idle_time: s without a request, or without reading an answer.
    """

    connections: int = 256
    reserved: int = 32
    per_uid: int = 32
    backlog: int = 128
    accepts: int = 16
    queue: int = 4 << 20
    request_time: float = 5.0
    idle_time: float = 60.0


class Poller(Protocol):
    """As much of select.epoll as is needed."""

    def register(self, fd: int, eventmask: int, /) -> None: ...

    def modify(self, fd: int, eventmask: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...


class State(enum.Enum):
    """READING waits for a request, ANSWERING for the daemon, CLOSING for the last byte to leave."""

    READING = enum.auto()
    ANSWERING = enum.auto()
    STREAMING = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """A client. gone: told once, when it is closed, for whatever reason."""

    def __init__(
        self,
        connected: socket.socket,
        peer: Peer,
        poller: Poller,
        limits: Limits,
        gone: Callable[[Connection], None],
    ) -> None:
        self.peer = peer
        self.state = State.READING
        self.subscription: Stream | None = None
        self.fd = connected.fileno()
        self._socket, self._poller, self._limits, self._gone = connected, poller, limits, gone
        self._in = bytearray()
        self._out: deque[memoryview] = deque()
        self.queued = 0  # bytes in _out
        self._since = time.monotonic()  # of the last progress, or of a frame's first byte
        self._mask = select.EPOLLIN
        connected.setblocking(False)
        poller.register(self.fd, self._mask)

    # For whoever answers.

    def reply(self, reply: wire.Reply) -> None:
        """Answers the request that was handed out; nothing where the client has gone.

        Nothing either where the process that asked has ended: who holds its connection did not ask.
        """
        if self.state is not State.CLOSED and not self.peer.alive:
            self.close()
        if self.state is State.CLOSED:
            return
        if self.state is not State.ANSWERING:
            raise RuntimeError("a reply to no request")
        self.state = State.READING
        self.push(wire.encode_reply(reply))
        self.flush()

    def stream(self) -> Stream:
        """Answers the request with a stream, the last thing this connection is used for."""
        self.subscription = Stream(self, self._limits.queue)
        self.reply(wire.Reply())
        if self.state is State.READING:
            self.state = State.STREAMING
            self._watch()
        return self.subscription

    # For the server.

    def hung_up(self) -> bool:
        """Whether the client has closed it; asked anew, as events may be of a former owner's fd."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def read(self) -> wire.Request | None:
        """The next request, when it is complete; at most one, and no byte behind it."""
        if self.state is not State.READING or self._out:
            return None
        try:
            body = self._body()
            if body is None:
                return None
            request = wire.decode_request(body)
        except AgentwatchError as error:
            self.refuse(error)
            return None
        self.state = State.ANSWERING
        self._watch()
        return request

    def refuse(self, error: AgentwatchError) -> None:
        """Says why and closes: what else the client sends is not looked at."""
        self._in.clear()
        self.push(wire.encode_reply(wire.Reply(error=error)))
        self.finish()

    def finish(self) -> None:
        """Closes once everything has left."""
        self.state = State.CLOSING
        self._since = time.monotonic()
        self.flush()

    def check(self, now: float) -> None:
        """Closes it where its time is up or the process that connected has ended."""
        if not self.peer.alive:
            self.close()
        elif now - self._since > self._patience():
            if self._in:
                seconds = f"{self._limits.request_time:g} s"
                self.refuse(AgentwatchError(f"the request was not complete within {seconds}"))
            else:
                self.close()

    def _patience(self) -> float:
        """Seconds without progress that are borne. A subscriber may take all the time it wants."""
        if self.state is State.READING and not self._in:
            return self._limits.idle_time
        if self.state in (State.READING, State.CLOSING):
            return self._limits.request_time
        return math.inf

    def close(self) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._out.clear()
        self.queued = 0
        self._poller.unregister(self.fd)
        self._socket.close()
        self.peer.close()
        self._gone(self)

    # Bytes.

    def push(self, data: bytes) -> None:
        """Queues a frame. Only the position in it is this connection's own."""
        if not self._out:
            self._since = time.monotonic()
        self._out.append(memoryview(data))
        self.queued += len(data)

    def flush(self) -> None:
        """Sends what the socket takes now, of one go's worth."""
        if self._out:
            try:
                sent = self._socket.sendmsg(self._batch(), (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:  # the client has gone, which is its right
                self.close()
                return
            self._sent(sent)
        if self.state is State.CLOSING and not self._out:
            self.close()
        else:
            self._watch()

    def _batch(self) -> list[memoryview]:
        batch, size = [], 0
        for view in islice(self._out, _VECTOR_MAX):
            batch.append(view[: _WRITE_MAX - size])
            size += len(batch[-1])
            if size >= _WRITE_MAX:
                break
        return batch

    def _sent(self, sent: int) -> None:
        if not sent:
            return
        self._since = time.monotonic()
        self.queued -= sent
        while sent:
            view = self._out.popleft()
            if sent < len(view):
                self._out.appendleft(view[sent:])
            sent -= min(sent, len(view))
        if self.subscription is not None:
            self.subscription.catch_up()

    def _watch(self) -> None:
        """Level-triggered, so nothing may be waited for that is not dealt with when it is there."""
        if self.state is State.CLOSED:
            return
        mask = 0  # a hang-up is always told
        if self._out:
            mask = select.EPOLLOUT
        elif self.state is State.READING:
            mask = select.EPOLLIN
        if mask != self._mask:
            self._mask = mask
            self._poller.modify(self.fd, mask)

    def _body(self) -> bytes | None:
        """A frame's body, once it is complete. Raises AgentwatchError for one too long."""
        head = wire.HEAD.size
        if len(self._in) < head and not self._receive(head):
            return None
        end = head + wire.body_length(bytes(self._in[:head]), wire.REQUEST_MAX)
        if not self._receive(end):
            return None
        body = bytes(self._in[head:])
        self._in.clear()
        return body

    def _receive(self, end: int) -> bool:
        """Whether the frame is here up to `end`."""
        try:
            received = self._socket.recv(end - len(self._in))
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        if not received:
            self.close()
            return False
        if not self._in:
            self._since = time.monotonic()
        self._in += received
        return len(self._in) == end


class Stream:
    """What a subscriber is sent, in order. What does not fit into its queue is dropped, counted and
    told as soon as half the queue is free again; until then newer frames are dropped too, so that a
    client that cannot keep up gets runs of frames with few holes.
    """

    def __init__(self, connection: Connection, limit: int) -> None:
        self.connection = connection
        self.dropped = 0  # frames, in all
        self._limit = limit
        self._missed = 0  # frames, not told yet

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent: ended, or the client has gone."""
        return self.connection.state is not State.STREAMING

    def send(self, data: bytes) -> None:
        """One frame as wire.encode_stream made it, once for all; nothing where it is closed."""
        connection = self.connection
        if self.closed:
            return
        if self._missed or connection.queued + len(data) > self._limit:
            self._missed += 1
            self.dropped += 1
            self.catch_up()
            return
        waiting = connection.queued > 0
        connection.push(data)
        if not waiting:  # else the poller says when
            connection.flush()

    def pass_on(self, data: bytes) -> None:
        """Bytes of frames that somebody else has made; never dropped: ask `queued` before."""
        if not self.closed:
            self.connection.push(data)
            self.connection.flush()

    def finish(self) -> None:
        """Nothing more will come: closed once everything has left."""
        if not self.closed:
            self.connection.finish()

    def catch_up(self) -> None:
        """Tells what was missed, if there is room."""
        if self._missed and self.connection.queued <= self._limit // 2:
            self._tell()
            self.connection._watch()

    def _tell(self) -> None:
        self.connection.push(wire.encode_stream(wire.Missed(self._missed)))
        self._missed = 0

    def end(self, reason: str) -> None:
        """The last frame; the connection is closed once it has left."""
        if self.closed:
            return
        if self._missed:
            self._tell()
        self.connection.push(wire.encode_stream(wire.End(reason)))
        self.connection.finish()
