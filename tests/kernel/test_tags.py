"""Who is tagged: those who are meant, all of them, for as long as their session lasts."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from agentwatch import abi, processes
from agentwatch.kernel.probes import Probes, Sizes
from tests.kernel.recording import Gate, Recorder, call, tell, witness

pytestmark = pytest.mark.root


def opens_null() -> None:
    os.close(os.open("/dev/null", os.O_RDONLY))


def forks_and_opens(depth: int) -> None:
    """A chain of processes, each of which opens a file."""
    opens_null()
    if depth:
        pid = os.fork()
        if pid == 0:
            forks_and_opens(depth - 1)
            os._exit(0)
        os.waitpid(pid, 0)


def test_who_is_not_tagged_leaves_no_record(recorder: Recorder) -> None:
    """Beside a tagged process, its untagged sibling and their parent produce nothing."""
    with witness(opens_null) as other:
        opens_null()
        seen = recorder.record(opens_null)
        other.go()
        other.finish()
        subprocess.run(["true"], check=True)
        opens_null()
    assert recorder.quiet() == []
    assert {record.event.session for record in recorder._records} == {seen.session}
    assert {record.event.process for record in recorder._records} == {seen.session}


def test_a_tag_is_a_process_and_its_exact_start(recorder: Recorder) -> None:
    """The key given by tag is the one in the records, and the kernel's own start time."""
    ticks = os.sysconf("SC_CLK_TCK")

    def act() -> None:
        opens_null()
        with open("/proc/self/stat") as stat:
            tell(int(stat.read().rsplit(")", 1)[1].split()[19]))

    seen = recorder.record(act)
    assert seen.session.start * ticks // 10**9 == seen.told[0]


def test_tagging_a_process_tags_every_thread_it_has(recorder: Recorder, gate: Gate) -> None:
    """Threads that ran before the tag are recorded after it."""

    def act() -> None:
        opened = threading.Event()

        def thread() -> None:
            opened.wait()
            opens_null()
            tell(threading.get_native_id())

        threads = [threading.Thread(target=thread) for _ in range(3)]
        for one in threads:
            one.start()
        tell("ready")
        gate.wait()
        opened.set()
        for one in threads:
            one.join()

    with witness(act) as child:
        child.go()
        child.hear(1)
        recorder.tag(child)
        gate.open()
        child.finish()
        seen = recorder.recording(child)
    assert sorted(event.tid for event in seen.opens) == sorted(seen.told[1:])
    assert len(seen.exits) == 1


def test_a_process_that_is_not_there_cannot_be_tagged(probes: Probes) -> None:
    """ProcessLookupError for a pid that is nobody's."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        probes.tag(pid)


def test_releasing_a_session_takes_the_tag_off_its_whole_tree(
    recorder: Recorder, gate: Gate
) -> None:
    """Parent and child are silent from then on, and so is what they fork."""

    def act() -> None:
        if os.fork() == 0:
            tell("child")
        else:
            tell("parent")
        opens_null()
        tell("before")
        gate.wait()
        forks_and_opens(1)

    with witness(act) as child:
        session = recorder.tag(child)
        child.go()
        child.hear(4)
        recorder.probes.release(session)
        gate.open()
        child.finish()
        seen = recorder.recording(child)
    assert len(seen.opens) == 2
    assert len(seen.forks) == 1
    assert seen.exits == []
    assert recorder.quiet() == []


@pytest.fixture
def starting() -> Iterator[Gate]:
    """A second gate, before the other."""
    gate = Gate()
    yield gate
    gate.close()


def mirrored(probes: Probes) -> int:
    """Entries of the mirror."""
    return probes.room()["mirror"][0]


def test_a_released_process_leaves_the_mirror_when_it_ends(recorder: Recorder) -> None:
    """No entry by pid is left that a later process with that number could be taken for."""
    before = mirrored(recorder.probes)

    def act() -> None:
        forks_and_opens(3)

    with witness(act) as child:
        session = recorder.tag(child)
        assert mirrored(recorder.probes) == before + 1
        recorder.probes.release(session)
        child.go()
        child.finish()
    assert mirrored(recorder.probes) == before


def test_the_mirror_is_empty_when_all_have_ended(recorder: Recorder) -> None:
    """Every process leaves it with its last thread."""
    before = mirrored(recorder.probes)
    recorder.record(lambda: forks_and_opens(5))
    assert mirrored(recorder.probes) == before


def test_what_a_skipped_exit_leaves_in_the_mirror_is_swept(recorder: Recorder, gate: Gate) -> None:
    """The entry of who is gone goes; that of a process that runs stays."""
    before, mirror = mirrored(recorder.probes), recorder.probes._mirror
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    with witness(gate.wait) as running:
        recorder.tag(running)
        running.go()
        tag = mirror.lookup(running.pid.to_bytes(4, "little"))
        assert tag is not None
        mirror.update(gone.to_bytes(4, "little"), tag)
        recorder.probes.sweep_mirror()
        assert mirrored(recorder.probes) == before + 1
        assert mirror.lookup(running.pid.to_bytes(4, "little")) == tag
        gate.open()
        running.finish()


def test_who_was_tagged_before_it_had_a_pid_is_put_into_the_mirror(
    recorder: Recorder, gate: Gate
) -> None:
    """A hook tags a child in the middle of its fork; where the fork probe is skipped, reconcile
    tells the mirror.
    """
    probes = recorder.probes
    with witness(gate.wait) as child:
        recorder.tag(child)
        child.go()
        before = mirrored(probes)
        probes._mirror.delete(child.pid.to_bytes(4, "little"))
        assert probes.reconcile() == []
        assert mirrored(probes) == before
        gate.open()
        child.finish()


@pytest.fixture
def cramped() -> Iterator[Recorder]:
    """Probes whose mirror holds eight processes."""
    probes = Probes(sizes=Sizes(activity=1 << 20, lifecycle=1 << 20, mirror=8))
    yield Recorder(probes)
    probes.close()


def test_a_full_mirror_loses_no_tag(cramped: Recorder) -> None:
    """More processes than it holds: counted, and each is recorded by its task storage."""
    deep = 24
    seen = cramped.record(lambda: forks_and_opens(deep))
    assert len(seen.forks) == deep
    assert len({event.process for event in seen.opens}) == deep + 1
    assert {event.process for event in seen.exits} == {event.process for event in seen.opens}
    counters = cramped.probes.counters()
    assert counters.mirror_full >= deep + 1 - 8
    assert (counters.untracked, counters.doomed) == (0, 0)


def doom(probes: Probes, pid: int) -> None:
    """What process_fork does where a child fits neither storage: that cannot be provoked here."""
    probes._object.map("doomed").update(pid.to_bytes(4, "little"), bytes(4))
    probes._set("doomed", 1)


def test_a_doomed_child_dies_at_its_first_call(cramped: Recorder) -> None:
    """It gets no further than the end of the call it is in, whatever that is."""

    def act() -> None:
        tell("before")
        opens_null()
        tell("after")

    with witness(act) as child:
        doom(cramped.probes, child.pid)
        child.go()
        assert child.finish() == signal.SIGKILL
        assert child.told == ()
    assert list(cramped.probes._object.map("doomed").keys(4)) == []


def test_reconcile_tags_what_the_fork_probe_left_out(
    recorder: Recorder, gate: Gate, starting: Gate
) -> None:
    """Children and grandchildren of a tagged process that have no tag get one; others do not."""

    def act() -> None:
        tell(os.getpid())
        starting.wait()
        if os.fork() == 0:
            tell(os.getpid())
            if os.fork() == 0:
                tell(os.getpid())
            else:
                os.wait()
        else:
            os.wait()
        tell("forked")
        gate.wait()
        opens_null()

    def waits_and_opens() -> None:
        gate.wait()
        opens_null()

    with witness(act) as child, witness(waits_and_opens) as other:
        child.go()
        other.go()
        child.hear(1)
        session = recorder.tag(child)
        starting.open()
        child.hear(4)
        for pid in child.told[1:3]:
            untag(recorder.probes, pid)  # as if their forks were skipped
        before = recorder.probes.counters().reconciled
        found = recorder.probes.reconcile()
        assert recorder.probes.counters().reconciled == before + 2
        assert {(one.process.pid, one.session) for one in found} == {
            (pid, session) for pid in child.told[1:3]
        }
        gate.open()
        child.finish()
        other.finish()
        seen = recorder.recording(child)
    assert {event.process.pid for event in seen.opens} == set(seen.told) - {"forked"}
    assert {event.session for event in seen.opens} == {session}
    assert recorder.quiet() == []


def untag(probes: Probes, pid: int) -> None:
    """Takes a process's own tag away, and leaves its session."""
    pidfd = os.pidfd_open(pid)
    probes._tags.delete(pidfd.to_bytes(4, "little"))
    probes._mirror.delete(pid.to_bytes(4, "little"))
    os.close(pidfd)


def test_a_child_older_than_the_session_is_not_reconciled(recorder: Recorder, gate: Gate) -> None:
    """What a process forked before it was tagged is nobody's."""

    def act() -> None:
        if os.fork() == 0:
            gate.wait()
            opens_null()
        else:
            tell("forked")
            os.wait()

    with witness(act) as child:
        child.go()
        child.hear(1)
        recorder.tag(child)
        assert recorder.probes.reconcile() == []
        gate.open()
        child.finish()
        assert recorder.recording(child).opens == []


def test_a_tag_of_a_session_that_is_over_does_not_count_in_the_next(
    recorder: Recorder, gate: Gate, starting: Gate
) -> None:
    """A process tagged twice: what it forked before the second time is not the second's."""

    def act() -> None:
        starting.wait()
        if os.fork() == 0:
            tell("forked")
            gate.wait()
        else:
            os.wait()
        opens_null()

    with witness(act) as child:
        child.go()
        session = recorder.tag(child)
        starting.open()
        child.hear(1)
        recorder.probes.release(session)
        assert recorder.probes.tag(child.pid) == session
        gate.open()
        child.finish()
        seen = recorder.recording(child)
    assert {event.process for event in seen.opens} == {session}


@pytest.mark.parametrize(
    ("state", "ended_by"), [(abi.SESSION_ENDING, signal.SIGKILL), (abi.SESSION_FROZEN, 0)]
)
def test_a_held_session_goes_no_further_than_its_next_call(
    recorder: Recorder, gate: Gate, state: int, ended_by: int
) -> None:
    """Every process of it, one forked meanwhile too, is stopped or killed by the probe itself."""

    def act() -> None:
        gate.wait()
        for _ in range(100):
            if os.fork() == 0:
                tell("a child")
                os._exit(0)
        tell("the parent")

    with witness(act) as child:
        child.go()
        session = recorder.tag(child)
        recorder.probes.set_state(session, state)
        gate.open()
        if state == abi.SESSION_FROZEN:
            while not all(processes.held(one) for one in recorder.probes.tagged(session)):
                time.sleep(0.01)
            assert recorder.probes.tagged(session)
            assert child.told == ()
            recorder.probes.set_state(session, abi.SESSION_CONFIRMED)
            for one in recorder.probes.tagged(session):
                with suppress(ProcessLookupError):  # one that was about to end when it was frozen
                    os.kill(one.pid, signal.SIGCONT)
        assert child.finish() == ended_by
        assert ("the parent" in child.told) == (not ended_by)
    assert recorder.probes.tagged(session) == []


def test_descendants_are_adopted_however_fast_they_fork(recorder: Recorder, gate: Gate) -> None:
    """While looking, a chain of processes that fork and exit at once is tagged by its ancestor."""

    def act() -> None:
        if os.fork() == 0:
            while not select.select([gate.fileno()], [], [], 0)[0]:
                if os.fork():
                    os._exit(0)
            tell(os.getpid())
            opens_null()
            os._exit(0)
        tell("forking")
        gate.wait()

    probes = recorder.probes
    with witness(act) as child:
        probes.look(True)
        try:
            child.go()
            child.hear(1)
            time.sleep(0.1)
            first = next(one.process for one in probes.census() if one.process.pid == child.pid)
            probes.begin(first)
            adopted = {one.process for one in probes.adopt({first: first})}
        finally:
            probes.look(False)
        gate.open()
        child.hear(2)
        child.session = first
        child.finish()
        seen = recorder.recording(child)
    assert first in adopted
    (opened,) = (event for event in seen.opens if event.process.pid == child.told[-1])
    assert opened.session == first


CLONE3 = 435


def with_pid(pid: int, act: Callable[[], None]) -> int:
    """A child of ours that has this very pid; its exit status. Raises OSError where it is taken."""
    wanted = ctypes.c_int(pid)
    # struct clone_args: exit_signal is its fifth word, set_tid and set_tid_size the ninth and tenth
    words = [0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0]
    arguments = (ctypes.c_uint64 * len(words))(*words)
    result = call(CLONE3, arguments, ctypes.sizeof(arguments))
    if result == 0:
        try:
            act()
        finally:
            os._exit(0)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return os.waitpid(result, 0)[1]


def test_who_gets_the_pid_of_a_tagged_process_is_nobodys(recorder: Recorder) -> None:
    """The tag was of the process, and went with it: not of its number."""
    seen = recorder.record(opens_null)
    assert with_pid(seen.session.pid, lambda: forks_and_opens(1)) == 0
    assert recorder.quiet() == []
    with witness(opens_null) as other:
        session = recorder.tag(other)
        other.go()
        other.finish()
        recorder.recording(other)
        assert session.pid != seen.session.pid
        assert with_pid(session.pid, opens_null) == 0
        assert [r.event for r in recorder.quiet() if r.event.process.pid == session.pid] == []


def test_a_tag_in_the_mirror_alone_counts(recorder: Recorder) -> None:
    """A process whose task storage could not be had is recorded, and so is what it forks."""
    with witness(lambda: forks_and_opens(0)) as first, witness(lambda: forks_and_opens(1)) as child:
        session = recorder.tag(first)
        mirror = recorder.probes._object.map("mirror")
        found = recorder.probes.session(session)
        assert found is not None
        tag = abi.session_key(session) + found.since.to_bytes(8, "little")
        mirror.update(child.pid.to_bytes(4, "little"), tag.ljust(64, b"\0"))
        recorder.probes._set("untracked", 1)  # as the probes do when storage cannot be had
        child.go()
        child.finish()
        first.go()
        first.finish()
        seen = recorder.recording(first)
        recorder.probes._set("untracked", 0)
    assert len(seen.opens) == 3
    assert len(seen.forks) == 1
    assert seen.forks[0].process.pid == child.pid
    assert len(seen.exits) == 3
