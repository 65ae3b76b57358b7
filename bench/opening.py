"""What open+close costs: nobody looking, watched as an agent, and for everybody else meanwhile."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from agentwatch.kernel.libbpf import Object
from bench.watched import Watched, kept
from bench.workplace import Workplace, say

ROUNDS = 11
PASSES = 60  # over the tree, in one measurement
TARGET = 1.7


UNTRACED, AGAIN = "untraced", "untraced again (A/A)"
TAGGED, JUDGED = "tagged, no rule on opens", "tagged, shipped pack"
OPENSNOOP = "untagged, what bcc's opensnoop does"
BARE, BESIDE = "untagged, a bare probe on sys_exit", "untagged, agentwatch attached"


@dataclass(slots=True)
class Found:
    """Of one variant. times: ns per open+close, by round; records, lost: of all rounds."""

    times: list[float] = field(default_factory=list)
    records: int = 0
    lost: int = 0

    def against(self, other: Found) -> str:
        """The median of each round's own ratio, and the quartiles."""
        ratios = [one / base for one, base in zip(self.times, other.times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return f"{middle:6.2f}   {low:.2f} to {high:.2f}"


ALL = (UNTRACED, AGAIN, TAGGED, JUDGED, BARE, BESIDE)


def measure(place: Workplace, names: tuple[str, ...] = ALL, rounds: int = ROUNDS) -> None:
    """Alternating rounds; the order turns."""
    found = {name: Found() for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            _once(place, name, found[name])
    _report(found, rounds)


def _once(place: Workplace, name: str, found: Found) -> None:
    if name in (TAGGED, JUDGED):
        watched = Watched(place, place.rules(name == JUDGED), _command(place))
        found.times.append(float(watched.end()))
        journal = kept(watched.journal)
        shutil.rmtree(watched.journal)
        found.records += journal.records
        found.lost += journal.lost
        return
    others = {BARE: _bare_probe, BESIDE: _attached, OPENSNOOP: _opensnoop}
    beside = others.get(name, nullcontext)
    with beside(place):
        made = subprocess.run(_command(place), check=True, stdout=subprocess.PIPE, text=True)
    found.times.append(float(made.stdout))


def _command(place: Workplace) -> list[str]:
    return [place.program("opens"), str(PASSES), str(place.tree)]


def _report(found: dict[str, Found], rounds: int) -> None:
    base = found[UNTRACED]
    say(f"open+close over 4,096 paths of eight components, {rounds} rounds, medians")
    say(f"  {'':36} {'ns':>6}  times   quartiles")
    for name, one in found.items():
        loss = f"   {one.lost:,} of {one.records + one.lost:,} lost" if one.records else ""
        target = f"   at most {TARGET}" if name == TAGGED else ""
        median = statistics.median(one.times)
        say(f"  {name:36} {median:6.0f} {one.against(base)}{target}{loss}")
    if JUDGED not in found:
        return
    say(f"  {'shipped pack / no rule on opens':36} {'':6} {found[JUDGED].against(found[TAGGED])}")
    say(f"  {'agentwatch attached / bare probe':36} {'':6} {found[BESIDE].against(found[BARE])}")


@contextmanager
def _bare_probe(place: Workplace) -> Iterator[None]:
    probe = Object(place.top / "bare.bpf.o")
    try:
        probe.load()
        probe.attach("bare")
        yield
    finally:
        probe.close()


@contextmanager
def _attached(place: Workplace) -> Iterator[None]:
    watched = Watched(place, place.rules(pack=False), ["sleep", "60"])
    try:
        watched.wait_for_metrics()
        yield
    finally:
        watched.stop()


@contextmanager
def _opensnoop(place: Workplace) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.opensnoop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as snoop:
        try:
            if snoop.stdout is None or not snoop.stdout.readline():
                raise RuntimeError("what opensnoop does cannot be done here: is tracefs mounted?")
            yield
        finally:
            snoop.kill()
