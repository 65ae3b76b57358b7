"""The unit that is installed, by systemd's own judgement."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agentwatch.sinks import segments

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "systemd" / "agentwatch.service"
WORST = 3.5


def settings() -> dict[str, list[str]]:
    """Of the unit: name -> values, in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt install systemd"
)
def test_the_service_is_exposed_no_more_than_it_must_be() -> None:
    """`systemd-analyze security`: 3.5 or better."""
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNIT]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    exposure = re.search(r"exposure level for agentwatch.service: ([\d.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= WORST, said


def test_it_has_no_power_that_rules_the_machine() -> None:
    """What loads programs and ends processes needs no CAP_SYS_ADMIN, and no file but its own."""
    unit = settings()
    (powers,) = unit["CapabilityBoundingSet"]
    assert not {"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_MODULE"} & set(powers.split())
    assert unit["ProtectSystem"] == ["strict"]
    allowed = " ".join(unit["SystemCallFilter"]).split()
    assert {"bpf", "perf_event_open"} <= set(allowed)


def test_it_is_back_whatever_ends_it() -> None:
    """Killed, hung, or out of memory; what the next daemon goes on with is kept meanwhile."""
    unit = settings()
    assert (unit["Type"], unit["Restart"]) == (["notify"], ["always"])
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    assert unit["WatchdogSec"]


def test_it_may_write_where_the_daemon_does() -> None:
    """systemd makes the directories, with the modes that the daemon insists on."""
    unit = settings()
    assert f"/var/log/{unit['LogsDirectory'][0]}" == str(segments.DEFAULT_DIRECTORY)
    assert unit["LogsDirectoryMode"] == [f"{segments.SHARED_MODE:04o}"]
    assert "/sys/fs/cgroup" in unit["ReadWritePaths"]
