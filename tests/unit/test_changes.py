"""Files that somebody changes while a daemon runs: seen once, and not half way through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.daemon.changes import Changes


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    directory = tmp_path / "rules.d"
    directory.mkdir()
    (directory / "a.yaml").write_text("a")
    (directory / "b.yml").write_text("b")
    return directory


def edited(rules: Path) -> None:
    (rules / "a.yaml").write_text("other")


def replaced(rules: Path) -> None:
    """As editors do: the same size, the same time, another file."""
    before = (rules / "a.yaml").stat()
    (rules / "new").write_text("A")
    os.utime(rules / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(rules / "new", rules / "a.yaml")


def touched(rules: Path) -> None:
    os.utime(rules / "a.yaml", ns=(1, 1))


def added(rules: Path) -> None:
    (rules / "c.yaml").write_text("c")


def removed(rules: Path) -> None:
    (rules / "b.yml").unlink()


def gone(rules: Path) -> None:
    for file in rules.iterdir():
        file.unlink()
    rules.rmdir()


@pytest.mark.parametrize("change", [edited, replaced, touched, added, removed, gone])
def test_a_change_is_told_once_when_it_is_quiet(
    rules: Path, change: Callable[[Path], None]
) -> None:
    """Not at the look that finds it, but at the next one that finds nothing more."""
    changes = Changes()
    changes.took([rules])
    assert not changes.look([rules])
    change(rules)
    assert [changes.look([rules]) for _ in range(4)] == [False, True, False, False]


def test_somebody_who_goes_on_writing_is_waited_for(rules: Path) -> None:
    """Several files written one after the other are one change."""
    changes = Changes()
    changes.took([rules])
    for number in range(5):
        (rules / f"n{number}.yaml").write_text("n")
        assert not changes.look([rules])
    assert changes.look([rules])


def test_what_is_read_meanwhile_is_no_change(rules: Path) -> None:
    """A reload that somebody asked for has read it already."""
    changes = Changes()
    changes.took([rules])
    edited(rules)
    assert not changes.look([rules])
    changes.took([rules])
    assert not changes.look([rules])


def test_other_files_of_the_directory_do_not_matter(rules: Path) -> None:
    """An editor's swap file is no rule file."""
    changes = Changes()
    changes.took([rules])
    (rules / ".a.yaml.swp").write_text("x")
    assert [changes.look([rules]) for _ in range(3)] == [False] * 3


def test_a_single_file_and_one_that_comes_later(tmp_path: Path) -> None:
    """A configuration that is written after the daemon has begun is a change, too."""
    config = tmp_path / "agentwatch.yaml"
    changes = Changes()
    changes.took([config])
    config.write_text("mode: observe")
    assert [changes.look([config]) for _ in range(3)] == [False, True, False]
