"""What the kernel of a host does about one event: who is asked there, and what that comes to.

A hook is asked before anything happens, and the probes at the end of the call or when a program is
in place. What a hook has let happen the probes do not judge again, but for what it could not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentwatch.events import Change, Event, Exec, Mount
from agentwatch.lineage import Actor
from agentwatch.policy import levels
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.deciding import Asking
from agentwatch.policy.image import DENY, KILL, LOOK, MADE, Decision, Image
from agentwatch.policy.readers import by_other_name, kinds_of, views
from agentwatch.policy.subjects import ARGS, Subject, subject_of, uses_of

_MOVES = frozenset({"rename", "link"})
_HOOK = Asking(preventing=True)
_TOO_EARLY = Asking(preventing=True, later=1 << ARGS)
_STOPS = (KILL, DENY)


@dataclass(frozen=True, slots=True)
class Answer:
    """decision: what is said, and by which rule. refused: the call returns EPERM. unread: what is
    done instead where a hook cannot read the arguments of whoever asks; None where it needs none.
    """

    decision: Decision
    refused: bool = False
    unread: Decision | None = None


def answer(
    compiled: Compiled, image: Image, event: Event, actor: Actor, host: levels.Host
) -> Answer | None:
    """What becomes of an event; None of one that the kernel does not see."""
    seen = tuple(one for one in views(event) if not by_other_name(one))  # decide asks about those
    subjects = [
        subject_of(one, actor, compiled.agents, image.predicates_for(actor)) for one in seen
    ]
    known = [one for one in subjects if one is not None]
    if len(known) < len(seen):
        return None
    op = event.op if isinstance(event, Change | Mount) else ""
    if levels.is_hooked(host, kinds_of(event), op):
        return _by_hook(image, event, known)
    found = _strictest([image.decide(one) for one in known])
    if op and found.verdict:  # by the probes, which judge none of these
        return Answer(Decision(LOOK, found.rule, found.crowded))
    return Answer(found, found.verdict == DENY)


def _by_hook(image: Image, event: Event, subjects: Sequence[Subject]) -> Answer:
    found = _strictest([image.decide(one, _HOOK) for one in subjects])
    if isinstance(event, Exec):
        (subject,) = subjects
        at_the_end = image.decide(subject)
        if found.verdict not in _STOPS:
            return Answer(at_the_end)
        early = image.decide(subject, _TOO_EARLY)
        return Answer(found, True, None if early.verdict in _STOPS else at_the_end)
    if found.verdict not in _STOPS and isinstance(event, Change):
        stays = _staying(image, event.op, subjects)
        if stays is not None:
            found = Decision(DENY, stays.rule, stays.crowded)
    return Answer(found, found.verdict in _STOPS)


def _staying(image: Image, op: str, subjects: Sequence[Subject]) -> Decision | None:
    """What keeps a name where it is, or from being made; of what is moved it is not known here
    whether it is a directory: it takes along what one would, and brings about nothing.
    """
    asked: list[Decision] = []
    if op in _MOVES:
        for old, new in zip(uses_of(subjects[0]), uses_of(subjects[-1]), strict=True):
            use = image.decide(old, _HOOK)
            if use.verdict in _STOPS and image.decide(new, _HOOK).verdict not in _STOPS:
                asked.append(use)
        asked.append(image.decide_directory(subjects[0]))
    elif op == "symlink":
        asked.append(image.decide_directory(subjects[0], MADE))
    return next((one for one in asked if one.verdict in _STOPS), None)


def _strictest(found: Sequence[Decision]) -> Decision:
    """Verdicts are numbered from the strictest; 0 is none."""
    return min(found, key=lambda one: one.verdict or LOOK + 1)
