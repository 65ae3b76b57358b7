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
from dataclasses import dataclass

CLOSING = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s\b.*$")
COUNT = re.compile(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|errors?|warnings?)")
COUNTED = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")


@dataclass(frozen=True)
class Outcome:
    """How a tier ended. counts: tests by pytest's word for their outcome."""

    tier: str
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


def run(tier: str) -> Outcome:
    """Run one tier, passing its output on as it comes."""
    verb = tier if tier in ("check", "vm") else f"test-{tier}"
    print(f"\n---- {tier}: make {verb}", flush=True)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    make = [os.environ.get("MAKE", "make"), verb]
    with subprocess.Popen(
        make, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace")
            sys.stdout.write(line)
            sys.stdout.flush()
            counts += count(line)
    if process.returncode and not counts["failed"] and not counts["error"]:
        counts["error"] += 1
    return Outcome(tier, process.returncode, time.monotonic() - started, counts)


def main(tiers: list[str]) -> int:
    """Run all, print the table and the closing line; 1 when any failed."""
    outcomes = [run(tier) for tier in tiers]
    print("\ntier          result  seconds  tests")
    for outcome in outcomes:
        result = "FAILED" if outcome.code else "passed"
        print(f"{outcome.tier:13} {result:7} {outcome.seconds:7.1f}  {outcome.words}")
    total = Outcome(
        "all",
        any(outcome.code for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        sum((outcome.counts for outcome in outcomes), Counter()),
    )
    failed = ", ".join(outcome.tier for outcome in outcomes if outcome.code)
    print(f"ran {len(outcomes)} tiers; {f'FAILED: {failed}' if failed else 'all passed'}")
    print(f" {total.words or 'no tests'} in {total.seconds:.2f}s ".center(100, "="))
    return int(total.code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
