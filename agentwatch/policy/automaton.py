"""From patterns to a table that fits: what would break the budget is refused, by mark.

Most patterns take about as many states as they have bytes. Those with several wildcards multiply
with each other: how much is known only when it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentwatch.policy.dfa import FIRST_CLASS, Dfa
from agentwatch.policy.items import Pattern
from agentwatch.policy.merging import merged
from agentwatch.policy.reaching import Ends, reached
from agentwatch.policy.subsets import Subsets, TooLarge
from agentwatch.policy.trie import Trie

__all__ = ("FIRST_CLASS", "REFUSED", "Dfa", "Ends", "build")

REFUSED = "with its wildcards, the rules' patterns would take too long to compile"


def build(
    patterns: Sequence[Pattern],
    floating: bool,
    budget: int,
    defaults: int = 1,
    ends: Ends = Ends.NOWHERE,
) -> tuple[Dfa, dict[int, str]]:
    """The automaton of patterns that all are floating, or none is, and the marks it has not.

    budget: how many entries it may have; defaults: how many defaults; ends: where it has to say
    what is reachable. A mark is refused, all its patterns with it, and with the reason, if they
    would break the budget; the same patterns always make the same table.
    """
    groups = _grouped(patterns)
    attempt = _Attempt(floating, budget, defaults, ends is Ends.PART_WAY)
    made, fitting = attempt.table(groups, ENOUGH, 2 * ENOUGH), groups
    if made is None:
        made, fitting = attempt.halves(groups)
    dfa, subsets = made
    reached(dfa, subsets.order, subsets.trie, ends)
    kept = {group.mark for group in fitting}
    return merged(dfa), {group.mark: REFUSED for group in groups if group.mark not in kept}


ENOUGH = 300_000
"""Nodes and entries that are looked at in some tenths of a second."""

EACH = 60
"""The most of them for each byte of patterns that do not multiply; texts that are looked for
everywhere take up to this.
"""


@dataclass(frozen=True, slots=True)
class _Group:
    """The patterns of a mark. risk: how much they have to keep in mind while others are read.
    length: their bytes and steps.
    """

    mark: int
    patterns: tuple[Pattern, ...]
    risk: int
    length: int
    precedence: int

    @property
    def tier(self) -> tuple[bool, int]:
        """Those of a lower one have their place first: what does not multiply takes hardly any."""
        return self.risk > 0, self.precedence


_Made: TypeAlias = tuple[Dfa, Subsets]
"""A table, and what its states were made of."""


@dataclass(slots=True)
class _Attempt:
    """Tables that are tried. done: the work that went into that."""

    floating: bool
    budget: int
    defaults: int
    apart: bool
    done: int = 0

    def table(self, groups: Sequence[_Group], least: int, most: int) -> _Made | None:
        """The table of all of these, if it fits and takes no more work than may be expected.

        least: of any patterns; most: of those that may multiply.
        """
        every = (pattern for group in groups for pattern in group.patterns)
        trie = Trie(every, self.floating, self.apart)
        plain = sum(group.length for group in groups if not group.risk)
        risky = sum(group.length for group in groups if group.risk)
        subsets = Subsets(trie, least + EACH * plain + min(EACH // 2 * risky, most))
        try:
            return subsets.table(self.budget, self.defaults), subsets
        except TooLarge:
            return None
        finally:
            self.done += subsets.work + len(trie)

    def halves(self, groups: Sequence[_Group]) -> tuple[_Made, list[_Group]]:
        """The table of those that fit together, tier by tier."""
        plain = [group for group in groups if not group.risk]
        found: list[_Group] = []
        fitting = self.table([], ENOUGH, 0)
        assert fitting is not None  # an empty table
        expected = 3 * EACH // 2 * sum(group.length for group in plain)
        for (risky, _), tier in itertools.groupby(groups, key=lambda group: group.tier):
            some = list(tier)
            last = self.done + 2 * ENOUGH + expected
            place, size = 0, max(1, len(some) // 2) if risky else len(some)
            while place < len(some) and self.done < last:
                before = self.done
                more = some[place : place + size]
                made = self.table([*found, *more], ENOUGH // 15, ENOUGH)
                if made is not None:
                    found += more
                    fitting = made
                    expected = self.done - before
                if made is not None or size == 1:
                    place += size
                else:
                    size //= 2
        return fitting, found


def _grouped(patterns: Iterable[Pattern]) -> list[_Group]:
    """By mark, in the order in which they have their place: of a tier, the least risky first."""
    by_mark: dict[int, list[Pattern]] = {}
    for pattern in patterns:
        by_mark.setdefault(pattern.mark, []).append(pattern)
    groups = [
        _Group(
            mark,
            tuple(dict.fromkeys(some)),
            max(pattern.risk for pattern in some),
            sum(pattern.length for pattern in some),
            min(pattern.precedence for pattern in some),
        )
        for mark, some in by_mark.items()
    ]
    return sorted(groups, key=lambda group: (group.tier, group.risk))
