"""What Prometheus's own linter says about our metrics."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agentwatch.sinks.families import FAMILIES
from agentwatch.sinks.metrics import DURATION_BOUNDS, Durations, Snapshot, page

REPOSITORY = Path(__file__).resolve().parents[2]
TEST = "agentwatch.rules.test.yml"
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
    findings_lost={"jsonl": 0, "journald": 2},
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
def test_the_alerts_fire_where_they_should_and_nowhere_else(promtool: Path) -> None:
    """`promtool test rules`: all of them on a host that is ill, none on one that is well."""
    rules = REPOSITORY / "packaging" / "prometheus"
    for command in (["check", "rules", "agentwatch.rules.yml"], ["test", "rules", TEST]):
        said = subprocess.run([promtool, *command], cwd=rules, capture_output=True, timeout=120)
        assert said.returncode == 0, said.stdout + said.stderr
        assert b"SUCCESS" in said.stdout
