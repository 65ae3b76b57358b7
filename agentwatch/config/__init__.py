"""agentwatch.yaml: what the daemon is told, validated as a whole (docs/configuration.md).

Reading, YAML's traps and how mistakes are shown are those of rule files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from agentwatch.config.model import KEYS, Audit, Breaker, Config, Journal, Reload
from agentwatch.config.values import (
    BYTES,
    COUNTS,
    TIMES,
    Address,
    Quantity,
    absolute,
    file_path,
    group,
    is_directory,
    metrics,
    socket_path,
)
from agentwatch.errors import ConfigErrors
from agentwatch.rules.diagnostics import Report, quote
from agentwatch.rules.model import MODES, WITHOUT_HOOK
from agentwatch.rules.read import Items, Node, Table, Text, read
from agentwatch.rules.section import Section, as_text, as_texts, is_word, wrong

__all__ = ["DEFAULT", "KEYS", "Address", "Audit", "Breaker", "Config", "Journal", "Reload", "load"]

DEFAULT = Path("/etc/agentwatch/agentwatch.yaml")
AUDITS = ("all", "findings")
ON_LOSS = ("log", "freeze", "kill")
ON_EXIT = ("keep", "release")
CODES = {
    "AW511": "a number out of its bounds",
    "AW512": "a path that is not written from / on, or is too long",
    "AW513": "two values that contradict each other",
    "AW514": "a path where nothing is, or something else than the key needs",
}
"""Codes of this file alone; the others mean what they mean in rule files."""

ENTRIES_MAX = 1000  # keys of a mapping, items of a list: each may cost a look-up and a message

_SIZE = "a number of bytes, or one with a unit (B, KiB, MiB, GiB or TiB) as in 64MiB"
_TIME = "a number of {}, or one with a unit (ms, s, m, h or d) as in {}"
_DAY = TIMES["d"]
SEGMENT_BYTES = Quantity(BYTES, "B", _SIZE, 1 << 20, 192 << 20)  # the reader's limit, with a margin
KEEP_BYTES = Quantity(BYTES, "B", _SIZE, 1 << 20, 1 << 50)
KEEP_DAYS = Quantity(TIMES, "d", _TIME.format("days", "30d"), _DAY, 36500 * _DAY, _DAY)
FSYNC = Quantity(
    TIMES, "s", _TIME.format("seconds", "1s") + ", or never", 0, TIMES["h"], TIMES["ms"]
)
KILLS = Quantity(COUNTS, "", "a whole number", 1, 1_000_000)
WITHIN = Quantity(TIMES, "s", _TIME.format("seconds", "10s"), TIMES["ms"], _DAY, TIMES["ms"])

T = TypeVar("T")
Reader = Callable[[Text, Report, str], T | None]
"""What reads one value, or reports it: a Quantity's read, address, a path."""


def load(path: Path | None = None) -> Config:
    """The configuration in a file; without a path in DEFAULT, where it may be missing.

    Raises ConfigErrors with everything that is wrong in it.
    """
    file = path or DEFAULT
    if path is None and not _is_there(file):
        return Config()
    report = Report()
    root = read(file, report)
    config = Config(path=file)
    if isinstance(root, Table):
        if _is_short(root, report, "the configuration"):
            config = _config(file, root, report)
    elif root is not None:
        known = ", ".join(one.name for one in fields(Config) if one.compare)
        wrong(root, report, "the configuration", f"a mapping ({known})")
    if report.errors_found:
        raise ConfigErrors(report.all)
    return config


def _is_there(file: Path) -> bool:
    """A link to nowhere is there, and what cannot be looked at may be: reading it says so."""
    try:
        os.lstat(file)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _config(file: Path, root: Table, report: Report) -> Config:
    known = [one.name for one in fields(Config) if one.compare]
    section = Section(root, report, "the configuration", known)
    journal, breaker = _part(section, "journal", Journal), _part(section, "breaker", Breaker)
    default = Config()
    audit, audited = _audit(section)
    agents, tagged = _agents(section)
    return Config(
        mode=section.word("mode", MODES, default.mode),
        rules=_rules(section),
        agents=agents,
        audit=audit,
        without_hook=section.word("without_hook", WITHOUT_HOOK, default.without_hook),
        on_loss=section.word("on_loss", ON_LOSS, default.on_loss),
        on_exit=section.word("on_exit", ON_EXIT, default.on_exit),
        cgroup=_unless(section, "cgroup", "root", _cgroup, None),
        journal=_journal(journal),
        jsonl=_unless(section, "jsonl", "off", file_path, None),
        metrics=_metrics(section, default.metrics),
        socket=_value(section, "socket", socket_path, default.socket),
        group=_unless(section, "group", "none", group, None),
        breaker=_breaker(breaker),
        path=file,
        places=tuple(
            (prefix + key.value, key.place)
            for prefix, part in (("", section), ("journal.", journal), ("breaker.", breaker))
            for key, _ in part.table.entries
        ),
        agents_named=tagged + audited,
        report=report,
    )


def _value(section: Section, key: str, reader: Reader[T], default: T) -> T:
    """The value of a key; the default without it, and where it is wrong."""
    node = section.get(key)
    text = as_text(node, section.report, quote(key)) if node is not None else None
    found = reader(text, section.report, quote(key)) if text is not None else None
    return default if found is None else found


def _unless(
    section: Section, key: str, word: str, reader: Reader[T], default: T | None
) -> T | None:
    """The value of a key that may also be a word for nothing of the kind."""
    node = section.get(key)
    if isinstance(node, Text) and node.value == word:
        return None
    return _value(section, key, reader, default)


def _metrics(section: Section, default: Address | Path | None) -> Address | Path | None:
    node = section.get("metrics")
    text = as_text(node, section.report, quote("metrics")) if node is not None else None
    if text is None:
        return default
    return None if text.value == "off" else metrics(text, section.report, quote("metrics"))


def _part(section: Section, key: str, kind: type[Journal] | type[Breaker]) -> Section:
    """The mapping of a key; an empty one without it."""
    table = section.table_of(key) or Table((), section.place)
    if not _is_short(table, section.report, quote(key)):
        table = Table((), section.place)
    return Section(table, section.report, quote(key), [one.name for one in fields(kind)])


def _is_short(node: Table | Items, report: Report, what: str) -> bool:
    count = len(node.entries if isinstance(node, Table) else node.items)
    if count > ENTRIES_MAX:
        message = f"{what} has {count} entries; {ENTRIES_MAX} at most are read"
        report.error("AW103", node.place, message)
    return count <= ENTRIES_MAX


def _texts(node: Node, report: Report, what: str, wanted: str) -> tuple[Text, ...]:
    """One text or those of a list. wanted: what else the key may be, for a message."""
    if isinstance(node, Table) or (isinstance(node, Text) and node.null):
        wrong(node, report, what, wanted)
        return ()
    if isinstance(node, Items) and not _is_short(node, report, what):
        return ()
    return as_texts(node, report, what)


def _rules(section: Section) -> tuple[Path, ...]:
    node = section.get("rules")
    if node is None or (isinstance(node, Text) and node.value == "default"):
        return ()
    if isinstance(node, Items) and not node.items:
        message = "a daemon without rules stops nothing; name some, or leave the key out"
        section.report.error("AW207", node.place, message)
    found = []
    for text in _texts(node, section.report, quote("rules"), "default or a list of paths"):
        path = absolute(text, section.report, quote("rules"))
        if path is not None and _is_readable(path, text, section.report):
            found.append(path)
    return tuple(dict.fromkeys(found))


def _is_readable(path: Path, text: Text, report: Report) -> bool:
    try:
        path.stat()
    except OSError as error:
        message = f"there are no rules at {quote(text.value)}: {error.strerror}; correct the path"
        report.error("AW514", text.place, message)
        return False
    return True


def _agents(section: Section) -> tuple[tuple[str, ...] | None, tuple[Text, ...]]:
    """Those to tag, and where they are named."""
    node = section.get("agents")
    if node is None or (isinstance(node, Text) and node.value == "all"):
        return None, ()
    texts = _texts(node, section.report, quote("agents"), "all or a list of agents")
    return tuple(dict.fromkeys(text.value for text in texts)), texts


def _audit(section: Section) -> tuple[Audit, tuple[Text, ...]]:
    """What is journaled of whom, and where agents are named."""
    node = section.get("audit")
    if not isinstance(node, Table):
        return Audit(section.word("audit", AUDITS, Audit().default)), ()
    found: dict[str, str] = {}
    for name, value in node.entries if _is_short(node, section.report, quote("audit")) else ():
        what = f"audit of {quote(name.value)}"
        text = as_text(value, section.report, what)
        if text is not None and is_word(text, AUDITS, section.report, what):
            found[name.value] = text.value
    default = found.pop("default", Audit().default)
    named = tuple(name for name, _ in node.entries if name.value in found)
    return Audit(default, tuple(found.items())), named


def _cgroup(text: Text, report: Report, what: str) -> Path | None:
    path = absolute(text, report, what)
    if path is None:
        return None
    # Every directory of cgroup2 has this file, and none of the old hierarchies.
    if is_directory(path) and is_directory(path / "cgroup.controllers") is False:
        return path
    message = (
        f"{what} must be a directory of the cgroup2 hierarchy, and {quote(text.value)} is none; "
        "`findmnt -t cgroup2` shows where that is"
    )
    report.error("AW514", text.place, message)
    return None


def _journal(section: Section) -> Journal:
    default, before = Journal(), section.report.errors_found
    fsync = None if default.fsync is None else round(default.fsync * TIMES["s"])
    fsync = _unless(section, "fsync", "never", FSYNC.read, fsync)
    found = Journal(
        dir=_value(section, "dir", _directory, default.dir),
        segment_bytes=_value(section, "segment_bytes", SEGMENT_BYTES.read, default.segment_bytes),
        keep_bytes=_value(section, "keep_bytes", KEEP_BYTES.read, default.keep_bytes),
        keep_days=_value(section, "keep_days", KEEP_DAYS.read, default.keep_days * _DAY) // _DAY,
        fsync=None if fsync is None else fsync / TIMES["s"],
    )
    if section.report.errors_found == before and found.segment_bytes > found.keep_bytes:
        node = section.get("keep_bytes") or section.get("segment_bytes") or section.table
        message = (
            f"keep_bytes ({KEEP_BYTES.show(found.keep_bytes)}) is less than one segment "
            f"(segment_bytes: {KEEP_BYTES.show(found.segment_bytes)}); "
            "keep more, or make segments smaller"
        )
        section.report.error("AW513", node.place, message)
    return found


def _directory(text: Text, report: Report, what: str) -> Path | None:
    path = absolute(text, report, what)
    if path is None or is_directory(path) is not False:
        return path
    message = f"{what} must be a directory, and {quote(text.value)} is something else"
    report.error("AW514", text.place, f"{message}; name another one")
    return None


def _breaker(section: Section) -> Breaker:
    default = Breaker()
    return Breaker(
        kills=_value(section, "kills", KILLS.read, default.kills),
        within=_value(section, "within", WITHIN.read, default.within),
    )
