"""A reader that a rule kills, whose descriptors another process has as its own."""

from __future__ import annotations

import json
import signal

import pytest

from agentwatch.sinks.frames import SessionEnd, Verdict
from tests.daemon.running import Daemon, Place

pytestmark = pytest.mark.root

CLONE_FILES = 0x400
SOON = 15  # s: half of what passes until the daemon would find out by itself

ACT = """
import ctypes, os, sys
pid = ctypes.CDLL(None).syscall(56, {flags}, 0, 0, 0, 0)
if pid == 0:
    os.open({key}, os.O_RDONLY)
    os._exit(0)
os.waitpid(pid, 0)
print("still there")
"""


def test_all_of_the_session_ends_with_it(daemon: Daemon, place: Place) -> None:
    """Those that run and make no call as well; the daemon tells the end and the rule."""
    place["act.py"].write_text(
        ACT.format(flags=CLONE_FILES | signal.SIGCHLD, key=json.dumps(str(place["key"])))
    )
    agent = place.agent(f"read line; sleep 1000 & python3 {place['act.py']}; echo over; wait")
    daemon.session(agent.pid)
    out, _ = agent.communicate("\n", timeout=SOON)
    assert out == ""
    assert agent.returncode == -signal.SIGKILL
    (verdict,) = place.of_session(Verdict, agent.pid)
    assert (verdict.rule, verdict.outcome, verdict.by) == ("test.key", "killed", "kernel")
    place.of_session(SessionEnd, agent.pid)
