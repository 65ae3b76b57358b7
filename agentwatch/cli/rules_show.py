"""`agentwatch rules show`, `fields` and `schema`: one rule as it is in force, and the language."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from agentwatch.admission import condition_name
from agentwatch.cli.rules_reading import (
    Worth,
    as_json,
    mode_option,
    near,
    output_option,
    paths_argument,
    read,
)
from agentwatch.errors import UsageError
from agentwatch.rules import fields as table
from agentwatch.rules import schema as json_schema
from agentwatch.rules.diagnostics import did_you_mean
from agentwatch.rules.model import KINDS, Count, Match, Rule

_WIDTH = 100


@click.command()
@click.argument("identifier", metavar="ID")
@paths_argument
@output_option
@mode_option
def show(identifier: str, paths: tuple[Path, ...], output: str, mode: str) -> None:
    """Show a rule as it is in force: lists written out, overrides applied, and its level here."""
    ruleset = read(paths, output).ruleset
    known = {rule.id: rule for rule in (*ruleset.rules, *ruleset.disabled)}
    rule = known.get(identifier)
    if rule is None:
        hint = did_you_mean(identifier, known).strip()
        raise UsageError(f"there is no rule {identifier!r}", hint or "agentwatch rules list")
    level = Worth(ruleset, mode).level(rule)
    if output == "json":
        shown = {key: value for key, value in _plain(rule) if value not in ("", None)}
        click.echo(as_json(shown | {"level": str(level), "reason": level.reason}))
        return
    click.echo(f"# {near(rule.place.file)}:{rule.place.line}")
    if rule.overridden is not None:
        click.echo(f"# changed in {near(rule.overridden.file)}:{rule.overridden.line}")
    click.echo(
        textwrap.fill(
            f"level {level}: {level.reason}", 98, initial_indent="# ", subsequent_indent="# "
        )
    )
    for line in _lines(rule):
        click.echo(line)


def _plain(rule: Rule) -> Iterator[tuple[str, Any]]:
    """The rule's keys as a rule file has them, in the order people write them."""
    yield from (("id", rule.id), ("title", rule.title), ("on", list(rule.on)))
    if rule.agents:
        yield "agents", list(rule.agents)
    if rule.match.conditions:
        yield "match", _conditions(rule.match)
    if rule.unless:
        yield "unless", {name: _conditions(match) for name, match in rule.unless}
    if rule.count is not None:
        yield "count", _count(rule.count)
    yield "action", rule.action
    if rule.scope != "process" and rule.action == "kill":
        yield "scope", rule.scope
    yield from (("without_hook", rule.without_hook), ("mode", rule.mode))
    if not rule.enabled:
        yield "enabled", False
    yield from (("severity", rule.severity), ("because", rule.because), ("instead", rule.instead))
    yield "false_positives", rule.false_positives
    if rule.tags:
        yield "tags", list(rule.tags)
    if rule.trials:
        yield "tests", [_trial(dataclasses.asdict(trial)) for trial in rule.trials]


def _conditions(match: Match) -> dict[str, list[str] | str]:
    found: dict[str, list[str] | str] = {}
    for condition in match.conditions:
        one = len(condition.values) == 1 and not condition.sequence
        values: list[str] | str = condition.values[0] if one else list(condition.values)
        found[condition_name(condition.field, condition.modifiers)] = values
    return found


def _count(count: Count) -> dict[str, Any]:
    unit, short = (10**9, "s") if count.within % 10**9 == 0 else (10**6, "ms")
    found = {"over": count.over, "within": f"{count.within // unit}{short}", "by": count.by}
    return found | ({"distinct": count.distinct} if count.distinct else {})


def _trial(trial: dict[str, Any]) -> dict[str, Any]:
    """A test as a rule file has it."""
    expect = "event" if trial["expect"] == "verdict" else trial["expect"]
    event = {n: list(v) if isinstance(v, tuple) else v for n, v in trial["fields"]}
    found = {expect: event} | ({"verdict": trial["verdict"]} if trial["verdict"] else {})
    return found | ({"on": list(trial["on"])} if trial["on"] else {})


def _lines(rule: Rule) -> Iterator[str]:
    """The rule as YAML: what is not text is JSON, which YAML contains."""
    for key, value in _plain(rule):
        if value in ("", None):
            continue
        if isinstance(value, str):
            yield f"{key}: {_scalar(value)}"
            continue
        whole = f"{key}: {json.dumps(value, ensure_ascii=False)}"
        if len(whole) <= _WIDTH or key in ("on", "count"):
            yield whole
        elif isinstance(value, dict):
            yield f"{key}:"
            yield from (f"  {k}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
        else:
            yield f"{key}:"
            yield from (f"  - {json.dumps(v, ensure_ascii=False)}" for v in value)


def _scalar(value: str) -> str:
    plain = value.replace("_", "").replace(".", "").replace("-", "").isalnum()
    return value if plain and not value[0].isdigit() else json.dumps(value, ensure_ascii=False)


@click.command()
@click.argument("kind", required=False, type=click.Choice(KINDS))
@output_option
def fields(kind: str | None, output: str) -> None:
    """List the fields a rule may ask, of one kind of event or of all."""
    found = [one for one in table.FIELDS if kind is None or kind in one.kinds]
    if output == "json":
        click.echo(as_json([_field(one) for one in found]))
        return
    for one in found:
        click.echo(f"{one.name}  ({'every kind' if one.kinds == KINDS else ', '.join(one.kinds)})")
        about = one.about + " (no probe yet)" if _unprobed(one) else table.about_probed(one)
        values = table.values_of(one).replace("`", "")
        modifiers = "".join(f" |{word}" for word in sorted(table.TAKES[one.type]))
        for text in (about, f"values: {values}", f"modifiers:{modifiers}" if modifiers else ""):
            if text:
                click.echo(textwrap.indent(textwrap.fill(text, 76), "    "))


def _unprobed(field: table.Field) -> bool:
    return all(table.is_unprobed(field, kind) for kind in field.kinds)


def _field(field: table.Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "kinds": list(field.kinds),
        "about": field.about,
        "values": list(field.words) or table.values_of(field),
        "modifiers": sorted(table.TAKES[field.type]),
        "probed": not _unprobed(field),
    }


@click.command()
def schema() -> None:
    """Print the JSON Schema of rule files, for editors that complete and check."""
    click.echo(as_json(json_schema.schema()))
