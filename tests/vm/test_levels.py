"""The table of docs/levels.md that says what the packs are worth on which kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.vm.levels import row


@pytest.mark.once
@pytest.mark.vm
@pytest.mark.without_lsm
@pytest.mark.bcc
def test_the_table_of_levels_says_what_is_found_here(agentwatch: Path, repository: Path) -> None:
    """The row of this kernel, whatever it has, is in docs/levels.md: `make levels`."""
    found = row(agentwatch)
    print(found)
    assert found in (repository / "docs" / "levels.md").read_text().splitlines()


@pytest.mark.lsm
def test_who_may_not_try_is_told_so_and_nothing_is_claimed(
    agentwatch: Path, repository: Path
) -> None:
    """Without root no rule on files is said to be prevented, nor that none is."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command += [agentwatch, "rules", "list", repository / "rules" / "secrets.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "prevents" not in done.stdout
    assert "known to root only: sudo agentwatch rules list" in done.stderr
