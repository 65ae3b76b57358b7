"""The command line's side of the control socket. It blocks, but never longer than it says."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from agentwatch.control import wire
from agentwatch.control.wire import End, Missed, Streamed, StreamFrame
from agentwatch.errors import AgentwatchError, NotRunningError, PermissionDenied, UsageError

TIMEOUT = 10.0  # s for one answer
TIMEOUTS = {"rules.reload": 240.0}  # what takes longer, most of all on a machine at its limits

_CHUNK = 256 << 10  # bytes received in one go
_TIMEVAL = struct.Struct("@ll")
_START = "start it: systemctl start agentwatch, or `agentwatch daemon` as root"
_LOOK = "see what became of it: systemctl status agentwatch"


class Client:
    """A connection to the daemon: requests one after the other, or a stream as the last of them."""

    def __init__(self, connected: socket.socket) -> None:
        self.ended: str | None = None  # the reason the daemon gave for the end of the stream
        self._socket = connected
        self._in = bytearray()
        self._streaming = False

    @classmethod
    def connect(cls, path: Path, timeout: float = TIMEOUT) -> Client:
        """Raises NotRunningError where no daemon listens, PermissionDenied, AgentwatchError."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not settimeout: without blocking, a full backlog refuses instead of making us wait.
            timeval = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6))
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            connected.connect(os.fsencode(path))
        except BaseException as error:
            connected.close()
            if isinstance(error, OSError):
                raise _not_connected(path, error) from None
            raise
        return cls(connected)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Readable when there may be something for `arrived`."""
        return self._socket.fileno()

    def request(self, verb: str, /, *, timeout: float | None = None, **args: Any) -> dict[str, Any]:
        """The value of the reply. timeout: s, by default what the verb may take.

        Raises the error of the reply, NotRunningError where the daemon went away, AgentwatchError
        where it does not answer in time; the connection is closed then, as it may answer later.
        """
        if self._streaming or self._socket.fileno() < 0:
            raise UsageError(f"{verb}: this connection is not for requests any more")
        frame = wire.encode_request(wire.Request(verb, args))
        patience = TIMEOUTS.get(verb, TIMEOUT) if timeout is None else timeout
        try:
            reply = self._ask(frame, time.monotonic() + patience)
        except TimeoutError:
            self.close()
            message = f"the daemon did not answer {verb} within {patience:g} s"
            raise AgentwatchError(message, _LOOK) from None
        except OSError as error:
            self.close()
            raise _gone(error.strerror or str(error)) from None
        except AgentwatchError:  # not our protocol
            self.close()
            raise
        if reply.error is not None:
            raise reply.error
        return dict(reply.value)

    def stream(
        self, verb: str, /, *, timeout: float | None = None, **args: Any
    ) -> Iterator[Streamed | Missed]:
        """What the daemon sends from now on, up to its end; the reason is in `ended` then.

        Asks at once, and raises what `request` raises; the iterator raises NotRunningError where
        the stream breaks off.
        """
        self.request(verb, timeout=timeout, **args)
        self._streaming = True
        self._socket.settimeout(None)
        return self._frames()

    def arrived(self) -> list[StreamFrame]:
        """What of the stream is here by now, without waiting, for who selects on fileno().

        Nothing when more has to come first; fileno() is readable as long as more is there.
        Raises NotRunningError where the stream broke off.
        """
        found = self._whole()
        if self.ended is None and self._more(socket.MSG_DONTWAIT):
            found += self._whole()
        return found

    def _frames(self) -> Iterator[Streamed | Missed]:
        while True:
            for frame in self._whole():
                if isinstance(frame, End):
                    return
                yield frame
            self._more(0)

    def _whole(self) -> list[StreamFrame]:
        """The stream frames that are complete."""
        found: list[StreamFrame] = []
        while self.ended is None:
            body = self._body()
            if body is None:
                break
            found.append(wire.decode_stream(body))
            if isinstance(found[-1], End):
                self.ended = found[-1].reason
        return found

    def _more(self, flags: int) -> bool:
        """Whether more bytes came. Raises NotRunningError where none will."""
        try:
            received = self._socket.recv(_CHUNK, flags)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _gone(error.strerror or str(error)) from None
        if not received:
            raise _gone("the stream broke off")
        self._in += received
        return True

    def _ask(self, frame: bytes, deadline: float) -> wire.Reply:
        try:
            self._socket.settimeout(_left(deadline))
            sent = 0
            while sent < len(frame):
                sent += self._socket.send(frame[sent:], socket.MSG_NOSIGNAL)
                self._socket.settimeout(_left(deadline))
        except (BrokenPipeError, ConnectionResetError):
            pass  # turned away: the reason may be here already
        while (body := self._body()) is None:
            self._socket.settimeout(_left(deadline))
            received = self._socket.recv(_CHUNK)
            if not received:
                raise ConnectionResetError("it closed the connection without an answer")
            self._in += received
        return wire.decode_reply(body)

    def _body(self) -> bytes | None:
        """The next frame's body, if it is complete. Raises AgentwatchError for no frame of ours."""
        head = wire.HEAD.size
        if len(self._in) < head:
            return None
        end = head + wire.body_length(bytes(self._in[:head]), wire.REPLY_MAX)
        if len(self._in) < end:
            return None
        body = bytes(self._in[head:end])
        del self._in[:end]
        return body


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _not_connected(path: Path, error: OSError) -> AgentwatchError:
    if isinstance(error, BlockingIOError | TimeoutError):
        return AgentwatchError(f"the daemon at {path} takes no connections", _LOOK)
    if isinstance(error, PermissionError):
        message = f"not permitted to connect to the daemon at {path}"
        return PermissionDenied(message, "ask as root, or as a user of this host, not of a sandbox")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NotRunningError(f"no daemon listens at {path}", _START)
    return UsageError(f"{path}: {error}", "name the daemon's control socket")


def _gone(reason: str) -> NotRunningError:
    return NotRunningError(f"the daemon is gone: {reason}", _LOOK)
