"""What Prometheus's own linter says about our metrics."""

from __future__ import annotations

import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.sinks.families import FAMILIES
from agentwatch.sinks.metrics import DURATION_BOUNDS, Durations, Snapshot, page
from tests.daemon.running import Place, until

TIMES = Durations((1,) * (len(DURATION_BOUNDS) + 1), 9.5)
FULL = Snapshot(
    sessions={("claude-code", "running"): 2},
    sessions_begun={"claude-code": 2},
    tagged_processes={"claude-code": 2},
    events={"exec": 3},
    events_lost={"ring": 2},
    unresolved={"open": 1},
    decisions={("secrets.keys", "deny", "kills-after"): 1},
    kill_failures={"too late": 1},
    event_delay_seconds=TIMES,
    rules_loaded={"kills": 4},
    reloads={"ok": 1},
    last_reload_successful=1,
    hook_attached={"sched_process_exec": 1},
    map_entries={"tags": 2},
    map_capacity={"tags": 65536},
    program_runs={"exec": 3},
    program_run_seconds={"exec": 0.001},
    journal_head=("run-a", "17", "ab" * 32),
    control_connections=1,
    control_subscribers=1,
    control_dropped_frames=0,
    loop_turn_seconds=TIMES,
    build=("0.1.0",),
)


def check(promtool: Path, text: bytes) -> tuple[int, bytes]:
    """What `promtool check metrics` answers and says."""
    command = [promtool, "check", "metrics"]
    result = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.root
def test_promtool_finds_nothing_to_say(promtool: Path) -> None:
    """`promtool check metrics` accepts every name, type, unit and help text."""
    text = page(FULL)
    assert text.count(b"# TYPE") == len(FAMILIES)
    assert check(promtool, text) == (0, b"")


@pytest.mark.root
def test_promtool_finds_nothing_to_say_about_a_daemon(promtool: Path, place: Place) -> None:
    """Its page at work, with an agent that was killed and a reload: every family is on it."""
    port = free_port()
    place.write(metrics=f"127.0.0.1:{port}")
    daemon = place.start()
    agent = place.agent(f"cat {place['key']}; sleep 30")
    daemon.session(agent.pid)
    daemon.reload()

    def scraped() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: bytes = answer.read()
        return text

    wanted = (
        b'agentwatch_decisions_total{action="kill",level="kills-after",rule="test.key"} 1.0',
        b'agentwatch_sessions{agent="stub",state="running"} 1.0',
        b'agentwatch_sessions_begun_total{agent="stub"} 1.0',
        b'agentwatch_reloads_total{outcome="ok"} 1.0',
        b"agentwatch_last_reload_successful 1.0",
    )
    for line in wanted:
        until(lambda line=line: line in scraped().splitlines(), line.decode())
    assert check(promtool, scraped()) == (0, b"")
    for one in FAMILIES:
        assert f"# TYPE {one.full_name} ".encode() in scraped()
    turns = next(l for l in scraped().splitlines() if b"loop_turn_seconds_count" in l)
    assert float(turns.split()[1]) > 0
