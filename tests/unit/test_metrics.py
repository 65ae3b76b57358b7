"""Metrics over a real port, as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.sinks.metrics import (
    DELAY_BOUNDS,
    DelayCounter,
    Delays,
    JournalState,
    Server,
    Snapshot,
    serve,
)

FULL = Snapshot(
    events={"exec": 3, "open": 40},
    events_lost={"ring": 2},
    decisions={("secrets.keys", "deny", "kills-after"): 1},
    kill_failures={"too late": 1},
    unresolved={"open": 0},
    tagged_processes={"claude-code": 2},
    hook_attached={"sched_process_exec": 1, "openat": 0},
    rules_loaded={"kills": 4, "detects": 1},
    policy_generation=3,
    policy_compile_seconds=0.25,
    last_reload_success=1_700_000_000.5,
    map_entries={"tags": 2},
    map_capacity={"tags": 65536},
    program_runs={"exec": 3},
    program_run_seconds={"exec": 0.001},
    delays=Delays((1,) * (len(DELAY_BOUNDS) + 1), 9.5),
    journal=JournalState("run-a", 17, "ab" * 32, 4096, 17, 1, 0),
)


@pytest.fixture
def server() -> Iterator[Server]:
    running = serve("127.0.0.1", 0, lambda: FULL)
    yield running
    running.close()


def scrape(server: Server) -> str:
    address = f"http://{server.host}:{server.port}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_every_number_of_a_snapshot_is_served(server: Server) -> None:
    """Names, labels and values as the design has them."""
    text = scrape(server)
    for line in (
        'agentwatch_events_total{kind="exec"} 3.0',
        'agentwatch_events_lost_total{stage="ring"} 2.0',
        'agentwatch_decisions_total{action="deny",level="kills-after",rule="secrets.keys"} 1.0',
        'agentwatch_kill_failures_total{reason="too late"} 1.0',
        'agentwatch_unresolved_total{kind="open"} 0.0',
        'agentwatch_tagged_processes{agent="claude-code"} 2.0',
        'agentwatch_hook_attached{hook="openat"} 0.0',
        'agentwatch_rules_loaded{level="kills"} 4.0',
        "agentwatch_policy_generation 3.0",
        "agentwatch_policy_compile_seconds 0.25",
        "agentwatch_last_reload_success_timestamp_seconds 1.7000000005e+09",
        'agentwatch_map_entries{map="tags"} 2.0',
        'agentwatch_map_capacity{map="tags"} 65536.0',
        'agentwatch_program_runs_total{program="exec"} 3.0',
        'agentwatch_program_run_seconds_total{program="exec"} 0.001',
        f'agentwatch_event_delay_seconds_bucket{{le="+Inf"}} {len(DELAY_BOUNDS) + 1}.0',
        "agentwatch_event_delay_seconds_sum 9.5",
        "agentwatch_journal_bytes_total 4096.0",
        "agentwatch_journal_segments 1.0",
    ):
        assert line in text.splitlines()
    head = re.search(r"agentwatch_journal_head_info\{(.*)\} 1.0", text)
    assert head is not None
    assert sorted(head[1].split(",")) == [
        'chain="run-a"',
        f'hash="{"ab" * 32}"',
        'sequence="17"',
    ]


def test_every_metric_is_ours_has_help_and_parses(server: Server) -> None:
    """The prefix, a text for people, and the format of Prometheus."""
    families = list(text_string_to_metric_families(scrape(server)))
    assert len(families) >= 20
    for family in families:
        assert family.name.startswith("agentwatch_")
        assert family.documentation.endswith(".") or ":" in family.documentation


def test_an_empty_snapshot_is_served_too() -> None:
    """Before the first event there is nothing to trip over."""
    server = serve("127.0.0.1", 0, Snapshot)
    assert "agentwatch_policy_generation 0.0" in scrape(server)
    server.close()


def test_each_scrape_reads_anew() -> None:
    """Numbers are those of the moment of the scrape."""
    numbers = iter(range(1, 10))
    server = serve("127.0.0.1", 0, lambda: replace(FULL, policy_generation=next(numbers)))
    assert "agentwatch_policy_generation 1.0" in scrape(server)
    assert "agentwatch_policy_generation 2.0" in scrape(server)
    server.close()


def test_a_port_in_use_is_a_clear_error(server: Server) -> None:
    """Exit 1 with a remedy; the one that listens goes on."""
    with pytest.raises(AgentwatchError, match="in use") as caught:
        serve("127.0.0.1", server.port, Snapshot)
    assert caught.value.exit_code == 1
    assert "--metrics" in caught.value.remedy
    assert scrape(server)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 70000)])
def test_an_address_that_makes_no_sense_is_a_usage_error(host: str, port: int) -> None:
    """Exit 2 for a name that does not resolve and a port that cannot be."""
    with pytest.raises(UsageError) as caught:
        serve(host, port, Snapshot)
    assert caught.value.remedy


def test_the_port_is_free_after_close() -> None:
    """close() ends the thread and gives the port back."""
    server = serve("127.0.0.1", 0, Snapshot)
    port = server.port
    server.close()
    again = serve("127.0.0.1", port, Snapshot)
    again.close()


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: Server) -> None:
    """Each connection has its own thread."""
    with socket.create_connection((server.host, server.port), timeout=5):
        assert scrape(server)


def test_delays_fall_into_their_bounds() -> None:
    """A delay counts in the first bound that is not below it; a batch counts as many times."""
    delays = DelayCounter()
    for seconds, times in ((0.0005, 1), (0.001, 1), (0.3, 10), (60.0, 1)):
        delays.observe(seconds, times)
    read = delays.read()
    assert read.counts[0] == 2
    assert read.counts[DELAY_BOUNDS.index(0.5)] == 10
    assert read.counts[-1] == 1
    assert read.total == pytest.approx(63.0015)


def test_what_is_counted_only_at_times_says_when(server: Server) -> None:
    """A program without runs is not idle: the kernel counts only when it is told to."""
    for name in ("program_runs_total", "program_run_seconds_total"):
        helped = re.search(f"# HELP agentwatch_{name} (.*)", scrape(server))
        assert helped is not None
        assert helped[1].endswith("(only while kernel.bpf_stats_enabled).")
