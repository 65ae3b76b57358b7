"""How long a daemon takes until it watches."""

from __future__ import annotations

import statistics
import time

from agentwatch.events import Exec
from agentwatch.sinks import frames
from agentwatch.sinks.reader import read
from bench.daemon_place import PATIENCE, Daemon, Place
from bench.workplace import say

ROUNDS = 7
TARGET = 600  # ms


def measure(place: Place) -> None:
    """From its exec to READY, and to the record of an agent that is started the moment it is ready.

    The variants alternate.
    """
    rules = {"one rule": place.rules(False), "shipped packs": place.rules(True)}
    ready: dict[str, list[float]] = {name: [] for name in rules}
    tagged: dict[str, list[float]] = {name: [] for name in rules}
    recorded: dict[str, list[float]] = {name: [] for name in rules}
    for _ in range(ROUNDS):
        for name, path in rules.items():
            begun, first, second = _once(place, Daemon(place, path))
            ready[name].append(begun)
            tagged[name].append(first)
            recorded[name].append(second)
    say(f"daemon, start: ms from its exec, medians of {ROUNDS} and the slowest (under {TARGET})")
    for name in rules:
        say(f"  {name:16} READY                                   {_both(ready[name])}")
        say(f"  {'':16} an agent started then: its session      {_both(tagged[name])}")
        say(f"  {'':16} its exec is in the journal, on disk     {_both(recorded[name])}")


def _once(place: Place, daemon: Daemon) -> tuple[float, float, float]:
    """ms from the daemon's exec until READY, a session's beginning, and its exec on disk."""
    try:
        agent = place.agent("sleep 20")
        limit = time.monotonic() + PATIENCE
        while not (found := _told(place, agent.pid)):
            if time.monotonic() > limit:
                raise TimeoutError("the agent's session is not in the journal")
            time.sleep(0.005)
        on_disk = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    finally:
        place.quiet()
        daemon.stop()
        place.forget()
    return tuple((at - daemon.began) / 1e6 for at in (daemon.ready, found, on_disk))  # type: ignore[return-value]


def _told(place: Place, pid: int) -> int:
    """When the session of a process began, once its exec is in the journal; 0 before."""
    began, executed = 0, False
    for entry in read(place.journal):
        if isinstance(entry.frame, frames.Session) and entry.frame.session.pid == pid:
            began = entry.frame.began
        executed |= isinstance(entry.event, Exec) and entry.event.process.pid == pid
    return began if executed else 0


def _both(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):6.0f} {max(numbers):6.0f}"
