#!/usr/bin/python3
"""Runs the tiers of `make test` and says at the end which ran, how each ended, what it counted.

A tier that fails does not keep the others from running. The last line counts the tests of all
tiers in pytest's own words; a tier that failed without a failing test, as a linter does, counts as
one error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CLOSING = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s\b.*$")
COUNT = re.compile(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|errors?|warnings?)")
COUNTED = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")


@dataclass(frozen=True)
class Outcome:
    """How a tier, or a boot of tier vm, ended. counts: tests by pytest's word for their outcome."""

    name: str
    code: int
    seconds: float
    counts: Counter[str]

    @property
    def words(self) -> str:
        """As pytest would say it: "2 failed, 31 passed"."""
        many = {"error": "errors"} if self.counts["error"] > 1 else {}
        return ", ".join(
            f"{self.counts[word]} {many.get(word, word)}" for word in COUNTED if self.counts[word]
        )


def count(line: str) -> Counter[str]:
    """The counts in pytest's closing line; none in any other line."""
    closing = CLOSING.match(re.sub(r"\x1b\[[\d;]*m", "", line.strip()))
    found = COUNT.findall(closing[1]) if closing else []
    return Counter({word.removesuffix("s"): int(number) for number, word in found})


def watch(name: str, command: list[str], show: Callable[[str], None], **popen: Any) -> Outcome:
    """Run a command, giving each line of its output to show as it comes, and count its tests."""
    started = time.monotonic()
    counts: Counter[str] = Counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **popen,
    ) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace")
            show(line)
            counts += count(line)
    if process.returncode and not counts["failed"] and not counts["error"]:
        counts["error"] += 1
    return Outcome(name, process.returncode, time.monotonic() - started, counts)


def run(tier: str) -> Outcome:
    """Run one tier."""
    verb = tier if tier in ("check", "vm") else f"test-{tier}"
    print(f"\n---- {tier}: make {verb}", flush=True)
    return watch(tier, [os.environ.get("MAKE", "make"), verb], write)


def write(line: str) -> None:
    """Pass it on at once."""
    sys.stdout.write(line)
    sys.stdout.flush()


def summarise(outcomes: list[Outcome], what: str, seconds: float) -> int:
    """Print a line for each, which failed, and pytest's closing line for all; 1 when any failed."""
    width = max(len(outcome.name) for outcome in outcomes)
    print(f"\n{what:{width}}  result  seconds  tests")
    for outcome in outcomes:
        result = "FAILED" if outcome.code else "passed"
        print(f"{outcome.name:{width}}  {result}  {outcome.seconds:7.1f}  {outcome.words}")
    failed = ", ".join(outcome.name for outcome in outcomes if outcome.code)
    total = Outcome(
        "all", bool(failed), seconds, sum((each.counts for each in outcomes), Counter())
    )
    print(f"ran {len(outcomes)} {what}s; {f'FAILED: {failed}' if failed else 'all passed'}")
    print(f" {total.words or 'no tests'} in {seconds:.2f}s ".center(100, "="), flush=True)
    return total.code


def main(tiers: list[str]) -> int:
    """Run all and summarise; 1 when any failed."""
    started = time.monotonic()
    outcomes = [run(tier) for tier in tiers]
    return summarise(outcomes, "tier", time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
