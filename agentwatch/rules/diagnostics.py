"""Findings in rule files: collected, all of all files, and shown with the line and a caret."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from agentwatch.errors import Diagnostic
from agentwatch.rules.model import Place

# What each code is about; messages are made where they are found.
CODES = {
    "AW101": "a file or directory that is not there, cannot be read, or holds no rules",
    "AW102": "a file that is not UTF-8 text, or has characters YAML does not allow",
    "AW103": "a file that is too large, too deep, or grows too much through anchors",
    "AW104": "not YAML",
    "AW105": "YAML reads it as something else than what was probably meant",
    "AW106": "the same key twice",
    "AW201": "an unknown key or field",
    "AW202": "a value of the wrong type",
    "AW203": "a key that is missing",
    "AW204": "a word that is none of those possible",
    "AW205": "a modifier that is unknown, or not for this field",
    "AW206": "part of the language, but not supported yet",
    "AW207": "a malformed value",
    "AW208": "a field that events of this kind do not have",
    "AW301": "the same id or name twice",
    "AW302": "a list, agent or rule that nobody defines",
    "AW303": "a rule that can never match",
    "AW304": "a rule that denies everything",
    "AW305": "an identity that covers programs that are no agents",
    "AW306": "an identity that the kernel cannot look for",
    "AW307": "a path that is not written as paths are matched",
    "AW308": "a list that contains itself",
    "AW309": "overrides in a file that ships with the product",
    "AW310": "a rule that insists on a hook this host does not have",
    "AW311": "an action that the rest of the rule does not go with",
    "AW401": "a test of a rule that fails",
    "AW402": "a test of a rule that is not finished",
    "AW501": "a rule without tests",
    "AW502": "an allow rule that makes no hole",
    "AW503": "an exception or allow rule that rests on what an agent chooses, and never holds",
    "AW504": "a file without rules",
    "AW505": "an exception or allow rule that spares nothing here, for no probe gives what it asks",
}


MAX_FINDINGS = 1000
LONGEST_SOURCE = 400  # characters of a line that are shown with a finding


class TooMany(Exception):
    """There are MAX_FINDINGS, which is more than anybody reads: the load ends here."""


class Report:
    """Collects what is found in the files of one load. Each finding is kept once.

    Adding one raises TooMany when there are too many; the last one says so.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, int, str, str], Diagnostic] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        self.errors_found = 0

    def source(self, file: str, text: str) -> None:
        """The text that later findings in this file quote a line of."""
        self._sources[file] = tuple(text.split("\n"))

    def error(self, code: str, place: Place, message: str) -> None:
        self._add("error", code, place, message)

    def warning(self, code: str, place: Place, message: str) -> None:
        self._add("warning", code, place, message)

    def _add(self, severity: str, code: str, place: Place, message: str) -> None:
        lines = self._sources.get(place.file, ())
        source = lines[place.line - 1].rstrip("\r") if 0 < place.line <= len(lines) else ""
        if len(source) > LONGEST_SOURCE:
            source = ""
        found = Diagnostic(place.file, place.line, place.column, severity, code, message, source)
        key = (place.file, place.line, place.column, code, message)
        if key not in self._found:
            self._found[key] = found
            self.errors_found += severity == "error"
        if len(self._found) == MAX_FINDINGS:
            message = f"there are more than {MAX_FINDINGS} findings; these are the first of them"
            last = Diagnostic(place.file, 0, 0, "error", "AW103", message)
            self._found[place.file, 0, 0, "AW103", message] = last
            self.errors_found += 1
            raise TooMany

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.all if d.severity == "error")

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.all if d.severity == "warning")

    @property
    def all(self) -> tuple[Diagnostic, ...]:
        """Every finding, by file, line and column."""
        return tuple(sorted(self._found.values(), key=lambda d: (d.file, d.line, d.column)))


def render(found: Diagnostic) -> str:
    """`file:line:col: error[AW201]: message`, then the source line and a caret under the column."""
    file = _printable(found.file)
    where = f"{file}:{found.line}:{found.column}" if found.line else file
    head = f"{where}: {found.severity}[{found.code}]: {found.message}"
    if not found.source or not found.column:
        return head
    # Tabs stay tabs, so that the caret stands where the terminal puts the column.
    pad = "".join("\t" if char == "\t" else " " for char in found.source[: found.column - 1])
    return f"{head}\n    {_printable(found.source)}\n    {pad}^"


def _printable(text: str) -> str:
    """A line of somebody's file, without what would steer a terminal."""
    if text.isprintable():
        return text
    shown = (char if char.isprintable() or char == "\t" else "\ufffd" for char in text)
    return "".join(shown)


def quote(text: str) -> str:
    """Somebody's text for a message: in double quotes, short, on one line."""
    shown = text if len(text) <= 60 else text[:59] + "…"
    return '"' + _printable(shown).replace("\t", " ") + '"'


def names(words: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    found = list(words)
    if len(found) < 2:
        return "".join(found)
    return f"{', '.join(found[:-1])} or {found[-1]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean "path"?` for the likeliest of what is known, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {quote(close[0])}?" if close else ""
