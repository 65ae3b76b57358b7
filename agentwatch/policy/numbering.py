"""Programs as ops: each test a bit of its own, each rule found by one of its conditions.

Conditions and predicates have numbers as long as there are any; beyond, a test is the engine's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from agentwatch.policy.layout import (
    LAST,
    MAX_CONDITIONS,
    MAX_PREDICATES,
    OP_ANCHOR,
    OP_COND,
    OP_PRED,
    OP_WORD,
    UNLESS,
)
from agentwatch.policy.programs import Asked, Group, Program
from agentwatch.policy.subjects import ADDR, ARGS, CWD, EXE, FILE, PORT, UNIX

_ORDER = {subject: place for place, subject in enumerate((FILE, EXE, ARGS, CWD, UNIX, ADDR, PORT))}
_SHARED_BY_MANY = 16
_FOR_CONDITIONS = MAX_CONDITIONS // 2  # the other half is for lists that may be met again

Place: TypeAlias = tuple[int, Group]
"""A group of patterns asked of a subject."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A program as ops. anchor: by what it is found; None: it is considered for every event. The
    program's reason says what had to be left out.
    """

    program: Program
    anchor: Place | None
    ops: tuple[int, ...]


class Numbers:
    """Gives numbers to what programs ask, the strictest programs first."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.conditions: dict[Place, int] = {}
        self.predicates: dict[tuple[int, Group, bool], int] = {}  # and whether it must be certain
        self._asked = Counter(
            (asked.subject, asked.group)
            for program in programs
            for asked in program.match
            if _is_condition(asked)
        )

    def of(self, program: Program, loosens: bool) -> Numbered:
        """loosens: its match, too, may rest on what is certain only."""
        anchor = self._anchor(program)
        reason = program.reason
        ops: list[int] = []
        # A file's name is all that an opening is found by: what restricts need not ask again.
        if anchor and (loosens or anchor.subject != FILE):
            ops.append(OP_ANCHOR << 29 | anchor.subject << 24)
        for asked in program.match:
            op = self._op(asked, loosens) if asked != anchor else 0
            if op is None:
                reason = reason or CROWDED
            elif op:
                ops.append(op)
        for exception in program.unless:
            found = [self._op(asked, True) for asked in exception]
            known = [op | UNLESS for op in found if op is not None]
            if len(known) < len(found):
                reason = reason or CROWDED
                continue
            known[-1] |= LAST
            ops += known
        place = (anchor.subject, anchor.group) if anchor else None
        return Numbered(replace(program, reason=reason), place, tuple(ops))

    def _anchor(self, program: Program) -> Asked | None:
        """The condition that selects the rule: of what many rules ask, what fewest do."""
        found = [asked for asked in program.match if _is_condition(asked)]

        def shared(asked: Asked) -> int:
            number = self._asked[asked.subject, asked.group]
            return number if number > _SHARED_BY_MANY else 0

        return min(found, key=lambda a: (shared(a), _ORDER[a.subject]), default=None)

    def _op(self, asked: Asked, certain: bool) -> int | None:
        """None where there is no number left."""
        if asked.words:
            return OP_WORD << 29 | asked.words
        if asked.process:
            wanted = asked.subject, asked.group, certain
            bit = self.predicates.get(wanted)
            if bit is None:
                if len(self.predicates) == MAX_PREDICATES:
                    return None
                bit = self.predicates[wanted] = len(self.predicates)
            return OP_PRED << 29 | asked.subject << 24 | bit
        place = asked.subject, asked.group
        number = self.conditions.get(place)
        if number is None:
            if len(self.conditions) == _FOR_CONDITIONS:
                return None
            number = self.conditions[place] = len(self.conditions) + 1
        return OP_COND << 29 | asked.subject << 24 | number


def _is_condition(asked: Asked) -> bool:
    return bool(asked.group) and not asked.process


CROWDED = "The rules ask for more than the kernel has bits for, and the strictest come first."
