"""How long a process lives after the call it is killed for, by the kernel and by its parent."""

from __future__ import annotations

import statistics

from bench.watched import Watched, kept
from bench.workplace import Workplace, say

RUNS = 7
KILLS = 18  # in each run: the breaker allows twenty in ten seconds, and it stays as it ships
LOAD = 20_000  # judged events a second
TARGET = 5.0  # ms


def measure(place: Workplace) -> None:
    """Idle, and while the same session makes LOAD judged events a second; the runs alternate."""
    told: dict[str, list[float]] = {"idle": [], "under load": []}
    waited: dict[str, list[float]] = {"idle": [], "under load": []}
    lost = 0
    for _ in range(RUNS):
        for name in told:
            latencies, seen, gone = _run(place, load=name != "idle")
            told[name] += latencies
            waited[name] += seen
            lost += gone
    say(f"kill by the engine: ms from the call until the process is gone (median under {TARGET})")
    say(f"  {'':36} {'kills':>5} {'median':>7} {'p95':>7} {'worst':>7}")
    for name in told:
        _line(f"{name}, by the kernel's clock", told[name])
        _line(f"{name}, until its parent knew", waited[name])
    victims, killed = 2 * RUNS * KILLS, sum(map(len, told.values()))
    say(f"  of {victims} victims {victims - killed} not killed; {lost} records lost")


def _run(place: Workplace, load: bool) -> tuple[list[float], list[float], int]:
    """Latencies in ms, by kill frames and by the parent; records lost."""
    victims = f"{place.program('victims')} {KILLS} {place.canary} 30"
    pace = f"{place.program('pace')} {LOAD} 60 {place.tree} > /dev/null & sleep 0.5;"
    script = f"{pace} {victims}; kill $!" if load else f"sleep 0.2; {victims}"
    watched = Watched(place, place.rules(True, "kill.yaml"), ["sh", "-c", script])
    seen = [int(line) / 1e6 for line in watched.end().split() if int(line) > 0]
    journal = kept(watched.journal)
    told = [kill.latency / 1e6 for kill in journal.kills if kill.outcome == "killed"]
    return told, seen, journal.lost + journal.holes


def _line(name: str, numbers: list[float]) -> None:
    p95 = statistics.quantiles(numbers, n=20)[18]
    say(
        f"  {name:36} {len(numbers):5} {statistics.median(numbers):7.2f} {p95:7.2f}"
        f" {max(numbers):7.2f}"
    )
