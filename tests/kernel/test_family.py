"""Tags go to every descendant, however it is made, and every process begins and ends once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from agentwatch.kernel.probes import Probes
from tests.kernel.recording import Recorder, Recording

pytestmark = pytest.mark.root

# How each process of programs/family.c ends, as a shell would show it.
ENDS = {"fork": 2, "vfork": 3, "clone": 4, "sibling": 4, "daemon": 128 + signal.SIGKILL}


@pytest.fixture(scope="module")
def family(probes: Probes, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """One run of programs/family.c."""
    place = tmp_path_factory.mktemp("family")

    def act() -> None:
        os.chdir(place)
        os.execv(programs / "family", ["family"])

    return Recorder(probes).record(act)


def pids(family: Recording) -> dict[str, int]:
    return {told["how"]: told["pid"] for told in family.told}


def test_every_way_to_make_a_process_keeps_the_tag(family: Recording) -> None:
    """fork, vfork, clone, CLONE_PARENT, double fork with setsid and a thread each opened a file."""
    assert set(pids(family)) == {*ENDS, "itself", "thread"}
    opened = {(event.asked, event.process.pid, event.tid) for event in family.opens}
    assert opened == {(told["how"], told["pid"], told["thread"]) for told in family.told}


def test_every_process_has_exactly_one_fork(family: Recording) -> None:
    """Each child is announced once, by a process of the session; threads are not processes."""
    children = Counter(event.child for event in family.forks)
    assert set(children.values()) == {1}
    begun = {family.session} | set(children)
    assert {record.event.process for record in family.records} <= begun
    assert {pids(family)[how] for how in ENDS} < {child.pid for child in children}
    assert len(children) == len(ENDS) + 1  # and the one between us and the daemon


def test_a_fork_comes_before_what_the_child_does(family: Recording) -> None:
    """In time, so that whoever reads in order knows a process before it acts."""
    born = {event.child: event.time for event in family.forks}
    for record in family.records:
        assert born.get(record.event.process, 0) < record.event.time


def test_every_process_has_exactly_one_exit_with_its_status(family: Recording) -> None:
    """Codes and signals as wait gives them; a thread's end is not its process's."""
    ends = {event.process.pid: event.code for event in family.exits}
    assert len(ends) == len(family.exits) == len(family.forks) + 1
    assert {how: ends[pids(family)[how]] for how in ENDS} == ENDS
    assert ends[family.session.pid] == os.waitstatus_to_exitcode(family.status) == 6


def test_an_exit_comes_after_what_the_process_did(family: Recording) -> None:
    """The last record of a process is its exit."""
    ended = {event.process: event.time for event in family.exits}
    for record in family.records:
        assert record.event.time <= ended[record.event.process]


def test_the_forker_of_a_sibling_is_who_called_clone(family: Recording) -> None:
    """CLONE_PARENT gives the child another parent, and no other session."""
    (fork,) = [event for event in family.forks if event.child.pid == pids(family)["sibling"]]
    assert fork.process == family.session


def test_a_process_outlives_its_leader(recorder: Recorder, programs: Path, place: Path) -> None:
    """The first thread ends, another opens a file after that: recorded, and one exit in the end."""

    def act() -> None:
        os.chdir(place)
        os.execv(programs / "leader", ["leader", "goes"])

    seen = recorder.record(act)
    event = seen.opened("late")
    assert event.path == str(place / "late")
    assert (event.process, event.tid) == (seen.session, seen.told[0]["thread"])
    assert event.tid != event.process.pid
    assert [(end.process, end.status) for end in seen.exits] == [(seen.session, seen.status)]
    assert seen.exits[0].time > event.time


def test_a_storm_of_forks_loses_nobody(recorder: Recorder) -> None:
    """300 children, each with a fork, an open and an exit."""
    count = 300

    def act() -> None:
        for number in range(count):
            if os.fork() == 0:
                os.open("/dev/null", os.O_RDONLY)
                os._exit(number % 7)
            if number % 20 == 19:
                for _ in range(20):
                    os.wait()

    seen = recorder.record(act)
    children = {event.child for event in seen.forks}
    assert len(seen.forks) == len(children) == count
    assert {event.process for event in seen.opens} == children
    assert Counter(event.code for event in seen.exits if event.process in children) == Counter(
        number % 7 for number in range(count)
    )
