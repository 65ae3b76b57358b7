"""Patterns as rows of bytes: what a glob, a text, a network or a range of ports is to an automaton.

The same meaning as the expressions of patterns.py, for the subjects that the kernel sees. Bytes
cannot say everything that a text can: what is left over is NotLowerable, and the engine's.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agentwatch.policy.globs import (
    ANY_COMPONENTS,
    ARGV,
    MAX_ALTERNATIVES,
    PATH,
    WORD,
    Atom,
    Component,
    PatternError,
    rows,
)
from agentwatch.policy.items import ALL, CONTINUED, Home, Item, Pattern, Step
from agentwatch.policy.patterns import counts, is_at_home

__all__ = (
    "NotLowerable",
    "Pattern",
    "address_patterns",
    "behind_project",
    "pattern",
    "port_patterns",
    "sequence",
)

# Besides its two cases, what RE2 takes for a letter where case is no matter.
_FOLDED = {"k": "\u212a".encode(), "s": "\u017f".encode()}


class NotLowerable(ValueError):
    """A pattern that bytes cannot decide; the message says why, in words for its author."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """How texts become bytes. separator: one byte. fold: upper and lower case are one."""

    separator: int
    fold: bool

    @property
    def inside(self) -> int:
        """The bytes of a component."""
        return ALL & ~(1 << self.separator)

    @property
    def end(self) -> bytes:
        return bytes([self.separator])

    def text(self, text: str) -> Iterator[Item]:
        """The items of a literal text."""
        if not self.fold:
            yield _bytes(text)
            return
        for char in text:
            if not char.isascii():
                raise NotLowerable(f"`nocase` folds {char!r} in ways that bytes do not show")
            if char.isalpha():
                yield _one(1 << ord(char.lower()) | 1 << ord(char.upper()), self.fold)
            else:
                yield char.encode()


def pattern(
    text: str,
    separator: str,
    modifiers: Iterable[str] = (),
    homes: Sequence[str] = (),
    mark: int = 0,
) -> tuple[Pattern, ...]:
    """One value of a condition, as patterns.expression has it. Any of them covers a subject.

    Raises PatternError, NotLowerable.
    """
    words = frozenset(modifiers)
    if "re" in words:
        raise NotLowerable("`re` is an expression, which only the engine can search for")
    how = next(iter(words & {"startswith", "endswith", "contains"}), "")
    if homes and is_at_home(text, separator):
        found = _at_home(text[1:], homes, how, "nocase" in words)
    else:
        part = WORD if "has" in words else separator
        writing = _Writing(ord(part or "\0"), "nocase" in words)
        if how:
            found = [_literal(text, part, how, writing)]
        else:
            found = list(_globbed(rows(text, part), writing, anywhere="has" in words))
        if how and "has" in words:
            found = [replace(one, floating=True, sticky=True) for one in found]
    return _marked(found, mark, ord(separator or "\0"))


def sequence(
    tokens: Sequence[str], modifiers: Iterable[str] = (), mark: int = 0
) -> tuple[Pattern, ...]:
    """An argv of exactly these tokens, as patterns.sequence has it."""
    choices = [
        [row[0] for row in rows(token, WORD)] if token else [Component()] for token in tokens
    ]
    if math.prod(map(len, choices)) > MAX_ALTERNATIVES:
        raise NotLowerable(f"its braces stand for more than {MAX_ALTERNATIVES} rows of tokens")
    writing = _Writing(0, "nocase" in modifiers)
    return _marked(_globbed(itertools.product(*choices), writing), mark, 0)


def behind_project(rest: str, modifiers: Iterable[str] = (), mark: int = 0) -> tuple[Pattern, ...]:
    """What follows `$project` in a pattern of paths, for what follows the project in a name."""
    words = frozenset(modifiers)
    if words & {"re", "endswith", "contains"}:
        raise NotLowerable("`$project` does not stand at the beginning of the name")
    writing = _Writing(ord(PATH), "nocase" in words)
    if "nocase" in words:
        raise NotLowerable("`$project` with `nocase` is compared by the engine")
    if "startswith" in words:
        found = [_behind(rest, writing)]
    elif rest:
        found = list(_globbed(rows(rest, PATH), writing, begins=False))
    else:
        found = [Pattern((writing.end,))]
    return _marked(found, mark, writing.separator)


def address_patterns(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, mark: int = 0
) -> tuple[Pattern, ...]:
    """The addresses of a network as 16 bytes. No IPv6 network has the mapped IPv4 ones in it."""
    if isinstance(network, ipaddress.IPv4Network):
        start, length = int(network.network_address) | 0xFFFF << 32, network.prefixlen + 96
        return (_prefix(start, length, mark),)
    mapped = ipaddress.IPv6Network("::ffff:0:0/96")
    apart = [network]
    if mapped.subnet_of(network):
        apart = sorted(network.address_exclude(mapped)) if network != mapped else []
    return tuple(_prefix(int(one.network_address), one.prefixlen, mark) for one in apart)


def port_patterns(low: int, high: int, mark: int = 0) -> tuple[Pattern, ...]:
    """Ports from low to high as 2 bytes, the first more significant."""
    found: list[Pattern] = []
    low, high = max(low, 0), min(high, 0xFFFF)
    while low <= high:
        top, first = divmod(low, 256)
        last_top, last = divmod(high, 256)
        if first == 0 and (last == 255 or top < last_top):
            # Whole rows of 256.
            to = last_top if last == 255 else last_top - 1
            found.append(Pattern((_between(top, to), _between(0, 255)), mark))
        else:
            to = top
            last = last if top == last_top else 255
            found.append(Pattern((bytes([top]), _between(first, last)), mark))
        low = (to + 1) * 256
    return tuple(found)


def _marked(found: Iterable[Pattern], mark: int, separator: int) -> tuple[Pattern, ...]:
    """Each pattern once, and no longer than it must be."""
    every = dict.fromkeys(
        _placed(_shortened(replace(one, mark=mark, separator=separator))) for one in found
    )
    return tuple(every)


def _placed(pattern: Pattern) -> Pattern:
    """Which patterns it shares an automaton with: with those that begin anywhere if it does, too.

    But one that remembers what it has seen would multiply the states of all of those. Beside
    patterns with a beginning, few of which are still possible somewhere in a subject, it does not;
    below the homes many are, and so it is only what spans components that is kept from the others
    there.
    """
    if not pattern.floating or not pattern.remembers:
        return pattern
    rows = Step("rows", ALL & ~(1 << pattern.separator))
    if pattern.separator == ord(PATH) and not any(
        isinstance(item, Step) and item.kind == "rows" for item in pattern.items
    ):
        return pattern
    return replace(pattern, floating=False, items=(rows, *pattern.items))


def _shortened(pattern: Pattern) -> Pattern:
    """Without the rest of a component behind a byte of it: every component ends, whatever is in it.

    Nothing is remembered then. Behind a separator there may be no further component.
    """
    separator = pattern.separator
    rest = (Step("many", ALL & ~(1 << separator)), bytes([separator]))
    if not pattern.sticky or len(pattern.items) < 3 or pattern.items[-2:] != rest:
        return pattern
    last = pattern.items[-3]
    if isinstance(last, Step):
        inside = last.kind in ("one", "character") and not last.members >> separator & 1
    else:
        inside = isinstance(last, Home) or last[-1] != separator
    return replace(pattern, items=pattern.items[:-2]) if inside else pattern


def _prefix(start: int, length: int, mark: int) -> Pattern:
    address = start.to_bytes(16, "big")
    whole, bits = divmod(length, 8)
    items: list[Item] = [address[:whole]] if whole else []
    if bits:
        low = address[whole] & (0xFF << (8 - bits))
        items.append(_between(low, low | (0xFF >> bits)))
    if length <= 120:
        items.append(Step("many", ALL))
    return Pattern(tuple(items), mark)


def _between(low: int, high: int) -> Step:
    return Step("one", (1 << (high + 1)) - (1 << low))


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NotLowerable("it has a byte in it that is not UTF-8") from None


def _at_home(rest: str, homes: Sequence[str], how: str, fold: bool) -> list[Pattern]:
    """rest: what stands behind the `~`."""
    writing = _Writing(ord(PATH), fold)
    if how in ("endswith", "contains"):
        return [_literal(home + rest, PATH, how, writing) for home in homes]
    home = Home(tuple(tuple(_joined(writing.text(home))) for home in homes))  # type: ignore[arg-type]
    if how:
        found = [_behind(rest, writing)]
    elif rest:
        found = list(_globbed(rows(rest, PATH), writing))
    else:
        found = [Pattern((writing.end,))]
    return [replace(one, items=(home, *one.items)) for one in found]


def _behind(rest: str, writing: _Writing) -> Pattern:
    """startswith, for what a directory's name is followed by."""
    if rest:
        return _literal(rest, PATH, "startswith", writing)
    return Pattern((Step("many", writing.inside), writing.end), sticky=True)


def _literal(text: str, part: str, how: str, writing: _Writing) -> Pattern:
    """startswith, endswith or contains. In an argv a space is a space or the end of a token."""
    if not text:
        raise PatternError("an empty text is part of every value")
    items: list[Item] = []
    pieces = text.split(" ") if part == ARGV else [text]
    for place, piece in enumerate(pieces):
        if place:
            items.append(Step("one", 1 << 0 | 1 << ord(" ")))
        items += writing.text(piece)
    around = Step("many", writing.inside)
    before = around if part == WORD else Step("many", ALL)
    if how != "startswith":
        items.insert(0, before)
    if how != "endswith":
        items.append(around)
    # What follows the next separator is no matter, for every subject ends with one.
    return Pattern(
        _joined([*items, writing.end]),
        sticky=how != "endswith",
        floating=how != "startswith" and part != WORD,
    )


def _globbed(
    found: Iterable[Sequence[Component]],
    writing: _Writing,
    begins: bool = True,
    anywhere: bool = False,
) -> Iterator[Pattern]:
    """The patterns of a glob's alternatives. begins: they begin where a component does. anywhere:
    each is looked for in all of a row.
    """
    between = Step("rows", writing.inside)
    for alternative in found:
        row = list(alternative)
        floating = anywhere or row[:1] == [ANY_COMPONENTS]
        sticky = anywhere or row[-1:] == [ANY_COMPONENTS]
        while row and row[-1] == ANY_COMPONENTS:
            row.pop()
        while row and row[0] == ANY_COMPONENTS:
            del row[0]
        choices: list[list[tuple[Item, ...]]] = []
        for place, component in enumerate(row):
            if component != ANY_COMPONENTS:
                items = _component(component, writing, begins or place > 0)
                choices.append([(*one, writing.end) for one in items])
            elif row[place - 1] != ANY_COMPONENTS:  # the first one is none
                choices.append([(between,)])
        if math.prod(map(len, choices)) > MAX_ALTERNATIVES:
            raise NotLowerable("it counts characters behind too many wildcards")
        for choice in itertools.product(*choices):
            whole = _joined(itertools.chain.from_iterable(choice))
            if not whole and floating:  # every subject, even one without a separator
                yield Pattern((Step("many", ALL),), floating=True)
            else:
                yield Pattern(whole, sticky=sticky, floating=floating)


def _component(component: Component, writing: _Writing, begins: bool) -> list[tuple[Item, ...]]:
    """The items of a component without its separator; of its alternatives, if it has several.

    Where a component begins, a byte that would go on with a character begins one.
    """
    if begins and len(component) > 1 and component[0].kind == "many" and counts(component[1]):
        # With nothing for the `*`, and with something: then no stray byte begins a character.
        behind = _component(component[1:], writing, False)
        many = Step("many", writing.inside)
        return [*_component(component[1:], writing, True), *((many, *one) for one in behind)]
    items: list[Item] = []
    for place, atom in enumerate(component):
        first = begins and place == 0
        if atom.kind == "text":
            items += writing.text(atom.text)
        elif atom.kind == "many":
            items.append(Step("many", writing.inside))
        else:
            step = _character(atom, writing, first)
            if not step.members and not step.also:
                return []
            items.append(step)
    return [tuple(items)]


def _character(atom: Atom, writing: _Writing, first: bool) -> Step:
    """`?` or a set."""
    members = 0
    for low, high in atom.ranges:
        if not high.isascii():
            raise NotLowerable("it has a set with characters beyond ASCII")
        members |= (1 << (ord(high) + 1)) - (1 << ord(low))
    if atom.kind == "set" and atom.text != "!":
        return _one(members & writing.inside, writing.fold)
    if writing.fold and members:
        folded = _one(members, True)
        if folded.also:
            raise NotLowerable("it has a set of what is neither k nor s, with `nocase`")
        members = folded.members
    beginning = writing.inside & ~members
    return Step("character", beginning if first else beginning & ~CONTINUED)


def _one(members: int, fold: bool) -> Step:
    """A byte of a set of ASCII bytes."""
    if not fold:
        return Step("one", members)
    upper, lower = members >> 65 & _LETTERS, members >> 97 & _LETTERS
    both = upper | lower
    also = tuple(row for char, row in _FOLDED.items() if both >> (ord(char) - 97) & 1)
    return Step("one", members | both << 65 | both << 97, also)


_LETTERS = (1 << 26) - 1


def _joined(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items with literal bytes in one piece."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += item
        elif item != b"":
            found.append(item)
    return tuple(found)
