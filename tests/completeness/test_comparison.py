"""The measuring stick itself: what strace writes is read right, and a difference is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentwatch.events import Change, Connect, Event, Exec, Open, ProcessKey
from tests.completeness.comparison import compare
from tests.completeness.strace import Call, calls

pytestmark = pytest.mark.completeness

WRITTEN = r"""
7 execve("\x61", ["\x61", "\x0a\x22"], []) = 0
7 openat(-100<\x2f\x77>, "\x66", 0x80002, 0600 <unfinished ...>
8 --- SIGCHLD {si_signo=17, si_code=0x1} ---
8 creat("\x67", 0600) = -1 EACCES (Permission denied)
7 <... openat resumed>)             = 3<\x2f\x77\x2f\x66>(deleted)
7 open("\x68", 0) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)
7 open("\x2f\x6e", 0x2) = 4<\x2f\x6e<char 1:3>>
7 connect(5<TCP:[12]>, {sa_family=0x2, sin_port="\x00\x50", sin_addr="\x7f\x00\x00\x01"}, 16) = 0
7 connect(5<UNIX-STREAM:[1]>, {sa_family=0x1, sun_path=@"\x78\x00"}, 5) = -1 EINVAL (Invalid)
9 execve("\x62", ["\x62"], [] <pid changed to 7 ...>
7 +++ superseded by execve in pid 9 +++
7 <... execve resumed>)             = 0
7 renameat2(-100<\x2f\x77>, "\x61", 3<\x2f\x77>, "\x62", 0) = 0
7 symlink("\x74", "\x6c")           = -1 EEXIST (File exists)
7 unlinkat(3<\x2f\x77>, "\x64", 0x200) = 0
7 fchmod(4<\x2f\x66>, 0600)           = 0
7 open("\x69", 0 <unfinished ...>) = ?
7 +++ killed by SIGKILL +++
"""
KEY = ProcessKey(7, 1)


def told() -> list[Call]:
    return list(calls(WRITTEN.strip().splitlines()))


def event(kind: type[Event], tid: int = 7, **fields: Any) -> Event:
    return kind(time=1, process=KEY, session=KEY, tid=tid, **fields)


def seen() -> list[Event]:
    local: dict[str, Any] = {"family": 2, "addr": "127.0.0.1", "port": 80, "protocol": "tcp"}
    return [
        event(Exec, path="/w/a", asked="a", argv=("a", '\n"'), argc=2),
        event(Open, path="/w/f", asked="f", flags=0o2000002, result=3, deleted=True),
        event(Open, 8, path="", asked="g", flags=0o1101, result=-13),
        event(Open, path="", asked="h", result=-512),
        event(Open, path="/n", asked="/n", flags=2, result=4),
        event(Connect, syn=True, **local),
        event(Connect, **local),
        event(Connect, family=1, unix="@x\0", protocol="unix", result=-22),
        event(Exec, path="/w/b", asked="b", argv=("b",), argc=1),
        event(Change, op="rename", path="/w/a", new_path="/w/b", asked="a", new_asked="b"),
        event(Change, op="symlink", path="", asked="l", new_asked="t", result=-17),
        event(Change, op="rmdir", path="/w/d", asked="d"),
        event(Change, op="chmod", path="/f"),
        event(Open, path="", asked="i", result=-4096),
    ]


def ways(events: list[Event]) -> list[tuple[str, str]]:
    return sorted((d.kind, d.what) for d in compare(told(), events).differences)


def test_a_file_of_strace_is_read_as_what_happened() -> None:
    """Unfinished, resumed, restarted and killed calls, and an exec from another thread."""
    read = told()
    assert [(c.tid, c.name, c.result) for c in read] == [
        (7, "execve", 0),
        (8, "creat", -13),
        (7, "openat", 3),
        (7, "open", -512),
        (7, "open", 4),
        (7, "connect", 0),
        (7, "connect", -22),
        (7, "execve", 0),
        (7, "renameat2", 0),
        (7, "symlink", -17),
        (7, "unlinkat", 0),
        (7, "fchmod", 0),
        (7, "open", None),
    ]
    assert (read[2].path, read[2].deleted, read[2].flags) == (b"/w/f", True, 0x80002)
    assert (read[6].addr, read[6].cwd) == (b"\0x\0", b"/w")


@pytest.mark.parametrize("line", ["no line", '7 openat("\\x61") 3', '7 open("\\x61", 0) = three'])
def test_a_line_that_cannot_be_read_is_an_error(line: str) -> None:
    """Nothing that strace says is passed over."""
    with pytest.raises(ValueError, match="not a"):
        list(calls([line]))


def test_a_call_without_an_end_is_an_error() -> None:
    """A file that ends in the middle of a call was cut."""
    with pytest.raises(ValueError, match="without an end"):
        list(calls(['7 open("\\x61", 0 <unfinished ...>']))


def test_the_same_told_twice_is_no_difference() -> None:
    """The events that these lines stand for."""
    assert ways(seen()) == []


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 6, 7, 8, 9])
def test_an_event_that_is_not_there_is_missing(number: int) -> None:
    """Whichever it is."""
    events = seen()
    del events[number]
    assert "missing" in {what for _, what in ways(events)}


def test_an_event_nobody_saw_is_invented() -> None:
    """A second of what happened once, and one of a thread that strace does not know."""
    assert ways([*seen(), seen()[1]]) == [("open", "invented")]
    assert ways([*seen(), event(Open, 99, path="/x", result=3)]) == [("open", "invented")]


def test_a_first_packet_without_a_connect_is_invented() -> None:
    """To an address that nobody connected to."""
    syn = event(Connect, syn=True, family=2, addr="192.0.2.1", port=80)
    assert ways([*seen(), syn]) == [("connect", "invented")]


@pytest.mark.parametrize(("result", "rings"), [(r"4<\x61\x3a\x5b>", 1), ("-1 EPERM (Not)", 0)])
def test_a_ring_is_counted_and_no_difference(result: str, rings: int) -> None:
    """What goes through one is seen by nobody, so that one was made must be told."""
    setup = rf"7 io_uring_setup(64, {{flags=0x2, sq_off={{head=0, tail=4}}}}) = {result}"
    outcome = compare([*told(), *calls([setup])], seen())
    assert (outcome.rings, outcome.differences) == (rings, [])


def test_threads_are_those_with_calls() -> None:
    """Of either side; a ring is not such a call."""
    ring = Call(tid=5, name="io_uring_setup", result=3)
    events = [*seen(), event(Open, 99, path="/x", result=3)]
    assert compare([*told(), ring], events).threads == 3


def test_events_in_another_order_are_disordered() -> None:
    """Of one thread; between threads there is no order."""
    events = seen()
    events[1], events[4] = events[4], events[1]
    assert {what for _, what in ways(events)} == {"disordered"}
    events = seen()
    events[1], events[2] = events[2], events[1]
    assert ways(events) == []


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (0, {"argv": ("a", "b")}),
        (0, {"argc": 3}),
        (1, {"path": "/w/g"}),
        (1, {"flags": 2}),
        (1, {"deleted": False}),
        (1, {"unresolved": frozenset({"path"})}),
        (6, {"protocol": "udp"}),
        (7, {"unix": "@x"}),
    ],
)
def test_an_event_that_says_something_else_differs(number: int, fields: dict[str, Any]) -> None:
    """Details are compared, not only that there was a call."""
    events = seen()
    events[number] = replace(events[number], **fields)
    assert {what for _, what in ways(events)} == {"differs"}
