"""The table of docs/levels.md that says what the packs are worth on which kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.levels import row

pytestmark = [pytest.mark.vm, pytest.mark.without_lsm]


@pytest.mark.once
def test_the_table_of_levels_says_what_is_found_here(agentwatch: Path, repository: Path) -> None:
    """The row of this kernel, with or without BPF LSM, is in docs/levels.md: `make levels`."""
    found = row(agentwatch)
    print(found)
    assert found in (repository / "docs" / "levels.md").read_text().splitlines()
