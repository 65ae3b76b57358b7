"""`agentwatch rules`: check, test and list rule files; other verbs have their own modules."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from agentwatch import admission
from agentwatch.admission import Admitted, Outcome
from agentwatch.cli.rules_daemon import pause, reload, resume
from agentwatch.cli.rules_explain import explain
from agentwatch.cli.rules_new import new
from agentwatch.cli.rules_reading import (
    BEHIND,
    HERE,
    admit,
    admitted,
    as_json,
    coloured,
    count,
    mode_option,
    near,
    output_option,
    paths_argument,
    read,
)
from agentwatch.cli.rules_show import fields, schema, show
from agentwatch.errors import Diagnostic, RuleErrors
from agentwatch.policy import levels
from agentwatch.rules.model import Default, Match, Rule

_FEW = 3  # rules that are worth nothing are told by name


@click.group()
def rules() -> None:
    """Check, test, list and explain rules; have the daemon reload or pause them.

    PATHs are rule files or directories of them; without any, the installed rules, or those that
    ship. Files that name agents or rules of the shipped packs are read beside them.
    """


for _command in (explain, fields, new, pause, reload, resume, schema, show):
    rules.add_command(_command)


@rules.command()
@paths_argument
@output_option
def check(paths: tuple[Path, ...], output: str) -> None:
    """Validate rules and run the tests inside them; exit 1 on any error."""
    try:
        let_in = admit(paths)
    except RuleErrors as error:
        _findings(error.diagnostics, None, output)
        sys.exit(error.exit_code)
    _findings(let_in.warnings, let_in, output)


def _findings(found: tuple[Diagnostic, ...], let_in: Admitted | None, output: str) -> None:
    errors = sum(one.severity == "error" for one in found)
    if output == "json":
        click.echo(as_json([dataclasses.asdict(one) for one in found]))
        return
    for one in found:
        click.echo(coloured(one))
    what = f"{count(errors, 'error')}, {count(len(found) - errors, 'warning')}"
    if let_in is None:
        click.echo(what, err=True)
        return
    behind = let_in.background
    rules = [rule for rule in let_in.ruleset.rules if rule.place.file not in behind]
    files = len(let_in.ruleset.files) - len(behind)
    what = f"{count(len(rules), 'rule')} in {count(files, 'file')}: {what}"
    click.echo(what + f", {BEHIND}" * bool(behind), err=True)
    _worth_nothing(rules)


def _worth_nothing(rules: list[Rule]) -> None:
    """Says which rules can never match today."""
    ids = [rule.id for rule in rules if levels.level(rule, HERE).name == "none"]
    if ids:
        are = "rule is" if len(ids) == 1 else "rules are"
        which = f": {', '.join(ids)}" if len(ids) <= _FEW else ""
        click.echo(
            f"{len(ids)} {are} worth none here, for there is no probe yet "
            f"(rules list says why){which}",
            err=True,
        )


@rules.command()
@paths_argument
@output_option
def test(paths: tuple[Path, ...], output: str) -> None:
    """Run the tests inside rules; exit 1 when one fails."""
    loaded = read(paths, output)
    outcomes = admission.run_trials(loaded)
    failed = sum(not outcome.passed for outcome in outcomes)
    if output == "json":
        click.echo(as_json([_outcome(outcome) for outcome in outcomes]))
    else:
        for rule in loaded.written:
            _show_tests(rule, [outcome for outcome in outcomes if outcome.rule.id == rule.id])
        click.echo(f"{count(len(outcomes), 'test')}, {failed} failed", err=True)
    sys.exit(1 if failed else 0)


def _show_tests(rule: Rule, outcomes: list[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if not outcome.passed]
    word = "none" if not outcomes else "FAILED" if failed else "ok"
    click.echo(f"{word:<7} {rule.id:<40} {count(len(outcomes), 'test')}")
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
@paths_argument
@output_option
@mode_option
def list_(paths: tuple[Path, ...], output: str, mode: str) -> None:
    """List rules with what each is worth on this host: its level, and why."""
    let_in = admitted(paths, output)
    ruleset = let_in.ruleset
    rules = (*ruleset.rules, *ruleset.disabled)
    rows = [_row(rule, mode) for rule in rules if let_in.is_named(rule)]
    rows += [_default_row(d, mode) for d in ruleset.defaults if let_in.is_named(d)]
    rows.sort(key=lambda row: (ruleset.files.index(row["file"]), row["line"]))
    if output == "json":
        click.echo(as_json(rows))
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
            click.echo(near(file))
        start = f"{line:>{wide[0] + 1}}  {name:<{wide[1]}}  {on:<{wide[2]}}  {action:<{wide[3]}}"
        click.echo(f"{start}  {row['level']} [{reasons[row['reason']]}]")
        if "overridden" in row:
            click.echo(f"{'':>{wide[0] + 3}}changed in {near(row['overridden'])}")
    click.echo()
    for reason, number in reasons.items():
        head = f"[{number}] "
        below = " " * len(head)
        click.echo(textwrap.fill(reason, 80, initial_indent=head, subsequent_indent=below))


def _reasons(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["reason"] for row in rows))


def _row(rule: Rule, mode: str) -> dict[str, Any]:
    level = levels.level(rule, HERE, mode)
    if not rule.enabled:
        level = levels.Level("none", reason="It is disabled.")
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


def _default_row(default: Default, mode: str) -> dict[str, Any]:
    """As a rule without conditions; no id of a rule has a colon."""
    name = f"default:{default.agent}"
    return _row(Rule(name, (default.kind,), Match(()), default.action, default.place), mode)
