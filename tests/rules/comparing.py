"""What a policy's image has to say of an event, worked out from the reference matcher alone.

The image is right when it stops what the rules it has stop and nothing else, names the one that
wins, and is never silent about an event that the engine has to answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agentwatch.events import Connect, Event, Exec, Open
from agentwatch.lineage import Actor
from agentwatch.policy import levels
from agentwatch.policy.readers import kinds_of
from agentwatch.rules.model import ACTIONS, SEVERITIES, Rule, Ruleset
from tests.rules.reachable import Reachable
from tests.rules.reference_matcher import Reference

NOTHING, KILL, DENY, LOOK = 0, 1, 2, 3
MODE, WITHOUT_HOOK = "enforce", "kill"


@dataclass(frozen=True, slots=True, order=True)
class Answer:
    """What one rule, or (rule "") one default, has the kernel do. The strictest one sorts first."""

    rank: tuple[int, int]
    rule: str
    verdict: int


@dataclass(frozen=True, slots=True)
class Expected:
    """stops: the answer that ends it, if one does. also: the one that may end it instead, where a
    default may be left to the engine. partly: stricter ones of rules that the kernel has for some
    agents or kinds only. looks: whether the engine has to see the event. may_look: whether it may
    be asked for nothing. hits: the ids of every rule that matches.
    """

    stops: Answer | None
    also: Answer | None
    partly: tuple[Answer, ...]
    looks: bool
    may_look: bool
    hits: frozenset[str]

    def wrong(self, verdict: int, rule: str) -> str:
        """What is wrong with an image's verdict and the id of its rule ("" of a default), or ""."""
        if verdict in (KILL, DENY):
            whole = [one for one in (self.stops, self.also) if one]
            fits = [one for one in (*whole, *self.partly) if one.verdict == verdict]
            if not fits:
                return f"it stops ({verdict}, {rule!r}) what {self.stops or 'nothing'} stops"
            named = [one.rule for one in fits]
            return (
                "" if rule in named else f"it names {rule!r}, not {' or '.join(map(repr, named))}"
            )
        if self.also:
            return f"it does not stop what {self.also} stops"
        if self.looks and verdict != LOOK:
            return "it is silent about what the engine has to answer"
        if verdict == LOOK and not (self.looks or self.may_look):
            return "it asks the engine for nothing"
        return ""


class Comparison:
    """A ruleset, which of its rules the kernel has, and its reference matchers."""

    def __init__(self, ruleset: Ruleset, lowered: frozenset[str]) -> None:
        self._ruleset, self._lowered = ruleset, lowered
        self._references: dict[tuple[str, str | None], Reachable] = {}
        self._partly = {
            kind for rule in ruleset.rules if rule.id not in lowered for kind in rule.on
        }
        self._loosely = any(
            rule.action == "allow" and rule.id not in lowered for rule in ruleset.rules
        )

    def expected(self, event: Event, actor: Actor) -> Expected:
        """The strictest of what each agent's rules and defaults say, by every name of the file; of
        equals the canonical one's.
        """
        found = self._by_name(event, actor, None)
        if "path" in event.unresolved or not isinstance(event, Exec | Open):
            return found
        for name in filter(None, (event.view, event.known)):
            other = self._by_name(event, actor, name)
            found = Expected(
                stops=_stricter(found.stops, other.stops),
                also=_stricter(found.also, other.also),
                partly=found.partly + other.partly,
                looks=found.looks or other.looks,
                may_look=found.may_look,
                hits=found.hits | other.hits,
            )
        return found

    def _by_name(self, event: Event, actor: Actor, name: str | None) -> Expected:
        """By the canonical name (None), or another: then no default is asked."""
        kinds = kinds_of(event)
        whole: list[Answer] = []
        partly: list[Answer] = []
        hits: dict[str, Rule] = {}
        for agent in actor.agents or ("",):
            reference = self._reference(agent, actor.project)
            found = reference.hits(kinds, event, actor, name)
            hits |= {rule.id: rule for rule in found}
            for answer in self._answers(reference, kinds, found, event, name is None):
                of_kernel = not answer.rule or answer.rule in self._lowered
                (whole if of_kernel else partly).append(answer)
        stops = sorted(one for one in whole if one.verdict in (KILL, DENY))
        certain = [one for one in stops if one.rule or not self._loosely]
        return Expected(
            stops=stops[0] if stops else None,
            also=certain[0] if certain else None,
            partly=tuple(one for one in partly if not certain or one < certain[0]),
            looks=any(one.verdict for one in (*whole, *partly)),
            may_look=bool(self._partly & set(kinds)),
            hits=frozenset(hits),
        )

    def below(self, event: Open, actor: Actor) -> Expected:
        """Of what is below the directory which an event names."""
        hits = {
            rule.id: rule
            for agent in actor.agents or ("",)
            for rule in self._reference(agent, actor.project).below(event, actor)
        }
        answers = list(self._of_rules(hits.values(), event))
        stops = sorted(
            one for one in answers if one.verdict in (KILL, DENY) and one.rule in self._lowered
        )
        # Rules on connections, which may be prevented, stand behind those of other kinds.
        mixed = any("connect" in hits[one.rule].on for one in stops)
        return Expected(
            stops=stops[0] if stops else None,
            also=stops[0] if stops else None,
            partly=tuple(one for one in answers if mixed or one.rule not in self._lowered),
            looks=False,
            may_look=True,
            hits=frozenset(hits),
        )

    def _of_rules(self, hits: Iterable[Rule], event: Event) -> Iterator[Answer]:
        for rule in hits:
            rank = -ACTIONS.index(rule.action), -SEVERITIES.index(rule.severity)
            yield Answer(rank, rule.id, verdict_of(answer_of(rule), rule.action, event))

    def _answers(
        self,
        reference: Reference,
        kinds: Sequence[str],
        hits: Sequence[Rule],
        event: Event,
        defaults: bool,
    ) -> Iterator[Answer]:
        yield from self._of_rules(hits, event)
        default = reference.default(kinds, hits) if defaults else None
        if default is not None:
            answer = levels.response(default.action, WITHOUT_HOOK, MODE)
            rank = -ACTIONS.index(default.action), 1
            yield Answer(rank, "", verdict_of(answer, default.action, event))

    def _reference(self, agent: str, project: str | None) -> Reachable:
        known = self._references.get((agent, project))
        if known is None:
            known = self._references[agent, project] = Reachable(self._ruleset, agent, project)
        return known


def _stricter(one: Answer | None, other: Answer | None) -> Answer | None:
    """The first of equals."""
    if one is None or other is None:
        return one or other
    return other if other.verdict < one.verdict else one


def answer_of(rule: Rule) -> str:
    """What is done about a rule that holds, where nothing can be prevented."""
    return levels.response(rule.action, rule.without_hook or WITHOUT_HOOK, rule.mode or MODE)


def verdict_of(answer: str, action: str, event: Event) -> int:
    """What the kernel does, where connects over IP by TCP and UDP can be prevented."""
    ip = isinstance(event, Connect) and event.family in (2, 10) and event.protocol in ("tcp", "udp")
    if answer == "kill" and action == "deny" and ip:
        return DENY
    return {"none": NOTHING, "alert": LOOK, "kill": KILL}[answer]
