"""Without a cgroup hierarchy to freeze in, nothing is claimed and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import processes
from agentwatch.errors import KernelError
from agentwatch.events import ProcessKey
from agentwatch.freezer import Freezer


@pytest.fixture
def sleeper() -> Iterator[ProcessKey]:
    """A real child that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        found = processes.key_now(process.pid)
        assert found is not None
        yield found
        process.kill()


def test_a_directory_that_is_no_cgroup_is_no_freezer(tmp_path: Path) -> None:
    """The caller then stops sessions by signals."""
    assert Freezer.open(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become somebody else")
def test_who_may_not_make_cgroups_has_no_freezer(repository: Path) -> None:
    """An ordinary person finds out by asking, not by failing later."""
    code = "from agentwatch.freezer import Freezer; print(Freezer.open())"
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert (made.stdout, made.stderr) == ("None\n", "")


def test_a_freeze_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, sleeper: ProcessKey
) -> None:
    """As where a hierarchy has no freezer: the error has a remedy, the process runs on."""
    freezer = Freezer(tmp_path, tmp_path)
    with pytest.raises(KernelError, match=r"a:1:2 cannot be frozen: .*cgroup.freeze") as caught:
        freezer.freeze("a:1:2", lambda: [sleeper])
    assert "signals" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    assert processes.runs(sleeper)


def test_what_was_never_frozen_is_neither_thawed_nor_killed(tmp_path: Path) -> None:
    """0 processes, and "send signals"."""
    freezer = Freezer(tmp_path, tmp_path)
    assert freezer.thaw("a:1:2") == 0
    assert freezer.killed("a:1:2") is None
    assert freezer.recover(lambda pids: None) == ()
