"""Rows of an automaton in one array: every row lies in the gaps of the others (a double array).

A state is the place where its row begins; no two begin at the same place, so that a cell which
names its state belongs to no other.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDEST = 266  # cells of a row: 10 symbols and at most 256 classes
_WINDOW = 4096  # places that are looked at together, as the bits of an integer
_WINDOWS = 48  # that are looked at for one row, before it goes behind all others
_PATIENCE = 6  # rows of a width that a window may turn away before it is left out for them
_FREE = (1 << _WINDOW) - 1


@dataclass(frozen=True, slots=True)
class Packed:
    """bases: of each row where it begins. length: of the array, with room for any read."""

    bases: tuple[int, ...]
    length: int


def pack(rows: Sequence[Sequence[int]]) -> Packed:
    """Places for rows, each given by the numbers of its cells.

    Wide rows first, then the narrow ones into the gaps; those of the same cells, of which there are
    many, together. The same rows have the same places.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(place)
    bases = [0] * len(rows)
    space = _Space()
    for cells in sorted(alike, key=lambda cells: (-len(cells), cells)):
        places = alike[cells]
        for place, base in zip(places, space.take(cells, len(places)), strict=True):
            bases[place] = base
    return Packed(tuple(bases), max(bases, default=0) + WIDEST)


class _Space:
    """What is free, window by window. cells: for cells of rows; bases: for their beginnings."""

    def __init__(self) -> None:
        self._cells, self._bases = [_FREE, _FREE], [_FREE]
        self._first: dict[int, int] = {}  # by width, the window to look at first
        self._refused: Counter[int] = Counter()

    def take(self, row: Sequence[int], count: int) -> list[int]:
        """The first places found for so many rows of the same cells."""
        width = len(row)
        first = self._first.setdefault(width, 0)
        window = first
        bases: list[int] = []
        while True:
            found = self._fitting(window, row)
            if found:
                begin = window * _WINDOW
                left = count - len(bases)
                bases += [begin + place for place in self._taken(window, found, row, left)]
                if len(bases) == count:
                    return bases
            elif window == first:
                self._refuse(width)
            window += 1
            if window - first > _WINDOWS:
                window = max(window, len(self._bases) - 1)

    def _taken(self, window: int, found: int, row: Sequence[int], most: int) -> list[int]:
        """At most so many of the places found in a window, which they are no longer free in."""
        if most == 1:
            mask = found & -found
            places = [mask.bit_length() - 1]
        else:
            places = _apart(found, row, most)
            mask = 0
            for place in places:
                mask |= 1 << place
        self._bases[window] &= ~mask
        for cell in row:
            at = mask << cell
            self._cells[window] &= ~at
            self._cells[window + 1] &= ~(at >> _WINDOW)
        return places

    def _fitting(self, window: int, row: Sequence[int]) -> int:
        """The places in a window where a row may begin, as bits."""
        while window >= len(self._bases):
            self._bases.append(_FREE)
            self._cells.append(_FREE)
        free = self._cells[window] | self._cells[window + 1] << _WINDOW
        found = self._bases[window]
        for cell in row:
            found &= free >> cell
            if not found:
                break
        return found

    def _refuse(self, width: int) -> None:
        self._refused[width] += 1
        if self._refused[width] > _PATIENCE:
            self._refused[width] = 0
            self._first[width] += 1


def _apart(found: int, row: Sequence[int], most: int) -> list[int]:
    """At most so many places, given as bits, at which rows of the same cells do not meet."""
    meet = {one - other for one in row for other in row if one > other}
    bits = bin(found)[:1:-1]
    places: list[int] = []
    taken: set[int] = set()
    place = bits.find("1")
    while place >= 0:
        for far in meet:
            if place - far in taken:
                break
        else:
            places.append(place)
            if len(places) == most:
                break
            taken.add(place)
        place = bits.find("1", place + 1)
    return places


def fill(
    cells: array[int],
    bases: Sequence[int],
    states: Sequence[int],
    rows: Sequence[tuple[Mapping[int, int], Mapping[int, int]]],
) -> None:
    """Writes rows into an array of u64, each of whose cells belongs to its state: values by symbol,
    and places of states by class.
    """
    for base, state, (values, moves) in zip(bases, states, rows, strict=True):
        owner = state << 32
        for cell, value in values.items():
            cells[base + cell] = owner | value
        for cell, to in moves.items():
            cells[base + cell] = owner | states[to]
