"""How long a daemon takes until it watches."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from agentwatch.events import Exec
from agentwatch.sinks import frames
from agentwatch.sinks.reader import read
from bench.daemon_place import PATIENCE, Daemon, Place
from bench.workplace import say

ROUNDS = 7
TARGET = 600  # ms


def measure(place: Place) -> None:
    """From its exec to the first agent whose exec it records, to READY, and to the record of an
    agent that is started the moment it is ready. The variants alternate.
    """
    rules = {"one rule": place.rules(False), "shipped packs": place.rules(True)}
    watches: dict[str, list[float]] = {name: [] for name in rules}
    ready: dict[str, list[float]] = {name: [] for name in rules}
    spent: dict[str, list[float]] = {name: [] for name in rules}
    tagged: dict[str, list[float]] = {name: [] for name in rules}
    recorded: dict[str, list[float]] = {name: [] for name in rules}
    for _ in range(ROUNDS):
        for name, path in rules.items():
            watches[name].append(_first(place, path))
            begun, cpu, first, second = _once(place, path)
            ready[name].append(begun)
            spent[name].append(cpu)
            tagged[name].append(first)
            recorded[name].append(second)
    say(f"daemon, start: ms from its exec, medians of {ROUNDS} and the slowest (under {TARGET})")
    for name in rules:
        say(f"  {name:16} the first agent whose exec is recorded  {_both(watches[name])}")
        say(f"  {'':16} READY                                   {_both(ready[name])}")
        say(f"  {'':16} an agent started then: its session      {_both(tagged[name])}")
        say(f"  {'':16} its exec is in the journal, on disk     {_both(recorded[name])}")
        say(f"  {'':16} CPU until READY, of two                 {_both(spent[name])}")


def _first(place: Place, rules: Path) -> float:
    """ms from the daemon's exec to the first that is recorded of agents that come all the time."""
    daemon = Daemon(place, rules, knocking=True)
    try:
        limit = time.monotonic() + PATIENCE
        while not (first := place.knocked()):
            if time.monotonic() > limit:
                raise TimeoutError("no agent is in the journal")
            time.sleep(0.05)
    finally:
        daemon.stop()
        place.forget()
    return (first - daemon.began) / 1e6


def _once(place: Place, rules: Path) -> tuple[float, float, float, float]:
    """ms from the daemon's exec until READY, of CPU until then, until a session's beginning, and
    until its exec is on disk.
    """
    daemon = Daemon(place, rules)
    try:
        cpu = daemon.cpu() * 1e3
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
    ready, session, record = ((at - daemon.began) / 1e6 for at in (daemon.ready, found, on_disk))
    return ready, cpu, session, record


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
