"""Which of the values that rules name cover the value an event has: one bit for each of them.

A rule's condition is a row of alternatives, every distinct alternative of a field is a bit, and
what an event is asked is only whether some bits are set. All byte patterns of a field are matched
in one pass (an RE2 set), so the cost of an event does not grow with their number; answers are
remembered, for programs open the same files again and again. This is the part that the automaton
in the kernel takes over: its accept states are these bits.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

import re2

from agentwatch.errors import AgentwatchError
from agentwatch.policy import patterns

Value: TypeAlias = str | int | tuple[str, ...]
"""What a field has: text, a number, or the tokens of an argv."""

REMEMBERED = 8192
LONGEST_REMEMBERED = 512  # characters, so that what is remembered has a bound in bytes too
SET_MEMORY = 32 << 20
_EVERYTHING = b"(?s:.*)"


class Index(Protocol):
    """The values that rules name for one field."""

    def bits(self, value: Value) -> int:
        """Bit i is set where the i-th value covers this one."""


@dataclass(frozen=True, slots=True)
class Search:
    """An RE2 expression (`|re`) looked for anywhere in a text. one: in some one token of an argv,
    else in its tokens joined by spaces.
    """

    text: str
    one: bool = False


class PatternIndex:
    """Byte patterns. separator: of patterns.py; an ARGV's values are tuples of tokens.

    expressions: as patterns.expression makes them. literals: of each, as patterns.literals gives
    them. searches: by bit, what stands behind those that are patterns.NEVER. Raises
    AgentwatchError when RE2 has no room for them.

    A value is asked in two steps. All literals are looked for in one pass, which says of nearly
    all patterns that they do not match; the few that are left are asked one by one. Those without
    literals are asked together, in one pass: so many of them that begin and end in `*` would make
    an automaton too large to be fast.
    """

    def __init__(
        self,
        expressions: Sequence[str],
        separator: str,
        searches: Mapping[int, Search] = MappingProxyType({}),
        memory: int = SET_MEMORY,
        literals: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self._options = re2.Options()
        self._options.log_errors = False
        self._options.max_mem = memory
        self._separator = separator
        self._expressions = tuple(e.encode("utf-8", "surrogatepass") for e in expressions)
        self._asked = functools.cache(self._ask)
        wanting: dict[str, list[int]] = {}
        for bit, texts in enumerate(literals):
            for text in texts:
                wanting.setdefault(text, []).append(bit)
        self._wanting = tuple(tuple(bits) for bits in wanting.values())
        self._literals = self._compile(map(_literally, wanting), re2.Set.SearchSet)
        told = {bit for bits in self._wanting for bit in bits}
        self._together = tuple(
            bit
            for bit, text in enumerate(expressions)
            if bit not in told and text != patterns.NEVER
        )
        rest = (self._expressions[bit] for bit in self._together)
        self._set = self._compile(rest, re2.Set.FullMatchSet)
        self._searched = {bit: search for bit, search in searches.items() if not search.one}
        self._searched_one = {bit: search for bit, search in searches.items() if search.one}
        self._lines = self._compile(map(_search, self._searched.values()), re2.Set.SearchSet)
        self._tokens = self._compile(map(_search, self._searched_one.values()), re2.Set.SearchSet)
        self._remembered = functools.lru_cache(REMEMBERED)(self._scan)

    def bits(self, value: Value) -> int:
        length = sum(map(len, value)) if isinstance(value, tuple) else len(str(value))
        return (self._remembered if length <= LONGEST_REMEMBERED else self._scan)(value)

    def _compile(
        self, expressions: Iterable[bytes], kind: Callable[[re2.Options], re2.Set]
    ) -> re2.Set:
        """The set, with one more expression that matches everything."""
        compiled = kind(self._options)
        try:
            for expression in expressions:
                compiled.Add(expression)
            compiled.Add(_EVERYTHING)
            compiled.Compile()
        except re2.error:
            raise AgentwatchError(
                f"RE2 has no room for the rules' {len(self._expressions)} patterns of one field",
                "use fewer alternatives in braces, or `**/name` instead of lists of places",
            ) from None
        return compiled

    def _ask(self, bit: int) -> re2._Regexp:
        try:
            return re2.compile(self._expressions[bit], self._options)
        except re2.error:
            raise AgentwatchError("RE2 has no room for a pattern", "use fewer braces") from None

    def slowly(self, value: Value) -> int:
        """What `bits` says, asked of one expression after the other, which cannot fail."""
        text = value if isinstance(value, str | tuple) else str(value)
        subject = patterns.subject(text, self._separator)
        mask = self._search(text)
        for bit in range(len(self._expressions)):
            if self._asked(bit).fullmatch(subject):
                mask |= 1 << bit
        return mask

    def _scan(self, value: Value) -> int:
        text = value if isinstance(value, str | tuple) else str(value)
        subject = patterns.subject(text, self._separator)
        literal = self._literals.Match(subject)
        found = self._set.Match(subject)
        # A set that finds no memory answers "nothing matched", as one that matched nothing does.
        # The expression of everything, the last one, tells the two apart.
        if len(self._wanting) not in literal or len(self._together) not in found:
            return self.slowly(value)
        mask = self._search(text)
        for place in found:
            if place != len(self._together):
                mask |= 1 << self._together[place]
        asked = {bit for one in literal if one != len(self._wanting) for bit in self._wanting[one]}
        for bit in asked:
            if self._asked(bit).fullmatch(subject):
                mask |= 1 << bit
        return mask

    def _search(self, value: str | tuple[str, ...]) -> int:
        """The bits of what is searched for."""
        mask = 0
        whole = value if isinstance(value, str) else " ".join(value)
        if self._searched:
            mask |= self._found(whole, self._lines, self._searched)
        if self._searched_one:
            for text in value if isinstance(value, tuple) else (whole,):
                mask |= self._found(text, self._tokens, self._searched_one)
        return mask

    def _found(self, text: str, together: re2.Set, searches: Mapping[int, Search]) -> int:
        """The bits of those of the searches, which are a set together, that find something."""
        subject = text.encode("utf-8", "surrogatepass")
        found = together.Match(subject)
        if len(searches) not in found:  # no memory
            each = (
                (bit, re2.compile(_search(one), self._options)) for bit, one in searches.items()
            )
            return sum(1 << bit for bit, search in each if search.search(subject))
        bits = tuple(searches)
        return sum(1 << bits[place] for place in found if place != len(bits))


def _search(search: Search) -> bytes:
    return search.text.encode("utf-8", "surrogatepass")


def _literally(text: str) -> bytes:
    """An expression that finds the text in any case."""
    return f"(?i:{patterns.quote(text)})".encode("utf-8", "surrogatepass")


class JoinedIndex:
    """Two indexes as one: the bits of the second stand behind the `shift` of the first."""

    def __init__(self, first: Index, second: Index, shift: int) -> None:
        self._first, self._second, self._shift = first, second, shift

    def bits(self, value: Value) -> int:
        return self._first.bits(value) | self._second.bits(value) << self._shift


class NumberIndex:
    """Numbers and ranges: "443", "8000-8999". Raises ValueError for other text."""

    def __init__(self, values: Sequence[str]) -> None:
        self._ranges = tuple((1 << bit, *_range(value)) for bit, value in enumerate(values))
        self._remembered = functools.lru_cache(REMEMBERED)(self._scan)

    def bits(self, value: Value) -> int:
        return self._remembered(value)

    def _scan(self, value: Value) -> int:
        number = int(value) if isinstance(value, str | int) else -1
        return sum(bit for bit, low, high in self._ranges if low <= number <= high)


class AddressIndex:
    """Addresses as text: networks (`|cidr`), single addresses, and globs for whatever is neither.

    An IPv4-mapped IPv6 address is the IPv4 address in it, on both sides. Raises ValueError for a
    network that is none, PatternError for a malformed glob.
    """

    def __init__(self, values: Sequence[tuple[str, bool]]) -> None:
        """values: the text, and whether it is a network."""
        self._networks = tuple(
            (1 << bit, network)
            for bit, (text, cidr) in enumerate(values)
            if (network := _network(text, cidr)) is not None
        )
        indexed = {bit for bit, _ in self._networks}
        globs = {1 << bit: text for bit, (text, _) in enumerate(values) if 1 << bit not in indexed}
        self._glob_bits = tuple(globs)
        self._globs = PatternIndex(
            [patterns.expression(text, patterns.WORD, ("nocase",)) for text in globs.values()],
            patterns.WORD,
        )
        self._remembered = functools.lru_cache(REMEMBERED)(self._scan)

    def bits(self, value: Value) -> int:
        return self._remembered(value)

    def _scan(self, value: Value) -> int:
        try:
            address = unmapped(ipaddress.ip_address(str(value)))
        except ValueError:
            return 0
        mask = sum(bit for bit, network in self._networks if address in network)
        found = self._globs.bits(str(address)) if self._glob_bits else 0
        return mask | sum(bit for place, bit in enumerate(self._glob_bits) if found >> place & 1)


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def unmapped(address: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped IPv6 address; any other as it is."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(text: str, cidr: bool) -> Network | None:
    """A network, or a single address as one; None for a glob."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if cidr:
            raise
        return None
    mapped = unmapped(network.network_address)
    if mapped.version != network.version and network.prefixlen >= 96:
        return ipaddress.ip_network((int(mapped), network.prefixlen - 96), strict=False)
    return network


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise ValueError(f"`{text}` is neither a number nor a range") from None
