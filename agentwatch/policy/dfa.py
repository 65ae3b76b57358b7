"""A deterministic automaton as a table: whatever the number of its patterns, a subject is read
once, a step for each byte.

Many states do on most bytes what some other one does, their default; their rows say only what they
do otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_CLASS = 10
"""Class numbers below stand for no byte: a packed table has something else there."""

ROW = 272
"""Entries that the row of a default takes in a packed table."""


@dataclass(frozen=True, slots=True)
class Dfa:
    """A deterministic automaton over classes of bytes.

    classes: of each of 256 bytes the number of its class, less FIRST_CLASS. width: one more than
    the greatest class number. defaults: states whose rows are whole, that of most users first.
    usual: by state, the place of its default; that of a default is its own. rows: by state, to
    where each class leads that leads elsewhere than the default's does. final, sticky: by state,
    the marks that are accepted at the end of a subject, and wherever the state is met. reach: of
    the states it was asked for, the marks that are accepted if more follows, or more. dead: the
    state from which nothing is accepted any more, if there is one.
    """

    classes: bytes
    width: int
    start: int
    defaults: list[int]
    usual: list[int]
    rows: list[dict[int, int]]
    final: list[frozenset[int]]
    sticky: list[frozenset[int]]
    reach: list[frozenset[int] | None]
    dead: int | None = None

    @property
    def default(self) -> int:
        """The default of most states."""
        return self.defaults[0]

    def step(self, state: int, byte: int) -> int:
        """The state behind a byte."""
        number = self.classes[byte] + FIRST_CLASS
        found = self.rows[state].get(number)
        return self.rows[self.defaults[self.usual[state]]][number] if found is None else found

    def marks(self, subject: bytes) -> frozenset[int]:
        """What covers a subject."""
        state = self.start
        found = set(self.sticky[state])
        for byte in subject:
            state = self.step(state, byte)
            found |= self.sticky[state]
        return frozenset(found | self.final[state])

    @property
    def entries(self) -> int:
        """How many steps the table has."""
        return sum(map(len, self.rows))
