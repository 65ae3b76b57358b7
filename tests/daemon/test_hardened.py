"""What the unit leaves a daemon is enough for all it does: its capabilities, a read-only system."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.daemon.running import PATIENCE, Daemon, Place, counts, grows, rests, until

pytestmark = pytest.mark.root

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "systemd" / "agentwatch.service"


@pytest.fixture
def hardened(place: Place) -> Daemon:
    """With the unit's capabilities, on a root file system that is read-only but for the test's."""
    (powers,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    kept = ",".join("+" + name.removeprefix("CAP_").lower() for name in powers.split())
    where = place.directory
    pins = place.pins  # as the unit has it: the rest of bpffs is read-only, too
    script = (
        f"mkdir -p {pins} && mount --bind {pins} {pins} && mount -o remount,ro,bind {pins.parent}"
    )
    script += f' && mount --bind {where} {where} && mount -o remount,ro,bind / && exec "$@"'
    return place.start(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
        *("setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}"),
    )


def test_it_has_them_and_no_more(hardened: Daemon) -> None:
    """Nothing is attached less, nothing is a problem."""
    status = Path(f"/proc/{hardened.pid}/status").read_text()
    (held,) = re.findall(r"CapEff:\s(\w+)", status)
    assert int(held, 16).bit_count() == 6
    found = hardened.status
    assert all(found["hooks"].values())
    assert found["problems"] == []
    assert found["pins"]["kept"]


def test_it_finds_kills_freezes_and_remembers(hardened: Daemon, place: Place) -> None:
    """An agent of another user: tagged, frozen, thawed, killed; all of it is in the journal."""
    os.chmod(place.directory, 0o777)
    script, file = counts(place)
    agent = place.agent(script, uid=65534)
    session = hardened.session(agent.pid)
    assert grows(file)
    hardened.ask("agents.freeze", which=str(agent.pid))
    assert rests(file)
    hardened.ask("agents.thaw", which=str(agent.pid))
    assert grows(file)
    reader = place.agent(f"exec 3< {place['key']}; sleep 1000", uid=65534)
    assert reader.wait(PATIENCE) == -signal.SIGKILL
    hardened.ask("agents.kill", which=str(agent.pid))
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert session
    assert hardened.stop() == 0
    assert place.report().intact


def test_it_refuses_connections(hardened: Daemon, place: Place) -> None:
    """The cgroup programs attach, and rules are reloaded."""
    assert hardened.reload()["generation"] == 2
    until(lambda: hardened.status["generation"] == 2, "the reload")
