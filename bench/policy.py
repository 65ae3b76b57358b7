"""What the policy costs: compiling it, by the number of rules, and the kernel's verdict."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentwatch.policy import compiler, patterns
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.subjects import (
    WORDS,
    AgentBits,
    Subject,
    address_subject,
    args_subject,
    path_subject,
)
from agentwatch.rules.homes import TRIAL_HOMES, at_home
from agentwatch.rules.load import default_paths, read_rules
from agentwatch.rules.model import Condition, Match, Place, Rule, Ruleset
from bench.workplace import say
from tests.kernel.asking import KernelWalker, build

HERE = Place("more.yaml", 1, 1)
# Kinds, then fields with their values and modifiers.
SHAPES: Sequence[tuple[Any, ...]] = (
    ("read change", ("path", "~/.tool{i}/**")),
    ("read change", ("path", "**/.secret{i}/key")),
    ("read", ("path", "**/*.ext{i}")),
    ("exec", ("path", "**/prog{i}"), ("args", "--force{i}", "has")),
    ("exec", ("path", "**/{{curl,wget}}"), ("args", "*host{i}.example.org*", "has")),
    ("connect", ("addr", "10.{part}.{low}.0/24", "cidr"), ("port", "443")),
)
TARGETS = {300: 0.3, 1_000: 1.0, 10_000: 15.0}  # s
TIMES = 3  # compiled, of which the fastest counts
FEW, MANY = 10, max(TARGETS)
RATIO = 1.10
ROUNDS, CALLS = 41, 100
ROOM = 32 << 20
PROJECT = "/home/dev/project"


def measure() -> None:
    """Everything. Needs root."""
    _compiles("the packs", _shipped(), None)
    for count, target in TARGETS.items():
        many = _compiles(f"{count:,} rules", _rules(count), target)
    say()
    _verdicts(_compiled(_rules(FEW)).image, many.image)


def _shipped() -> Ruleset:
    return at_home(read_rules(default_paths(), patterns).ruleset, TRIAL_HOMES)


def _rules(count: int) -> Ruleset:
    """As many rules of the shapes that people write, each with names of its own."""
    return Ruleset(tuple(map(_rule, range(count))), homes=TRIAL_HOMES)


def _rule(number: int) -> Rule:
    kinds, *asked = SHAPES[number % len(SHAPES)]
    numbers = {"i": number, "part": number // 250 % 250, "low": number % 250}
    conditions = tuple(
        Condition(field, (text.format(**numbers),), frozenset(modifiers), HERE)
        for field, text, *modifiers in asked
    )
    return Rule(f"more.r{number}", tuple(kinds.split()), Match(conditions), "deny", HERE)


def _compiled(ruleset: Ruleset) -> Compiled:
    return compiler.compile(
        ruleset,
        mode="enforce",
        without_hook="kill",
        agents=AgentBits(),
        prevents=True,
        generation=1,
        clock=time.process_time,
    )


def _compiles(name: str, ruleset: Ruleset, target: float | None) -> Compiled:
    best = min((_compiled(ruleset) for _ in range(TIMES)), key=lambda one: one.seconds)
    kernel = [one for one in best.lowered.values() if one.where == "kernel"]
    room = [one for one in best.lowered.values() if "room" in one.reason]
    under = f" (under {target:g})" if target else ""
    say(
        f"{name}: {best.seconds:.2f} s of CPU{under}, an image of {best.bytes >> 10:,} KiB; "
        f"{len(kernel):,} of {len(ruleset.rules):,} rules in the kernel, no room for {len(room)}"
    )
    say(f"  {'':16} {'states':>8} {'classes':>8} {'KiB':>8} {'seconds':>8}")
    for one in best.sets:
        if one.states:
            say(
                f"  {one.name:16} {one.states:8,} {one.classes:8} {one.bytes >> 10:8,} "
                f"{one.seconds:8.2f}"
            )
    return best


def _events() -> Mapping[str, tuple[Subject, ...]]:
    """By what they are; none of them is what a rule stops."""
    paths = [f"{PROJECT}/src/lib{i % 61}/module/deep/part{i % 13}/file{i}.py" for i in range(64)]
    argvs = [
        ("-O2", "-Wall", *(f"-I/usr/include/library{i + j}/module" for j in range(40)), "x.c")
        for i in range(64)
    ]
    tcp = WORDS["family"]["inet"] | WORDS["proto"]["tcp"]
    return {
        "open": tuple(Subject(kinds=2 | 8, words=5, path=path_subject(path)) for path in paths),
        "argv": tuple(
            Subject(
                kinds=1,
                path=path_subject("/usr/bin/gcc-12"),
                cwd=path_subject(PROJECT),
                args=args_subject(argv),
            )
            for argv in argvs
        ),
        "connect": tuple(
            Subject(
                kinds=16,
                words=tcp,
                addr=address_subject(f"192.0.2.{i}"),
                port=(443).to_bytes(2, "big"),
            )
            for i in range(64)
        ),
    }


def _verdicts(few: bytes, many: bytes) -> None:
    """The walker alone, both policies loaded, asked in turn; the order turns."""
    say(f"the kernel's verdict, {MANY:,} rules against {FEW}, {ROUNDS} rounds, medians of ns")
    say(f"  {'':10} {FEW:>8} {MANY:>8}  ratio (at most {RATIO})  {FEW} again (A/A)")
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as directory:
        walker = KernelWalker(build(Path(directory)), ROOM, PROJECT.encode())
        try:
            for slot, image in enumerate((few, many, few)):
                walker.put(image, slot)
            for name, subjects in _events().items():
                _ask(walker, name, subjects)
        finally:
            walker.close()


def _ask(walker: KernelWalker, name: str, subjects: tuple[Subject, ...]) -> None:
    times: list[list[float]] = [[], [], []]
    for number in range(ROUNDS):
        order = [(number + place) % 3 for place in range(3)]
        found: dict[int, list[float]] = {slot: [] for slot in order}
        for call in range(CALLS):
            for slot in order:
                found[slot].append(walker.time(subjects[call % len(subjects)], slot))
        for slot, one in found.items():
            times[slot].append(statistics.median(one))
    few, many, again = times
    ratios = [one / base for one, base in zip(many, few, strict=True)]
    noise = [one / base for one, base in zip(again, few, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    say(
        f"  {name:10} {statistics.median(few):8.0f} {statistics.median(many):8.0f}"
        f"  {middle:.3f} ({low:.3f} to {high:.3f})   {statistics.median(noise):.3f}"
    )


if __name__ == "__main__":
    measure()
