"""Globs, against a plain matcher that shares nothing with policy/patterns.py but their meaning."""

from __future__ import annotations

import os
import random
import re
import string

import pytest
import re2

from agentwatch.policy import patterns
from agentwatch.policy.patterns import ARGV, HOST, PATH, WORD, matches

SEED = 20261122

# The reference: tokens, braces written out, then backtracking, one character at a time. ----------

_TOKEN = re.compile(r"\\.|\[!?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


def reference(
    pattern: str, value: str | tuple[str, ...], separator: str, fold: bool = False
) -> bool:
    """Whether the glob covers the value, slowly."""
    between = " " if separator == ARGV else separator
    parts = value if isinstance(value, tuple) else value.split(separator) if separator else [value]
    for alternative in _written_out(_TOKEN.findall(pattern)):
        row: list[list[str]] = [[]]
        for token in alternative:
            if between and token == between:
                row.append([])
            else:
                row[-1].append(token)
        if separator == ARGV:
            row = [component for component in row if component]
        if _row(row, list(parts), fold):
            return True
    return False


def _written_out(tokens: list[str]) -> list[list[str]]:
    """Every choice of the first brace's alternatives, and so on."""
    if "{" not in tokens:
        return [tokens]
    start = tokens.index("{")
    choices: list[list[str]] = [[]]
    depth = 1
    end = start + 1
    while depth:
        token = tokens[end]
        depth += {"{": 1, "}": -1}.get(token, 0)
        if token == "," and depth == 1:
            choices.append([])
        elif depth:
            choices[-1].append(token)
        end += 1
    rest = tokens[end:]
    return [found for choice in choices for found in _written_out(tokens[:start] + choice + rest)]


def _row(components: list[list[str]], values: list[str], fold: bool) -> bool:
    if not components:
        return not values
    if components[0] == ["*", "*"]:
        return any(_row(components[1:], values[i:], fold) for i in range(len(values) + 1))
    if not values or not _component(components[0], values[0], fold):
        return False
    return _row(components[1:], values[1:], fold)


def _component(tokens: list[str], text: str, fold: bool) -> bool:
    if not tokens:
        return not text
    if tokens[0] == "*":
        return any(_component(tokens[1:], text[i:], fold) for i in range(len(text) + 1))
    return bool(text) and _char(tokens[0], text[0], fold) and _component(tokens[1:], text[1:], fold)


def _char(token: str, char: str, fold: bool) -> bool:
    if token == "?":
        return True
    chars = {char, char.lower(), char.upper()} if fold else {char}
    if len(token) > 1 and token[0] == "[":
        negated = token[1] == "!"
        inside = re.findall(r"(\\.|.)(?:-(\\.|.))?", token[2 if negated else 1 : -1], re.DOTALL)
        found = any(low[-1] <= c <= (high or low)[-1] for low, high in inside for c in chars)
        return found != negated
    return token[-1] in chars


# Random pairs ------------------------------------------------------------------------------------

_PIECES = [
    "a",
    "b",
    "A",
    "é",
    "\n",
    "*",
    "?",
    "[ab]",
    "[!a]",
    "[!aé]",
    "[a-é]",
    "[]b]",
    "\\*",
    "\\{",
    ",",
    "-",
    ".",
]


def _random_component(rng: random.Random, depth: int = 0) -> str:
    if rng.random() < 0.2:
        return "**"
    text = "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 3))).replace("**", "*a")
    if depth < 2 and rng.random() < 0.25:
        inner = ",".join(_random_component(rng, depth + 1).replace("**", "a") for _ in range(2))
        text = f"{text.rstrip('*')}{{{inner}}}" if rng.random() < 0.7 else f"{{{inner},{text}}}"
    return text


def _random_pattern(rng: random.Random, between: str) -> str:
    return between.join(_random_component(rng) for _ in range(rng.randint(1, 4)))


def _random_text(rng: random.Random) -> str:
    return "".join(rng.choice("aabbAé\n*{.,-\udcff") for _ in range(rng.randint(0, 3)))


def _random_pairs(separator: str, count: int) -> list[tuple[str, str | tuple[str, ...]]]:
    rng = random.Random(SEED)
    between = {ARGV: " ", WORD: "a"}.get(separator, separator)
    pairs: list[tuple[str, str | tuple[str, ...]]] = []
    while len(pairs) < count:
        pattern = _random_pattern(rng, between)
        if patterns.check(pattern, separator) is None:
            parts = [_random_text(rng) for _ in range(rng.randint(1, 4))]
            if rng.random() < 0.7:
                parts = _nearly_covered(rng, pattern, between if separator else "")
            pairs.append((pattern, tuple(parts) if separator == ARGV else separator.join(parts)))
    return pairs


def _nearly_covered(rng: random.Random, pattern: str, between: str) -> list[str]:
    """The parts of a value made from a pattern, so that matching is not the exception."""
    text = ""
    tokens = rng.choice(_written_out(_TOKEN.findall(pattern)))
    for token in tokens:
        if token in "*?" or (len(token) > 1 and token[0] == "["):
            text += rng.choice("abAéx") if token != "*" else _random_text(rng)
        elif rng.random() < 0.97:
            text += between if token == between else token[-1]
    return text.split(between) if between else [text]


@pytest.mark.parametrize(
    "separator", [PATH, HOST, ARGV, WORD], ids=["path", "host", "argv", "word"]
)
def test_globs_match_what_the_reference_matches(separator: str) -> None:
    """1500 random pairs for each kind of value, with case and without; both answers are common."""
    hits = 0
    for pattern, value in _random_pairs(separator, 1500):
        for fold in (False, True):
            expression = patterns.expression(pattern, separator, ("nocase",) if fold else ())
            compiled = re2.compile(expression.encode("utf-8", "surrogatepass"))
            subject = patterns.subject(value, separator)
            answer = compiled.fullmatch(subject) is not None
            assert answer == reference(pattern, value, separator, fold), (pattern, value, fold)
            hits += answer
    assert 600 < hits < 2400


def test_literal_modifiers_match_what_str_methods_match() -> None:
    """startswith, endswith and contains over paths are those of str."""
    rng = random.Random(SEED)
    hits = 0
    for _ in range(2000):
        value = "/".join(_random_text(rng) for _ in range(3))
        needle = _random_text(rng) or "/"
        for how, answer in (
            ("startswith", value.startswith(needle)),
            ("endswith", value.endswith(needle)),
            ("contains", needle in value),
        ):
            compiled = re2.compile(
                patterns.expression(needle, PATH, (how,)).encode("utf-8", "surrogatepass")
            )
            found = compiled.fullmatch(patterns.subject(value, PATH)) is not None
            assert found == answer, (how, needle, value)
            hits += found
    assert hits > 300


# Claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "covered", "left"),
    [
        ("a/**", ["a", "a/b", "a/b/c", "a/.b"], ["ab", "b/a", ""]),
        ("**/x", ["x", "/x", "/a/b/x"], ["/ax", "/x/a"]),
        ("a/**/b", ["a/b", "a/c/b", "a/c/d/b"], ["ab", "a/b/c"]),
        ("/**", ["/", "/a", "/a/b"], ["a"]),
        ("/home/*/.ssh/id_*", ["/home/dev/.ssh/id_rsa"], ["/home/a/b/.ssh/id_rsa"]),
        ("/tmp/*", ["/tmp/.hidden"], ["/tmp", "/tmp/a/b"]),
        ("/dev/{null,tty,pts/*}", ["/dev/null", "/dev/pts/3"], ["/dev/pts", "/dev/nulltty"]),
        ("/{a,b{c,d}}/x", ["/a/x", "/bc/x", "/bd/x"], ["/b/x"]),
        ("/[!a]b", ["/xb", "/éb"], ["/ab", "//b"]),
        ("/[+-0]", ["/.", "/+"], ["//"]),
        ("/\\*", ["/*"], ["/x"]),
        ("/A", ["/A"], ["/a"]),
    ],
)
def test_a_path_glob_covers(pattern: str, covered: list[str], left: list[str]) -> None:
    """The examples of the rule language's own page, and their neighbours."""
    assert [value for value in covered if not matches(pattern, value)] == []
    assert [value for value in left if matches(pattern, value)] == []


def test_a_question_mark_is_one_character_or_one_stray_byte() -> None:
    """`?` takes é and 😀 whole, and a stray byte with those that would go on with it."""
    assert matches("/?", "/é")
    assert matches("/?", "/😀")
    assert not matches("/??", "/é")
    stray = os.fsdecode(b"/a\xff\xc3")
    assert matches("/a??", stray)
    assert not matches("/a?", stray)
    assert matches("/a?", os.fsdecode(b"/a\xff\x80\xbf"))


def test_a_byte_that_goes_on_with_a_character_begins_one_only_in_front() -> None:
    """0x80 to 0xBF belong to what is before them, whether that is valid or not."""
    for pattern in ("/?", "/[!a]", "/*?", "/?*", "/**/?"):
        assert matches(pattern, os.fsdecode(b"/\xa9\x80")), pattern
    for pattern in ("/a?", "/a[!b]", "/a*?", "/??", "/a?*"):
        assert not matches(pattern, os.fsdecode(b"/a\xa9")), pattern
        assert matches(pattern, os.fsdecode(b"/a\xa9x")) == ("*?" in pattern or pattern == "/??")


def test_a_set_member_may_be_several_bytes_long() -> None:
    """`[é-ü]` is a range of characters, not of their bytes."""
    assert matches("[é-ü]", "ö")
    assert not matches("[é-ü]", "a")
    assert not matches("[éü]", os.fsdecode(b"\xc3"))


def test_a_newline_is_a_character_like_others() -> None:
    """A name with a newline cannot hide behind it, and does not end a value."""
    assert matches("/tmp/**", "/tmp/a\n/b")
    assert not matches("/tmp/a", "/tmp/a\n")
    assert matches("/tmp/a?b", "/tmp/a\nb")


@pytest.mark.parametrize(
    ("pattern", "covered", "left"),
    [
        (
            "git push **",
            [("git", "push"), ("git", "push", "-f", "x y")],
            [("git",), ("git", "pushx")],
        ),
        ("{commit,branch} **", [("commit",), ("branch", "-d")], [("log",), ()]),
        ("**", [(), ("",), ("a", "b")], []),
        (
            "rm  -rf *",
            [("rm", "-rf", "/"), ("rm", "-rf", "")],
            [("rm", "-rf"), ("rm", "-rf", "a", "b")],
        ),
        ("a\\ b", [("a b",)], [("a", "b")]),
        ("{git push,git pull}", [("git", "pull")], [("git",)]),
    ],
)
def test_spaces_part_the_tokens_of_an_argv_pattern(
    pattern: str, covered: list[tuple[str, ...]], left: list[tuple[str, ...]]
) -> None:
    """A token of the pattern is a token of the argv; `*` stays in it and `**` goes over many."""
    assert [value for value in covered if not matches(pattern, value, ARGV)] == []
    assert [value for value in left if matches(pattern, value, ARGV)] == []


def _covers(expression: str, tokens: tuple[str, ...]) -> bool:
    return re2.compile(expression.encode()).fullmatch(patterns.subject(tokens, ARGV)) is not None


def test_a_sequence_is_exact_tokens() -> None:
    """Spaces mean themselves in a list, the number of tokens is theirs, empty ones count."""
    exact = patterns.sequence(("git", "push --force"))
    assert _covers(exact, ("git", "push --force"))
    assert not _covers(exact, ("git", "push", "--force"))
    assert not _covers(exact, ("git", "push --force", "x"))
    assert _covers(patterns.sequence(("sh", "")), ("sh", ""))
    assert not _covers(patterns.sequence(("sh", "")), ("sh",))
    assert _covers(patterns.sequence(("sh", "**", "x")), ("sh", "x"))


def test_has_asks_for_some_one_token() -> None:
    """`|has` looks at whole tokens, wherever they stand."""
    has = patterns.expression("--force*", ARGV, ("has",))
    assert _covers(has, ("push", "--force=x", "y"))
    assert not _covers(has, ("push", "x--force"))
    assert not _covers(has, ())


def test_contains_over_an_argv_reads_it_as_a_command_line() -> None:
    """A space in the text is a space or the gap between two tokens; the end is no gap."""
    contains = patterns.expression("push --force", ARGV, ("contains",))
    assert _covers(contains, ("git", "push", "--force-with-lease"))
    assert _covers(contains, ("sh", "-c", "git push --force"))
    assert not _covers(contains, ("git", "push--force"))
    assert not _covers(patterns.expression("git ", ARGV, ("contains",)), ("git",))


def test_a_star_of_a_host_stays_in_its_label() -> None:
    """`*.github.com` is not the domain itself, nor what is two labels below."""
    assert matches("*.github.com", "api.github.com", HOST)
    assert not matches("*.github.com", "github.com", HOST)
    assert not matches("*.github.com", "a.b.github.com", HOST)
    assert matches("**.github.com", "a.b.github.com", HOST)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "empty"),
        ("{a", "not closed"),
        ("a}", "without `{`"),
        ("[a", "not closed"),
        ("[a-", "not closed"),
        ("[!", "not closed"),
        ("[^a]", "[!"),
        ("[b-a]", "backwards"),
        ("[[:alpha:]]", "[:class:]"),
        ("[/]", "no component"),
        ("a**", "whole components"),
        ("x\\", "escapes nothing"),
        ("a\0b", "NUL"),
        ("{a,b}" * 11, "1024 alternatives"),
        ("{a,b}" * 10 + "x" * 2000, "1048576 characters"),
        ("{" * 40 + "}" * 40, "deep"),
        ("a" * 5000, "4096 characters"),
    ],
)
def test_a_malformed_glob_is_explained(pattern: str, says: str) -> None:
    """Every mistake has its own sentence, and absurd sizes are refused early."""
    message = patterns.check(pattern)
    assert message is not None
    assert says in message


def test_any_text_is_either_refused_or_compiles() -> None:
    """No text makes RE2 or the parser fail in a way that check did not announce."""
    rng = random.Random(SEED)
    accepted = 0
    for _ in range(3000):
        text = "".join(
            rng.choice("ab/*?[]{}!^-,\\ é." + string.punctuation) for _ in range(rng.randint(1, 9))
        )
        if patterns.check(text) is None:
            re2.compile(patterns.expression(text, PATH).encode())
            accepted += 1
    assert accepted > 300


def test_check_regex_says_what_RE2_says() -> None:
    """`|re` accepts RE2 and nothing more: a backreference has a reason, a good one has none."""
    assert patterns.check_regex(r"^id_(rsa|ed25519)$") is None
    assert patterns.check_regex(r"(a)\1") is not None


def test_escape_makes_a_glob_of_exactly_this_text() -> None:
    """Whatever characters a project's directory has, it covers itself and nothing else."""
    rng = random.Random(SEED)
    for _ in range(300):
        text = "/" + "".join(rng.choice("ab*?[]{}, \\!-") for _ in range(5))
        assert matches(patterns.escape(text), text)
        assert not matches(patterns.escape(text), text + "a")
