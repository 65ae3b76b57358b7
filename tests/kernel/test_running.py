"""Agents that run already when the watching begins: none of what is theirs escapes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agentwatch.backfill import plan
from agentwatch.events import ProcessKey
from agentwatch.kernel.probes import Probes
from agentwatch.sinks.frames import Holdings, Session, SessionEnd
from tests.kernel.test_identity_sessions import Standing

pytestmark = pytest.mark.root


@pytest.fixture
def marker(place: Path) -> str:
    """An environment entry by which the test knows whose a process is, whatever became of it."""
    return f"AGENTWATCH_TEST={place.name}"


def marked(marker: str) -> set[int]:
    """Processes that have it, and have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in environment:
                found.add(int(entry.name))
    return found


@contextmanager
def agent(place: Path, marker: str, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program with the literal of Standing's identity; everything of it ends with the test."""
    program = place / "agents" / f"stub-{place.name}"
    program.parent.mkdir(exist_ok=True)
    program.write_text('#!/bin/sh\neval "$*"\n')
    program.chmod(0o755)
    name, value = marker.split("=")
    process = subprocess.Popen(
        [program, *words], env={**os.environ, name: value}, start_new_session=True
    )
    try:
        yield process
    finally:
        while left := marked(marker):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)
        process.wait()


@contextmanager
def standing(place: Path) -> Iterator[Standing]:
    made = Standing(place)
    try:
        yield made
    finally:
        made.close()


def key_of(watched: Standing, pid: int) -> ProcessKey:
    """A process as the kernel names it."""
    return next(one.process for one in watched.probes.census() if one.process.pid == pid)


@pytest.mark.parametrize("mode", ["chain", "execs", "tree"])
@pytest.mark.parametrize("turn", range(2))
def test_no_child_escapes_while_it_forks_and_executes_all_the_time(
    place: Path, programs: Path, marker: str, mode: str, turn: int
) -> None:
    """Whoever is alive when the storm has stopped has the agent's tag, and nobody else has it."""
    stop = place / "stop"
    storm = f"{programs}/storm {mode} {stop}"
    with (
        agent(place, marker, f"{storm} & {storm} & {storm} & wait; sleep 600") as process,
        ExitStack() as ending,
    ):
        ending.callback(stop.touch)  # whatever fails: nobody kills as fast as they fork
        time.sleep(0.3)
        with standing(place) as watched:
            (session,) = watched.watch.recognition.search()
            assert session.key.pid == process.pid
            stop.touch()
            settled = marked(marker)
            for _ in range(50):
                watched.watch.step()
                time.sleep(0.02)
                before, settled = settled, marked(marker)
                if before == settled:
                    break
            tagged = {one.pid for one in watched.probes.tagged(session.key)}
            assert tagged == settled
            assert len(settled) >= 4
            assert {one.session for one in watched.watch.lineage.living()} == {session.key}
            counters = watched.probes.counters()
            assert (counters.unlabelled, counters.doomed) == (0, 0)


def test_agents_that_run_are_sessions_of_their_own(place: Path, marker: str) -> None:
    """Two of them, and what each has started; the first of each tree names the session."""
    nested = f"{place}/agents/stub-{place.name} sleep 63 & wait"
    with (
        agent(place, marker, "sleep 61 & sleep 62 & wait") as one,
        agent(place, marker, nested) as other,
    ):
        deadline = time.monotonic() + 5
        while len(marked(marker)) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        with standing(place) as watched:
            begun = watched.watch.recognition.search()
            told = [f for f in watched.sink.frames if isinstance(f, Session)]
            tagged = [len(watched.probes.tagged(one.key)) for one in begun]
    assert {session.key.pid for session in begun} == {one.pid, other.pid}
    assert {(frame.agent, frame.how, frame.uid) for frame in told} == {("stub", "running", 0)}
    assert tagged == [3, 3]


def test_a_second_search_finds_nothing_new(place: Path, marker: str) -> None:
    """And tags nobody twice."""
    with agent(place, marker, "sleep 61 & wait"), standing(place) as watched:
        assert len(watched.watch.recognition.search()) == 1
        assert watched.watch.recognition.search() == []


def test_what_a_process_holds_when_it_is_tagged_is_listed(place: Path, marker: str) -> None:
    """Files with how they were opened, and connections with their peers."""
    (place / "secret").write_text("x")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    hold = f"exec 7< {place}/secret 8>> {place}/log 9<>/dev/tcp/127.0.0.1/{port}; sleep 600 & wait"
    with listener, agent(place, marker, f"exec bash -c '{hold}' {place}/agents/stub-{place.name}"):
        connection, _ = listener.accept()
        deadline = time.monotonic() + 5
        while len(marked(marker)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with connection, standing(place) as watched:
            first = key_of(watched, min(marked(marker)))
            found = watched.watch.recognition.search({first: "stub"})
            assert found
            held = [f for f in watched.sink.frames if isinstance(f, Holdings)]
    assert held
    assert f"r {place}/secret" in held[0].files
    assert f"w {place}/log" in held[0].files
    assert f"tcp 127.0.0.1:{port}" in held[0].connections


def test_a_session_that_was_found_ends_as_any_other(place: Path, marker: str) -> None:
    """With its last process, and the kernel's table has it no more."""
    os.mkfifo(place / "go")
    waiting = f"read wait < {place}/go"
    with agent(place, marker, waiting) as process, standing(place) as watched:
        (session,) = watched.watch.recognition.search()
        (place / "go").write_text("go\n")
        assert watched.until(lambda: process.poll() is not None)
        ended = watched.sink.frames
        assert watched.until(lambda: any(isinstance(f, SessionEnd) for f in ended))
        (frame,) = (f for f in ended if isinstance(f, SessionEnd))
        assert (frame.session, frame.agent, frame.processes) == (session.key, "stub", 1)
        assert watched.probes.sessions() == {}
        assert watched.watch.lineage.living() == []
        assert len(watched.watch.sessions) == 0


def test_a_pid_that_is_named_is_tagged_with_all_it_has_started(place: Path, marker: str) -> None:
    """`agents tag`: whatever its name; without an agent, the rules for all apply."""
    sleeper = ["/bin/sh", "-c", "sleep 600 & sleep 600 & wait"]
    name, value = marker.split("=")
    process = subprocess.Popen(sleeper, env={**os.environ, name: value})
    try:
        deadline = time.monotonic() + 5
        while len(marked(marker)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        with standing(place) as watched:
            (session,) = watched.watch.recognition.search(
                {key_of(watched, process.pid): ""}, "/srv/project"
            )
            assert {one.pid for one in watched.probes.tagged(session.key)} == marked(marker)
            assert (session.told.how, session.told.project) == ("tag", "/srv/project")
            assert watched.watch.lineage.agents(session.key) == ()
    finally:
        for pid in marked(marker):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def test_the_kernel_tells_every_process_and_its_parent(probes: Probes) -> None:
    """Exactly once each, with the start that records have."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        rows = [one for one in probes.census() if one.process.pid == child.pid]
        own = [one for one in probes.census() if one.process.pid == os.getpid()]
        assert len(rows) == len(own) == 1
        assert rows[0].parent == own[0].process
        assert rows[0].session is None
        assert plan(probes.census(), {}) == {}
    finally:
        child.kill()
        child.wait()
