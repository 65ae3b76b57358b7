"""With BPF LSM a daemon that dies leaves no gap either: what is denied does not happen."""

from __future__ import annotations

import socket

import pytest

from agentwatch.events import Open
from agentwatch.kernel import lsm
from agentwatch.kernel.pins import sets
from tests.daemon.denied import accounted, kill, lay_down, load
from tests.daemon.running import Place

pytestmark = [pytest.mark.lsm, pytest.mark.once]

ROUNDS, PAUSE = 5, 0.2  # an emulated machine has others to run, too


def test_a_killed_daemon_leaves_no_gap_on_hooks(place: Place) -> None:
    """EPERM while it is dead and while the next takes over; hooks of one instance remain."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port: int = listening.getsockname()[1]
        lay_down(place, port)
        daemon = place.start()
        assert daemon.status["tier"] == "lsm"
        working = load(place, port, daemon, ROUNDS, PAUSE)
        kill(daemon)
        working.rounds(ROUNDS)
        daemon = place.start()
        working.rounds(ROUNDS)
        (one,) = sets(place.pins)
        assert one.instances == [2]
        assert set(one.programs(2)) >= lsm.HOOKS_NEEDED
        tries = working.ended()
        assert daemon.stop() == 0
    accounted(place, port, tries)
    opens = [e for e in place.events(Open) if e.path == str(place["key"])]
    assert {e.result for e in opens} == {-1}
    assert sets(place.pins) == []
