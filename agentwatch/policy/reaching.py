"""What may still be accepted: of the nodes of a trie, what their patterns' rest leads to.

A subject that was cut restricts by what is reachable from where its reading ended, and a directory
by what is reachable below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from agentwatch.policy.dfa import FIRST_CLASS, Dfa
from agentwatch.policy.trie import Nodes, Trie

_WORK = 2_000_000
"""Marks that are put into sets; beyond it a set of several is that of all marks, which is more than
what is reachable and never less.
"""

_NOTHING: frozenset[int] = frozenset()


class Reach:
    """The marks that are accepted behind at least one more byte.

    What is reachable from every directory alike is left out: there, a pattern that begins anywhere
    has not begun yet.
    """

    def __init__(self, trie: Trie) -> None:
        self._trie = trie
        self._work = 0
        self._known: dict[tuple[int, ...], frozenset[int]] = {}
        self._sets: dict[frozenset[int], frozenset[int]] = {}
        self._of: dict[int, frozenset[int]] = {}
        marked = (*trie.final.values(), *trie.sticky.values())
        self.all = self._same(frozenset(mark for marks in marked for mark in marks))
        self._whole = self._of_all()

    def of(self, nodes: Nodes) -> frozenset[int]:
        """The marks reachable from a state."""
        return self._union([self._behind(n) for n in nodes if n not in self._trie.leading])

    def _behind(self, node: int) -> frozenset[int]:
        known = self._of.get(node)
        if known is None:
            read, _ = self._trie.behind(node)
            # Within a component of a `**` there is no more than where the next one begins.
            parts = [self._whole[other] for other in read if other in self._whole]
            known = self._of[node] = self._union(parts)
        return known

    def _of_all(self) -> dict[int, frozenset[int]]:
        """By node what it accepts, and whatever is behind it: kids first."""
        trie = self._trie
        found: dict[int, frozenset[int]] = {}
        ways: dict[int, list[int]] = {}
        waiting = [trie.root]
        while waiting:
            node = waiting[-1]
            if node in found:
                waiting.pop()
                continue
            others = ways.get(node)
            if others is None:
                read, free = trie.behind(node)
                others = ways[node] = [other for other in read + free if other != node]
                missing = [other for other in others if other not in found]
                if missing:
                    waiting += missing
                    continue
            waiting.pop()
            parts = [found[other] for other in others]
            own = (*trie.final.get(node, ()), *trie.sticky.get(node, ()))
            if own:
                parts.append(self._same(frozenset(own)))
            found[node] = self._union(parts)
        return found

    def _same(self, marks: frozenset[int]) -> frozenset[int]:
        """One object for equal sets, so that sets are told apart by what they are."""
        return self._sets.setdefault(marks, marks)

    def _union(self, parts: Iterable[frozenset[int]]) -> frozenset[int]:
        by_id = {id(part): part for part in parts if part}
        if len(by_id) < 2:
            return next(iter(by_id.values()), _NOTHING)
        key = tuple(sorted(by_id))
        known = self._known.get(key)
        if known is None:
            self._work += sum(map(len, by_id.values()))
            most = self._work > _WORK or any(part is self.all for part in by_id.values())
            known = self.all if most else self._same(_NOTHING.union(*by_id.values()))
            self._known[key] = known
        return known


class Ends(Enum):
    """Where a subject's reading may end, other than at its end: nowhere, wherever it was cut, or
    where a directory's name does. PART_WAY: what begins anywhere must have begun by then.
    """

    NOWHERE = 0
    ANYWHERE = 1
    DIRECTORY = 2
    PART_WAY = 3


def reached(dfa: Dfa, order: Sequence[Nodes], trie: Trie, ends: Ends) -> None:
    """Writes what is reachable into a table whose states are these sets of nodes."""
    if ends is Ends.NOWHERE:
        return
    states: Iterable[int] = range(len(order))
    if ends is not Ends.ANYWHERE:
        number = dfa.classes[ord("/")] + FIRST_CLASS
        usual = [dfa.rows[state].get(number, dfa.start) for state in dfa.defaults]
        described = zip(dfa.rows, dfa.usual, strict=True)
        states = sorted({dfa.start, *(row.get(number, usual[place]) for row, place in described)})
    reach = Reach(trie)
    for state in states:
        dfa.reach[state] = reach.of(order[state])
