"""Policies and events made to hurt the compiler and the walker: time and memory stay bounded, and
what is answered is right.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentwatch.errors import AgentwatchError
from agentwatch.events import Connect, Event, Exec, Open
from agentwatch.lineage import Actor
from agentwatch.lineage import Image as Program
from agentwatch.policy.image import Image
from agentwatch.policy.layout import ABI, MAGIC, SMALLEST
from agentwatch.policy.subjects import subject_of
from agentwatch.rules.model import Condition, Default, Match, Rule, Ruleset
from tests.rules.comparing import KILL, Comparison
from tests.rules.generating import HERE, PROCESS, SESSION, Case
from tests.rules.judging import BITS, Judges, Tally, compiled_of

REPOSITORY = Path(__file__).parents[2]
MEMORY = 2 << 30  # of address space, for a compiler of its own
PROGRAM = Program("/usr/bin/program", None, ("program",), "/srv")
ACTOR = Actor(PROCESS, SESSION, ("alpha",), PROGRAM)
BUDGET = 32 << 20

EXPLOSIVE = {
    "three stars each, thousands": [f"/srv/*a{i}*b{i % 7}*c{i}*" for i in range(3000)],
    "the same, at any depth": [f"**/*a{i}*b{i % 7}*c{i}*/**" for i in range(3000)],
    "stars without anything between": [f"/*{'?*' * (i % 30)}{i}" for i in range(500)],
    "a row of any characters": [f"**/a{'?' * i}" for i in range(200)],
    "what one letter ends": [
        f"**/*{c}*{d}*{e}*" for c in "abcdefgh" for d in "ijkl" for e in "mnop"
    ],
    "components in between": [
        f"/{'/**/'.join('abcdefgh'[: i % 8 + 1])}/**/x{i}" for i in range(800)
    ],
    "braces by the thousand": [
        "/{" + ",".join(f"x{i}y{j}" for j in range(1000)) + "}" for i in range(40)
    ],
    "braces in braces": ["/" + "{a,b}" * 10 + f"/{i}*" for i in range(20)],
    "sets": [f"/**/[!{c}]*[{c}x]*[!y{c}]{i}" for i, c in enumerate("abcdefghijklmnop" * 20)],
    "long ones": ["/" + f"{i}a*" * 600 for i in range(50)],
}


def reading(*paths: str) -> Ruleset:
    """A rule for each pattern."""
    return Ruleset(
        tuple(
            Rule(f"r{i:05}", ("read",), _path(path), "deny", HERE) for i, path in enumerate(paths)
        ),
        homes=("/root",),
    )


def _path(*values: str) -> Match:
    return Match((Condition("path", values, frozenset(), HERE),))


def opened(path: bytes) -> Event:
    name = os.fsdecode(path)
    return Open(time=1, process=PROCESS, session=SESSION, path=name, result=3, reads=True)


def agree(ruleset: Ruleset, *events: Event) -> Judges:
    judges = Judges(ruleset)
    for event in events:
        judges.check(Case(event, ACTOR, True), Tally())
    return judges


COMPILES = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from tests.rules.test_policy_hostile import EXPLOSIVE, many, reading
from tests.rules.judging import compiled_of
ruleset = many({count}) if {count} else reading(*EXPLOSIVE[{name!r}])
began = time.process_time()
compiled = compiled_of(ruleset)
took = time.process_time() - began
kernel = sum(found.where == "kernel" for found in compiled.lowered.values())
reasons = {{found.reason for found in compiled.lowered.values() if found.where != "kernel"}}
assert all(reasons), "a rule without a reason"
assert len(compiled.lowered) == len(ruleset.rules)
print(took, len(compiled.image), kernel, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def compiles(name: str = "", count: int = 0) -> tuple[float, int, int]:
    """Seconds of CPU, bytes of the image and rules in it, of a compiler with so much memory."""
    code = COMPILES.format(memory=MEMORY, count=count, name=name)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, size, kernel, peak = done.stdout.split()
    print(f"{seconds} s, {size} bytes, {kernel} rules in the kernel, {peak} KiB at most")
    return float(seconds), int(size), int(kernel)


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_patterns_made_to_explode_are_bounded(name: str) -> None:
    """In time, in memory and in the image; what does not fit goes to the engine with a reason."""
    seconds, size, _ = compiles(name)
    assert seconds < 15
    assert size <= BUDGET


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_what_explodes_is_still_judged_rightly(name: str) -> None:
    """A few of each kind, with values made from them: what is left to the engine is looked at."""
    paths = random.Random(name).sample(EXPLOSIVE[name], 8)
    rng = random.Random(1)
    events = [opened(_like(path, rng)) for path in paths for _ in range(4)]
    agree(reading(*paths), *events)


def _like(glob: str, rng: random.Random) -> bytes:
    for mark in ("**", "*", "?"):
        while mark in glob:
            glob = glob.replace(mark, rng.choice(("x", "ab", "a/b", "")), 1)
    return glob.replace("[!", "").replace("]", "").replace("[", "").encode()[:4095]


def many(count: int) -> Ruleset:
    """Rules of the shapes that people write, each with names of its own."""
    shapes = (
        ("read", "path", "~/.tool{0}/**"),
        ("read", "path", "**/.secret{0}/key*"),
        ("exec", "path", "**/prog{0}"),
        ("change", "path", "/etc/service{0}.d/*.conf"),
        ("exec", "args", "** --force{0} **"),
    )
    rules = []
    for i in range(count):
        kind, field, text = shapes[i % len(shapes)]
        condition = Condition(field, (text.format(i),), frozenset(), HERE)
        rules.append(Rule(f"r{i:05}", (kind,), Match((condition,)), "deny", HERE))
    return Ruleset(tuple(rules), homes=("/root", "/home/dev"))


def test_fifty_thousand_rules_compile_within_bounds() -> None:
    """And still fit: their patterns are the kind that shares states."""
    seconds, size, kernel = compiles(count=50_000)
    assert seconds < 120
    assert size <= BUDGET
    assert kernel > 40_000


def test_every_byte_is_matched_as_what_it_is() -> None:
    """At the beginning, inside and at the end of a component, in paths and in arguments."""
    globs = ("/x?", "/?", "/[!a]", "/x[!a-z]y", "/*x", "/x*y", "/x??", "/*?x", "/[ -~]", "**/x?/**")
    events = [
        opened(text)
        for byte in range(1, 256)
        for one in (bytes([byte]),)
        for text in (
            b"/" + one,
            b"/x" + one,
            b"/x" + one + b"y",
            b"/" + one + b"x",
            b"/x" + one * 2,
        )
    ]
    agree(reading(*globs), *events)


@pytest.mark.parametrize(
    "text",
    [
        b"\x80",
        b"\xbf\x80",
        b"\xc3",
        b"\xc3\xa9\x80",
        b"\xe2\x82",
        b"\xe2\x82\xac",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff\xfe",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"a\x80\xc3\xa9",
        b"\xc3\xc3\xa9",
        b"\xe2\x82\xe2\x82\xac",
    ],
)
def test_invalid_utf_8_is_counted_alike(text: bytes) -> None:
    """Truncated, overlong, stray and beyond Unicode: a byte that begins none begins one."""
    globs = [f"/{'?' * n}" for n in range(1, 6)] + [
        "/*?",
        "/?*",
        "/[!a]",
        "/[!a]?",
        "/a?",
        "/*[!b]",
        "/?/**",
    ]
    around = (text, text + b"a", b"a" + text, text * 2, text + b"/" + text)
    agree(reading(*globs), *(opened(b"/" + one) for one in around))


def test_the_longest_path_is_matched_to_its_end() -> None:
    """4,095 bytes, in one component of 255 after the other."""
    path = (b"/" + b"d" * 254) * 17
    path = path[:4088] + b"/secret"
    assert len(path) == 4095
    judges = agree(
        reading("**/secret", "/*/**/secret", "**/d*/**"), opened(path), opened(path[:-1])
    )
    assert judges.lowered == {"r00000", "r00001", "r00002"}


def test_three_hundred_directories_are_matched_to_the_last() -> None:
    """`**` is any number of them."""
    path = b"/d" * 300
    globs = ("**/x", "/d/**/d/x", "/**/d/**/d/**", "/" + "*/" * 300 + "x", "**/d/d/d/x/**")
    began = time.process_time()
    agree(reading(*globs), opened(path), opened(path + b"/x"), opened(path + b"/x/y"))
    assert time.process_time() - began < 10


def test_two_megabytes_of_arguments_are_read_to_the_last() -> None:
    """The one that matters is behind all others."""
    rule = Rule(
        "last",
        ("exec",),
        Match((Condition("args", ("--force",), frozenset({"has"}), HERE),)),
        "kill",
        HERE,
    )
    anchored = Rule(
        "first",
        ("exec",),
        Match((Condition("args", ("a ** --force",), frozenset(), HERE),)),
        "deny",
        HERE,
    )
    argv = ("x", "a", *("argument",) * 230_000, "--force")
    assert sum(len(token) + 1 for token in argv) > 2_000_000
    whole, cut = (
        Exec(time=1, process=PROCESS, session=SESSION, path="/x", argv=one, argc=len(one), cwd="/")
        for one in (argv, argv[:-1])
    )
    began = time.process_time()
    agree(Ruleset((rule, anchored)), whole, cut)
    assert time.process_time() - began < 60


def test_an_empty_policy_says_nothing() -> None:
    """Of any event."""
    connect = Connect(
        time=1, process=PROCESS, session=SESSION, family=2, addr="10.0.0.1", port=1,
        protocol="udp", from_socket=True,
    )  # fmt: skip
    judges = agree(Ruleset(), opened(b"/x"), connect)
    assert not judges.compiled.rules
    assert len(judges.compiled.image) == SMALLEST


def test_a_policy_of_defaults_alone_stops_everything_of_their_kind() -> None:
    """It has no pattern at all."""
    ruleset = Ruleset(defaults=(Default("all", "read", "kill", HERE),))
    judges = agree(ruleset, opened(b"/x"))
    subject = subject_of(opened(b"/x"), ACTOR, BITS)
    assert subject is not None
    assert judges.image.decide(subject).verdict == KILL


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blob: (MAGIC ^ 1).to_bytes(4, "little") + blob[4:],
        lambda blob: blob[:4] + (ABI + 1).to_bytes(4, "little") + blob[8:],
        lambda blob: blob[:-1],
        lambda blob: blob[:4096],
        lambda blob: b"",
    ],
    ids=["magic", "abi", "odd", "short", "empty"],
)
def test_an_image_of_another_version_is_refused(spoil: object) -> None:
    """With what to do about it, and before anything is walked."""
    blob = compiled_of(reading("/x")).image
    assert callable(spoil)
    with pytest.raises(AgentwatchError) as refused:
        Image(spoil(blob))
    assert refused.value.remedy


def test_the_same_rules_make_the_same_image() -> None:
    """In another process too, where strings hash otherwise."""
    code = (
        "import hashlib; from tests.rules.test_policy_hostile import many;"
        "from tests.rules.judging import compiled_of;"
        "print(hashlib.sha256(compiled_of(many(400)).image).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "77")
    }
    assert len(found) == 1


def test_more_lists_than_there_is_room_for_restrict_without_exceptions() -> None:
    """Seventy rules that each see another directory of the name; one that would be spared."""
    rules = [Rule(f"r{i:02}", ("read",), _path(f"**/d{i}/**"), "alert", HERE) for i in range(70)]
    spared = Rule(
        "stop", ("read",), _path("**/d3/**"), "kill", HERE, unless=(("u", _path("**/d4/**")),)
    )
    path = b"".join(b"/d%d" % i for i in range(70)) + b"/x"
    ruleset = Ruleset((*rules, spared))
    judges = Judges(ruleset)
    subject = subject_of(opened(path), ACTOR, BITS, 0)
    assert subject is not None
    found = judges.image.decide(subject)
    expected = Comparison(ruleset, judges.lowered).expected(opened(path), ACTOR)
    assert expected.looks
    assert found.verdict == KILL if found.crowded else not expected.wrong(found.verdict, "r00")
