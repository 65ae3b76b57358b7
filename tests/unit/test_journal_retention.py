"""Old segments go, are said to have gone, and nothing else may be missing."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from agentwatch.errors import JournalError
from agentwatch.events import Open
from agentwatch.sinks.chain import Head
from agentwatch.sinks.frames import Retired
from agentwatch.sinks.host import now
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.segments import chains
from agentwatch.sinks.verify import verify, verify_chain
from agentwatch.testing import Records

DAY = 86_400
NS = 1_000_000_000
LIMIT = 6000


class Clock:
    """Both clocks of the journal, for the test to move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boottime, self.wall = 100 * DAY * NS, time.time_ns()
        for module in ("journal", "tape"):
            monkeypatch.setattr(f"agentwatch.sinks.{module}.now", lambda: self.boottime)
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)

    def pass_(self, seconds: float) -> None:
        self.boottime += int(seconds * NS)
        self.wall += int(seconds * NS)

    def reboot(self, uptime: float = 0) -> None:
        self.boottime = int(uptime * NS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def opened(directory: Path, **options: object) -> Journal:
    settings: dict[str, object] = {"boot_id": "boot", "host": "box", "name": "daemon"}
    settings |= {"segment_bytes": LIMIT} | options
    return Journal.open(directory, **settings)  # type: ignore[arg-type]


def fill(journal: Journal, segments: int) -> None:
    """Opens, until so many segments more have begun."""
    make, until = Records(), journal.segments + segments
    while journal.segments < until:
        journal.records(make.open("/f"), 1)
        journal.flush()


def numbers(directory: Path, name: str = "daemon") -> list[int]:
    return sorted(int(path.stem) for path in (directory / name).glob("*.journal"))


def settle(journal: Journal) -> None:
    """Until the sync thread has done what it was given."""
    done = threading.Event()
    journal._syncer.then(done.set)
    assert done.wait(30), "the thread did not do it"


def retired(directory: Path) -> list[Retired]:
    return [e.frame for e in read(directory) if isinstance(e.frame, Retired)]


def test_the_oldest_segments_go_until_the_size_holds(tmp_path: Path) -> None:
    """keep_bytes is held, the current segment stays, and the chain that is left is intact."""
    journal = opened(tmp_path / "j", keep_bytes=5 * LIMIT)
    fill(journal, 12)
    journal.tidy()
    settle(journal)
    left = numbers(tmp_path / "j")
    assert left[-1] == 13
    assert 3 <= len(left) <= 5
    assert left == list(range(left[0], 14))
    sizes = [path.stat().st_size for path in (tmp_path / "j" / "daemon").glob("*.journal")]
    assert sum(sizes) <= 5 * LIMIT
    journal.close()
    report = verify(tmp_path / "j")[0]
    assert (report.intact, report.begins) == (True, left[0])
    said = retired(tmp_path / "j")
    assert [(r.last, r.reason, r.chain) for r in said] == [(left[0] - 1, "bytes", "")]


def test_retiring_again_and_again_stays_intact(tmp_path: Path) -> None:
    """The frame that said what went first goes itself one day; the last one is enough."""
    journal = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    for _ in range(6):
        fill(journal, 3)
        journal.tidy()
        settle(journal)
        assert verify(tmp_path / "j")[0].intact
    journal.close()
    assert len(retired(tmp_path / "j")) < 6
    assert verify(tmp_path / "j")[0].intact


def test_a_head_within_what_was_retired_is_no_finding(tmp_path: Path) -> None:
    """Who kept the head of last month is not told that the chain was cut."""
    journal = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    early = journal.head
    fill(journal, 8)
    journal.tidy()
    journal.close()
    assert verify(tmp_path / "j", {"daemon": early})[0].intact
    last = retired(tmp_path / "j")[-1]
    forged = {"daemon": Head(last.sequence, b"x" * 32)}
    assert [p.what for p in verify(tmp_path / "j", forged)[0].problems] == ["missing"]


def test_one_more_segment_than_was_retired_is_missing(tmp_path: Path) -> None:
    """Somebody who removes the next one does not profit from what was said."""
    journal = opened(tmp_path / "j", keep_bytes=4 * LIMIT)
    fill(journal, 8)
    journal.tidy()
    journal.close()
    left = numbers(tmp_path / "j")
    (tmp_path / "j" / "daemon" / f"{left[0]:08d}.journal").unlink()
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["missing"]


def test_what_is_retired_while_it_is_verified_is_no_finding(tmp_path: Path) -> None:
    """Segments that were listed and are gone when their turn comes: said later in the chain."""
    journal = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    fill(journal, 8)
    one = chains(tmp_path / "j")[0]
    journal.tidy()
    journal.close()
    left = numbers(tmp_path / "j")
    assert left[0] > 1
    assert verify_chain(one).intact
    (tmp_path / "j" / "daemon" / f"{left[0]:08d}.journal").unlink()
    assert [p.what for p in verify_chain(one).problems] == ["missing"]


def test_segments_that_vanish_without_a_frame_are_missing(tmp_path: Path) -> None:
    """Removing the beginning by hand is not retiring it."""
    journal = opened(tmp_path / "j")
    fill(journal, 4)
    journal.close()
    (tmp_path / "j" / "daemon" / "00000001.journal").unlink()
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["missing"]


def test_a_frame_of_another_chain_excuses_nothing(tmp_path: Path) -> None:
    """A frame that names the wrong hash for the last segment gone is not believed."""
    journal = opened(tmp_path / "j")
    fill(journal, 4)
    journal.write(Retired(last=2, sequence=5, hash=b"y" * 32, reason="age"))
    journal.close()
    for number in (1, 2):
        (tmp_path / "j" / "daemon" / f"{number:08d}.journal").unlink()
    assert [p.what for p in verify(tmp_path / "j")[0].problems] == ["missing"]


def test_what_a_crash_left_undone_is_done_by_the_next_writer(tmp_path: Path) -> None:
    """Said but not removed, or removed in part: intact at every step, and gone in the end."""
    journal = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    fill(journal, 8)
    shutil.copytree(tmp_path / "j", tmp_path / "copy")
    journal.tidy()
    journal.close()
    first = numbers(tmp_path / "j")[0]
    for number in range(1, first):
        shutil.copy(tmp_path / "copy" / "daemon" / f"{number:08d}.journal", tmp_path / "j/daemon")
    for number in range(1, first):
        assert verify(tmp_path / "j")[0].intact, number
        (tmp_path / "j" / "daemon" / f"{number:08d}.journal").unlink()
    shutil.copy(tmp_path / "copy" / "daemon" / f"{first - 1:08d}.journal", tmp_path / "j/daemon")
    again = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    again.tidy()
    again.close()
    assert first - 1 not in numbers(tmp_path / "j")
    assert verify(tmp_path / "j")[0].intact


def test_segments_older_than_is_kept_go(tmp_path: Path, clock: Clock) -> None:
    """A segment goes keep_seconds after its last frame, not before."""
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY)
    fill(journal, 2)
    clock.pass_(6.9 * DAY)
    journal.tidy()
    settle(journal)
    assert numbers(tmp_path / "j")[0] == 1
    clock.pass_(0.2 * DAY)
    journal.tidy()
    settle(journal)
    assert numbers(tmp_path / "j")[0] == 3
    journal.close()
    assert verify(tmp_path / "j")[0].intact
    assert [r.reason for r in retired(tmp_path / "j")] == ["age"]


def test_a_quiet_machine_forgets_too(tmp_path: Path, clock: Clock) -> None:
    """A segment is at most a day old; what a single frame said long ago is gone by then."""
    journal = opened(tmp_path / "j", keep_seconds=3 * DAY, segment_bytes=1 << 20)
    journal.records(Records().open("/long-ago"), 1)
    journal.flush()
    for _ in range(10):
        clock.pass_(DAY / 2)
        journal.tidy()
    settle(journal)
    journal.close()
    assert not [e for e in read(tmp_path / "j") if isinstance(e.event, Open)]
    assert verify(tmp_path / "j")[0].intact


def test_frames_of_two_days_are_not_in_one_segment(tmp_path: Path, clock: Clock) -> None:
    """Without anybody to tidy, the first frame after a day begins a segment."""
    journal = opened(tmp_path / "j", segment_bytes=1 << 20)
    for _ in range(3):
        journal.records(Records().open("/f"), 1)
        journal.flush()
        clock.pass_(1.01 * DAY)
    journal.close()
    assert numbers(tmp_path / "j") == [1, 2, 3, 4]


def test_a_clock_that_jumps_ahead_removes_nothing_of_this_boot(
    tmp_path: Path, clock: Clock
) -> None:
    """Ten years in a second: segments of this boot are as old as they were."""
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY)
    fill(journal, 3)
    clock.wall += 3650 * DAY * NS
    journal.tidy()
    journal.close()
    assert numbers(tmp_path / "j")[0] == 1


def test_a_clock_that_jumps_ahead_removes_little_of_other_boots(
    tmp_path: Path, clock: Clock
) -> None:
    """It is believed no more than twice what has passed; a clock that is right is believed."""
    first = opened(tmp_path / "j", boot_id="before")
    fill(first, 3)
    first.close()
    clock.reboot(uptime=2 * 3600)
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY)
    journal.tidy()
    clock.wall += 3650 * DAY * NS
    for _ in range(60):
        clock.pass_(60)
        journal.tidy()
    settle(journal)
    assert numbers(tmp_path / "j")[0] == 1
    clock.wall -= 3650 * DAY * NS
    clock.pass_(7 * DAY)
    journal.tidy()
    journal.close()
    assert numbers(tmp_path / "j")[0] > 3


def test_a_clock_that_is_wrong_at_boot_has_an_hour_to_be_put_right(
    tmp_path: Path, clock: Clock
) -> None:
    """What other boots left does not go in the first hour, whatever the clock says."""
    first = opened(tmp_path / "j", boot_id="before")
    fill(first, 3)
    first.close()
    clock.reboot()
    clock.wall += 3650 * DAY * NS
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY)
    for _ in range(30):
        clock.pass_(60)
        journal.tidy()
    assert numbers(tmp_path / "j")[0] == 1
    clock.wall -= 3650 * DAY * NS
    clock.pass_(2 * 3600)
    journal.tidy()
    journal.close()
    assert numbers(tmp_path / "j")[0] == 1


def test_chains_of_dead_runs_go_when_they_are_old(tmp_path: Path, clock: Clock) -> None:
    """With keep_others: closed and killed ones, whole, and the daemon's chain says so."""
    for name in ("run-1", "run-2"):
        run = opened(tmp_path / "j", name=name)
        fill(run, 2)
        run.close()
    clock.pass_(9 * DAY)
    young = opened(tmp_path / "j", name="run-3")
    young.close()
    living = opened(tmp_path / "j", name="run-0")
    other = tmp_path / "j" / "lost+found"
    other.mkdir()
    clock.pass_(0.5 * DAY)
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY, keep_others=True)
    heads = {one.chain: one.head for one in verify(tmp_path / "j")}
    journal.tidy()
    settle(journal)
    living.close()
    journal.close()
    left = sorted(os.listdir(tmp_path / "j"))
    assert left == ["daemon", "lost+found", "run-0", "run-3"]
    assert {r.chain: (r.last, r.sequence) for r in retired(tmp_path / "j")} == {
        name: (3, heads[name].sequence) for name in ("run-1", "run-2")
    }
    kept = {name: heads[name] for name in ("run-1", "run-2", "run-3")}
    assert all(report.intact for report in verify(tmp_path / "j", kept))
    forged = {"run-1": Head(heads["run-1"].sequence, b"z" * 32)}
    assert not all(report.intact for report in verify(tmp_path / "j", forged))


@pytest.mark.parametrize("left", [(0,), (30,), (0, 30)])
def test_a_dead_chain_that_ends_without_a_header_goes_too(
    tmp_path: Path, clock: Clock, left: tuple[int, ...]
) -> None:
    """A run that was killed as it began a segment: its age and its end are the one's before.

    left: bytes of the last segments.
    """
    run = opened(tmp_path / "j", name="run-1")
    fill(run, 2)
    run.close()
    inside = tmp_path / "j" / "run-1"
    head = verify(inside)[0].head
    for number, size in enumerate(left, 4):
        (inside / f"{number:08d}.journal").write_bytes(
            (inside / "00000001.journal").read_bytes()[:size]
        )
    clock.pass_(9 * DAY)
    journal = opened(tmp_path / "j", keep_seconds=7 * DAY, keep_others=True)
    journal.tidy()
    journal.close()
    assert os.listdir(tmp_path / "j") == ["daemon"]
    said = retired(tmp_path / "j")
    assert [(r.chain, r.last, r.sequence) for r in said] == [
        ("run-1", 3 + len(left), head.sequence)
    ]
    assert all(report.intact for report in verify(tmp_path / "j", {"run-1": head}))


def test_a_chain_that_is_being_written_never_goes(tmp_path: Path, clock: Clock) -> None:
    """However old and however large: its writer is alive."""
    run = opened(tmp_path / "j", name="run-1")
    fill(run, 2)
    clock.pass_(90 * DAY)
    journal = opened(tmp_path / "j", keep_seconds=DAY, keep_bytes=1, keep_others=True)
    journal.tidy()
    journal.close()
    run.close()
    assert numbers(tmp_path / "j", "run-1") == [1, 2, 3, 4]


def test_the_whole_directory_is_held_to_the_size_oldest_first(tmp_path: Path, clock: Clock) -> None:
    """With keep_others a large journal loses the chains that ended first."""
    for name in ("run-b", "run-a", "run-c"):
        run = opened(tmp_path / "j", name=name)
        fill(run, 3)
        run.close()
        clock.pass_(60)
    journal = opened(tmp_path / "j", keep_bytes=9 * LIMIT, keep_others=True)
    journal.tidy()
    journal.close()
    assert sorted(os.listdir(tmp_path / "j")) == ["daemon", "run-a", "run-c"]


def test_a_link_in_place_of_a_dead_chain_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    """What is removed is a directory that lies there, not what a name leads to."""
    run = opened(tmp_path / "elsewhere", name="run-1")
    run.close()
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "run-1").symlink_to(tmp_path / "elsewhere" / "run-1")
    clock.pass_(90 * DAY)
    journal = opened(tmp_path / "j", keep_seconds=DAY, keep_others=True)
    journal.tidy()
    journal.close()
    assert numbers(tmp_path / "elsewhere", "run-1") == [1]


def test_what_is_no_segment_is_left_alone_and_told(tmp_path: Path) -> None:
    """A directory under a segment's name: the others go, once, and verify says what it is."""
    journal = opened(tmp_path / "j", keep_bytes=3 * LIMIT)
    fill(journal, 8)
    first = tmp_path / "j" / "daemon" / "00000001.journal"
    first.unlink()
    first.mkdir()
    for _ in range(5):
        journal.tidy()
        settle(journal)
    journal.close()
    assert numbers(tmp_path / "j")[0] == 1
    assert numbers(tmp_path / "j")[1] > 3
    assert len(retired(tmp_path / "j")) == 1
    assert {p.what for p in verify(tmp_path / "j")[0].problems} == {"unreadable"}


def test_nothing_goes_where_nothing_was_asked(tmp_path: Path) -> None:
    """Without limits everything is kept."""
    journal = opened(tmp_path / "j")
    fill(journal, 6)
    journal.tidy(now() + 10_000 * DAY * NS)
    journal.close()
    assert numbers(tmp_path / "j")[0] == 1
    assert not retired(tmp_path / "j")


def test_a_chain_with_a_writer_is_not_opened_twice(tmp_path: Path) -> None:
    """Two writers would tear one chain apart."""
    journal = opened(tmp_path / "j")
    with pytest.raises(JournalError, match="another agentwatch"):
        opened(tmp_path / "j")
    journal.close()
