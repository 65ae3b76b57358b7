"""Journals that were edited, cut, reordered, swapped: real files, really damaged."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.events import Open
from agentwatch.sinks import chain, frames
from agentwatch.sinks.chain import Head, Hole, RawFrame
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import Reader, read
from agentwatch.sinks.verify import ChainReport, verify
from agentwatch.testing import Records

COUNT = 12


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """One closed chain of one segment, a record in each of its frames."""
    return make_journal(tmp_path / "j")


def make_journal(directory: Path, name: str = "run-a", limit: int = 1 << 20) -> Path:
    journal = Journal.open(directory, boot_id="boot", host="box", name=name, segment_bytes=limit)
    make = Records()
    for i in range(COUNT):
        journal.records(make.open(f"/f{i}"), 1)
    journal.close()
    return directory


def segment(directory: Path, number: int = 1, name: str = "run-a") -> Path:
    return directory / name / f"{number:08d}.journal"


def raw_frames(path: Path) -> list[RawFrame]:
    found = list(chain.walk(memoryview(path.read_bytes())))
    assert not any(isinstance(item, Hole) for item in found)
    return [item for item in found if isinstance(item, RawFrame)]


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Write the segment again from its frames' bytes after `change`."""
    data = path.read_bytes()
    path.write_bytes(b"".join(change([data[f.offset : f.end] for f in raw_frames(path)])))


def found(directory: Path, heads: dict[str, Head] | None = None) -> list[tuple[str, int]]:
    """(what, frame) of every problem."""
    return [(p.what, p.frame) for report in verify(directory, heads) for p in report.problems]


def report(directory: Path) -> ChainReport:
    return verify(directory)[0]


def paths_read(directory: Path) -> tuple[list[str], Reader]:
    """What the reader still shows, and the reader with its problems."""
    reader = read(directory)
    return [e.event.path for e in reader if isinstance(e.event, Open)], reader


def test_a_whole_journal_is_intact(journal: Path) -> None:
    """Nothing is found where nothing was done."""
    one = report(journal)
    assert (one.intact, one.closed, one.records, one.frames) == (True, True, COUNT, COUNT + 2)


def test_any_flipped_byte_is_found(journal: Path) -> None:
    """Each byte of a segment, changed by itself, makes verify fail."""
    path = segment(journal)
    data = bytearray(path.read_bytes())
    step = 1 if len(data) < 2000 else 7
    for offset in range(0, len(data), step):
        data[offset] ^= 0x41
        path.write_bytes(data)
        assert found(journal), f"byte {offset}"
        data[offset] ^= 0x41
    path.write_bytes(data)
    assert not found(journal)


def test_an_edited_record_names_its_frame_and_place(journal: Path) -> None:
    """The finding says file, byte and frame; everything else is still read."""
    path = segment(journal)
    fifth = raw_frames(path)[4]
    data = path.read_bytes()
    path.write_bytes(data.replace(b"/f3", b"/g3"))
    problem = report(journal).problems[0]
    assert (problem.what, problem.file, problem.frame) == ("tampered", path, 5)
    assert problem.offset == fifth.offset
    shown, reader = paths_read(journal)
    assert shown == [f"/f{i}" if i != 3 else "/g3" for i in range(COUNT)]
    assert [p.frame for p in reader.problems] == [5]


def test_an_edited_frame_is_marked_where_it_is_shown(journal: Path) -> None:
    """Its entry says that it is not what was written; the others are."""
    path = segment(journal)
    path.write_bytes(path.read_bytes().replace(b"/f3", b"/g3"))
    doubtful = [e.event for e in read(journal) if not e.intact]
    assert [event.path for event in doubtful if isinstance(event, Open)] == ["/g3"]


def test_an_edited_frame_with_a_fresh_hash_breaks_the_next(journal: Path) -> None:
    """Who changes a frame and its hash is found out one frame later."""

    def forge(parts: list[bytes]) -> list[bytes]:
        raw = raw_frames(segment(journal))
        before, frame = raw[3], raw[4]
        payload = bytes(frame.payload).replace(b"/f3", b"/g3")
        forged, _ = chain.encode(frame.sequence, frame.type, frame.time, payload, before.hash)
        return [*parts[:4], forged, *parts[5:]]

    rewrite(segment(journal), forge)
    assert found(journal) == [("tampered", 6)]


def test_a_removed_frame_is_missing(journal: Path) -> None:
    """The frame after the gap says which ones are not there."""
    rewrite(segment(journal), lambda parts: parts[:5] + parts[7:])
    assert found(journal) == [("missing", 8)]
    assert "frames 6 to 7" in report(journal).problems[0].message
    assert len(paths_read(journal)[0]) == COUNT - 2


def test_swapped_frames_are_found(journal: Path) -> None:
    """Order is part of the chain."""

    def swap(parts: list[bytes]) -> list[bytes]:
        return [*parts[:5], parts[6], parts[5], *parts[7:]]

    rewrite(segment(journal), swap)
    assert found(journal)[0][0] == "missing"
    assert ("tampered", 6) in found(journal)


def test_a_repeated_frame_is_found(journal: Path) -> None:
    """A frame that stands there twice is not the chain."""
    rewrite(segment(journal), lambda parts: [*parts[:6], parts[5], *parts[6:]])
    assert ("tampered", 6) in found(journal)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_write_cut_by_power_loss_is_torn(journal: Path, cut: int) -> None:
    """A partial last frame is told apart from tampering, with its place; the rest is intact."""
    path = segment(journal)
    last = raw_frames(path)[-1]
    os.truncate(path, path.stat().st_size - min(cut, last.end - last.offset - 1))
    one = report(journal)
    assert [(p.what, p.offset, p.frame) for p in one.problems] == [
        ("torn", last.offset, last.sequence - 1)
    ]
    assert not one.closed
    assert len(paths_read(journal)[0]) == COUNT


def test_blocks_of_zeros_after_power_loss_are_torn(journal: Path) -> None:
    """Some file systems leave zeros where data was on its way."""
    path = segment(journal)
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert [what for what, _ in found(journal)] == ["torn"]


def test_bytes_added_at_the_end_are_tampering(journal: Path) -> None:
    """What is no frame and no cut frame was put there."""
    with segment(journal).open("ab") as file:
        file.write(b"hello")
    assert found(journal) == [("tampered", COUNT + 2)]


def test_a_changed_length_is_tampering_and_not_a_cut(journal: Path) -> None:
    """A frame that claims to reach past the end, with frames behind it, was changed."""
    path = segment(journal)
    data = bytearray(path.read_bytes())
    data[raw_frames(path)[4].offset + 21] = 0x3F
    path.write_bytes(data)
    assert [what for what, _ in found(journal)] == ["tampered"]
    shown, reader = paths_read(journal)
    assert shown == [f"/f{i}" for i in range(COUNT) if i != 3]
    assert reader.problems


def test_frames_behind_a_long_hole_are_found(journal: Path) -> None:
    """However much was overwritten, reading goes on with the first whole frame behind it."""
    rewrite(segment(journal), lambda parts: [*parts[:5], b"\xff" * 200_001, *parts[5:]])
    assert [what for what, _ in found(journal)] == ["tampered"]
    assert len(paths_read(journal)[0]) == COUNT


def test_a_clean_cut_at_the_end_is_shown_as_not_closed(journal: Path) -> None:
    """Without its last frames a chain has no stop frame: that is said, though nothing proves it."""
    rewrite(segment(journal), lambda parts: parts[:-3])
    one = report(journal)
    assert (one.intact, one.closed, one.live) == (True, False, False)


def test_a_known_head_proves_a_cut_end(journal: Path) -> None:
    """A head kept elsewhere finds frames missing at the end, and a rewritten chain."""
    head = report(journal).head
    assert not found(journal, {"run-a": head})
    rewrite(segment(journal), lambda parts: parts[:-3])
    assert found(journal, {"run-a": head}) == [("missing", COUNT - 1)]
    other = Head(3, b"x" * chain.HASH_SIZE)
    assert found(journal, {"run-a": other}) == [("tampered", 3)]


def test_a_known_head_of_a_chain_that_is_gone_is_missed(journal: Path) -> None:
    """Removing a whole chain is found by whoever kept its head."""
    assert found(journal, {"run-z": Head(3, b"x" * 32)}) == [("missing", 0)]


def test_a_missing_first_segment_is_found(tmp_path: Path) -> None:
    """The chain does not begin at its beginning."""
    journal = make_journal(tmp_path / "j", limit=3500)
    segment(journal).unlink()
    problems = report(journal).problems
    assert [p.what for p in problems] == ["missing"]
    assert "00000001.journal" in problems[0].message


def test_a_missing_segment_in_the_middle_is_found(tmp_path: Path) -> None:
    """Segments are numbered and chained."""
    journal = make_journal(tmp_path / "j", limit=3000)
    assert segment(journal, 3).exists()
    segment(journal, 2).unlink()
    assert [what for what, _ in found(journal)] == ["missing"]


def test_swapped_segments_are_found(tmp_path: Path) -> None:
    """A segment knows its number."""
    journal = make_journal(tmp_path / "j", limit=3000)
    one, two, aside = segment(journal, 1), segment(journal, 2), tmp_path / "aside"
    shutil.move(one, aside)
    shutil.move(two, one)
    shutil.move(aside, two)
    assert any("under the name" in p.message for p in report(journal).problems)


def test_a_segment_of_another_chain_is_found(tmp_path: Path) -> None:
    """A segment fits only behind the one it was written behind."""
    journal = make_journal(tmp_path / "j", limit=3000)
    other = make_journal(tmp_path / "k", limit=3000)
    shutil.copy(segment(other, 2), segment(journal, 2))
    assert ("tampered", raw_frames(segment(other, 2))[0].sequence) in found(journal)


def test_frames_cut_from_the_end_of_an_inner_segment_are_missing(tmp_path: Path) -> None:
    """The next segment's header proves what stood before it."""
    journal = make_journal(tmp_path / "j", limit=3000)
    rewrite(segment(journal, 1), lambda parts: parts[:-1])
    assert [what for what, _ in found(journal)] == ["missing"]


def test_an_inner_segment_cut_inside_a_frame_is_not_called_torn(tmp_path: Path) -> None:
    """Its successor's header tells how it was left: a later cut is tampering."""
    journal = make_journal(tmp_path / "j", limit=3000)
    os.truncate(segment(journal, 1), segment(journal, 1).stat().st_size - 5)
    assert "tampered" in [what for what, _ in found(journal)]


def test_a_removed_header_is_found(journal: Path) -> None:
    """A segment without its header is read as far as it goes, and told."""
    rewrite(segment(journal), lambda parts: parts[1:])
    assert found(journal)
    assert len(paths_read(journal)[0]) == COUNT


def test_an_empty_segment_is_shown_as_not_closed(journal: Path) -> None:
    """A file of nothing has nothing to be wrong, but it does not end either."""
    segment(journal).write_bytes(b"")
    one = report(journal)
    assert (one.frames, one.closed) == (0, False)


def test_a_living_writer_is_told_apart_from_a_dead_one(tmp_path: Path) -> None:
    """While a chain is being written, its missing end is no finding."""
    journal = Journal.open(tmp_path / "j", boot_id="b", host="h", name="run-a")
    assert report(tmp_path / "j").live
    journal.close()
    assert not report(tmp_path / "j").live


def test_a_frame_that_does_not_decode_is_skipped_and_told(tmp_path: Path) -> None:
    """A chained frame of nonsense does not stop the reader."""
    journal = Journal.open(tmp_path / "j", boot_id="b", host="h", name="run-a")
    make = Records()
    journal.records(make.open("/a"), 1)
    journal.records(b"\x05\0\0\0" + bytes(30), 1)
    journal.records(make.open("/b"), 1)
    journal.close()
    shown, reader = paths_read(tmp_path / "j")
    assert shown == ["/a", "/b"]
    assert len(reader.problems) == 1


def test_random_bytes_never_break_the_reader(tmp_path: Path) -> None:
    """Whatever stands in a segment, reading and verifying end with findings."""
    noise = random.Random(7)
    journal = make_journal(tmp_path / "j")
    path = segment(journal)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(noise.randint(1, 40)):
            data[noise.randrange(len(data))] = noise.randrange(256)
        path.write_bytes(data[: noise.randint(1, len(data))])
        verify(journal)
        for _ in read(journal):
            pass


def test_type_names_are_words() -> None:
    """`journal` calls frames by name, and unknown ones by number."""
    assert frames.type_name(frames.RECORDS) == "records"
    assert frames.type_name(99) == "99"
