"""What is done about a verdict: signals through a pidfd, and a breaker against kill storms."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agentwatch import processes
from agentwatch.events import ProcessKey

STOPPING = 0.2  # s in which a session should come to rest; what still runs then is killed
ENDING = 2.0  # s in which it should be gone
PAUSE = 0.002  # s between two rounds of signals
LOOKS = 3  # at a session that find nobody, before it is believed to have ended


@dataclass(frozen=True, slots=True)
class Sent:
    """Of a signal. ok: it reached the process meant. reason: why it did not."""

    ok: bool
    reason: str = ""


GONE = Sent(False, "too late")


PROBE = 0  # no signal: only whether the process is there


def send(process: ProcessKey, number: int) -> Sent:
    """Signals exactly this process: a pidfd pins it, then its start time is compared.

    A process that has ended, or whose pid is somebody else's by now, is `too late`.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return GONE
    except OSError as error:
        return Sent(False, error.strerror or str(error))
    try:
        if not processes.runs(process):
            return GONE
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return GONE
    except OSError as error:
        return Sent(False, error.strerror or str(error))
    finally:
        os.close(pidfd)
    return Sent(True)


class Breaker:
    """Counts kills: more than `kills` within `within` ns of event time trip it, once a session."""

    def __init__(self, kills: int = 20, within: int = 10_000_000_000) -> None:
        self._kills, self._within = kills, within
        self._times: dict[ProcessKey, deque[int]] = {}
        self._tripped: set[ProcessKey] = set()

    def trips(self, session: ProcessKey, time: int) -> bool:
        """Counts one kill. True: this one is too many, the session is to be stopped."""
        times = self._times.setdefault(session, deque())
        times.append(time)
        while times[0] < time - self._within:
            times.popleft()
        if len(times) <= self._kills or session in self._tripped:
            return False
        self._tripped.add(session)
        return True

    def tripped(self, session: ProcessKey) -> bool:
        return session in self._tripped

    def adjust(self, kills: int, within: int) -> None:
        """Other limits, from the next kill on."""
        self._kills, self._within = kills, within

    def forget(self, session: ProcessKey) -> None:
        """A session that is over."""
        self._times.pop(session, None)
        self._tripped.discard(session)


Find = Callable[[], Iterable[ProcessKey]]
"""The live processes of a session as they are known at this moment."""


@dataclass(frozen=True, slots=True)
class Held:
    """What came of holding a session: how many processes are stopped, how many had to be killed."""

    stopped: int
    killed: int


def stop(found: Iterable[ProcessKey]) -> int:
    """SIGSTOP to each; how many it reached."""
    return sum(send(process, signal.SIGSTOP).ok for process in found)


def end(found: Iterable[ProcessKey]) -> int:
    """SIGKILL to each, stopped or not; how many it reached."""
    return sum(send(process, signal.SIGKILL).ok for process in found)


def resume(found: Iterable[ProcessKey]) -> int:
    """SIGCONT to each; how many it reached."""
    return sum(send(process, signal.SIGCONT).ok for process in found)


def hold(find: Find) -> Held:
    """Stops all that `find` gives until each is stopped and no new one appears.

    A process that runs on after STOPPING, because others let it go on as fast as it is stopped, is
    killed: nothing of a session that is to be held goes on.
    """
    killed: set[ProcessKey] = set()
    begun = time.monotonic()
    while (moving := _moving(find)) and (taken := time.monotonic() - begun) < ENDING:
        if taken < STOPPING:
            stop(moving)
        else:
            killed |= {process for process in moving if send(process, signal.SIGKILL).ok}
        time.sleep(PAUSE)
    return Held(sum(map(processes.runs, {*find()} - killed)), len(killed))


def end_all(find: Find) -> None:
    """Ends all that `find` gives and what they start meanwhile: stopped first, nothing can."""
    hold(find)
    begun, empty = time.monotonic(), 0
    while empty < LOOKS and time.monotonic() - begun < ENDING:
        alive = [process for process in find() if processes.runs(process)]
        empty = 0 if alive else empty + 1  # a list may miss who is just added to it
        end(alive)
        time.sleep(PAUSE)


def _moving(find: Find) -> list[ProcessKey]:
    """Those that are not stopped; looked for twice, for a list may miss who is just added to it."""
    return [p for p in find() if not processes.held(p)] or [
        p for p in find() if not processes.held(p)
    ]
