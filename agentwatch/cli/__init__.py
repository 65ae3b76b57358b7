"""The command line: noun, then verb; data to stdout, messages to stderr.

Exit codes: 0 ok, 1 findings or failure, 2 usage, 3 daemon not running, 4 not permitted.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from agentwatch import __version__
from agentwatch.errors import AgentwatchError, ProgramRefused, RuleErrors
from agentwatch.rules.diagnostics import render

# Where a command is found: imported only when it is used, for a quick start.
COMMANDS = {
    "run": "run:run",
    "doctor": "doctor:doctor",
    "events": "events:events",
    "rules": "rules:rules",
    "journal": "journal:journal",
}
HIDDEN = {"watch-for": "run:watch_for"}


class _Commands(click.Group):
    """The commands, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, "version"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        place = COMMANDS.get(name) or HIDDEN.get(name)
        if place is None:
            return super().get_command(ctx, name)
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"agentwatch.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def agentwatch() -> None:
    """Watches the AI agents on this machine and stops them where policy says stop."""


@agentwatch.command()
def version() -> None:
    """Print the version."""
    click.echo(f"agentwatch {__version__}")


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
