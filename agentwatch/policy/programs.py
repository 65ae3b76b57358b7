"""Rules as programs: what is left of a rule when every test that bytes can decide is a bit.

A rule is lowered once for each sort of events it is for (exec, openings, connects) and each group
of agents that it means the same for. What cannot be lowered has a reason, in words; what is left
of such a rule selects the events that the engine has to look at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from agentwatch.policy import bytepatterns, patterns
from agentwatch.policy.bytepatterns import NotLowerable, Pattern
from agentwatch.policy.index import Network, unmapped
from agentwatch.policy.subjects import (
    ADDR,
    ARGS,
    CONNECT,
    CWD,
    EVERY_AGENT,
    EXE,
    EXEC,
    FILE,
    IN_PROJECT,
    KINDS,
    MOUNT,
    NOTHING,
    OPENING,
    PORT,
    UNIX,
    WORDS,
    AgentBits,
)
from agentwatch.rules.fields import CHOSEN
from agentwatch.rules.model import Condition, Match, Rule, Ruleset

PATHS, ARGVS, ADDRESSES, PORTS, PROJECTS = "path", "argv", "address", "port", "project"
"""Families of patterns: which automata they are for."""

_FAMILY = {
    FILE: PATHS,
    EXE: PATHS,
    CWD: PATHS,
    UNIX: PATHS,
    ARGS: ARGVS,
    ADDR: ADDRESSES,
    PORT: PORTS,
}
_SUBJECTS: Mapping[int, Mapping[str, int]] = {
    EXEC: {"path": EXE, "cwd": CWD, "args": ARGS},
    OPENING: {"path": FILE},
    MOUNT: {"path": FILE},
    CONNECT: {"addr": ADDR, "port": PORT, "unix": UNIX},
}
_PROCESS = {"process.exe": EXE, "process.cwd": CWD, "process.args": ARGS}
_WORDS = {
    EXEC: ("stdin", "anonymous"),
    OPENING: ("access", "op"),
    MOUNT: ("op",),
    CONNECT: ("proto", "family"),
}
# What an event of the sort has and only the engine knows; of what it never has nothing holds.
_ENGINE = {
    EXEC: ("script", "argv", "argc", "starts_agent", "written_by_agent"),
    MOUNT: ("source", "fstype"),
}
_ANONYMOUS = WORDS["anonymous"]["true"]
_ENGINE_EVERYWHERE = re.compile(r"session|process\.(script|uid|role)|(parent|ancestor)\..*")
_NEVER_CERTAIN = CHOSEN | {"written_by_agent"}
_PROJECT = re.compile(r"(?<!\\)\$project\b")
_GLOB = re.compile(r"[\\*?\[\]{}]|\d")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One value of a condition, or the tokens of an argv as one."""

    family: str
    values: tuple[str, ...]
    modifiers: frozenset[str]
    sequence: bool = False


Group: TypeAlias = frozenset[Alternative]
"""The alternatives of a condition, whatever it is asked of."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A test. group: of patterns, asked of a subject of the event (or, with `process`, of the image
    that makes the call). words: a mask, of which the event must have one.
    """

    subject: int = NOTHING
    group: Group = frozenset()
    process: bool = False
    words: int = 0


@dataclass(frozen=True, slots=True)
class Unlowered:
    """A test that only the engine can make, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Never:
    """A test that holds for no event."""


Lowering: TypeAlias = tuple[Asked, ...] | Unlowered | Never


@dataclass(frozen=True, slots=True)
class Program:
    """A rule for one sort of events. kinds, agents: masks. reason: of what is not in it, "" if it
    is all there.
    """

    rule: Rule
    kinds: int
    agents: int
    match: tuple[Asked, ...]
    unless: tuple[tuple[Asked, ...], ...]
    reason: str = ""

    @property
    def names_object(self) -> bool:
        """Whether its match says what is executed, by name or as anonymous: then it holds for
        mapping that as well. Who may execute, and where, is no word about libraries.
        """
        return bool(self.kinds & EXEC) and any(
            (asked.subject == EXE and not asked.process) or asked.words == _ANONYMOUS
            for asked in self.match
        )


class Alternatives:
    """The patterns of alternatives, and why some have none. homes: for `~`."""

    def __init__(self, homes: Sequence[str]) -> None:
        self._homes = homes
        self._known: dict[Alternative, tuple[Pattern, ...] | str] = {}

    def reason(self, alternative: Alternative) -> str:
        """Why it has no patterns; "" where it has."""
        found = self._of(alternative)
        return found if isinstance(found, str) else ""

    def patterns(self, alternative: Alternative) -> tuple[Pattern, ...]:
        found = self._of(alternative)
        return () if isinstance(found, str) else found

    def refuse(self, alternative: Alternative, reason: str) -> None:
        """The automata have no room for it."""
        self._known[alternative] = reason

    def _of(self, alternative: Alternative) -> tuple[Pattern, ...] | str:
        found = self._known.get(alternative)
        if found is None:
            try:
                found = tuple(self._written(alternative))
            except NotLowerable as error:
                found = str(error)
            self._known[alternative] = found
        return found

    def _written(self, alternative: Alternative) -> Iterable[Pattern]:
        modifiers = alternative.modifiers
        if "project" in modifiers:
            raise NotLowerable("`$project` does not stand for a directory at the beginning")
        value = alternative.values[0] if alternative.values else ""
        if alternative.family == ADDRESSES:
            return bytepatterns.address_patterns(_network(value, "cidr" in modifiers))
        if alternative.family == PORTS:
            return bytepatterns.port_patterns(*_range(value))
        if alternative.sequence:
            return bytepatterns.sequence(alternative.values, modifiers)
        if alternative.family == PROJECTS:
            return bytepatterns.behind_project(value, modifiers)
        separator = patterns.ARGV if alternative.family == ARGVS else patterns.PATH
        return bytepatterns.pattern(value, separator, modifiers, self._homes)


def _sentence(condition: Condition, reason: str) -> str:
    """Why a condition is not lowered, for a person."""
    name = "|".join((condition.field, *sorted(condition.modifiers - {"all"})))
    if "re" in condition.modifiers:
        return f"`{name}` is an expression, which only the engine can search for."
    return f"`{name}`: {reason}."


def _network(text: str, cidr: bool) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise NotLowerable("only the engine compares addresses with globs") from None
    mapped = unmapped(network.network_address)
    if mapped.version != network.version and network.prefixlen >= 96:
        return ipaddress.ip_network((int(mapped), network.prefixlen - 96), strict=False)
    return network


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    return int(low), int(high if dash else low)


class Lowerer:
    """Lowers the rules of a ruleset."""

    def __init__(self, ruleset: Ruleset, agents: AgentBits, alternatives: Alternatives) -> None:
        self._agents = agents
        self._alternatives = alternatives
        self._own = {agent.id: agent.own for agent in ruleset.agents}
        self._groups: dict[tuple[object, ...], tuple[Group, ...] | Unlowered | Never] = {}

    def programs(self, rule: Rule) -> Iterator[Program]:
        """What the rule is to each sort of events; nothing where no event fulfils it."""
        kinds = sum(KINDS.get(kind, 0) for kind in dict.fromkeys(rule.on))
        for sort in (EXEC, OPENING, MOUNT, CONNECT):
            if kinds & sort:
                yield from self._of_sort(rule, kinds & sort, sort)

    def _of_sort(self, rule: Rule, kinds: int, sort: int) -> Iterator[Program]:
        """One program for each group of agents that the rule means the same for."""
        found: dict[tuple[object, ...], Program] = {}
        for mask, agent in self._meant(rule):
            program = self._program(rule, kinds, sort, mask, agent)
            if program is None:
                continue
            same = program.match, program.unless, program.reason
            known = found.get(same)
            found[same] = replace(known, agents=known.agents | mask) if known else program
        yield from found.values()

    def _meant(self, rule: Rule) -> Iterator[tuple[int, str | None]]:
        """Masks of agents, and one of each; None where several share a bit."""
        depends = _depends_on_agent(rule)
        if not rule.agents and not depends:
            yield EVERY_AGENT, ""
            return
        named = 0
        for name in rule.agents or self._agents.names:
            mask = self._agents.mask((name,))
            named |= mask
            yield mask, None if self._agents.is_shared(name) else name
        if not rule.agents:
            yield EVERY_AGENT & ~named, ""

    def _program(
        self, rule: Rule, kinds: int, sort: int, mask: int, agent: str | None
    ) -> Program | None:
        reason = _of_rule(rule)
        if agent is None:
            reason = reason or "There are more agents than the kernel can tell apart."
        match: list[Asked] = []
        for condition in rule.match.conditions:
            lowered = self._condition(condition, sort, agent)
            if isinstance(lowered, Never):
                return None
            if isinstance(lowered, Unlowered):
                reason = reason or lowered.reason
            else:
                match += lowered
                if any(map(_is_about_project, lowered)):  # else it holds where the name is unread
                    match.append(Asked(words=IN_PROJECT))
        exceptions: list[tuple[Asked, ...]] = []
        for _, exception in rule.unless:
            spared = self._exception(exception, sort, agent)
            if isinstance(spared, Unlowered):
                reason = reason or spared.reason
            elif spared == ():  # it spares these agents everything
                return None
            elif not isinstance(spared, Never):
                exceptions.append(spared)
        unless = tuple(dict.fromkeys(exceptions))
        return Program(rule, kinds, mask, tuple(dict.fromkeys(match)), unless, reason)

    def _exception(self, exception: Match, sort: int, agent: str | None) -> Lowering:
        if not exception.conditions:
            return Never()
        if any(condition.field in _NEVER_CERTAIN for condition in exception.conditions):
            return Never()
        found: list[Asked] = []
        unlowered: Unlowered | None = None
        for condition in exception.conditions:
            lowered = self._condition(condition, sort, agent)
            if isinstance(lowered, Never):
                return lowered
            if isinstance(lowered, Unlowered):
                unlowered = unlowered or lowered
            else:
                found += lowered
        return unlowered or tuple(dict.fromkeys(found))

    def _condition(self, condition: Condition, sort: int, agent: str | None) -> Lowering:
        field = condition.field
        if field == "agent":
            return self._is_agent(condition, agent)
        if field in _WORDS[sort]:
            return _words(condition)
        subject = _SUBJECTS[sort].get(field, _PROCESS.get(field))
        if subject is None:
            if field in _ENGINE.get(sort, ()) or _ENGINE_EVERYWHERE.fullmatch(field):
                return Unlowered(f"Only the engine knows `{field}`.")
            return Never()
        if agent is None and "$own" in condition.values:
            return Unlowered("There are more agents than the kernel can tell apart.")
        own = self._own.get(agent or "", ()) if "$own" in condition.values else ()
        groups = self._grouped(condition, _FAMILY[subject], own)
        if isinstance(groups, tuple):
            return tuple(Asked(subject, group, field in _PROCESS) for group in groups)
        return groups

    def _is_agent(self, condition: Condition, agent: str | None) -> Lowering:
        if agent is None or condition.modifiers or any(map(_GLOB.search, condition.values)):
            known = [value for value in condition.values if value in self._agents.names]
            if agent is None or len(known) != len(condition.values):
                return Unlowered("Only the engine knows all of the agents.")
        return () if agent in condition.values else Never()

    def _grouped(
        self, condition: Condition, family: str, own: tuple[str, ...]
    ) -> tuple[Group, ...] | Unlowered | Never:
        """The groups of patterns that a condition asks for, all of which must hold."""
        known = condition.field, condition.values, condition.modifiers, condition.sequence, own
        found = self._groups.get((family, *known))
        if found is None:
            found = self._grouped_anew(condition, family, own)
            self._groups[family, *known] = found
        return found

    def _grouped_anew(
        self, condition: Condition, family: str, own: tuple[str, ...]
    ) -> tuple[Group, ...] | Unlowered | Never:
        modifiers = condition.modifiers - {"all"}
        every = "all" in condition.modifiers
        found: list[Alternative] = []
        if condition.sequence:
            if any(map(_PROJECT.search, condition.values)) or "$own" in condition.values:
                return Unlowered("Only the engine puts variables into a row of arguments.")
            found.append(Alternative(family, condition.values, modifiers, True))
        else:
            for value in condition.values:
                filled = own if value == "$own" else (value,)
                if every and not filled:
                    return Never()
                found += (_alternative(family, text, modifiers) for text in filled)
        for alternative in found:
            reason = self._alternatives.reason(alternative)
            if reason:
                return Unlowered(_sentence(condition, reason))
        if not found:
            return Never()
        return tuple(frozenset({one}) for one in found) if every else (frozenset(found),)


def _is_about_project(asked: Asked) -> bool:
    """Whether all it asks for is in a project."""
    return bool(asked.group) and all(one.family == PROJECTS for one in asked.group)


def _alternative(family: str, text: str, modifiers: frozenset[str]) -> Alternative:
    """A value; one that begins in the project is asked of what follows the project's name."""
    if family == PATHS and "re" not in modifiers and text.startswith("$project"):
        rest = text.removeprefix("$project")
        inside = rest.startswith("/") or (not rest and not modifiers)
        if inside and not _PROJECT.search(rest):
            return Alternative(PROJECTS, (rest,), modifiers)
    if "re" not in modifiers and _PROJECT.search(text):
        return Alternative(family, (text,), modifiers | {"project"})
    return Alternative(family, (text,), modifiers)


def _words(condition: Condition) -> Lowering:
    known = WORDS[condition.field]
    if condition.modifiers or any(
        value not in known and _GLOB.search(value) for value in condition.values
    ):
        return Unlowered(f"Only the engine compares `{condition.field}` with globs.")
    mask = 0
    for value in condition.values:
        mask |= known.get(value, 0)
    return (Asked(words=mask),) if mask else Never()


def _of_rule(rule: Rule) -> str:
    """Why the engine decides a rule whatever its conditions are; "" if nothing says so."""
    return "The engine counts." if rule.count is not None else ""


def _depends_on_agent(rule: Rule) -> bool:
    return any(
        condition.field == "agent" or "$own" in condition.values
        for match in (rule.match, *(match for _, match in rule.unless))
        for condition in match.conditions
    )
