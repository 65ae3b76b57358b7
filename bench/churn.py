"""Agents that come and go all the time: is every one watched, and does nothing of them stay?"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from agentwatch.sinks import frames
from agentwatch.sinks.reader import read
from bench.daemon_place import PATIENCE, Daemon, Place, daemon, place, turns
from bench.watched import kept
from bench.workplace import say

RATE = 500  # agents a minute
MINUTES = 5.0
SAMPLE = 10.0  # s between two comparisons of tags with /proc
SETTLED = 200_000_000  # ns: a process younger than this may be becoming an agent just now
KILLED = "sleep 2 & cat /etc/passwd; sleep 4"


def scripts(here: Place) -> tuple[str, ...]:
    """What agents do, in turn."""
    return (
        "cat /etc/hostname; for i in 1 2 3; do /bin/true; done; sleep 1",
        "exit 0",
        "setsid sh -c 'cat /etc/passwd; sleep 3' & sleep 0.2",
        KILLED,
        f"exec {here.stub(1)} 'cat /etc/hostname; sleep 0.5'",
        "exec sleep 1",
        "(sleep 2 &); for i in 1 2 3 4 5 6; do cat /etc/hostname | wc -c; done",
    )


@dataclass(slots=True)
class Seen:
    """started: agents. missing, foreign: pids that should have a tag and have none, and that have
    one and should not, of all comparisons; compared: how many processes these were.
    scrapes: s each took. levels: (minutes, MiB besides the rings, descriptors).
    """

    started: int = 0
    compared: int = 0
    missing: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)
    scrapes: list[float] = field(default_factory=list)
    failed: int = 0
    levels: list[tuple[float, float, int]] = field(default_factory=list)


def measure(minutes: float = MINUTES) -> None:
    """RATE agents a minute for so long, and a scrape every second."""
    with place() as here:
        with daemon(here, here.rules(True)) as running:
            seen, used = Seen(), running.cpu()
            _churn(here, running, seen, minutes)
            used = (running.cpu() - used) / (minutes * 60)
            _wait_until_over(here, running)
            metrics = running.metrics()
        journal, told = kept(here.journal), _told(here)
    say(f"{seen.started} agents in {minutes:g} minutes, a scrape every second")
    say(f"  tags      of {seen.compared:,} processes looked at {len(seen.missing)} without one")
    say(f"            and {len(seen.foreign)} with one that should have none")
    left = {name: int(metrics["map_entries", name]) for name in ("sessions", "mirror")}
    say(f"  left over {left['sessions']} sessions, {left['mirror']} tags in the kernel")
    begun, ended = told[frames.Session], told[frames.SessionEnd]
    say(f"  journal   {begun} sessions began, {ended} ended; {journal.records:,} records")
    say(f"  loss      {journal.lost} told, {journal.holes} holes, {journal.problems} problems")
    say(f"  agentwatch {used * 100:.1f} % of one CPU")
    slow = max(seen.scrapes) * 1e3
    say(
        f"  scrapes   {len(seen.scrapes)}, {seen.failed} failed; median "
        f"{statistics.median(seen.scrapes) * 1e3:.0f} ms, slowest {slow:.0f} ms"
    )
    say(f"  loop      {turns(metrics)}")
    for minute, memory, descriptors in seen.levels:
        say(f"  after {minute:4.1f} min {memory:6.1f} MiB besides the rings', {descriptors} fds")


def _churn(here: Place, running: Daemon, seen: Seen, minutes: float) -> None:
    over = threading.Event()
    scraper = threading.Thread(target=_scrape, args=(running, seen, over))
    scraper.start()
    begun, launcher = time.monotonic(), _Launcher(here, seen)
    compared = noted = begun
    _note(running, seen, 0)
    while (now := time.monotonic()) < begun + minutes * 60:
        launcher.turn(now)
        if now - compared >= SAMPLE:
            compared = now
            _compare(here, running, seen)
        if now - noted >= 60:
            noted = now
            _note(running, seen, now - begun)
        time.sleep(0.01)
    launcher.turn(now + 1)
    over.set()
    scraper.join()
    _note(running, seen, time.monotonic() - begun)


class _Launcher:
    """Starts agents in time, and kills those whose turn it is."""

    def __init__(self, here: Place, seen: Seen) -> None:
        self._here, self._seen, self._scripts = here, seen, scripts(here)
        self._begun = time.monotonic()
        self._doomed: list[tuple[float, int]] = []  # when, which

    def turn(self, now: float) -> None:
        if self._seen.started < (now - self._begun) * RATE / 60:
            script = self._scripts[self._seen.started % len(self._scripts)]
            agent = self._here.agent(script)
            self._seen.started += 1
            if script == KILLED:
                self._doomed.append((now + 0.9, agent.pid))
        while self._doomed and self._doomed[0][0] < now:
            self._here.kill(self._doomed.pop(0)[1])
        self._here.reap()


def _note(running: Daemon, seen: Seen, seconds: float) -> None:
    memory = running.memory()
    seen.levels.append((seconds / 60, memory.rss - memory.ring, running.descriptors()))


def _scrape(running: Daemon, seen: Seen, over: threading.Event) -> None:
    while not over.is_set():
        begun = time.monotonic()
        try:
            running.metrics()
            seen.scrapes.append(time.monotonic() - begun)
        except OSError:
            seen.failed += 1
        over.wait(max(0.0, begun + 1 - time.monotonic()))


def _compare(here: Place, running: Daemon, seen: Seen) -> None:
    """Tags as the daemon has them, between two looks at /proc: what is in both must be tagged."""
    before = here.marked()
    sessions = running.sessions()
    after = here.marked()
    tagged = {process["pid"] for one in sessions for process in one["processes"]}
    old = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - SETTLED
    stable = {pid for pid, began in before.items() if after.get(pid) == began and began < old}
    seen.compared += len(stable)
    seen.missing += stable - tagged
    seen.foreign += [pid for pid in tagged - set(before) - set(after) if not here.is_ours(pid)]


def _wait_until_over(here: Place, running: Daemon) -> None:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit and (here.marked() or running.sessions()):
        here.reap()
        time.sleep(0.2)


def _told(here: Place) -> Counter[type]:
    """Frames in the journal by type."""
    found: Counter[type] = Counter()
    for entry in read(here.journal):
        if entry.frame is not None:
            found[type(entry.frame)] += 1
    return found
