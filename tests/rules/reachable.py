"""What may still match when a value goes on, worked out in the plainest way, as what matches is in
reference_matcher.py: of an argv that was cut, and of what is below a directory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from agentwatch.events import Event, Exec, Open
from agentwatch.lineage import Actor
from agentwatch.policy.globs import ANY_COMPONENTS, ARGV, PATH, WORD, Atom, Component, rows
from agentwatch.policy.subjects import WORDS
from agentwatch.rules.model import Condition, Rule
from tests.rules.reference_matcher import (
    ARGVS,
    LITERALLY,
    Read,
    Reference,
    Value,
    after,
    component_covers,
    decoded,
    read,
    same,
)

# One text.


def literal_begins(wanted: str, text: bytes, at: int, nocase: bool, spaces: bool = False) -> bool:
    """Whether the text from `at` on, and what may follow it, can begin with a literal."""
    return _follows(wanted, text, at, nocase, spaces) != _NEVER


_NEVER, _LATER = -1, -2


def _follows(wanted: str, text: bytes, at: int, nocase: bool, spaces: bool = False) -> int:
    """Where the literal ends; _LATER where the text ends before that, _NEVER where it differs."""
    for char in wanted:
        if at >= len(text):
            return _LATER
        if spaces and char == " " and text[at : at + 1] in (b" ", b"\0"):
            at += 1
            continue
        found, length = decoded(text, at)
        if not same(char, found, nocase):
            return _NEVER
        at += length
    return at


def component_begins(component: Component, text: bytes, nocase: bool) -> bool:
    """Whether a component can cover the text and more, or just it."""
    places = {0}
    for atom in component:
        if any(_runs_over(atom, text, at, nocase) for at in places):
            return True
        places = {end for at in places for end in after(atom, text, at, nocase)}
    return component_covers(component, text, nocase)


def _runs_over(atom: Atom, text: bytes, at: int, nocase: bool) -> bool:
    if atom.kind == "many" or at >= len(text):
        return True
    return atom.kind == "text" and _follows(atom.text, text, at, nocase) == _LATER


# A row of components.


def _behind(row: Sequence[Component], parts: Sequence[bytes], nocase: bool) -> set[int]:
    """Where in a row what covers the parts may end; a `**` may go on."""
    places = {0}
    for part in parts:
        following: set[int] = set()
        for place in _skipping(row, places):
            if place == len(row):
                continue
            if row[place] == ANY_COMPONENTS:
                following.add(place)
            elif component_covers(row[place], part, nocase):
                following.add(place + 1)
        places = following
    return places


def _skipping(row: Sequence[Component], places: set[int]) -> set[int]:
    """With those behind any `**` that covers no more."""
    found = set(places)
    for place in places:
        while place < len(row) and row[place] == ANY_COMPONENTS:
            place += 1
            found.add(place)
    return found


def row_begins(
    row: Sequence[Component], parts: Sequence[bytes], rest: bytes, nocase: bool = False
) -> bool:
    """Whether a row can cover these parts, one that begins with `rest`, and any more."""
    return any(
        place < len(row)
        and (row[place] == ANY_COMPONENTS or component_begins(row[place], rest, nocase))
        for place in _skipping(row, _behind(row, parts, nocase))
    )


def row_below(row: Sequence[Component], parts: Sequence[bytes], nocase: bool) -> bool:
    """Whether a row can cover what is below a directory; of one that begins anywhere, if it has
    begun with a component of the directory.
    """
    row = list(row)
    if len(row) > 2 and row[:2] == [(), ANY_COMPONENTS]:
        if parts[:1] != [b""]:
            return False
        row, parts = row[1:], parts[1:]
    if row[:1] != [ANY_COMPONENTS]:
        return row_begins(row, parts, b"", nocase)
    while row[:1] == [ANY_COMPONENTS]:
        del row[0]
    return any(row_begins(row, parts[at:], b"", nocase) for at in range(len(parts)))


# Values of conditions.


def path_below(text: str, how: frozenset[str], name: bytes, homes: Sequence[str]) -> bool:
    """Whether something below the directory `name` can be covered."""
    nocase = "nocase" in how
    literally = next((word for word in LITERALLY if word in how), "")
    whole = name if name == b"/" else name + b"/"
    if homes and (text == "~" or text.startswith("~/")):
        if literally:
            return any(_literal_below(literally, home + text[1:], whole, nocase) for home in homes)
        return any(_home_below(home, text[1:], whole, nocase) for home in homes)
    if literally:
        return _literal_below(literally, text, whole, nocase)
    parts = whole[:-1].split(b"/")
    return any(row_below(row, parts, nocase) for row in rows(text, PATH))


def _home_below(home: str, rest: str, whole: bytes, nocase: bool) -> bool:
    end = _follows(home + "/", whole, 0, nocase)
    if end == _LATER:
        return True
    if end == _NEVER or not rest:
        return False
    parts = whole[end - 1 : -1].split(b"/")
    return any(row_begins(row, parts, b"", nocase) for row in rows(rest, PATH))


def _literal_below(how: str, wanted: str, whole: bytes, nocase: bool) -> bool:
    if how == "startswith":
        return literal_begins(wanted, whole, 0, nocase)
    for at in range(len(whole)):
        if at == len(whole) - 1 and wanted[0] == "/":
            continue  # of the directory, that is no more than its end
        end = _follows(wanted, whole, at, nocase)
        if end == _LATER or end == len(whole) or (how == "contains" and end > 0):
            return True
    return False


def argv_begins(text: str, how: frozenset[str], begins: bytes) -> bool:
    """Whether an argv that begins so, and goes on, can be covered."""
    nocase = "nocase" in how
    literally = next((word for word in LITERALLY if word in how), "")
    if "has" in how or literally in ("endswith", "contains"):
        return True  # by what follows
    if literally:
        return literal_begins(text, begins, 0, nocase, True)
    *parts, rest = begins.split(b"\0")
    return any(row_begins(row, parts, rest, nocase) for row in rows(text, ARGV))


def sequence_begins(wanted: Sequence[str], begins: bytes, nocase: bool) -> bool:
    """The same, of an argv that is given token by token."""
    *parts, rest = begins.split(b"\0")
    places = {0}
    for part in [*parts, None]:
        following: set[int] = set()
        for at in _all_behind(wanted, places):
            if at == len(wanted):
                continue
            token = wanted[at]
            if _is_many(token):
                following.add(at)
            elif part is None:
                choices = rows(token, WORD) if token else (((),),)
                if any(component_begins(row[0], rest, nocase) for row in choices):
                    following.add(at + 1)
            elif (not token and not part) or (
                token and any(component_covers(row[0], part, nocase) for row in rows(token, WORD))
            ):
                following.add(at + 1)
        places = following
    return bool(places)


def _is_many(token: str) -> bool:
    return bool(token) and any(row == (ANY_COMPONENTS,) for row in rows(token, WORD))


def _all_behind(wanted: Sequence[str], places: set[int]) -> set[int]:
    found = set(places)
    for at in places:
        while at < len(wanted) and _is_many(wanted[at]):
            at += 1
            found.add(at)
    return found


def is_plain(begins: bytes) -> bool:
    """Whether no character is cut in two."""
    try:
        os.fsencode(begins.decode())
    except UnicodeDecodeError:
        return False
    return True


# Rules.

NAMES = ("path", "unix")
"""Fields that name what may be below a directory."""


@dataclass(frozen=True, slots=True)
class CutExec(Exec):
    """An exec of whose argv, without argv[0], only the beginning could be read."""

    begins: bytes = b""


class _Begins(bytes):
    """What an argv begins with."""


class Reachable(Reference):
    """The rules, asked what may still match."""

    def below(self, event: Open, actor: Actor) -> tuple[Rule, ...]:
        """Those that may stop something below the directory which the event names."""
        return tuple(
            rule
            for rule in self.rules
            if rule.action != "allow"
            and "mount" not in rule.on
            and any(one.field in NAMES for one in rule.match.conditions)
            and self._may_hold(rule.match.conditions, event, actor)
            and not any(
                match.conditions
                and all(_is_of_process(one) for one in match.conditions)
                and self._holds(match, event, actor, False, None)
                for _, match in rule.unless
            )
        )

    def _may_hold(self, conditions: Sequence[Condition], event: Open, actor: Actor) -> bool:
        name = os.fsencode(event.path)
        reached = False
        for one in conditions:
            values = self._values(one)
            known = [value for value in values if value is not None]
            if _is_of_process(one):
                if not self._condition(one, event, actor, True, None):
                    return False
            elif not known or ("all" in one.modifiers and len(known) < len(values)):
                return False
            elif one.field in WORDS and not any(text in WORDS[one.field] for (text,) in known):
                return False  # of which there are no events
            elif one.field in NAMES:
                homes = self._ruleset.homes
                reached |= any(path_below(text, one.modifiers, name, homes) for (text,) in known)
        return reached

    def _read(self, field: str, event: Event, actor: Actor, name: str | None) -> Read:
        if field == "args" and isinstance(event, CutExec):
            return Read((_Begins(event.begins),), certain=False)
        return read(field, event, actor, self._agent, name)

    def _covers(self, condition: Condition, wanted: tuple[str, ...], value: Value | int) -> bool:
        if condition.field not in ARGVS or not isinstance(value, _Begins):
            return super()._covers(condition, wanted, value)
        if condition.sequence:
            return sequence_begins(wanted, value, "nocase" in condition.modifiers)
        return argv_begins(wanted[0], condition.modifiers, value)


def _is_of_process(condition: Condition) -> bool:
    return condition.field.startswith("process.") or condition.field == "agent"
