"""Agents that anybody starts are sessions: with all that they start, and with nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from agentwatch.events import Exec, Exit, Fork, Open
from agentwatch.sinks.frames import AgentAdded, Gap, Kill, Session, SessionEnd, Verdict
from tests.daemon.running import NOBODY, PATIENCE, Daemon, Place, cue, line_of, reads, until
from tests.proc import is_there

pytestmark = pytest.mark.root

TREE = "sleep 1000 & sh -c 'sleep 1000; :' & echo started; read line; :"
"""The agent, two children, and a grandchild."""


def started(agent: subprocess.Popen[str]) -> None:
    """Waits until the agent says that it has begun what it is to do."""
    assert line_of(agent) == "started"


def number(metrics: str, name: str) -> float:
    """One value of a scrape; 0 where that series is not there."""
    values = [line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith(name)]
    return float(values[0]) if values else 0.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def daemon(standing: Daemon) -> Daemon:
    """One for all of these tests."""
    return standing


@pytest.fixture
def place(standing: Daemon) -> Place:
    """Its place."""
    return standing.place


@pytest.mark.parametrize(("uid", "user"), [(0, "root"), (NOBODY, "nobody")])
def test_an_agent_that_anybody_starts_is_a_session(
    daemon: Daemon, place: Place, uid: int, user: str
) -> None:
    """Whose it is, what was typed and where it works are in the list and in the journal."""
    project = place[f"work-{user}"]
    (project / "deep").mkdir(parents=True)
    (project / ".git").mkdir()
    agent = place.agent(TREE, uid=uid, cwd=project / "deep")
    started(agent)
    session = daemon.session(agent.pid)
    assert (session["agents"], session["user"], session["uid"]) == (["stub"], user, uid)
    assert (session["project"], session["state"]) == (str(project), "running")
    (told,) = place.of_session(Session, agent.pid)
    assert (told.agent, told.user, told.uid, told.how) == ("stub", user, uid, "identity")
    assert told.project == str(project)
    assert told.command[1:] == (str(place.stub), TREE)
    assert told.session.pid == agent.pid
    row = {"agent": "stub", "sessions": 1, "processes": 4}
    until(lambda: daemon.status["agents"] == [row], "the four of them in the status")


def test_how_it_is_frozen_is_listed_and_shown(
    daemon: Daemon, place: Place, agentwatch: Path
) -> None:
    """Of a session that runs, `held` is empty: the command line shows it beside the state."""
    agent = place.agent(TREE)
    started(agent)
    session = daemon.session(agent.pid)
    assert (session["how"], session["held"]) == ("identity", "")
    daemon.ask("agents.freeze", which=str(agent.pid))
    assert daemon.session(agent.pid)["held"] == "cgroup"
    shown = subprocess.run(
        [agentwatch, "agents", "list", "--socket", place.socket],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "frozen by cgroup" in shown.stdout
    assert str(place.stub) in shown.stdout


def test_the_tree_of_a_session_shows_who_started_whom(daemon: Daemon, place: Place) -> None:
    """Each process with its parent, its program and its role; the first has none in the session."""
    agent = place.agent(TREE)
    started(agent)
    tree = daemon.tree(agent.pid, 4)
    top = tree.pop(agent.pid)
    assert (top["parent"], top["role"], top["exe"]) == (0, "agent", str(place.stub))
    assert TREE in top["command"]
    until(
        lambda: (
            [one["command"] for one in daemon.tree(agent.pid, 4).values()].count("sleep 1000") == 2
        ),
        "two that sleep",
    )
    tree = daemon.tree(agent.pid, 4)
    shell = next(one for one in tree.values() if one["command"].startswith("sh -c"))
    sleeps = [one for one in tree.values() if one["command"] == "sleep 1000"]
    assert {one["parent"] for one in sleeps} == {agent.pid, shell["pid"]}
    assert shell["parent"] == agent.pid
    assert {one["role"] for one in (shell, *sleeps)} == {"child"}
    assert all(one["started_at"] >= top["started_at"] for one in tree.values())


def test_whoever_outlives_a_parent_stays_in_the_session(daemon: Daemon, place: Place) -> None:
    """A daemonised child of a child is listed and killed like any other."""
    script = f"setsid sh -c 'read line < {place['gate']}; {reads(place)}' & echo started; exit 0"
    os.mkfifo(place["gate"])
    agent = place.agent(script)
    started(agent)
    assert agent.wait(PATIENCE) == 0
    (left,) = daemon.tree(agent.pid, 1).values()
    assert left["parent"] == 0
    with place["gate"].open("r+b", buffering=0) as gate:  # both ends: does not wait for a reader
        gate.write(b"\n")
        until(lambda: not is_there(left["pid"]), "its end")
    (kill,) = place.of_session(Kill, agent.pid)
    assert (kill.process.pid, kill.outcome) == (left["pid"], "killed")


def test_rules_apply_to_what_an_agent_started(daemon: Daemon, place: Place) -> None:
    """A child that reads the key is killed, and the agent is not."""
    agent = place.agent(f"sh -c '{reads(place)}'; echo started; read line")
    started(agent)
    assert agent.poll() is None
    (verdict,) = place.of_session(Verdict, agent.pid)
    assert (verdict.rule, verdict.what, verdict.agent) == ("test.key", str(place["key"]), "stub")
    assert (verdict.action, verdict.response, verdict.generation) == ("kill", "kill", 1)
    (kill,) = place.of_session(Kill, agent.pid)
    assert kill.outcome == "killed"
    assert kill.process == verdict.process != verdict.session
    assert len(daemon.session(agent.pid)["processes"]) == 1


def test_rules_do_not_apply_to_anybody_else(daemon: Daemon, place: Place) -> None:
    """A person reads the same file, while an agent is watched, and nothing is said about it."""
    agent = place.agent(TREE)
    started(agent)
    daemon.session(agent.pid)
    person = place.process("sh", "-c", f"exec 3< {place['key']}; echo started; read line")
    started(person)
    later = place.agent(reads(place))
    assert later.wait(PATIENCE) == -signal.SIGKILL
    place.of_session(SessionEnd, later.pid)
    assert person.poll() is None
    assert person.pid not in {event.process.pid for event in place.events(Open)}


def test_an_agent_in_an_agent_belongs_to_both(daemon: Daemon, place: Place) -> None:
    """The session stays the first one's; the second is told of."""
    copy = place.program(f"more/bin/stub-{place.unique}")
    agent = place.agent(f"{copy} 'echo started; read line'; :")
    started(agent)
    assert [one["pid"] for one in daemon.sessions] == [agent.pid]
    roles = {one["role"] for one in daemon.tree(agent.pid, 2).values()}
    assert roles == {"agent"}
    assert place.frames(AgentAdded) == []  # of that agent it was already


def test_an_agent_that_ends_leaves_nothing_behind(own: Place) -> None:
    """No session, no tag, no row: in the list, in the counts and in the kernel's own tables."""
    port = free_port()
    own.write(metrics=f"127.0.0.1:{port}")
    daemon = own.start()

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
            return str(page.read(), "utf-8")

    agents = [own.agent(TREE) for _ in range(3)]
    for agent in agents:
        started(agent)
        daemon.tree(agent.pid, 4)
    assert number(scrape(), 'agentwatch_map_entries{map="sessions"}') == 3
    assert number(scrape(), 'agentwatch_tagged_processes{agent="stub"}') == 12
    for agent in agents:
        daemon.ask("agents.kill", which=str(agent.pid))
    until(lambda: not daemon.sessions, "the end of all sessions")
    assert number(scrape(), 'agentwatch_map_entries{map="sessions"}') == 0
    assert number(scrape(), 'agentwatch_tagged_processes{agent="stub"}') == 0
    assert daemon.status["agents"] == []
    ends = own.awaited(SessionEnd, 3)
    assert {one.session.pid for one in ends} == {agent.pid for agent in agents}
    assert {(one.agent, one.processes) for one in ends} == {("stub", 4)}


def test_all_that_it_did_is_in_the_journal(daemon: Daemon, place: Place) -> None:
    """Programs, forks, files and ends of the session, first to last, and nothing lost."""
    agent = place.agent(f"sh -c 'cat {place['other']} > /dev/null'; exit 3")
    assert agent.wait(PATIENCE) == 3
    place.of_session(SessionEnd, agent.pid)
    own = [event for event in place.events(Exec) if event.session.pid == agent.pid]
    assert [event.path.rsplit("/", 1)[-1] for event in own if not event.result][-1] == "cat"
    opened = [
        event
        for event in place.events(Open)
        if event.asked == str(place["other"]) and event.session.pid == agent.pid
    ]
    assert len(opened) == 1
    forks = [event for event in place.events(Fork) if event.session.pid == agent.pid]
    ends = [event for event in place.events(Exit) if event.session.pid == agent.pid]
    assert {one.process for one in ends} >= {opened[0].process}
    assert len(ends) >= len(forks) >= 1
    assert place.frames(Gap) == []
    assert not any(daemon.status["losses"].values())


@pytest.mark.parametrize("where", ["sbin/stub-{}", "bin/stub-{}-not"], ids=["place", "name"])
def test_a_look_alike_leaves_nothing(daemon: Daemon, place: Place, where: str) -> None:
    """A program that shares a part of an agent's name is nobody's, like all that it does."""
    alike = place.program(where.format(place.unique))
    person = place.process(alike, f"cat {place['key']}; echo started; sleep 1000 & read line")
    assert line_of(person) == "the key"
    started(person)
    agent = place.agent("echo started; read line")
    started(agent)
    daemon.session(agent.pid)
    assert [one["pid"] for one in daemon.sessions] == [agent.pid]
    assert person.poll() is None
    daemon.ask("agents.kill", which=str(agent.pid))
    place.of_session(SessionEnd, agent.pid)
    assert person.pid not in {one.session.pid for one in place.frames(Session)}
    assert place.events_of(agent.pid)
    assert place.events_of(person.pid) == []


def test_agents_that_run_already_are_found(own: Place) -> None:
    """With all that they have started, by the name they were started under, and what they hold."""
    agent = own.agent(TREE)
    started(agent)
    daemon = own.start()
    assert "1 session" in own.supervisor.told[0]
    tree = daemon.tree(agent.pid, 4)
    assert tree[agent.pid]["role"] == "agent"
    (told,) = own.awaited(Session)
    assert (told.how, told.agent, told.session.pid) == ("running", "stub", agent.pid)


def test_of_agents_that_are_not_wanted_no_session_begins(own: Place) -> None:
    """`agents: []` tags nobody by itself; somebody may still be tagged by hand, and is judged."""
    own.write(agents=[])
    daemon = own.start()
    agent = own.agent(f"echo started; read line; {reads(own)}")
    started(agent)
    assert daemon.sessions == []
    daemon.ask("agents.tag", pid=agent.pid, agent="stub")
    assert [one["agents"] for one in daemon.sessions] == [["stub"]]
    cue(agent)
    assert agent.wait(PATIENCE) == -signal.SIGKILL


def test_findings_are_written_for_log_shippers(own: Place) -> None:
    """The kill is a line of `jsonl` as soon as it is made."""
    findings = own["findings.jsonl"]
    own.write(jsonl=str(findings))
    own.start()
    assert own.agent(reads(own)).wait(PATIENCE) == -signal.SIGKILL
    until(lambda: "test.key" in text_of(findings), "a finding")


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""
