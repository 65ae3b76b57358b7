"""Text for a terminal or pipe that may be in the way, written without ever waiting for it.

What CMD shares with us it can also stop (tcflow, a full pipe) or break (no reader is left); the
loop that kills must not notice. So a thread of its own writes, from a queue with an end.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from contextlib import suppress

ROOM = 4096  # blocks that may wait
DRAIN = 0.5  # s that a flush waits at most
RETRY = 0.1  # s, where the file is not to be waited for


class Screen:
    """As much of a text file as a view needs; no method raises OSError or blocks for long.

    dropped: lines that found no room, or nobody to read them.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._own = _own(fd)
        self._queue: deque[str] = deque()
        self._ready = threading.Condition()
        self._busy = self._closed = False
        self.dropped = 0
        threading.Thread(target=self._run, name="screen", daemon=True).start()

    def write(self, text: str) -> None:
        with self._ready:
            if len(self._queue) < ROOM:
                self._queue.append(text)
                self._ready.notify_all()
            else:
                self.dropped += text.count("\n")

    def flush(self) -> None:
        """Waits for what was written to be out, DRAIN seconds at most."""
        with self._ready:
            self._ready.wait_for(lambda: not self._queue and not self._busy, DRAIN)

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """The last flush; what does not get out by then never does."""
        self.flush()
        with self._ready:
            self._closed = True
            self._ready.notify_all()
            if self._own and not self._busy:
                os.close(self._fd)
                self._own = False

    def _run(self) -> None:
        while True:
            with self._ready:
                self._busy = False
                self._ready.notify_all()
                self._ready.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                text = self._queue.popleft()
                self._busy = True
            if not self._written(text.encode("utf-8", "backslashreplace")):
                with self._ready:
                    self.dropped += text.count("\n")

    def _written(self, data: bytes) -> bool:
        while data and not self._closed:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # CMD has made a descriptor that we share so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(RETRY * 1000)
            except OSError:
                return False
        return not data


def _own(fd: int) -> tuple[int, bool]:
    """A description of our own, whose flags and position are not CMD's; else the one given.

    A regular file keeps the one given: only so do both write behind each other.
    """
    with suppress(OSError):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Without a reader a pipe would be waited for; once it is open it may be.
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            own = os.open(f"/proc/self/fd/{fd}", flags)
            os.set_blocking(own, True)
            return own, True
    return fd, False
