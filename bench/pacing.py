"""A steady stream of events for a while: is all of it journaled, how late, at what price?"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bench.watched import Memory, Watched, kept
from bench.workplace import Workplace, say


@dataclass(slots=True)
class Seen:
    """What was noted of a run while it went on. cpu: share of one CPU."""

    cpu: float = 0.0
    memory: Memory = field(default_factory=lambda: Memory(0, 0, 0))
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)

    def delay(self, share: float) -> str:
        """The bound under which this share of the events went from probe to journal."""
        buckets = [
            (float(bound), count)
            for (name, bound), count in self.metrics.items()
            if name == "event_delay_seconds_bucket"
        ]
        total = max((count for _, count in buckets), default=0)
        within = [bound for bound, count in sorted(buckets) if count >= share * total]
        return f"{within[0] * 1e3:g} ms" if within else "unknown"


def follow(watched: Watched) -> Seen:
    """Looks once a second until it ends."""
    seen = Seen()
    watched.wait_for_metrics()
    begun, used = time.monotonic(), watched.cpu()
    while watched.running():
        time.sleep(1)
        try:
            seen.metrics = watched.metrics()
            seen.memory = watched.memory()
            seen.cpu = (watched.cpu() - used) / (time.monotonic() - begun)
        except (OSError, ValueError, IndexError):
            break  # it is ending
    return seen


def measure(place: Workplace, rate: int, seconds: int, pack: bool) -> None:
    """RATE opens a second for so long, with the shipped pack or with no rule on opens."""
    command = [place.program("pace"), str(rate), str(seconds), str(place.tree)]
    watched = Watched(place, place.rules(pack), command)
    seen = follow(watched)
    made, took = watched.end().split()
    journal = kept(watched.journal)
    rules = "judged by the shipped pack" if pack else "no rule on opens"
    size = sum(file.stat().st_size for file in watched.journal.rglob("*.journal"))
    say(f"{rate:,} opens a second for {seconds} s, {rules}")
    say(f"  made       {int(made):,} in {float(took):.1f} s: {int(made) / float(took):,.0f}/s")
    say(f"  journaled  {journal.records:,} records, {size / 1e6:.0f} MB")
    say(f"  loss       {journal.lost} told, {journal.holes} holes, {journal.problems} problems")
    say(f"  agentwatch {seen.cpu * 100:.0f} % of one CPU")
    say(f"  delay      half within {seen.delay(0.5)}, 99 % within {seen.delay(0.99)}")
    say(
        f"  memory     {seen.memory.rss - seen.memory.ring:.0f} MiB besides the rings' mappings "
        f"({seen.memory.ring:.0f} MiB); Pss {seen.memory.pss:.0f} MiB"
    )
