"""What must hold on a kernel without bpf in its lsm=, as many distributions ship it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.without_lsm


def test_doctor_names_the_parameter_to_boot_with(agentwatch: Path) -> None:
    """It says what is lost, and the very list of this kernel with bpf at its end."""
    active = Path("/sys/kernel/security/lsm").read_text().strip()
    said = subprocess.run([agentwatch, "doctor"], capture_output=True, text=True, timeout=240)
    assert said.returncode == 0, said.stderr
    assert f"no bpf in {active}: nothing can be denied before it happens" in said.stdout
    assert f"boot with lsm={active},bpf" in said.stdout
