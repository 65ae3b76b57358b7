"""The daemon begins, is told to stop, and is refused: what systemd and people see of that."""

from __future__ import annotations

import signal
import socket
import subprocess

import pytest

from agentwatch.errors import NotRunningError
from agentwatch.sinks.frames import Control, Header, Holdings, Notice, Resumed, Session, Start, Stop
from tests.daemon.peers import Subscriber
from tests.daemon.running import AS_NOBODY, PATIENCE, Daemon, Place, cue, reads, until

pytestmark = pytest.mark.root


def test_it_says_that_it_is_ready_and_what_it_does(place: Place) -> None:
    """READY with a status line comes once, and `status` answers from then on."""
    daemon = place.start()
    (ready,) = place.supervisor.told
    assert ready.split("\n") == ["READY=1", "STATUS=1 rule, mode enforce, 0 sessions"]
    (start,) = place.awaited(Start)
    assert (start.pid, start.mode, start.rules) == (daemon.pid, "enforce", 1)
    status = daemon.status
    assert (status["pid"], status["mode"], status["tier"]) == (daemon.pid, "enforce", "signal")
    assert status["config"] == str(place.config)
    assert all(status["hooks"].values())
    assert status["rules"]["loaded"] == 1
    assert (status["generation"], status["reload_error"], status["problems"]) == (1, "", [])
    assert not any(status["losses"].values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(place: Place, number: signal.Signals) -> None:
    """Exit code 0, STOPPING, a stop frame that says why, an intact and closed chain, no socket."""
    daemon = place.start()
    daemon.process.send_signal(number)
    assert daemon.wait() == 0
    assert place.supervisor.count("STOPPING=1") == 1
    assert place.frames(Stop)[-1].reason == f"{number.name} was received"
    report = place.report()
    assert (report.intact, report.closed, report.live) == (True, True, False)
    assert not place.socket.exists()
    with pytest.raises(NotRunningError):
        daemon.client()
    watching, stopped = daemon.err.splitlines()
    assert watching.startswith("agentwatch: watching: 1 rule, mode enforce, 0 sessions")
    assert stopped.startswith("agentwatch: stopped: SIG")


def test_a_subscriber_is_told_of_the_end(daemon: Daemon) -> None:
    """It need not guess why nothing comes any more."""
    with daemon.client() as client:
        told = Subscriber.of(client)
        until(lambda: told.of_kind(Header), "the header of the journal")
        assert daemon.stop() == 0
        told.all()
        assert client.ended == "the daemon is stopping"


def test_sessions_that_go_on_unwatched_are_said_to(place: Place) -> None:
    """An agent that outlives the daemon is released in the journal, and lives."""
    daemon = place.start()
    agent = place.agent("echo here; read line")
    daemon.session(agent.pid)
    assert daemon.stop() == 0
    (release,) = [one for one in place.frames(Notice) if one.subject == "release"]
    assert release.session.pid == agent.pid
    assert agent.poll() is None


def test_the_watchdog_is_fed(place: Place) -> None:
    """Asked to say every now and then that it lives, it does, for as long as it runs."""
    place.start(env={"WATCHDOG_USEC": "200000"})
    until(lambda: place.supervisor.count("WATCHDOG=1") >= 3, "feeding")


def test_a_watchdog_nobody_asked_for_is_not_fed(place: Place) -> None:
    """WATCHDOG_PID of another process means another process."""
    daemon = place.start(env={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
    until(lambda: daemon.stop() == 0, "a clean stop")
    assert place.supervisor.count("WATCHDOG=1") == 0


def test_it_is_for_root(place: Place) -> None:
    """Anybody else is told what to do, with the exit code for what is not permitted."""
    line = [*AS_NOBODY, str(place.agentwatch), "daemon", "--config", str(place.config)]
    refused = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode == 4
    assert "sudo agentwatch daemon" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("written", "where", "says"),
    [
        ({"mode": "enforced"}, "1:7", '"enforced"'),
        ({"jurnal": {"dir": "/tmp"}}, "7:1", '"jurnal"'),
        ({"cgroup": "/etc"}, "6:9", "cgroup2"),
        ({"agents": ["nobody-s-agent"]}, "7:10", '"nobody-s-agent"'),
    ],
    ids=["value", "key", "cgroup", "agent"],
)
def test_a_wrong_configuration_starts_nothing(
    place: Place, written: dict[str, object], where: str, says: str
) -> None:
    """It is shown with file, line and column; exit code 1, no socket, no journal."""
    place.write(**written)
    daemon = place.start(check=False)
    assert daemon.wait() == 1
    assert f"{place.config}:{where}: error[AW" in daemon.err
    assert says in daemon.err
    assert not place.socket.exists()
    assert not place.journal.exists()
    assert place.supervisor.told == []


def test_wrong_rules_start_nothing(place: Place) -> None:
    """A daemon without the rules it was told to enforce would be worse than none."""
    place.rules["key"] = "slap"
    place.write()
    daemon = place.start(check=False)
    assert daemon.wait() == 1
    assert f"{place['rules.yaml']}:9:13: error[AW" in daemon.err
    assert not place.socket.exists()
    assert not place.journal.exists()
    assert place.supervisor.told == []


def test_a_port_that_is_taken_starts_nothing(place: Place) -> None:
    """It is named; the journal that was begun is closed, and the socket is gone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place.write(metrics=f"127.0.0.1:{port}")
        daemon = place.start(check=False)
        assert daemon.wait() == 1
    assert f"127.0.0.1:{port}" in daemon.err
    assert "Traceback" not in daemon.err
    assert not place.socket.exists()
    assert place.supervisor.told == []
    if place.journal.exists():
        assert (place.report().intact, place.report().closed) == (True, True)


def test_a_second_daemon_is_refused_and_the_first_goes_on(place: Place) -> None:
    """It names the first's pid, and takes away neither socket nor journal."""
    first = place.start()
    second = place.start(check=False)
    assert second.wait() == 1
    assert f"a daemon runs already (pid {first.pid})" in second.err
    assert first.status["pid"] == first.pid
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    assert first.stop() == 0
    assert len(place.frames(Start)) == 1
    assert place.report().intact


def test_what_a_killed_daemon_left_is_replaced_and_told(place: Place) -> None:
    """The socket is taken over; the chain goes on with how it was found; agents are found again."""
    killed = place.start()
    agent = place.agent(f"exec 5< {place['other']}; sleep 1000 & read line; {reads(place)}")
    killed.tree(agent.pid, 2)
    before = killed.status["journal"]["sequence"]
    killed.process.kill()
    killed.wait()
    assert place.socket.exists()

    daemon = place.start()
    (resumed,) = place.awaited(Resumed)
    assert (resumed.clean, resumed.rebooted) == (False, False)
    assert resumed.sequence >= before
    old, found = place.awaited(Session, 2)
    assert (old.how, found.how) == ("identity", "running")
    assert found.session == old.session
    assert daemon.tree(agent.pid, 2)
    held = [one.files for one in place.awaited(Holdings) if one.process.pid == agent.pid]
    assert f"r {place['other']}" in held[-1]

    cue(agent)
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert daemon.stop() == 0
    report = place.report()
    assert (report.intact, report.closed) == (True, True)


def test_a_clean_end_is_told_at_the_next_start(place: Place) -> None:
    """The chain of a daemon that was stopped is continued, and says so."""
    assert place.start().stop() == 0
    assert place.start().stop() == 0
    (resumed,) = place.frames(Resumed)
    assert resumed.clean
    report = place.report()
    assert (report.intact, report.closed) == (True, True)


def test_nothing_said_to_the_socket_is_written_as_a_change(daemon: Daemon, place: Place) -> None:
    """Questions alone leave no control frame."""
    for verb in ("status", "agents.list", "why"):
        daemon.ask(verb)
    assert daemon.stop() == 0
    assert place.frames(Control) == []
