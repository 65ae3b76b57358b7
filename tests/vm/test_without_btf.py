"""What must hold where a kernel's types cannot be had: it is said, and what to do about it."""

from __future__ import annotations

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
    """Which file is missing, and which kernel has it; no traceback."""
    done = subprocess.run([agentwatch, *command], capture_output=True, text=True, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert f"{TYPES}/vmlinux is missing" in said
    assert "CONFIG_DEBUG_INFO_BTF=y" in said
    assert "Traceback" not in said
