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


@pytest.mark.parametrize("command", [("run", "--", "true"), ("daemon",), ("doctor", "--programs")])
def test_where_a_security_module_refuses_every_probe_it_is_named(
    command: tuple[str, ...], agentwatch: Path
) -> None:
    """Lockdown, confidentiality: nobody undoes it, so this comes last in its guest."""
    level = Path("/sys/kernel/security/lockdown")
    if "[confidentiality]" not in level.read_text():
        level.write_text("confidentiality")
    done = subprocess.run([agentwatch, *command], capture_output=True, text=True, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "confidentiality: the kernel lets nobody read its memory" in said
    assert "boot with lockdown=integrity" in said
    assert "Traceback" not in said
