"""Metrics in a file: whole at each moment, and gone with the daemon."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from agentwatch.errors import AgentwatchError
from agentwatch.sinks.textfile import TextFile

BYTES = 200_000


def test_whoever_reads_it_reads_a_whole_page(tmp_path: Path) -> None:
    """Each page is of one letter; a mixture would be two halves."""
    pages = iter(range(10**6))
    path = tmp_path / "agentwatch.prom"
    file = TextFile(path, lambda: b"%c" % (97 + next(pages) % 26) * BYTES, every=0.001)
    seen = set()
    while len(seen) < 5:
        page = path.read_bytes()
        assert len(page) == BYTES
        assert len(set(page)) == 1
        seen.add(page[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    file.close()
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_fails_is_tried_again(tmp_path: Path) -> None:
    """The one before stays, failures are counted, and the next one is written."""
    again = threading.Event()

    def page() -> bytes:
        if not path.exists():
            return b"first"
        if not again.is_set():
            raise OSError
        return b"then"

    path = tmp_path / "agentwatch.prom"
    file = TextFile(path, page, every=0.001)
    while not file.failures:
        assert path.read_bytes() == b"first"
    again.set()
    while path.read_bytes() != b"then":
        pass
    file.close()


def test_a_place_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(AgentwatchError, match="No such file") as refused:
        TextFile(tmp_path / "none" / "agentwatch.prom", lambda: b"")
    assert "mkdir -p" in refused.value.remedy
