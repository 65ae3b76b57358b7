"""`agentwatch rules reload`, `pause` and `resume`: what is asked of the daemon."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from agentwatch.cli.asking import ask, made, many, output_option, show_json, socket_option
from agentwatch.cli.rules_reading import coloured
from agentwatch.control.wire import diagnostic_of
from agentwatch.errors import UsageError
from agentwatch.sinks.lines import clock

LONGEST_PAUSE = 30 * 86_400  # seconds
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The answer to rules.reload. restart: keys of the configuration that wait for one."""

    generation: int = 0
    rules: int = 0
    restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Paused:
    """The answer to rules.pause. until_at: ns of the wall clock, 0 when the rule acts."""

    rule: str = ""
    until_at: int = 0


@click.command()
@socket_option
@output_option
def reload(socket: Path, output: str) -> None:
    """Have the daemon read its rules again; bad ones leave the old ones in force."""
    answer = ask(socket, "rules.reload")
    if output == "json":
        show_json(answer)
        return
    for warning in answer.get("warnings", ()):
        click.echo(coloured(diagnostic_of(warning), err=True), err=True)
    found = made(Reloaded, answer)
    click.echo(f"{many(found.rules, 'rule')} in force, generation {found.generation}")
    if found.restart:
        click.echo(f"these wait for a restart of the daemon: {', '.join(found.restart)}", err=True)


@click.command()
@click.argument("rule")
@click.option("--for", "duration", required=True, metavar="TIME", help="10m, 90s, 2h, 1d.")
@socket_option
@output_option
def pause(rule: str, duration: str, socket: Path, output: str) -> None:
    """Have a rule not act for a while. It is recorded, and ends by itself."""
    _ask(rule, _seconds(duration), socket, output)


@click.command()
@click.argument("rule")
@socket_option
@output_option
def resume(rule: str, socket: Path, output: str) -> None:
    """End a rule's pause."""
    _ask(rule, 0, socket, output)


def _ask(rule: str, seconds: int, socket: Path, output: str) -> None:
    answer = ask(socket, "rules.pause", rule=rule, seconds=seconds)
    if output == "json":
        show_json(answer)
        return
    found = made(Paused, answer)
    until = f"does not act until {clock(found.until_at)}" if found.until_at else "acts again"
    click.echo(f"{found.rule} {until}")


def _seconds(duration: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", duration)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_PAUSE:
        raise UsageError(f"{duration!r} is no time to pause for", "10m, 90s, 2h, at most 30d")
    return seconds
