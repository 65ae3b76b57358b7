"""What a daemon takes while nothing happens."""

from __future__ import annotations

import time

from bench.daemon_place import Place, daemon, turns
from bench.workplace import say

SECONDS = 60
SETTLE = 3  # s
TARGET = 0.5  # % of one CPU


def measure(place: Place, seconds: int = SECONDS) -> None:
    """Without an agent, and with three that sleep."""
    say(f"daemon, idle: % of one CPU over {seconds} s (under {TARGET})")
    with daemon(place, place.rules(True)) as running:
        for agents in (0, 3):
            for _ in range(agents):
                place.agent("sleep 1000")
            time.sleep(SETTLE)
            before = running.metrics()
            used, begun = running.cpu(), time.monotonic()
            time.sleep(seconds)
            share = (running.cpu() - used) / (time.monotonic() - begun)
            after = running.metrics()
            count = ("loop_turn_seconds_count", "")
            made = (after[count] - before[count]) / seconds
            memory = running.memory()
            say(
                f"  {agents} agents   {share * 100:.2f} %   {made:.1f} turns/s   memory "
                f"{memory.rss - memory.ring:.0f} MiB besides the rings' {memory.ring:.0f}"
            )
        say(f"  {turns(running.metrics())}")
    place.quiet()
