"""`agentwatch rules`: check, test, list and explain rule files. Needs no root and no kernel."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from agentwatch import admission
from agentwatch.admission import Outcome
from agentwatch.engine import Engine, Explanation, RuleTrace
from agentwatch.errors import Diagnostic, RuleErrors, UsageError
from agentwatch.policy import levels, patterns
from agentwatch.rules import fields, sample
from agentwatch.rules.conditions import Reader
from agentwatch.rules.diagnostics import Report, render
from agentwatch.rules.lists import Lists
from agentwatch.rules.load import default_paths, read_rules
from agentwatch.rules.model import KINDS, Place, Rule, Ruleset
from agentwatch.rules.read import Items, Node, Table, Text
from agentwatch.rules.values import Checker

HERE = levels.Host()  # no probe can prevent yet, on any host
_Command = TypeVar("_Command", bound=Callable[..., Any])

_paths = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
_output = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
_mode = click.option("--mode", type=click.Choice(["observe", "enforce"]), default="enforce")


@click.group()
def rules() -> None:
    """Check, test, list and explain rules.

    PATHs are rule files or directories of them; without any, the installed rules, or those that
    ship.
    """


@rules.command()
@_paths
@_output
def check(paths: tuple[Path, ...], output: str) -> None:
    """Validate rules and run the tests inside them; exit 1 on any error."""
    try:
        admitted = admission.admit(paths or default_paths())
    except RuleErrors as error:
        _findings(error.diagnostics, None, output)
        sys.exit(error.exit_code)
    _findings(admitted.warnings, admitted.ruleset, output)


def _findings(found: tuple[Diagnostic, ...], ruleset: Ruleset | None, output: str) -> None:
    errors = sum(one.severity == "error" for one in found)
    if output == "json":
        click.echo(_json([dataclasses.asdict(one) for one in found]))
        return
    for one in found:
        click.echo(_coloured(one))
    what = f"{_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}"
    if ruleset is not None:
        what = (
            f"{_count(len(ruleset.rules), 'rule')} in {_count(len(ruleset.files), 'file')}: {what}"
        )
    click.echo(what, err=True)


@rules.command()
@_paths
@_output
def test(paths: tuple[Path, ...], output: str) -> None:
    """Run the tests inside rules; exit 1 when one fails."""
    try:
        loaded = read_rules(paths or default_paths(), patterns)
    except RuleErrors as error:
        _refuse(error)
    outcomes = admission.run_trials(loaded)
    failed = sum(not outcome.passed for outcome in outcomes)
    if output == "json":
        click.echo(_json([_outcome(outcome) for outcome in outcomes]))
    else:
        for rule in loaded.written:
            _show_tests(rule, [outcome for outcome in outcomes if outcome.rule.id == rule.id])
        click.echo(f"{_count(len(outcomes), 'test')}, {failed} failed", err=True)
    sys.exit(1 if failed else 0)


def _show_tests(rule: Rule, outcomes: list[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if not outcome.passed]
    word = "none" if not outcomes else "FAILED" if failed else "ok"
    click.echo(f"{word:<7} {rule.id:<40} {_count(len(outcomes), 'test')}")
    for outcome in failed:
        place = outcome.trial.place
        click.echo(
            f"        {place.file}:{place.line}:{place.column}: {admission.message(outcome)}"
        )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "rule": outcome.rule.id,
        "kind": outcome.kind,
        "expected": outcome.expected,
        "got": outcome.got,
        "passed": outcome.passed,
        "file": outcome.trial.place.file,
        "line": outcome.trial.place.line,
    }


@rules.command(name="list")
@_paths
@_output
@_mode
def list_(paths: tuple[Path, ...], output: str, mode: str) -> None:
    """List rules with what each is worth on this host: its level, and why."""
    rows = [_row(rule, mode) for rule in _load(paths).rules]
    if output == "json":
        click.echo(_json(rows))
        return
    _show_rules(rows)


def _show_rules(rows: list[dict[str, Any]]) -> None:
    """The rules below the files they stand in; what their levels mean is told once, below."""
    reasons = {reason: number for number, reason in enumerate(_reasons(rows), 1)}
    cells = [(str(row["line"]), row["id"], ",".join(row["on"]), row["action"]) for row in rows]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    file = ""
    for row, (line, name, on, action) in zip(rows, cells, strict=True):
        if row["file"] != file:
            file = row["file"]
            click.echo(_near(file))
        start = f"{line:>{wide[0] + 1}}  {name:<{wide[1]}}  {on:<{wide[2]}}  {action:<{wide[3]}}"
        click.echo(f"{start}  {row['level']} [{reasons[row['reason']]}]")
        if "overridden" in row:
            click.echo(f"{'':>{wide[0] + 3}}changed in {_near(row['overridden'])}")
    click.echo()
    for reason, number in reasons.items():
        head = f"[{number}] "
        below = " " * len(head)
        click.echo(textwrap.fill(reason, 80, initial_indent=head, subsequent_indent=below))


def _reasons(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["reason"] for row in rows))


def _near(path: str) -> str:
    """A file's name as short as it can be said from here."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is elsewhere, or this directory is gone
        return path


def _row(rule: Rule, mode: str) -> dict[str, Any]:
    level = levels.level(rule, HERE, mode)
    row: dict[str, Any] = {
        "id": rule.id,
        "on": list(rule.on),
        "action": rule.action,
        "level": str(level),
        "reason": level.reason,
        "file": rule.place.file,
        "line": rule.place.line,
    }
    if rule.overridden is not None:
        row["overridden"] = f"{rule.overridden.file}:{rule.overridden.line}"
    return row


def _field_options(command: _Command) -> _Command:
    """An option for every field of the language, and for an event as JSON."""
    about = {field.name: field.about for field in fields.FIELDS if not field.later}
    for name in reversed(about):
        option = click.option(f"--{name}", name.replace(".", "_"), help=about[name])
        command = option(command)
    return command


@rules.command()
@_paths
@click.option("--on", type=click.Choice(KINDS), help="The kind of the event.")
@click.option("--event", metavar="JSON", help='The event as JSON: {"on": "read", "path": ...}.')
@click.option("--project", metavar="DIR", help="$project, unset without it.")
@click.option(
    "--all", "everything", is_flag=True, help="Also the rules that do not match, and why."
)
@_field_options
@_output
@_mode
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

    --args and the like part their tokens as a shell does.
    """  # noqa: D301  # click wants the character, not its escape
    ruleset = _load(paths)
    kind, node = _event_of(on, event, given)
    values = _validated(kind, node, ruleset)
    engine = Engine(ruleset, mode=mode)
    shown = []
    for made in sample.samples(kind, values, (), project):
        found = engine.explain(made.event, made.actor)
        shown.append(_explained(found, engine.ruleset, mode, everything))
    if output == "json":
        click.echo(_json(shown if len(shown) > 1 else shown[0]))
        return
    for number, one in enumerate(shown):
        if len(shown) > 1:
            click.echo(("\n" if number else "") + ("opened for reading:", "for writing:")[number])
        _show_explained(one)


def _explained(found: Explanation, ruleset: Ruleset, mode: str, everything: bool) -> dict[str, Any]:
    verdict = found.verdict
    by_id = {rule.id: rule for rule in ruleset.rules}
    winner = by_id.get(verdict.rule or "")
    level = levels.level(winner, HERE, mode) if winner else None
    wanted = ("matched", "carved") + (("failed", "other-agent") if everything else ())
    return {
        "action": verdict.action,
        "response": verdict.response,
        "rule": verdict.rule,
        "default": verdict.default,
        "level": str(level) if level else verdict.level,
        "reason": level.reason if level else "",
        "because": verdict.because,
        "instead": verdict.instead,
        "rules": [_trace(one) for one in found.rules if one.outcome in wanted],
    }


def _trace(trace: RuleTrace) -> dict[str, Any]:
    return {
        "id": trace.rule.id,
        "action": trace.rule.action,
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
    for key, label in (("because", "because"), ("instead", "instead"), ("reason", "level")):
        if shown[key]:
            click.echo(f"  {label}: {shown[key]}")
    wide = max((len(row["id"]) for row in shown["rules"]), default=0)
    for row in shown["rules"]:
        why = "wins" if row["id"] == shown["rule"] and row["outcome"] == "matched" else row["why"]
        place = f"{row['file']}:{row['line']}"
        click.echo(f"  {row['id']:<{wide}}  {row['action']:<6} {why}  ({place})")
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


def _load(paths: tuple[Path, ...]) -> Ruleset:
    try:
        return admission.load(paths or default_paths())
    except RuleErrors as error:
        _refuse(error)


def _refuse(error: RuleErrors) -> NoReturn:
    for found in error.diagnostics:
        if found.severity == "error":
            click.echo(_coloured(found, err=True), err=True)
    click.echo(f"agentwatch: {error.message}", err=True)
    sys.exit(error.exit_code)


def _coloured(found: Diagnostic, err: bool = False) -> str:
    text = render(found)
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    word = f"{found.severity}[{found.code}]"
    colour = "red" if found.severity == "error" else "yellow"
    return text.replace(word, click.style(word, fg=colour, bold=True), 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True)
