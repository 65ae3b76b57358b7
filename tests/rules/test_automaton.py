"""The automata, against the RE2 expressions of the same patterns."""

from __future__ import annotations

import ipaddress
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.policy import bytepatterns, patterns
from agentwatch.policy.automaton import FIRST_CLASS, Dfa, Ends, build
from agentwatch.policy.bytepatterns import NotLowerable, Pattern
from agentwatch.policy.patterns import ARGV, PATH, WORD

SEED = 20261123
HOMES = ("/a", "/a/b", "/k")
ROOM = 1 << 20
DEFAULTS = 512
LITERAL = ("startswith", "endswith", "contains")


@dataclass(frozen=True)
class Asked:
    """One value of a condition, or with several texts the tokens of an argv."""

    texts: tuple[str, ...]
    modifiers: frozenset[str]
    separator: str

    @property
    def sequence(self) -> bool:
        return len(self.texts) > 1

    def lowered(self, mark: int) -> tuple[Pattern, ...]:
        if self.sequence:
            return bytepatterns.sequence(self.texts, self.modifiers, mark)
        text = self.texts[0]
        return bytepatterns.pattern(text, self.separator, self.modifiers, HOMES, mark)

    def expression(self) -> str:
        if self.sequence:
            return patterns.sequence(self.texts, self.modifiers)
        return patterns.expression(self.texts[0], self.separator, self.modifiers, HOMES)


class Automata:
    """The two automata of some patterns, and what they cannot decide."""

    def __init__(self, asked: Sequence[Asked], room: int = ROOM, defaults: int = DEFAULTS) -> None:
        found: list[Pattern] = []
        self.left: dict[int, str] = {}
        for mark, one in enumerate(asked):
            try:
                found += one.lowered(mark)
            except NotLowerable as reason:
                self.left[mark] = str(reason)
        self.dfas: list[Dfa] = []
        for floating in (False, True):
            some = [pattern for pattern in found if pattern.floating is floating]
            dfa, refused = build(some, floating, room, defaults)
            self.dfas.append(dfa)
            self.left |= refused

    def marks(self, subject: bytes) -> frozenset[int]:
        return frozenset().union(*(dfa.marks(subject) for dfa in self.dfas))


def _bytes(parts: Sequence[bytes], separator: str) -> bytes:
    if separator == ARGV:
        return b"".join(part + b"\0" for part in parts)
    return separator.encode().join(parts) + separator.encode()


def _subject(parts: Sequence[bytes], separator: str) -> bytes:
    """As RE2 is given it."""
    if separator == ARGV:
        return patterns.subject([os.fsdecode(part) for part in parts], ARGV)
    return patterns.subject(os.fsdecode(separator.encode().join(parts)), separator)


# Random patterns, and inputs made from them -------------------------------------------------------

_PIECES = (
    *("a", "b", "A", "k", "K", "s", "é", "\n", ",", "-", ".", " ", "\\*", "\\{"),
    *("*", "*", "?", "?", "[ab]", "[!a]", "[!a]", "[a-z]", "[]b]", "[!k]", "[é-ü]", "\udca9"),
)
_CHUNKS = (
    *(b"a", b"a", b"b", b"A", b"k", b"s", b"S", b"\n", b"*", b"{", b".", b"-", b" "),
    *(
        b"\xa9",
        b"\x80",
        b"\xc3",
        b"\xff",
        b"\xf0\x9f",
        "é".encode(),
        "ſ".encode(),
        "\u212a".encode(),
    ),
)
_TOKEN = re.compile(r"\\.|\[!?\]?(?:\\.|[^\]\\])*\]|\*\*|.", re.DOTALL)


class Maker:
    """Makes patterns and inputs."""

    def __init__(self, rng: random.Random, separator: str) -> None:
        self.rng = rng
        self.separator = separator

    def asked(self) -> Asked:
        while True:
            found = self._any()
            part = WORD if "has" in found.modifiers or found.sequence else self.separator
            literal = not found.modifiers.isdisjoint(LITERAL)
            if literal or not any(patterns.check(text, part) for text in found.texts if text):
                return found

    def parts(self, asked: Asked) -> list[bytes]:
        """What a pattern covers, or nearly covers, or something else."""
        if self.rng.random() < 0.3:
            parts = [self._bytes() for _ in range(self.rng.randint(1, 4))]
            return [part.replace(self._end, b"") for part in parts]
        text = self.rng.choice(asked.texts) if self.rng.random() < 0.1 else "\1".join(asked.texts)
        if self.separator == PATH:
            text = text.replace("~", self.rng.choice(HOMES), 1)
        found = b"".join(self._covered(token, asked) for token in _TOKEN.findall(self._one(text)))
        if "has" in asked.modifiers and self.rng.random() < 0.5:
            found = b"a\2" + found + b"\2b"
        if self.rng.random() < 0.2:
            found += self.rng.choice([b"\xa9", b"a", b"\2a", b"\2"])
        if self.rng.random() < 0.3 and asked.modifiers & {*LITERAL, "nocase"}:
            found = self.rng.choice([b"a", b"\xa9", b""]) + found.swapcase() + b"b"
        return found.replace(self._end, b"\2").split(b"\2")

    def _any(self) -> Asked:
        modifiers = {"nocase"} if self.rng.random() < 0.2 else set()
        if self.separator == ARGV and self.rng.random() < 0.2:
            tokens = tuple(
                "" if self.rng.random() < 0.1 else self._component()
                for _ in range(self.rng.randint(2, 3))
            )
            return Asked(tokens, frozenset(modifiers), ARGV)
        if self.separator == ARGV and self.rng.random() < 0.3:
            modifiers.add("has")
        if self.rng.random() < 0.25:
            modifiers.add(self.rng.choice(LITERAL))
            text = "".join(self.rng.choice("ab/ ké.A") for _ in range(self.rng.randint(1, 3)))
            if self.separator == PATH and self.rng.random() < 0.2:
                text = self.rng.choice(["~", "~/a", "~/"])
            return Asked((text,), frozenset(modifiers), self.separator)
        between = "" if "has" in modifiers else {ARGV: " "}.get(self.separator, self.separator)
        text = between.join(self._component() for _ in range(self.rng.randint(1, 4)))
        if self.separator == PATH and self.rng.random() < 0.4:
            text = self.rng.choice(["~", f"~/{text}", f"/{text}", f"/{text}"])
        return Asked((text,), frozenset(modifiers), self.separator)

    def _component(self, depth: int = 0) -> str:
        if self.rng.random() < 0.15:
            return "**"
        text = "".join(self.rng.choice(_PIECES) for _ in range(self.rng.randint(1, 4)))
        text = text.replace("**", "*a")
        if depth < 2 and self.rng.random() < 0.25:
            inner = ",".join(self._component(depth + 1).replace("**", "a") for _ in range(2))
            text = f"{text}{{{inner}}}" if self.rng.random() < 0.7 else f"{{{inner},{text}}}"
        return text

    def _one(self, text: str) -> str:
        """One of what the braces stand for."""
        while braces := re.search(r"(?<!\\)\{([^{}]*)\}", text):
            chosen = self.rng.choice(braces[1].split(","))
            text = text[: braces.start()] + chosen + text[braces.end() :]
        return text

    def _covered(self, token: str, asked: Asked) -> bytes:
        cut = {ARGV: " "}.get(self.separator, self.separator)
        if token == "**":
            return self.rng.choice([b"", b"\2", b"a\2b"])
        if token == "*":
            return self._bytes()
        if token == "?" or (len(token) > 1 and token[0] == "["):
            return self.rng.choice(
                [b"a", b"b", b"k", "é".encode(), b"\xa9", b"\xff", b"\xc3\xa9\x80"]
            )
        if token == "\1" or (token == cut and not asked.sequence and "has" not in asked.modifiers):
            return b"\2"
        return token[-1:].encode("utf-8", "surrogateescape") if self.rng.random() < 0.97 else b""

    def _bytes(self) -> bytes:
        return b"".join(self.rng.choice(_CHUNKS) for _ in range(self.rng.randint(0, 3)))

    @property
    def _end(self) -> bytes:
        return b"\0" if self.separator == ARGV else self.separator.encode()


def _differing(
    asked: Sequence[Asked], automata: Automata, inputs: Sequence[Sequence[bytes]]
) -> Iterator[tuple[Asked, bytes, bool]]:
    """Where automata and RE2 do not agree; every pair is yielded with what RE2 says otherwise."""
    separator = asked[0].separator
    expressions = {
        mark: re2.compile(one.expression().encode("utf-8", "surrogatepass"))
        for mark, one in enumerate(asked)
        if mark not in automata.left
    }
    for parts in inputs:
        raw = _bytes(parts, separator)
        found = automata.marks(raw)
        subject = _subject(parts, separator)
        for mark, expression in expressions.items():
            wanted = expression.fullmatch(subject) is not None
            assert (mark in found) == wanted, (asked[mark], raw, wanted)
            yield asked[mark], raw, wanted


@pytest.mark.parametrize("separator", [PATH, ARGV], ids=["path", "argv"])
@pytest.mark.parametrize("defaults", [1, DEFAULTS])
def test_automata_cover_what_expressions_cover(separator: str, defaults: int) -> None:
    """Tens of thousands of random pairs, most inputs made from a pattern of the set."""
    rng = random.Random(f"{SEED}{separator}{defaults}")
    maker = Maker(rng, separator)
    pairs = hits = 0
    for _ in range(250):
        asked = [maker.asked() for _ in range(rng.choice([1, 2, 8]))]
        inputs = [maker.parts(rng.choice(asked)) for _ in range(40)]
        for _, _, wanted in _differing(asked, Automata(asked, defaults=defaults), inputs):
            pairs += 1
            hits += wanted
    assert pairs > 20_000
    assert hits > pairs / 10


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.binary(max_size=6), min_size=1, max_size=4))
def test_automata_agree_with_expressions_about_any_bytes(
    rng: random.Random, parts: list[bytes]
) -> None:
    """Names of any bytes that a name can have, however invalid as UTF-8; refused ones are few."""
    maker = Maker(rng, PATH)
    asked = [maker.asked() for _ in range(3)]
    clean = [part.replace(b"/", b"").replace(b"\0", b"") for part in parts]
    automata = Automata(asked)
    assert len(list(_differing(asked, automata, [clean]))) == len(asked) - len(automata.left)


# Claims -------------------------------------------------------------------------------------------


def _one(
    text: str, separator: str = PATH, modifiers: Sequence[str] = (), homes: Sequence[str] = ()
) -> Automata:
    automata = Automata([])
    found = bytepatterns.pattern(text, separator, modifiers, homes)
    automata.dfas = [
        build([p for p in found if p.floating is floating], floating, ROOM)[0]
        for floating in (False, True)
    ]
    return automata


@pytest.mark.parametrize(
    ("pattern", "covered", "left"),
    [
        (
            "?",
            [b"\xa9", b"\xa9\xa9", b"\xc3", "é".encode(), b"a\x80\x80"],
            [b"", b"ab", b"\xc3\xc3"],
        ),
        ("a?", [b"ab", b"a\xff"], [b"a\xa9", b"a"]),
        ("a*", [b"a\xa9", b"a"], [b"\xa9a"]),
        ("*?", [b"\xa9", b"a"], [b""]),
        ("a*?", [b"ab", b"a\xa9b"], [b"a\xa9", b"a"]),
        ("[!a]", [b"\xa9\xa9", b"b\x80", "é".encode()], [b"a", b"bb"]),
        ("x/?", [b"x/\xa9"], [b"x/"]),
    ],
)
def test_bytes_that_go_on_with_a_character_belong_to_it(
    pattern: str, covered: list[bytes], left: list[bytes]
) -> None:
    """0x80 to 0xBF begin a character only where a component begins; so say both machines."""
    automata = _one(pattern)
    for name in (*covered, *left):
        assert bool(automata.marks(name + b"/")) == (name in covered), name
        assert patterns.matches(pattern, os.fsdecode(name)) == (name in covered), name


def test_double_stars_alone_cover_an_empty_argv() -> None:
    """`args: "**"` holds for a program that has no arguments, and for all others."""
    automata = _one("**", ARGV)
    assert automata.marks(b"")
    assert automata.marks(b"a\0b\0")


def test_homes_share_their_patterns_states() -> None:
    """Thirty homes cost their paths, and what hangs below `~` once."""
    few = tuple(f"/home/u{number:02}" for number in range(2))
    many = tuple(f"/home/u{number:02}" for number in range(30))
    asked = [(text, mark) for mark, text in enumerate(f"~/.config/app{n}/**" for n in range(50))]
    sizes = []
    for homes in (few, many):
        found = [
            p for text, mark in asked for p in bytepatterns.pattern(text, PATH, (), homes, mark)
        ]
        dfa, refused = build(found, False, ROOM)
        assert not refused
        assert dfa.marks(b"/home/u01/.config/app7/x/") == {7}
        sizes.append(dfa.entries)
    assert sizes[1] < sizes[0] + 30 * len("/home/u00")


def test_a_double_star_in_the_middle_does_not_double_the_others() -> None:
    """Hundreds of patterns that begin anywhere take the same states beside `**/x/**/y`."""
    asked = [Asked((f"**/name{n}.conf",), frozenset(), PATH) for n in range(300)]
    spanning = [Asked((f"**/{name}/**/config",), frozenset(), PATH) for name in ("x", "y", "z")]
    alone, beside = Automata(asked), Automata([*asked, *spanning])
    assert beside.marks(b"/x/name7.conf/config/") == {300}
    assert beside.marks(b"/x/z/a/name7.conf/") == {7}
    states = [sum(len(dfa.rows) for dfa in one.dfas) for one in (alone, beside)]
    assert states[1] < states[0] * 1.2


def test_texts_looked_for_everywhere_are_not_remembered() -> None:
    """Sixty `contains` of different rules take a few states for each byte, not all combinations."""
    asked = [Asked((f"word{n}x",), frozenset({"contains"}), PATH) for n in range(60)]
    automata = Automata(asked)
    assert not automata.left
    assert automata.marks(b"/word7x-word8x/word9x/") == {7, 8, 9}
    assert sum(len(dfa.rows) for dfa in automata.dfas) < 60 * 12


@pytest.mark.parametrize(
    ("text", "modifiers", "says"),
    [
        ("a+", ("re",), "`re`"),
        ("[é-ü]", (), "beyond ASCII"),
        ("é", ("nocase",), "nocase"),
        ("[!k]", ("nocase",), "nocase"),
        ("a\udcff", (), "not UTF-8"),
    ],
)
def test_what_bytes_cannot_decide_has_a_reason(
    text: str, modifiers: tuple[str, ...], says: str
) -> None:
    """The engine gets it, and its author a sentence."""
    with pytest.raises(NotLowerable, match=re.escape(says)):
        bytepatterns.pattern(text, PATH, modifiers)


def test_patterns_that_multiply_are_refused_by_mark_and_the_others_stay() -> None:
    """Two thousand `*a*b*c*` end in bounded time, and do not take plain rules with them."""
    rng = random.Random(SEED)
    words = ["".join(rng.choice("abcdefghijklmn") for _ in range(3)) for _ in range(6000)]
    asked = [Asked((f"/etc/{word}",), frozenset(), PATH) for word in words[:100]]
    stars = ["**/*{}*{}*{}*".format(*words[at : at + 3]) for at in range(0, 6000, 3)]
    asked += [Asked((text,), frozenset(), PATH) for text in stars]
    begun = time.process_time()
    automata = Automata(asked)
    assert time.process_time() - begun < 30  # minutes, if nothing ended it
    assert len(automata.left) > 1500
    assert min(automata.left) >= 100
    assert automata.marks(f"/etc/{words[5]}/".encode()) >= {5}
    assert sum(dfa.entries for dfa in automata.dfas) <= 2 * ROOM


def test_a_refused_mark_has_none_of_its_patterns() -> None:
    """A condition is decided as a whole, by one of the two."""
    found = [
        pattern
        for mark in range(40)
        for text in (f"**/plain{mark}", f"**/*a{mark}*b{mark}*c{mark}*d")
        for pattern in bytepatterns.pattern(text, PATH, mark=mark)
    ]
    dfa, refused = build(found, True, 3000, DEFAULTS)
    assert 0 < len(refused) < 40
    for mark in range(40):
        assert (dfa.marks(f"/plain{mark}/".encode()) == {mark}) is (mark not in refused)
    assert dfa.entries <= 3000


@pytest.mark.parametrize("defaults", [1, DEFAULTS])
def test_the_same_patterns_make_the_same_table(defaults: int) -> None:
    """Twice, and whatever the hashes of texts are: everything comes in an order of its own."""
    rng = random.Random(SEED)
    maker = Maker(rng, PATH)
    asked = [maker.asked() for _ in range(60)]
    one, other = Automata(asked, defaults=defaults), Automata(asked, defaults=defaults)
    assert one.dfas == other.dfas
    assert one.left == other.left


def test_rows_hold_what_differs_from_a_default() -> None:
    """Each row's entries are of real classes and say something; defaults' rows are whole."""
    asked = [Asked((f"**/*.a{n}",), frozenset(), PATH) for n in range(9)]
    for dfa in Automata([*asked, Asked(("~/**/x*y",), frozenset(), PATH)]).dfas:
        whole = set(range(FIRST_CLASS, dfa.width))
        for place, state in enumerate(dfa.defaults):
            assert set(dfa.rows[state]) == whole
            assert dfa.usual[state] == place
        for state, row in enumerate(dfa.rows):
            usual = dfa.rows[dfa.defaults[dfa.usual[state]]]
            if state not in dfa.defaults:
                assert all(usual[number] != target for number, target in row.items())
            assert set(row) <= whole
    assert FIRST_CLASS + max(dfa.classes) == dfa.width - 1


def test_equal_states_are_one() -> None:
    """What follows `a` and what follows `b` is the same, but for a wildcard in front of one."""
    texts = ("/a*x/end", "/b*x/end", "/a*/*x/end", "/{c,d}/*/x?y")
    found = [p for text in texts for p in bytepatterns.pattern(text, PATH, (), HOMES)]
    dfa, _ = build(found, False, ROOM, DEFAULTS)
    described = [
        (place, frozenset(row.items()), final, sticky)
        for state, (place, row, final, sticky) in enumerate(
            zip(dfa.usual, dfa.rows, dfa.final, dfa.sticky, strict=True)
        )
        if state not in dfa.defaults
    ]
    assert len(set(described)) == len(described)
    assert dfa.marks(b"/bx/end/") == dfa.marks(b"/d/q/xyy/") == {0}
    assert dfa.marks(b"/b/x/end/") == set()


def test_what_is_reachable_is_what_a_continuation_accepts() -> None:
    """Of names behind separators; a pattern that begins anywhere has to have begun."""
    texts = ("**/a/b", "**/*.y", "**/c")
    found = [p for i, text in enumerate(texts) for p in bytepatterns.pattern(text, PATH, mark=i)]
    dfa, _ = build(found, True, ROOM, DEFAULTS, Ends.PART_WAY)
    anywhere, _ = build(found, True, ROOM, DEFAULTS, Ends.ANYWHERE)
    for name, marks in ((b"/a/", {0}), (b"/x/a/", {0}), (b"/c/", set()), (b"/a/b/", set())):
        assert dfa.reach[behind(dfa, name)] == marks
        assert anywhere.reach[behind(anywhere, name)] == {0, 1, 2}


def behind(dfa: Dfa, subject: bytes) -> int:
    state = dfa.start
    for byte in subject:
        state = dfa.step(state, byte)
    return state


def test_the_dead_state_accepts_nothing_more() -> None:
    """A walker may stop there; where every byte may begin something there is none."""
    anchored, floating = Automata(
        [Asked(("/etc/passwd",), frozenset(), PATH), Asked(("**/x",), frozenset(), PATH)]
    ).dfas
    assert anchored.dead is not None
    assert {anchored.step(anchored.dead, byte) for byte in range(256)} == {anchored.dead}
    assert floating.dead is None


# Addresses, ports, projects -----------------------------------------------------------------------


def test_networks_cover_their_addresses() -> None:
    """As ipaddress has it; an IPv4 address is a mapped one, and in no IPv6 network."""
    rng = random.Random(SEED)
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
        ipaddress.ip_network(text)
        for text in ("0.0.0.0/0", "10.0.0.0/8", "10.8.0.0/15", "10.9.8.7/32", "::/0", "::1/128")
    ]
    networks += [ipaddress.ip_network(text) for text in ("fe80::/10", "::fffe:0:0/95", "2000::/3")]
    found = [
        p for mark, net in enumerate(networks) for p in bytepatterns.address_patterns(net, mark)
    ]
    dfa, refused = build(found, False, ROOM, DEFAULTS)
    assert not refused
    addresses = [
        ipaddress.ip_address(text) for text in ("10.9.8.7", "::1", "fe80::1", "::fffe:1:2")
    ]
    addresses += [
        ipaddress.IPv4Address(rng.choice([0, 10 << 24]) + rng.getrandbits(20)) for _ in range(99)
    ]
    addresses += [
        ipaddress.IPv6Address(rng.getrandbits(128) >> rng.randrange(90)) for _ in range(99)
    ]
    for address in addresses:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            continue
        number = int(address) | (0xFFFF << 32 if address.version == 4 else 0)
        wanted = {mark for mark, network in enumerate(networks) if address in network}
        assert dfa.marks(number.to_bytes(16, "big")) == wanted, address


@pytest.mark.parametrize(
    ("low", "high"), [(0, 65535), (22, 22), (1000, 2000), (255, 256), (256, 511), (60000, 65535)]
)
def test_ranges_cover_their_ports(low: int, high: int) -> None:
    """Every port there is is asked for."""
    dfa, _ = build(bytepatterns.port_patterns(low, high, 1), False, ROOM)
    covered = [port for port in range(65536) if dfa.marks(port.to_bytes(2, "big"))]
    assert covered == list(range(low, high + 1))


@pytest.mark.parametrize(
    ("rest", "modifiers", "covered", "left"),
    [
        ("", (), ["/"], ["/a/", "x/"]),
        ("/**", (), ["/", "/a/b/"], ["x/"]),
        ("/.env*", (), ["/.env/", "/.envrc/"], ["/a/.env/", "/"]),
        ("-old/**", (), ["-old/", "-old/a/"], ["/old/"]),
        ("?", (), ["x/", "é/"], ["/", "/x/"]),
        ("/src", ("startswith",), ["/src/", "/srcs/a/"], ["/", "x/src/"]),
        ("", ("startswith",), ["/", "x/", "/x/"], []),
    ],
)
def test_what_follows_the_project_is_a_pattern_of_its_own(
    rest: str, modifiers: tuple[str, ...], covered: list[str], left: list[str]
) -> None:
    """The subject is what a name has behind the project's directory."""
    dfa, _ = build(bytepatterns.behind_project(rest, modifiers), False, ROOM)
    assert [text for text in (*covered, *left) if dfa.marks(text.encode())] == covered


def test_a_byte_behind_the_project_begins_no_character() -> None:
    """`$project?` goes on with the project's last component."""
    dfa, _ = build(bytepatterns.behind_project("?"), False, ROOM)
    assert not dfa.marks(b"\xa9/")
