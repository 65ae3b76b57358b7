"""What is let in: rule files that are well written, pass their own tests and hold on this host.

Programs load rules here. The language itself (agentwatch.rules) knows no engine and no host; this
module brings the three together, so that a ruleset is never in force whose tests fail or whose
rules ask for a hook that is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.compiling import compile_here
from agentwatch.engine import Engine, RuleTrace, Verdict
from agentwatch.errors import AgentwatchError, Diagnostic, RuleErrors
from agentwatch.events import Event
from agentwatch.kernel.probes import Sizes
from agentwatch.lineage import Actor
from agentwatch.policy import levels, patterns
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.image import KILL, LOOK, Decision, Image
from agentwatch.policy.subjects import subject_of
from agentwatch.rules import sample
from agentwatch.rules.diagnostics import TooMany
from agentwatch.rules.homes import TRIAL_HOMES, TRIAL_PROJECT, at_home
from agentwatch.rules.homes import homes as homes_here
from agentwatch.rules.load import Loaded, read_rules
from agentwatch.rules.model import Condition, Default, Rule, Ruleset, Trial

_TRIED_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test gave for one kind. got: hit | miss, or the verdict's action. why: it failed.

    kernel: how the kernel's tables disagree with the engine, "" where they do not.
    """

    rule: Rule
    trial: Trial
    kind: str
    got: str
    why: str = ""
    kernel: str = ""

    @property
    def expected(self) -> str:
        return self.trial.verdict or self.trial.expect

    @property
    def passed(self) -> bool:
        return self.got == self.expected and not self.kernel


@dataclass(frozen=True, slots=True)
class Admitted:
    """A load that may be put in force. ruleset: `~` written out. warnings: of the files.
    background: files that were read only because the others name what they define. loaded: as
    they were read, for `try_out`.
    """

    ruleset: Ruleset
    warnings: tuple[Diagnostic, ...] = ()
    background: tuple[str, ...] = ()
    loaded: Loaded | None = None

    def is_named(self, one: Rule | Default) -> bool:
        """Whether it stands in a file that was named, or is overridden there."""
        overridden = isinstance(one, Rule) and one.overridden is not None
        return overridden or one.place.file not in self.background


def load(
    paths: Sequence[Path],
    *,
    homes: Sequence[str] | None = None,
    host: levels.Host | None = None,
    without_hook: str = "kill",
) -> Ruleset:
    """The ruleset of these files, tested. homes: for `~`, this host's without. See admit."""
    return admit(paths, homes=homes, host=host, without_hook=without_hook).ruleset


def admit(
    paths: Sequence[Path],
    *,
    homes: Sequence[str] | None = None,
    host: levels.Host | None = None,
    without_hook: str = "kill",
    tested: bool = True,
    background: Sequence[Path] = (),
) -> Admitted:
    """Reads, tests and weighs rules. host: which hooks there are; without it, none that prevent.
    without_hook: for rules that say nothing themselves, as the engine will be told. tested: with
    False, somebody calls `try_out` afterwards. background: see rules.load; never for rules that
    are to be in force.

    Raises RuleErrors with everything that is wrong in any file.
    """
    loaded = read_rules(paths, patterns, background)
    with suppress(TooMany):
        _weigh(loaded, host or levels.Host(), without_hook)
        if tested:
            _try(loaded)
    if loaded.report.errors_found:
        raise RuleErrors(loaded.report.all)
    ruleset = at_home(loaded.ruleset, homes_here() if homes is None else homes)
    return Admitted(ruleset, loaded.warnings, loaded.background, loaded)


def try_out(admitted: Admitted) -> None:
    """The tests of rules that were admitted without. Raises RuleErrors where some fail."""
    assert admitted.loaded is not None
    with suppress(TooMany):
        _try(admitted.loaded)
    if admitted.loaded.report.errors_found:
        raise RuleErrors(admitted.loaded.report.all)


def _try(loaded: Loaded) -> None:
    for outcome in run_trials(loaded, tables=False):
        if not outcome.passed:
            loaded.report.error("AW401", outcome.trial.place, message(outcome))


def _weigh(loaded: Loaded, host: levels.Host, without_hook: str) -> None:
    """Reports rules that do not hold on this host."""
    report = loaded.report
    closed = {default.kind for default in loaded.ruleset.defaults}
    closed |= {"read", "change"} if "open" in closed else set()
    insisting = _insisting(loaded.ruleset, host, without_hook)
    for rule in loaded.ruleset.rules:
        engine = insisting.get(rule.id, "")
        reason = levels.refusal(rule, host, without_hook, engine)
        if reason:
            report.error("AW310", rule.place, reason)
        level = levels.level(rule, host)
        if rule.action == "allow" and level.name == "none" and closed & set(rule.on):
            text = f"this makes no hole in the default, which stays closed. {level.reason}"
            report.warning("AW505", rule.place, text)
        for name, match in rule.unless if level.name != "none" else ():
            unseen = levels.unseen(match, rule.on)
            if unseen:
                text = f'the exception "{name}" spares nothing here. {unseen}'
                report.warning("AW505", rule.place, text)


def _insisting(ruleset: Ruleset, host: levels.Host, without_hook: str) -> Mapping[str, str]:
    """The rules that want to be prevented where that may be: why the engine decides them, or ""."""
    rules = tuple(rule for rule in ruleset.rules if levels.insists(rule, host, without_hook))
    if not rules:
        return {}
    asked = dataclasses.replace(ruleset, rules=rules, defaults=())
    found = compile_here(asked, host, room=Sizes().policy).lowered
    return {name: "" if one.where == "kernel" else one.reason for name, one in found.items()}


def run_trials(loaded: Loaded, tables: bool = True) -> tuple[Outcome, ...]:
    """Every test of every rule: hit and miss of the rule as written, verdict of all rules.

    tables: the kernel's tables are asked as well, which takes longer than all the rest. A load does
    without: whether our compiler is right is no question to the rules.
    """
    whole = at_home(loaded.ruleset, TRIAL_HOMES)
    # One event is never too many: what a count counts is what its rule's tests are about.
    written = tuple(dataclasses.replace(rule, count=None) for rule in loaded.written)
    all_of_them: _Judge | None = None
    found: list[Outcome] = []
    # Whether a rule matches does not depend on those beside it: a few at a time are the fastest.
    for start in range(0, len(written), _TRIED_TOGETHER):
        rules = written[start : start + _TRIED_TOGETHER]
        few: _Judge | None = None
        for rule in rules:
            for trial in rule.trials:
                if trial.expect == "verdict":
                    all_of_them = all_of_them or _Judge(whole, tables)
                    found += _outcomes(rule, trial, all_of_them)
                else:
                    few = few or _Judge(Ruleset(rules, whole.agents, homes=TRIAL_HOMES), tables)
                    found += _outcomes(rule, trial, few)
    return tuple(found)


def message(outcome: Outcome) -> str:
    """What a failed test has to say, in one line."""
    expected, got = outcome.expected, outcome.got
    if outcome.kernel:
        return f"the test of {outcome.rule.id} fails for {outcome.kind}: {outcome.kernel}"
    return (
        f"the test of {outcome.rule.id} fails for {outcome.kind}: "
        f"expected {expected}, got {got}{outcome.why}"
    )


class _Judge:
    """Rules as the engine has them and, with `tables`, the kernel: both must say the same."""

    def __init__(self, ruleset: Ruleset, tables: bool) -> None:
        self.engine = Engine(ruleset)
        self._compiled: Compiled | None = None
        if not tables:
            return
        # What cannot be compiled is not in the kernel, where nothing can disagree.
        with suppress(AgentwatchError):
            self._compiled = compile_here(ruleset, levels.Host(), room=Sizes().policy)
            self._image = Image(self._compiled.image)

    def disagreement(self, made: sample.Sample, verdict: Verdict) -> str:
        """How the kernel's tables decide otherwise than the engine, or ""."""
        if self._compiled is None:
            return ""
        found = decided(self._compiled, self._image, made.event, made.actor)
        if found is None:
            return ""
        lowered = self._compiled.lowered.get(verdict.rule or "")
        sure = lowered is not None and lowered.where == "kernel"
        fits = {"kill": (KILL,) if sure else (KILL, LOOK), "alert": (LOOK,)}
        if found.verdict in fits.get(verdict.response, (0, LOOK)):
            return ""
        what = {0: "nothing", KILL: "kill", LOOK: "look"}.get(found.verdict, "deny")
        return f"the kernel's tables say {what}, the engine {verdict.response}; report it"


def decided(compiled: Compiled, image: Image, event: Event, actor: Actor) -> Decision | None:
    """What the kernel would say of an event; None of one it does not see."""
    subject = subject_of(event, actor, compiled.agents, image.predicates_for(actor))
    return None if subject is None else image.decide(subject)


def _outcomes(rule: Rule, trial: Trial, judge: _Judge) -> list[Outcome]:
    """The trial's outcome for each kind: the first event that disappoints, else the last."""
    found = []
    for kind in trial.on or rule.on:
        for made in sample.samples(kind, dict(trial.fields), rule.agents[:1], TRIAL_PROJECT):
            outcome = _outcome(rule, trial, judge, made)
            if not outcome.passed:
                break
        found.append(outcome)
    return found


def _outcome(rule: Rule, trial: Trial, judge: _Judge, made: sample.Sample) -> Outcome:
    engine = judge.engine
    for earlier in made.before:
        engine.judge(earlier, made.actor)
    found = _judged(rule, trial, judge, made)
    engine.memory.forget(made.event.session)  # the next test begins anew
    return found


def _judged(rule: Rule, trial: Trial, judge: _Judge, made: sample.Sample) -> Outcome:
    engine = judge.engine
    verdict = engine.judge(made.event, made.actor)
    kernel = judge.disagreement(made, verdict)
    if trial.expect == "verdict":
        by = f" by {verdict.rule}" if verdict.rule else " by default" if verdict.default else ""
        why = "" if verdict.action == trial.verdict else by
        return Outcome(rule, trial, made.kind, verdict.action, why, kernel)
    got = "hit" if any(hit.rule == rule.id for hit in verdict.matches) else "miss"
    traces = engine.explain(made.event, made.actor).rules if got != trial.expect else ()
    why = "".join(f"; {reason(trace)}" for trace in traces if trace.rule.id == rule.id)
    if got == "hit" and why:
        why += _not_carved(rule)
    return Outcome(rule, trial, made.kind, got, why, kernel)


def _not_carved(rule: Rule) -> str:
    """A hint at the exception that was probably meant to hold, or ""."""
    for name, match in rule.unless:
        for condition in match.conditions:
            if hint := _row_of_tokens(condition):
                return f'; of the exception "{name}": {condition.field}{hint}'
    return ""


def _row_of_tokens(condition: Condition) -> str:
    """What is easily overlooked about a list of arguments, or ""."""
    several = condition.sequence and len(condition.values) > 1
    return " (a list is one row of tokens; for some one of them, |has)" if several else ""


def reason(trace: RuleTrace) -> str:
    """What became of a rule, in words: why it did not match, or that it did."""
    if trace.failed is not None:
        name = condition_name(trace.failed.field, trace.failed.modifiers)
        return f"{name} does not match{_row_of_tokens(trace.failed)}"
    if trace.unless is not None:
        return f'the exception "{trace.unless}" carves it out'
    if trace.outcome == "counting":
        return "it matches, and counts"
    if trace.outcome == "paused":
        return "it matches, and is paused"
    if trace.outcome == "other-agent":
        return f"it is for {', '.join(trace.rule.agents)}"
    return "it matches"


def condition_name(field: str, modifiers: frozenset[str]) -> str:
    """A condition's key as rules write it: `args|has`."""
    return "|".join((field, *sorted(modifiers, key=lambda word: (word != "has", word))))
