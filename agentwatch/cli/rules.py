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
    Worth,
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
    say_untried,
)
from agentwatch.cli.rules_show import fields, schema, show
from agentwatch.compiling import left_out
from agentwatch.errors import Diagnostic, RuleErrors
from agentwatch.policy import levels
from agentwatch.policy.compiler import Compiled
from agentwatch.rules.model import ACTIONS, Default, Match, Rule

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
@click.option(
    "-v", "--verbose", is_flag=True, help="Also the kernel's policy, and what is not in it."
)
def check(paths: tuple[Path, ...], output: str, verbose: bool) -> None:
    """Validate rules and run the tests inside them; exit 1 on any error."""
    try:
        let_in = admit(paths)
    except RuleErrors as error:
        _findings(error.diagnostics, None, output)
        sys.exit(error.exit_code)
    _findings(let_in.warnings, let_in, output)
    if output == "text":
        worth = Worth(let_in.ruleset)
        _left_out(let_in, worth, verbose)
        if verbose:
            _show_compiled(let_in, worth)


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


def _left_out(let_in: Admitted, worth: Worth, verbose: bool) -> None:
    """Says which of the files' rules are worth less for the others that are there."""
    named = frozenset(rule.id for rule in let_in.ruleset.rules if let_in.is_named(rule))
    if left := left_out(worth.compiled, named.__contains__):
        click.echo(left + " (agentwatch rules check -v)" * (not verbose), err=True)


def _show_compiled(let_in: Admitted, worth: Worth) -> None:
    """How large the policy is that the kernel gets, and what stays with the engine."""
    compiled = worth.compiled
    if compiled is None:
        click.echo(worth.engine(""))
        return
    click.echo(f"{'automaton':<14} {'states':>8} {'classes':>8} {'bytes':>12} {'seconds':>8}")
    for one in compiled.sets:
        sizes = f"{one.states:>8} {one.classes:>8} {one.bytes:>12,} {one.seconds:>8.2f}"
        click.echo(f"{one.name:<14} {sizes}")
    sizes = f"{'':>8} {'':>8} {compiled.bytes:>12,} {compiled.seconds:>8.2f}"
    click.echo(f"{'the image':<14} {sizes}")
    _show_engines(let_in, compiled)


def _show_engines(let_in: Admitted, compiled: Compiled) -> None:
    """The rules that stay with the engine, by reason; before others what stops."""
    found: dict[str, dict[str, list[str]]] = {}  # by what is said of them, then by action
    rules = [rule for rule in let_in.ruleset.rules if compiled.lowered[rule.id].where == "engine"]
    for rule in sorted(rules, key=lambda rule: -ACTIONS.index(rule.action)):
        said = f"The engine decides: {compiled.lowered[rule.id].reason}"
        if levels.level(rule, levels.Host()).name == "none":
            said = "Nobody decides: there is no probe yet."
        found.setdefault(said, {}).setdefault(rule.action, []).append(rule.id)
    for said, actions in found.items():
        click.echo("\n" + textwrap.fill(said, 80))
        for action, ids in actions.items():
            head = f"  {action:<6}"
            click.echo(
                textwrap.fill(
                    ", ".join(ids),
                    80,
                    initial_indent=head,
                    subsequent_indent=" " * len(head),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )


def _worth_nothing(rules: list[Rule]) -> None:
    """Says which rules can never match today."""
    ids = [rule.id for rule in rules if levels.level(rule, levels.Host()).name == "none"]
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
    worth = Worth(ruleset, mode)
    rows = [_row(rule, worth) for rule in rules if let_in.is_named(rule)]
    rows += [_default_row(d, worth) for d in ruleset.defaults if let_in.is_named(d)]
    rows.sort(key=lambda row: (ruleset.files.index(row["file"]), row["line"]))
    if output == "json":
        click.echo(as_json(rows))
        return
    _show_rules(rows)
    say_untried(output)


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
    click.echo("As compiled here; `agentwatch status` has what is in force.")


def _reasons(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row["reason"] for row in rows))


def _row(rule: Rule, worth: Worth) -> dict[str, Any]:
    level = worth.level(rule)
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


def _default_row(default: Default, worth: Worth) -> dict[str, Any]:
    """As a rule without conditions; no id of a rule has a colon."""
    name = f"default:{default.agent}"
    return _row(Rule(name, (default.kind,), Match(()), default.action, default.place), worth)
