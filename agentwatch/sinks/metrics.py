"""Prometheus: what agentwatch counts, read at the moment of the scrape.

The wiring supplies a function that returns a Snapshot; nothing is counted here but how long things
take. What each metric is, `families` says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentwatch.sinks.families import FAMILIES, PREFIX, Family
from agentwatch.sinks.scrapes import Server
from agentwatch.sinks.scrapes import serve as serve_page

if TYPE_CHECKING:
    from prometheus_client.core import Metric

DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Durations:
    """counts: observations up to each of `bounds` and, last, above them. bounds, total: seconds."""

    counts: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS) + 1)
    total: float = 0.0
    bounds: tuple[float, ...] = DURATION_BOUNDS


class DurationCounter:
    """Counts how long things took; one writer, any reader."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """times: how many took so long (a batch is counted by one of them)."""
        self._counts[bisect_left(DURATION_BOUNDS, seconds)] += times
        self._total += seconds * times

    def read(self) -> Durations:
        return Durations(tuple(self._counts), self._total)


Numbers = Mapping[str, int]


def _none() -> Mapping[Any, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every number at one moment, by the name of its family.

    With one label: its value -> number; with more: their values, in the family's order -> number.
    An info is its labels' values, () when there is nothing to say. None: not known here.
    """

    sessions: Mapping[tuple[str, str], int] = field(default_factory=_none)
    sessions_begun: Numbers = field(default_factory=_none)
    tagged_processes: Numbers = field(default_factory=_none)
    events: Numbers = field(default_factory=_none)
    events_lost: Numbers = field(default_factory=_none)
    unresolved: Numbers = field(default_factory=_none)
    decisions: Mapping[tuple[str, str, str], int] = field(default_factory=_none)
    kill_failures: Numbers = field(default_factory=_none)
    event_delay_seconds: Durations = field(default_factory=Durations)
    rules_loaded: Numbers = field(default_factory=_none)
    rules_paused: int = 0
    enforcing: int = 0
    policy_generation: int = 0
    policy_compile_seconds: float = 0.0
    policy_in_kernel: int = 0
    policy_failures: int = 0
    policy_no_room: Numbers = field(default_factory=_none)
    policy_unsettled: int = 0
    policy_disagreements: int = 0
    policy_bytes: int = 0
    policy_states: Numbers = field(default_factory=_none)
    reloads: Numbers = field(default_factory=_none)
    last_reload_successful: int | None = None
    last_reload_success_timestamp_seconds: float = 0.0
    hook_attached: Numbers = field(default_factory=_none)
    map_entries: Numbers = field(default_factory=_none)
    map_capacity: Numbers = field(default_factory=_none)
    program_runs: Numbers = field(default_factory=_none)
    program_run_seconds: Mapping[str, float] = field(default_factory=_none)
    journal_bytes: int = 0
    journal_frames: int = 0
    journal_segments: int = 0
    journal_failures: int = 0
    journal_waiting_bytes: int = 0
    journal_lost: int = 0
    journal_head: tuple[str, ...] = ()
    control_connections: int | None = None
    control_subscribers: int | None = None
    control_dropped_frames: int | None = None
    findings_lost: Numbers = field(default_factory=_none)
    loop_turn_seconds: Durations | None = None
    process_cpu_seconds: float = 0.0
    process_resident_memory_bytes: int = 0
    process_open_fds: int = 0
    process_start_time_seconds: float = 0.0
    build: tuple[str, ...] = ()


def page(now: Snapshot) -> bytes:
    """What Prometheus reads, in its text format."""
    # Not before the first scrape: it takes longer to import than the probes to attach.
    from prometheus_client import generate_latest
    from prometheus_client.registry import Collector

    class Page(Collector):
        def collect(self) -> Iterable[Metric]:
            for one in FAMILIES:
                value = getattr(now, one.name)
                if value is not None:
                    yield _metric(one, value)

    made: bytes = generate_latest(Page())
    return made


def _metric(one: Family, value: Any) -> Metric:
    from prometheus_client import core

    name = PREFIX + one.name
    if one.type == "histogram":
        return core.HistogramMetricFamily(
            name, one.text, buckets=_buckets(value), sum_value=value.total
        )
    if one.type == "info":
        info = core.InfoMetricFamily(name, one.text)
        if value:
            info.add_metric([], dict(zip(one.labels, value, strict=True)))
        return info
    kind = core.CounterMetricFamily if one.type == "counter" else core.GaugeMetricFamily
    made = kind(name, one.text, labels=one.labels)
    for labels, number in value.items() if one.labels else [((), value)]:
        made.add_metric((labels,) if isinstance(labels, str) else labels, number)
    return made


def _buckets(found: Durations) -> list[tuple[str, float]]:
    """Each counts those of the ones before, too."""
    buckets: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip((*map(str, found.bounds), "+Inf"), found.counts, strict=True):
        running += count
        buckets.append((bound, running))
    return buckets


def serve(host: str, port: int, snapshot: Callable[[], Snapshot]) -> Server:
    """Serve metrics on host:port (0: any free one). Raises AgentwatchError with a remedy."""
    return serve_page(host, port, lambda: page(snapshot()))
