"""`agentwatch events`: what agents did, from the journal, or live from the daemon."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
from click.core import ParameterSource

from agentwatch.cli import wants_colour
from agentwatch.cli.asking import output_option, socket_option
from agentwatch.cli.following import Entries, available, streamed
from agentwatch.errors import UsageError
from agentwatch.events import Change, Exec, Exit, Fork, Mount, Open
from agentwatch.sinks import lines, ocsf
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.escape import shown
from agentwatch.sinks.frames import Gap, Kill, Verdict
from agentwatch.sinks.reader import read
from agentwatch.sinks.segments import DEFAULT_DIRECTORY

KINDS = ("exec", "fork", "exit", "read", "change", "open", "connect", "mount")
COLOURS = {"notice": "cyan", "alert": "yellow", "stop": "red"}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

journal_option = click.option(
    "--journal",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),  # whether it is readable, we say ourselves
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="A journal, or one chain of it.",
)


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; None and empty ask for nothing. since, until: ns since the epoch."""

    since: int | None = None
    until: int | None = None
    agent: str | None = None
    rule: str | None = None
    kinds: tuple[str, ...] = ()
    pid: int | None = None
    would_deny: bool = False

    def __call__(self, entry: Entry) -> bool:
        if self.since is not None and entry.wall < self.since:
            return False
        if self.until is not None and entry.wall >= self.until:
            return False
        if isinstance(entry.frame, Gap):
            return True  # what is missing may be what was asked for
        if self.agent is not None and entry.agent != self.agent:
            return False
        return self._is_kind(entry) and self._is_process(entry) and self._is_verdict(entry)

    def _is_kind(self, entry: Entry) -> bool:
        if not self.kinds:
            return True
        if isinstance(entry.frame, Verdict):
            return entry.frame.kind in self.kinds
        return entry.event is not None and any(_is_a(entry, kind) for kind in self.kinds)

    def _is_process(self, entry: Entry) -> bool:
        if self.pid is None:
            return True
        process = getattr(entry.event or entry.frame, "process", None)
        return process is not None and process.pid == self.pid

    def _is_verdict(self, entry: Entry) -> bool:
        if self.rule is None and not self.would_deny:
            return True
        frame = entry.frame
        if isinstance(frame, Kill) and not self.would_deny and self.rule is not None:
            return fnmatch.fnmatchcase(frame.rule, self.rule)
        verdicts = (frame,) if isinstance(frame, Verdict) else entry.verdicts
        return any(self._matches(verdict) for verdict in verdicts)

    def _matches(self, verdict: Verdict) -> bool:
        if self.rule is not None and not fnmatch.fnmatchcase(verdict.rule, self.rule):
            return False
        stopped = verdict.action in ("deny", "kill")
        return not self.would_deny or (stopped and verdict.outcome == "observed")


def _is_a(entry: Entry, kind: str) -> bool:
    event = entry.event
    if isinstance(event, Exec | Fork | Exit | Change | Mount):
        return kind == type(event).__name__.lower()
    if isinstance(event, Open):
        found = {"read": event.reads, "change": event.changes, "open": True}
        return found.get(kind, False)
    return kind == "connect"


def moment(text: str | None, option: str) -> int | None:
    """ns since the epoch for `90s`, `1h`, `2d` (ago) or an ISO date or time. Raises UsageError."""
    if text is None:
        return None
    ago = re.fullmatch(r"(\d+)\s*([smhdw])", text.strip())
    if ago is not None:
        return time.time_ns() - int(ago[1]) * _UNITS[ago[2]] * 1_000_000_000
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1e9)
    except (ValueError, OverflowError):
        message = f"{option} {text!r} is neither a duration nor a time"
        raise UsageError(message, f"{option} 1h, or {option} 2026-01-31T09:00") from None


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """A reader that has seen enough (`| head`) is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def print_entries(
    entries: Entries, wanted: Callable[[Entry], bool], output: str, colour: bool
) -> None:
    """Entries that are wanted to stdout; to stderr what is wrong with the journal, or that none is.

    Exits 1 when something is wrong.
    """
    found = False
    with quiet_pipe():
        for entry in filter(wanted, entries):
            found = found or not isinstance(entry.frame, Gap)
            _print(entry, output, colour)
    if not found:
        click.echo("agentwatch: nothing matches", err=True)
    report(entries)


def _print(entry: Entry, output: str, colour: bool) -> None:
    if output == "json":
        for made in ocsf.objects(entry):
            click.echo(ocsf.dumps(made))
    else:
        _print_line(lines.line(entry), colour)


def report(entries: Entries) -> None:
    """Say what was found wrong while reading, and exit 1; nothing when all is well."""
    if not entries.problems:
        return
    for problem in entries.problems:
        click.echo(f"agentwatch: {shown(str(problem))}", err=True)
    click.echo("  try: agentwatch journal verify --journal DIR, and keep a copy of it", err=True)
    click.get_current_context().exit(1)


def _print_line(line: lines.Line | None, colour: bool) -> None:
    if line is None:
        return
    text = line.text()
    style = COLOURS.get(line.weight) if colour else None
    click.echo(click.style(text, fg=style) if style else text)


@click.command()
@journal_option
@click.option("--since", metavar="WHEN", help="From then on: 1h, 2d, or an ISO date or time.")
@click.option("--until", metavar="WHEN", help="Up to then, in the same forms.")
@click.option("--agent", metavar="AGENT", help="Only this agent's.")
@click.option("--rule", metavar="ID", help="Only what this rule judged; * stands for any text.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="May be repeated.")
@click.option("--pid", type=int, help="Only this process's.")
@click.option("--would-deny", is_flag=True, help="Only what enforcing would have stopped.")
@click.option("-f", "--follow", is_flag=True, help="Show what happens from now on, until Ctrl-C.")
@socket_option
@output_option
@click.pass_context
def events(
    context: click.Context,
    directory: Path,
    since: str | None,
    until: str | None,
    agent: str | None,
    rule: str | None,
    kinds: tuple[str, ...],
    pid: int | None,
    would_deny: bool,
    follow: bool,
    socket: Path,
    output: str,
) -> None:
    """Show what agents executed, opened and connected to, and what was said about it.

    The daemon is asked with -f, and by whoever may not read its journal: it shows everybody their
    own agents. `-o json` prints OCSF, one object per line.
    """
    start, stop = moment(since, "--since"), moment(until, "--until")
    wanted = Filter(start, stop, agent, rule, kinds, pid, would_deny)
    colour = wants_colour(sys.stdout)
    named = context.get_parameter_source("directory") is not ParameterSource.DEFAULT
    if not follow:
        found = read(directory) if named else available(directory, socket, start)
        print_entries(found, wanted, output, colour)
    elif named:
        raise UsageError("-f follows the daemon, and no journal", "leave out --journal")
    else:
        _follow(streamed(socket, start, follow=True), wanted, output, colour)


def _follow(
    entries: Iterator[Entry], wanted: Callable[[Entry], bool], output: str, colour: bool
) -> None:
    with suppress(KeyboardInterrupt), quiet_pipe():
        for entry in filter(wanted, entries):
            _print(entry, output, colour)
