"""The journal on a real file system that is full to the last byte, or goes away."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.errors import JournalError
from agentwatch.events import Open
from agentwatch.sinks import frames, reserve
from agentwatch.sinks.frames import Gap, Kill, Notice, Session, Verdict
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

pytestmark = pytest.mark.root

SIZE = 4 << 20


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    options = f"size={SIZE},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "aw-test", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


def fill(disk: Path) -> Path:
    """Takes every byte that is left."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    room = os.statvfs(disk)
    assert room.f_bfree == 0
    return path


def opened(directory: Path, **options: object) -> Journal:
    settings: dict[str, object] = {"boot_id": "boot", "host": "box", "name": "daemon"} | options
    return Journal.open(directory, **settings)  # type: ignore[arg-type]


def kill(number: int) -> Kill:
    return Kill(process=AGENT, outcome="killed", rule=f"rule.{number}")


def frames_of(directory: Path) -> list[frames.Frame]:
    return [entry.frame for entry in read(directory) if entry.frame is not None]


def kills_of(directory: Path) -> list[str]:
    return [frame.rule for frame in frames_of(directory) if isinstance(frame, Kill)]


def try_(action: object) -> str:
    """What the journal says of it; "" when it says nothing."""
    try:
        action()  # type: ignore[operator]
    except JournalError as error:
        return error.message
    return ""


def flush_until_written(journal: Journal) -> None:
    end = time.monotonic() + 5
    while try_(journal.flush):
        assert time.monotonic() < end, "it is not written, though there is room"
        time.sleep(0.05)


def test_decisions_made_after_the_disk_is_full_are_on_disk(disk: Path) -> None:
    """Full to the last byte and filled on: every kill is on disk before write returns, records
    and notices wait, verify finds the chain intact at each step.
    """
    journal = opened(disk / "j")
    make = Records()
    journal.records(make.open("/before"), 1)
    journal.flush()
    fill(disk)
    said = []
    for number in range(300):
        try_(lambda n=number: journal.records(make.open(f"/{'f' * 900}/{n}"), 1))
        try_(lambda: journal.write(Session(session=AGENT, agent="claude-code")))
        said.append(try_(lambda n=number: journal.write(kill(n))))
        if number % 50 == 0:
            fill(disk)
            assert kills_of(disk / "j") == [f"rule.{n}" for n in range(number + 1)]
            assert verify(disk / "j")[0].intact
    assert all("no room for the journal" in message for message in said[-200:])
    assert journal.waiting > 200_000
    assert kills_of(disk / "j") == [f"rule.{n}" for n in range(300)]
    assert not any(isinstance(f, Session) for f in frames_of(disk / "j")[-100:])

    (disk / "filler").unlink()
    flush_until_written(journal)
    journal.close()
    opens = [e.event.path for e in read(disk / "j") if isinstance(e.event, Open)]
    assert [path for path in opens if path != "/before"] == [
        f"/{'f' * 900}/{number}" for number in range(300)
    ]
    report = verify(disk / "j")[0]
    assert (report.intact, report.closed) == (True, True)
    assert journal.given_way == (0, 0, 0)


def test_a_kill_9_on_a_full_disk_leaves_what_was_decided(disk: Path) -> None:
    """The reserve's rest is zeros behind the last frame: torn, and the next start says so."""
    pid = os.fork()
    if pid == 0:
        try:
            journal = opened(disk / "j")
            fill(disk)
            journal.records(Records().open("/" + "f" * 60_000), 1)
            for number in range(20):
                try_(lambda n=number: journal.write(kill(n)))
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert kills_of(disk / "j") == [f"rule.{n}" for n in range(20)]
    assert [p.what for p in verify(disk / "j")[0].problems] == ["torn"]
    (disk / "filler").unlink()
    opened(disk / "j").close()
    resumed = [f for f in frames_of(disk / "j") if isinstance(f, frames.Resumed)]
    assert [r.clean for r in resumed] == [False]
    assert 0 < resumed[0].torn <= reserve.SIZE
    assert [p.what for p in verify(disk / "j")[0].problems] == ["torn"]


def test_what_gives_way_is_counted_by_class_and_told(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records first, then what informs, decisions last; the gap frame has all three counts."""
    monkeypatch.setattr("agentwatch.sinks.waiting.WAITING_MAX", 100_000)
    journal = opened(disk / "j", reserve_bytes=16_384)
    fill(disk)
    make, order = Records(), []
    for number in range(600):
        try_(lambda: journal.records(make.open("/" + "f" * 200), 1))
        try_(lambda: journal.write(Notice(subject="mode", text="t" * 100)))
        try_(lambda n=number: journal.write(kill(n)))
        assert journal.waiting <= 100_000
        order.append([count > 0 for count in journal.given_way])
    assert order == sorted(order, key=lambda flags: sum(flags))
    assert [True, False, False] in order
    assert [True, True, False] in order
    assert order[-1] == [True, True, True]
    given = journal.given_way
    (disk / "filler").unlink()
    flush_until_written(journal)
    journal.close()
    gaps = [f for f in frames_of(disk / "j") if isinstance(f, Gap)]
    assert sum(gap.count for gap in gaps) == given.records
    assert sum(gap.frames for gap in gaps) == given.frames
    assert sum(gap.decisions for gap in gaps) == given.decisions
    assert len(kills_of(disk / "j")) == 600 - given.decisions
    assert verify(disk / "j")[0].intact


def test_a_journal_closed_on_a_full_disk_says_what_it_gives_up(disk: Path) -> None:
    """The stop frame and the count of what was waiting are in the reserve; close raises."""
    journal = opened(disk / "j")
    fill(disk)
    make = Records()
    for _ in range(7):
        try_(lambda: journal.records(make.open("/" + "f" * 60_000), 1))
    with pytest.raises(JournalError, match="no room"):
        journal.close("the end")
    report = verify(disk / "j")[0]
    assert (report.intact, report.closed) == (True, True)
    gap = next(f for f in frames_of(disk / "j") if isinstance(f, Gap))
    opens = [e for e in read(disk / "j") if isinstance(e.event, Open)]
    assert gap.count == 7 - len(opens) > 0


def spared(disk: Path) -> int:
    """A reserve takes no more than a sixteenth of a small disk."""
    told = os.statvfs(disk)
    size = min(reserve.SIZE, told.f_blocks * told.f_frsize // 16)
    assert size
    return size


def test_a_full_disk_again_and_again_has_a_reserve_each_time(disk: Path) -> None:
    """It is made anew as soon as there is room."""
    journal = opened(disk / "j")
    make = Records()
    for number in range(3):
        fill(disk)
        try_(lambda: journal.records(make.open("/" + "f" * 60_000), 1))
        try_(lambda n=number: journal.write(kill(n)))
        assert kills_of(disk / "j") == [f"rule.{n}" for n in range(number + 1)]
        (disk / "filler").unlink()
        flush_until_written(journal)
        assert (disk / "j" / "daemon" / reserve.NAME).stat().st_size == spared(disk)
    journal.close()
    assert verify(disk / "j")[0].intact


def test_a_daemon_that_starts_on_a_full_disk_uses_the_reserve_that_was_left(disk: Path) -> None:
    """A restart while the disk is full still journals its decisions."""
    opened(disk / "j").close()
    fill(disk)
    journal = opened(disk / "j")
    try_(lambda: journal.write(kill(1)))
    assert kills_of(disk / "j") == ["rule.1"]
    (disk / "filler").unlink()
    flush_until_written(journal)
    journal.close()
    assert verify(disk / "j")[0].intact


def test_a_start_on_a_full_disk_without_a_reserve_is_a_clear_error(disk: Path) -> None:
    """With what to do about it."""
    fill(disk)
    with pytest.raises(JournalError, match="no room") as caught:
        opened(disk / "j")
    assert "free some space" in caught.value.remedy


def test_a_journal_whose_disk_is_unmounted_goes_on_below(disk: Path) -> None:
    """Noticed within a second; what is on the unmounted disk is missing, and said to be."""
    journal = opened(disk / "j")
    journal.write(kill(1))
    subprocess.run(["umount", "-l", disk], check=True)
    told = []
    end = time.monotonic() + 2
    while not told and time.monotonic() < end:
        message = try_(journal.flush)
        told += [message] if message else []
        time.sleep(0.02)
    assert time.monotonic() < end - 0.9, "noticed too late"
    assert "removed or moved" in told[0]
    journal.write(Verdict(rule="r", action="kill", response="kill", outcome="killed"))
    journal.close()
    report = verify(disk / "j")[0]
    assert [p.what for p in report.problems] == ["missing"]
    assert "00000001.journal" in report.problems[0].message
    assert any(isinstance(f, Verdict) for f in frames_of(disk / "j"))
