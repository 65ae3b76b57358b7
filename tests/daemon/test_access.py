"""What may be asked of the daemon, and by whom: root, a person, and what an agent runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from agentwatch.control.client import Client
from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.sinks.frames import Kill, Session, SessionEnd
from agentwatch.sinks.host import this_host
from tests.daemon.peers import Answer, answer_to, asker, forked
from tests.daemon.running import NOBODY, PATIENCE, Daemon, Place, cue, line_of, reads, until
from tests.proc import is_there

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(standing: Daemon) -> Daemon:
    """One for all of these tests."""
    return standing


@pytest.fixture
def place(standing: Daemon) -> Place:
    """Its place."""
    return standing.place


def refused(answer: Answer, why: str) -> bool:
    return answer.error == "PermissionDenied" and why in answer.message and bool(answer.remedy)


# Who may. ----------------------------------------------------------------------------------------

ASKING: list[tuple[str, dict[str, Any]]] = [
    ("status", {}),
    ("agents.list", {}),
    ("why", {}),
    ("events", {"follow": True}),
]
CHANGING: list[tuple[str, dict[str, Any]]] = [
    ("agents.untag", {"which": "no-such-agent"}),
    ("agents.kill", {"which": "no-such-agent"}),
    ("agents.freeze", {"which": "no-such-agent"}),
    ("agents.thaw", {"which": "no-such-agent"}),
    ("rules.pause", {"rule": "test.key", "seconds": 0}),
    ("rules.reload", {}),
]


def test_root_may_ask_and_change(daemon: Daemon, place: Place) -> None:
    """Nothing is refused for who asks; what is not there is a matter of usage."""
    root = asker(place)
    for verb, args in ASKING:
        assert root(verb, **args).ok, verb
    for verb, args in CHANGING:
        answer = root(verb, **args)
        assert answer.error == ("UsageError" if "which" in args else ""), verb


def test_a_person_may_ask_and_change_nothing(daemon: Daemon, place: Place) -> None:
    """Each refusal says that it is for root, and how to ask as root."""
    person = asker(place, uid=NOBODY)
    for verb, args in ASKING:
        assert person(verb, **args).ok, verb
    for verb, args in [*CHANGING, ("agents.tag", {"pid": daemon.pid}), ("agents.tag", {})]:
        answer = person(verb, **args)
        told = "only root tags" if verb == "agents.tag" else f"{verb} is for root"
        assert refused(answer, told), verb
        assert "root" in answer.remedy


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
def test_what_an_agent_runs_may_ask_why_and_nothing_else(
    daemon: Daemon, place: Place, uid: int
) -> None:
    """Root's agents no more than others': not even to be tagged again, or to ask about others."""
    agent = asker(place, uid=uid, tagged=True)
    until(lambda: len(daemon.sessions) == 1, "a session")
    assert agent("why").ok
    assert agent("why", pid=agent.pid).ok
    untagged = place.process("sleep", "1000")
    tries: list[tuple[str, dict[str, Any]]] = [
        *((verb, args) for verb, args in ASKING + CHANGING if verb != "why"),
        ("why", {"pid": untagged.pid}),
        ("agents.tag", {"pid": agent.pid}),
        ("agents.tag", {"pid": untagged.pid}),
        ("agents.untag", {"which": str(agent.pid)}),
    ]
    for verb, args in tries:
        answer = agent(verb, **args)
        assert refused(answer, f"{verb} is not for what an agent runs"), verb
        assert "terminal" in answer.remedy
    assert len(daemon.sessions) == 1


def test_unknown_verbs_and_wrong_arguments_are_answered(daemon: Daemon) -> None:
    """What is missing, what is of another type, and what no daemon knows: each says what to do."""
    tries: list[tuple[str, dict[str, Any], str]] = [
        ("agents.hug", {}, "knows no 'agents.hug'"),
        ("agents.tag", {}, "needs pid"),
        ("agents.tag", {"pid": "1"}, "is text"),
        ("agents.tag", {"pid": True}, "is true or false"),
        ("agents.kill", {}, "needs which"),
        ("agents.kill", {"which": 7}, "is a number"),
        ("rules.pause", {"rule": "test.nothing", "seconds": 5}, "no rule is called"),
        ("rules.pause", {"rule": "test.key"}, "needs seconds"),
        ("why", {"pid": 4194304 * 4}, "is no agent's"),
        ("events", {"session": "nothing"}, "no session's id"),
        ("events", {"session": f"{this_host().boot_id}:1:1"}, "no session of yours"),
    ]
    with daemon.client() as client:
        for verb, args, says in tries:
            with pytest.raises(UsageError) as error:
                client.request(verb, **args)
            assert says in error.value.message, verb
            assert error.value.remedy, verb


def test_garbage_on_the_socket_disturbs_nobody(daemon: Daemon, place: Place) -> None:
    """Half a frame, a huge one, no frame at all, and more connections than one person may have."""
    said = (b"\0\0", b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc1", b"")
    with ExitStack() as stack:
        for number in range(60):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(os.fsencode(place.socket))
            with suppress(BrokenPipeError, ConnectionResetError):
                one.send(said[number % len(said)])
        assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
        assert daemon.status["pid"] == daemon.pid
        assert daemon.status["problems"] == []
    until(lambda: daemon.status["connections"] == 1, "one connection")


# Tagging. ----------------------------------------------------------------------------------------


def test_a_process_is_tagged_by_hand_with_all_it_started(daemon: Daemon, place: Place) -> None:
    """From then on it is a session of that agent, and its rules act on its children too."""
    script = f"sleep 1000 & echo started; read line; sh -c '{reads(place)}'; echo ended; read line"
    process = place.process("sh", "-c", script)
    assert line_of(process) == "started"
    tagged = daemon.ask("agents.tag", pid=process.pid, agent="stub", project=str(place.directory))
    assert tagged["processes"] == 2
    session = daemon.session(process.pid)
    assert session["session"] == tagged["session"]
    assert (session["agents"], session["project"]) == (["stub"], str(place.directory))
    (told,) = place.of_session(Session, process.pid)
    assert (told.how, told.agent, told.uid) == ("tag", "stub", 0)
    cue(process)
    assert line_of(process) == "ended"
    (kill,) = place.of_session(Kill, process.pid)
    assert kill.outcome == "killed"


def test_a_person_tags_themselves(daemon: Daemon, place: Place) -> None:
    """That is the one change anybody may make, and there is no way back from it."""

    def act() -> object:
        with daemon.client() as client:
            told = [answer_to(client, "agents.tag", {"pid": os.getpid()})]
            told += [answer_to(client, verb, {}) for verb in ("status", "agents.list", "why")]
            told += [answer_to(client, "agents.tag", {"pid": os.getpid()})]
            told += [answer_to(client, "agents.untag", {"which": str(os.getpid())})]
            seen = answered(place)
        return [os.getpid(), [(one.ok, one.error) for one in told], seen]

    with forked(act, NOBODY) as result:
        pid, told, seen = result()
    assert told == [
        [True, ""],
        [False, "PermissionDenied"],
        [False, "PermissionDenied"],
        [True, ""],
        [False, "PermissionDenied"],
        [False, "PermissionDenied"],
    ]
    assert "PermissionDenied" in seen  # a new connection is the agent's as well
    (session,) = place.of_session(Session, pid)
    assert (session.uid, session.how) == (NOBODY, "tag")


def answered(place: Place) -> str:
    """What a new connection of this process is answered."""
    with Client.connect(place.socket) as client:
        return answer_to(client, "status", {}).error


def test_a_person_tags_nobody_else(daemon: Daemon, place: Place) -> None:
    """Not even a process of their own: it could not be asked whether it wants to."""
    person = asker(place, uid=NOBODY)
    own = place.process("sleep", "1000", uid=NOBODY)
    for pid in (own.pid, daemon.pid, os.getpid(), 1):
        assert refused(person("agents.tag", pid=pid), "only root tags processes of others")
    assert daemon.sessions == []


def dead() -> int:
    """A pid that nobody has."""
    ended = subprocess.Popen(["true"])
    ended.wait(PATIENCE)
    return ended.pid


def kernel_thread() -> int:
    """The pid of a thread of the kernel that has started no other."""
    threads = Path("/proc/2/task/2/children").read_text().split()
    assert threads, "the kernel's threads are not visible from here"
    return int(threads[-1])


@pytest.mark.parametrize(
    ("whom", "says"),
    [
        (lambda _: 0, "process 0"),
        (lambda _: -1, "process -1"),
        (lambda _: 1, "is not tagged"),
        (lambda daemon: daemon.pid, "the daemon"),
        (lambda _: kernel_thread(), "kernel"),
        (lambda _: dead(), "is not there"),
        (lambda _: 1 << 40, "is not there"),
    ],
    ids=["zero", "negative", "init", "daemon", "kernel-thread", "dead", "huge"],
)
def test_who_cannot_be_an_agent_is_not_tagged(
    daemon: Daemon, whom: Callable[[Daemon], int], says: str
) -> None:
    """Init, the daemon itself, the kernel's own threads, nobody: each is told apart."""
    with pytest.raises(AgentwatchError) as error:
        daemon.ask("agents.tag", pid=whom(daemon))
    assert says in error.value.message
    assert error.value.remedy
    assert daemon.sessions == []
    assert daemon.status["problems"] == []


def test_who_is_tagged_is_not_tagged_again(daemon: Daemon, place: Place) -> None:
    """The first tag sticks, and the answer says whose it is."""
    agent = place.agent("echo started; read line")
    session = daemon.session(agent.pid)["session"]
    with pytest.raises(AgentwatchError, match="belongs to session") as error:
        daemon.ask("agents.tag", pid=agent.pid)
    assert session in error.value.message


@pytest.mark.parametrize(
    ("args", "says"),
    [({"agent": "nobody-s"}, "no identity is called"), ({"project": "here"}, "no whole path")],
    ids=["agent", "project"],
)
def test_a_tag_that_makes_no_sense_is_refused(
    daemon: Daemon, place: Place, args: dict[str, str], says: str
) -> None:
    """An identity no rule file has; a project that is not a whole path."""
    process = place.process("sleep", "1000")
    with pytest.raises(UsageError, match=says):
        daemon.ask("agents.tag", pid=process.pid, **args)
    assert daemon.sessions == []


def test_an_untagged_tree_goes_on_unwatched(daemon: Daemon, place: Place) -> None:
    """Its processes live, may read the key, and are no session's any more."""
    script = f"sleep 1000 & echo started; read line; cat {place['key']}; exec 3< {place['key']}"
    agent = place.agent(f"{script}; echo free; read line")
    assert line_of(agent) == "started"
    session = daemon.session(agent.pid)["session"]
    daemon.tree(agent.pid, 2)
    let_go = daemon.ask("agents.untag", which=session)
    assert (let_go["sessions"], let_go["processes"]) == ([session], 2)
    assert daemon.sessions == []
    assert len(place.of_session(SessionEnd, agent.pid)) == 1
    cue(agent)
    assert line_of(agent) == "the key"
    assert line_of(agent) == "free"
    assert agent.pid not in {one.process.pid for one in place.frames(Kill)}
    assert daemon.ask("agents.tag", pid=agent.pid)["processes"] == 2  # and back


@pytest.mark.parametrize("name", ["pid", "session", "agent", "child"])
def test_a_session_is_named_in_three_ways(daemon: Daemon, place: Place, name: str) -> None:
    """By the pid of any of its processes, by its id, by its agent."""
    agent = place.agent("sleep 1000 & echo started; read line")
    tree = daemon.tree(agent.pid, 2)
    session = daemon.session(agent.pid)["session"]
    child = next(pid for pid in tree if pid != agent.pid)
    which = {"pid": str(agent.pid), "session": session, "agent": "stub", "child": str(child)}
    ended = daemon.ask("agents.kill", which=which[name])
    assert (ended["sessions"], ended["processes"]) == ([session], 2)
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert not is_there(child)
