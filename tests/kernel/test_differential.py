"""The kernel's walker says what the Python walker and the plain reference matcher say: 200,000
pairs of a ruleset and an event through BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentwatch.events import Exec, Open
from agentwatch.policy.deciding import Asking
from agentwatch.policy.image import DENY, ITSELF, MADE, TAKEN, Decision, Image
from agentwatch.policy.subjects import ARGS, Subject
from agentwatch.rules.model import Condition, Match, Rule, Ruleset
from tests.kernel.asking import KernelWalker, build
from tests.rules.generating import HERE, PROJECT, Case, Generator, packs
from tests.rules.judging import Judges, Tally, compiled_of
from tests.rules.test_reachable import directories

pytestmark = pytest.mark.root

PAIRS = 200_000
SEEDS = 8
PER_SET = 500
MOST_RULES = 8
SIZE = 8 << 20
PAGE = 4096
DIRECTORIES, CUTS = 20, 300  # in so many events one's directories are asked about, its argv cut


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelWalker]:
    program: Path = build(tmp_path_factory.mktemp("asking"))
    loaded = KernelWalker(program, SIZE, PROJECT.encode())
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def shipped() -> Ruleset:
    return packs()


def check(judges: Judges, walker: KernelWalker, case: Case, tally: Tally) -> None:
    """The image in Python against the reference, then the kernel against the image."""
    judges.check(case, tally)
    subject = judges.subject(case)
    if subject is None:
        return
    same(judges.image, walker, subject, case)
    if isinstance(case.event, Exec | Open) and tally.pairs % DIRECTORIES == 0:
        for name in directories(case.event.path):
            asked = judges.check_below(case, name)
            for kinds in (TAKEN, MADE, TAKEN | ITSELF):
                said = judges.image.decide_directory(asked, kinds)
                found = walker.decide_directory(asked, kinds)
                assert found == said, f"below {name!r}: Python {said}, the kernel {found}\n{case}"
    if isinstance(case.event, Exec) and tally.pairs % CUTS < 2 and subject.args:
        for begins in begun(subject.args):
            same(judges.image, walker, replace(subject, args=begins, cut=True), case)


def begun(args: bytes) -> tuple[bytes, ...]:
    """What can be read of an argv whose rest cannot: whole pages, with the tokens at the end of
    them, at their beginning and across two.
    """
    front, tail = b"x" * (PAGE - len(args) % PAGE - 1) + b"\0", b"\0y" * PAGE
    return (
        (front + args)[: len(front + args) // PAGE * PAGE],
        (args + tail)[: 2 * PAGE],
        (b"z" * (PAGE - 3 - len(args) // 2 % PAGE) + b"\0" + args + tail)[: 2 * PAGE],
    )


def same(
    image: Image, walker: KernelWalker, subject: Subject, case: Case | None = None
) -> Decision:
    said, found = image.decide(subject), walker.decide(subject)
    assert found == said, f"the kernel says {found}, Python {said}\n{case}\n{subject}"
    # Of a program that is killed for one of its names the others are not looked at.
    ends = said.verdict == 1 and subject.others
    if case is not None and isinstance(case.event, Exec) and not said.crowded and not ends:
        names = subject.path or (b"" if subject.path is not None else None), subject.cwd
        predicates = image.predicates(
            *names,
            subject.args,
            uncertain=subject.uncertain,
            project=subject.project,
            cut=subject.cut,
            others=subject.others,
        )
        assert walker.predicates() == predicates, f"predicates of {case}\n{subject}"
    return said


@pytest.mark.parametrize("seed", [*range(SEEDS - 1), None])
def test_the_kernel_agrees_on_every_pair(
    seed: int | None, walker: KernelWalker, shipped: Ruleset
) -> None:
    """Verdict, rule, and the predicates of a program that is started; at least 40 % of the events
    are made from the patterns, 30 % match.
    """
    fresh = int.from_bytes(os.urandom(6), "big") if seed is None else seed
    print(f"seed {fresh}")
    generator, tally = Generator(random.Random(fresh), shipped), Tally()
    while tally.pairs < PAIRS / SEEDS:
        ruleset = generator.ruleset(MOST_RULES)
        judges = Judges(ruleset, SIZE)
        walker.put(judges.compiled.image)
        for case in generator.cases(ruleset, PER_SET):
            check(judges, walker, case, tally)
    print(tally)
    assert tally.pairs >= PAIRS / SEEDS
    assert tally.derived >= 0.4 * tally.pairs
    assert tally.matching >= 0.3 * tally.pairs
    assert tally.crowded <= 0.01 * tally.pairs


MAPPED = Asking(True, later=1 << ARGS, mapped=True)
HOOKS = (
    Asking(True),
    Asking(True, later=1 << ARGS),
    Asking(True, ruled=True),
    Asking(ruled=True),
    MAPPED,
)


def test_hooks_are_answered_as_python_says(walker: KernelWalker, shipped: Ruleset) -> None:
    """Asked before it happens, before arguments are known, by rules alone, of what is mapped."""
    generator, answers = Generator(random.Random(17), shipped), Counter[Asking]()
    for _ in range(30):
        ruleset = generator.ruleset(MOST_RULES)
        judges = Judges(ruleset, SIZE)
        compiled = compiled_of(ruleset, SIZE, lsm=True)
        image = Image(compiled.image)
        walker.put(compiled.image)
        for case in generator.cases(ruleset, 100):
            subject = judges.subject(case)
            for asking in HOOKS if subject is not None else ():
                said, found = image.decide(subject, asking), walker.decide(subject, 0, asking)
                assert found == said, f"{asking}: the kernel says {found}, Python {said}\n{case}"
                answers[asking] += said.verdict == DENY
    print(answers)
    assert answers[HOOKS[0]] > answers[HOOKS[2]] > 100
    assert answers[HOOKS[0]] > answers[HOOKS[1]] > answers[MAPPED] > 10


def test_the_shipped_packs_mean_the_same_in_the_kernel(
    walker: KernelWalker, shipped: Ruleset
) -> None:
    """All of them at once, with events made from their own patterns."""
    generator = Generator(random.Random(7), shipped)
    supported = Ruleset(tuple(generator.shipped), shipped.agents, homes=("/root", "/home/dev"))
    judges = Judges(supported, SIZE)
    walker.put(judges.compiled.image)
    tally = Tally()
    for case in generator.cases(supported, 1500):
        check(judges, walker, case, tally)
    assert tally.matching > 500


def test_names_that_begin_alike_are_judged_as_if_each_were_the_first(
    walker: KernelWalker, shipped: Ruleset
) -> None:
    """What the walk remembers of the last name is of no other name, policy, project or session."""
    choose = random.Random(11)
    generator = Generator(choose, shipped)
    packs_of = Ruleset(tuple(generator.shipped), shipped.agents, homes=("/root", "/home/dev"))
    policies = [compiled_of(packs_of, SIZE).image, compiled_of(one_path_rule("**/.ssh/**")).image]
    for slot, image in enumerate(policies):
        walker.put(image, slot)
    images = [Image(image) for image in policies]
    parts = (".ssh", "id_rsa", ".aws", "credentials", ".env", "x", "src", "node_modules", "a" * 40)
    bases = ("", "/home/dev", "/root", PROJECT, f"{PROJECT}/src/{'m' * 50}", "/etc", "/proc/1")
    last, slot, decided = "/", 0, 0
    for _ in range(6000):
        slot ^= choose.random() < 0.02
        kept = last[: choose.randrange(1, len(last) + 1)] if choose.random() < 0.6 else "/"
        base = kept if choose.random() < 0.6 else choose.choice(bases)
        more = choose.choices(parts, k=choose.randrange(0, 5))
        last = f"/{base}/{'/'.join(more)}".replace("//", "/").replace("//", "/").rstrip("/")[:400]
        last = last or "/x"
        project = PROJECT.encode() if choose.random() < 0.7 else None
        subject = Subject(kinds=10, words=5, path=last.encode() + b"/", project=project)
        said, found = images[slot].decide(subject), walker.decide(subject, slot)
        assert found == said, f"{last} in {slot}: the kernel says {found}, Python {said}"
        decided += said.verdict != 0
    assert decided > 300


def one_path_rule(*globs: str) -> Ruleset:
    condition = Condition("path", globs, frozenset(), HERE)
    return Ruleset((Rule("one", ("read",), Match((condition,)), "kill", HERE),))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 255, 256, 1023, 4093, 4094])
def test_names_of_every_length_are_walked_to_the_end(length: int, walker: KernelWalker) -> None:
    """The last byte decides, wherever it falls among the chunks that the kernel takes."""
    image = compiled_of(one_path_rule("**/*b", "/" + "a" * min(length - 1, 200) + "?")).image
    walker.put(image)
    name = b"/" + b"a" * (length - 1)
    for one in (name, name[:-1] + b"b", name + b"b" if length < 4094 else name):
        same(Image(image), walker, Subject(kinds=2, path=one + b"/", agents=1))


def test_a_deep_name_is_walked_to_the_end(walker: KernelWalker) -> None:
    """Three hundred directories below each other."""
    image = compiled_of(one_path_rule("/d/**/d/x", "**/y/**")).image
    walker.put(image)
    for last in (b"/x/", b"/y/", b"/", b"/y/d/d/"):
        same(Image(image), walker, Subject(kinds=2, path=b"/d" * 300 + last, agents=1))


def test_two_megabytes_of_arguments_are_read_to_the_last(walker: KernelWalker) -> None:
    """In pieces, with tokens that lie across them."""
    has = Condition("args", ("--force",), frozenset({"has"}), HERE)
    rule = Rule("one", ("exec",), Match((has,)), "kill", HERE)
    image = compiled_of(Ruleset((rule,))).image
    walker.put(image)
    rng = random.Random(3)
    many = b"".join(b"a" * rng.randint(0, 90) + b"\0" for _ in range(44_000))
    assert len(many) > 1_900_000
    for args in (many, many + b"--force\0", b"--force\0" + many, many[:4090] + b"\0--force\0"):
        subject = Subject(kinds=1, path=b"/x/", cwd=b"//", args=args, agents=1)
        found = same(Image(image), walker, subject)
        assert (found.verdict == 1) == (b"\0--force\0" in b"\0" + args)


def test_an_image_of_another_version_answers_nothing(walker: KernelWalker) -> None:
    """The event is left to the engine, as without any policy."""
    image = compiled_of(one_path_rule("/x")).image
    subject = Subject(kinds=2, path=b"/x/", agents=1)
    for spoiled in (
        b"\0" + image[1:],
        image[:4] + (99).to_bytes(4, "little") + image[8:],
        bytes(len(image)),
    ):
        walker.put(spoiled)
        with pytest.raises(AssertionError, match="no policy answered"):
            walker.decide(subject)
    walker.put(image)
    assert walker.decide(subject).verdict == 1


def test_bytes_that_are_no_policy_do_no_harm(walker: KernelWalker) -> None:
    """An image whose words were overwritten: the walk ends, and the next is judged rightly."""
    good = compiled_of(one_path_rule("/x", "**/y/**")).image
    rng = random.Random(5)
    for _ in range(100):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 3, 40))):
            at = rng.randrange(8, len(bad))
            bad[at] = rng.randrange(256)
        walker.put(bytes(bad))
        walker._fill(Subject(kinds=2, path=b"/a/y/b/", agents=1), 0, 1)
        walker._object.run("ask")
    walker.put(good)
    same(Image(good), walker, Subject(kinds=2, path=b"/a/y/b/", agents=1))
