"""What rules mean, worked out in the plainest way: every rule, every value, character by character.

No regular expression, no automaton, no index. The one thing shared with what it is compared to is
the reading of a glob's text to rows of components. Values are bytes, as the kernel has them.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agentwatch.events import Connect, Event, Exec, Mount, Open
from agentwatch.lineage import Actor
from agentwatch.policy.globs import ANY_COMPONENTS, ARGV, PATH, WORD, Atom, Component, rows
from agentwatch.rules.model import ACTIONS, SEVERITIES, Condition, Default, Match, Rule, Ruleset

Token = bytes
Value = bytes | tuple[Token, ...]
LITERALLY = ("startswith", "endswith", "contains")
PATHS = ("path", "cwd", "unix", "process.exe", "process.cwd")
ARGVS = ("args", "process.args")
_PROJECT = re.compile(r"(?<!\\)\$project\b")
_FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 40: "vsock"}


# One component.


def _continues(byte: int) -> bool:
    return 0x80 <= byte <= 0xBF


def character(text: bytes, at: int) -> int:
    """Where the character that begins at `at` ends; 0 when none begins there.

    One byte that continues nothing, and all that continue it; at the beginning of a component a
    byte that continues begins one, too.
    """
    if at >= len(text) or (at > 0 and _continues(text[at])):
        return 0
    end = at + 1
    while end < len(text) and _continues(text[end]):
        end += 1
    return end


def decoded(text: bytes, at: int) -> tuple[str, int]:
    """The character of UTF-8 at a place, or the byte there, and how long it is."""
    for length in (1, 2, 3, 4):
        try:
            return text[at : at + length].decode(), length
        except UnicodeDecodeError:
            continue
    return chr(0xDC00 + text[at]), 1


def same(one: str, other: str, nocase: bool) -> bool:
    """Whether two characters are the same, in any case with nocase."""
    return one == other or (nocase and _folded(one) == _folded(other))


def _folded(char: str) -> str:
    return {"\u212a": "k", "\u017f": "s"}.get(char, char.lower())


def literal(wanted: str, text: bytes, at: int, nocase: bool) -> int:
    """Where the text ends that stands literally at `at`; -1 when it does not."""
    if not nocase:
        bare = os.fsencode(wanted)
        return at + len(bare) if text.startswith(bare, at) else -1
    for char in wanted:
        if at >= len(text):
            return -1
        found, length = decoded(text, at)
        if not same(char, found, nocase):
            return -1
        at += length
    return at


def _in_set(atom: Atom, char: str, nocase: bool) -> bool:
    forms = {char}
    if nocase:
        forms |= {c for c in (*_EVERY_CASE, char.upper(), char.lower()) if same(c, char, True)}
    return any(low <= form <= high for form in forms for low, high in atom.ranges)


_EVERY_CASE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\u212a\u017f"


def after(atom: Atom, text: bytes, at: int, nocase: bool) -> Iterator[int]:
    """Every place where what an atom covers, from `at` on, may end."""
    if atom.kind == "many":
        yield from range(at, len(text) + 1)
    elif atom.kind == "any":
        if end := character(text, at):
            yield end
    elif atom.kind == "text":
        if (end := literal(atom.text, text, at, nocase)) >= 0:
            yield end
    elif atom.text == "!":
        if (end := character(text, at)) and not _in_set(atom, decoded(text, at)[0], nocase):
            yield end
    elif at < len(text):
        char, length = decoded(text, at)
        if _in_set(atom, char, nocase):
            yield at + length


def component_covers(component: Component, text: bytes, nocase: bool) -> bool:
    places = {0}
    for atom in component:
        places = {end for at in places for end in after(atom, text, at, nocase)}
    return len(text) in places


# Whole values.


def row_covers(row: Sequence[Component], parts: Sequence[bytes], nocase: bool) -> bool:
    """Whether a row of components covers all parts of a value."""
    places = {0}
    for component in row:
        if component == ANY_COMPONENTS:
            places = {end for at in places for end in range(at, len(parts) + 1)}
        else:
            places = {
                at + 1
                for at in places
                if at < len(parts) and component_covers(component, parts[at], nocase)
            }
    return len(parts) in places


def glob_covers(text: str, separator: str, parts: Sequence[bytes], nocase: bool = False) -> bool:
    return any(row_covers(row, parts, nocase) for row in rows(text, separator))


def literal_covers(how: str, wanted: str, text: bytes, nocase: bool, spaces: bool) -> bool:
    """startswith, endswith, contains. spaces: of an argv, whose ends of tokens are NUL in `text`;
    a space of `wanted` is one of them or a space.
    """

    def ends(at: int) -> int:
        for char in wanted:
            if spaces and char == " " and text[at : at + 1] in (b" ", b"\0"):
                at += 1
            elif (at := literal(char, text, at, nocase)) < 0:
                return -1
        return at

    if how == "startswith":
        return ends(0) >= 0
    found = (ends(at) for at in range(len(text) + 1))
    return any(end == len(text) if how == "endswith" else end >= 0 for end in found)


def path_covers(text: str, how: frozenset[str], value: bytes, homes: Sequence[str]) -> bool:
    nocase = "nocase" in how
    literally = [word for word in LITERALLY if word in how]
    if homes and (text == "~" or text.startswith("~/")):
        if literally and literally[0] != "startswith":
            return any(
                literal_covers(literally[0], home + text[1:], value, nocase, False)
                for home in homes
            )
        ends = {literal(home, value, 0, nocase) for home in homes} - {-1}
        behind = [value[end:] for end in ends]
        if literally:
            return any(literal(text[1:], rest, 0, nocase) >= 0 for rest in behind)
        if text == "~":
            return b"" in behind
        return any(glob_covers(text[1:], PATH, rest.split(b"/"), nocase) for rest in behind)
    if literally:
        return literal_covers(literally[0], text, value, nocase, False)
    return glob_covers(text, PATH, value.split(b"/"), nocase)


def argv_covers(text: str, how: frozenset[str], tokens: Sequence[bytes]) -> bool:
    nocase = "nocase" in how
    literally = [word for word in LITERALLY if word in how]
    if "has" in how:
        if literally:
            return any(literal_covers(literally[0], text, t, nocase, False) for t in tokens)
        if any(row == (ANY_COMPONENTS,) for row in rows(text, WORD)):
            return True
        return any(glob_covers(text, WORD, [token], nocase) for token in tokens)
    if literally:
        return bool(tokens) and literal_covers(literally[0], text, b"\0".join(tokens), nocase, True)
    return glob_covers(text, ARGV, tokens, nocase)


def sequence_covers(wanted: Sequence[str], tokens: Sequence[bytes], nocase: bool) -> bool:
    """Whether these tokens, each a glob, `**` any number of them, are the whole argv."""
    places = {0}
    for text in wanted:
        many = bool(text) and any(row == (ANY_COMPONENTS,) for row in rows(text, WORD))
        following = {end for at in places for end in range(at, len(tokens) + 1)} if many else set()
        for at in places:
            if at < len(tokens) and (
                glob_covers(text, WORD, [tokens[at]], nocase) if text else not tokens[at]
            ):
                following.add(at + 1)
        places = following
    return len(tokens) in places


def address_covers(text: str, address: bytes) -> bool:
    """address: 16 bytes, IPv4 as ::ffff:a.b.c.d. No IPv6 network has an IPv4 address in it, unless
    it is one of IPv4 in this way of writing.
    """
    mapped = bytes(10) + b"\xff\xff"
    network = ipaddress.ip_network(text, strict=False)
    wanted, bits = network.network_address.packed, network.prefixlen
    if network.version == 4:
        wanted, bits = mapped + wanted, bits + 96
    if (address[:12] == mapped) != (wanted[:12] == mapped and bits >= 96):
        return False
    spare = 128 - bits
    return int.from_bytes(address, "big") >> spare == int.from_bytes(wanted, "big") >> spare


def number_covers(text: str, number: int) -> bool:
    low, dash, high = text.partition("-")
    return int(low) <= number <= int(high if dash else low)


# Events.


@dataclass(frozen=True, slots=True)
class Read:
    """A field of an event. values: None when it could not be read. certain: whether what loosens
    may rest on them. others: further ones, of which only what restricts is asked.
    """

    values: tuple[Value | int, ...] | None
    certain: bool = True
    others: tuple[Value, ...] = ()


def _bytes(text: str) -> bytes:
    return os.fsencode(text)


def _tokens(argv: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(_bytes(token) for token in argv)


def _one(event: Event, unread: Iterable[str], value: Value | int | None) -> Read:
    if set(unread) & event.unresolved:
        return Read(None)
    return Read(() if value in (None, b"") else (value,))  # type: ignore[arg-type]


def read(field: str, event: Event, actor: Actor, agent: str, name: str | None = None) -> Read:
    """The values of one of the fields that the generator uses. name: another one of the file's."""
    if field == "path" and name is not None:
        return Read((_bytes(name),), certain=False)
    if field == "agent":
        return Read((_bytes(agent),) if agent else ())
    if field.startswith("process."):
        return _of_process(field.removeprefix("process."), event, actor)
    if isinstance(event, Exec):
        return _of_exec(field, event)
    if isinstance(event, Open):
        return _of_open(field, event)
    if isinstance(event, Mount):
        if field == "op":
            return Read((_bytes(event.op),))
        return _one(event, ("path",), _bytes(event.path))
    assert isinstance(event, Connect)
    return _of_connect(field, event)


def _of_process(field: str, event: Event, actor: Actor) -> Read:
    image = actor.image
    if image is None:
        begins = isinstance(event, Exec) and event.process == event.session
        return Read(()) if begins else Read(None)
    if field == "args":
        return Read((_tokens(image.args),))
    text = _bytes({"exe": image.exe, "cwd": image.cwd}[field])
    others = tuple(map(_bytes, image.others)) if field == "exe" else ()
    return Read((text,), others=others) if text else Read(None)


def _of_exec(field: str, event: Exec) -> Read:
    if field == "path":
        return _one(event, ("path",), _bytes(event.path))
    if field == "args":
        return Read(None) if "argv" in event.unresolved else Read((_tokens(event.argv[1:]),))
    if field == "cwd":
        return Read(None) if "cwd" in event.unresolved else Read((_bytes(event.cwd),))
    return Read(
        {"stdin": (_bytes(event.stdin),), "anonymous": (b"true" if event.anonymous else b"false",)}[
            field
        ]
    )


def _of_open(field: str, event: Open) -> Read:
    if field == "path":
        return _one(event, ("path",), _bytes(event.path))
    if field == "access":
        return Read((b"read",) * event.reads + (b"write",) * event.changes)
    assert field == "op"
    truncated = bool(event.changes and event.flags & os.O_TRUNC and not event.created)
    return Read((b"open",) + (b"create",) * event.created + (b"truncate",) * truncated)


def _of_connect(field: str, event: Connect) -> Read:
    if field == "proto":
        return Read((_bytes(event.protocol),))
    if field == "family":
        return Read((_bytes(_FAMILIES.get(event.family, str(event.family))),))
    unix = event.protocol == "unix" or bool(event.unix)
    certain = event.from_socket
    if field == "unix":
        if event.protocol != "unix":
            return Read(())
        found = _one(event, ("address", "path"), _bytes(event.unix))
        return Read(found.values, certain)
    if unix:
        return Read((), certain)
    if "address" in event.unresolved:
        return Read(None, certain)
    if not event.addr:
        return Read((), certain)
    return Read((packed(event.addr) if field == "addr" else event.port,), certain)


def packed(text: str) -> bytes:
    """An address as 16 bytes."""
    address = ipaddress.ip_address(text)
    return (bytes(10) + b"\xff\xff" + address.packed) if address.version == 4 else address.packed


# Rules.


class Reference:
    """The rules for one agent ("" for a session of none) in one project."""

    def __init__(self, ruleset: Ruleset, agent: str, project: str | None) -> None:
        self._ruleset, self._agent, self._project = ruleset, agent, project
        self._own = next((one.own for one in ruleset.agents if one.id == agent), ())
        self.rules = sorted(
            (rule for rule in ruleset.rules if not rule.agents or agent in rule.agents),
            key=lambda rule: (
                -ACTIONS.index(rule.action),
                -SEVERITIES.index(rule.severity),
                rule.id,
            ),
        )

    def hits(
        self, kinds: Iterable[str], event: Event, actor: Actor, name: str | None = None
    ) -> tuple[Rule, ...]:
        """The rules that match and are not carved out, the strictest first. name: see `read`."""
        wanted = set(kinds)
        return tuple(
            rule
            for rule in self.rules
            if wanted & set(rule.on)
            and self._holds(rule.match, event, actor, rule.action != "allow", name)
            and not any(
                match.conditions and self._holds(match, event, actor, False, name)
                for _, match in rule.unless
            )
        )

    def default(self, kinds: Sequence[str], hits: Iterable[Rule]) -> Default | None:
        """The strictest default for one of the kinds that no allow rule opens."""
        allowed = {kind for rule in hits if rule.action == "allow" for kind in rule.on}
        if "open" in allowed:
            allowed |= {"read", "change"}
        elif len(kinds) > 1 and all(kind in allowed for kind in kinds if kind != "open"):
            allowed.add("open")
        closed = [
            default
            for default in self._ruleset.defaults
            if default.agent in ("all", self._agent)
            and default.kind in kinds
            and default.kind not in allowed
        ]
        return max(closed, key=lambda one: ACTIONS.index(one.action), default=None)

    def _holds(
        self, match: Match, event: Event, actor: Actor, restricts: bool, name: str | None
    ) -> bool:
        return all(self._condition(one, event, actor, restricts, name) for one in match.conditions)

    def _condition(
        self, condition: Condition, event: Event, actor: Actor, restricts: bool, name: str | None
    ) -> bool:
        found = self._read(condition.field, event, actor, name)
        values = self._values(condition)
        if not any(v is not None for v in values):
            return False
        if found.values is None:
            return restricts and ("all" not in condition.modifiers or None not in values)
        known = found.values + (found.others if restricts else ())
        if not restricts:
            if not found.certain:
                return False
            if condition.field in PATHS:
                known = tuple(v for v in known if not (isinstance(v, bytes) and v[:1] == b"["))
        every = all if "all" in condition.modifiers else any
        return every(
            wanted is not None and any(self._covers(condition, wanted, value) for value in known)
            for wanted in values
        )

    def _read(self, field: str, event: Event, actor: Actor, name: str | None) -> Read:
        return read(field, event, actor, self._agent, name)

    def _values(self, condition: Condition) -> list[tuple[str, ...] | None]:
        """What the condition's values are with variables filled in, None for an unset one."""
        if condition.sequence:
            tokens = [self._fill(value, condition) for value in condition.values]
            return [tuple(t[0] for t in tokens if t) if all(tokens) else None]
        found: list[tuple[str, ...] | None] = []
        for value in condition.values:
            found += [(text,) for text in self._fill(value, condition)] or [None]
        return found

    def _fill(self, value: str, condition: Condition) -> tuple[str, ...]:
        if value == "$own":
            return self._own
        if not _PROJECT.search(value):
            return (value,)
        if self._project is None:
            return ()
        project = self._project
        if not condition.modifiers & set(LITERALLY):
            project = "".join(f"\\{c}" if c in "\\*?[]{}, " else c for c in project)
        return (_PROJECT.sub(lambda _: project, value),)

    def _covers(self, condition: Condition, wanted: tuple[str, ...], value: Value | int) -> bool:
        how = condition.modifiers
        if condition.sequence:
            assert isinstance(value, tuple)
            return sequence_covers(wanted, value, "nocase" in how)
        (text,) = wanted
        if condition.field == "addr":
            assert isinstance(value, bytes)
            return address_covers(text, value)
        if condition.field == "port":
            assert isinstance(value, int)
            return number_covers(text, value)
        if condition.field in ARGVS:
            assert isinstance(value, tuple)
            return argv_covers(text, how, value)
        assert isinstance(value, bytes)
        if condition.field in PATHS:
            return path_covers(text, how, value, self._ruleset.homes)
        return glob_covers(text, WORD, [value], "nocase" in how)
