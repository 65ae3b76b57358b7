"""What must hold on a stock Debian kernel: run inside the virtual machine, by tests/vm/boot."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from agentwatch.kernel import preemption

pytestmark = pytest.mark.vm


def run(*command: str | Path, timeout: float) -> str:
    """The command's output; an AssertionError with all of it when the command fails, or lasts."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started may hold the other end
        output, _ = process.communicate(timeout=30)
        raise AssertionError(f"{command[0]} did not end in {timeout} s\n{output}") from None
    assert process.returncode == 0, f"exit {process.returncode}\n{output}"
    return output


@pytest.mark.without_lsm
def test_the_guest_runs_the_kernel_that_was_asked_for() -> None:
    """What passes here says something about this kernel, set up so, and about no other."""
    asked = Path("/run/vm")
    assert os.uname().release == (asked / "kernel").read_text().strip()
    active = Path("/sys/kernel/security/lsm").read_text().strip().split(",")
    wanted = (asked / "lsm").read_text().strip().split(",")
    assert set(wanted) <= set(active)
    assert ("bpf" in active) == ("bpf" in wanted)
    preempt = Path("/sys/kernel/debug/sched/preempt").read_text()
    assert (asked / "preempt").read_text().strip() in ("", re.search(r"\((\w+)\)", preempt)[1])


@pytest.mark.once
@pytest.mark.without_lsm
def test_every_program_loads(agentwatch: Path) -> None:
    """The verifier of this kernel accepts each program of the object."""
    print(run(agentwatch, "doctor", "--programs", timeout=240))


@pytest.mark.once
def test_tags_hold_and_the_daemon_watches(repository: Path) -> None:
    """Real probes: tags, frozen and ending sessions, agents that run already, the daemon's own.

    What exactly a daemon has seen is nothing to ask where the kernel skips runs of its probes, and
    says so: there tests/daemon/test_lsm_feedback.py and the demonstration ask what holds.
    """
    files = ["tests/kernel/test_tags.py", "tests/kernel/test_running.py"]
    if not preemption.skips():
        files.append("tests/daemon/test_sessions.py")
    chosen = "test_sessions or 0-chain or listed or held or adopted or reconcile or pid_of"
    pytest = [repository / ".venv" / "bin" / "pytest", "-p", "no:cacheprovider", "-v", "-m", "root"]
    # One failure is enough here, and a test that waits for ever says where before it is ended.
    bounds = ["-x", "-o", "faulthandler_timeout=240", "-o", "faulthandler_exit_on_timeout=true"]
    paths = [repository / name for name in files]
    print(run(*pytest, *bounds, "--durations=5", "-k", chosen, *paths, timeout=1200))


@pytest.mark.once
@pytest.mark.without_lsm
def test_the_demonstration_passes(repository: Path) -> None:
    """The agent works, and none of its three bad ideas has an effect."""
    output = run(repository / "demo" / "run", "--watched", timeout=420)
    print(output)
    assert "demonstration passed" in output
