"""Three ways to say what rules mean, which must say the same: the plain reference matcher, the
engine with its RE2, and the image that the kernel walks.

The rulesets and events are generated. Seeds are fixed but for one of its own each run, which a
failure prints.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError
from agentwatch.policy import patterns
from agentwatch.rules.model import Condition, Match, Rule, Ruleset
from tests.rules.generating import (
    EVERY,
    FIELDS,
    HERE,
    PROJECT,
    Generator,
    packs,
)
from tests.rules.judging import Judges, Tally

SECONDS = 1.5  # for each seed
FEWEST = 160  # events for each seed, however slow the machine
PER_SET = 40
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def shipped() -> Ruleset:
    return packs()


def compared(generator: Generator, seconds: float, most: int) -> Tally:
    """As many pairs as fit."""
    tally = Tally()
    limit = time.monotonic() + seconds
    while time.monotonic() < limit or tally.pairs < FEWEST:
        ruleset = generator.ruleset(most)
        judges = Judges(ruleset)
        tally.rules += len(ruleset.rules)
        tally.in_kernel += len(judges.lowered)
        for case in generator.cases(ruleset, PER_SET):
            judges.check(case, tally)
    return tally


@pytest.mark.parametrize("seed", [*SEEDS, None])
def test_the_image_the_engine_and_the_reference_agree(seed: int | None, shipped: Ruleset) -> None:
    """On every rule that matches, on every event that is stopped, and on which rule stops it."""
    fresh = int.from_bytes(os.urandom(6), "big") if seed is None else seed
    print(f"seed {fresh}")
    tally = compared(Generator(random.Random(fresh), shipped), SECONDS, 12)
    print(tally)
    assert tally.derived >= 0.4 * tally.pairs
    assert tally.matching >= 0.3 * tally.pairs
    assert tally.stopped >= 0.1 * tally.pairs
    assert tally.in_kernel >= 0.6 * tally.rules
    assert tally.crowded <= 0.01 * tally.pairs


def test_large_rulesets_agree_as_small_ones_do(shipped: Ruleset) -> None:
    """Rules meet in the same states."""
    tally = compared(Generator(random.Random(4), shipped), SECONDS, 40)
    assert tally.matching >= 0.3 * tally.pairs


GLOBS = (
    "/a",
    "/",
    "/*",
    "/**",
    "**",
    "**/a",
    "**/a/**",
    "/a/**",
    "/a/**/b",
    "/**/a/**/b/**",
    "/a?",
    "/?",
    "/??",
    "/*?",
    "/?*",
    "/a*b",
    "/*a*b*",
    "/**/*a*b*/c",
    "/[ab]",
    "/[!a]",
    "/[a-k]*",
    "/a[!b]c",
    "/*[!a]",
    "/*[ab]?",
    "/{a,b}",
    "/{a,}b",
    "/{a/b,c}/d",
    "/{**,a}/b",
    "/\\*",
    "/\\[a\\]",
    "/\\{a,b\\}",
    "/a b",
    "~",
    "~/a",
    "~/**",
    "~/*.b",
    "$project",
    "$project/a",
    "$project/**",
    "$project/**/b",
    "$project?",
    "$project*/a",
    "a",
    "*",
    "a/b",
    "//",
    "/a/",
    "**/",
    "/\u00e9",
    "/\u00e9?",
    "/*\u00e9*",
)
TEXTS = (
    "a",
    "/a",
    "/",
    "a/",
    "a/b",
    "\u00e9",
    "~/a",
    "~",
    "$project/a",
    "$project",
    ".",
    "A",
    "ks",
)
ARGVS = (
    "a",
    "a b",
    "a **",
    "** a",
    "** a **",
    "**",
    "* a",
    "a *b",
    "a ? **",
    "a ** b",
    "[ab] **",
    "** -{a,b} **",
    "a ** b ** c",
    "{a b,c} d",
    "a\\ b ?",
    "? ?",
    "*",
    "** ** a",
)


def matching(field: str, value: str, *modifiers: str, kind: str = "read") -> Ruleset:
    """One rule of one condition."""
    condition = Condition(field, (value,), frozenset(modifiers), HERE)
    rule = Rule("one", (kind,), Match((condition,)), "deny", HERE)
    return Ruleset((rule,), homes=("/home/dev", "/root"))


@pytest.mark.parametrize("nocase", [False, True])
@pytest.mark.parametrize("glob", GLOBS)
def test_every_glob_construct_means_the_same_everywhere(
    glob: str, nocase: bool, shipped: Ruleset
) -> None:
    """A rule of one glob, with values made from it and spoiled."""
    modifiers = ("nocase",) if nocase else ()
    _agree(matching("path", glob, *modifiers), shipped, len(glob))


@pytest.mark.parametrize("how", ["startswith", "endswith", "contains"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_literal_modifier_means_the_same_everywhere(
    text: str, how: str, shipped: Ruleset
) -> None:
    """Of paths, and of argv as a whole and of one token of it."""
    _agree(matching("path", text, how), shipped, 1)
    _agree(matching("path", text, how, "nocase"), shipped, 2)
    _agree(matching("args", f"{text} x", how, kind="exec"), shipped, 3)
    _agree(matching("args", text, how, "has", kind="exec"), shipped, 4)


@pytest.mark.parametrize("glob", ARGVS)
def test_every_argv_pattern_means_the_same_everywhere(glob: str, shipped: Ruleset) -> None:
    """As a text whose spaces part tokens, as one token, and as a list."""
    _agree(matching("args", glob, kind="exec"), shipped, 5)
    _agree(matching("args", glob, "nocase", kind="exec"), shipped, 6)
    if glob != "**" and " ** " not in f" {glob} ":
        _agree(matching("args", glob, "has", kind="exec"), shipped, 7)
    condition = Condition("args", tuple(glob.split(" ")), frozenset(), HERE, True)
    if all(patterns.check(token, patterns.WORD) is None for token in condition.values):
        rule = Rule("one", ("exec",), Match((condition,)), "kill", HERE)
        _agree(Ruleset((rule,)), shipped, 8)


def _agree(ruleset: Ruleset, shipped: Ruleset, seed: int) -> None:
    try:
        judges = Judges(ruleset)
    except AgentwatchError:
        return  # a pattern that is none, which loading refuses
    generator = Generator(random.Random(seed), shipped)
    tally = Tally()
    for case in generator.cases(ruleset, 60):
        judges.check(case, tally)
    assert tally.matching > 0


@pytest.mark.parametrize("field", sorted({*FIELDS["exec"], *EVERY} - {"agent"}))
def test_what_cannot_be_read_restricts_and_loosens_nothing(field: str, shipped: Ruleset) -> None:
    """For every field of an exec: in a match, in an exception, and in both."""
    generator = Generator(random.Random(field), shipped)
    for _ in range(12):
        one, other = (Match((generator.condition(field),)) for _ in range(2))
        rules = (
            Rule("match", ("exec",), one, "kill", HERE),
            Rule("unless", ("exec",), Match(()), "deny", HERE, unless=(("other", other),)),
            Rule("both", ("exec",), one, "deny", HERE, unless=(("other", other),)),
            Rule("allow", ("exec",), one, "allow", HERE),
        )
        ruleset = Ruleset(rules, homes=("/home/dev",))
        judges = Judges(ruleset)
        for case in generator.cases(ruleset, 30):
            judges.check(case, Tally())


def test_the_engine_says_what_the_reference_says_of_shipped_rules(shipped: Ruleset) -> None:
    """Whatever the packs' own tests say, the plain matcher says it too."""
    assert Engine(shipped).ruleset.rules
    generator = Generator(random.Random(9), shipped)
    ruleset = Ruleset(tuple(generator.shipped), shipped.agents, homes=("/root", "/home/dev"))
    judges = Judges(ruleset)
    tally = Tally()
    for case in generator.cases(ruleset, 400):
        judges.check(case, tally)
    assert tally.matching > 120
    assert PROJECT not in judges.lowered
