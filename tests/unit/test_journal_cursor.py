"""`journal export --cursor`: what has come since the last time, at least once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agentwatch.errors import UsageError
from agentwatch.sinks import cursor
from agentwatch.sinks.frames import Notice
from agentwatch.sinks.journal import Journal


def export(directory: Path, file: Path, stdout: int = subprocess.PIPE) -> tuple[list[str], str]:
    """The texts of the notices that are printed, and what is said on stderr."""
    line = ["-m", "agentwatch", "journal", "export", f"--journal={directory}", f"--cursor={file}"]
    ran = subprocess.run(
        [sys.executable, *line], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )
    texts = [json.loads(one)["message"] for one in (ran.stdout or "").splitlines()]
    return [text for text in texts if "test" in text], ran.stderr


def noted(directory: Path, *texts: str, **options: int) -> None:
    """A run of the daemon that says these."""
    journal = Journal.open(directory, name="daemon", boot_id="boot", host="box", **options)  # type: ignore[arg-type]
    for text in texts:
        journal.write(Notice(subject="test", text=text))
    journal.close()


def test_each_time_only_what_is_new(tmp_path: Path) -> None:
    """Over segments, restarts of the writer and another chain; the file is its owner's alone."""
    directory, file = tmp_path / "j", tmp_path / "cursor"
    noted(directory, "a", "b")
    assert export(directory, file) == (["test: a", "test: b"], "")
    assert export(directory, file) == ([], "")
    noted(directory, "c")
    other = Journal.open(directory, boot_id="boot", host="box")
    other.write(Notice(subject="test", text="d"))
    other.close()
    assert sorted(export(directory, file)[0]) == ["test: c", "test: d"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_nobody_took_is_printed_again(tmp_path: Path) -> None:
    """A pipe that is closed, a full disk behind stdout: the cursor stays where it was."""
    directory, file = tmp_path / "j", tmp_path / "cursor"
    noted(directory, "a")
    full = os.open("/dev/full", os.O_WRONLY)
    export(directory, file, full)
    os.close(full)
    assert not file.exists()
    assert export(directory, file)[0] == ["test: a"]


def test_what_was_retired_before_it_was_exported_is_counted(tmp_path: Path) -> None:
    """The shipper's owner hears how much it is that came too late."""
    directory, file = tmp_path / "j", tmp_path / "cursor"
    noted(directory, "a")
    export(directory, file)
    sizes = {"segment_bytes": 3000, "keep_bytes": 6000}
    journal = Journal.open(directory, name="daemon", boot_id="boot", host="box", **sizes)
    for count in range(200):
        journal.write(Notice(subject="test", text=f"{count} " + "x" * 100))
    journal.tidy()
    journal.close()
    _, said = export(directory, file)
    assert "frames of daemon were retired before they were exported" in said


@pytest.mark.parametrize("text", ["[]", "{", '{"daemon": "x"}'])
def test_a_file_that_is_no_cursor_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    """Everything would be exported again, or nothing."""
    (tmp_path / "cursor").write_text(text)
    with pytest.raises(UsageError, match="cursor"):
        cursor.load(tmp_path / "cursor")
