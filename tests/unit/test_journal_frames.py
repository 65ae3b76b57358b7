"""The daemon's frames before people and machines, and the queue that gives way."""

from __future__ import annotations

import msgpack
import pytest

from agentwatch.events import ProcessKey
from agentwatch.sinks import frames, lines, ocsf
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.frames import (
    Control,
    Frame,
    Gap,
    Holdings,
    Kill,
    Notice,
    Resumed,
    Retired,
    Session,
    SessionEnd,
    Verdict,
)
from agentwatch.sinks.host import Host
from agentwatch.sinks.waiting import DECISION, GivenWay, Item, Waiting, item_of
from agentwatch.testing import AGENT

HOST = Host(boot_id="boot", name="box", offset=1_700_000_000_000_000_000)
SHOWN = [
    (Session(session=AGENT, command=("claude",), how="run"), "session", "claude", "begins"),
    (
        Session(session=AGENT, command=("claude",), how="running"),
        "session",
        "claude",
        "was running",
    ),
    (SessionEnd(session=AGENT, processes=9, kills=2), "session", "9 processes, 2 killed", "ends"),
    (
        Holdings(process=AGENT, files=("/etc/a", "/b\n"), connections=("192.0.2.1:443",)),
        "holds",
        "2 files: /etc/a, /b\\n; 1 connections: 192.0.2.1:443",
        "",
    ),
    (Holdings(process=AGENT), "holds", "nothing open", ""),
    (Control(uid=0, pid=7, verb="tag", text="4242"), "control", "tag 4242", "by uid 0"),
    (
        Control(uid=1000, pid=7, verb="mode", text="not root", ok=False),
        "control",
        "mode not root",
        "refused to uid 1000",
    ),
    (
        Retired(chain="run-a", last=3, sequence=90, size=1000, reason="age"),
        "retired",
        "segments up to 3 of run-a (frame 90) are older than is kept: removed, 1000 bytes",
        "",
    ),
    (Gap(stage="journal", count=3, decisions=1), "gap", "3 records, 1 decisions lost", ""),
]


def shown(frame: Frame) -> lines.Line:
    found = lines.line(Entry(chain="daemon", host=HOST, number=1, wall=0, frame=frame))
    assert found is not None
    return found


@pytest.mark.parametrize(("frame", "kind", "what", "verdict"), SHOWN)
def test_each_frame_is_one_line_that_says_it(
    frame: Frame, kind: str, what: str, verdict: str
) -> None:
    """Kind, what it is about, and how it ended."""
    line = shown(frame)
    assert (line.kind, line.verdict) == (kind, verdict)
    assert line.what.startswith(what)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (Resumed(clean=True, sequence=7), ("frame 7", "where it was closed")),
        (Resumed(sequence=7, torn=33), ("33 bytes", "in this boot", "not written is lost")),
        (Resumed(sequence=7, rebooted=True), ("before this boot", "not synced is lost")),
        (Resumed(sequence=7, last=(1 << 63) - 1), ("frame 7",)),
    ],
)
def test_a_start_says_how_the_chain_was_found(frame: Resumed, said: tuple[str, ...]) -> None:
    """Closed, killed or cut by power loss, with what that may have cost."""
    text = shown(frame).what
    assert all(part in text for part in said), text


def test_every_new_frame_is_an_object_of_its_own() -> None:
    """In OCSF each has a message, ids instead of pairs, hashes as hex, and decodes as JSON."""
    for frame, *_ in SHOWN:
        found = ocsf.from_frame(frame, HOST, "claude-code", 5)
        assert found["message"]
        assert found["unmapped"]["agentwatch"]["frame_type"] == frames.type_name(
            frames.NUMBERS[type(frame)]
        )
        assert ocsf.dumps(found)
    retired = ocsf.from_frame(Retired(hash=b"\xff" * 32), HOST)
    assert retired["unmapped"]["agentwatch"]["hash"] == "ff" * 32
    ended = ocsf.from_frame(SessionEnd(session=AGENT), HOST)
    assert ended["unmapped"]["agentwatch"]["session"] == AGENT.id("boot")


def test_a_writer_that_died_is_a_finding_and_one_that_stopped_is_not() -> None:
    """Somebody may have killed the watcher."""
    assert ocsf.from_frame(Resumed(sequence=7), HOST)["class_uid"] == 2004
    assert ocsf.from_frame(Resumed(sequence=7, clean=True), HOST)["class_uid"] == 0


def test_a_session_of_an_older_version_has_no_beginning() -> None:
    """Fields that were added have defaults, those that were there keep their values."""
    old = msgpack.packb({"session": [4, 5], "agent": "a", "command": [], "user": "u", "uid": 1})
    found = frames.decode(frames.NUMBERS[Session], 3, old)
    assert found == Session(time=3, session=ProcessKey(4, 5), agent="a", user="u", uid=1)


def record(size: int) -> Item:
    return Item(frames.RECORDS, 1, bytes(size), records=2, rank=0)


def test_what_is_taken_comes_in_the_order_it_came() -> None:
    """Whatever its rank, while there is room for all."""
    queue = Waiting()
    items = [record(1), item_of(Notice(text="a"), 1), item_of(Kill(), 1), record(2)]
    for item in items:
        queue.append(item)
    taken = [queue.take(1 << 20) for _ in items]
    assert [item.payload for item in taken if item] == [item.payload for item in items]
    assert (len(queue), queue.bytes, queue.take(1 << 20)) == (0, 0, None)


def test_what_is_put_back_comes_first_again() -> None:
    """A write that failed changes no order."""
    queue = Waiting()
    for size in range(1, 6):
        queue.append(record(size))
    taken = [item for _ in range(3) if (item := queue.take(1 << 20)) is not None]
    queue.put_back(taken[1:])
    left = [item for _ in range(4) if (item := queue.take(1 << 20)) is not None]
    assert [len(item.payload) for item in left] == [2, 3, 4, 5]


def test_decisions_can_be_taken_by_themselves() -> None:
    """While the disk is full; the others keep their places."""
    queue = Waiting()
    for item in (record(1), item_of(Notice(), 1), item_of(Verdict(response="deny"), 1), record(2)):
        queue.append(item)
    taken = queue.take(1 << 20, DECISION)
    assert taken is not None
    assert taken.type == frames.NUMBERS[Verdict]
    assert queue.take(1 << 20, DECISION) is None
    assert len(queue) == 3


@pytest.mark.parametrize(
    ("frame", "lasts"),
    [
        (Verdict(response="kill"), True),
        (Verdict(response="deny"), True),
        (Verdict(response="alert"), False),
        (Kill(), True),
        (Gap(), True),
        (Retired(), True),
        (Session(), False),
        (Notice(), False),
        (SessionEnd(), False),
    ],
)
def test_which_frames_give_way_last(frame: Frame, lasts: bool) -> None:
    """Decisions, and what says that something is missing."""
    assert (item_of(frame, 1).rank == DECISION) is lasts


def test_the_oldest_of_the_least_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by class; what was told is not told again, what was not told is not forgotten."""
    monkeypatch.setattr("agentwatch.sinks.waiting.WAITING_MAX", 10_000)
    queue = Waiting()
    queue.append(item_of(Notice(), 1))
    for _ in range(9):
        queue.append(record(1000))
    assert queue.given_way.frames == queue.given_way.decisions == 0
    assert queue.given_way.records > 0
    gap = queue.told(5)
    assert gap.count == queue.given_way.records
    assert queue.untold == GivenWay()
    queue.untell(gap)
    assert queue.untold == queue.given_way
    queue.give_up(DECISION)
    assert len(queue) == 0
    assert queue.given_way == GivenWay(records=18, frames=1, decisions=0)
