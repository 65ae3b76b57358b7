"""YAML to a tree of three kinds of node, each with its place. The only module that calls ruamel.

Scalars stay text: what `443`, `true` or `on` mean is for whoever reads the node. The tree is built
from the parser's events, so that size, depth and the growth through anchors are bounded before
anything is built.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, __with_libyaml__
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from agentwatch.rules import traps
from agentwatch.rules.diagnostics import Report, quote
from agentwatch.rules.model import Place

# Libyaml speaks YAML 1.1, where more characters end a line; and tabs part words in one only.
_READ_DIFFERENTLY = re.compile(r"[\t\x85\u2028\u2029\ufeff]|^%", re.MULTILINE)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
HAS_LIBYAML: bool = __with_libyaml__
MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 500_000


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar. plain: it stood without quotes, so YAML might have meant a null or a number."""

    value: str
    plain: bool
    place: Place

    @property
    def null(self) -> bool:
        return self.plain and self.value in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, in the order of the file, no key twice."""

    entries: tuple[tuple[Text, Node], ...]
    place: Place

    def get(self, key: str) -> Node | None:
        """The value of a key, None where it is missing."""
        return next((value for name, value in self.entries if name.value == key), None)


Node = Text | Items | Table


def read(path: Path, report: Report) -> Node | None:
    """The document in a file; None when it is empty or what is wrong has been reported."""
    text = _text(path, report)
    if text is None:
        return None
    report.source(str(path), text)
    try:
        return _document(str(path), text, report)
    except _Refused:
        return None
    except ReaderError as error:
        _unreadable_character(str(path), text, error, report)
    except MarkedYAMLError as error:
        traps.explain(str(path), text, error, report)
    except YAMLError as error:
        report.error("AW104", Place(str(path), 0, 0), f"this is not YAML: {error}")
    return None


def _text(path: Path, report: Report) -> str | None:
    whole = Place(str(path), 0, 0)
    try:
        raw = _content(path)
    except OSError as error:
        report.error("AW101", whole, f"cannot read it: {error.strerror}.{_remedy(path)}")
        return None
    if raw is None:
        message = "it is no regular file, and nothing else is read: name a regular file"
        report.error("AW101", whole, message)
        return None
    if len(raw) > MAX_BYTES:
        report.error("AW103", whole, f"the file is larger than {MAX_BYTES >> 20} MiB; split it")
        return None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        message = f"the byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        report.error("AW102", Place(str(path), line, column), message)
        return None


def _content(path: Path) -> bytes | None:
    """One byte more than MAX_BYTES at most; None for what would block or act when it is opened."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        return None
    # Something else may have taken its place since: opened without waiting, and looked at again.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(MAX_BYTES + 1)


def _remedy(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return " Check the path."
    return (
        f" Its mode is {mode:04o}; run as a user that may read it."
        if path.is_file()
        else " Check the path."
    )


def _document(file: str, text: str, report: Report) -> Node | None:
    """Read by libyaml where it is there, which is fifteen times as fast; what it refuses is read
    again in Python, whose words for what is wrong are the ones we know.
    """
    if HAS_LIBYAML and not _READ_DIFFERENTLY.search(text):
        with suppress(YAMLError):
            return _Reader(file, _events(text, pure=False), report).document()
    return _Reader(file, _events(text, pure=True), report).document()


def _events(text: str, pure: bool) -> Iterator[Any]:
    if pure:
        return iter(YAML(typ="safe", pure=True).parse(text))
    # What YAML(pure=False).parse does, without asking thrice for each event.
    from ruamel.yaml.cyaml import CParser  # type: ignore[attr-defined]  # there with libyaml only

    return iter(CParser(text).get_event, None)


def _unreadable_character(file: str, text: str, error: Any, report: Report) -> None:
    """A control character: found by hand, for the parsers place it differently."""
    for number, line in enumerate(text.split("\n"), 1):
        for column, char in enumerate(line, 1):
            if _FORBIDDEN.match(char):
                message = f"the character U+{ord(char):04X} is not allowed in YAML; remove it"
                report.error("AW102", Place(file, number, column), message)
                return
    report.error("AW102", Place(file, 0, 0), f"a character is not allowed in YAML: {error}")


class _Refused(Exception):
    """The file broke a bound; what is wrong has been reported."""


class _Reader:
    """Builds the tree of one document from the parser's events."""

    def __init__(self, file: str, events: Iterator[Any], report: Report) -> None:
        self.file = file
        self.events = events
        self.report = report
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self.events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                if root is not None:
                    raise self.refuse(
                        "AW202",
                        self.place(event),
                        "a second document begins here; use a file for each",
                    )
                root = self.node(next(self.events), 0)
        return None if isinstance(root, Text) and root.null else root

    def place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1)

    def refuse(self, code: str, place: Place, message: str) -> _Refused:
        self.report.error(code, place, message)
        return _Refused()

    def node(self, event: Any, depth: int) -> Node:
        place = self.place(event)
        kind = type(event).__name__
        if kind == "AliasEvent":
            return self.alias(event, place)
        before = self.nodes
        self.grow(1, place)
        if event.tag is not None:
            self.report.error(
                "AW105", place, 'text that begins with "!" is a tag to YAML; quote it'
            )
        if depth > MAX_DEPTH:
            raise self.refuse("AW103", place, f"this is nested more than {MAX_DEPTH} deep")
        if kind == "ScalarEvent":
            found: Node = Text(event.value, not event.style, place)
        elif kind == "SequenceStartEvent":
            found = Items(tuple(self.items(depth)), place)
        else:
            found = Table(tuple(self.entries(depth)), place)
        if event.anchor is not None:
            self.anchors[event.anchor] = (found, self.nodes - before)
        return found

    def grow(self, nodes: int, place: Place) -> None:
        """Aliases count as often as they are used: what they stand for is walked as often."""
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            message = f"the file stands for more than {MAX_NODES} values; use fewer or no anchors"
            raise self.refuse("AW103", place, message)

    def alias(self, event: Any, place: Place) -> Node:
        known = self.anchors.get(event.anchor)
        if known is None:
            word = "*" + event.anchor
            raise self.refuse("AW105", place, traps.STAR.format(quote(word)))
        self.grow(known[1], place)
        return known[0]

    def items(self, depth: int) -> Iterator[Node]:
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                return
            yield self.node(event, depth + 1)

    def entries(self, depth: int) -> Iterator[tuple[Text, Node]]:
        seen: dict[str, int] = {}
        for event in self.events:
            if type(event).__name__ == "MappingEndEvent":
                return
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            if not isinstance(key, Text):
                self.report.error(
                    "AW202", key.place, "a key must be text; quote it if it is a glob"
                )
            elif key.value in seen:
                message = f"the key {quote(key.value)} is already on line {seen[key.value]}"
                self.report.error("AW106", key.place, message)
            else:
                seen[key.value] = key.place.line
                yield key, _behind(key, value)


def _behind(key: Text, value: Node) -> Node:
    """A value that is not there stands behind its key; the parsers put it elsewhere."""
    if not isinstance(value, Text) or value.value or not value.plain:
        return value
    place = Place(key.place.file, key.place.line, key.place.column + len(key.value) + 1)
    return Text("", True, place)
