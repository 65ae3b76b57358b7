"""What a daemon leaves to the next one, and what it writes of who asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentwatch.control.peer import Peer
from agentwatch.control.wire import Request
from agentwatch.daemon.audit import REFUSALS, VALUE_MAX, Audit
from agentwatch.daemon.remembered import Remembered
from agentwatch.events import ProcessKey
from agentwatch.sessions import Left
from agentwatch.sinks.frames import Control, Frame

SESSION = ProcessKey(10, 100)
LEFT = Left(SESSION, ("claude",), "/srv/project", 1000, (SESSION, ProcessKey(11, 110)))


def test_sessions_are_read_as_they_were_written(tmp_path: Path) -> None:
    """By the next daemon of the same boot."""
    Remembered(tmp_path / "s", "boot").write([LEFT])
    assert Remembered(tmp_path / "s", "boot").read() == (LEFT,)
    assert Remembered(tmp_path / "s", "another").read() == ()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage", ["", "{", '{"boot": "boot"}', '{"boot": "boot", "sessions": [1]}']
)
def test_a_damaged_file_is_nobodys(tmp_path: Path, damage: str) -> None:
    """The daemon starts as if there were none."""
    remembered = Remembered(tmp_path / "s", "boot")
    remembered.write([LEFT])
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert remembered.read() == ()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Somebody else may have put it there."""
    remembered = Remembered(tmp_path / "s", "boot")
    remembered.write([LEFT])
    (file,) = tmp_path.iterdir()
    moved = file.rename(tmp_path / "moved")
    file.symlink_to(moved)
    assert remembered.read() == ()


def test_refusals_do_not_fill_the_journal() -> None:
    """Few are written out, none with all that was sent; the rest is a number."""
    told: list[Frame] = []
    audit = Audit(told.append)
    peer = Peer(os.getpid(), 1000, 1000, -1)
    request = Request("rules.reload", {"junk": "x" * 60000})
    for _ in range(500):
        audit.record(peer, request, "it is for root")
    assert len(told) <= 2 * REFUSALS
    assert all(isinstance(frame, Control) and len(frame.text) <= 4 * VALUE_MAX for frame in told)
    audit._second = 0
    audit.tick()
    assert any("more requests" in frame.text for frame in told if isinstance(frame, Control))
    audit.record(Peer(1, 0, 0, -1), Request("agents.kill", {"which": "claude"}))
    assert told[-1] == Control(uid=0, pid=1, verb="agents.kill", text="which=claude", ok=True)
