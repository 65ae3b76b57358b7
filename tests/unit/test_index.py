"""Indexes: one bit for each value that rules name, whichever way it is found."""

from __future__ import annotations

import os
import random

import pytest

from agentwatch.errors import AgentwatchError
from agentwatch.policy import index, patterns
from agentwatch.policy.index import AddressIndex, NumberIndex, PatternIndex, Search
from agentwatch.policy.patterns import ARGV, PATH, WORD

GLOBS = [
    "/home/*/.ssh/**",
    "**/.env{,.*}",
    "/tmp/**",
    "**/node_modules/**",
    "/dev/pts/?",
    "**",
    "/home/dev/[!.]*",
]


def path_index(globs: list[str], memory: int = index.SET_MEMORY) -> PatternIndex:
    return PatternIndex([patterns.expression(glob, PATH) for glob in globs], PATH, memory=memory)


def random_paths(count: int) -> list[str]:
    rng = random.Random(4)
    parts = ["home", "dev", ".ssh", ".env", ".env.local", "tmp", "node_modules", "pts", "é", "\n"]
    return ["/" + "/".join(rng.choices(parts, k=rng.randint(0, 5))) for _ in range(count)]


def test_every_pattern_has_its_own_bit() -> None:
    """One pass over a value says of each pattern what the pattern alone says."""
    found = path_index(GLOBS)
    for path in random_paths(300):
        expected = sum(1 << i for i, glob in enumerate(GLOBS) if patterns.matches(glob, path))
        assert found.bits(path) == expected, path


def test_the_slow_way_gives_the_same_bits() -> None:
    """What is used when an RE2 set runs out of memory agrees with the set."""
    found = path_index(GLOBS)
    assert [found.slowly(p) for p in random_paths(200)] == [
        found.bits(p) for p in random_paths(200)
    ]


def test_an_index_of_nothing_has_no_bits() -> None:
    """A field that rules name no value of is no special case."""
    assert path_index([]).bits("/etc/passwd") == 0


def test_undecodable_names_are_matched_by_their_bytes() -> None:
    """A surrogate escape is the byte it stands for."""
    found = path_index(["/tmp/**", "/tmp/a?b"])
    assert found.bits(os.fsdecode(b"/tmp/a\xffb")) == 0b11
    assert found.bits(os.fsdecode(b"/tmp/a\xc3\xa9b")) == 0b11
    assert found.bits(os.fsdecode(b"/tmp/a\xff\xffb")) == 0b01


def test_long_values_are_answered_and_not_remembered() -> None:
    """An agent cannot fill the memory with names as long as names can be."""
    found = path_index(["**/secret"])
    assert found.bits("/x" * 2000 + "/secret") == 1
    assert found._remembered.cache_info().currsize == 0
    assert found.bits("/x/secret") == 1
    assert found._remembered.cache_info().currsize == 1
    assert found._remembered.cache_info().maxsize == index.REMEMBERED


def test_an_argv_of_100_kB_is_matched_whole() -> None:
    """The last of twenty thousand tokens counts, and length alone matches nothing."""
    found = PatternIndex([patterns.expression("--evil", ARGV, ("has",))], ARGV)
    long = ("tool", *["abcd"] * 20000)
    assert found.bits(long) == 0
    assert found.bits((*long, "--evil")) == 1


def test_a_regular_expression_is_searched_for_in_the_text() -> None:
    """`|re` has `^` and `$`, may stand anywhere otherwise, and keeps its place among the globs."""
    expressions = [
        patterns.expression("/tmp/**", PATH),
        patterns.expression("unused", PATH, ("re",)),
        patterns.expression("**/x", PATH),
    ]
    found = PatternIndex(expressions, PATH, {1: Search(r"\.(pem|key)$")})
    assert found.bits("/tmp/a.pem") == 0b011
    assert found.bits("/tmp/a.pem/x") == 0b101
    assert found.bits("/srv/b.key") == 0b010


def test_a_regular_expression_sees_an_argv_as_a_line_or_one_token_at_a_time() -> None:
    """`|re` searches the tokens joined by spaces, `|re|has` each of them."""
    never = [patterns.NEVER, patterns.NEVER]
    found = PatternIndex(never, ARGV, {0: Search("^-f x$"), 1: Search("^x$", one=True)})
    assert found.bits(("-f", "x")) == 0b11
    assert found.bits(("-f x",)) == 0b01
    assert found.bits(("x",)) == 0b10


def test_patterns_that_do_not_fit_are_refused_with_a_remedy() -> None:
    """Too little memory is an error at load, not a rule that never matches."""
    with pytest.raises(AgentwatchError, match="no room") as caught:
        path_index([f"**/name-{i}/**" for i in range(200)], memory=20_000)
    assert "braces" in caught.value.remedy


def test_numbers_match_single_ones_and_ranges() -> None:
    """Both ends of a range belong to it."""
    found = NumberIndex(["443", "8000-8999"])
    assert [found.bits(n) for n in (443, 444, 7999, 8000, 8999, 9000)] == [1, 0, 0, 2, 2, 0]
    with pytest.raises(ValueError, match="x"):
        NumberIndex(["x"])


def test_addresses_match_networks_and_single_ones_in_any_spelling() -> None:
    """A rule may write an address its own way; the host bits of a network do not matter."""
    found = AddressIndex([("169.254.0.0/16", True), ("fd00:ec2::254", False), ("10.1.2.3/8", True)])
    assert found.bits("169.254.169.254") == 0b001
    assert found.bits("fd00:0ec2:0:0:0:0:0:0254") == 0b010
    assert found.bits("10.200.0.1") == 0b100
    assert found.bits("192.0.2.1") == 0
    assert found.bits("") == 0


def test_an_IPv4_mapped_address_is_the_IPv4_address() -> None:
    """On the event's side and on the rule's, single addresses and networks."""
    found = AddressIndex(
        [("127.0.0.1", False), ("::ffff:169.254.0.0/112", True), ("::ffff:10.0.0.1", False)]
    )
    assert found.bits("::ffff:127.0.0.1") == 0b001
    assert found.bits("169.254.1.1") == found.bits("::ffff:a9fe:101") == 0b010
    assert found.bits("10.0.0.1") == 0b100


def test_an_address_may_be_a_glob() -> None:
    """Text with a `*` compares as text, beside networks, each at its own bit."""
    found = AddressIndex([("192.168.*", False), ("192.0.2.0/24", True), ("FD00:*", False)])
    assert found.bits("192.168.3.4") == 0b001
    assert found.bits("192.0.2.7") == 0b010
    assert found.bits("fd00::1") == 0b100


def test_a_malformed_network_is_an_error() -> None:
    """`|cidr` never falls back to text that no address has."""
    with pytest.raises(ValueError, match=r"10\.0\.0"):
        AddressIndex([("10.0.0/8x", True)])


def test_words_have_no_components() -> None:
    """A `*` in a plain word goes over anything, slashes included."""
    found = PatternIndex([patterns.expression("a*z", WORD)], WORD)
    assert found.bits("a/b.c z") == 1


# Looking for literals first ----------------------------------------------------------------------

TRICKY = [
    "/home/*/.ssh/**",
    "**/.env{,.*}",
    "**/*.pem",
    "/tmp/**",
    "**/node_modules/{a,b}/**",
    "**",
    "/??",
    "**/[ab]c",
    "~/.aws/**",
    "~",
]


def with_literals(globs: list[str], homes: tuple[str, ...], *modifiers: str) -> PatternIndex:
    return PatternIndex(
        [patterns.expression(glob, PATH, modifiers, homes) for glob in globs],
        PATH,
        literals=[patterns.literals([glob], PATH, modifiers) for glob in globs],
    )


@pytest.mark.parametrize("modifiers", [(), ("nocase",)])
def test_looking_for_literals_first_changes_nothing(modifiers: tuple[str, ...]) -> None:
    """The bits are those of asking every pattern, of any case and of every home."""
    homes = ("/root", "/home/dev", "/home/a[b")
    found = with_literals(TRICKY, homes, *modifiers)
    parts = ["home", "dev", ".ssh", ".SSH", ".env", ".env.x", "x.pem", "tmp", "node_modules", "ac"]
    parts += ["root", "a[b", ".aws", "a", "b"]
    rng = random.Random(6)
    set_bits = 0
    for _ in range(1500):
        path = "/" + "/".join(rng.choices(parts, k=rng.randint(0, 5)))
        assert found.bits(path) == found.slowly(path), path
        set_bits |= found.bits(path)
    assert set_bits == (1 << len(TRICKY)) - 1
    assert 0 < len(found._together) < len(TRICKY)


def test_few_patterns_are_asked_of_a_value() -> None:
    """Of a thousand patterns those whose literal is in it are compiled and asked, and no others."""
    found = with_literals([f"**/name-{i}-x/**" for i in range(1000)], ())
    assert found.bits("/srv/name-7-x/y") == 1 << 7
    assert found.bits("/srv/other") == 0
    assert found._asked.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("values", "separator", "modifiers", "told"),
    [
        (["**/.ssh/id_*"], PATH, (), (".ssh/id_",)),
        (["**/*.{pem,key}"], PATH, (), (".pem/", ".key/")),
        (["~/.aws/**"], PATH, (), ("/.aws/",)),
        (["~"], PATH, (), ()),
        (["**"], PATH, (), ()),
        (["{abc,*}"], PATH, (), ()),
        (["push **"], ARGV, (), ("push\0",)),
        (["--force*"], ARGV, ("has",), ("--force",)),
        (["rm -rf"], ARGV, ("contains",), ("-rf",)),
        (["*.example.com"], patterns.HOST, (), (".example.com.",)),
        (["x+"], PATH, ("re",), ()),
    ],
)
def test_literals_are_what_every_covered_value_has(
    values: list[str], separator: str, modifiers: tuple[str, ...], told: tuple[str, ...]
) -> None:
    """The longest of each alternative; none where one of them has none worth looking for."""
    assert patterns.literals(values, separator, modifiers) == told


def test_the_literals_of_a_row_of_tokens_are_its_longest() -> None:
    """An argv given as a list."""
    assert patterns.literals(["push", "--force", "*"], ARGV, (), True) == ("--force\0",)


def test_regular_expressions_without_memory_are_asked_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An RE2 set that answers nothing has said nothing."""
    searches = {0: Search("a+b"), 1: Search("^c$", one=True)}
    found = PatternIndex([patterns.NEVER, patterns.NEVER], ARGV, searches)
    expected = found.bits(("aab", "c"))

    class Exhausted:
        def Match(self, subject: bytes) -> list[int]:
            return []

    monkeypatch.setattr(found, "_lines", Exhausted())
    monkeypatch.setattr(found, "_tokens", Exhausted())
    assert found._scan(("aab", "c")) == expected == 0b11


def test_two_indexes_are_one() -> None:
    """The second one's bits stand behind the first one's."""
    joined = index.JoinedIndex(path_index(["/a", "/b"]), path_index(["/b", "/c"]), 2)
    assert [joined.bits(path) for path in ("/a", "/b", "/c", "/d")] == [0b0001, 0b0110, 0b1000, 0]
