"""Serves one page over HTTP, from one thread, whoever asks and however slowly.

All who ask at the same time are given the same page, so that many of them, or one that does not
stop, take hardly more of the interpreter than one does. Whoever keeps others waiting is hung up on.
"""

from __future__ import annotations

import errno
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agentwatch.errors import AgentwatchError, PermissionDenied, UsageError

CLIENTS = 128  # at a time: for one more, the one that has been here longest goes
PATIENCE = 5.0  # s that a client may take for all it does
PAUSE = 0.1  # s from one page to the next
REQUEST_MAX = 16 << 10  # bytes
TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_LINE = re.compile(rb"([A-Z]+) (/[^ ?]*)(\?[^ ]*)? HTTP/1\.[01]\r?\n")
_STATUS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


@dataclass(slots=True, eq=False)
class _Client:
    """deadline: s, monotonic. received: of the request, until it is complete; out: of the answer.

    asked: it waits for the page. head: it wants no more than an answer's head.
    """

    socket: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    asked: bool = False
    head: bool = False


class Server:
    """Serves until close(). host, port: where it really listens. page: called in its thread."""

    def __init__(self, listener: socket.socket, page: Callable[[], bytes]) -> None:
        self._listener, self._page = listener, page
        self.host, self.port = listener.getsockname()[:2]
        listener.setblocking(False)
        self._clients: dict[int, _Client] = {}  # the one that has been here longest first
        self._next = 0.0  # s, monotonic: when a page may be made again
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.close()
        self._listener.close()
        os.close(self._wake)

    # In the thread.

    def _run(self) -> None:
        while True:
            ready = self._selector.select(self._timeout())
            if self._closing:
                return
            for key, mask in ready:
                client = self._clients.get(key.fd)
                if client is not None:
                    self._serve(client, mask)
                elif key.fileobj is self._listener:
                    self._accept()
            now = time.monotonic()
            if now >= self._next and any(one.asked for one in self._clients.values()):
                self._answer_all()
            for client in [one for one in self._clients.values() if one.deadline <= now]:
                self._drop(client)

    def _timeout(self) -> float | None:
        """Seconds until something is due by itself."""
        due = [one.deadline for one in self._clients.values()]
        if any(one.asked for one in self._clients.values()):
            due.append(self._next)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                time.sleep(PAUSE)  # it would be told again at once, and for ever
            return
        if len(self._clients) >= CLIENTS:
            self._drop(next(iter(self._clients.values())))
        connected.setblocking(False)
        self._clients[connected.fileno()] = _Client(connected, time.monotonic() + PATIENCE)
        self._selector.register(connected, selectors.EVENT_READ)

    def _serve(self, client: _Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                client.out = client.out[client.socket.send(client.out) :]
                if not client.out:
                    self._drop(client)
            elif mask & selectors.EVENT_READ:
                self._read(client)
        except BlockingIOError:
            return
        except OSError:  # it went away, which is its right
            self._drop(client)

    def _read(self, client: _Client) -> None:
        piece = client.socket.recv(4096)
        if not piece or client.asked:  # gone, or it says more than there is to say
            self._drop(client)
            return
        client.received += piece
        if b"\r\n\r\n" in client.received or b"\n\n" in client.received:
            self._asked(client)
        elif len(client.received) > REQUEST_MAX:
            self._answer(client, 431, b"the request is too long\n")

    def _asked(self, client: _Client) -> None:
        found = _FIRST_LINE.match(client.received)
        if found is None:
            self._answer(client, 400, b"this is no HTTP request\n")
        elif found[1] not in (b"GET", b"HEAD"):
            self._answer(client, 405, b"metrics are read with GET\n")
        elif found[2] not in (b"/metrics", b"/"):
            self._answer(client, 404, b"metrics are at /metrics\n")
        else:
            client.asked, client.head = True, found[1] == b"HEAD"

    def _answer_all(self) -> None:
        """One page for all who wait for it."""
        try:
            status, body = 200, self._page()
        except Exception as error:  # whatever is wrong with a number, the next scrape is served
            status, body = 500, f"the metrics could not be read: {error!r}\n".encode()
        self._next = time.monotonic() + PAUSE
        for client in [one for one in self._clients.values() if one.asked]:
            self._answer(client, status, body)

    def _answer(self, client: _Client, status: int, body: bytes) -> None:
        client.asked = False
        kind = TYPE if status == 200 else "text/plain; charset=utf-8"
        head = (
            f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        client.out = memoryview(head if client.head else head + body)
        self._selector.modify(client.socket, selectors.EVENT_WRITE)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        self._selector.unregister(client.socket)
        client.socket.close()


def serve(host: str, port: int, page: Callable[[], bytes]) -> Server:
    """Serves on host:port (0: any free one). Raises AgentwatchError with a remedy."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(CLIENTS)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        raise _refused(host, port, error) from None
    return Server(listener, page)


def _refused(host: str, port: int, error: Exception) -> AgentwatchError:
    where = f"{host}:{port}"
    if isinstance(error, PermissionError):
        return PermissionDenied(f"metrics may not listen on {where}", "take a port above 1023")
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return AgentwatchError(
            f"metrics cannot listen on {where}: {error.strerror}",
            "stop what listens there, or take another port: `metrics:`, or --metrics of run",
        )
    return UsageError(f"metrics cannot listen on {where}: {error}", "give --metrics 127.0.0.1:9477")
