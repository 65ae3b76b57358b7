"""What the packs were right and wrong about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Score:
    """Counts of one suite.

    expected, fired: rules that had to fire in an incident, and those of them that did. rightful:
    findings of severity medium or above in incidents. wrong: those in ordinary work, by what they
    said. ordinary: pieces of ordinary work. missing: what could not be run here, by name.
    """

    expected: int = 0
    fired: int = 0
    incidents: int = 0
    rightful: int = 0
    ordinary: int = 0
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def incident(self, expected: tuple[str, ...], fired: set[str], findings: int) -> None:
        self.incidents += 1
        self.expected += len(expected)
        self.fired += len(set(expected) & fired)
        self.rightful += findings

    def work(self, wrong: list[str]) -> None:
        self.ordinary += 1
        self.wrong += wrong

    @property
    def recall(self) -> float:
        """Of the rules that had to fire, how many did."""
        return self.fired / self.expected if self.expected else 1.0

    @property
    def precision(self) -> float:
        """Of all findings of severity medium or above, how many were about an incident."""
        findings = self.rightful + len(self.wrong)
        return self.rightful / findings if findings else 1.0

    def lines(self, suite: str) -> Iterator[str]:
        """For people; nothing where nothing ran."""
        if self.incidents:
            yield (
                f"packs, {suite}: recall {self.recall:.3f} "
                f"({self.fired} of {self.expected} rules in {self.incidents} incidents)"
            )
        if self.ordinary:
            about = f"{self.rightful} rightful findings, " if self.incidents else ""
            yield (
                f"packs, {suite}: precision {self.precision:.3f} ({about}{len(self.wrong)} wrong "
                f"of medium or above in {self.ordinary} pieces of ordinary work)"
            )
        for name in self.missing:
            yield f"packs, {suite}: not run here: {name}"
