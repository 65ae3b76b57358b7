"""What must hold on a stock Debian kernel: run inside the virtual machine, by tests/vm/boot."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def run(*command: str | Path, timeout: float = 300) -> str:
    """The command's output; an AssertionError with all of it when the command fails."""
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert process.returncode == 0, f"exit {process.returncode}\n{process.stdout}"
    return process.stdout


def test_the_guest_runs_the_kernel_that_was_asked_for() -> None:
    """The rest of this file says something about this kernel and no other."""
    assert os.uname().release == Path("/run/vm/kernel").read_text().strip()
    assert "bpf" in Path("/sys/kernel/security/lsm").read_text().strip().split(",")


def test_every_program_loads(agentwatch: Path) -> None:
    """The verifier of this kernel accepts each program of the object."""
    print(run(agentwatch, "doctor", "--programs"))


def test_tags_hold(repository: Path) -> None:
    """Real probes: tags, frozen and ending sessions, and descendants that fork all the time."""
    chosen = "held or adopted or reconcile or pid_of"
    pytest = [repository / ".venv" / "bin" / "pytest", "-p", "no:cacheprovider", "-q", "-m", "root"]
    print(run(*pytest, "-k", chosen, repository / "tests/kernel/test_tags.py", timeout=240))


def test_the_demonstration_passes(repository: Path) -> None:
    """The agent works, and none of its three bad ideas has an effect."""
    output = run(repository / "demo" / "run", "--watched")
    print(output)
    assert "demonstration passed" in output
