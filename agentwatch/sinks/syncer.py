"""The thread that calls fsync, and removes what is retired: the loop never waits for a disk."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable


class Syncer:
    """Syncs the current segment at most once per `interval` seconds, and at once when asked to.

    os.fsync releases the interpreter lock. The thread alone closes descriptors handed to it.
    interval None: never, the kernel writes back when it likes.
    """

    def __init__(self, directory: int, interval: float | None) -> None:
        self._directory = directory
        self._interval = interval
        self._fd = -1
        self._retired: deque[int] = deque()
        self._after: deque[Callable[[], None]] = deque()
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

    def move(self, directory: int) -> None:
        """Segments to come lie in `directory`; the one before is closed."""
        before, self._directory = self._directory, directory
        self._retired.append(before)

    def then(self, action: Callable[[], None]) -> None:
        """Do this, in the thread, once all that was written until now is synced.

        Not at all where the sync fails. It must not raise.
        """
        self._after.append(action)
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
        """Sync and close everything, the directory included, and end the thread."""
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
            self._turn()
            if stopping:
                break
        if self._fd >= 0:
            os.close(self._fd)
        self._sync(self._directory)
        os.close(self._directory)

    def _turn(self) -> None:
        after = len(self._after)
        sound = True
        while self._retired:
            old = self._retired.popleft()
            sound &= self._sync(old)
            os.close(old)
            sound &= self._sync(self._directory)
        if self._fd >= 0:
            sound &= self._sync(self._fd)
        for _ in range(after):
            action = self._after.popleft()
            if sound:
                action()

    def _sync(self, fd: int) -> bool:
        if self._interval is None:
            return True
        try:
            os.fsync(fd)
        except OSError as error:
            self._error = error
            return False
        self.count += 1
        return True
