"""The cgroup below which connections are refused is removed under the daemon, and comes again."""

from __future__ import annotations

import pytest

from agentwatch.errors import AgentwatchError
from agentwatch.sinks.frames import Notice
from tests.daemon.running import Place, until
from tests.daemon.test_deciding import SERVER, add, connecting, connections, said, server
from tests.kernel.held import detach, held
from tests.kernel.test_cgroup_gone import taken

pytestmark = pytest.mark.root

PREVENTED = {"kills": 1, "prevents": 1}  # levels of the place's rule and of the test's own
KILLED = {"kills": 1, "kills-after": 1}


def test_levels_follow_the_cgroup_that_connections_are_refused_in(place: Place) -> None:
    """`prevents` as long as it is there, said loudly when not, and refused again in the new one."""
    inner = place.cgroup / "agents"
    inner.mkdir()
    place.write(cgroup=str(inner))

    def told(words: str) -> bool:
        return any(words in one.text for one in place.frames(Notice))

    with server() as (listener, port):
        match = {"addr": SERVER, "port": port, "proto": "tcp"}
        add(place, {"id": "test.net", "on": "connect", "match": match, "action": "deny"})
        daemon = place.start()
        inside = f"echo $$ > {inner}/cgroup.procs; {connecting(port)}"
        assert daemon.status["rules"]["levels"] == PREVENTED
        assert said(daemon, inside) == "1\n"
        until(lambda: not (inner / "cgroup.procs").read_text(), "nobody is inside")
        inner.rmdir()
        until(lambda: told("no connection is refused"), "a notice")
        until(lambda: daemon.status["rules"]["levels"] == KILLED, "its level")
        assert not daemon.status["hooks"]["connect4"]
        assert any("cannot be refused" in one for one in daemon.status["problems"])
        inner.mkdir()
        until(lambda: told("made anew"), "a notice")
        until(lambda: daemon.status["generation"] == 2, "a policy that prevents")
        assert daemon.status["rules"]["levels"] == PREVENTED
        assert said(daemon, inside) == "1\n"
        assert connections(listener) == 0


def test_a_cgroup_that_is_taken_is_said_and_nothing_claimed(place: Place) -> None:
    """No `prevents`, a problem in the status; rules that insist on it are refused from then on."""
    match = {"addr": SERVER, "port": 9, "proto": "tcp"}
    one = {"id": "test.net", "on": "connect", "match": match, "action": "deny"}
    add(place, one)
    with taken(place.cgroup):
        daemon = place.start()
        assert daemon.status["rules"]["levels"] == KILLED
        assert not daemon.status["hooks"]["connect4"]
        assert any("cannot be refused" in said for said in daemon.status["problems"])
        add(place, {**one, "without_hook": "refuse"})
        with pytest.raises(AgentwatchError):
            daemon.ask("rules.reload")
        assert "cannot be prevented here" in daemon.status["reload_error"]
        assert daemon.status["generation"] == 1


def test_programs_that_somebody_detaches_are_attached_again(place: Place) -> None:
    """Said in the journal, and refused as before, by the same policy."""
    with server() as (listener, port):
        match = {"addr": SERVER, "port": port, "proto": "tcp"}
        add(place, {"id": "test.net", "on": "connect", "match": match, "action": "deny"})
        daemon = place.start()
        detach(held(daemon.pid, "connect4").id)
        words = "programs were detached"
        until(lambda: any(words in one.text for one in place.frames(Notice)), "a notice")
        assert daemon.status["hooks"]["connect4"]
        assert daemon.status["rules"]["levels"] == PREVENTED
        assert said(daemon, connecting(port)) == "1\n"
        assert connections(listener) == 0
        assert daemon.status["generation"] == 1
