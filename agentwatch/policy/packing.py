"""Rows of an automaton in one array: every row lies in the gaps of the others (a double array).

A state is the place where its row begins; no two begin at the same place, so that a cell which
names its state belongs to no other.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDEST = 264  # cells of a row: 8 symbols and at most 256 classes
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

    Wide rows first, then the narrow ones into the gaps. The same rows have the same places.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    bases = [0] * len(rows)
    space = _Space()
    for row in order:
        bases[row] = space.take(rows[row])
    return Packed(tuple(bases), max(bases, default=0) + WIDEST)


class _Space:
    """What is free, window by window. cells: for cells of rows; bases: for their beginnings."""

    def __init__(self) -> None:
        self._cells, self._bases = [_FREE, _FREE], [_FREE]
        self._first: dict[int, int] = {}  # by width, the window to look at first
        self._refused: Counter[int] = Counter()

    def take(self, row: Sequence[int]) -> int:
        """The first place found for a row."""
        width = len(row)
        first = self._first.setdefault(width, 0)
        window = first
        while True:
            found = self._fitting(window, row)
            if found:
                break
            if window == first:
                self._refuse(width)
            window += 1
            if window - first > _WINDOWS:
                window = max(window, len(self._bases) - 1)
        place = (found & -found).bit_length() - 1
        base = window * _WINDOW + place
        self._bases[window] &= ~(1 << place)
        for cell in row:
            at, bit = divmod(base + cell, _WINDOW)
            self._cells[at] &= ~(1 << bit)
        return base

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


def fill(
    cells: array[int],
    bases: Sequence[int],
    states: Sequence[int],
    rows: Iterable[Mapping[int, int]],
) -> None:
    """Writes rows into an array of u64: each of a row's cells belongs to its state."""
    for base, state, row in zip(bases, states, rows, strict=True):
        owner = state << 32
        for cell, value in row.items():
            cells[base + cell] = owner | value
