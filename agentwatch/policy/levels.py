"""What a rule is worth on this host: its level, and why, in a sentence for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentwatch.rules import fields
from agentwatch.rules.model import Match, Rule

LEVELS = ("prevents", "kills", "kills-after", "detects", "none")


@dataclass(frozen=True, slots=True)
class Host:
    """Which tiers there are here, as found by trying them.

    lsm: programs on LSM hooks attach. tracing: the tracepoints of the signal tier do. lossy: the
    kernel may skip tracing programs under load.
    """

    lsm: bool = False
    tracing: bool = True
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """One of LEVELS. lossy: it depends on a program the kernel may skip. reason: one sentence."""

    name: str
    lossy: bool = False
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} (lossy)" if self.lossy else self.name


def response(action: str, without_hook: str, mode: str) -> str:
    """What to do here and now about a verdict where nothing can be prevented: none | alert | kill.

    A deny is answered as `without_hook` says; `refuse`, which loading should have refused, kills.
    """
    if action in ("none", "allow"):
        return "none"
    stops = action == "kill" or (action == "deny" and without_hook != "alert")
    return "kill" if stops and mode == "enforce" else "alert"


def level(rule: Rule, host: Host, mode: str = "enforce", without_hook: str = "kill") -> Level:
    """The level of a rule where all rules have this mode and `without_hook` but for their own."""
    mode = rule.mode or mode
    reason = _unseen(rule)
    if reason:
        return Level("none", reason=reason)
    if not host.tracing:
        return Level("none", reason="The probes of this kind cannot be attached here.")
    if rule.action == "allow":
        return Level("detects", host.lossy, "It stops nothing: it makes a hole in a default.")
    if response(rule.action, rule.without_hook or without_hook, mode) == "kill":
        return Level("kills-after", host.lossy, _kill_reason(rule))
    return Level("detects", host.lossy, _alert_reason(rule, mode))


def name_of(answer: str) -> str:
    """The level of one verdict's response; "" where nothing was to be done."""
    return {"kill": "kills-after", "alert": "detects"}.get(answer, "")


def refusal(rule: Rule, host: Host, without_hook: str = "kill") -> str | None:
    """Why a rule that insists on being prevented (`without_hook: refuse`) cannot be loaded here.

    without_hook: what the host says for rules that say nothing themselves.
    """
    if rule.action != "deny" or (rule.without_hook or without_hook) != "refuse":
        return None
    who = (
        f"rule {rule.id} says"
        if rule.without_hook
        else f"for rule {rule.id} this host's setting is"
    )
    return (
        f"{who} `without_hook: refuse`, and {', '.join(rule.on)} cannot be prevented "
        "here: write `without_hook: kill` or `alert`"
    )


def _kill_reason(rule: Rule) -> str:
    reason = "The engine decides and kills the process milliseconds after the effect"
    if rule.count:
        reason = "The engine counts and kills the process milliseconds after the one too many"
    missing = [kind for kind in rule.on if kind in fields.UNPROBED_KINDS]
    if missing:
        return (
            f"{reason}; there is no probe yet for {' or '.join(f'`{kind}`' for kind in missing)}."
        )
    if "change" in rule.on:
        return f"{reason}; changes are seen where files are opened, not renamed or deleted."
    return f"{reason}; nothing can be prevented with the probes there are."


def _alert_reason(rule: Rule, mode: str) -> str:
    if mode != "enforce":
        if rule.mode:
            return "This rule is in observe mode: it is recorded and nothing is stopped."
        return "In observe mode everything is recorded and nothing is stopped."
    if rule.action == "deny":
        who = "the rule says" if rule.without_hook else "this host's setting is"
        return f"It cannot be prevented here, and {who} `without_hook: alert`."
    return "The rule asks for an alert."


def _unseen(rule: Rule) -> str:
    """Why a rule can never match today, or ""."""
    if fields.UNPROBED_KINDS.issuperset(rule.on):
        return f"There is no probe yet for {' or '.join(f'`{kind}`' for kind in rule.on)}."
    return unseen(rule.match, rule.on)


def unseen(match: Match, kinds: Sequence[str]) -> str:
    """Why no event of these kinds can fulfil a match today, or ""."""
    for condition in match.conditions:
        found = [fields.lookup(condition.field, kind) for kind in kinds]
        known = [field for field in found if field is not None]
        if known and all(field.unprobed for field in known):
            return f"There is no probe yet for `{condition.field}`."
        unprobed = {word for field in known for word in field.unprobed_words}
        if condition.values and unprobed.issuperset(condition.values):
            return f"There is no probe yet for `{condition.field}: {condition.values[0]}`."
    return ""
