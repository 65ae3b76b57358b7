"""Prometheus: what agentwatch counts, read at the moment of the scrape.

The wiring supplies a function that returns a Snapshot; nothing is counted here but the delay of
events. Labels come from closed sets, never from what an agent chose.
"""

from __future__ import annotations

import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agentwatch.errors import AgentwatchError, PermissionDenied, UsageError

DELAY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class Delays:
    """counts: observations up to each of `bounds` and, last, above them. bounds, total: seconds."""

    counts: tuple[int, ...] = (0,) * (len(DELAY_BOUNDS) + 1)
    total: float = 0.0
    bounds: tuple[float, ...] = DELAY_BOUNDS


class DelayCounter:
    """Counts delays from probe to journal; one writer, any reader."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DELAY_BOUNDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """times: how many events had this delay (a batch is counted by one of them)."""
        self._counts[bisect_left(DELAY_BOUNDS, seconds)] += times
        self._total += seconds * times

    def read(self) -> Delays:
        return Delays(tuple(self._counts), self._total)


@dataclass(frozen=True, slots=True)
class JournalState:
    """Where the journal stands. hash: of its last frame, hex."""

    chain: str = ""
    sequence: int = 0
    hash: str = ""
    bytes: int = 0
    frames: int = 0
    segments: int = 0
    failures: int = 0


def _none() -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every number at one moment; a name maps a label's value to its number.

    decisions: (rule, action, level) -> count. Times in seconds; last_reload_success: since the
    epoch. hook_attached: 1 or 0. What is not known is left out.
    """

    events: Mapping[str, int] = field(default_factory=_none)
    events_lost: Mapping[str, int] = field(default_factory=_none)
    decisions: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    kill_failures: Mapping[str, int] = field(default_factory=_none)
    unresolved: Mapping[str, int] = field(default_factory=_none)
    tagged_processes: Mapping[str, int] = field(default_factory=_none)
    hook_attached: Mapping[str, int] = field(default_factory=_none)
    rules_loaded: Mapping[str, int] = field(default_factory=_none)
    policy_generation: int = 0
    policy_compile_seconds: float = 0.0
    last_reload_success: float = 0.0
    map_entries: Mapping[str, int] = field(default_factory=_none)
    map_capacity: Mapping[str, int] = field(default_factory=_none)
    program_runs: Mapping[str, int] = field(default_factory=_none)
    program_run_seconds: Mapping[str, float] = field(default_factory=dict)
    delays: Delays = field(default_factory=Delays)
    journal: JournalState = field(default_factory=JournalState)


COUNTERS = (
    ("events", "kind", "Records of tagged processes written by the probes."),
    ("events_lost", "stage", "Records that never reached the journal."),
    ("kill_failures", "reason", "Kills that did not stop what they were meant to stop."),
    ("unresolved", "kind", "Records with a name or an address that could not be read whole."),
    ("program_runs", "program", "Runs of a BPF program (only while kernel.bpf_stats_enabled)."),
    (
        "program_run_seconds",
        "program",
        "Time spent in a BPF program (only while kernel.bpf_stats_enabled).",
    ),
)
GAUGES = (
    ("tagged_processes", "agent", "Processes that carry an agent's tag."),
    ("hook_attached", "hook", "1 when the probe is attached, else 0."),
    ("rules_loaded", "level", "Rules by what they are worth on this host."),
    ("map_entries", "map", "Entries in a BPF map."),
    ("map_capacity", "map", "Entries that a BPF map has room for."),
)
PREFIX = "agentwatch_"


class AgentwatchCollector(Collector):
    """Reads one Snapshot per scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """The families, with nothing in them: registering reads no counters."""
        return _families(Snapshot())

    def collect(self) -> Iterable[Metric]:
        return _families(self._snapshot())


def _families(now: Snapshot) -> Iterable[Metric]:
    for name, label, text in COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, text, labels=[label])
        for value, number in getattr(now, name).items():
            counter.add_metric([value], number)
        yield counter
    for name, label, text in GAUGES:
        gauge = GaugeMetricFamily(PREFIX + name, text, labels=[label])
        for value, number in getattr(now, name).items():
            gauge.add_metric([value], number)
        yield gauge
    decisions = CounterMetricFamily(
        PREFIX + "decisions", "Verdicts.", labels=["rule", "action", "level"]
    )
    for labels, count in now.decisions.items():
        decisions.add_metric(list(labels), count)
    yield decisions
    yield from _policy(now)
    yield _delay(now.delays)
    yield from _journal(now.journal)


def _policy(now: Snapshot) -> Iterable[Metric]:
    for name, text, number in (
        ("policy_generation", "Number of the policy in force.", now.policy_generation),
        ("policy_compile_seconds", "Time to compile it.", now.policy_compile_seconds),
        (
            "last_reload_success_timestamp_seconds",
            "When a policy was loaded last, since the epoch.",
            now.last_reload_success,
        ),
    ):
        yield GaugeMetricFamily(PREFIX + name, text, value=number)


def _delay(delays: Delays) -> Metric:
    buckets: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip((*map(str, delays.bounds), "+Inf"), delays.counts, strict=True):
        running += count
        buckets.append((bound, running))
    text = "Time from the probe to the journal."
    return HistogramMetricFamily(
        PREFIX + "event_delay_seconds", text, buckets=buckets, sum_value=delays.total
    )


def _journal(state: JournalState) -> Iterable[Metric]:
    for name, text, number in (
        ("journal_bytes", "Bytes written to the journal.", state.bytes),
        ("journal_frames", "Frames chained.", state.frames),
        ("journal_failures", "Writes and syncs of the journal that failed.", state.failures),
    ):
        yield CounterMetricFamily(PREFIX + name, text, value=number)
    yield GaugeMetricFamily(
        PREFIX + "journal_segments", "Segments begun by this writer.", value=state.segments
    )
    head = InfoMetricFamily(
        PREFIX + "journal_head", "Where the chain stands: keep it, and a cut journal is found out."
    )
    if state.chain:
        values = {"chain": state.chain, "sequence": str(state.sequence), "hash": state.hash}
        head.add_metric([], values)
    yield head


def registry(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """A registry with agentwatch's metrics alone."""
    found = CollectorRegistry(auto_describe=False)
    found.register(AgentwatchCollector(snapshot))
    return found


class Server:
    """Serves /metrics in a thread until close(). host, port: where it really listens."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self.host, self.port = server.server_address[:2]
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HTTPServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of the host's own name, which may wait for DNS."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is no news."""


class _HTTPServer6(_HTTPServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Scrapes are not logged."""


def serve(host: str, port: int, snapshot: Callable[[], Snapshot]) -> Server:
    """Serve metrics on host:port (0: any free one). Raises AgentwatchError with a remedy."""
    try:
        kind = _HTTPServer6 if ":" in host else _HTTPServer
        server = kind((host.strip("[]"), port), _Handler)
    except (OSError, OverflowError) as error:
        raise _refused(host, port, error) from None
    server.set_app(make_wsgi_app(registry(snapshot)))
    return Server(server)


def _refused(host: str, port: int, error: Exception) -> AgentwatchError:
    where = f"{host}:{port}"
    if isinstance(error, PermissionError):
        return PermissionDenied(f"metrics may not listen on {where}", "take a port above 1023")
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return AgentwatchError(
            f"metrics cannot listen on {where}: {error.strerror}",
            "stop what listens there, or take another port with --metrics HOST:PORT",
        )
    return UsageError(f"metrics cannot listen on {where}: {error}", "give --metrics 127.0.0.1:9477")
