"""Calls through the 32-bit entry are seen like any others."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Connect, Exec, Open
from tests.kernel.recording import Recorder, Recording

pytestmark = pytest.mark.root


@pytest.fixture
def nobody() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture(params=["compat", "int80"])
def seen(
    request: pytest.FixtureRequest, recorder: Recorder, programs: Path, place: Path, nobody: int
) -> Recording:
    """What a 32-bit program did, and a 64-bit one that enters as if it were one."""

    def act() -> None:
        os.chdir(place)
        os.execv(programs / request.param, [request.param, str(nobody)])

    return recorder.record(act)


def told(seen: Recording, *calls: str) -> list[int]:
    return [one["result"] for one in seen.told if one["call"] in calls]


def test_opens_are_recorded_with_name_path_and_result(seen: Recording, place: Path) -> None:
    """creat, open, openat and openat2, in order, and a failed one."""
    results = told(seen, "creat", "open", "openat", "absent", "openat2")
    assert min(results[:3]) > 2
    assert results[3] == -errno.ENOENT
    assert [event.result for event in seen.opens] == results
    assert [event.asked for event in seen.opens] == ["one", "one", "two", "absent", "two"]
    one, two = str(place / "one"), str(place / "two")
    assert [event.path for event in seen.opens] == [one, one, two, "", two]
    assert [(event.changes, event.created) for event in seen.opens[:3]] == [
        (True, True),
        (False, False),
        (True, True),
    ]


def test_connects_are_recorded_by_either_call(seen: Recording, nobody: int) -> None:
    """socketcall and connect; the TCP one has its syn from the kernel's socket."""
    assert told(seen, "socketcall", "connect") == [-errno.ECONNREFUSED, 0]
    assert [(event.addr, event.port, event.protocol, event.result) for event in seen.connects] == [
        ("127.0.0.1", nobody, "tcp", -errno.ECONNREFUSED),
        ("127.0.0.1", nobody, "udp", 0),
    ]
    assert [(event.addr, event.port) for event in seen.syns] == [("127.0.0.1", nobody)]


def test_records_say_by_which_entry(seen: Recording) -> None:
    """Each open and connect carries the 32-bit flag; the exec, made by a 64-bit one, does not."""
    for record in seen.records:
        if isinstance(record.event, Open) or (
            isinstance(record.event, Connect) and not record.event.syn
        ):
            assert record.flags & abi.FLAG_COMPAT, record
        elif isinstance(record.event, Exec):
            assert not record.flags & abi.FLAG_COMPAT


def test_the_exec_is_recorded_and_nothing_twice(
    seen: Recording, programs: Path, nobody: int
) -> None:
    """One exec, one exit, and no call more than the program told of."""
    (event,) = seen.execs
    assert event.path.startswith(str(programs))
    assert event.argv[1:] == (str(nobody),)
    assert [end.status for end in seen.exits] == [0]
    assert len(seen.opens) + len(seen.connects) + len(seen.changes) == len(seen.told)
