"""What can be asked of the daemon, and by whom: root, a person, and what an agent runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.sinks.frames import Control, Kill, Notice, Session, SessionEnd
from tests.daemon.running import (
    NOBODY,
    PATIENCE,
    Answer,
    Asker,
    Daemon,
    Place,
    answer_to,
    asker,
    counts,
    forked,
    grows,
    reads,
    rests,
    until,
)
from tests.kernel.launching import is_there

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


def refused(answer: Answer, why: str) -> bool:
    return answer.error == "PermissionDenied" and why in answer.message and bool(answer.remedy)


# Who may. ----------------------------------------------------------------------------------------

ASKING: list[tuple[str, dict[str, object]]] = [
    ("status", {}),
    ("agents.list", {}),
    ("why", {}),
    ("events", {"follow": True}),
]
CHANGING: list[tuple[str, dict[str, object]]] = [
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
        assert refused(answer, f"{verb} is for root"), verb
        assert answer.remedy.startswith("sudo agentwatch")


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
def test_what_an_agent_runs_may_ask_why_and_nothing_else(
    daemon: Daemon, place: Place, uid: int
) -> None:
    """Root's agents no more than others': not even to be tagged again, or to ask about others."""
    agent = asker(place, uid=uid, tagged=True)
    until(lambda: len(daemon.sessions) == 1)
    for pid in ({}, {"pid": agent.pid}):
        assert agent("why", **pid).ok
    untagged = place.process("sleep", "1000")
    tries = [
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
    tries: list[tuple[str, dict[str, object], str]] = [
        ("agents.hug", {}, "knows no 'agents.hug'"),
        ("agents.tag", {}, "needs pid"),
        ("agents.tag", {"pid": "1"}, "is text"),
        ("agents.tag", {"pid": True}, "is true or false"),
        ("agents.kill", {}, "needs which"),
        ("agents.kill", {"which": 7}, "is a number"),
        ("rules.pause", {"rule": "test.nothing", "seconds": 5}, "no rule is called"),
        ("rules.pause", {"rule": "test.key"}, "needs seconds"),
        ("why", {"pid": 4194304 * 4}, "is no agent's"),
        ("events", {"session": "nothing"}, "no session of yours"),
    ]
    with daemon.client() as client:
        for verb, args, says in tries:
            with pytest.raises(UsageError) as error:
                client.request(verb, **args)
            assert says in error.value.message, verb
            assert error.value.remedy, verb


def test_who_changed_what_is_in_the_journal(daemon: Daemon, place: Place) -> None:
    """Who was refused is there too, with uid and pid and what was asked."""
    agent = place.agent("echo started; read line")
    daemon.session(agent.pid)
    person, tagged = asker(place, uid=NOBODY), asker(place, tagged=True)
    until(lambda: len(daemon.sessions) == 2)
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


# Tagging. ----------------------------------------------------------------------------------------


def test_a_process_is_tagged_by_hand_with_all_it_started(daemon: Daemon, place: Place) -> None:
    """From then on it is a session of that agent, and its rules act on its children too."""
    script = f"sleep 1000 & echo started; read line; sh -c '{reads(place)}'; echo ended; read line"
    process = place.process("sh", "-c", script)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    tagged = daemon.ask("agents.tag", pid=process.pid, agent="stub", project=str(place.directory))
    assert tagged["processes"] == 2
    session = daemon.session(process.pid)
    assert session["session"] == tagged["session"]
    assert (session["agents"], session["project"]) == (["stub"], str(place.directory))
    (told,) = place.awaited(Session)
    assert (told.how, told.agent, told.uid) == ("tag", "stub", 0)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ended\n"
    (kill,) = place.awaited(Kill)
    assert kill.session.pid == process.pid


def test_a_person_tags_themselves(daemon: Daemon, place: Place) -> None:
    """That is the one change anybody may make, and there is no way back from it."""
    with daemon.client() as client:  # of the child: the peer is who connected
        client.request("status")

    def act() -> object:
        with daemon.client() as client:
            told = [answer_to(client, "agents.tag", {"pid": os.getpid()})]
            told += [answer_to(client, verb, {}) for verb in ("status", "agents.list", "why")]
            told += [answer_to(client, "agents.tag", {"pid": os.getpid()})]
            told += [answer_to(client, "agents.untag", {"which": str(os.getpid())})]
            seen = daemon_sees(place)
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
    (session,) = place.awaited(Session)
    assert (session.session.pid, session.uid, session.how) == (pid, NOBODY, "tag")


def daemon_sees(place: Place) -> str:
    """What a new connection of this process is answered."""
    from agentwatch.control.client import Client

    with Client.connect(place.socket) as client:
        return answer_to(client, "status", {}).error


def test_a_person_tags_nobody_else(daemon: Daemon, place: Place) -> None:
    """Not even a process of their own: it could not be asked whether it wants to."""
    person = asker(place, uid=NOBODY)
    own = place.process("sleep", "1000", uid=NOBODY)
    for pid in (own.pid, daemon.pid, os.getpid(), 1):
        assert refused(person("agents.tag", pid=pid), "agents.tag is for root")
    assert daemon.sessions == []


def dead() -> int:
    """A pid that nobody has."""
    ended = subprocess.Popen(["true"])
    ended.wait()
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
    assert agent.stdin is not None
    assert agent.stdout is not None
    assert agent.stdout.readline() == "started\n"
    session = daemon.session(agent.pid)["session"]
    daemon.tree(agent.pid, 2)
    let_go = daemon.ask("agents.untag", which=session)
    assert (let_go["sessions"], let_go["processes"]) == ([session], 2)
    assert daemon.sessions == []
    (end,) = place.awaited(SessionEnd)
    assert end.session.pid == agent.pid
    agent.stdin.write("\n")
    agent.stdin.flush()
    assert agent.stdout.readline() == "the key\n"
    assert agent.stdout.readline() == "free\n"
    assert place.frames(Kill) == []
    assert daemon.ask("agents.tag", pid=agent.pid)["processes"] == 2  # and back


# Killing, freezing. ------------------------------------------------------------------------------


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


def test_a_killed_session_ends_while_it_forks_all_the_time(daemon: Daemon, place: Place) -> None:
    """Nothing of it is left when the answer comes, and nothing comes after."""
    agent = place.agent(f"exec python3 -I -c '{STORM}'")
    assert agent.stdout is not None
    assert agent.stdout.readline() == "started\n"
    until(lambda: len(daemon.session(agent.pid)["processes"]) >= 4)
    ended = daemon.ask("agents.kill", which=str(agent.pid))
    assert ended["processes"] >= 4
    assert not any(is_there(pid) for pid in place.pids())
    until(lambda: not daemon.sessions, "the end of the session")
    assert not any(is_there(pid) for pid in place.pids())
    assert not any(daemon.status["losses"].values())


WITHOUT_CGROUP2 = 'umount -l "$1" && shift && exec "$@"'


@pytest.fixture(params=["cgroup", "signal"])
def how(request: pytest.FixtureRequest) -> str:
    """What a session is frozen by."""
    return str(request.param)


@pytest.fixture
def freezing(place: Place, how: str) -> Daemon:
    """A daemon with the kernel's freezer, or one on a host without cgroup2."""
    if how == "cgroup":
        return place.start()
    place.write(cgroup="root")
    mount = str(place.cgroup.parent)
    return place.start("unshare", "--mount", "--propagation", "private", "sh", "-c",
                       WITHOUT_CGROUP2, "sh", mount)


def test_a_frozen_session_rests_until_it_is_thawed(
    freezing: Daemon, place: Place, how: str
) -> None:
    """All of it: what it does stops, what it holds stays, and it goes on where it was."""
    script, file = counts(place)
    also, second = counts(place, "second")
    agent = place.agent(f"({also}) & {script}", uid=NOBODY)
    place["count"].touch()
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
    until(lambda: rests(file))

    thawed = freezing.ask("agents.thaw", which=session)
    assert (thawed["sessions"], thawed["how"]) == ([session], how)
    assert grows(file)
    assert grows(second)
    assert freezing.session(agent.pid)["state"] == "running"
    assert freezing.ask("agents.thaw", which=session)["how"] == ""
    assert [one.subject for one in place.awaited(Notice, 2)] == ["freeze", "thaw"]


def test_a_frozen_session_can_be_killed(freezing: Daemon, place: Place) -> None:
    """It need not be thawed for that, and does nothing more."""
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
    until(lambda: not freezing.sessions)


def test_a_storm_of_forks_is_frozen(freezing: Daemon, place: Place) -> None:
    """Nobody who is forked meanwhile gets away: the same processes are there a while later."""
    agent = place.agent(f"exec python3 -I -c '{STORM}'")
    assert agent.stdout is not None
    assert agent.stdout.readline() == "started\n"
    until(lambda: len(freezing.session(agent.pid)["processes"]) >= 4)
    freezing.ask("agents.freeze", which=str(agent.pid))
    before = {pid for pid in place.pids() if is_there(pid)}
    assert rests(place["key"])
    assert {pid for pid in place.pids() if is_there(pid)} == before
    freezing.ask("agents.kill", which=str(agent.pid))
    assert not any(is_there(pid) for pid in place.pids())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_daemon_that_is_gone_had_frozen_can_go_on(
    freezing: Daemon, place: Place, number: signal.Signals
) -> None:
    """No session stays frozen because nobody is left who knows of it: the next one thaws it."""
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


def test_whom_a_killed_daemon_had_frozen_is_told(place: Place) -> None:
    """The next one lets them go on, and the journal says whom."""
    killed = place.start()
    script, file = counts(place)
    agent = place.agent(script)
    assert grows(file)
    killed.session(agent.pid)
    killed.ask("agents.freeze", which="stub")
    killed.process.kill()
    killed.wait()
    assert rests(file)
    place.start()
    assert grows(file)
    until(lambda: thawed(place))
    assert str(agent.pid) in thawed(place)[0]


def thawed(place: Place) -> list[str]:
    return [one.text for one in place.frames(Notice) if one.subject == "thaw"]


# Pausing. ----------------------------------------------------------------------------------------


def test_a_paused_rule_does_not_act_until_it_is_resumed(daemon: Daemon, place: Place) -> None:
    """Who asked for it is in the journal, and when it ends in the answer."""
    paused = daemon.ask("rules.pause", rule="test.key", seconds=600)
    assert paused["rule"] == "test.key"
    agent = place.agent(f"cat {place['key']} && echo started; read line")
    assert agent.stdout is not None
    assert agent.stdout.readline() == "the key\n"
    assert agent.stdout.readline() == "started\n"
    assert daemon.ask("rules.pause", rule="test.key", seconds=0)["until_at"] == 0
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    said = [one.text for one in place.awaited(Notice, 2) if one.subject == "pause"]
    assert said[0].startswith("test.key is paused for 600 s, by uid 0")
    assert said[1].startswith("test.key acts again")
