"""What YAML makes of text that looks harmless, answered in words for whoever wrote the rule."""

from __future__ import annotations

import re
from typing import Any

from agentwatch.rules.diagnostics import Report, quote
from agentwatch.rules.model import Place

STAR = 'YAML reads {} as an alias, for it begins with "*"; put it in quotes'
_BRACES = '{} begins with "{}", which opens a {} in YAML; put it in quotes'
_COLON = 'the text after "{}:" has a ": " in it, which begins a new key in YAML; put it in quotes'
_RESERVED = '{} begins with "{}", which YAML reserves; put it in quotes'
_TAB = "YAML is indented with spaces; this line begins with a tab"

_STARRED = re.compile(r"(?:^|[\s\[{,])(\*[^\s,\]}]*)")
_BRACED = re.compile(r"(?::\s+|-\s+|[\[,]\s*)(\{[^{}]*\}[^\s,\]}][^\s,\]]*)")
_BRACKETED = re.compile(r"(?::\s+|-\s+|[\[,]\s*)(\[[^\[\]]*\][^\s,\]}][^\s,\]]*)")
_KEYED = re.compile(r"^\s*(?:- )?([\w.|-]+):\s+[^\"'\[{|>&\s].*?(: |:$)")
_ENDED = re.compile(r"^\s*(?:- )?([\w.|-]+):\s*[{].*[}]\s*(?:\s#.*)?$")  # a mapping in one line
_ENTRY = re.compile(r"\s*([\w.|-]+):(?:\s|$)")
_STARTED = re.compile(r"(?:^|[\s\[{,])([@`%!][^\s,\]}]*)")


def explain(file: str, text: str, error: Any, report: Report) -> None:
    """Report a YAML error: as the trap it probably is, else in the parser's own words."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        report.error("AW104", Place(file, 0, 0), f"this is not YAML: {error.problem}")
        return
    lines = text.split("\n")
    line, column = mark.line, mark.column
    # The parser may stop on a line below the one that misled it.
    for number in dict.fromkeys((line, _context_line(error, line), max(line - 1, 0))):
        found = _trap(lines[number] if number < len(lines) else "", error.problem or "")
        if found is not None:
            report.error("AW105", Place(file, number + 1, found[0] + 1), found[1])
            return
    if "<block mapping start>" in (error.problem or "") and 0 < line < len(lines):
        added = _below(lines, line)
        if added is not None:
            report.error("AW104", Place(file, line + 1, column + 1), added)
            return
    context = f"{error.context}: " if error.context else ""
    message = f"this is not YAML: {context}{error.problem}"
    report.error("AW104", Place(file, line + 1, column + 1), message)


def _below(lines: list[str], line: int) -> str | None:
    """What is wrong with a key that stands deeper than the finished value above it; or None."""
    above = next((text for text in reversed(lines[:line]) if text.strip()), "")
    key, value = _ENDED.search(above), _ENTRY.match(lines[line])
    if key is None or value is None:
        return None
    return (
        f'"{value[1]}" cannot be added to "{key[1]}", which ended on the line above: put it '
        f'inside the braces, or write each key of "{key[1]}" on a line of its own'
    )


def _context_line(error: Any, line: int) -> int:
    """Where a quote, bracket or block that the parser gave up on began; `line` if far away."""
    began = error.context_mark.line if error.context_mark else line
    return int(began) if 0 <= line - began <= 1 else line


def _trap(line: str, problem: str) -> tuple[int, str] | None:
    """(column from 0, message) of the trap in a line, or None."""
    bare = _without_quotes(line)
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return line.index("\t"), _TAB
    for pattern, sign, what in ((_BRACED, "{", "mapping"), (_BRACKETED, "[", "list")):
        if found := pattern.search(bare):
            return found.start(1), _BRACES.format(quote(found[1]), sign, what)
    if found := _STARRED.search(bare):
        return found.start(1), STAR.format(quote(found[1]))
    if "mapping values" in problem and (found := _KEYED.search(bare)):
        return found.start(2), _COLON.format(found[1])
    if found := _STARTED.search(bare):
        return found.start(1), _RESERVED.format(quote(found[1]), found[1][0])
    return None


def _without_quotes(line: str) -> str:
    """The line with what stands in quotes, and comments, made invisible; columns stay."""
    hidden = re.sub(r"\"[^\"]*\"|'[^']*'", lambda found: "_" * len(found[0]), line)
    return re.sub(r"\s#.*$", "", hidden)
