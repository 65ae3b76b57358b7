"""The thread that calls fsync, so that the loop never waits for a disk."""

from __future__ import annotations

import os
import threading


class Syncer:
    """Syncs the current segment at most once per `interval` seconds, and at once when asked to.

    os.fsync releases the interpreter lock. The thread alone closes descriptors handed to retire().
    interval None: never, the kernel writes back when it likes.
    """

    def __init__(self, directory: int, interval: float | None) -> None:
        self._directory = directory
        self._interval = interval
        self._fd = -1
        self._retired: list[int] = []
        self._error: OSError | None = None
        self._stopping = False
        self._dirty = threading.Event()
        self._urgent = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def use(self, fd: int) -> None:
        """`fd` is the segment from now on; the one before is synced and closed."""
        before, self._fd = self._fd, fd
        if before >= 0:
            self._retired.append(before)
        self.mark(urgent=True)

    def mark(self, urgent: bool = False) -> None:
        """Something was written. urgent: do not wait for the interval."""
        if urgent:
            self._urgent.set()
        if not self._dirty.is_set():
            self._dirty.set()

    def take_error(self) -> OSError | None:
        """The last failed fsync, once."""
        error, self._error = self._error, None
        return error

    def stop(self) -> None:
        """Sync and close everything, and end the thread."""
        self._stopping = True
        self.mark(urgent=True)
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._dirty.wait()
            self._urgent.wait(self._interval)
            self._urgent.clear()
            self._dirty.clear()
            stopping = self._stopping
            while self._retired:
                old = self._retired.pop(0)
                self._sync(old)
                os.close(old)
                self._sync(self._directory)
            if self._fd >= 0:
                self._sync(self._fd)
            if stopping:
                break
        if self._fd >= 0:
            os.close(self._fd)
        self._sync(self._directory)

    def _sync(self, fd: int) -> None:
        if self._interval is None:
            return
        try:
            os.fsync(fd)
            self.count += 1
        except OSError as error:
            self._error = error
