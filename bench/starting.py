"""How long until CMD runs, and how much memory it takes to look on."""

from __future__ import annotations

import statistics
import subprocess
import time

from bench.watched import AGENTWATCH, Watched
from bench.workplace import Workplace, say

ROUNDS = 15


def measure(place: Workplace) -> None:
    """From the start of `agentwatch run` to CMD's first instruction; memory once CMD runs."""
    stamp = place.program("stamp")
    quiet = [f"--journal={place.top / 'journal-start'}"]
    variants = {
        "CMD alone": [stamp],
        "agentwatch --help": [str(AGENTWATCH), "--help"],
        "run, one rule": [str(AGENTWATCH), "run", *place.rules(False), *quiet, "--", stamp],
        "run, shipped pack": [str(AGENTWATCH), "run", *place.rules(True), *quiet, "--", stamp],
    }
    began: dict[str, list[float]] = {name: [] for name in variants}
    whole: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, command in variants.items():
            start = time.monotonic_ns()
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            whole[name].append((time.monotonic_ns() - start) / 1e6)
            if made.stdout.strip().isdigit():
                began[name].append((int(made.stdout) - start) / 1e6)
    say(f"start: ms from the start to CMD's first instruction, medians of {ROUNDS}")
    for name in variants:
        until = f"{statistics.median(began[name]):8.1f}" if began[name] else f"{'':8}"
        say(f"  {name:36} {until}   whole run {statistics.median(whole[name]):7.1f}")
    _memory(place)


def _memory(place: Workplace) -> None:
    watched = Watched(place, place.rules(True), ["sleep", "30"])
    try:
        watched.wait_for_metrics()
        time.sleep(1)
        found = watched.memory()
    finally:
        watched.stop()
    say(
        f"memory, idle, shipped pack: Rss {found.rss:.0f} MiB, of it the rings' mappings "
        f"{found.ring:.0f}; Pss {found.pss:.0f} MiB"
    )
