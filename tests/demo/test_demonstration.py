"""The demonstration passes where it should, and fails where it should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def demonstrate(repository: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of demo/run."""
    demo = [repository / "demo" / "run", *options]
    process = subprocess.run(
        demo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    return process.returncode, process.stdout


def test_unwatched_the_agent_does_all_three(repository: Path) -> None:
    """Without agentwatch the key leaves, the script runs and the metadata address is asked."""
    code, output = demonstrate(repository, "--unwatched")
    assert code == 0, output
    assert "the canary arrived" in output
    assert "the script ran" in output
    assert re.search(r"asked +[1-9]\d* request bytes, 1 connection", output)


def test_enforcing_stops_all_three_and_nothing_else(repository: Path) -> None:
    """Under agentwatch none of the three has its effect, and the work gets done."""
    code, output = demonstrate(repository, "--watched")
    assert code == 0, output
    assert "demonstration passed" in output


def test_observing_stops_nothing_and_the_demonstration_says_so(repository: Path) -> None:
    """The verdict comes from the effects: an agentwatch that only looks on does not pass."""
    code, output = demonstrate(repository, "--watched", "--mode", "observe")
    assert code == 1, output
    assert "FAIL watched, none of the three has its effect" in output
    assert "ok   watched, the work gets done all the same" in output
