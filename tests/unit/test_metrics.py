"""Metrics over a real port, as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.measure import Tally
from agentwatch.sinks import families, frames, scrapes
from agentwatch.sinks.families import FAMILIES
from agentwatch.sinks.metrics import DURATION_BOUNDS, DurationCounter, Durations, Snapshot, serve
from agentwatch.sinks.scrapes import Server

TIMES = Durations((1,) * (len(DURATION_BOUNDS) + 1), 9.5)

FULL = Snapshot(
    sessions={("claude-code", "running"): 2, ("claude-code", "frozen"): 0},
    sessions_begun={"claude-code": 7},
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
    rules_paused=1,
    enforcing=1,
    reloads={"ok": 2, "refused": 1},
    last_reload_successful=1,
    last_reload_success_timestamp_seconds=1_700_000_000.5,
    map_entries={"tags": 2},
    map_capacity={"tags": 65536},
    program_runs={"exec": 3},
    program_run_seconds={"exec": 0.001},
    event_delay_seconds=TIMES,
    loop_turn_seconds=TIMES,
    journal_bytes=4096,
    journal_frames=17,
    journal_segments=1,
    journal_waiting_bytes=12,
    journal_head=("run-a", "17", "ab" * 32),
    control_connections=5,
    control_subscribers=3,
    control_dropped_frames=9,
    process_cpu_seconds=1.5,
    process_resident_memory_bytes=1 << 20,
    process_open_fds=40,
    process_start_time_seconds=1_700_000_000.0,
    build=("0.1.0",),
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
        'agentwatch_sessions{agent="claude-code",state="running"} 2.0',
        'agentwatch_sessions_begun_total{agent="claude-code"} 7.0',
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
        f'agentwatch_event_delay_seconds_bucket{{le="+Inf"}} {len(DURATION_BOUNDS) + 1}.0',
        "agentwatch_event_delay_seconds_sum 9.5",
        "agentwatch_rules_paused 1.0",
        "agentwatch_enforcing 1.0",
        'agentwatch_reloads_total{outcome="refused"} 1.0',
        "agentwatch_last_reload_successful 1.0",
        'agentwatch_loop_turn_seconds_bucket{le="0.05"} 6.0',
        "agentwatch_journal_bytes_total 4096.0",
        "agentwatch_journal_waiting_bytes 12.0",
        "agentwatch_journal_lost_total 0.0",
        "agentwatch_control_connections 5.0",
        "agentwatch_control_subscribers 3.0",
        "agentwatch_control_dropped_frames_total 9.0",
        "agentwatch_process_cpu_seconds_total 1.5",
        "agentwatch_process_resident_memory_bytes 1.048576e+06",
        "agentwatch_process_open_fds 40.0",
        "agentwatch_process_start_time_seconds 1.7e+09",
        'agentwatch_build_info{version="0.1.0"} 1.0',
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
    found = list(text_string_to_metric_families(scrape(server)))
    assert len(found) == len(FAMILIES)
    for family in found:
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
    """Neither one that asks for nothing nor one that asks for half of it."""
    with connected(server) as silent, connected(server) as slow:
        slow.sendall(b"GET /metrics HT")
        assert scrape(server)
        slow.sendall(b"TP/1.1\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 200"
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)


def connected(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=5)


def asked(server: Server, request: bytes) -> bytes:
    """All that is answered."""
    with connected(server) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.0\n\n", 200),
        (b"GET /secrets HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"x" * (scrapes.REQUEST_MAX + 1), 431),
    ],
)
def test_a_request_that_makes_no_sense_is_told_so(
    server: Server, request_: bytes, status: int
) -> None:
    """By the status that HTTP has for it, with a line for people; and the next scrape is served."""
    answer = asked(server, request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(answer.split(b"\r\n\r\n", 1)[1].splitlines()) >= 1
    assert scrape(server)


def test_head_is_answered_without_a_body(server: Server) -> None:
    """The length that a page would have, and no page."""
    head, _, body = asked(server, b"HEAD /metrics HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert (b"Content-Length: 0" in head, body) == (False, b"")


def test_fifty_who_ask_at_once_share_a_few_pages() -> None:
    """However many ask, the numbers are not read as often; and everybody has a whole page."""
    made = []

    def counted() -> Snapshot:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return FULL

    server = serve("127.0.0.1", 0, counted)
    with ThreadPoolExecutor(50) as pool:
        pages = list(pool.map(lambda _: scrape(server), range(50)))
    server.close()
    assert len(set(pages)) == 1
    assert pages[0].endswith("\n")
    assert len(made) <= 10
    assert len(set(made)) == 1


def test_who_does_not_read_its_page_keeps_nobody_waiting() -> None:
    """A page larger than a socket holds waits for one client, and others are served meanwhile."""
    server = scrapes.serve("127.0.0.1", 0, lambda: b"x" * (16 << 20))
    with connected(server) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        assert len(scrape(server)) == 16 << 20
    server.close()


def test_of_too_many_clients_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds connections open neither keeps Prometheus out nor has any number of them."""
    monkeypatch.setattr(scrapes, "CLIENTS", 4)
    server = serve("127.0.0.1", 0, lambda: FULL)
    held = [connected(server) for _ in range(20)]
    assert scrape(server)
    assert held[0].recv(1) == b""
    for one in held:
        one.close()
    server.close()


def hung_up(client: socket.socket) -> bool:
    """Whether the server has closed it."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_who_takes_too_long_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from the first moment: a byte now and then gains nothing."""
    monkeypatch.setattr(scrapes, "PATIENCE", 0.3)
    server = serve("127.0.0.1", 0, lambda: FULL)
    with connected(server) as client:
        began = time.monotonic()
        while not hung_up(client):
            assert time.monotonic() - began < 5, "it is still served"
            time.sleep(0.05)
            with suppress(ConnectionError):
                client.send(b"G")
    server.close()


def test_numbers_that_cannot_be_read_are_an_error_of_that_scrape_alone() -> None:
    """Status 500 with the reason; the next one is served."""
    numbers = iter([FULL])

    def failing() -> Snapshot:
        return next(numbers)

    server = serve("127.0.0.1", 0, lambda: failing())
    assert scrape(server)
    with pytest.raises(urllib.error.HTTPError) as caught:
        scrape(server)
    assert (caught.value.code, b"StopIteration" in caught.value.read()) == (500, True)
    numbers = iter([FULL])
    assert scrape(server)
    server.close()


def test_the_documentation_has_the_table_of_families(repository: Path) -> None:
    """docs/metrics.md is made from what is served."""
    assert families.reference() in (repository / "docs" / "metrics.md").read_text()


def test_every_family_has_its_number_and_every_number_its_family() -> None:
    """The table and the snapshot name the same, once each."""
    assert sorted(one.name for one in FAMILIES) == sorted(one.name for one in fields(Snapshot))


def test_no_label_is_one_that_an_agent_chooses() -> None:
    """Never a pid, a path, a command line, a user or an address."""
    closed = {"agent", "state", "kind", "stage", "rule", "action", "level", "reason", "outcome"}
    closed |= {"hook", "map", "automaton", "program", "version", "chain", "sequence", "hash"}
    closed |= {"what", "to"}
    assert {label for one in FAMILIES for label in one.labels} <= closed


def test_what_only_a_daemon_knows_is_left_out_of_a_run() -> None:
    """No number is invented where there is nothing to count."""
    server = serve("127.0.0.1", 0, Snapshot)
    text = scrape(server)
    server.close()
    assert "agentwatch_control" not in text
    assert "agentwatch_loop_turn" not in text


def test_reloads_and_beginnings_are_tallied() -> None:
    """By outcome, and by agent; a session that nobody's identity covers is of an unknown one.

    A policy that comes into force for a pause is no reload.
    """
    tally = Tally()
    tally.frame(frames.Reload(generation=1, rules=1, pause=True))
    for ok in (True, False, True):
        tally.frame(frames.Reload(generation=1, rules=1, ok=ok))
    for agent in ("claude-code", ""):
        tally.frame(frames.Session(agent=agent))
    assert tally.reloads == {"ok": 2, "refused": 1}
    assert tally.sessions == {"claude-code": 1, "unknown": 1}


def test_delays_fall_into_their_bounds() -> None:
    """A delay counts in the first bound that is not below it; a batch counts as many times."""
    delays = DurationCounter()
    for seconds, times in ((0.0005, 1), (0.001, 1), (0.3, 10), (60.0, 1)):
        delays.observe(seconds, times)
    read = delays.read()
    assert read.counts[0] == 2
    assert read.counts[DURATION_BOUNDS.index(0.5)] == 10
    assert read.counts[-1] == 1
    assert read.total == pytest.approx(63.0015)


def test_what_is_counted_only_at_times_says_when(server: Server) -> None:
    """A program without runs is not idle: the kernel counts only when it is told to."""
    for name in ("program_runs_total", "program_run_seconds_total"):
        helped = re.search(f"# HELP agentwatch_{name} (.*)", scrape(server))
        assert helped is not None
        assert helped[1].endswith("(only while kernel.bpf_stats_enabled).")
