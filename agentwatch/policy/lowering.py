"""The rules as one agent in one project meets them, ready to be asked.

Lowering fills in `$own` and `$project`, leaves out other agents' rules, turns every alternative
of every condition into a bit of its field's index and every condition into a test of such bits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agentwatch.errors import AgentwatchError
from agentwatch.events import Event, Exec
from agentwatch.lineage import Actor
from agentwatch.policy import patterns
from agentwatch.policy.index import AddressIndex, Index, NumberIndex, PatternIndex, Search
from agentwatch.policy.readers import (
    ADDRESS,
    FIELDS,
    KIND_SETS,
    NO_NAME,
    NUMBER,
    FieldType,
    Values,
)
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
from agentwatch.rules.model import ACTIONS, Agent, Condition, Match, Rule, Ruleset

REMEDY = "agentwatch rules check"
_EXPRESSIONS_REMEMBERED = 8192
Identify = Callable[[Exec], str | None]
_PROJECT = re.compile(r"(?<!\\)\$project\b")


class Policy:
    """What the rules mean for one agent ("" for a session of none) and one project."""

    def __init__(
        self, ruleset: Ruleset, agent: str, project: str | None, identify: Identify
    ) -> None:
        self.agent = agent
        self.defaults: dict[str, str] = {}
        for default in ruleset.defaults:
            if default.agent == agent:
                known = self.defaults.get(default.kind, "allow")
                self.defaults[default.kind] = max(known, default.action, key=ACTIONS.index)
        builder = _Builder(agent, ruleset.agents, project, identify)
        rules = [rule for rule in ruleset.rules if not rule.agents or agent in rule.agents]
        lowered = [builder.rule(rule) for rule in sorted(rules, key=strictness)]
        self.fields = builder.fields()
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


class _Builder:
    """Gives every distinct alternative of every field its bit, then makes the indexes."""

    def __init__(
        self, agent: str, agents: Sequence[Agent], project: str | None, identify: Identify
    ) -> None:
        self._own = next((a.own for a in agents if a.id == agent), ())
        self._project = project
        self._types: dict[str, FieldType] = dict(FIELDS) | _rule_fields(agent, identify)
        self._slots: dict[str, int] = {}
        self._alternatives: list[dict[_Alternative, int]] = []

    def rule(self, rule: Rule) -> LoweredRule:
        try:
            return LoweredRule(
                rule,
                rule.action != "allow",
                self._tests(rule.match),
                tuple((name, self._tests(match)) for name, match in rule.unless),
            )
        except ValueError as error:
            raise AgentwatchError(f"rule {rule.id}: {error}", REMEDY) from None

    def fields(self) -> tuple[Field, ...]:
        found = []
        for name, slot in self._slots.items():
            kind = self._types[name]
            try:
                index = _index(kind.type, tuple(self._alternatives[slot]))
            except ValueError as error:
                raise AgentwatchError(f"the field {name}: {error}", REMEDY) from None
            found.append(Field(name, kind, index))
        return tuple(found)

    def _tests(self, match: Match) -> tuple[Test, ...]:
        return tuple(self._test(condition) for condition in match.conditions)

    def _test(self, condition: Condition) -> Test:
        if condition.field not in self._types:
            raise ValueError(f"the engine cannot judge the field {condition.field!r} yet")
        slot = self._slots.setdefault(condition.field, len(self._slots))
        if slot == len(self._alternatives):
            self._alternatives.append({})
        known = self._alternatives[slot]
        every = "all" in condition.modifiers
        bits = 0
        for alternative in self._filled(condition):
            if alternative is not None:
                bits |= 1 << known.setdefault(alternative, len(known))
            elif every:
                return Test(condition, slot, 0, False)
        return Test(condition, slot, bits, every and bits != 0)

    def _filled(self, condition: Condition) -> Iterable[_Alternative | None]:
        """The alternatives with variables filled in; None for one that nothing can match."""
        modifiers = condition.modifiers - {"all"}
        if condition.sequence:
            tokens = [self._fill(value, modifiers) for value in condition.values]
            known = tuple(token[0] for token in tokens if token)
            yield _Alternative(known, modifiers, True) if len(known) == len(tokens) else None
            return
        for value in condition.values:
            if condition.field == "host" and value != NO_NAME:
                yield None
                continue
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


@functools.lru_cache(_EXPRESSIONS_REMEMBERED)
def _expression(alternative: _Alternative, separator: str) -> str:
    """Remembered because the policies of all agents and projects have nearly all in common."""
    if alternative.sequence:
        return patterns.sequence(alternative.values, alternative.modifiers)
    return patterns.expression(alternative.values[0], separator, alternative.modifiers)


def _index(kind: str, alternatives: Sequence[_Alternative]) -> Index:
    """The index of a field's alternatives; bit i is the i-th of them."""
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
    return PatternIndex([_expression(a, kind) for a in alternatives], kind, searches)


def _rule_fields(agent: str, identify: Identify) -> dict[str, FieldType]:
    """The fields that depend on the rules: `agent`, `starts_agent`."""

    def starts_agent(event: Event, actor: Actor) -> Values | None:
        if not isinstance(event, Exec):
            return ()
        if identify(event) is not None:
            return ("true",)
        return None if event.unresolved & {"path", "asked"} else ("false",)

    return {
        "agent": FieldType(patterns.WORD, lambda event, actor: (agent,) if agent else ()),
        "starts_agent": FieldType(patterns.WORD, starts_agent),
    }
