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
from collections.abc import Mapping, Sequence
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
SET_MEMORY = 64 << 20
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

    expressions: as patterns.expression makes them. searches: by bit, what stands behind those
    that are patterns.NEVER. Raises AgentwatchError when RE2 has no room for them.
    """

    def __init__(
        self,
        expressions: Sequence[str],
        separator: str,
        searches: Mapping[int, Search] = MappingProxyType({}),
        memory: int = SET_MEMORY,
    ) -> None:
        self._options = re2.Options()
        self._options.log_errors = False
        self._options.max_mem = memory
        self._separator = separator
        self._expressions = tuple(e.encode("utf-8", "surrogatepass") for e in expressions)
        self._set = self._compile()
        self._searches = tuple(
            (
                1 << bit,
                re2.compile(search.text.encode("utf-8", "surrogatepass"), self._options),
                search.one,
            )
            for bit, search in searches.items()
        )
        self._remembered = functools.lru_cache(REMEMBERED)(self._scan)

    def bits(self, value: Value) -> int:
        length = sum(map(len, value)) if isinstance(value, tuple) else len(str(value))
        return (self._remembered if length <= LONGEST_REMEMBERED else self._scan)(value)

    def _compile(self) -> re2.Set:
        compiled = re2.Set.FullMatchSet(self._options)
        try:
            for expression in self._expressions:
                compiled.Add(expression)
            compiled.Add(_EVERYTHING)
            compiled.Compile()
        except re2.error:
            raise AgentwatchError(
                f"RE2 has no room for the rules' {len(self._expressions)} patterns of one field",
                "use fewer alternatives in braces, or `**/name` instead of lists of places",
            ) from None
        return compiled

    def slowly(self, value: Value) -> int:
        """What `bits` says, asked of one expression after the other, which cannot fail."""
        text = value if isinstance(value, str | tuple) else str(value)
        subject = patterns.subject(text, self._separator)
        mask = self._search(text)
        for bit, expression in enumerate(self._expressions):
            if re2.compile(expression, self._options).fullmatch(subject):
                mask |= 1 << bit
        return mask

    def _scan(self, value: Value) -> int:
        text = value if isinstance(value, str | tuple) else str(value)
        found = self._set.Match(patterns.subject(text, self._separator))
        # A set that finds no memory answers "nothing matched", as one that matched nothing does.
        # The expression of everything, the last one, tells the two apart.
        last = len(self._expressions)
        if not found or last not in found:
            return self.slowly(value)
        mask = self._search(text)
        for bit in found:
            if bit != last:
                mask |= 1 << bit
        return mask

    def _search(self, value: str | tuple[str, ...]) -> int:
        mask = 0
        for bit, search, one in self._searches:
            whole = value if isinstance(value, str) else " ".join(value)
            texts = value if one and isinstance(value, tuple) else (whole,)
            if any(search.search(text.encode("utf-8", "surrogatepass")) for text in texts):
                mask |= bit
        return mask


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
