"""Signals reach exactly the process that was meant, and kill storms end in a stopped session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch import actions, processes
from agentwatch.events import ProcessKey
from tests.proc import stat, state

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
SECOND = 1_000_000_000
SESSION, OTHER = ProcessKey(1, 1), ProcessKey(2, 2)


def key_of(pid: int) -> ProcessKey:
    """The process as the probes name it, but for what a tick cannot tell."""
    return ProcessKey(pid, int(stat(pid)[19]) * TICK)


def until(pid: int, wanted: str) -> bool:
    """Whether the process comes to be in this state within two seconds."""
    deadline = time.monotonic() + 2
    while state(pid) != wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    return state(pid) == wanted


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A real child that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_signal_reaches_the_process_meant(sleeper: subprocess.Popen[bytes]) -> None:
    """SIGKILL ends it, and says so."""
    assert actions.send(key_of(sleeper.pid), signal.SIGKILL) == actions.Sent(True)
    assert sleeper.wait(5) == -signal.SIGKILL


def test_the_same_pid_with_another_start_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """A reused pid is somebody else: too late, and nobody is hurt."""
    meant = key_of(sleeper.pid)
    for start in (meant.start + TICK, meant.start - TICK, 0):
        assert actions.send(ProcessKey(meant.pid, start), signal.SIGKILL) == actions.GONE
    assert actions.send(ProcessKey(meant.pid, meant.start + TICK - 1), 0).ok
    assert sleeper.poll() is None


def test_a_zombie_is_too_late() -> None:
    """It has ended, although its pid can still be signalled."""
    process = subprocess.Popen(["true"])
    assert until(process.pid, "Z")
    assert actions.send(key_of(process.pid), signal.SIGKILL) == actions.Sent(False, "too late")
    assert process.wait() == 0


LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_process_whose_first_thread_has_ended_is_no_zombie() -> None:
    """It looks like one in /proc, and its other threads go on: they are what is to be killed."""
    with subprocess.Popen([sys.executable, "-c", LEADERLESS]) as process:
        assert until(process.pid, "Z")
        assert actions.send(key_of(process.pid), signal.SIGKILL) == actions.Sent(True)
        assert process.wait(5) == -signal.SIGKILL


def test_a_pid_that_is_nobodys_is_too_late() -> None:
    """After it was reaped there is nothing to open."""
    process = subprocess.Popen(["true"])
    meant = ProcessKey(process.pid, 0)
    process.wait()
    assert actions.send(meant, signal.SIGKILL) == actions.GONE


def test_a_name_with_brackets_and_spaces_does_not_hide_the_start(tmp_path: Path) -> None:
    """/proc/PID/stat is read from the last bracket on: a program chooses its own name."""
    program = tmp_path / "x) Z 1 (y"
    program.symlink_to("/usr/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        meant = key_of(process.pid)
        assert actions.send(meant, signal.SIGKILL).ok
        assert process.wait(5) == -signal.SIGKILL


def test_the_probe_sends_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    """Signal 0 only asks whether it is there."""
    assert actions.send(key_of(sleeper.pid), actions.PROBE).ok
    assert sleeper.poll() is None


def test_stop_stops_and_end_ends_what_was_stopped() -> None:
    """Each says how many it reached; one that is gone is not counted."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    keys = [key_of(child.pid) for child in children]
    gone = ProcessKey(children[0].pid, 0)
    try:
        assert actions.stop([*keys, gone]) == 3
        assert all(until(child.pid, "T") for child in children)
        assert actions.end([*keys, gone]) == 3
    finally:
        for child in children:
            child.kill()
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 3


THAWING = """
import os, signal
os.setpgid(0, 0)
for _ in range(7):
    if not os.fork():
        break
os.write(1, b"%d\\n" % os.getpid())
while True:
    os.kill(0, signal.SIGCONT)
"""


def family(leader: subprocess.Popen[bytes], count: int) -> list[ProcessKey]:
    assert leader.stdout is not None
    return [key_of(int(leader.stdout.readline())) for _ in range(count)]


def test_processes_that_let_one_another_go_on_are_held_all_the_same() -> None:
    """Each sends SIGCONT to all of them for ever: in the end none of them runs."""
    with subprocess.Popen([sys.executable, "-c", THAWING], stdout=subprocess.PIPE) as leader:
        try:
            found = family(leader, 8)
            held = actions.hold(lambda: found)
            assert all(map(processes.held, found))
            assert held.stopped + held.killed == 8
            actions.end_all(lambda: found)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
    assert not any(map(processes.runs, found))


CHAIN = """
import os, time
for _ in range(500):
    time.sleep(0.02)
    if os.fork():
        os._exit(0)
"""


def test_what_is_started_while_all_is_stopped_is_stopped_too() -> None:
    """A chain of forks, each of which ends: whoever is the last one is found."""
    line = [sys.executable, "-c", f"import os; os.setpgid(0, 0); os.fork(){CHAIN}"]

    def find() -> list[ProcessKey]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                if os.getpgid(int(path.name)) == leader.pid:
                    found.append(key_of(int(path.name)))
        return found

    with subprocess.Popen(line) as leader:
        try:
            time.sleep(0.1)
            actions.end_all(find)
            left = [process for process in find() if processes.runs(process)]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
    assert not left


def test_held_is_what_cannot_run() -> None:
    """Stopped, or gone; not what only sleeps."""
    with subprocess.Popen(["sleep", "60"]) as process:
        key = key_of(process.pid)
        assert not processes.held(key)
        assert actions.hold(lambda: [key]) == actions.Held(1, 0)
        assert processes.held(key)
        assert processes.is_stopped(key)
        assert actions.resume([key]) == 1
        assert not processes.is_stopped(key)
        process.kill()
    assert processes.held(key)


def test_the_breaker_trips_on_the_kill_that_is_too_many() -> None:
    """Twenty within ten seconds are borne, the next one is not."""
    breaker = actions.Breaker(kills=3, within=10 * SECOND)
    assert [breaker.trips(SESSION, n) for n in range(4)] == [False, False, False, True]
    assert breaker.tripped(SESSION)


def test_the_breaker_trips_once() -> None:
    """A session is stopped once, however many kills follow."""
    breaker = actions.Breaker(kills=1, within=SECOND)
    assert [breaker.trips(SESSION, n) for n in range(5)].count(True) == 1
    assert breaker.tripped(SESSION)


def test_the_breaker_counts_each_session_by_itself() -> None:
    """Two sessions with a kill each are no storm."""
    breaker = actions.Breaker(kills=1, within=SECOND)
    assert not breaker.trips(SESSION, 1)
    assert not breaker.trips(OTHER, 2)
    assert not breaker.tripped(OTHER)
    assert breaker.trips(OTHER, 3)
    assert not breaker.tripped(SESSION)


def test_kills_that_are_far_apart_are_no_storm() -> None:
    """Only those within the window count, by the events' own time."""
    breaker = actions.Breaker(kills=2, within=SECOND)
    assert not any(breaker.trips(SESSION, n * SECOND) for n in range(50))
    assert breaker.trips(SESSION, 49 * SECOND)


def test_a_record_that_comes_late_does_not_empty_the_window() -> None:
    """Records of two CPUs are not quite in order of time."""
    breaker = actions.Breaker(kills=2, within=SECOND)
    assert not breaker.trips(SESSION, 5 * SECOND)
    assert not breaker.trips(SESSION, 5 * SECOND - 10)
    assert breaker.trips(SESSION, 5 * SECOND + 1)
