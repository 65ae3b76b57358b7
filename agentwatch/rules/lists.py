"""`$name`: the values of lists, written out wherever they are named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentwatch.rules.diagnostics import Report, did_you_mean, quote
from agentwatch.rules.read import MAX_DEPTH, MAX_NODES, Node, Text
from agentwatch.rules.section import as_texts

RESERVED = ("own", "project")
_VARIABLE = re.compile(r"\$([a-z_][a-z0-9_-]*)(/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Written:
    """A list written out, each value once. depth: of the lists inside it, 1 without any."""

    texts: tuple[Text, ...]
    depth: int


class Lists:
    """The lists of all files; lists inside lists are written out, too.

    Each list is written out once, and what all uses together bring in is bounded: a few lines of
    lists in lists could stand for more values than there is memory.
    """

    def __init__(self, nodes: Mapping[str, Node], report: Report) -> None:
        self._nodes = nodes
        self._report = report
        self._known: dict[str, _Written] = {}
        self._brought = 0

    def of(self, name: str) -> tuple[Text, ...]:
        """The values of a list that there is."""
        return self._list(name, ()).texts

    def expand(self, texts: tuple[Text, ...]) -> tuple[Text, ...]:
        """The texts with lists written out. `$own` and `$project/...` stay."""
        found: list[Text] = []
        for text in texts:
            inner = self._inner(text, ())
            found += (text,) if inner is None else inner.texts
        return tuple(found)

    def _list(self, name: str, within: tuple[str, ...]) -> _Written:
        known = self._known.get(name)
        if known is None:
            texts = as_texts(self._nodes[name], self._report, f"list {quote(name)}")
            known = self._known[name] = self._written(texts, (*within, name))
        return known

    def _written(self, texts: tuple[Text, ...], within: tuple[str, ...]) -> _Written:
        found: dict[str, Text] = {}
        depth = 0
        for text in texts:
            inner = self._inner(text, within)
            if inner is None:
                found.setdefault(text.value, text)
                continue
            depth = max(depth, inner.depth)
            for value in inner.texts:
                found.setdefault(value.value, value)
        return _Written(tuple(found.values()), depth + 1)

    def _inner(self, text: Text, within: tuple[str, ...]) -> _Written | None:
        """What a text stands for that names a list, nothing when it is wrong; None for others."""
        name = variable(text.value)
        if name is None or name == "project" or (name == "own" and text.value == "$own"):
            return None
        wrong = self._wrong(text, name, within)
        if wrong is None:
            inner = self._list(name, within)
            wrong = self._too_much(inner, within)
            if wrong is None:
                return inner
        self._report.error(wrong[0], text.place, wrong[1])
        return _Written((), 0)

    def _wrong(self, text: Text, name: str, within: tuple[str, ...]) -> tuple[str, str] | None:
        """(code, message) of what is wrong with naming a list here."""
        if name in within:
            return "AW308", f"the list {quote(name)} contains itself"
        if text.value != f"${name}":
            return "AW207", f"only $project can have a path behind it, {quote('$' + name)} cannot"
        if name not in self._nodes:
            hint = did_you_mean(name, (*self._nodes, *RESERVED))
            return "AW302", f"there is no list {quote(name)}.{hint}"
        return _TOO_DEEP if len(within) >= MAX_DEPTH else None

    def _too_much(self, inner: _Written, within: tuple[str, ...]) -> tuple[str, str] | None:
        if len(within) + inner.depth > MAX_DEPTH:
            return _TOO_DEEP
        self._brought += len(inner.texts)
        return _TOO_MANY if self._brought > MAX_NODES else None


_TOO_DEEP = ("AW103", f"lists are inside lists more than {MAX_DEPTH} deep")
_TOO_MANY = ("AW103", f"the lists bring in more than {MAX_NODES} values; use fewer, or globs")


def variable(value: str) -> str | None:
    """The name of the variable that a value is or begins with, or None."""
    found = _VARIABLE.fullmatch(value)
    return found[1] if found else None
