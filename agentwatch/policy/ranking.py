"""Verdicts, and which of two programs wins: what is stricter stands before."""

from __future__ import annotations

from dataclasses import dataclass

from agentwatch.policy import levels
from agentwatch.policy.layout import ALLOW, DENY, KILL, LOOK
from agentwatch.policy.numbering import Numbered
from agentwatch.policy.table import strictness
from agentwatch.rules.model import ACTIONS, Rule


@dataclass(frozen=True, slots=True)
class Host:
    """What becomes of an action here. connects: connections can be refused; everything: whatever
    is asked can be, before it happens.
    """

    mode: str
    without_hook: str
    connects: bool
    everything: bool = False

    def answer(self, action: str, sort_is_connect: bool, rule: Rule | None) -> tuple[int, int]:
        """The verdict, and that where it is too late to prevent anything (0: the same)."""
        mode = rule.mode or self.mode if rule else self.mode
        without_hook = rule.without_hook or self.without_hook if rule else self.without_hook
        if action == "allow":
            return ALLOW, 0
        otherwise = KILL if levels.response(action, without_hook, mode) == "kill" else LOOK
        prevented = self.everything or (sort_is_connect and self.connects)
        if action == "deny" and mode == "enforce" and prevented:
            return DENY, otherwise
        return otherwise, 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A numbered program with its verdict."""

    verdict: int
    otherwise: int
    numbered: Numbered

    @property
    def strictness(self) -> tuple[int, int]:
        return strictness_of(self.verdict, self.otherwise, self.numbered.program.rule.action)

    @property
    def place(self) -> tuple[object, ...]:
        program = self.numbered.program
        return (*self.strictness, strictness(program.rule), program.kinds)


def strictness_of(verdict: int, otherwise: int, action: str) -> tuple[int, int]:
    """What is stricter is smaller: a kill, what is refused, what the engine looks at."""
    return verdict * 8 + otherwise, -ACTIONS.index(action)
