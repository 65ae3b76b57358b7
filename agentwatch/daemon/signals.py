"""Signals as bytes of a descriptor, so that one poller waits for all there is."""

from __future__ import annotations

import signal
import socket
from typing import Any


class Signals:
    """Signals as bytes of a descriptor, inside a with statement."""

    def __init__(self, numbers: tuple[signal.Signals, ...]) -> None:
        self._numbers = numbers

    def __enter__(self) -> int:
        self._read, self._write = socket.socketpair()
        for end in (self._read, self._write):
            end.setblocking(False)
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, lambda number, frame: None) for number in self._numbers
        }
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        return self._read.fileno()

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._read.close()
        self._write.close()
