"""The table of docs/levels.md that says what the packs are worth on which kernel."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from agentwatch.kernel import lsm
from agentwatch.policy.levels import LEVELS

pytestmark = pytest.mark.vm

DISTRIBUTIONS = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "Debian unstable"}


def row(agentwatch: Path, repository: Path) -> str:
    """The line of this kernel, as it is found now."""
    kernel = ".".join(os.uname().release.split(".")[:2])
    listed = subprocess.run(
        [agentwatch, "rules", "list", "-o", "json", repository / "rules"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    found = Counter(rule["level"].split()[0] for rule in json.loads(listed.stdout))
    for line in (repository / "tests" / "vm" / "kernels").read_text().splitlines():
        if line.split()[:1] == [kernel]:
            suite = DISTRIBUTIONS[line.split()[1]]
    module = "yes" if lsm.programs() else "no"
    counts = " | ".join(str(found[level]) for level in LEVELS)
    return f"| {kernel} | {suite} | {module} | {counts} |"


@pytest.mark.once
def test_the_table_of_levels_says_what_is_found_here(agentwatch: Path, repository: Path) -> None:
    """The row of this kernel, with or without BPF LSM, is in docs/levels.md."""
    found = row(agentwatch, repository)
    print(found)
    assert found in (repository / "docs" / "levels.md").read_text().splitlines()
