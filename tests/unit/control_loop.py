"""A control server in a loop of its own thread, and clients that are processes of their own."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentwatch.control import wire
from agentwatch.control.connection import Connection, Limits, Stream
from agentwatch.control.peer import Peer
from agentwatch.control.server import Server
from agentwatch.errors import AgentwatchError, RuleErrors

T = TypeVar("T")
PATIENCE = 20.0  # s that a test waits for what must come


class Daemon:
    """As much of a daemon as a control socket needs: a loop, and an answer to every verb."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.poller = select.epoll()
        self.pending: list[Connection] = []  # who asked `later`
        self.streams: list[Stream] = []  # who asked `events`
        self.handled = 0
        self.turns = 0
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._failed: BaseException | None = None
        self._stopping = False
        self.server = Server(path, self._handle, self.poller, limits)
        self.poller.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _handle(
        self, peer: Peer, request: wire.Request, connection: Connection
    ) -> wire.Reply | None:
        self.handled += 1
        match request.verb:
            case "status":
                return wire.Reply({"pid": peer.pid, "uid": peer.uid, "gid": peer.gid})
            case "echo":
                return wire.Reply(request.args)
            case "large":
                return wire.Reply({"text": "x" * request.argument("size", int)})
            case "refuse":
                raise AgentwatchError("not today", "ask tomorrow")
            case "rules.reload":
                raise RuleErrors(())
            case "bug":
                raise KeyError("a secret of somebody else")
            case "later":
                self.pending.append(connection)
                return None
            case "events":
                self.streams.append(connection.stream())
                return None
            case "broken":
                connection.stream()
                raise ValueError("after the answer")
        raise AgentwatchError(f"no verb {request.verb}")

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.turns += 1
                for fd, mask in self.poller.poll(0.05):
                    if fd in self.server:
                        self.server.ready(fd, mask)
                    elif fd == self._wake:
                        os.eventfd_read(fd)
                self._called()
                self.server.tick()
        except BaseException as error:
            self._failed = error
            raise

    def _called(self) -> None:
        while self._calls:
            function, future = self._calls.pop(0)
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns, run by the loop's thread."""
        future: Future[T] = Future()
        self._calls.append((function, future))
        os.eventfd_write(self._wake, 1)
        return future.result(PATIENCE)

    def after(self, seconds: float) -> None:
        """As if so much time had passed."""
        self.call(lambda: self.server.tick(time.monotonic() + seconds))

    def until(self, true: Callable[[], bool]) -> None:
        """Waits until something is the case, looked at by the loop's thread."""
        deadline = time.monotonic() + PATIENCE
        while not self.call(true):
            assert time.monotonic() < deadline, "it never came to be"
            time.sleep(0.005)

    def send(self, *frames: wire.StreamFrame) -> None:
        """To every subscriber."""

        def send() -> None:
            for frame in frames:
                data = wire.encode_stream(frame)
                for stream in self.streams:
                    stream.send(data)

        self.call(send)

    def stop(self) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the loop hangs"
        self.server.close("stopped")
        self.poller.close()
        os.close(self._wake)
        assert self._failed is None, f"the loop ended with {self._failed!r}"


@contextmanager
def running(path: Path, limits: Limits | None = None) -> Iterator[Daemon]:
    """A daemon that is stopped in the end, and has not failed until then."""
    daemon = Daemon(path, limits)
    try:
        yield daemon
    finally:
        daemon.stop()


class Raw:
    """A client that can send anything."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, verb: str, **args: object) -> wire.Reply:
        self.send(wire.encode_request(wire.Request(verb, args)))
        return self.reply()

    def reply(self) -> wire.Reply:
        return wire.decode_reply(self.body())

    def body(self) -> bytes:
        return self.exactly(wire.body_length(self.exactly(wire.HEAD.size), wire.REPLY_MAX))

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            received = self.socket.recv(count - len(data))
            assert received, f"the end after {len(data)} of {count} bytes"
            data += received
        return data

    def at_end(self) -> bool:
        """Whether the other side has closed it, and nothing is left to read."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def error(self) -> AgentwatchError:
        """The error that is sent, after which the connection is closed."""
        error = self.reply().error
        assert error is not None
        assert self.at_end()
        return error


class Process:
    """A Python program of its own that talks to a test over its standard input and output."""

    def __init__(self, program: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> None:
        command = [sys.executable, "-I", "-c", program, *map(str, arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=pass_fds)
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().rstrip("\n")

    def wait(self) -> int:
        return self._process.wait(PATIENCE)
