"""What Prometheus's own linter says about our metrics."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from agentwatch.sinks.metrics import DELAY_BOUNDS, Delays, JournalState, Snapshot, registry

FULL = Snapshot(
    events={"exec": 3},
    events_lost={"ring": 2},
    decisions={("secrets.keys", "deny", "kills-after"): 1},
    kill_failures={"too late": 1},
    unresolved={"open": 1},
    tagged_processes={"claude-code": 2},
    hook_attached={"sched_process_exec": 1},
    rules_loaded={"kills": 4},
    map_entries={"tags": 2},
    map_capacity={"tags": 65536},
    program_runs={"exec": 3},
    program_run_seconds={"exec": 0.001},
    delays=Delays((1,) * (len(DELAY_BOUNDS) + 1), 9.5),
    journal=JournalState("run-a", 17, "ab" * 32, 4096, 17, 1, 0),
)


@pytest.mark.root
def test_promtool_finds_nothing_to_say(promtool: Path) -> None:
    """`promtool check metrics` accepts every name, type, unit and help text."""
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(registry(lambda: FULL)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")
