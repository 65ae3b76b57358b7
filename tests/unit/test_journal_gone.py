"""A journal directory that vanishes under its writer."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from agentwatch.errors import JournalError
from agentwatch.events import Open
from agentwatch.sinks.frames import Kill, Notice
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

REMOVED = "removed while it was written"


def opened(directory: Path, **options: object) -> Journal:
    settings: dict[str, object] = {"boot_id": "boot", "host": "box", "name": "daemon"} | options
    return Journal.open(directory, **settings)  # type: ignore[arg-type]


def until_told(journal: Journal) -> tuple[str, float]:
    """(what flush says once it says something, seconds until then); as the loop calls it."""
    begin = time.monotonic()
    while time.monotonic() < begin + 5:
        try:
            journal.flush()
        except JournalError as error:
            return error.message, time.monotonic() - begin
        time.sleep(0.02)
    raise AssertionError("nobody noticed")


def removed(directory: Path) -> None:
    shutil.rmtree(directory)


def moved(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def emptied(directory: Path) -> None:
    for path in (directory / "daemon").iterdir():
        path.unlink()


def without_chain(directory: Path) -> None:
    shutil.rmtree(directory / "daemon")


@pytest.mark.parametrize("vanish", [removed, moved, emptied, without_chain])
def test_a_journal_that_vanishes_goes_on_in_a_new_one(tmp_path: Path, vanish: object) -> None:
    """Within a second, told once, with its head kept; verify says that the beginning is missing."""
    journal = opened(tmp_path / "j")
    make = Records()
    journal.records(make.open("/before"), 1)
    journal.flush()
    head = journal.head
    vanish(tmp_path / "j")  # type: ignore[operator]
    journal.records(make.open("/meanwhile"), 1)
    message, took = until_told(journal)
    assert "removed or moved" in message
    assert took < 1
    failures = journal.failures
    journal.records(make.open("/after"), 1)
    journal.flush()
    journal.tidy()
    journal.close()
    assert journal.failures == failures == 1
    directory = tmp_path / "j" / "daemon"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    report = verify(tmp_path / "j")[0]
    assert [p.what for p in report.problems] == ["missing"]
    assert "00000001.journal" in report.problems[0].message
    assert report.closed
    assert report.head.sequence > head.sequence
    paths = [e.event.path for e in read(tmp_path / "j") if isinstance(e.event, Open)]
    assert paths[-1] == "/after"
    said = [e.frame.text for e in read(tmp_path / "j") if isinstance(e.frame, Notice)]
    assert said == [f"segments up to 1, frames up to {head.sequence + 1}: {REMOVED}"]


def test_the_beginning_that_was_moved_away_fits_again(tmp_path: Path) -> None:
    """The chain has one head all along: put back together it is intact."""
    journal = opened(tmp_path / "j")
    journal.records(Records().open("/before"), 1)
    journal.flush()
    moved(tmp_path / "j")
    until_told(journal)
    journal.close()
    shutil.copy(tmp_path / "moved" / "daemon" / "00000001.journal", tmp_path / "j" / "daemon")
    assert verify(tmp_path / "j")[0].intact


def test_a_decision_after_the_journal_vanished_is_on_disk(tmp_path: Path) -> None:
    """Once it is noticed, a kill goes into the new journal at once."""
    journal = opened(tmp_path / "j")
    removed(tmp_path / "j")
    time.sleep(0.6)
    with pytest.raises(JournalError):
        journal.write(Kill(process=AGENT, outcome="killed"))
    assert any(isinstance(e.frame, Kill) for e in read(tmp_path / "j"))
    journal.close()


def test_what_comes_while_there_is_no_directory_waits(tmp_path: Path) -> None:
    """A file in its place: each flush says so, and what waited is written once it can be."""
    journal = opened(tmp_path / "j")
    removed(tmp_path / "j")
    (tmp_path / "j").write_text("in the way")
    message, _ = until_told(journal)
    assert "Not a directory" in message
    with pytest.raises(JournalError):
        journal.write(Kill(process=AGENT, outcome="killed", rule="waits"))
    (tmp_path / "j").unlink()
    end = time.monotonic() + 5
    while time.monotonic() < end and not (tmp_path / "j" / "daemon").is_dir():
        with pytest.raises(JournalError):
            journal.flush()
        time.sleep(0.02)
    journal.close()
    kills = [e.frame.rule for e in read(tmp_path / "j") if isinstance(e.frame, Kill)]
    assert kills == ["waits"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only it can give a directory away")
def test_a_directory_that_somebody_else_made_instead_is_refused(tmp_path: Path) -> None:
    """What is made anew is checked anew, from / on."""
    journal = opened(tmp_path / "j")
    removed(tmp_path / "j")
    (tmp_path / "j").mkdir()
    os.chown(tmp_path / "j", 65534, 65534)
    message, _ = until_told(journal)
    assert "uid 65534" in message
    assert os.listdir(tmp_path / "j") == []
    with pytest.raises(JournalError, match="uid 65534"):
        journal.close()


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal named by a relative path is where it was."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    journal = opened(Path("j"))
    monkeypatch.chdir(tmp_path / "other")
    journal.tidy()
    time.sleep(0.6)
    journal.flush()
    journal.close()
    assert verify(tmp_path / "j")[0].intact
    assert not (tmp_path / "other" / "j").exists()
