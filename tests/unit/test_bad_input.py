"""A command line that makes no sense is refused before anything is started, root or not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def agentwatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it out of the source tree."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-m", "agentwatch", *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done


@pytest.mark.parametrize(
    "arguments",
    [[], ["--"], ["--mode=lax", "--", "true"], ["--what", "x"]],
    ids=["nothing", "no command", "mode", "option"],
)
def test_a_run_of_nothing_or_with_unknown_options_is_usage(arguments: Sequence[str]) -> None:
    """Exit 2, with what is wrong and how it is used."""
    done = agentwatch("run", *arguments)
    assert done.returncode == 2
    assert "Usage: agentwatch run" in done.stderr
    assert "Error: " in done.stderr


@pytest.mark.parametrize("value", ["9477", "host", "127.0.0.1:", "127.0.0.1:x", "[::1]:70000"])
def test_metrics_want_a_host_and_a_port(value: str) -> None:
    """Anything else is a usage error with an example."""
    done = agentwatch("run", f"--metrics={value}", "--", "true")
    assert done.returncode == 2
    assert f"--metrics {value}: not HOST:PORT\n  try: " in done.stderr


def test_a_project_that_is_no_directory(tmp_path: Path) -> None:
    """Usage, with the name."""
    done = agentwatch("run", f"--project={tmp_path}/nowhere", "--", "true")
    assert done.returncode == 2
    assert f"--project {tmp_path}/nowhere: no such directory\n  try: " in done.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("no-such-command-anywhere", 127), ("/etc/passwd", 126)]
)
def test_a_command_that_cannot_be_run(name: str, code: int) -> None:
    """As a shell has it, and nobody is asked for a password first."""
    done = agentwatch("run", "--", name)
    assert done.returncode == code
    assert done.stderr.startswith(f"agentwatch: {name}")
    assert "  try: " in done.stderr


def test_a_verb_that_there_is_not() -> None:
    """Usage, with its name."""
    done = agentwatch("no-such-verb")
    assert done.returncode == 2
    assert "No such command 'no-such-verb'" in done.stderr
