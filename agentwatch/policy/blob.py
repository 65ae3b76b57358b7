"""The image, put together: words, lists, automata, one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from agentwatch.policy import packing
from agentwatch.policy.automaton import Dfa
from agentwatch.policy.layout import (
    ABI,
    ADDRESSES,
    ARGV_ANCHORED,
    ARGV_FLOATING,
    DEFAULT,
    H_ABI,
    H_GENERATION,
    H_MAGIC,
    H_SETS,
    H_USED,
    HEADER,
    MAGIC,
    MAX_CONDITIONS,
    NO_STATE,
    PATH_ANCHORED,
    PATH_BEGUN,
    PATH_FLOATING,
    PORTS,
    PROJECT,
    REACH,
    REACH_WORDS,
    ROW_BITS,
    SMALLEST,
    STICKY,
    SYMBOL,
)
from agentwatch.policy.subjects import ADDR, ARGS, CWD, EXE, FILE, PORT, UNIX

_NAMES = (FILE, EXE, CWD, UNIX)
_SUBJECTS = {
    PATH_ANCHORED: _NAMES,
    PATH_FLOATING: _NAMES,
    PATH_BEGUN: _NAMES,
    ARGV_ANCHORED: (ARGS,),
    ARGV_FLOATING: (ARGS,),
    ADDRESSES: (ADDR,),
    PORTS: (PORT,),
    PROJECT: _NAMES,
}
BELOW = -1
"""In the place of a subject: of what is below a directory."""

_FLOATING = (PATH_FLOATING, PATH_BEGUN, ARGV_FLOATING)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What one mark stands for, asked of one subject: numbers of conditions, predicates, offsets of
    rules.
    """

    conditions: frozenset[int]
    predicates: frozenset[int]
    rules: frozenset[int]


Contributions: TypeAlias = Mapping[tuple[int, int], Accepted]
"""By mark and subject, or BELOW."""


@dataclass(slots=True)
class Blob:
    """The words of an image as they are written. conditions: numbers that are given already."""

    generation: int
    words: array[int] = field(default_factory=lambda: array("I", bytes(4 * HEADER)))

    def put(self, words: Iterable[int]) -> int:
        """The offset of words written behind the others."""
        offset = len(self.words)
        self.words.extend(words)
        return offset

    def put_list(
        self,
        rules: Iterable[int],
        conditions: Iterable[int] = (),
        predicates: Iterable[int] = (),
        seen: int = 0,
    ) -> int:
        """A list's offset; 0 for one of nothing."""
        parts = [sorted(part) for part in (conditions, predicates, rules)]
        if not any(parts):
            return 0
        words = [seen]
        for part in parts:
            words += [len(part), *part]
        return self.put(words)

    def put_mask(self, bits: Iterable[int], always: bool = False) -> int:
        """The offset of a mask of predicates; 0 for an empty one, unless it is wanted always."""
        mask = sum(1 << bit for bit in set(bits))
        if not mask and not always:
            return 0
        return self.put(mask >> 32 * place & 0xFFFFFFFF for place in range(6))

    def put_sets(
        self, dfas: Mapping[int, Dfa], accepted: Contributions, given: int
    ) -> dict[int, int]:
        """The automata; by set, how many cells its rows have. given: numbers already in use."""
        rows: list[dict[int, int]] = []
        starts: dict[int, int] = {}
        lists = _Lists(self, accepted, given)
        for number in sorted(dfas, key=lambda n: (n not in _FLOATING, n)):
            starts[number] = len(rows)
            rows += lists.accepting(number, dfas[number])
        usual_reach: dict[int, list[int]] = {}
        for number, start in starts.items():
            usual_reach[number] = lists.reaching(number, dfas[number], rows, start)
        moves: list[Mapping[int, int]] = []
        for number in starts:
            moves += _moves(dfas[number])
        tables = {n: 4 * self.put(array("I", dfas[n].classes)) for n in starts}
        packed = packing.pack([(*row, *move) for row, move in zip(rows, moves, strict=True)])
        if len(self.words) % 2:
            self.words.append(0)
        begin = len(self.words) // 2
        cells = array("Q", bytes(8 * packed.length))
        for number, start in starts.items():
            dfa = dfas[number]
            end = start + len(dfa.rows)
            bases = packed.bases[start:end]
            states = [
                begin + base | usual << ROW_BITS | _sticky(row)
                for base, usual, row in zip(bases, dfa.usual, rows[start:end], strict=True)
            ]
            whole = list(zip(rows[start:end], moves[start:end], strict=True))
            packing.fill(cells, bases, states, whole)
            place = H_SETS + 4 * number
            self.words[place] = tables[number]
            self.words[place + 1] = states[dfa.start]
            self.words[place + 2] = begin + len(cells)
            self.words[place + 3] = NO_STATE if dfa.dead is None else states[dfa.dead]
            cells.extend(_defaults(dfa, states, usual_reach[number]))
        self.words.frombytes(cells.tobytes())
        return {
            number: sum(map(len, rows[start : start + len(dfas[number].rows)]))
            + sum(map(len, moves[start : start + len(dfas[number].rows)]))
            + DEFAULT * len(dfas[number].defaults)
            for number, start in starts.items()
        }

    def finish(self) -> bytes:
        """The image: a power of two of bytes."""
        self.words[H_MAGIC], self.words[H_ABI] = MAGIC, ABI
        self.words[H_GENERATION] = self.generation & 0xFFFFFFFF
        self.words[H_USED] = len(self.words)
        size = SMALLEST
        while size < 4 * len(self.words):
            size *= 2
        return self.words.tobytes() + bytes(size - 4 * len(self.words))


def _moves(dfa: Dfa) -> list[Mapping[int, int]]:
    """By state, where it goes otherwise than its default does."""
    usual = set(dfa.defaults)
    return [{} if state in usual else row for state, row in enumerate(dfa.rows)]


def _sticky(cells: Mapping[int, int]) -> int:
    """The bit of a state that has a list of what is sticky."""
    return STICKY if any(symbol % 2 for symbol in cells) else 0


def _defaults(dfa: Dfa, states: Sequence[int], reach: Sequence[int]) -> array[int]:
    """The default rows, one behind the other. reach: the list of each."""
    cells = array("Q", bytes(8 * DEFAULT * len(dfa.defaults)))
    for place, default in enumerate(dfa.defaults):
        cells[place * DEFAULT + REACH] = reach[place]
        for symbol, to in dfa.rows[default].items():
            cells[place * DEFAULT + symbol] = states[to]
    return cells


def _union(every: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset[int]().union(*set(every))


class _Lists:
    """The lists of accepting states, each once."""

    def __init__(self, blob: Blob, accepted: Contributions, given: int) -> None:
        self._blob, self._accepted, self._given = blob, accepted, given
        self._known: dict[tuple[frozenset[int], int, bool], int] = {}
        self._written: dict[tuple[object, ...], int] = {}

    def accepting(self, number: int, dfa: Dfa) -> list[dict[int, int]]:
        """By state: the cells of its symbols."""
        known: dict[tuple[frozenset[int], frozenset[int]], dict[int, int]] = {}
        found: list[dict[int, int]] = []
        for accepted in zip(dfa.final, dfa.sticky, strict=True):
            cells = known.get(accepted)
            if cells is None:
                cells = known[accepted] = self._cells(number, *accepted)
            found.append(cells)
        return found

    def reaching(self, number: int, dfa: Dfa, rows: list[dict[int, int]], start: int) -> list[int]:
        """Adds the cells of what is reachable to those of an automaton's states, which are from
        `start` on; by default, the list of those that have none of their own.
        """
        argv = ARGS in _SUBJECTS[number]
        lists = self._reach_lists(dfa, ARGS if argv else BELOW)
        usual = [lists.get(dfa.reach[state], 0) for state in dfa.defaults]
        known: dict[tuple[int, int | None, int], dict[int, int]] = {}
        below = {
            marks: 0 if argv else self._list(marks, BELOW, True)
            for marks in dict.fromkeys(dfa.sticky)
        }
        described = zip(dfa.reach, dfa.usual, dfa.sticky, strict=True)
        for state, (marks, place, sticky) in enumerate(described, start):
            own = None if marks is None or lists[marks] == usual[place] else lists[marks]
            if own is None and not below[sticky]:
                continue
            key = id(rows[state]), own, below[sticky]
            cells = known.get(key)
            if cells is None:
                more = {REACH: own} if own is not None else {}
                more |= {REACH + 1: below[sticky]} if below[sticky] else {}
                cells = known[key] = rows[state] | more
            rows[state] = cells
        return usual

    def _reach_lists(self, dfa: Dfa, subject: int) -> dict[frozenset[int] | None, int]:
        """By marks that are reachable, their list: the short ones, while there is room; for others
        that of all that is accepted anywhere, which restricts more and never less.
        """
        found: dict[frozenset[int] | None, int] = {}
        begun = len(self._blob.words)
        asked = dict.fromkeys(marks for marks in dfa.reach if marks is not None)
        every = None
        for marks in sorted(asked, key=len):
            if len(self._blob.words) - begun + len(marks) > REACH_WORDS:
                if every is None:
                    every = self._list(_union((*dfa.final, *dfa.sticky)), subject, False)
                found[marks] = every
            else:
                found[marks] = self._list(marks, subject, False)
        return found

    def _cells(self, number: int, final: frozenset[int], sticky: frozenset[int]) -> dict[int, int]:
        cells: dict[int, int] = {}
        for subject in _SUBJECTS[number]:
            for marks, symbol in ((final, 0), (sticky, 1)):
                offset = self._list(marks, subject, bool(symbol)) if marks else 0
                if offset:
                    cells[SYMBOL[subject] + symbol] = offset
        return cells

    def _list(self, marks: frozenset[int], subject: int, again: bool) -> int:
        """again: it may be met more than once in one subject."""
        known = self._known.get((marks, subject, again))
        if known is None:
            known = self._known[marks, subject, again] = self._new(marks, subject, again)
        return known

    def _new(self, marks: frozenset[int], subject: int, again: bool) -> int:
        all_of = [a for mark in marks if (a := self._accepted.get((mark, subject))) is not None]
        if not all_of:
            return 0
        conditions = frozenset[int]().union(*(a.conditions for a in all_of))
        predicates = frozenset[int]().union(*(a.predicates for a in all_of))
        rules = frozenset[int]().union(*(a.rules for a in all_of))
        content = conditions, predicates, rules, again
        offset = self._written.get(content)
        if offset is None:
            seen = 0
            if again and self._given + 1 < MAX_CONDITIONS:
                self._given += 1
                seen = self._given
            offset = self._blob.put_list(rules, conditions, predicates, seen)
            self._written[content] = offset
        return offset
