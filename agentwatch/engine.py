"""The decision: what the rules say about an event, and what is done about it.

A pure function of the event, its actor, the policy and what its memory holds of earlier events: no
clock, no I/O. kill > deny > alert > allow; `unless` carves exceptions out of its own rule; allow
only makes holes in a default; what could not be read matches what restricts and nothing else.

A process that several agents' rules apply to is judged once as each of them alone, with that
agent's rules, defaults and `$own`, and the strictest answer stands. So an agent that starts
another, or something named like one, keeps everything that restricted it.
"""

from __future__ import annotations

import copy
import errno
import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from agentwatch import abi, decoding
from agentwatch.events import Change, Connect, Event, Exec, Mount, Open
from agentwatch.lineage import Actor
from agentwatch.policy import levels, patterns
from agentwatch.policy.compiler import Compiled, Decided
from agentwatch.policy.index import PatternIndex
from agentwatch.policy.lowering import Facts, Policy, Shared
from agentwatch.policy.memory import Memory
from agentwatch.policy.readers import FIELDS, by_other_name, kinds_of, views
from agentwatch.policy.subjects import AgentBits
from agentwatch.policy.table import LoweredRule, Masks, carved, failed
from agentwatch.rules.model import ACTIONS, ALL, MODES, Condition, Rule, Ruleset

_POLICIES_REMEMBERED = 64
_RECORDS = {
    "exec": (abi.EXEC,),
    "read": (abi.OPEN,),
    "change": (abi.OPEN, abi.CHANGE),
    "open": (abi.OPEN,),
    "connect": (abi.CONNECT, abi.SYN),
    "mount": (abi.MOUNT,),
}
_DEFAULT_BECAUSE = {
    "exec": "No rule allows {agent} to run this program.",
    "read": "No rule allows {agent} to read this file.",
    "change": "No rule allows {agent} to change this file.",
    "open": "No rule allows {agent} to open this file.",
    "connect": "No rule allows {agent} to connect there.",
    "listen": "No rule allows {agent} to take connections there.",
    "mount": "No rule allows {agent} to mount there.",
    "ptrace": "No rule allows {agent} to trace this process.",
    "signal": "No rule allows {agent} to send this process a signal.",
}
_RESPONSES = ("none", "alert", "kill")  # the strictest last


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
    with the hooks there are: none | alert | kill | deny. rule: the one that won; None when a
    default did (`default`) or nothing. level: one of levels.LEVELS, "" with response none. mode:
    observe | enforce, the rule's own or the engine's; "" without a verdict. scope: process |
    session, what a kill ends. done: the kernel has done it already.
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
    mode: str = ""
    scope: str = "process"
    done: bool = False


NO_VERDICT = Verdict()
UNKNOWN = "unknown"  # in place of a rule's id, where its policy is not known any more


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What became of one rule. outcome: matched | failed | carved | counting | paused |
    other-agent.

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

    mode: observe (nothing is worse than an alert) | enforce; a rule's own mode comes first.
    generation: of the ruleset, for records. without_hook: how a deny is answered where it cannot
    be prevented, unless its rule says so itself. memory: of the engine before this one, when rules
    are reloaded. compiled: the same rules as the kernel has them, None where it has none (refused:
    why); bits: what agents are there; paused: rules that did not act when it was compiled. Raises
    AgentwatchError for a rule it could not judge faithfully.
    """

    def __init__(
        self,
        ruleset: Ruleset,
        *,
        mode: str = "enforce",
        generation: int = 0,
        without_hook: str = "kill",
        memory: Memory | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {MODES}")
        self.ruleset = ruleset
        self.mode = mode
        self.generation = generation
        self.memory = memory or Memory()
        self.compiled: Compiled | None = None
        self.bits = AgentBits()
        self.paused: frozenset[str] = frozenset()
        self.refused = ""
        self.without_hook = without_hook
        self._identity_agents = tuple(a.id for a in ruleset.agents for _ in a.exec)
        self._rules = {rule.id: rule for rule in ruleset.rules}
        self._responses = {rule.id: self._response(rule) for rule in ruleset.rules}
        asked = {condition.field for condition in _conditions(ruleset)}
        self.follows_writes = "written_by_agent" in asked
        self._projects = any("$project" in text for c in _conditions(ruleset) for text in c.values)
        self._shared = Shared(ruleset, Facts(self._identity, self._was_written))
        self._policy = functools.lru_cache(_POLICIES_REMEMBERED)(self._lower)
        self.kinds = self._records(acting=False)
        self.acting_kinds = self._records(acting=True)

    def judge(self, event: Event, actor: Actor) -> Verdict:
        """The verdict on an event. Whether its tag is confirmed is the caller's to know.

        Each event is judged once: rules with `count` count it.
        """
        self.saw(event)
        return self._judge(event, actor, {})

    def saw(self, event: Event) -> None:
        """Remembers what later events are asked of this one, which needs no judging."""
        if not self.follows_writes:
            return
        if isinstance(event, Open) and event.changes:
            self.memory.wrote(event.session, event.path)
        elif isinstance(event, Change) and event.result >= 0 and event.op in ("rename", "link"):
            names = (event.path, *event.others)
            if any(self.memory.has_written(event.session, name) for name in names if name):
                self.memory.wrote(event.session, event.new_path)

    def of_kernel(self, event: Event, rules: Sequence[Decided] | None = None) -> Verdict:
        """What the kernel has done about an event by this engine's policy, in the rules' words.

        NO_VERDICT where it did nothing but show us the event. rules: of the policy that decided it,
        where that is another one than this engine's.
        """
        if rules is None and self.compiled is not None:
            rules = self.compiled.rules
        if rules is None or not 0 < event.rule <= len(rules):
            return by_unknown(event)
        if not _is_done(event):
            return NO_VERDICT
        decided = rules[event.rule - 1]
        rule = self._rules.get(decided.rule) if decided.rule else None
        if decided.rule and rule is None:
            return by_unknown(event)
        if rule is None:
            agent = "" if decided.agent == ALL else decided.agent
            found = self._by_default(agent, decided.kind, decided.action, ())
        else:
            found = self._by_rule(rule, (rule,), ())
        return _as_done(found, event, rule)

    def again(self, generation: int) -> Engine:
        """The same rules as another generation, to be compiled anew."""
        engine = copy.copy(self)
        engine.generation, engine.compiled = generation, None
        return engine

    def why_engine(self, rule: str) -> str:
        """Why this engine decides on a rule, a sentence; "" where the kernel does."""
        if self.compiled is None:
            return levels.NO_POLICY
        lowered = self.compiled.lowered[rule]
        return "" if lowered.where == "kernel" else lowered.reason

    def _judge(self, event: Event, actor: Actor, counted: dict[str, bool] | None) -> Verdict:
        """counted: what each rule with `count` said of this event; None: nothing is counted."""
        if not kinds_of(event):
            return NO_VERDICT
        verdict: Verdict | None = None
        for view in views(event):
            for agent in actor.agents or ("",):
                found = self._judge_as(agent, view, actor, counted)
                verdict = found if verdict is None else self._stricter(verdict, found)
        return verdict or NO_VERDICT

    def pause(self, rule: str, until: int) -> None:
        """The rule does not act on events before `until`, ns of CLOCK_BOOTTIME.

        Outlives this engine, as its memory does. Raises ValueError for a rule there is not.
        """
        if rule not in self._rules:
            raise ValueError(f"there is no rule {rule!r}")
        self.memory.pause(rule, until)

    def resume(self, rule: str) -> None:
        """The rule acts again, whether it was paused or not."""
        self.memory.resume(rule)

    def level(self, rule: Rule, host: levels.Host) -> levels.Level:
        """What the rule is worth on a host, in this engine's mode."""
        why = self.why_engine(rule.id)
        return levels.level(rule, host, self.mode, self.without_hook, why)

    @functools.cached_property
    def _identities(self) -> PatternIndex:
        globs = [glob for agent in self.ruleset.agents for glob in agent.exec]
        return PatternIndex([patterns.expression(g, patterns.PATH) for g in globs], patterns.PATH)

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
        """The verdict, and what became of every rule of the event's kinds. Nothing is counted."""
        kinds = kinds_of(event)
        agents = (actor.agents or ("",)) if kinds else ()
        traces = [
            trace
            for view in views(event)
            for agent in agents
            for trace in self._traces(agent, view, actor)
        ]
        return Explanation(kinds, self._judge(event, actor, None), tuple(dict.fromkeys(traces)))

    def _lower(self, agent: str, project: str | None) -> Policy:
        return Policy(self._shared, agent, project)

    def _policy_of(self, agent: str, actor: Actor) -> Policy:
        return self._policy(agent, actor.project if self._projects else None)

    def _identity(self, event: Exec) -> str | None:
        return self.identify(names_of(event))

    def _was_written(self, event: Exec) -> bool:
        return self.memory.has_written(event.session, event.path)

    def _judge_as(
        self, agent: str, event: Event, actor: Actor, counted: dict[str, bool] | None
    ) -> Verdict:
        kinds = kinds_of(event)
        policy = self._policy_of(agent, actor)
        hits = policy.hits(kinds, event, actor)
        if hits:
            hits = tuple(hit for hit in hits if self._acts(hit, event, actor, counted))
        default = None if by_other_name(event) else policy.default(kinds, hits)
        if not hits and default is None:
            return NO_VERDICT
        matches = tuple(Hit(rule.id, rule.action, agent) for rule in hits)
        winner = max(hits, key=self._strictness) if hits else None
        if default and (winner is None or self._beats(default[1], winner)):
            return self._by_default(agent, *default, matches)
        assert winner is not None  # there is a default otherwise
        return self._by_rule(winner, hits, matches)

    def _acts(
        self, rule: Rule, event: Event, actor: Actor, counted: dict[str, bool] | None
    ) -> bool:
        """Whether a rule that matched is not paused and, with `count`, this is one too many."""
        if self.memory.paused(rule.id, event.time):
            return False
        if rule.count is None:
            return True
        if counted is None:
            return False
        if rule.id not in counted:
            value = _distinct(rule.count.distinct, event, actor)
            who = event.session, event.process
            counted[rule.id] = self.memory.counted(rule.id, rule.count, *who, event.time, value)
        return counted[rule.id]

    def _response(self, rule: Rule) -> str:
        """What to do when the rule matches: none | alert | kill."""
        without_hook = rule.without_hook or self.without_hook
        return levels.response(rule.action, without_hook, rule.mode or self.mode)

    def _strictness(self, rule: Rule) -> tuple[int, int]:
        """By what is done, then by what is asked: a rule that only observes hides no other."""
        return _RESPONSES.index(self._responses[rule.id]), _rank(rule.action)

    def _beats(self, action: str, rule: Rule) -> bool:
        """Whether a default's action is stricter than a rule that matched."""
        response = levels.response(action, self.without_hook, self.mode)
        return (_RESPONSES.index(response), _rank(action)) > self._strictness(rule)

    def _by_rule(self, rule: Rule, hits: Sequence[Rule], matches: tuple[Hit, ...]) -> Verdict:
        response = self._responses[rule.id]
        session = response == "kill" and any(
            hit.scope == "session" and self._responses[hit.id] == "kill" for hit in hits
        )
        return Verdict(
            action=rule.action,
            response=response,
            rule=rule.id,
            level=levels.name_of(response),
            severity=rule.severity,
            because=rule.because,
            instead=rule.instead,
            matches=matches,
            mode=rule.mode or self.mode,
            scope="session" if session else "process",
        )

    def _by_default(self, agent: str, kind: str, action: str, matches: tuple[Hit, ...]) -> Verdict:
        response = levels.response(action, self.without_hook, self.mode)
        return Verdict(
            action=action,
            response=response,
            level=levels.name_of(response),
            severity="medium",
            because=_DEFAULT_BECAUSE[kind].format(agent=agent or "this session"),
            default=True,
            matches=matches,
            mode=self.mode,
        )

    @staticmethod
    def _stricter(one: Verdict, other: Verdict) -> Verdict:
        """The stricter of two verdicts on one event, the first of equals, with both's matches."""
        winner = other if _severity(other) > _severity(one) else one
        matches = tuple(dict.fromkeys(one.matches + other.matches))
        scope = "session" if "session" in (one.scope, other.scope) else "process"
        if (winner.matches, winner.scope) == (matches, scope):
            return winner
        return replace(winner, matches=matches, scope=scope)

    def _traces(self, agent: str, event: Event, actor: Actor) -> list[RuleTrace]:
        kinds = kinds_of(event)
        policy = self._policy_of(agent, actor)
        masks = Masks(policy.fields, event, actor)
        traces = [
            self._trace(lowered, agent, event, masks) for lowered in policy.tables[kinds].rules
        ]
        for rule in self.ruleset.rules:
            if set(rule.on) & set(kinds) and rule.agents and agent not in rule.agents:
                traces.append(RuleTrace(rule, agent, "other-agent"))
        return traces

    def _trace(self, lowered: LoweredRule, agent: str, event: Event, masks: Masks) -> RuleTrace:
        rule = lowered.rule
        test = failed(lowered, masks)
        if test is not None:
            return RuleTrace(rule, agent, "failed", test.condition)
        unless = carved(lowered, masks)
        if unless is not None:
            return RuleTrace(rule, agent, "carved", unless=unless)
        if self.memory.paused(rule.id, event.time):
            return RuleTrace(rule, agent, "paused")
        return RuleTrace(rule, agent, "matched" if rule.count is None else "counting")

    def _records(self, acting: bool) -> frozenset[int]:
        """The record kinds that a rule or default judges; with acting: one that can kill."""
        host = self.without_hook
        judged = [(self._responses[r.id], kind) for r in self.ruleset.rules for kind in r.on]
        judged += [
            (levels.response(d.action, host, self.mode), d.kind) for d in self.ruleset.defaults
        ]
        found = {
            record
            for response, kind in judged
            for record in _RECORDS.get(kind, ())
            if not acting or response == "kill"
        }
        if self.follows_writes and not acting:
            found |= {abi.OPEN, abi.CHANGE}
        return frozenset(found)


def _distinct(field: str, event: Event, actor: Actor) -> Hashable:
    """What `count` tells apart; one that could not be read is like no other."""
    values = FIELDS[field].read(event, actor) if field else ()
    return (event.time, event.cpu, event.sequence) if values is None else values


def by_unknown(event: Event) -> Verdict:
    """What the kernel has done by a policy that nobody has any more; NO_VERDICT for nothing."""
    if not _is_done(event):
        return NO_VERDICT
    answer = "deny" if event.verdict == abi.VERDICT_DENY else "kill"
    because = "A policy that was replaced since decided it; which rule is not known any more."
    found = Verdict(answer, rule=UNKNOWN, severity="medium", because=because, mode="enforce")
    return _as_done(found, event, None)


def _is_done(event: Event) -> bool:
    """Whether the kernel has acted on an event that it has judged."""
    if event.verdict == abi.VERDICT_KILL:
        return True
    # What is denied where it has happened already is the engine's to answer.
    return event.verdict == abi.VERDICT_DENY and _is_refused(event)


def _is_refused(event: Event) -> bool:
    by_cgroup = isinstance(event, Connect) and event.result == -errno.EPERM
    return event.refused or by_cgroup


def _as_done(found: Verdict, event: Event, rule: Rule | None) -> Verdict:
    answer = "deny" if event.verdict == abi.VERDICT_DENY else "kill"
    level = levels.of_kernel(_kind_judged(event, rule), _is_refused(event))
    shared = isinstance(event, Open) and event.shared  # then the kernel ends all of the session
    scope = "session" if shared else found.scope
    return replace(found, response=answer, level=level, scope=scope, done=True)


def _kind_judged(event: Event, rule: Rule | None) -> str:
    """The kind of event that a verdict of the kernel is about: what came of it is the worst."""
    if isinstance(event, Change | Mount):
        return "change" if isinstance(event, Change) else "mount"
    if isinstance(event, Open):
        changes = event.changes and (rule is None or not {"change", "open"}.isdisjoint(rule.on))
        return "change" if changes else "read"
    return "exec" if isinstance(event, Exec) else "connect"


def names_of(event: Exec) -> tuple[str, ...]:
    """The names an identity is looked for under: as asked, made absolute; resolved; the script."""
    asked = decoding.absolute(event.asked, event.cwd)
    return tuple(dict.fromkeys(name for name in (asked, event.path, event.script) if name))


def _rank(action: str) -> int:
    return ACTIONS.index(action) if action in ACTIONS else -1


def _severity(verdict: Verdict) -> tuple[int, int]:
    return _RESPONSES.index(verdict.response), _rank(verdict.action)


def _conditions(ruleset: Ruleset) -> list[Condition]:
    """Every condition of every rule."""
    return [
        condition
        for rule in ruleset.rules
        for match in (rule.match, *(match for _, match in rule.unless))
        for condition in match.conditions
    ]
