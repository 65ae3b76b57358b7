"""The command line: noun, then verb; data to stdout, messages to stderr.

Exit codes: 0 ok, 1 findings or failure, 2 usage, 3 daemon not running, 4 not permitted.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from typing import TextIO

import click

from agentwatch import __version__
from agentwatch.errors import AgentwatchError, ProgramRefused, RuleErrors
from agentwatch.rules.diagnostics import render

# Where a command is found, and what it does: imported only when it is used, for a quick start.
COMMANDS = {
    "run": ("run:run", "Run a command as an agent: watched, and stopped by the rules."),
    "daemon": ("daemon:daemon", "Watch every agent on this machine; what systemd runs."),
    "release": ("release:release", "End what the kernel goes on with, without a daemon."),
    "status": ("status:status", "Show what the daemon watches, and how it is."),
    "agents": ("agents:agents", "List the agents at work; tag, freeze, thaw and kill them."),
    "why": ("why:why", "Show what was denied, because of what, and what to do instead."),
    "doctor": ("doctor:doctor", "Check what this host lacks."),
    "events": ("events:events", "Show what agents did, and what was said about it."),
    "rules": ("rules:rules", "Check, test, list and explain rule files."),
    "journal": ("journal:journal", "Verify and export the journal."),
    "bugreport": ("bugreport:bugreport", "Collect what whoever helps needs to know; no secrets."),
    "completion": ("completion:completion", "Print the completion of bash, zsh or fish."),
    "version": ("", "Print the version."),
}
HIDDEN = {"watch-for": "run:watch_for", "excerpt": "excerpt:excerpt"}


class _Commands(click.Group):
    """The commands, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        place, _ = COMMANDS.get(name) or (HIDDEN.get(name, ""), "")
        if not place:
            return super().get_command(ctx, name)
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"agentwatch.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with a whole sentence: click would cut it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="agentwatch %(version)s")
def agentwatch() -> None:
    """Watches the AI agents on this machine and stops them where policy says stop."""


@agentwatch.command()
def version() -> None:
    """Print the version."""
    click.echo(f"agentwatch {__version__}")


loader_option = click.option(
    "--loader",
    type=click.Choice(["core", "bcc"]),
    help="How the probes are loaded; bcc compiles them here.  [default: core if the kernel can]",
)


def wants_colour(stream: TextIO) -> bool:
    """Only on a terminal, and not where NO_COLOR is set to anything but nothing."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def report(error: AgentwatchError) -> None:
    """An error as a person sees it: what, then what to do; the kernel's own words before both."""
    if isinstance(error, ProgramRefused) and error.log:
        click.echo(error.log.rstrip(), err=True)
    if isinstance(error, RuleErrors):
        for diagnostic in error.diagnostics:
            click.echo(render(diagnostic), err=True)
    click.echo(f"agentwatch: {error.message}", err=True)
    if error.remedy:
        click.echo(f"  try: {error.remedy}", err=True)


def main() -> None:
    """The console script."""
    try:
        code = agentwatch.main(prog_name="agentwatch", standalone_mode=False)
    except AgentwatchError as error:
        with suppress(OSError):  # nobody reads stderr: the code still says it
            report(error)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # Somebody like `head` has seen enough; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
