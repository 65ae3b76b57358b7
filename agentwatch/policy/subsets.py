"""From a trie to a table: a state is a set of nodes.

What makes that fast: a set of one node without wildcards has the node's own moves. Nodes with
wildcards stay in the set while other bytes pass: what then remains of it alone is its default, and
the set differs from that only where its other nodes have moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentwatch.policy.dfa import FIRST_CLASS, ROW, Dfa
from agentwatch.policy.trie import Classes, Nodes, Trie

NARROW = 3
"""So many classes of a set of bytes are written out; more, or the class that no pattern asks for by
itself, make the set a wide one.
"""

FEW = 8
"""Nodes of a state whose merging is not counted as work."""

_NOTHING: frozenset[int] = frozenset()
_Wide: TypeAlias = tuple[tuple[int, Nodes], ...]
_Moves: TypeAlias = tuple[dict[int, Nodes], _Wide]


class TooLarge(Exception):
    """A table that would break its budget."""


@dataclass(frozen=True, slots=True)
class _Default:
    """A state which others are like. targets: where it leads on each class that leads anywhere;
    usual: the same as states, for every class.
    """

    state: int
    nodes: frozenset[int]
    targets: dict[int, Nodes]
    usual: dict[int, int]


class Subsets:
    """The subset construction of a trie. work: nodes and entries looked at, and at most so many."""

    def __init__(self, trie: Trie, most: int) -> None:
        self.trie = trie
        self._most = most
        self.classes = Classes(trie.sets())
        self.ids: dict[Nodes, int] = {}
        self.order: list[Nodes] = []
        self.work = 0
        self._sure = trie.sure.keys()
        self._kept = {*trie.sure, *trie.final, *trie.sticky}
        self._moves: list[_Moves | None] = [None] * len(trie)
        self._wides: dict[tuple[int, _Wide], tuple[dict[int, int], dict[int, Nodes]]] = {}
        self._defaults: dict[int, _Default] = {}
        self._of_loops: dict[Nodes, tuple[_Default, bool]] = {}

    def table(self, entries: int, defaults: int) -> Dfa:
        """The table, with at most so many entries and defaults. Raises TooLarge.

        What is reachable is still to be found.
        """
        start = self._state(self.trie.closed(self.trie.root))
        rows: list[dict[int, int]] = []
        likened: list[int] = []
        left = entries
        for nodes in self.order:  # which grows
            row, default = self._row(nodes)
            rows.append(row)
            likened.append(default)
            left -= len(row)
            self.work += len(nodes) + len(row)
            if left < 0 or self.work > self._most:
                raise TooLarge
        chosen = self._chosen(likened, defaults)
        usual = self._expressed(rows, likened, chosen)
        if sum(map(len, rows)) > entries:
            raise TooLarge
        return Dfa(
            bytes(number - FIRST_CLASS for number in self.classes.numbers),
            self.classes.width,
            start,
            chosen,
            usual,
            rows,
            self._marks(self.trie.final),
            self._marks(self.trie.sticky),
            [None] * len(rows),
            self.ids.get(()),
        )

    def _state(self, nodes: Nodes) -> int:
        """The number of a state, which may be a new one."""
        known = self.ids.get(nodes)
        return self._new(nodes) if known is None else known

    def _new(self, nodes: Nodes) -> int:
        if self._sure and not self._sure.isdisjoint(nodes):
            # Either nothing follows, or what the next separator accepts need not be looked for.
            certain = {mark for node in nodes for mark in self.trie.sure.get(node, ())}
            only, kept = self.trie.only, self._kept
            rest = tuple(n for n in nodes if n in kept or only[n] not in certain)
            if rest != nodes:
                known = self.ids[nodes] = self._state(rest)
                return known
        known = self.ids[nodes] = len(self.order)
        self.order.append(nodes)
        return known

    def _row(self, nodes: Nodes) -> tuple[dict[int, int], int]:
        """What a state does otherwise than its default, and which that is."""
        known = self._moves
        every = [known[node] or self._moves_of(node) for node in nodes]
        loops = tuple([node for node in nodes if known[node][1]])  # type: ignore[index]
        default, remain = self._of_loops.get(loops) or self._default(loops)
        rest = [moves for moves in every if not moves[1]]
        if not remain:
            among = default.nodes
            pairs = zip(nodes, every, strict=True)
            rest = [moves for node, moves in pairs if node not in among]
            if len(nodes) - len(rest) != len(among):
                return self._whole(nodes, default), default.state
        if not rest:
            return {}, default.state
        narrow, wide, in_order = rest[0][0], rest[0][1], True
        if len(rest) > 1:
            narrow, wide, in_order = *_together(rest), False
        targets = default.targets
        row: dict[int, int] = {}
        if wide:
            known_row, targets = self._wide(default, wide)
            row = known_row.copy()
        if len(nodes) > FEW:
            self.work += len(nodes) * len(narrow)
        ids, usual = self.ids, default.usual
        for number, kids in narrow.items():
            more = targets.get(number)
            if more:
                # Most often one more, and often the last one made.
                behind = len(kids) == 1 and kids[0] > more[-1]
                kids = (*more, *kids) if behind else tuple(sorted({*kids, *more}))
            elif not in_order:
                kids = tuple(sorted({*kids}))
            state = ids.get(kids)
            if state is None:
                state = self._new(kids)
            if state != usual[number]:
                row[number] = state
            else:
                row.pop(number, None)
        return row, default.state

    def _whole(self, nodes: Nodes, default: _Default) -> dict[int, int]:
        """The row of a state which is more than its default nowhere, or less somewhere."""
        targets = self._targets(nodes)
        self.work += len(targets) * len(nodes)
        row = {number: self._state(targets.get(number, ())) for number in default.usual}
        return {number: to for number, to in row.items() if to != default.usual[number]}

    def _default(self, loops: Nodes) -> tuple[_Default, bool]:
        """What remains of a state with these wildcards when bytes pass that nothing else wants, and
        whether that is just these.
        """
        nodes = loops
        for _ in range(_STEPS):
            behind: set[int] = set()
            for node in nodes:
                for members, kids in (self._moves[node] or self._moves_of(node))[1]:
                    if self.classes.dullest in self.classes.of(members):
                        behind.update(kids)
            before, nodes = nodes, tuple(sorted(behind))
            if nodes == before:
                break
        state = self._state(nodes)
        found = self._defaults.get(state)
        if found is None:
            nodes = self.order[state]
            targets = self._targets(nodes)
            self.work += len(targets) * (1 + len(nodes))
            usual = {
                number: self._state(targets.get(number, ()))
                for number in range(FIRST_CLASS, self.classes.width)
            }
            found = self._defaults[state] = _Default(state, frozenset(nodes), targets, usual)
        known = self._of_loops[loops] = found, found.nodes == frozenset(loops)
        return known

    def _wide(self, default: _Default, wide: _Wide) -> tuple[dict[int, int], dict[int, Nodes]]:
        """The row of what wide moves do on top of a default, and where they lead."""
        known = self._wides.get((default.state, wide))
        if known is not None:
            return known
        targets: dict[int, Nodes] = {}
        for members, kids in wide:
            for number in self.classes.of(members):
                targets[number] = targets.get(number, ()) + kids
        for number, kids in default.targets.items():
            targets[number] = targets.get(number, ()) + kids
        self.work += len(targets) * len(wide)
        canonical = {kids: tuple(sorted({*kids})) for kids in dict.fromkeys(targets.values())}
        targets = {number: canonical[kids] for number, kids in targets.items()}
        row = {number: self._state(kids) for number, kids in targets.items()}
        row = {number: state for number, state in row.items() if state != default.usual[number]}
        self._wides[default.state, wide] = row, targets
        return row, targets

    def _moves_of(self, node: int) -> _Moves:
        """A node's moves on single classes, and on sets of many."""
        single, several = self.trie.moves(node)
        numbers = self.classes.numbers
        narrow = {numbers[byte]: kids for byte, kids in single}
        wide: list[tuple[int, Nodes]] = []
        for members, kids in several:
            found = self.classes.of(members)
            if len(found) > NARROW or self.classes.dullest in found:
                wide.append((members, kids))
                continue
            for number in found:
                narrow[number] = tuple(sorted({*narrow.get(number, ()), *kids}))
        moves = self._moves[node] = narrow, tuple(wide)
        return moves

    def _targets(self, nodes: Nodes) -> dict[int, Nodes]:
        """Where a state leads, on every class that leads anywhere."""
        narrow, wide = _together([self._moves[node] or self._moves_of(node) for node in nodes])
        found = {number: set(kids) for number, kids in narrow.items()}
        for members, kids in wide:
            for number in self.classes.of(members):
                found.setdefault(number, set()).update(kids)
        return {number: tuple(sorted(kids)) for number, kids in sorted(found.items())}

    def _chosen(self, defaults: Sequence[int], most: int) -> list[int]:
        """The states that are worth a row which others refer to: the most usual one first."""
        users = Counter(defaults)
        first = min(users, key=lambda state: (-users[state], state))
        usual = self._defaults[first].usual
        saved = {
            state: count * _differing(self._defaults[state].usual, usual)
            for state, count in users.items()
            if count > 1 and state != first
        }
        worth = sorted((-cells, state) for state, cells in saved.items() if cells > ROW)
        return [first, *(state for _, state in worth[: most - 1])]

    def _expressed(
        self, rows: list[dict[int, int]], defaults: Sequence[int], chosen: Sequence[int]
    ) -> list[int]:
        """Writes rows of other defaults out as those of the first; by state, the default's place.

        The rows of the chosen ones are whole.
        """
        places = {state: place for place, state in enumerate(chosen)}
        first = self._defaults[chosen[0]].usual
        found: list[int] = []
        for state, default in enumerate(defaults):
            place = places.get(default)
            if place is None:
                whole = {**self._defaults[default].usual, **rows[state]}
                rows[state] = {number: to for number, to in whole.items() if to != first[number]}
            found.append(place or 0)
        for place, state in enumerate(chosen):
            rows[state] = self._defaults[state].usual
            found[state] = place
        return found

    def _marks(self, marked: Mapping[int, list[int]]) -> list[frozenset[int]]:
        """By state, the marks of its nodes."""
        keys = marked.keys()
        found: list[frozenset[int]] = []
        known: dict[frozenset[int], frozenset[int]] = {}
        for nodes in self.order:
            marks = _NOTHING
            if not keys.isdisjoint(nodes):
                marks = frozenset(mark for node in nodes if node in keys for mark in marked[node])
                marks = known.setdefault(marks, marks)
            found.append(marks)
        return found


_STEPS = 16  # `???` needs three bytes until nothing remains of it


def _together(every: Iterable[_Moves]) -> _Moves:
    """The moves of some nodes; targets may stand in them twice."""
    narrow: dict[int, Nodes] = {}
    wide: list[tuple[int, Nodes]] = []
    for some, more in every:
        wide += more
        for number, kids in some.items():
            narrow[number] = narrow[number] + kids if number in narrow else kids
    return narrow, tuple(sorted(set(wide)))


def _differing(one: Mapping[int, int], other: Mapping[int, int]) -> int:
    return sum(to != other[number] for number, to in one.items())
