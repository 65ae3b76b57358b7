"""The rules as one agent in one project meets them, ready to be asked.

Lowering turns every alternative of every condition into a bit of its field's index and every
condition into a test of such bits. That is done once for all agents and projects; only what names
`$own` or `$project` is lowered again for each of them, into bits behind the shared ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentwatch.errors import AgentwatchError
from agentwatch.events import Event, Exec
from agentwatch.lineage import Actor
from agentwatch.policy import patterns
from agentwatch.policy.index import (
    AddressIndex,
    Index,
    JoinedIndex,
    NumberIndex,
    PatternIndex,
    Search,
)
from agentwatch.policy.readers import ADDRESS, FIELDS, KIND_SETS, NUMBER, FieldType, Values
from agentwatch.policy.table import (
    Field,
    LoweredRule,
    Masks,
    Table,
    Test,
    carved,
    failed,
    strictness,
)
from agentwatch.rules.model import ACTIONS, ALL, Agent, Condition, Match, Rule, Ruleset

REMEDY = "agentwatch rules check"
_PROJECT = re.compile(r"(?<!\\)\$project\b")
_NO_BITS = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the engine knows of an exec. identify: the agent it starts, or None. written:
    whether its session wrote the executable.
    """

    identify: Callable[[Exec], str | None]
    written: Callable[[Exec], bool]


class Policy:
    """What the rules mean for one agent ("" for a session of none) and one project."""

    def __init__(self, shared: Shared, agent: str, project: str | None) -> None:
        self.agent = agent
        self.defaults = _strictest(shared.defaults.get(ALL, {}), shared.defaults.get(agent, {}))
        own = next((a.own for a in shared.agents if a.id == agent), ())
        bits = _Bits(shared.bits, own, project)
        lowered = [
            _lowered(rule, bits) if variable else rule_lowered
            for rule, rule_lowered, variable in shared.rules
            if not rule.agents or agent in rule.agents
        ]
        self.fields = _fields(shared, bits, {**FIELDS, **_rule_fields(agent, shared.facts)})
        self.tables = {kinds: Table(kinds, lowered, self.fields) for kinds in KIND_SETS}

    def hits(self, kinds: tuple[str, ...], event: Event, actor: Actor) -> tuple[Rule, ...]:
        """The rules that match an event and are not carved out, the strictest first."""
        table = self.tables[kinds]
        if not table.rules:
            return ()
        masks = Masks(self.fields, event, actor)
        return tuple(
            candidate.rule
            for candidate in table.candidates(masks)  # 1. byte patterns
            if failed(candidate, masks) is None  # 2. bit tests
            and carved(candidate, masks) is None
        )

    def default(self, kinds: tuple[str, ...], hits: Iterable[Rule]) -> tuple[str, str] | None:
        """The strictest default, as (kind, action), that no allow rule makes a hole in."""
        if not self.defaults:
            return None
        allowed = {kind for rule in hits if rule.action == "allow" for kind in rule.on}
        if "open" in allowed:  # which is reading and changing
            allowed |= {"read", "change"}
        elif kinds != ("open",) and allowed.issuperset(set(kinds) - {"open"}):
            allowed.add("open")
        closed = [
            (kind, self.defaults[kind]) for kind in kinds if kind in self.defaults.keys() - allowed
        ]
        return max(closed, key=lambda row: ACTIONS.index(row[1]), default=None)


class Shared:
    """What the rules mean for every agent and project alike.

    rules: each rule, the strictest first, lowered, and whether it names `$own` or `$project` (then
    it is lowered without their values, and that again by each policy). Raises AgentwatchError for
    a rule that cannot be judged faithfully.
    """

    def __init__(self, ruleset: Ruleset, facts: Facts) -> None:
        self.agents: Sequence[Agent] = ruleset.agents
        self.facts = facts
        self.homes = ruleset.homes
        self.defaults: dict[str, dict[str, str]] = {}
        for default in ruleset.defaults:
            known = self.defaults.get(default.agent, {})
            self.defaults[default.agent] = _strictest(known, {default.kind: default.action})
        self.bits = _Bits()
        self.rules = tuple(
            (rule, _lowered(rule, self.bits), _is_variable(rule))
            for rule in sorted(ruleset.rules, key=strictness)
        )
        types = {**FIELDS, **_rule_fields("", facts)}
        self.indexes = {
            name: _index(name, types[name].type, tuple(self.bits.of(slot)), self.homes)
            for name, slot in self.bits.slots.items()
        }


def _strictest(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """By kind, the stricter of two defaults."""
    return {
        kind: max(one.get(kind, "allow"), other.get(kind, "allow"), key=ACTIONS.index)
        for kind in (*one, *other)
    }


class _Bits:
    """Gives every distinct alternative of every field its bit, in order.

    Those of a policy begin where the shared ones end; a shared alternative keeps its bit.
    """

    def __init__(
        self, shared: _Bits | None = None, own: tuple[str, ...] = (), project: str | None = None
    ) -> None:
        self.shared = shared
        self.slots: dict[str, int] = shared.slots if shared else {}
        self._own, self._project = own, project
        self._alternatives: dict[int, dict[_Alternative, int]] = {}

    def of(self, slot: int) -> dict[_Alternative, int]:
        """The alternatives of a field that are not shared ones, with their bits."""
        return self._alternatives.setdefault(slot, {})

    def bit(self, slot: int, alternative: _Alternative) -> int:
        common = self.shared.of(slot) if self.shared else {}
        if alternative in common:
            return 1 << common[alternative]
        known = self.of(slot)
        return 1 << known.setdefault(alternative, len(common) + len(known))

    def filled(self, condition: Condition) -> Iterable[_Alternative | None]:
        """The alternatives with variables filled in; None for one that nothing can match."""
        modifiers = condition.modifiers - {"all"}
        if condition.sequence:
            tokens = [self._fill(value, modifiers) for value in condition.values]
            known = tuple(token[0] for token in tokens if token)
            yield _Alternative(known, modifiers, True) if len(known) == len(tokens) else None
            return
        for value in condition.values:
            filled = self._fill(value, modifiers)
            yield from (_Alternative((text,), modifiers) for text in filled)
            if not filled:
                yield None

    def _fill(self, value: str, modifiers: frozenset[str]) -> tuple[str, ...]:
        if value == "$own":
            return self._own
        if "re" in modifiers or not _PROJECT.search(value):
            return (value,)
        if self._project is None:
            return ()
        literal = modifiers & {"startswith", "endswith", "contains", "cidr"}
        project = self._project if literal else patterns.escape(self._project)
        return (_PROJECT.sub(lambda _: project, value),)


@dataclass(frozen=True, slots=True)
class _Alternative:
    """One value of a condition, or the tokens of an argv as one."""

    values: tuple[str, ...]
    modifiers: frozenset[str]
    sequence: bool = False


def _is_variable(rule: Rule) -> bool:
    matches = (rule.match, *(match for _, match in rule.unless))
    return any(
        value == "$own" or "$project" in value
        for match in matches
        for condition in match.conditions
        for value in condition.values
    )


def _lowered(rule: Rule, bits: _Bits) -> LoweredRule:
    try:
        return LoweredRule(
            rule,
            rule.action != "allow",
            _tests(rule.match, bits),
            tuple((name, _tests(match, bits)) for name, match in rule.unless),
        )
    except ValueError as error:
        raise AgentwatchError(f"rule {rule.id}: {error}", REMEDY) from None


def _tests(match: Match, bits: _Bits) -> tuple[Test, ...]:
    return tuple(_test(condition, bits) for condition in match.conditions)


def _test(condition: Condition, bits: _Bits) -> Test:
    if condition.field not in FIELDS and condition.field not in _RULE_FIELDS:
        raise ValueError(f"the engine cannot judge the field {condition.field!r} yet")
    slot = bits.slots.setdefault(condition.field, len(bits.slots))
    every = "all" in condition.modifiers
    wanted = _NO_BITS
    for alternative in bits.filled(condition):
        if alternative is not None:
            wanted |= bits.bit(slot, alternative)
        elif every:
            return Test(condition, slot, _NO_BITS, False)
    return Test(condition, slot, wanted, every and wanted != _NO_BITS)


def _fields(shared: Shared, bits: _Bits, types: Mapping[str, FieldType]) -> tuple[Field, ...]:
    found = []
    for name, slot in bits.slots.items():
        index = shared.indexes[name]
        more = tuple(bits.of(slot))
        if more:
            own = _index(name, types[name].type, more, shared.homes)
            index = JoinedIndex(index, own, len(shared.bits.of(slot)))
        found.append(Field(name, types[name], index))
    return tuple(found)


def _expression(alternative: _Alternative, separator: str, homes: tuple[str, ...]) -> str:
    if alternative.sequence:
        return patterns.sequence(alternative.values, alternative.modifiers)
    modifiers = alternative.modifiers | ({"nocase"} if separator == patterns.HOST else frozenset())
    return patterns.expression(alternative.values[0], separator, modifiers, homes)


def _literals(alternative: _Alternative, separator: str) -> tuple[str, ...]:
    return patterns.literals(
        alternative.values, separator, alternative.modifiers, alternative.sequence
    )


def _index(
    name: str, kind: str, alternatives: Sequence[_Alternative], homes: tuple[str, ...]
) -> Index:
    """The index of a field's alternatives; bit i is the i-th of them."""
    try:
        if kind == NUMBER:
            return NumberIndex([a.values[0] for a in alternatives])
        if kind == ADDRESS:
            return AddressIndex([(a.values[0], "cidr" in a.modifiers) for a in alternatives])
        searches = {
            bit: Search(
                f"(?i:{a.values[0]})" if "nocase" in a.modifiers else a.values[0],
                "has" in a.modifiers,
            )
            for bit, a in enumerate(alternatives)
            if "re" in a.modifiers
        }
        expressions = [_expression(a, kind, homes) for a in alternatives]
        literals = [_literals(a, kind) for a in alternatives]
        return PatternIndex(expressions, kind, searches, literals=literals)
    except ValueError as error:
        raise AgentwatchError(f"the field {name}: {error}", REMEDY) from None


def _rule_fields(agent: str, facts: Facts) -> dict[str, FieldType]:
    """The fields that depend on the rules, or on what the session did before."""

    def starts_agent(event: Event, actor: Actor) -> Values | None:
        if not isinstance(event, Exec):
            return ()
        if facts.identify(event) is not None:
            return ("true",)
        return None if event.unresolved & {"path", "asked"} else ("false",)

    def written(event: Event, actor: Actor) -> Values | None:
        if not isinstance(event, Exec):
            return ()
        if facts.written(event):
            return ("true",)
        return None if "path" in event.unresolved else ("false",)

    return {
        "agent": FieldType(patterns.WORD, lambda event, actor: (agent,) if agent else ()),
        "starts_agent": FieldType(patterns.WORD, starts_agent),
        # That it did not write the file is not certain: it may have renamed another one.
        "written_by_agent": FieldType(patterns.WORD, written, lambda event, actor: None),
    }


_RULE_FIELDS = frozenset({"agent", "starts_agent", "written_by_agent"})
