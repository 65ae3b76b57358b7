"""The file that is installed, and its reference, against the configuration there really is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from agentwatch import config
from agentwatch.config import Breaker, Config, Journal
from agentwatch.config.model import NEEDS_RESTART
from agentwatch.config.values import TIMES

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = REPOSITORY / "packaging" / "agentwatch.yaml"
REFERENCE = REPOSITORY / "docs" / "configuration.md"

# A key that is commented out: no space after the # for one of the file, two for one below it.
COMMENTED = re.compile(r"^#(?=[a-z]|  [a-z])", re.M)
ROW = re.compile(r"^\| `([a-z_.]+)` \| `([^`]+)` \|", re.M)


SET = Config(mode="observe", on_exit="keep")


def written_out(tmp_path: Path) -> Config:
    """The installed file with every default in it."""
    path = tmp_path / "agentwatch.yaml"
    path.write_text(COMMENTED.sub("", INSTALLED.read_text()))
    return config.load(path)


def test_the_installed_file_observes_and_changes_nothing_else() -> None:
    """A new installation stops nothing until somebody says so; a restart of it opens no gap."""
    assert config.load(INSTALLED) == SET


def test_the_installed_file_shows_every_key(tmp_path: Path) -> None:
    """What is not in it would not be found."""
    shown = {key for key, _ in written_out(tmp_path).places}
    assert shown == {*config.KEYS, "journal", "breaker"}


def test_the_values_in_the_installed_file_are_the_defaults(tmp_path: Path) -> None:
    """Taking a # away changes nothing."""
    assert written_out(tmp_path) == SET


def test_the_reference_has_every_key_and_its_default(tmp_path: Path) -> None:
    """A row for each, in the order of the file, and the defaults it claims are those."""
    rows = ROW.findall(REFERENCE.read_text())
    assert [key for key, _ in rows] == list(config.KEYS)
    lines = []
    for key, value in rows:
        section, _, name = key.rpartition(".")
        if section and f"{section}:" not in lines:
            lines.append(f"{section}:")
        lines.append(f"  {name}: {value}" if section else f"{name}: {value}")
    path = tmp_path / "agentwatch.yaml"
    path.write_text("\n".join(lines))
    assert config.load(path) == Config()


def test_the_examples_of_the_reference_are_right(tmp_path: Path) -> None:
    """Each block of YAML in it is a file that is accepted."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", REFERENCE.read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        path = tmp_path / "agentwatch.yaml"
        path.write_text(block)
        assert config.load(path) != Config()


def test_the_reference_has_the_bounds() -> None:
    """Of every number, as messages show them."""
    text = REFERENCE.read_text()
    for quantity in (config.SEGMENT_BYTES, config.KILLS, config.WITHIN):
        assert f"`{quantity.show(quantity.low)}` to `{quantity.show(quantity.high)}`" in text
    low, high = (bound // TIMES["d"] for bound in (config.KEEP_DAYS.low, config.KEEP_DAYS.high))
    assert f"`{low}` to `{high}`" in text


@pytest.mark.parametrize("code", config.CODES)
def test_the_reference_explains_the_codes(code: str) -> None:
    """As the code's own table has them."""
    assert f"| `{code}` | {config.CODES[code].split(' ')[0]} " in REFERENCE.read_text()


def test_the_reference_says_what_a_reload_applies() -> None:
    """Both lists are complete, here and in the installed file."""
    now, later = re.findall(
        r"These (?:take effect|are opened)[^:]*:\s([^.]*)\.", REFERENCE.read_text()
    )
    top = {one.name for one in fields(Config) if one.compare}
    assert set(re.findall("`([a-z_]+)`", later)) == set(NEEDS_RESTART)
    assert set(re.findall("`([a-z_]+)`", now)) == top - set(NEEDS_RESTART)
    head = INSTALLED.read_text()[:800].replace("\n# ", " ")
    assert "cgroup, journal, metrics, socket and group need a restart" in head


def test_keys_are_those_of_the_parts() -> None:
    """Every field of the parts has a dotted key."""
    below = [f"journal.{one.name}" for one in fields(Journal)]
    below += [f"breaker.{one.name}" for one in fields(Breaker)]
    assert [key for key in config.KEYS if "." in key] == below
