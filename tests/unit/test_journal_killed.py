"""A writer that is killed at any moment, and what the next one says of it."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

from agentwatch.events import Open
from agentwatch.sinks import chain, frames
from agentwatch.sinks.frames import Kill, Resumed
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

KILLS = 32
LONGEST = 0.02  # s that a writer has
LEAST = 2  # times that it flushes
MARKED = re.compile(rb"/marked/([0-9]+)/([0-9]+)")
KILL = frames.NUMBERS[Kill]


def opened(directory: Path, **options: object) -> Journal:
    settings: dict[str, object] = {"boot_id": "boot", "host": "box", "name": "daemon"} | options
    return Journal.open(directory, **settings)  # type: ignore[arg-type]


def resumed(directory: Path) -> list[Resumed]:
    return [e.frame for e in read(directory) if isinstance(e.frame, Resumed)]


def writer(directory: Path, turn: int, report: int) -> None:
    """Writes without end; reports `B turn number` before a flush and `F turn number` after it."""
    journal = opened(directory, segment_bytes=60_000, keep_bytes=300_000)
    os.write(report, b"O\n")
    make, noise, number = Records(), random.Random(turn), 0
    while True:
        number += 1
        for part in range(noise.randint(0, 20)):
            journal.records(make.open(f"/filler/{'x' * 150}/{part}"), 1)
        journal.records(make.open(f"/marked/{turn}/{number}", asked="f"), 1)
        os.write(report, f"B {turn} {number}\n".encode())
        if number % 3:
            journal.flush()
        else:
            journal.write(Kill(process=AGENT, outcome="killed", rule=f"{turn}.{number}"))
        os.write(report, f"F {turn} {number}\n".encode())
        if number % 10 == 2:
            journal.tidy()


def killed_writer(directory: Path, turn: int, after: float) -> list[str]:
    """What a writer reported until it was killed, `after` seconds after it began, or had opened.

    One that had opened has flushed LEAST times by then, however little of the processor it got.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            writer(directory, turn, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    least = LEAST if turn % 4 else 0  # one in four is killed while it opens, or soon after
    try:
        pieces = reported(ours, after, least)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.set_blocking(ours, True)
    while piece := os.read(ours, 65536):
        pieces.append(piece)
    os.close(ours)
    return b"".join(pieces).decode().splitlines()


def reported(ours: int, after: float, least: int) -> list[bytes]:
    """What a writer says until `after` seconds have passed and it has flushed so many times."""
    if least:
        select.select([ours], [], [], 10)
    pieces: list[bytes] = []
    began = time.monotonic()
    os.set_blocking(ours, False)
    while time.monotonic() < began + after or b"".join(pieces).count(b"F ") < least:
        assert time.monotonic() < began + 30, "the writer does not write"
        try:
            pieces.append(os.read(ours, 65536))
        except BlockingIOError:
            time.sleep(0.0005)
    return pieces


def on_disk(directory: Path) -> tuple[set[tuple[int, int]], set[str]]:
    """(turn and number of every marked record, the rule of every kill) in a chain."""
    marked, kills = set(), set()
    for path in sorted((directory / "daemon").glob("*.journal")):
        for item in chain.walk(memoryview(path.read_bytes())):
            if not isinstance(item, chain.RawFrame):
                continue
            found = MARKED.findall(bytes(item.payload))
            marked |= {(int(turn), int(number)) for turn, number in found}
            frame = frames.decode(item.type, item.time, item.payload) if item.type == KILL else None
            kills |= {frame.rule} if isinstance(frame, Kill) else set()
    return marked, kills


def test_what_was_flushed_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    """Writers killed while they write, rotate, retire: nothing that was flushed is lost but
    what their limits retired, nothing looks changed, and each next start tells of the one before.
    """
    noise = random.Random(3)
    flushes = ended = 0
    for turn in range(KILLS):
        lines = killed_writer(tmp_path / "j", turn, noise.uniform(0.002, LONGEST))
        flushed = {int(line.split()[2]) for line in lines if line.startswith("F ")}
        flushes += len(flushed)
        if not any((tmp_path / "j").glob("daemon/*.journal")):
            continue
        report = verify(tmp_path / "j")[0]
        assert {p.what for p in report.problems} <= {"torn"}
        assert not report.closed
        marked, kills = on_disk(tmp_path / "j")
        mine = {number for owner, number in marked if owner == turn}
        if report.retired and mine:
            flushed = {number for number in flushed if number >= min(mine)}
        assert flushed <= mine
        assert {f"{turn}.{number}" for number in flushed if number % 3 == 0} <= kills
        if report.head.sequence:
            ended += 1
            assert_told(tmp_path, report.head.sequence)
    assert ended > KILLS // 2
    assert flushes > KILLS
    shown = [e.event.path for e in read(tmp_path / "j") if isinstance(e.event, Open)]
    assert {path for path in shown if path.startswith("/marked/")} == {
        f"/marked/{owner}/{number}" for owner, number in on_disk(tmp_path / "j")[0]
    }


def assert_told(tmp_path: Path, sequence: int) -> None:
    """A start on a copy of the journal says how it was found, and leaves it intact."""
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(tmp_path / "j", tmp_path / "copy")
    opened(tmp_path / "copy").close()
    said = resumed(tmp_path / "copy")[-1]
    assert (said.clean, said.sequence, said.rebooted) == (False, sequence, False)
    after = verify(tmp_path / "copy")[0]
    assert after.closed
    assert {p.what for p in after.problems} <= {"torn"}
    assert bool(said.torn) <= bool(after.problems)


def test_a_clean_end_is_told_as_one(tmp_path: Path) -> None:
    """The next start says when the last frame was written, and that it was a stop."""
    first = opened(tmp_path / "j")
    first.close()
    opened(tmp_path / "j").close()
    said = resumed(tmp_path / "j")
    assert [(r.clean, r.sequence, r.torn, r.rebooted) for r in said] == [(True, 2, 0, False)]
    assert abs(said[0].last - time.time_ns()) < 60_000_000_000


def test_the_first_writer_of_a_chain_resumes_nothing(tmp_path: Path) -> None:
    """There is nothing to say about a chain that did not exist."""
    opened(tmp_path / "j").close()
    assert not resumed(tmp_path / "j")


def test_a_power_loss_is_told_by_the_boot_it_ended(tmp_path: Path) -> None:
    """Another boot id: not only what waited in memory may be lost."""
    first = opened(tmp_path / "j", boot_id="before")
    first.records(Records().open("/f"), 1)
    first.flush()
    first._syncer.stop()
    opened(tmp_path / "j", boot_id="after").close()
    said = resumed(tmp_path / "j")[0]
    assert (said.clean, said.rebooted, said.boot_id) == (False, True, "before")


@pytest.mark.parametrize("cuts", [(5,), (5, 9), (5, 0), (5, 0, 9)])
def test_cut_writes_of_several_writers_are_all_noted(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Killed writers one after another, some of them before their first frame: torn, not changed.

    A number is how many bytes of the segment's header a writer left; the first had written more.
    """
    left_behind(tmp_path / "j", cuts)
    report = verify(tmp_path / "j")[0]
    assert {p.what for p in report.problems} == {"torn"}
    assert len(report.problems) == sum(size > 0 for size in cuts)
    parts = chain.walk(memoryview((tmp_path / "j/daemon/00000001.journal").read_bytes()))
    torn = [part.end - part.offset for part in parts if isinstance(part, chain.Hole)]
    assert resumed(tmp_path / "j")[0].torn == sum(torn) + sum(cuts[1:])
    assert len(torn) == 1


def left_behind(directory: Path, cuts: tuple[int, ...]) -> Path:
    """A chain whose last writers were killed, as above, and continued; the chain's directory."""
    first = opened(directory)
    first.records(Records().open("/f"), 1)
    first.close()
    inside = directory / "daemon"
    whole = (inside / "00000001.journal").read_bytes()
    (inside / "00000001.journal").write_bytes(whole[: -cuts[0]])
    for number, size in enumerate(cuts[1:], 2):
        (inside / f"{number:08d}.journal").write_bytes(whole[:size])
    opened(directory).close()
    return inside


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.journal"))


@pytest.mark.parametrize("cuts", [(5,), (5, 9), (5, 0), (5, 0, 9), (5, 9, 0, 1)])
def test_what_a_cut_write_left_is_retired_with_its_segment(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """What the next header says of it is no finding then, at any step of the removal."""
    inside = left_behind(tmp_path / "j", cuts)
    shutil.copytree(inside, tmp_path / "kept")
    journal = opened(tmp_path / "j", keep_bytes=size_of(inside))
    journal.tidy()
    journal.close()
    names = sorted(path.name for path in inside.glob("*.journal"))
    assert names[0] == f"{len(cuts) + 1:08d}.journal"
    assert len(names) == 2
    assert verify(tmp_path / "j")[0].intact
    gone = sorted(path for path in (tmp_path / "kept").glob("*.journal") if path.name not in names)
    assert len(gone) == len(cuts)
    for path in reversed(gone):  # the oldest one goes first
        shutil.copy(path, inside)
        assert {p.what for p in verify(tmp_path / "j")[0].problems} <= {"torn"}, path.name


def test_removing_what_a_cut_write_left_is_found(tmp_path: Path) -> None:
    """Its bytes, some of them, or its segment: the next header knows what there was."""
    inside = left_behind(tmp_path / "j", (5,))
    first = inside / "00000001.journal"
    whole = first.read_bytes()
    hole = [part for part in chain.walk(memoryview(whole)) if isinstance(part, chain.Hole)][-1]
    for end in (hole.offset, hole.offset + 3, len(whole) - 1):
        first.write_bytes(whole[:end])
        assert "tampered" in {p.what for p in verify(tmp_path / "j")[0].problems}, end
    first.unlink()
    assert {p.what for p in verify(tmp_path / "j")[0].problems} == {"missing"}


def test_a_retired_segment_excuses_no_other_cut(tmp_path: Path) -> None:
    """The first segment that is left follows a cut write; one further on is still looked at."""
    inside = left_behind(tmp_path / "j", (5,))
    journal = opened(tmp_path / "j", keep_bytes=size_of(inside))
    journal.tidy()
    journal.close()
    last = max(inside.glob("*.journal"))
    before = inside / f"{int(last.stem) - 1:08d}.journal"
    before.write_bytes(before.read_bytes()[:-5])
    assert "tampered" in {p.what for p in verify(tmp_path / "j")[0].problems}


@pytest.mark.parametrize("seed", range(5))
def test_writes_cut_anywhere_are_torn_and_nothing_else(tmp_path: Path, seed: int) -> None:
    """One writer after another ends in the middle of a write, while segments begin and retire."""
    noise, make, cut = random.Random(seed), Records(), 0
    inside = tmp_path / "j" / "daemon"
    for _ in range(25):
        journal = opened(tmp_path / "j", segment_bytes=6000, keep_bytes=30_000, fsync=None)
        for _ in range(noise.randint(0, 8)):
            journal.records(make.open("/" + "x" * noise.randint(1, 1500)), 1)
            journal.flush()
            if not noise.randrange(4):
                journal.tidy()
        journal.tidy()
        journal.records(make.open("/cut"), 1)  # what says that segments go is whole before they do
        journal.flush()
        journal._syncer.stop()
        path = max(inside.glob("*.journal"))
        parts = list(chain.walk(memoryview(path.read_bytes())))
        last = parts[-1]
        assert isinstance(last, chain.RawFrame)
        left = noise.choice([0, 1, noise.randrange(last.end - last.offset)])
        os.truncate(path, last.offset + left)
        cut += left > 0
        if noise.randrange(2):
            (inside / f"{int(path.stem) + 1:08d}.journal").write_bytes(b"")
        problems = verify(tmp_path / "j")[0].problems
        assert {p.what for p in problems} <= {"torn"}, problems
        assert size_of(inside) < 50_000
    assert cut > 5


@pytest.mark.parametrize("frame", [0, -2])
@pytest.mark.parametrize("missing", [1, 20, 32, 33, 34])
def test_zeros_from_within_a_hash_on_are_torn(tmp_path: Path, frame: int, missing: int) -> None:
    """A write can also be cut in the last bytes of a frame; its next writer does not follow it.

    frame: of the segment's; missing: bytes at its end.
    """
    left_behind(tmp_path / "j", (5,))
    path = tmp_path / "j" / "daemon" / "00000002.journal"
    whole = path.read_bytes()
    last = [f for f in chain.walk(memoryview(whole)) if isinstance(f, chain.RawFrame)][frame]
    before = last.sequence - 1
    path.write_bytes(whole[: last.end - missing].rstrip(b"\0") + bytes(50_000))
    report = verify(tmp_path / "j")[0]
    assert [(p.what, p.frame) for p in report.problems][1:] == [("torn", before)]
    assert report.head.sequence == before
    opened(tmp_path / "j").close()
    assert {p.what for p in verify(tmp_path / "j")[0].problems} == {"torn"}
    assert resumed(tmp_path / "j")[-1].sequence == before


def test_a_hash_with_a_changed_byte_before_zeros_is_tampering(tmp_path: Path) -> None:
    """What is left of the hash of a cut write must still be right."""
    opened(tmp_path / "j").close()
    path = tmp_path / "j" / "daemon" / "00000001.journal"
    data = bytearray(path.read_bytes())
    data[-10:] = bytes(10)
    path.write_bytes(data + bytes(100))
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["torn"]
    data[-20] ^= 1
    path.write_bytes(data + bytes(100))
    assert "tampered" in {p.what for p in verify(tmp_path / "j")[0].problems}


@pytest.mark.parametrize("kept", [1, 20, 30, 100])
def test_allocated_room_behind_a_cut_frame_is_torn(tmp_path: Path, kept: int) -> None:
    """A write that was cut in a segment whose blocks were there before it is not tampering."""
    first = opened(tmp_path / "j")
    first.records(Records().open("/f"), 1)
    first.close()
    path = tmp_path / "j" / "daemon" / "00000001.journal"
    whole = path.read_bytes()
    found = [f for f in chain.walk(memoryview(whole)) if isinstance(f, chain.RawFrame)]
    last = found[-2]
    assert last.end - last.offset > kept
    path.write_bytes(whole[: last.offset + kept] + bytes(50_000))
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["torn"]
    opened(tmp_path / "j").close()
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["torn"]
