"""docs/packs.md says what the files say."""

from __future__ import annotations

from pathlib import Path

from tests.packs.reference import document


def test_the_page_is_what_the_files_say(repository: Path, packs: Path) -> None:
    """Made anew with `python -m tests.packs.reference` whenever a pack changes."""
    page = (repository / "docs" / "packs.md").read_text(encoding="utf-8")
    assert page == document(packs), "run .venv/bin/python -m tests.packs.reference"
