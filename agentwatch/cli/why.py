"""`agentwatch why`: what was denied to an agent, why, and what to do instead."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from agentwatch.cli import wants_colour
from agentwatch.cli.asking import ask, made, output_option, show_json, socket_option
from agentwatch.cli.events import quiet_pipe
from agentwatch.sinks.escape import shown
from agentwatch.sinks.lines import clock

_WIDTH = 100
_INDENT = " " * 11


@dataclass(frozen=True, slots=True)
class Denial:
    """As a verdict of the journal; at: ns since the epoch. by: kernel | engine, who did it."""

    at: int = 0
    rule: str = ""
    title: str = ""
    severity: str = ""
    action: str = ""
    outcome: str = ""
    level: str = ""
    by: str = ""
    kind: str = ""
    what: str = ""
    because: str = ""
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Denials:
    """The last ones of a session, oldest first. session: "" where there is none."""

    session: str = ""
    agent: str = ""
    denials: tuple[Denial, ...] = field(default=(), metadata={"of": Denial})


@click.command()
@click.argument("pid", type=click.IntRange(min=1), required=False)
@socket_option
@output_option
def why(pid: int | None, socket: Path, output: str) -> None:
    """Show the last denials: of what, by which rule, because of what, and what to do instead.

    PID is any process of a session; an agent that asks without one is told of its own.
    """
    value = ask(socket, "why", pid=pid)
    if output == "json":
        with quiet_pipe():
            show_json(value)
        return
    found = made(Denials, value)
    whose = f"{found.agent or 'session'} {found.session}".strip() if found.session else ""
    if not found.denials:
        click.echo(shown(f"agentwatch: nothing was denied{f' to {whose}' * bool(whose)}"), err=True)
        return
    colour = wants_colour(sys.stdout)
    with quiet_pipe():
        if whose:
            click.echo(shown(whose))
        for denial in found.denials:
            _show(denial, colour)


def _show(denial: Denial, colour: bool) -> None:
    head, *rest = lines(denial)
    observed = denial.outcome in ("observed", "alerted")
    click.echo(click.style(head, fg="yellow" if observed else "red") if colour else head)
    for line in rest:
        click.echo(line)


def lines(denial: Denial) -> Iterator[str]:
    """When and what; then the rule, and its reasons, each wrapped below its name."""
    yield shown(f"{clock(denial.at)}  {denial.kind}  {denial.what}")
    done = f"would {denial.action}" if denial.outcome == "observed" else denial.outcome
    who = "by the kernel" if denial.by == "kernel" else ""
    worth = ", ".join(filter(None, (denial.level, who, denial.severity)))
    title = f": {denial.title}" * bool(denial.title)
    by = f"{done or denial.action} by {denial.rule}" + f" ({worth})" * bool(worth) + title
    yield f"  {shown(by)}"
    for name, text in (("because", denial.because), ("instead", denial.instead)):
        if text:
            first = f"  {name:<{len(_INDENT) - 2}}"
            # Escaped first: a line must not begin where the text says so.
            yield from textwrap.wrap(
                shown(text),
                _WIDTH,
                initial_indent=first,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
