"""What patterns of bytes are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

ALL = (1 << 256) - 1
CONTINUED = ((1 << 64) - 1) << 0x80
"""The bytes 0x80 to 0xBF, which go on with a character that another byte began."""

_WILD = ("many", "character")
_USUAL = 4  # wildcards of a pattern


class Step(NamedTuple):
    """What stands between literal bytes. members: a set of bytes, bit by bit.

    kind: one (a byte of the set, or one of the byte rows in also), character (a byte of the set and
    all that go on with it), many (any number of them, none included), rows (`**`: any number of
    components, whose bytes are the members; the one that is no member parts them).
    """

    kind: str
    members: int
    also: tuple[bytes, ...] = ()


class Home(NamedTuple):
    """Any of the home directories, without a separator behind it."""

    directories: tuple[tuple[bytes | Step, ...], ...]


Item: TypeAlias = bytes | Step | Home


@dataclass(frozen=True, slots=True)
class Pattern:
    """A row of items which covers a subject from its beginning; floating: from any component on.

    mark: what is accepted, a number of the compiler's. sticky: whatever follows the items; if not,
    they are all of the subject. separator: the byte that parts components. precedence: where there
    is no room for all, those of less keep their place.
    """

    items: tuple[Item, ...]
    mark: int = 0
    sticky: bool = False
    floating: bool = False
    separator: int = 0
    precedence: int = 0

    @property
    def length(self) -> int:
        """Its bytes and steps."""
        return sum(len(item) if isinstance(item, bytes) else 1 for item in self.items)

    @property
    def remembers(self) -> int:
        """How often it must keep in mind what was read, for longer than that goes on: behind a
        `**` in the middle, and between two wildcards of a component.
        """
        found = stars = 0
        for item in self.items:
            if isinstance(item, bytes):
                stars = 0 if self.separator in item else stars
            elif isinstance(item, Step) and item.kind == "many":
                stars += 1
                found += stars > 1
            else:
                found += isinstance(item, Step) and item.kind == "rows"
        return found

    @property
    def begun(self) -> bool:
        """Whether it floats and has a `*` behind other text of a component, as `**/x*`: the rest of
        a name is read with that in mind.
        """
        kinds = [item.kind if isinstance(item, Step) else "" for item in self.items]
        return self.floating and any(
            kind == "many" and not (isinstance(before, bytes) and before[-1] == self.separator)
            for before, kind in zip(self.items, kinds[1:], strict=False)
        )

    @property
    def risk(self) -> int:
        """How much it may multiply the states of others; nothing, for most patterns.

        Those of paths that are begun have an automaton of their own, where they do not.
        """
        kinds = [item.kind if isinstance(item, Step) else "" for item in self.items]
        more = max(0, sum(kind in _WILD for kind in kinds) - _USUAL)
        return self.remembers + more + (self.begun and not self.separator)
