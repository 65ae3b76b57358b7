"""Losses are counted to the record; the reader is woken for what cannot wait and nothing else."""

from __future__ import annotations

import os
import select
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agentwatch import abi
from agentwatch.events import Event, Exit, Fork, Open
from agentwatch.kernel.probes import Probes, Sizes
from tests.kernel.recording import Gate, Record, Recorder, witness

pytestmark = pytest.mark.root

RING = 4096  # bytes: the smallest there is
CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def tiny() -> Iterator[Recorder]:
    """Probes whose rings hold a few dozen records."""
    probes = Probes(sizes=Sizes(activity=RING, lifecycle=RING))
    yield Recorder(probes)
    probes.close()


def opens(times: int) -> None:
    for _ in range(times):
        os.close(os.open("/dev/null", os.O_RDONLY))


def on_every_cpu(times: int) -> None:
    """A process that forks and opens files, on each CPU in turn."""
    for cpu in CPUS:
        os.sched_setaffinity(0, {cpu})
        opens(times)
        for _ in range(times // 8):
            if os.fork() == 0:
                os._exit(0)
            os.wait()


def missing(records: list[Record]) -> Counter[str]:
    """By ring: sequence numbers up to the last one seen on each CPU that no record has."""
    seen: dict[tuple[str, int], list[int]] = defaultdict(list)
    for record in records:
        seen[record.ring, record.event.cpu].append(record.event.sequence)
    gaps: Counter[str] = Counter()
    for (ring, _), numbers in seen.items():
        assert numbers == sorted(set(numbers)), "a number twice, or out of order"
        gaps[ring] += numbers[-1] - len(numbers)
    return gaps


def test_lost_records_are_the_gaps_in_the_sequence(tiny: Recorder, gate: Gate) -> None:
    """In rings that nobody reads for a while: what the counters call lost is what is missing."""

    def act() -> None:
        on_every_cpu(400)
        os.write(1, b"0\n")
        gate.wait()
        on_every_cpu(8)

    with witness(act) as child:
        tiny.tag(child)
        child.go()
        child.hear(1)
        records = tiny.quiet()
        gate.open()
        child.finish()
        records += tiny.quiet()
    counters = tiny.probes.counters()
    gaps = missing(records)
    assert gaps["activity"] == counters.lost[abi.OPEN] > 0
    assert gaps["lifecycle"] == counters.lost[abi.FORK] + counters.lost[abi.EXIT] > 0
    got = Counter(type(record.event) for record in records)
    assert counters.emitted[abi.OPEN] == got[Open]
    assert counters.emitted[abi.FORK] + counters.emitted[abi.EXIT] == got[Fork] + got[Exit]
    assert counters.emitted[abi.OPEN] + counters.lost[abi.OPEN] == 408 * len(CPUS)


def test_a_reader_that_keeps_up_loses_nothing(recorder: Recorder) -> None:
    """Four processes at once, 2,000 opens each: every number there, every record whole."""
    times, processes = 2000, 4

    def act() -> None:
        for _ in range(processes):
            if os.fork() == 0:
                opens(times)
                os._exit(0)
        for _ in range(processes):
            os.wait()

    before = recorder.probes.counters()
    seen = recorder.record(act)
    after = recorder.probes.counters()
    assert len(seen.opens) == times * processes
    assert Counter(event.process for event in seen.opens) == {
        event.child: times for event in seen.forks
    }
    assert after.lost == before.lost
    assert after.emitted[abi.OPEN] - before.emitted[abi.OPEN] == times * processes
    assert after.unrecorded == before.unrecorded
    assert in_sequence([record.event for record in seen.records if record.ring == "activity"])


def in_sequence(events: list[Event]) -> bool:
    """Whether each CPU's numbers follow one another without a hole."""
    by_cpu: dict[int, list[int]] = defaultdict(list)
    for event in events:
        by_cpu[event.cpu].append(event.sequence)
    return all(
        sorted(numbers) == list(range(min(numbers), max(numbers) + 1))
        for numbers in by_cpu.values()
    )


@pytest.fixture
def poller(probes: Probes, recorder: Recorder) -> Iterator[select.epoll]:
    """As the loop has it: ready when a ring has something that cannot wait."""
    with select.epoll() as made:
        for ring in (probes.lifecycle, probes.activity):
            made.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        made.poll(0)
        yield made
    probes.wake_for(())


def test_nobody_is_woken_for_a_record_that_can_wait(
    recorder: Recorder, poller: select.epoll
) -> None:
    """Opens, forks and exits lie in the rings until somebody looks."""
    recorder.probes.wake_for({abi.CONNECT})
    with witness(lambda: on_every_cpu(8)) as child:
        recorder.tag(child)
        child.go()
        assert poller.poll(0.1) == []
        child.finish()
        assert len(recorder.recording(child).opens) == 8 * len(CPUS)


@pytest.mark.parametrize("kind", [abi.OPEN, abi.FORK])
def test_the_reader_is_woken_at_once_for_a_kind_it_asked_for(
    recorder: Recorder, poller: select.epoll, kind: int
) -> None:
    """Within a few milliseconds of the call: the best three of ten, for the machine may be busy."""
    recorder.probes.wake_for({kind})
    ring = recorder.probes.activity if kind == abi.OPEN else recorder.probes.lifecycle
    delays = []
    for _ in range(10):
        with witness(lambda: on_every_cpu(8)) as child:
            recorder.tag(child)
            child.go()
            ready = poller.poll(5)
            woken = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            assert [fd for fd, _ in ready] == [ring.fd]
            child.finish()
            seen = recorder.recording(child)
            first = seen.opens[0] if kind == abi.OPEN else seen.forks[0]
            delays.append((woken - first.time) / 1e6)
            poller.poll(0)
    assert sorted(delays)[2] < 5, delays


def test_a_burst_wakes_the_reader_at_most_once_in_2_ms(
    recorder: Recorder, poller: select.epoll
) -> None:
    """However many records of that kind there are."""
    recorder.probes.wake_for({abi.OPEN})
    woken = 0
    with witness(lambda: opens(20000)) as child:
        recorder.tag(child)
        child.go()
        while not any(isinstance(record.event, Exit) for record in recorder.collect()):
            woken += len(poller.poll(0.05))
        child.finish()
        seen = recorder.recording(child)
    span = (seen.opens[-1].time - seen.opens[0].time) / 1e9
    assert len(seen.opens) == 20000
    assert 1 <= woken <= span / 0.002 + 2


def test_failed_calls_give_way_to_what_happened(tiny: Recorder) -> None:
    """A storm of calls that fail leaves room for those that do not: they are all recorded."""

    def act() -> None:
        for _ in range(500):
            with suppress(FileNotFoundError):
                os.open("/nowhere", os.O_RDONLY)
            with suppress(FileNotFoundError):
                os.execv("/nowhere", ["nowhere"])
        opens(8)
        if os.fork() == 0:
            os._exit(0)
        os.wait()

    with witness(act) as child:
        tiny.tag(child)
        child.go()
        child.finish()
        events = [record.event for record in tiny.quiet()]
    counters = tiny.probes.counters()
    assert counters.lost[abi.OPEN] > 0
    assert counters.lost[abi.EXEC] > 0
    assert sum(isinstance(e, Open) and e.path == "/dev/null" for e in events) == 8
    assert sum(isinstance(e, Fork) for e in events) == 1
    assert sum(isinstance(e, Exit) for e in events) == 2
