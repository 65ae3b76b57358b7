"""Neither a kernel's types nor its headers: that is said, and what to do about it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.without_lsm]

TYPES = Path("/sys/kernel/btf")


@pytest.fixture(autouse=True)
def nothing() -> Iterator[None]:
    """As in a kernel built without them."""
    subprocess.run(["mount", "-t", "tmpfs", "none", TYPES], check=True)
    yield
    subprocess.run(["umount", TYPES], check=True)


@pytest.mark.parametrize("command", [("run", "--", "true"), ("daemon",), ("doctor", "--programs")])
def test_without_types_nothing_begins_and_the_reason_is_named(
    command: tuple[str, ...], agentwatch: Path
) -> None:
    """Neither loader can: what each lacks, and the package that is missing; no traceback."""
    done = subprocess.run([agentwatch, *command], capture_output=True, text=True, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "this kernel lacks BTF" in said
    assert "the headers of this kernel are missing" in said
    assert f"apt install linux-headers-{os.uname().release}" in said
    assert "Traceback" not in said
