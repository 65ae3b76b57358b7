"""The decision: what the rules say about an event, and what is done about it.

A pure function of the event, its actor and the policy: no clock, no I/O, no memory but of answers
already given. kill > deny > alert > allow; `unless` carves exceptions out of its own rule; allow
only makes holes in a default; what could not be read matches what restricts and nothing else.

A process that several agents' rules apply to is judged once as each of them alone, with that
agent's rules, defaults and `$own`, and the strictest answer stands. So an agent that starts
another, or something named like one, keeps everything that restricted it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentwatch import abi
from agentwatch.events import Event, Exec
from agentwatch.lineage import Actor
from agentwatch.policy import levels, patterns
from agentwatch.policy.index import PatternIndex
from agentwatch.policy.lowering import Policy
from agentwatch.policy.readers import kinds_of
from agentwatch.policy.table import Masks, carved, failed
from agentwatch.rules.model import ACTIONS, Condition, Rule, Ruleset

MODES = ("observe", "enforce")
_POLICIES_REMEMBERED = 64
_RECORDS = {
    "exec": (abi.EXEC,),
    "read": (abi.OPEN,),
    "change": (abi.OPEN,),
    "open": (abi.OPEN,),
    "connect": (abi.CONNECT, abi.SYN),
}
_DEFAULT_BECAUSE = {
    "exec": "No rule allows {agent} to run this program.",
    "read": "No rule allows {agent} to read this file.",
    "change": "No rule allows {agent} to change this file.",
    "open": "No rule allows {agent} to open this file.",
    "connect": "No rule allows {agent} to connect there.",
}


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched, the winner or not. agent: as whom; "" in a session of none."""

    rule: str
    action: str
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say about an event.

    action: none | allow | alert | deny | kill. response: what to do here and now, in this mode and
    with the hooks there are: none | alert | kill. rule: the one that won; None when a default did
    (`default`) or nothing. level: kills-after | detects, "" with response none.
    """

    action: str = "none"
    response: str = "none"
    rule: str | None = None
    level: str = ""
    severity: str = ""
    because: str = ""
    instead: str = ""
    default: bool = False
    matches: tuple[Hit, ...] = ()


NO_VERDICT = Verdict()


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What became of one rule. outcome: matched | failed | carved | other-agent.

    failed: the first condition that did not hold. unless: the exception that did.
    """

    rule: Rule
    agent: str
    outcome: str
    failed: Condition | None = None
    unless: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a verdict came about: every rule of the event's kinds, once for each agent."""

    kinds: tuple[str, ...]
    verdict: Verdict
    rules: tuple[RuleTrace, ...]


class Engine:
    """Judges events by a validated ruleset.

    mode: observe (nothing is worse than an alert) | enforce. generation: of the ruleset, for
    records. without_hook: how a default's deny is answered where it cannot be prevented. Raises
    AgentwatchError for a rule it could not judge faithfully.
    """

    def __init__(
        self,
        ruleset: Ruleset,
        *,
        mode: str = "enforce",
        generation: int = 0,
        without_hook: str = "kill",
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.ruleset = ruleset
        self.mode = mode
        self.generation = generation
        self._without_hook = without_hook
        globs = [(agent.id, glob) for agent in ruleset.agents for glob in agent.exec]
        self._identities = PatternIndex(
            [patterns.expression(glob, patterns.PATH) for _, glob in globs], patterns.PATH
        )
        self._identity_agents = tuple(agent for agent, _ in globs)
        self._projects = any("$project" in text for text in _texts(ruleset))
        self._policy = functools.lru_cache(_POLICIES_REMEMBERED)(self._lower)
        self.kinds = self._records(acting=False)
        self.acting_kinds = self._records(acting=True)
        everything = tuple(replace(rule, agents=()) for rule in ruleset.rules)
        self._lower("", None, replace(ruleset, rules=everything))  # fails now, not at an event

    def judge(self, event: Event, actor: Actor) -> Verdict:
        """The verdict on an event. Whether its tag is confirmed is the caller's to know."""
        kinds = kinds_of(event)
        if not kinds:
            return NO_VERDICT
        agents = actor.agents or ("",)
        verdict = self._judge_as(agents[0], kinds, event, actor)
        for agent in agents[1:]:
            verdict = _stricter(verdict, self._judge_as(agent, kinds, event, actor))
        return verdict

    def identify(self, names: Sequence[str]) -> str | None:
        """The agent whose identity covers one of these names, the first in the files; or None."""
        found = 0
        for name in names:
            found |= self._identities.bits(name) if name else 0
        return self._identity_agents[(found & -found).bit_length() - 1] if found else None

    def literals(self) -> tuple[bytes, ...]:
        """A component that must be in a name for an identity to cover it, of each identity glob.

        At most 63 bytes each. Raises PatternError for a glob that has none, which loading refuses.
        """
        found: dict[bytes, None] = {}
        for agent in self.ruleset.agents:
            for glob in agent.exec:
                literals = patterns.literal_component(glob)
                if literals is None:
                    raise patterns.PatternError(f"`{glob}` has no component to know {agent.id} by")
                found |= dict.fromkeys(literals)
        return tuple(found)

    def explain(self, event: Event, actor: Actor) -> Explanation:
        """The verdict, and what became of every rule of the event's kinds."""
        kinds = kinds_of(event)
        agents = (actor.agents or ("",)) if kinds else ()
        traces = [trace for agent in agents for trace in self._traces(agent, kinds, event, actor)]
        return Explanation(kinds, self.judge(event, actor), tuple(traces))

    def _lower(self, agent: str, project: str | None, ruleset: Ruleset | None = None) -> Policy:
        identify = self.identify
        return Policy(
            ruleset or self.ruleset, agent, project, lambda event: identify(names_of(event))
        )

    def _policy_of(self, agent: str, actor: Actor) -> Policy:
        return self._policy(agent, actor.project if self._projects else None)

    def _judge_as(self, agent: str, kinds: tuple[str, ...], event: Event, actor: Actor) -> Verdict:
        policy = self._policy_of(agent, actor)
        hits = policy.hits(kinds, event, actor)
        default = policy.default(kinds, hits)
        if not hits and default is None:
            return NO_VERDICT
        matches = tuple(Hit(rule.id, rule.action, agent) for rule in hits)
        if default and (not hits or _rank(default[1]) > _rank(hits[0].action)):
            return self._by_default(agent, *default, matches)
        return self._by_rule(hits[0], matches)

    def _by_rule(self, rule: Rule, matches: tuple[Hit, ...]) -> Verdict:
        response = levels.response(rule.action, rule.without_hook, self.mode)
        return Verdict(
            action=rule.action,
            response=response,
            rule=rule.id,
            level=levels.name_of(response),
            severity=rule.severity,
            because=rule.because,
            instead=rule.instead,
            matches=matches,
        )

    def _by_default(self, agent: str, kind: str, action: str, matches: tuple[Hit, ...]) -> Verdict:
        response = levels.response(action, self._without_hook, self.mode)
        return Verdict(
            action=action,
            response=response,
            level=levels.name_of(response),
            severity="medium",
            because=_DEFAULT_BECAUSE[kind].format(agent=agent),
            default=True,
            matches=matches,
        )

    def _traces(
        self, agent: str, kinds: tuple[str, ...], event: Event, actor: Actor
    ) -> list[RuleTrace]:
        policy = self._policy_of(agent, actor)
        masks = Masks(policy.fields, event, actor)
        traces = []
        for lowered in policy.tables[kinds].rules:
            test = failed(lowered, masks)
            unless = None if test else carved(lowered, masks)
            outcome = "failed" if test else "carved" if unless is not None else "matched"
            condition = test.condition if test else None
            traces.append(RuleTrace(lowered.rule, agent, outcome, condition, unless))
        for rule in self.ruleset.rules:
            if set(rule.on) & set(kinds) and rule.agents and agent not in rule.agents:
                traces.append(RuleTrace(rule, agent, "other-agent"))
        return traces

    def _records(self, acting: bool) -> frozenset[int]:
        """The record kinds that a rule or default judges; with acting: one that can kill."""
        rules = self.ruleset.rules
        judged = [(rule.action, rule.without_hook, kind) for rule in rules for kind in rule.on]
        judged += [(d.action, self._without_hook, d.kind) for d in self.ruleset.defaults]
        return frozenset(
            record
            for action, without_hook, kind in judged
            for record in _RECORDS.get(kind, ())
            if not acting or levels.response(action, without_hook, self.mode) == "kill"
        )


def names_of(event: Exec) -> tuple[str, ...]:
    """The names an identity is looked for under: as asked, made absolute; resolved; the script."""
    asked = abi.absolute(event.asked, event.cwd)
    return tuple(dict.fromkeys(name for name in (asked, event.path, event.script) if name))


def _rank(action: str) -> int:
    return ACTIONS.index(action) if action in ACTIONS else -1


def _stricter(one: Verdict, other: Verdict) -> Verdict:
    """The stricter of two verdicts on one event, the first of equals, with the matches of both."""
    winner = other if _rank(other.action) > _rank(one.action) else one
    matches = one.matches + other.matches
    if winner.matches == matches:
        return winner
    return replace(winner, matches=matches)


def _texts(ruleset: Ruleset) -> list[str]:
    """Every value of every condition."""
    found = []
    for rule in ruleset.rules:
        for match in (rule.match, *(match for _, match in rule.unless)):
            found += [value for condition in match.conditions for value in condition.values]
    return found
