"""Rules as tests of bits, and the table that selects the few that an event can match.

An event is judged as the kernel will judge it:

    1. byte patterns: the bits of the anchor fields (path, argv, address) select candidate rules
    2. bit tests:     each candidate's conditions, the strictest rule first

A field whose value could not be read has every bit set for rules that restrict and none for those
that loosen (`allow` and `unless`); nor has one that the agent could have made up.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentwatch.events import Event
from agentwatch.lineage import Actor
from agentwatch.policy.index import Index
from agentwatch.policy.readers import FieldType, Values
from agentwatch.rules.model import ACTIONS, SEVERITIES, Condition, Rule

ANCHORS: Mapping[str, tuple[str, ...]] = {
    "exec": ("path", "args", "argv"),
    "connect": ("addr", "unix", "host"),
    "open": ("path",),
    "change": ("path",),
    "listen": ("addr", "unix"),
    "mount": ("path",),
    "ptrace": ("target.exe",),
    "signal": ("target.exe",),
}
"""By the first kind of an event: the fields whose patterns select candidates."""

UNREAD = -1  # every bit
_CANDIDATES_REMEMBERED = 4096
_SHARED_BY_MANY = 16


@dataclass(frozen=True, slots=True)
class Test:
    """A condition. It holds when one of `bits` is set in its field's mask; with `every`, all."""

    condition: Condition
    slot: int
    bits: int
    every: bool

    def holds(self, masks: Masks, restricts: bool) -> bool:
        """For a rule that restricts, or for what loosens one."""
        found = (masks[self.slot] if restricts else masks.certain(self.slot)) & self.bits
        return found == self.bits if self.every else found != 0


@dataclass(frozen=True, slots=True)
class LoweredRule:
    """A rule as tests. unless: each named exception's tests."""

    rule: Rule
    restricts: bool
    tests: tuple[Test, ...]
    unless: tuple[tuple[str, tuple[Test, ...]], ...]


@dataclass(frozen=True, slots=True)
class Field:
    """A field with the index of everything the rules compare it with."""

    name: str
    type: FieldType
    index: Index

    def mask(self, event: Event, actor: Actor) -> int:
        """The bits of the values the field has, UNREAD when they could not be read."""
        return self._mask(self.type.read(event, actor), UNREAD)

    def certain(self, event: Event, actor: Actor) -> int:
        """The bits that what loosens may rest on."""
        return self._mask(self.type.certain(event, actor), 0)

    def _mask(self, values: Values | None, unread: int) -> int:
        if values is None:
            return unread
        mask = 0
        for value in values:
            mask |= self.index.bits(value)
        return mask


class Masks:
    """The masks of one event's fields, each read when it is first asked for."""

    __slots__ = ("_actor", "_event", "_fields", "_known")

    def __init__(self, fields: Sequence[Field], event: Event, actor: Actor) -> None:
        self._fields = fields
        self._event = event
        self._actor = actor
        self._known: list[int | None] = [None] * (2 * len(fields))  # and the certain ones

    def __getitem__(self, slot: int) -> int:
        mask = self._known[slot]
        if mask is None:
            mask = self._known[slot] = self._fields[slot].mask(self._event, self._actor)
        return mask

    def certain(self, slot: int) -> int:
        """The bits that what loosens may rest on: no more than all of them."""
        place = slot + len(self._fields)
        mask = self._known[place]
        if mask is None:
            mask = self._fields[slot].certain(self._event, self._actor) if self[slot] else 0
            self._known[place] = mask
        return mask


def strictness(rule: Rule) -> tuple[int, int, str]:
    """Sorts the strictest rule first, the more severe of equals; by id, for files have no order."""
    return -ACTIONS.index(rule.action), -SEVERITIES.index(rule.severity), rule.id


def failed(rule: LoweredRule, masks: Masks) -> Test | None:
    """The first test of a rule's match that does not hold."""
    for test in rule.tests:
        if not test.holds(masks, rule.restricts):
            return test
    return None


def carved(rule: LoweredRule, masks: Masks) -> str | None:
    """The first exception of a rule that holds. An exception without conditions never does."""
    for name, tests in rule.unless:
        if tests and all(test.holds(masks, False) for test in tests):
            return name
    return None


class Table:
    """The rules for one set of kinds. Candidates come in order of strictness."""

    def __init__(
        self, kinds: tuple[str, ...], rules: Sequence[LoweredRule], fields: Sequence[Field]
    ) -> None:
        wanted = set(kinds)
        self.rules = tuple(rule for rule in rules if not wanted.isdisjoint(rule.rule.on))
        names = {field.name: slot for slot, field in enumerate(fields)}
        slots = [names[name] for name in ANCHORS[kinds[0]] if name in names]
        anchors = [[test for test in rule.tests if test.slot in slots] for rule in self.rules]
        asked = Counter((test.slot, test.bits) for tests in anchors for test in tests)
        self._always: list[int] = []
        # By anchor field and bit: the places of the rules that want the bit.
        self._anchored: dict[int, dict[int, list[int]]] = {}
        for place, tests in enumerate(anchors):
            if not tests:
                self._always.append(place)
                continue
            # The first field, which needs the least reading; where many rules ask the same of it,
            # as of one program's path, what fewest rules ask for.
            anchor = min(tests, key=lambda test: slots.index(test.slot))
            if asked[anchor.slot, anchor.bits] > _SHARED_BY_MANY:
                anchor = min(tests, key=lambda test: asked[test.slot, test.bits])
            wanting = self._anchored.setdefault(anchor.slot, {})
            for bit in _single(anchor.bits):
                wanting.setdefault(bit, []).append(place)
        self._select = functools.lru_cache(_CANDIDATES_REMEMBERED)(self._select_anew)

    def candidates(self, masks: Masks) -> tuple[LoweredRule, ...]:
        """The rules that the anchor fields' patterns leave possible."""
        return self._select(*(masks[slot] for slot in self._anchored))

    def _select_anew(self, *found: int) -> tuple[LoweredRule, ...]:
        places = set(self._always)
        for mask, wanting in zip(found, self._anchored.values(), strict=True):
            for bit in wanting if mask == UNREAD else _single(mask):
                places.update(wanting.get(bit, ()))
        return tuple(self.rules[place] for place in sorted(places))


def _single(mask: int) -> Iterator[int]:
    """The bits of a mask, each as a mask of its own."""
    while mask:
        yield mask & -mask
        mask &= mask - 1
