"""Sessions are killed, frozen, thawed; rules are paused; and the journal says who did that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.errors import UsageError
from agentwatch.sinks.frames import Control, Notice
from tests.daemon.conftest import made
from tests.daemon.peers import asker
from tests.daemon.running import (
    NOBODY,
    PATIENCE,
    Daemon,
    Place,
    counts,
    grows,
    line_of,
    reads,
    rests,
    size,
    until,
)
from tests.proc import is_there

pytestmark = pytest.mark.root

# Forks all the time: children that end, children that go on in their parent's place.
STORM = """
import os, time
def forks(goes_on):
    while True:
        if os.fork() == 0:
            time.sleep(0.02)
            if goes_on:
                continue
            os._exit(0)
        if goes_on:
            os._exit(0)
        time.sleep(0.005)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
print("started", flush=True)
for goes_on in (False, True, True):
    if os.fork() == 0:
        forks(goes_on)
forks(False)
"""


def test_a_killed_session_ends_while_it_forks_all_the_time(daemon: Daemon, place: Place) -> None:
    """Nothing of it is left when the answer comes, and nothing comes after."""
    agent = place.agent(f"exec python3 -I -c '{STORM}'")
    assert line_of(agent) == "started"
    until(lambda: len(daemon.session(agent.pid)["processes"]) >= 4, "four processes")
    ended = daemon.ask("agents.kill", which=str(agent.pid))
    assert ended["processes"] >= 4
    assert not any(is_there(pid) for pid in place.pids())
    until(lambda: not daemon.sessions, "the end of the session")
    assert not any(is_there(pid) for pid in place.pids())
    assert not any(daemon.status["losses"].values())


def test_a_storm_that_runs_already_is_taken_whole(place: Place) -> None:
    """Nobody is overlooked, those included whose parents ended before the daemon came: they are
    in the agent's own terminal session, as with an agent that a person starts from a shell.
    """
    agent = place.agent(f"python3 -I -c '{STORM}'; :", start_new_session=True)
    assert line_of(agent) == "started"
    daemon = place.start()
    assert daemon.session(agent.pid)["processes"]
    daemon.ask("agents.kill", which=str(agent.pid))
    assert not any(is_there(pid) for pid in place.pids())


WITHOUT_CGROUP2 = 'umount -l "$1" && shift && exec "$@"'


@pytest.fixture(scope="module", params=["cgroup", "signal"])
def how(request: pytest.FixtureRequest) -> str:
    """What a session is frozen by."""
    return str(request.param)


def start(place: Place, how: str) -> Daemon:
    """A daemon with the kernel's freezer, or one on a host without cgroup2."""
    if how == "cgroup":
        return place.start()
    place.write(cgroup="root")
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-c", WITHOUT_CGROUP2, "sh")
    return place.start(*private, str(place.cgroup.parent))


@pytest.fixture(scope="module")
def able(agentwatch: Path, how: str) -> Iterator[Daemon]:
    """One for all tests of a way to freeze."""
    with made(agentwatch) as place:
        yield start(place, how)


@pytest.fixture
def freezing(able: Daemon) -> Iterator[Daemon]:
    """The same, without sessions at the beginning."""
    assert able.sessions == []
    yield able
    able.forget()


def test_a_frozen_session_rests_until_it_is_thawed(freezing: Daemon, how: str) -> None:
    """All of it: what it does stops, what it holds stays, and it goes on where it was."""
    place = freezing.place
    script, file = counts(place)
    also, second = counts(place, "second")
    agent = place.agent(f"({also}) & {script}", uid=NOBODY)
    for one in (file, second):
        one.touch()
        os.chown(one, NOBODY, NOBODY)
    assert grows(file)
    assert grows(second)
    session = freezing.session(agent.pid)["session"]

    frozen = freezing.ask("agents.freeze", which=session)
    assert (frozen["sessions"], frozen["how"]) == ([session], how)
    assert frozen["processes"] >= 2
    assert freezing.session(agent.pid)["state"] == "frozen"
    assert rests(file)
    assert rests(second)
    again = freezing.ask("agents.freeze", which=session)
    assert again["how"] == how
    os.kill(agent.pid, signal.SIGCONT)  # whoever sends it: it stays as it is
    assert rests(second)
    until(lambda: rests(file), "rest")

    thawed = freezing.ask("agents.thaw", which=session)
    assert (thawed["sessions"], thawed["how"]) == ([session], how)
    assert grows(file)
    assert grows(second)
    assert freezing.session(agent.pid)["state"] == "running"
    assert freezing.ask("agents.thaw", which=session)["how"] == ""
    said = [one.subject for one in place.of_session(Notice, agent.pid, 2)]
    assert said[:2] == ["freeze", "thaw"]


def test_a_frozen_session_can_be_killed(freezing: Daemon) -> None:
    """It need not be thawed for that, and does nothing more."""
    place = freezing.place
    script, file = counts(place)
    agent = place.agent(f"sleep 1000 & {script}")
    assert grows(file)
    freezing.tree(agent.pid, 3)
    freezing.ask("agents.freeze", which="stub")
    before = file.stat().st_size
    assert freezing.ask("agents.kill", which="stub")["processes"] >= 2
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert file.stat().st_size == before
    assert not any(is_there(pid) for pid in place.pids())
    until(lambda: not freezing.sessions, "the end of the session")


def test_a_storm_of_forks_is_frozen(freezing: Daemon) -> None:
    """Nobody who is forked meanwhile gets away: the same processes are there a while later."""
    place = freezing.place
    agent = place.agent(f"exec python3 -I -c '{STORM}'")
    assert line_of(agent) == "started"
    until(lambda: len(freezing.session(agent.pid)["processes"]) >= 4, "four processes")
    freezing.ask("agents.freeze", which=str(agent.pid))
    before = {pid for pid in place.pids() if is_there(pid)}
    assert rests(place["key"])
    assert {pid for pid in place.pids() if is_there(pid)} == before
    freezing.ask("agents.kill", which=str(agent.pid))
    assert not any(is_there(pid) for pid in place.pids())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_gone_daemon_had_stopped_by_signals_can_go_on(
    place: Place, number: signal.Signals
) -> None:
    """No session stays frozen because nobody is left who knows of it: the next one thaws it."""
    freezing = start(place, "signal")
    script, file = counts(place)
    agent = place.agent(script)
    assert grows(file)
    freezing.session(agent.pid)
    freezing.ask("agents.freeze", which="stub")
    freezing.process.send_signal(number)
    freezing.wait()
    daemon = place.start()
    daemon.session(agent.pid)
    daemon.ask("agents.thaw", which="stub")
    assert grows(file)
    assert daemon.session(agent.pid)["state"] == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_frozen_stays_so_with_the_next_daemon(
    place: Place, number: signal.Signals
) -> None:
    """Who gets the daemon restarted gets nobody free: not a byte is written meanwhile."""
    daemon = place.start()
    script, file = counts(place)
    agent = place.agent(script)
    assert grows(file)
    daemon.session(agent.pid)
    daemon.ask("agents.freeze", which="stub")
    before = file.stat().st_size
    daemon.process.send_signal(number)
    daemon.wait()
    again = place.start()
    assert again.session(agent.pid)["state"] == "frozen"
    until(
        lambda: any("before this one" in one.text for one in place.frames(Notice)),
        "a notice of who was frozen",
    )
    assert rests(file)
    assert file.stat().st_size == before
    again.ask("agents.thaw", which="stub")
    assert grows(file)


def test_who_changed_what_is_in_the_journal(daemon: Daemon, place: Place) -> None:
    """Who was refused is there too, with uid and pid and what was asked."""
    agent = place.agent("echo started; read line")
    daemon.session(agent.pid)
    person, tagged = asker(place, uid=NOBODY), asker(place, tagged=True)
    until(lambda: len(daemon.sessions) == 2, "two sessions")
    assert not person("agents.kill", which=str(agent.pid)).ok
    assert not tagged("rules.reload").ok
    daemon.ask("agents.freeze", which=str(agent.pid))
    with pytest.raises(UsageError):
        daemon.ask("agents.thaw", which="nobody")
    said = place.awaited(Control, 4)
    own = os.getpid()
    assert [(one.uid, one.pid, one.verb, one.ok) for one in said] == [
        (NOBODY, person.pid, "agents.kill", False),
        (0, tagged.pid, "rules.reload", False),
        (0, own, "agents.freeze", True),
        (0, own, "agents.thaw", False),
    ]
    assert said[0].text == f"which={agent.pid}: agents.kill is for root"
    assert said[2].text == f"which={agent.pid}"


# Pausing. ----------------------------------------------------------------------------------------


def test_a_paused_rule_does_not_act_until_it_is_resumed(daemon: Daemon, place: Place) -> None:
    """Who asked for it is in the journal, and when it ends in the answer."""
    paused = daemon.ask("rules.pause", rule="test.key", seconds=600)
    assert paused["rule"] == "test.key"
    agent = place.agent(f"cat {place['key']} && echo started; read line")
    assert line_of(agent) == "the key"
    assert line_of(agent) == "started"
    assert daemon.ask("rules.pause", rule="test.key", seconds=0)["until_at"] == 0
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    said = [one.text for one in place.awaited(Notice, 2) if one.subject == "pause"]
    assert said[0].startswith("test.key is paused for 600 s, by uid 0")
    assert said[1].startswith("test.key acts again")


def test_who_is_moved_out_of_the_frozen_cgroup_is_frozen_again(place: Place) -> None:
    """Others may move processes; a frozen session stays frozen."""
    daemon = place.start()
    script, file = counts(place)
    agent = place.agent(script)
    assert grows(file)
    daemon.session(agent.pid)
    daemon.ask("agents.freeze", which=str(agent.pid))
    assert rests(file)
    (place.cgroup / "cgroup.procs").write_text(str(agent.pid))
    until(lambda: rests(file) and rests(file), "rest")
    before = size(file)
    time.sleep(1)
    assert size(file) == before
    daemon.ask("agents.thaw", which=str(agent.pid))
    assert grows(file)


def test_a_session_is_gone_on_with_by_the_next_daemon(place: Place) -> None:
    """Also one that was tagged by hand, whose name says nothing: its id and its agent stay."""
    daemon = place.start()
    started = place.process("/bin/sh", "-c", "sleep 1000 & wait")
    daemon.ask("agents.tag", pid=started.pid, agent="stub", project="/srv")
    daemon.tree(started.pid, 2)
    before = daemon.session(started.pid)
    time.sleep(1.2)  # what is left is written once a second
    daemon.process.kill()
    daemon.wait()
    again = place.start()
    after = again.session(started.pid)
    for name in ("session", "agents", "project", "uid"):
        assert after[name] == before[name]
    assert {one["pid"] for one in after["processes"]} == {one["pid"] for one in before["processes"]}
