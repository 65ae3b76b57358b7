"""`agentwatch rules explain`: what the rules make of an event, and why."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agentwatch import admission
from agentwatch.cli.rules_reading import (
    Worth,
    admitted,
    as_json,
    mode_option,
    near,
    output_option,
    paths_argument,
    say_untried,
)
from agentwatch.engine import Engine, Explanation, RuleTrace
from agentwatch.errors import UsageError
from agentwatch.policy import levels, patterns
from agentwatch.policy.answering import Answer
from agentwatch.policy.image import KILL
from agentwatch.rules import fields, sample
from agentwatch.rules.conditions import Reader
from agentwatch.rules.diagnostics import Report
from agentwatch.rules.homes import TRIAL_HOMES
from agentwatch.rules.lists import Lists
from agentwatch.rules.model import KINDS, Place, Ruleset
from agentwatch.rules.read import Items, Node, Table, Text
from agentwatch.rules.values import Checker

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _field_options(command: _Command) -> _Command:
    """An option for every field of the language, and for an event as JSON."""
    given = {field.name: None for field in fields.FIELDS if not field.follows}
    for name in reversed(given):
        option = click.option(f"--{name}", name.replace(".", "_"), help=fields.about(name))
        command = option(command)
    return command


@click.command()
@paths_argument
@click.option("--on", type=click.Choice(KINDS), help="The kind of the event.")
@click.option("--event", metavar="JSON", help='The event as JSON: {"on": "read", "path": ...}.')
@click.option("--project", metavar="DIR", help="$project, unset without it.")
@click.option(
    "--all", "everything", is_flag=True, help="Also the rules that do not match, and why."
)
@_field_options
@output_option
@mode_option
def explain(
    paths: tuple[Path, ...],
    on: str | None,
    event: str | None,
    project: str | None,
    everything: bool,
    output: str,
    mode: str,
    **given: str | None,
) -> None:
    """Say what the rules make of an event: which match, which wins, its level, and why.

    \b
        agentwatch rules explain --on read --path ~/.ssh/id_ed25519 --process.exe /usr/bin/cat
        agentwatch rules explain --on exec --path /usr/bin/git --args "push --force"

    --args and the like part their tokens as a shell does. A connection by --addr or --port is
    TCP's, unless --proto says otherwise.
    """  # noqa: D301  # click wants the character, not its escape
    ruleset = admitted(paths, output).ruleset
    kind, node = _event_of(on, event, given)
    values = _validated(kind, node, ruleset)
    if kind == "connect" and "unix" not in values:
        _complete(values)
    engine, worth = Engine(ruleset, mode=mode), Worth(ruleset, mode)
    shown = []
    for made in sample.samples(kind, values, (), project):
        for earlier in made.before:
            engine.judge(earlier, made.actor)
        found = engine.explain(made.event, made.actor)
        shown.append(_explained(found, engine.ruleset, worth, everything))
        answer = worth.kernel(made.event, made.actor)
        shown[-1]["kernel"] = worth.words(answer) if answer else ""
        shown[-1] |= _as_for_event(shown[-1], made.kind, answer, values.get("proto", ""))
        if answer is not None and answer.refused and found.verdict.response != "kill":
            shown[-1] |= _as_moved(shown[-1], worth.rule(answer), engine.ruleset)
    if output == "json":
        click.echo(as_json(shown if len(shown) > 1 else shown[0]))
        return
    say_untried(output)
    elsewhere = _home_elsewhere(values, ruleset)
    for number, one in enumerate(shown):
        if len(shown) > 1:
            click.echo(("\n" if number else "") + ("opened for reading:", "for writing:")[number])
        _show_explained(one)
        if elsewhere and not one["rules"]:
            click.echo(f"  ~ is every home of this host: {elsewhere} is one in tests only")


def _complete(values: dict[str, Any]) -> None:
    """What people leave out of a connection, without which it would be of no protocol at all."""
    if "addr" in values or "port" in values:
        values.setdefault("proto", "tcp")
    if values.get("proto") in ("tcp", "udp") and "addr" not in values:
        values.setdefault("family", "inet")


def _as_for_event(
    shown: dict[str, Any], kind: str, answer: Answer | None, proto: str
) -> dict[str, Any]:
    """What the winner is worth for this event, where that is more than for others, or less."""
    if answer is not None and answer.refused and answer.unread is None:
        if shown["level"] == "prevents":
            return {}
        return {"level": "prevents", "reason": f"{levels.REFUSED[kind]}."}
    if kind == "connect" and shown["level"] == "prevents" and proto not in ("tcp", "udp"):
        reason = "By this protocol the kernel kills the process in the call that connects."
        return {"level": levels.of_kernel("connect", prevented=False), "reason": reason}
    if shown["default"] and answer is not None and answer.decision.verdict == KILL:
        return {"level": levels.of_kernel(kind, prevented=False)}
    return {"reason": shown["reason"].replace(levels.REFUSED_TOO, "")}


def _as_moved(shown: dict[str, Any], rule: str, ruleset: Ruleset) -> dict[str, Any]:
    """A rename or link that no rule denies, of what some rule is about by its name."""
    if shown["rule"] == rule:  # a deny that would only alert where nothing refuses it
        return {}
    found = next(one for one in ruleset.rules if one.id == rule)
    text = "What is moved would take along what this rule is about."
    return {"action": "deny", "response": "deny", "rule": rule, "because": found.because} | {
        "instead": found.instead,
        "reason": text,
    }


def _home_elsewhere(values: dict[str, Any], ruleset: Ruleset) -> str:
    """The home of tests that the event names and this host does not have, or ""."""
    named = (str(value) for name, value in values.items() if fields.is_path(name))
    below = [home for value in named for home in TRIAL_HOMES if f"{value}/".startswith(f"{home}/")]
    return next((home for home in below if home not in ruleset.homes), "")


def _explained(
    found: Explanation, ruleset: Ruleset, worth: Worth, everything: bool
) -> dict[str, Any]:
    verdict = found.verdict
    by_id = {rule.id: rule for rule in ruleset.rules}
    winner = by_id.get(verdict.rule or "")
    level = worth.level(winner) if winner else None
    wanted = ("matched", "counting", "carved") + (("failed", "other-agent") if everything else ())
    return {
        "action": verdict.action,
        "response": verdict.response,
        "rule": verdict.rule,
        "default": verdict.default,
        "level": str(level) if level else verdict.level,
        "reason": level.reason if level else "",
        "because": verdict.because,
        "instead": verdict.instead,
        "rules": [_trace(one, worth) for one in found.rules if one.outcome in wanted],
    }


def _trace(trace: RuleTrace, worth: Worth) -> dict[str, Any]:
    level = worth.level(trace.rule)
    return {
        "id": trace.rule.id,
        "action": trace.rule.action,
        "level": str(level),
        "reason": level.reason,
        "outcome": trace.outcome,
        "why": admission.reason(trace),
        "agent": trace.agent,
        "file": trace.rule.place.file,
        "line": trace.rule.place.line,
    }


def _show_explained(shown: dict[str, Any]) -> None:
    who = f" by {shown['rule']}" if shown["rule"] else " by default" if shown["default"] else ""
    level = f" ({shown['level']})" if shown["level"] else ""
    click.echo(f"{shown['action']}{who}{level}")
    told = ("because", "because"), ("instead", "instead"), ("reason", "level"), ("kernel",) * 2
    for key, label in told:
        if shown[key]:
            click.echo(f"  {label}: {shown[key]}")
    wide = max((len(row["id"]) for row in shown["rules"]), default=0)
    for row in shown["rules"]:
        why = "wins" if row["id"] == shown["rule"] and row["outcome"] == "matched" else row["why"]
        place = f"{near(row['file'])}:{row['line']}"
        worth = f"{row['action']}, {row['level']}"
        click.echo(f"  {row['id']:<{wide}}  {worth:<17}  {why}  ({place})")
    if not shown["rules"]:
        click.echo("  no rule matches" + ("" if shown["default"] else ", and no default applies"))


_FLAGS = Place("command line", 0, 0)


def _event_of(on: str | None, event: str | None, given: dict[str, str | None]) -> tuple[str, Table]:
    """The kind, and the fields as nodes, of the event that flags or JSON describe."""
    names = {name.replace(".", "_"): name for name in fields.NAMES}
    values: dict[str, Any] = {
        names[key]: value for key, value in given.items() if value is not None
    }
    if event is not None:
        if values:
            raise UsageError("--event and flags for fields exclude each other", "give one of them")
        try:
            values = json.loads(event)
        except ValueError as error:
            raise UsageError(
                f"--event is not JSON: {error}", '{"on": "read", "path": "/x"}'
            ) from None
        if not isinstance(values, dict):
            raise UsageError("--event is not a JSON object", '{"on": "read", "path": "/x"}')
        on = values.pop("on", on)
    if on not in KINDS:
        raise UsageError("the event has no kind", f"--on {'|'.join(KINDS)}")
    entries = ((Text(key, False, _FLAGS), _node(key, value)) for key, value in values.items())
    return on, Table(tuple(entries), _FLAGS)


def _node(name: str, value: Any) -> Node:
    if isinstance(value, list):
        return Items(tuple(Text(str(token), False, _FLAGS) for token in value), _FLAGS)
    if isinstance(value, bool):
        return Text(str(value).lower(), False, _FLAGS)
    if any(field.name == name and field.type == "argv" for field in fields.FIELDS):
        try:
            return _node(name, shlex.split(str(value)))
        except ValueError as error:
            raise UsageError(
                f"--{name} is not a command line: {error}", "close the quotes"
            ) from None
    return Text(str(value), False, _FLAGS)


def _validated(kind: str, node: Table, ruleset: Ruleset) -> dict[str, Any]:
    """The fields as tests inside rules have them, checked by the same table."""
    report = Report()
    agents = frozenset(agent.id for agent in ruleset.agents)
    reader = Reader(report, Lists({}, report), Checker(report, patterns, agents))
    values = dict(reader.event(node, (kind,)))
    for found in report.errors:
        raise UsageError(found.message, "agentwatch rules explain --help")
    return values
