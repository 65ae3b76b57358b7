"""What a rule means as a whole: it can match, it does not deny everything, it is tested."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agentwatch.rules.diagnostics import Report, quote
from agentwatch.rules.fields import CHOSEN, lookup
from agentwatch.rules.model import Condition, Default, Match, Place, Rule

_EVERY_PATH = frozenset({"/**", "**", "**/*", "/**/*", "**/**"})
_EVERY_TEXT = frozenset({"**", "*"})
_EVERY_NETWORK = frozenset({"0.0.0.0/0", "::/0"})


def check_rule(rule: Rule, report: Report) -> None:
    """Refuse what can never match and what denies everything; warn of what is not tested."""
    for name, exception in rule.unless:
        if rule.match.conditions and _swallows(exception, rule.match):
            message = f"this can never match: exception {quote(name)} carves out all of it"
            report.error("AW303", rule.place, message)
    asked = {condition.field for condition in rule.match.conditions}
    if "unix" in asked and asked & {"addr", "port"}:
        message = "this can never match: a connection has either a unix socket or an address"
        report.error("AW303", _where(rule), message)
    stops = rule.action in ("deny", "kill") and rule.count is None  # a count may count everything
    spares = any(map(_may_hold, (match for _, match in rule.unless)))
    if stops and not spares and all(_everything(c) for c in rule.match.conditions):
        message = (
            f"a {rule.action} that matches everything belongs in defaults: "
            f"defaults: {{all: {{{rule.on[0] if rule.on else 'change'}: {rule.action}}}}}; "
            "or say with unless what it spares"
        )
        report.error("AW304", _where(rule), message)
    _check_operations(rule, report)
    _check_action(rule, report)
    _check_loosening(rule, report)
    if not rule.trials:
        message = f"the rule {quote(rule.id)} has no tests; give it a hit and a miss"
        report.warning("AW501", rule.place, message)


def _check_operations(rule: Rule, report: Report) -> None:
    """Refuse operations that no kind of the rule has, and a second name without one that has it."""
    known = {word for kind in rule.on for word in _operations(kind)}
    for condition in rule.match.conditions:
        if condition.field == "op":
            for value in condition.values:
                if value not in known:
                    message = f"this can never match: only change has the operation {value}"
                    report.error("AW303", condition.place or rule.place, message)


def _operations(kind: str) -> tuple[str, ...]:
    field = lookup("op", kind)
    return field.words if field else ()


def _check_action(rule: Rule, report: Report) -> None:
    """Refuse a count that could only act too late, and a scope of what kills nobody."""
    if rule.count is not None and rule.action not in ("alert", "kill"):
        message = f"a rule with count may alert or kill, not {rule.action}: it acts after the fact"
        report.error("AW311", rule.place, message)
    if rule.scope != "process" and rule.action != "kill" and rule.overridden is None:
        message = f"scope says what a kill ends; this rule's action is {rule.action}"
        report.error("AW311", rule.place, message)


def _check_loosening(rule: Rule, report: Report) -> None:
    """Warn of exceptions and allow rules that rest on names an agent gives as it likes."""
    matches = [(f"exception {quote(name)}", match) for name, match in rule.unless]
    if rule.action == "allow":
        matches.append(("this rule", rule.match))
    for what, match in matches:
        for condition in match.conditions:
            if condition.field in CHOSEN:
                message = (
                    f"{what} never holds: an agent gives {condition.field} any value it likes; "
                    f"ask {_INSTEAD[condition.field]}"
                )
                report.warning("AW503", condition.place or rule.place, message)


_INSTEAD = {
    "script": "path and args",
    "argv": "path and args",
    "process.script": "process.exe and process.args",
    "parent.script": "parent.exe and parent.args",
    "source": "path",
}


def check_holes(rules: Sequence[Rule], defaults: Collection[Default], report: Report) -> None:
    """Warn of allow rules for kinds that no default closes: they change nothing."""
    closed = {default.kind for default in defaults}
    closed |= {kind for kind in ("read", "change") if "open" in closed}
    for rule in rules:
        if rule.action == "allow" and not closed & set(rule.on):
            message = f"nothing denies {', '.join(rule.on)} by default, so this allows nothing new"
            report.warning("AW502", rule.place, message)


def _where(rule: Rule) -> Place:
    first = rule.match.conditions[0].place if rule.match.conditions else None
    return first or rule.place


def _may_hold(exception: Match) -> bool:
    """Whether an exception can hold, so that its rule does not match everything."""
    asked = {condition.field for condition in exception.conditions}
    return bool(asked) and CHOSEN.isdisjoint(asked)


def _everything(condition: Condition) -> bool:
    """Whether every event of the kind fulfils it."""
    values = set(condition.values)
    if "cidr" in condition.modifiers:
        return values >= _EVERY_NETWORK
    if condition.modifiers - {"nocase", "has"}:
        return False
    if condition.field == "path":
        return bool(values & _EVERY_PATH)
    return condition.field in ("args", "argv") and bool(values & _EVERY_TEXT) and len(values) == 1


def _swallows(exception: Match, match: Match) -> bool:
    """Whether an exception asks for nothing that the match does not ask for already."""
    asked = {(c.field, c.modifiers, c.sequence): set(c.values) for c in match.conditions}
    return bool(exception.conditions) and all(
        asked.get((c.field, c.modifiers, c.sequence), {""}) <= set(c.values)
        and "all" not in c.modifiers
        for c in exception.conditions
    )
