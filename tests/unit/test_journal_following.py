"""Frames that the writer passes on, made entries of by somebody who listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.errors import JournalError
from agentwatch.events import Open, ProcessKey
from agentwatch.mounts import Mounts
from agentwatch.sinks import frames
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.following import Following
from agentwatch.sinks.frames import EventRef, Kill, MountsChanged, Session, Verdict
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.testing import AGENT, Records

Passed = list[tuple[int, int, bytes, int]]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    mounts = Mounts.from_rows(((7, ((b"", b"/home"),)), (0, ((b"", b""),))))
    return Journal.open(tmp_path / "j", boot_id="boot", host="box", name="daemon", mounts=mounts)


def tapped(journal: Journal) -> Passed:
    """What the journal is given from now on."""
    passed: Passed = []
    journal.tap = lambda *frame: passed.append(frame)
    return passed


def following(journal: Journal) -> Following:
    """A subscriber that has had its header."""
    found = Following("daemon")
    header = journal.header()
    number = frames.NUMBERS[type(header)]
    assert list(found.feed(number, header.time, frames.encode(header))) == []
    return found


def entries(found: Following, passed: Passed) -> list[Entry]:
    return [
        entry for type_, time, payload, _ in passed for entry in found.feed(type_, time, payload)
    ]


def test_a_follower_is_told_exactly_what_is_journaled(journal: Journal, tmp_path: Path) -> None:
    """Events and frames, agents and programs, are those that a reader finds afterwards."""
    passed, listener = tapped(journal), following(journal)
    child, make = ProcessKey(5000, 5), Records()
    journal.write(Session(time=1, session=AGENT, agent="claude-code"))
    batch = [
        make.exec("/usr/bin/node", ("node", "claude")),
        make.fork(child),
        make.open("/a", process=child),
    ]
    journal.records(b"".join(batch), len(batch))
    journal.write(Verdict(time=2, event=EventRef(1, 0, 1), session=AGENT, response="kill"))
    journal.write(Kill(time=3, process=AGENT, outcome="killed"))
    journal.close()
    assert sum(records for *_, records in passed) == 3
    live = entries(listener, passed)
    written = list(read(tmp_path / "j"))
    assert {e.event: (e.agent, e.image, e.wall) for e in live if e.event} == {
        e.event: (e.agent, e.image, e.wall) for e in written if e.event
    }
    assert sorted(map(str, (e.frame for e in live if e.frame))) == sorted(
        map(str, (e.frame for e in written if e.frame))
    )
    image = next(e.image for e in live if isinstance(e.event, Open))
    assert image is not None
    assert image.exe == "/usr/bin/node"


def test_an_entry_comes_out_as_its_frame_goes_in(journal: Journal) -> None:
    """Nothing is held back to see what comes next."""
    passed, listener = tapped(journal), following(journal)
    journal.write(Verdict(time=2, event=EventRef(1, 0, 1), session=AGENT, agent="a", rule="r"))
    (entry,) = entries(listener, passed)
    assert isinstance(entry.frame, Verdict)
    assert (entry.attached, entry.agent, entry.chain, entry.number) == (False, "a", "daemon", 2)
    passed.clear()
    journal.records(Records().open("/a"), 1)
    (entry,) = entries(listener, passed)
    assert isinstance(entry.event, Open)
    journal.close()


def test_the_header_names_what_is_mounted_now(journal: Journal) -> None:
    """Who subscribes later gets the table in force, who listens already the change."""
    passed, early = tapped(journal), following(journal)
    make = Records()
    journal.records(make.open("/x", dev=7), 1)
    journal.write(MountsChanged(rows=((7, ((b"", b"/srv"),)),)))
    late, so_far = following(journal), len(passed)
    journal.records(make.open("/x", dev=7), 1)
    journal.close()
    found = [e.event.path for e in entries(early, passed) if isinstance(e.event, Open)]
    assert found == ["/home/x", "/srv/x"]
    found = [e.event.path for e in entries(late, passed[so_far:]) if isinstance(e.event, Open)]
    assert found == ["/srv/x"]


def test_sessions_that_nobody_confirmed_are_not_shown(journal: Journal) -> None:
    """As the reader does it, but what is confirmed later is shown from then on only."""
    passed, listener = tapped(journal), following(journal)
    make = Records()
    for name in ("/bin/one", "/bin/two"):
        journal.records(make.exec(name, flags=abi.FLAG_PROVISIONAL), 1)
        journal.write(Session(time=1, session=AGENT, agent="claude-code"))
    journal.close()
    assert [e.event.path for e in entries(listener, passed) if e.event] == ["/bin/two"]  # type: ignore[attr-defined]


def test_damage_is_told_and_the_stream_goes_on(journal: Journal) -> None:
    """A frame that does not decode raises, a record that does not is counted."""
    passed, listener = tapped(journal), following(journal)
    with pytest.raises(JournalError, match="does not decode"):
        list(listener.feed(frames.STOP, 1, b"\xc1"))
    assert list(listener.feed(99, 1, b"")) == []
    make = Records()
    journal.records(b"\x05\0\0\0" + bytes(30), 1)
    journal.records(make.open("/a"), 1)
    journal.close()
    assert [e.event.path for e in entries(listener, passed) if isinstance(e.event, Open)] == ["/a"]
    assert listener.damaged == 1
