"""What is done about a verdict: signals through a pidfd, and a breaker against kill storms."""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.events import ProcessKey

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns


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
        if not _is(process):
            return GONE
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return GONE
    except OSError as error:
        return Sent(False, error.strerror or str(error))
    finally:
        os.close(pidfd)
    return Sent(True)


def _is(process: ProcessKey) -> bool:
    """Whether the pid is still this process and it runs. proc(5): fields 3, 20 and 22.

    One whose first thread has ended while others run on looks like a zombie, and is none.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    fields = stat[stat.rindex(")") + 2 :].split()
    runs = fields[0] not in "ZX" or int(fields[17]) > 1
    return runs and int(fields[19]) == process.start // _TICK


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


def stop(processes: list[ProcessKey]) -> int:
    """SIGSTOP to each; how many it reached."""
    return sum(send(process, signal.SIGSTOP).ok for process in processes)


def end(processes: list[ProcessKey]) -> int:
    """SIGKILL to each, stopped or not; how many it reached."""
    reached = 0
    for process in processes:
        with suppress(OSError):
            reached += send(process, signal.SIGKILL).ok
    return reached
