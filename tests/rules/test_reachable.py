"""What may still match: of an argv that was cut, and of what is below a directory, the image says
what the plain reference matcher says. Seeds are fixed but for one, which a failure prints.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from agentwatch.events import Exec, Open
from agentwatch.policy import blob
from agentwatch.policy.image import ITSELF, MADE, TAKEN
from agentwatch.policy.subjects import args_subject
from agentwatch.rules.model import Condition, Match, Rule, Ruleset
from tests.rules.generating import HERE, Generator, packs
from tests.rules.judging import Judges
from tests.rules.reachable import is_plain

RULESETS, PER_SET = 40, 25
SEEDS = (1, 2, 3, None)


@pytest.fixture(scope="module")
def shipped() -> Ruleset:
    return packs()


def seeded(seed: int | None, shipped: Ruleset) -> Generator:
    fresh = int.from_bytes(os.urandom(6), "big") if seed is None else seed
    print(f"seed {fresh}")
    return Generator(random.Random(fresh), shipped)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_argv_that_was_cut_restricts_by_what_may_follow(
    seed: int | None, shipped: Ruleset
) -> None:
    """At any byte; what cannot match any more does not, and nothing loosens."""
    generator = seeded(seed, shipped)
    compared = 0
    while compared < RULESETS * PER_SET // 2:
        ruleset = generator.ruleset(8)
        judges = Judges(ruleset)
        for case in generator.cases(ruleset, PER_SET):
            if not isinstance(case.event, Exec) or "argv" in case.event.unresolved:
                continue
            args = args_subject(case.event.argv[1:])
            begins = args[: generator.rng.randint(1, max(1, len(args)))]
            if args and is_plain(begins):
                judges.check_cut(case, begins)
                compared += 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_directory_is_stopped_by_what_is_denied_below_it(
    seed: int | None, shipped: Ruleset
) -> None:
    """For every directory of names made from the patterns, and for the name itself."""
    generator = seeded(seed, shipped)
    compared = stopped = 0
    for _ in range(RULESETS):
        ruleset = generator.ruleset(8)
        judges = Judges(ruleset)
        for case in generator.cases(ruleset, PER_SET):
            if not isinstance(case.event, Exec | Open) or "path" in case.event.unresolved:
                continue
            for name in directories(case.event.path):
                subject = judges.check_below(case, name)
                compared += 1
                stopped += judges.image.decide_directory(subject).verdict in (1, 2)
    assert compared > RULESETS * PER_SET
    assert 0.1 * compared < stopped < 0.9 * compared


def directories(path: str) -> list[str]:
    """The directories of a name, from the root on, and the name."""
    ends = [at for at, char in enumerate(path) if char == "/"]
    return [*(path[:at] or "/" for at in ends), *([path] if path else [])]


def policy(path: str, **more: object) -> Judges:
    """One rule on one pattern."""
    how = frozenset(str(word) for word in (more.get("how"),) if word)
    kind = str(more.get("on", "read"))
    conditions = [Condition("unix" if kind == "connect" else "path", (path,), how, HERE)]
    if "op" in more:
        conditions.append(Condition("op", (str(more["op"]),), frozenset(), HERE))
    rule = Rule("one", (kind,), Match(tuple(conditions)), "deny", HERE)
    return Judges(Ruleset((rule,), homes=("/home/dev",)))


@pytest.mark.parametrize(
    ("path", "directory", "stopped"),
    [
        ("**/.ssh/**", "/home/u/.ssh", True),
        ("**/.ssh/**", "/home/u/.ssh/keys", True),
        ("**/.ssh/**", "/home/u", False),
        ("**/.aws/credentials", "/home/u/.aws", True),
        ("**/.aws/credentials", "/home/u/.aws/x", False),
        ("**/*.pem", "/home/u", False),
        ("**/a/**/b", "/x/a/y", True),
        ("**/a/**/b", "/x/y", False),
        ("/**/id_rsa", "/home/u", False),
        ("/etc/**/shadow", "/etc/x", True),
        ("/etc/shadow", "/etc", True),
        ("/etc/shadow", "/", True),
        ("/etc/shadow", "/etc/x", False),
        ("/etc/shadow", "/etc/shadow", False),
        ("~/.ssh/*", "/home", True),
        ("~/.ssh/*", "/home/dev/.ssh", True),
        ("~/.ssh/*", "/home/dev/src", False),
        ("~/**/.env", "/home/dev/src", True),
    ],
)
@pytest.mark.parametrize(
    "more", [{}, {"on": "exec"}, {"on": "change", "op": "create"}, {"on": "connect"}]
)
def test_a_pattern_that_begins_anywhere_counts_once_it_has_begun(
    path: str, directory: str, stopped: bool, more: dict[str, object]
) -> None:
    """What is anchored counts for each directory above it; whatever the kind of the rule."""
    judges = policy(path, **more)
    generator = Generator(random.Random(1), packs())
    case = generator.case(judges.ruleset)
    subject = judges.check_below(case, directory)
    assert (judges.image.decide_directory(subject).verdict == 1) is stopped


def test_what_a_directory_brings_about_are_changes(shipped: Ruleset) -> None:
    """Where it goes to, no rule on reading, running or connecting is about what will be there."""
    case = Generator(random.Random(1), shipped).case(policy("/x").ruleset)
    for kind, stopped in (("read", 0), ("exec", 0), ("connect", 0), ("change", 1)):
        judges = policy("/etc/**/x", on=kind)
        subject = judges.check_below(case, "/etc/y")
        assert judges.image.decide_directory(subject, TAKEN).verdict == 1
        assert judges.image.decide_directory(subject, MADE).verdict == stopped


def test_what_is_no_directory_takes_along_only_itself(shipped: Ruleset) -> None:
    """What could be below it is not there."""
    case = Generator(random.Random(1), shipped).case(policy("/x").ruleset)
    for path, stopped in (("/etc/**", 1), ("/etc/*/x", 0), ("/etc/**/x", 0)):
        judges = policy(path)
        subject = judges.check_below(case, "/etc/y")
        assert judges.image.decide_directory(subject).verdict == 1
        assert judges.image.decide_directory(subject, TAKEN | ITSELF).verdict == stopped


def test_where_lists_find_no_room_more_is_stopped_and_never_less(
    monkeypatch: pytest.MonkeyPatch, shipped: Ruleset
) -> None:
    """What is reachable is then all that is accepted anywhere, but nothing where nothing is."""
    monkeypatch.setattr(blob, "REACH_WORDS", 0)
    generator = Generator(random.Random(5), shipped)
    for _ in range(10):
        ruleset = generator.ruleset(8)
        judges = Judges(ruleset)
        for case in generator.cases(ruleset, 10):
            if not isinstance(case.event, Exec | Open) or "path" in case.event.unresolved:
                continue
            for name in directories(case.event.path):
                event = replace(case, event=Open(
                    time=1, process=case.event.process, session=case.event.session, path=name
                ))  # fmt: skip
                assert isinstance(event.event, Open)
                expected = judges.comparison.below(event.event, event.actor)
                subject = judges.subject(event)
                assert subject is not None
                found = judges.image.decide_directory(subject)
                assert not expected.stops or found.verdict in (1, 2)
    beside = policy("/etc/shadow")
    case = replace(case, event=Open(time=1, process=case.event.process,
                                    session=case.event.session, path="/tmp/x"))  # fmt: skip
    nowhere = beside.subject(case)
    assert nowhere is not None
    assert beside.image.decide_directory(nowhere).verdict == 0
