"""Slow work beside the loop: one piece after the other in a thread, and its result in the loop."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from agentwatch.errors import AgentwatchError

WAITING_MAX = 4096  # pieces of work

T = TypeVar("T")
Then = Callable[[], object]


class Aside:
    """Work is done in the order it was given. fileno: readable when `turn` has something to tell.

    threaded: whether there is a thread; without one, work and what follows are done at once.
    """

    def __init__(self, threaded: bool) -> None:
        self._work: queue.SimpleQueue[Callable[[], Then] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Then] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        self._threaded = threaded
        if threaded:
            self._thread.start()

    def fileno(self) -> int:
        return self._wake

    def do(
        self,
        work: Callable[[], T],
        then: Callable[[T], object],
        failed: Callable[[Exception], object] | None = None,
    ) -> None:
        """Does `work` aside, then `then` with its result in the loop.

        failed: told instead what it raised, or that too much waits to be done; without it, that is
        raised: by turn, or here.
        """

        def both() -> Then:
            try:
                result = work()
            except Exception as error:
                if failed is None:
                    raise
                return partial(failed, error)
            return lambda: then(result)

        if not self._threaded:
            both()()
        elif self._work.qsize() < WAITING_MAX:
            self._work.put(both)
        else:
            error = AgentwatchError(f"{WAITING_MAX} pieces of work wait already", "try again later")
            if failed is None:
                raise error
            failed(error)

    def turn(self) -> None:
        """Tells what has been done. Raises what a piece of work raised."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        with suppress(queue.Empty):
            while True:
                self._done.get_nowait()()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                then: Then = work()
            except BaseException as error:
                then = _raising(error)
            self._done.put(then)
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Waits for what is being done; what waits is not begun, and nothing is told any more."""
        if self._threaded:
            with suppress(queue.Empty):
                while True:
                    self._work.get_nowait()
            self._work.put(None)
            self._thread.join()
        os.close(self._wake)


def _raising(error: BaseException) -> Then:
    def again() -> object:
        raise error

    return again
