"""Equal states are made one: those that accept the same and lead to the same.

A state is compared when those it leads to have been, as far as it was found before them; what then
is equal is found by looking again.
"""

from __future__ import annotations

from dataclasses import replace

from agentwatch.policy.dfa import Dfa

_LOOKS = 4
"""How often all rows are looked through, at most: that bounds the work, whatever the patterns. The
first look finds nearly all that is equal, for most states lead to states found later.
"""

_WORTH = 16
"""Another look is taken where the last one found one state in so many: some that are equal, behind
a way back to states found before them, may stay two.
"""

_ITSELF = -1


def merged(dfa: Dfa) -> Dfa:
    """The same automaton with fewer states; which are left does not depend on anything else."""
    for _ in range(_LOOKS):
        same = _same(dfa)
        before = len(dfa.rows)
        dfa = _without(dfa, same)
        if (before - len(dfa.rows)) * _WORTH <= before:
            break
    return dfa


def _same(dfa: Dfa) -> list[int]:
    """By state the one that stands for it, those found last first. A default stands for itself:
    its row is another's.
    """
    same = list(range(len(dfa.rows)))
    known: dict[object, int] = {}
    gone: dict[int, int] = {}
    kept = set(dfa.defaults)
    described = zip(
        range(len(same) - 1, -1, -1),
        reversed(dfa.rows),
        reversed(dfa.usual),
        reversed(dfa.final),
        reversed(dfa.sticky),
        reversed(dfa.reach),
        strict=True,
    )
    for state, row, *accepts in described:
        if state in kept:
            continue
        to = row.values()
        if state in to or not gone.keys().isdisjoint(to):
            row = {n: _ITSELF if to == state else gone.get(to, to) for n, to in row.items()}
        other = known.setdefault((frozenset(row.items()), *accepts), state)
        if other != state:
            same[state] = gone[state] = other
    return same


def _without(dfa: Dfa, same: list[int]) -> Dfa:
    """The states that stand for themselves, numbered anew."""
    left = [state for state, other in enumerate(same) if state == other]
    if len(left) == len(same):
        return dfa
    places = dict(zip(left, range(len(left)), strict=True))
    numbers = [places[other] for other in same]
    return replace(
        dfa,
        start=numbers[dfa.start],
        defaults=[numbers[state] for state in dfa.defaults],
        usual=[dfa.usual[state] for state in left],
        rows=[{n: numbers[to] for n, to in dfa.rows[state].items()} for state in left],
        final=[dfa.final[state] for state in left],
        sticky=[dfa.sticky[state] for state in left],
        reach=[dfa.reach[state] for state in left],
        dead=None if dfa.dead is None else numbers[dfa.dead],
    )
