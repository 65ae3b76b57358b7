"""Marks: the numbers that automata accept, and what each of them stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from agentwatch.policy.blob import BELOW, Accepted
from agentwatch.policy.bytepatterns import Pattern
from agentwatch.policy.layout import ADDRESSES as ADDRESS_SET
from agentwatch.policy.layout import (
    ALLOW,
    ARGV_ANCHORED,
    ARGV_FLOATING,
    PATH_ANCHORED,
    PATH_BEGUN,
    PATH_FLOATING,
)
from agentwatch.policy.layout import PORTS as PORT_SET
from agentwatch.policy.layout import PROJECT as PROJECT_SET
from agentwatch.policy.numbering import Numbers
from agentwatch.policy.programs import (
    ADDRESSES,
    ARGVS,
    PATHS,
    PORTS,
    PROJECTS,
    Alternative,
    Alternatives,
    Group,
    Program,
)
from agentwatch.policy.ranking import Ranked
from agentwatch.policy.subjects import EXE, FILE, UNIX

_FAMILY_SETS = {
    PATHS: (PATH_ANCHORED, PATH_FLOATING, PATH_BEGUN),
    ARGVS: (ARGV_ANCHORED, ARGV_FLOATING, ARGV_FLOATING),
    ADDRESSES: (ADDRESS_SET,),
    PORTS: (PORT_SET,),
    PROJECTS: (PROJECT_SET,),
}
"""By family: the automata of what is anchored, of what floats, and of what of that is begun: beside
`**/*.y`, each `**/x*` would multiply the states.
"""


class Marks:
    """Numbers for alternatives: those that the same conditions ask for have one together.

    members: the alternatives of each. patterns: by automaton.
    """

    def __init__(self, programs: Iterable[Program], alternatives: Alternatives) -> None:
        wanting: dict[Alternative, list[int]] = {}
        self._groups: dict[Group, int] = {}
        precedences: dict[Group, int] = {}
        for program in programs:
            own = _precedence(program)
            for asked in (*program.match, *(a for one in program.unless for a in one)):
                if asked.group:
                    precedences[asked.group] = min(own, precedences.get(asked.group, own))
                if asked.group and asked.group not in self._groups:
                    number = self._groups[asked.group] = len(self._groups)
                    for alternative in sorted(asked.group, key=_written):
                        wanting.setdefault(alternative, []).append(number)
        self.members: list[list[Alternative]] = []
        self.patterns: dict[int, list[Pattern]] = {}
        self._of_group: list[list[int]] = [[] for _ in self._groups]
        known: dict[tuple[int, ...], int] = {}
        of_number = [precedences[group] for group in self._groups]
        for alternative, numbers in wanting.items():
            mark = known.setdefault(tuple(numbers), len(known))
            if mark == len(self.members):
                self.members.append([])
                for number in numbers:
                    self._of_group[number].append(mark)
            self.members[mark].append(alternative)
            sets = _FAMILY_SETS[alternative.family]
            for pattern in alternatives.patterns(alternative):
                number = sets[pattern.floating + pattern.begun]
                place = self.patterns.setdefault(number, [])
                first = min(of_number[one] for one in numbers)
                place.append(replace(pattern, mark=mark, precedence=first))

    def accepted(
        self, ranked: Sequence[Ranked], rules: Sequence[int], numbers: Numbers
    ) -> dict[tuple[int, int], Accepted]:
        """What each mark stands for, asked of each subject; of BELOW, the rules that restrict and
        ask for it in the name of a file, a program or a unix socket.
        """
        conditions: dict[tuple[int, int], set[int]] = {}
        predicates: dict[tuple[int, int], set[int]] = {}
        found: dict[tuple[int, int], set[int]] = {}

        def add(to: dict[tuple[int, int], set[int]], subject: int, group: Group, one: int) -> None:
            for mark in self._of_group[self._groups[group]]:
                to.setdefault((mark, subject), set()).add(one)

        for (subject, group), number in numbers.conditions.items():
            add(conditions, subject, group, number)
        for (subject, group, _), bit in numbers.predicates.items():
            add(predicates, subject, group, bit)
        for one, offset in zip(ranked, rules, strict=True):
            if one.numbered.anchor:
                add(found, *one.numbered.anchor, offset)
            if one.verdict != ALLOW:
                for asked in one.numbered.program.match:
                    if asked.subject in (FILE, EXE, UNIX) and asked.group and not asked.process:
                        add(found, BELOW, asked.group, offset)
        keys = dict.fromkeys((*conditions, *predicates, *found))
        return {
            key: Accepted(
                frozenset(conditions.get(key, ())),
                frozenset(predicates.get(key, ())),
                frozenset(found.get(key, ())),
            )
            for key in keys
        }


def _precedence(program: Program) -> int:
    """0 for what decides in the kernel on what is severe, 1 on the rest; 2 for what only looks."""
    if program.reason or program.rule.action == "alert":
        return 2
    return int(program.rule.action != "allow" and program.rule.severity not in _SEVERE)


_SEVERE = ("high", "critical")


def _written(alternative: Alternative) -> tuple[object, ...]:
    """Orders alternatives whatever order a set has them in."""
    return (
        alternative.family,
        alternative.values,
        sorted(alternative.modifiers),
        alternative.sequence,
    )
