"""Who is told what happens: each person about their own agents, root about all, an agent why."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentwatch.sinks.frames import Control, Header, Kill, Session, SessionEnd, Verdict
from agentwatch.sinks.host import this_host
from tests.daemon.peers import Asker, Subscriber, asker, asking, forked
from tests.daemon.running import NOBODY, Daemon, Place, cue, line_of, reads, until

pytestmark = pytest.mark.root

ANOTHER = 65533  # somebody who is neither root nor nobody
NEW = 65532  # somebody who never has an agent


@pytest.fixture
def daemon(standing: Daemon) -> Daemon:
    """One for all of these tests."""
    return standing


@pytest.fixture
def place(standing: Daemon) -> Place:
    """Its place."""
    return standing.place


def denied(place: Place, daemon: Daemon, uid: int = 0) -> int:
    """The pid of an agent that lives, of which a child was killed for reading the key."""
    agent = place.agent(f"sh -c '{reads(place)}'; echo denied; read line", uid=uid)
    assert line_of(agent) == "denied"
    until(lambda: daemon.ask("why", pid=agent.pid)["denials"], "a denial")
    return agent.pid


# why. --------------------------------------------------------------------------------------------


def test_root_asks_why_of_anybody(daemon: Daemon, place: Place) -> None:
    """What was stopped, by which rule, because of what, and what to do instead."""
    before = this_host().wall(0)
    pid = denied(place, daemon, NOBODY)
    told = daemon.ask("why", pid=pid)
    (denial,) = told["denials"]
    assert (told["agent"], told["session"]) == ("stub", daemon.session(pid)["session"])
    assert (denial["rule"], denial["action"], denial["kind"]) == ("test.key", "kill", "read")
    assert (denial["what"], denial["title"]) == (str(place["key"]), "The key")
    assert (denial["because"], denial["instead"]) == ("It is the key.", "Ask for another key.")
    assert denial["at"] > before
    # The engine, where the session was not confirmed yet.
    assert (denial["level"], denial["by"]) in (("kills", "kernel"), ("kills-after", "engine"))
    assert daemon.ask("why") == told  # the latest, without a pid
    assert daemon.ask("why", pid=denial["pid"])["session"] == told["session"]  # of who is dead


def test_a_person_asks_why_of_their_own_agents_only(daemon: Daemon, place: Place) -> None:
    """Somebody else's sessions are not even there."""
    pid = denied(place, daemon, NOBODY)
    roots = denied(place, daemon)
    person = asker(place, uid=NOBODY)
    told = person("why", pid=pid)
    assert [one["rule"] for one in told.value["denials"]] == ["test.key"]
    assert person("why").value == told.value
    refused = person("why", pid=roots)
    assert (refused.error, refused.value) == ("UsageError", {})
    assert refused.message == f"process {roots} is no agent's, or not one of yours"
    nobodys = person("why", pid=1)
    assert nobodys.message == "process 1 is no agent's, or not one of yours"


def test_a_person_without_agents_is_told_nothing(daemon: Daemon, place: Place) -> None:
    """Neither the latest denial of others, nor their sessions, nor how many there are."""
    denied(place, daemon)
    person = asker(place, uid=NEW)
    assert person("why").value == {"session": "", "agent": "", "denials": []}
    assert person("agents.list").value == {"sessions": []}
    assert person("status").value["agents"] == []


def test_an_agent_asks_why_of_its_own_session(daemon: Daemon, place: Place) -> None:
    """The answer that helps it do better; another agent's is not for it."""
    others = denied(place, daemon)
    agent = place.agent(f"sh -c '{reads(place)}'; exec {' '.join(asking(place))}")
    own = Asker(agent)
    until(lambda: own("why").value.get("denials"), "a denial of its own")
    told = own("why").value
    assert told["session"] == daemon.session(agent.pid)["session"]
    assert [one["instead"] for one in told["denials"]] == ["Ask for another key."]
    assert own("why", pid=others).error == "PermissionDenied"


def test_the_last_sixteen_denials_are_told(daemon: Daemon, place: Place) -> None:
    """Oldest first; those of a session that is over are there too."""
    agent = place.agent(f"for i in $(seq 20); do sh -c '{reads(place)}'; done; echo denied")
    assert line_of(agent) == "denied"
    until(lambda: not daemon.sessions, "the end of all sessions")
    told = daemon.ask("why")
    assert len(told["denials"]) == 16
    times = [one["at"] for one in told["denials"]]
    assert times == sorted(times)
    assert daemon.ask("why", pid=told["denials"][0]["pid"]) == told


# events. -----------------------------------------------------------------------------------------


def test_everybody_is_sent_their_own_sessions_as_they_happen(daemon: Daemon, place: Place) -> None:
    """Root all of them, each of two people theirs alone: records, verdicts, kills and ends."""

    def follow() -> list[object]:
        with daemon.client() as client:
            told = Subscriber.of(client)
            os.mknod(place["shared"] / f"{os.getuid()}")
            until(lambda: len(told.of_kind(SessionEnd)) == 1, "the end of its session")
            until(lambda: (place["shared"] / "done").exists(), "who is done")
            told.look()
            frames = [f for f in told.frames if not isinstance(f, Header)]
            sessions = {f.session.pid for f in frames if hasattr(f, "session")}
            sessions |= {event.session.pid for event in told.events}
            kinds = {type(f).__name__ for f in told.frames}
            return [sorted(sessions), sorted(kinds), len(told.opened(place["key"]))]

    place["shared"].mkdir()
    place["shared"].chmod(0o777)
    with (
        forked(follow, NOBODY) as nobodys,
        forked(follow, ANOTHER) as anothers,
        daemon.client() as client,
    ):
        root = Subscriber.of(client)
        for uid in (NOBODY, ANOTHER):
            until((place["shared"] / f"{uid}").exists, "who has begun")
        one = place.agent(f"sh -c '{reads(place)}'; :", uid=NOBODY)
        other = place.agent(f"sh -c '{reads(place)}'; :", uid=ANOTHER)
        until(lambda: len(root.of_kind(SessionEnd)) == 2, "the end of two sessions")
        until(lambda: len(root.opened(place["key"])) == 2, "two who read the key")
        place["shared"].joinpath("done").touch()
        assert {s.pid for s in root.opened(place["key"])} == {one.pid, other.pid}
        assert {f.uid for f in root.of_kind(Session)} == {NOBODY, ANOTHER}
        assert len(root.of_kind(Verdict)) == len(root.of_kind(Kill)) == 2
        for result, pid in ((nobodys, one.pid), (anothers, other.pid)):
            sessions, kinds, opened = result()
            assert sessions == [pid]
            assert opened == 1
            assert {"Header", "Session", "Records", "Verdict", "Kill"} <= set(kinds)
            assert not {"Control", "Start"} & set(kinds)


def test_a_stream_begins_with_what_is_needed_to_read_it(daemon: Daemon, place: Place) -> None:
    """The header of the journal, then the sessions there are."""
    agent = place.agent("echo started; read line")
    daemon.session(agent.pid)
    with daemon.client() as client:
        root = Subscriber.of(client)
        until(lambda: len(root.of_kind(Session)) == 1, "a session")
        header, session = root.frames[:2]
        assert isinstance(header, Header)
        assert header.tables
        assert isinstance(session, Session)
        assert session.session.pid == agent.pid
        until(lambda: daemon.status["subscribers"] == 1, "one who follows")
    until(lambda: daemon.status["subscribers"] == 0, "nobody who follows")


def test_one_session_can_be_followed_alone(daemon: Daemon, place: Place) -> None:
    """Of two that do the same, only the one asked for is sent."""
    scripts = f"read line; cat {place['other']}; echo done; read line"
    one, other = place.agent(scripts), place.agent(scripts)
    for agent in (one, other):
        daemon.session(agent.pid)
    with daemon.client() as client:
        told = Subscriber.of(client, session=daemon.session(one.pid)["session"])
        for agent in (other, one):
            cue(agent)
            assert line_of(agent) == "the other"
        until(lambda: told.opened(place["other"]), "who reads the other")
        assert {event.session.pid for event in told.events} == {one.pid}
        assert [one.session.pid for one in told.of_kind(Session)] == [one.pid]


def test_nobody_follows_somebody_elses_session(daemon: Daemon, place: Place) -> None:
    """Its name is a secret of nobody, and no way in."""
    agent = place.agent("echo started; read line")
    session = daemon.session(agent.pid)["session"]
    person = asker(place, uid=NOBODY)
    answer = person("events", follow=True, session=session)
    assert (answer.error, answer.message) == (
        "UsageError",
        f"no session of yours is called {session}",
    )


def test_what_an_agent_runs_follows_nothing(daemon: Daemon, place: Place) -> None:
    """Not even its own session."""
    agent = asker(place, tagged=True)
    until(lambda: daemon.sessions, "a session")
    assert agent("events", follow=True).error == "PermissionDenied"
    own = daemon.sessions[0]["session"]
    assert agent("events", follow=True, session=own).error == "PermissionDenied"


def test_a_subscriber_that_becomes_an_agents_is_ended(daemon: Daemon, place: Place) -> None:
    """The stream says why; and what happens after that is not on it."""

    def follow() -> list[object]:
        with daemon.client() as client:
            told = Subscriber.of(client)
            place["subscribed"].touch()
            until(lambda: told.ended, "the end of the stream")
            return [client.ended, len(told.opened(place["other"]))]

    with forked(follow) as result:
        until(place["subscribed"].exists, "who says that it follows")
        until(lambda: daemon.status["subscribers"] == 1, "one who follows")
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        daemon.ask("agents.tag", pid=int(children[-1]))
        until(lambda: daemon.status["subscribers"] == 0, "nobody who follows")
        reason, _ = result()
    assert reason == "what an agent runs may not read this"


def so_many(told: Subscriber, file: Path, count: int) -> bool:
    """Whether somebody was told that a file was opened so often."""
    return len(told.opened(file)) >= count


def test_a_subscriber_who_does_not_read_is_told_what_was_dropped(
    daemon: Daemon, place: Place
) -> None:
    """The daemon does not wait for it: others get everything, and nothing is lost."""
    file, rounds, opens = place["n" * 200], 5, 4000  # more than waits for one subscriber
    file.touch()
    with daemon.client() as slow, daemon.client() as quick:
        late, told = Subscriber.of(slow), Subscriber.of(quick)
        for count in range(1, rounds + 1):
            place.agent(f"for i in $(seq {opens}); do : < {file}; done")
            until(partial(so_many, told, file, opens * count), "all that was opened")
        assert (told.missed, daemon.status["subscribers"]) == (0, 2)
        until(lambda: late.ended or late.missed, "a loss or the end of the stream")
        assert len(late.opened(file)) < opens * rounds
    assert not any(daemon.status["losses"].values())


def test_only_root_is_told_who_changed_what(daemon: Daemon, place: Place) -> None:
    """Control frames name other people's agents."""

    def follow() -> list[str]:
        with daemon.client() as client:
            told = Subscriber.of(client)
            place["two"].joinpath("ready").touch()
            until(lambda: place["two"].joinpath("done").exists(), "the second that is done")
            told.look()
            return [type(frame).__name__ for frame in told.frames]

    place["two"].mkdir()
    place["two"].chmod(0o777)
    agent = place.agent("echo started; read line")
    daemon.session(agent.pid)
    with forked(follow, NOBODY) as result, daemon.client() as client:
        root = Subscriber.of(client)
        until(place["two"].joinpath("ready").exists, "the second that is ready")
        daemon.ask("agents.freeze", which="stub")
        until(lambda: root.of_kind(Control), "what root asked for")
        place["two"].joinpath("done").touch()
        assert result() == ["Header"]


# The past. ---------------------------------------------------------------------------------------


def past(daemon: Daemon, since: int, **args: str) -> list[Any]:
    """What somebody is told of the past: of which sessions records, and the reason for the end."""
    with daemon.client() as client:
        told = Subscriber.of(client, follow=False, since=since, **args)
        assert isinstance(told.all()[0], Header)
        return [sorted({event.session.pid for event in told.events}), client.ended]


@dataclass(frozen=True)
class Over:
    """Agents that have ended since a moment. root, nobody, another: their pids, by whose."""

    since: int
    root: int
    nobody: int
    another: int


@pytest.fixture(scope="module")
def over(shared: Daemon) -> Over:
    """Three agents of three people have opened a file and ended."""
    place = shared.place
    since, uids = time.time_ns(), (0, NOBODY, ANOTHER)
    pids = [place.agent(f"cat {place['other']}", uid=uid).pid for uid in uids]
    for pid in pids:
        place.of_session(SessionEnd, pid)
    return Over(since, *pids)


def test_everybody_is_told_the_past_of_their_own_sessions(daemon: Daemon, over: Over) -> None:
    """Root that of all, a person of theirs alone; the end of it is told."""
    since = over.since
    (sessions, end) = past(daemon, since)
    assert {over.root, over.nobody, over.another} <= set(sessions)
    assert end == ""
    with forked(lambda: past(daemon, since), NOBODY) as result:
        assert result() == [[over.nobody], ""]
    with forked(lambda: past(daemon, 0), NEW) as result:
        assert result() == [[], ""]


def test_the_past_begins_where_it_is_asked_for(daemon: Daemon, place: Place, over: Over) -> None:
    """`since` is a moment: what was recorded before it is not told."""
    since = time.time_ns()
    agent = place.agent(f"cat {place['other']}")
    place.of_session(SessionEnd, agent.pid)
    assert past(daemon, since) == [[agent.pid], ""]


def test_the_past_of_one_session_is_told(daemon: Daemon, place: Place, over: Over) -> None:
    """By its id, though it is over; that of somebody else's is not."""
    (end,) = place.of_session(SessionEnd, over.nobody)
    session = end.session.id(this_host().boot_id)
    assert past(daemon, over.since, session=session) == [[over.nobody], ""]
    with forked(lambda: past(daemon, over.since, session=session), NOBODY) as result:
        assert result() == [[over.nobody], ""]
    with forked(lambda: past(daemon, over.since, session=session), ANOTHER) as result:
        assert result() == [[], ""]


def test_the_past_is_not_for_what_an_agent_runs(daemon: Daemon, place: Place) -> None:
    """It has `why`."""
    agent = asker(place, tagged=True)
    until(lambda: daemon.sessions, "a session")
    assert agent("events", follow=False).error == "PermissionDenied"
