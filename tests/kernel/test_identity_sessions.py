"""Sessions that begin with a name: confirmed by the whole glob, or taken away without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agentwatch import abi, watch
from agentwatch.admission import load
from agentwatch.compiling import compile_for
from agentwatch.engine import Engine, Verdict
from agentwatch.events import Event, Exec, Open, ProcessKey
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Actor
from agentwatch.mounts import Mounts
from agentwatch.policy.levels import Host
from agentwatch.processes import runs
from agentwatch.sinks.frames import Frame, Gap, Notice, Session
from agentwatch.sinks.frames import Verdict as Told
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.watch import Watch

pytestmark = pytest.mark.root

RULES = """\
schema: agentwatch/v1
agents:
  - {{id: stub, title: A stub, exec: ["**/agents/{literal}"]}}
rules:
  - id: test.key
    title: The key
    on: read
    agents: [stub]
    match: {{path: "{place}/key"}}
    action: kill
    because: It is the key.
    tests: [{{hit: {{path: "{place}/key"}}}}]
  - id: test.bomb
    title: The bomb
    on: read
    agents: [stub]
    match: {{path: "{place}/bomb"}}
    action: kill
    scope: session
    because: Nothing of it is to go on.
    tests: [{{hit: {{path: "{place}/bomb"}}}}]
  - id: test.started
    title: Who starts an agent
    on: exec
    match: {{starts_agent: true, ancestor.exe: "{place}/starter"}}
    action: alert
    because: An installer starts no agents.
    tests: [{{miss: {{path: /bin/true}}}}]
"""


class Remembering:
    """A sink of a watch that keeps everything."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, Actor]] = []
        self.frames: list[Frame] = []

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        self.events.append((event, actor))

    def frame(self, frame: Frame) -> None:
        self.frames.append(frame)


class Standing:
    """A watch over every process of the machine, as a daemon has it, turned by the test."""

    def __init__(self, place: Path) -> None:
        self.place, self.literal = place, f"stub-{place.name}"
        (place / "key").write_text("the key\n")
        (place / "rules.yaml").write_text(RULES.format(place=place, literal=self.literal))
        self.probes = Probes(identify=True)
        self.journal = Journal.open(place / "journal", boot_id="boot", mounts=Mounts.read())
        self.sink = Remembering()
        engine = Engine(load([place / "rules.yaml"]), generation=1)
        host, mounts = Host(), Mounts.read()
        self.watch = Watch(
            self.probes, engine, self.journal, host=host, mounts=mounts, sinks=[self.sink]
        )

    def takes(self, generation: int) -> None:
        """The same rules as another policy, in the kernel as well."""
        engine = Engine(self.watch.engine.ruleset, generation=generation)
        compile_for(engine, Host(), self.watch.engine, room=self.probes.policy_room)
        self.watch.take(engine)

    def program(self, *parts: str) -> Path:
        """A shell script of that name which does what its arguments say."""
        path = self.place.joinpath(*parts)
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\neval "$*"\n')
        path.chmod(0o755)
        return path

    def until(self, claim: Callable[[], object], seconds: float = 5) -> bool:
        deadline = time.monotonic() + seconds
        while not claim():
            if time.monotonic() > deadline:
                return False
            self.watch.step()
            time.sleep(0.005)
        return True

    def follow(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a command from here, which is nobody's session, and sees it through."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.until(lambda: process.poll() is not None)
        self.until(lambda: False, 0.2)
        out, _ = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out)

    @property
    def paths(self) -> list[str]:
        """What was executed and opened in confirmed sessions, as sinks were told."""
        events = [event for event, _ in self.sink.events]
        return [event.path for event in events if isinstance(event, Exec | Open)]

    def close(self) -> None:
        self.watch.close()
        self.probes.close()
        self.journal.close()


@pytest.fixture
def standing(place: Path) -> Iterator[Standing]:
    """Probes that look at every exec of the machine for one literal that only this test has."""
    made = Standing(place)
    yield made
    made.close()


def test_a_process_that_executes_an_agent_becomes_a_session(standing: Standing) -> None:
    """Nobody wrapped it: its exec is the first event, and children inherit."""
    agent = standing.program("agents", standing.literal)
    assert standing.follow(agent, "/bin/true", ";", "true").returncode == 0
    (added,) = (frame for frame in standing.sink.frames if isinstance(frame, Session))
    assert (added.agent, added.how, added.uid) == ("stub", "identity", os.getuid())
    assert added.command[1:3] == (str(agent), "/bin/true")
    assert added.project == str(Path.cwd())
    events = standing.sink.events
    assert isinstance(events[0][0], Exec)
    assert events[0][0].script == str(agent)
    assert {event.session for event, _ in events} == {added.session}
    assert {actor.agents for _, actor in events[1:]} == {("stub",)}
    assert any(path.endswith("/true") for path in standing.paths)


def test_rules_may_ask_who_started_the_agent(standing: Standing) -> None:
    """The exec that begins a session is judged, with the ancestors it has: nobody watched those."""
    agent = standing.program("agents", standing.literal)
    starter = standing.place / "starter"
    shutil.copy("/bin/sh", starter)
    line = f"{agent} sleep 0.3; true"
    assert standing.follow("sh", "-c", line).returncode == 0
    assert not [frame for frame in standing.sink.frames if isinstance(frame, Told)]
    assert standing.follow(starter, "-c", f"sh -c '{line}'; true").returncode == 0
    (told,) = (frame for frame in standing.sink.frames if isinstance(frame, Told))
    assert (told.rule, told.agent) == ("test.started", "stub")


def test_rules_apply_to_a_session_that_began_by_name(standing: Standing) -> None:
    """A child that reads the key is killed; the agent goes on."""
    agent = standing.program("agents", standing.literal)
    fifo = standing.place / "never"
    os.mkfifo(fifo)
    hold = f"sh -c 'exec 3< {standing.place}/key; : < {fifo}'; echo $?"
    assert standing.follow(agent, hold).stdout == "137\n"
    (told,) = (frame for frame in standing.sink.frames if isinstance(frame, Told))
    assert (told.rule, told.agent, told.outcome) == ("test.key", "stub", "killed")


def test_a_kill_of_the_whole_session_ends_all_of_it(standing: Standing) -> None:
    """Whoever reads the bomb, its parent and its siblings die of it; others do not."""
    (standing.place / "bomb").write_text("tick\n")
    agent = standing.program("agents", standing.literal)
    beside = subprocess.Popen(["sleep", "30"])
    try:
        read = f"sleep 31 & sh -c 'cat {standing.place}/bomb; sleep 32' & wait; echo survived"
        done = standing.follow(agent, read)
        assert (done.returncode, done.stdout.replace("tick\n", "")) == (-signal.SIGKILL, "")
        (told,) = (frame for frame in standing.sink.frames if isinstance(frame, Told))
        assert told.rule == "test.bomb"
        assert standing.probes.tagged(told.session) == []
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()


class Failing(Remembering):
    """Cannot bear one program."""

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        if isinstance(event, Exec) and event.argv == ("/bin/true", "--token=[redacted]"):
            raise ValueError("not this one")
        super().event(event, actor, verdict)


def test_a_record_that_cannot_be_handled_is_a_loss_and_not_the_end(standing: Standing) -> None:
    """It is counted, told and journaled with its secrets redacted; what follows is judged."""
    standing.watch.sinks = (*standing.watch.sinks, Failing())
    agent = standing.program("agents", standing.literal)
    fifo = standing.place / "never"
    os.mkfifo(fifo)
    hold = f"sh -c 'exec 3< {standing.place}/key; : < {fifo}'; echo $?"
    done = standing.follow(agent, "/bin/true --token=hush; /bin/true again;", hold)
    assert done.stdout == "137\n"
    assert standing.watch.losses.counts["record"] == 1
    told = standing.sink.frames
    assert [f.count for f in told if isinstance(f, Gap)] == [1]
    (notice,) = (f for f in told if isinstance(f, Notice))
    assert "ValueError: not this one" in notice.text
    standing.journal.flush()
    found = [e.event for e in read(standing.place / "journal") if isinstance(e.event, Exec)]
    tokens = [token for event in found for token in event.argv]
    assert "again" in tokens
    assert "--token=[redacted]" in tokens
    assert not any(token == "--token=hush" for token in tokens)


def test_everything_ends_without_the_rings(standing: Standing) -> None:
    """Also what nobody has read the fork of: the kernel's table knows it."""
    agent = standing.program("agents", standing.literal)
    process = subprocess.Popen([agent, "sleep 31 & sleep 32 & wait"], start_new_session=True)
    try:
        assert standing.until(lambda: standing.watch.lineage.living())
        time.sleep(0.3)  # forks that are not read
        (session,) = {one.session for one in standing.watch.lineage.living()}
        alive = standing.probes.tagged(session)
        assert len(alive) == 3
        assert standing.probes.tagged(ProcessKey(1, 1)) == []
        standing.watch.sessions.end(session)
        assert process.wait(5) == -signal.SIGKILL
        assert not [one for one in alive if runs(one)]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_only_shares_the_literal_leaves_nothing(standing: Standing) -> None:
    """Not in the journal and with no sink: neither the process nor its children, nor a kill."""
    other = standing.program(standing.literal, "ordinary")
    key = standing.place / "key"
    done = standing.follow(other, f"cat {key}; sh -c 'cat {key}; sleep 0.1'; sleep 0.1; cat {key}")
    assert (done.returncode, done.stdout) == (0, "the key\n" * 3)
    assert standing.sink.events == []
    assert not [f for f in standing.sink.frames if isinstance(f, Session | Told)]
    standing.journal.flush()
    entries = list(read(standing.place / "journal"))
    assert not [e for e in entries if e.event is not None]
    assert not standing.watch.lineage.living()


@pytest.mark.parametrize("turn", range(5))
def test_an_agent_right_after_what_only_looked_like_one_is_watched(
    standing: Standing, turn: int
) -> None:
    """One process runs both, a moment apart: the first is nobody's, the second is a session."""
    agent = standing.program("agents", standing.literal)
    other = standing.program(standing.literal, "ordinary")
    fifo = standing.place / "never"
    os.mkfifo(fifo)
    hold = f"sh -c 'exec 3< {standing.place}/key; : < {fifo}'; echo \\$?"
    spin = f"i=0; while [ $i -lt {turn * 300} ]; do i=$((i+1)); done"
    done = standing.follow(other, f'{spin}; exec {agent} "{hold}"')
    assert done.stdout == "137\n"
    (session,) = (frame for frame in standing.sink.frames if isinstance(frame, Session))
    assert session.agent == "stub"


def test_what_an_agent_forked_before_it_was_known_is_of_its_session(standing: Standing) -> None:
    """It was started by what only looked like one, and forks at once."""
    agent = standing.program("agents", standing.literal)
    other = standing.program(standing.literal, "ordinary")
    fifo = standing.place / "never"
    os.mkfifo(fifo)
    child = f"sh -c 'exec 3< {standing.place}/key; : < {fifo}'; echo $?"
    done = standing.follow(other, f"{agent} '({child.replace(chr(39), chr(34))}) & wait'; true")
    assert done.stdout == "137\n"


def test_a_rejected_session_is_untagged_in_the_kernel(standing: Standing) -> None:
    """Its processes go on without producing records."""
    other = standing.program(standing.literal, "ordinary")
    process = subprocess.Popen([other, "sleep 30"], start_new_session=True)
    try:
        assert standing.until(lambda: standing.probes.counters().emitted[abi.EXEC])
        standing.until(lambda: False, 0.2)
        assert standing.probes.room()["sessions"][0] == 0
        before = sum(standing.probes.counters().emitted.values())
        standing.until(lambda: False, 0.2)
        assert sum(standing.probes.counters().emitted.values()) == before
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_agent_started_by_what_shares_the_literal_is_found(standing: Standing) -> None:
    """In a directory of that name everything is a candidate; the agent in it still is one."""
    wrapper = standing.program(standing.literal, "wrapper")
    agent = standing.program("agents", standing.literal)
    fifo = standing.place / "never"
    os.mkfifo(fifo)
    hold = f"sleep 0.2; exec 3< {standing.place}/key; : < {fifo}"
    process = subprocess.Popen(
        [wrapper, f"cd {wrapper.parent}; {agent} '{hold}'; echo $?"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert standing.until(lambda: process.poll() is not None), "it was not stopped"
    out, _ = process.communicate()
    assert out == "137\n"
    assert [f.agent for f in standing.sink.frames if isinstance(f, Session)] == ["stub"]


# Policies that replace each other while agents work.


def test_what_is_not_known_in_time_is_said_and_counted(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy comes into force all the same; one with time enough says nothing."""
    agent = standing.program("agents", standing.literal)
    with subprocess.Popen([agent, "read line"], stdin=subprocess.PIPE) as process:
        assert standing.until(lambda: len(standing.watch.sessions))
        standing.takes(2)
        assert standing.watch.unsettled == 0
        monkeypatch.setattr(watch, "SETTLE", 0)
        standing.takes(3)
        assert standing.watch.unsettled == 1
        assert standing.watch.force.problem == ""
        (said,) = [one for one in standing.sink.frames if isinstance(one, Notice)]
        assert (said.subject, "not all known" in said.text) == ("policy", True)
        process.communicate(b"\n")


def test_marks_of_programs_that_have_ended_are_given_back(standing: Standing) -> None:
    """And those of what runs are there: used and room are known of the table."""
    agent = standing.program("agents", standing.literal)
    with subprocess.Popen([agent, "read line"], stdin=subprocess.PIPE) as process:
        assert standing.until(lambda: len(standing.watch.sessions))
        standing.takes(2)
        assert standing.probes.room()["marks"][0] == 1
        for generation in (3, 4):
            standing.follow("/bin/true")
            standing.takes(generation)
        assert standing.probes.room()["marks"] == (1, 65536)
        process.communicate(b"\n")
    assert standing.until(lambda: standing.probes.room()["marks"][0] == 0)


def test_the_kernel_and_the_engine_are_compared(standing: Standing) -> None:
    """A kill that both want is none of the disagreements; one that the engine does not is."""
    agent = standing.program("agents", standing.literal)
    standing.takes(2)
    told = standing.watch.force
    for disagreements in (0, 1):
        command = [str(agent), f"read line; cat < {standing.place}/key"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert standing.until(lambda: len(standing.watch.sessions))
            process.communicate(b"\n")
        assert process.returncode == -signal.SIGKILL
        assert standing.until(lambda: not len(standing.watch.sessions))
        assert told.disagreements == disagreements
        # An engine that has other rules by the same number.
        standing.watch.engine = Engine(
            replace(standing.watch.engine.ruleset, rules=()), generation=2
        )
    verdicts = [one for one in standing.sink.frames if isinstance(one, Told)]
    assert [(one.by, one.rule, one.outcome) for one in verdicts] == [
        ("kernel", "test.key", "killed")
    ] * 2
