"""`agentwatch daemon`: what systemd runs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import click

from agentwatch import config
from agentwatch.daemon import Daemon
from agentwatch.errors import PermissionDenied, ProgramRefused
from agentwatch.kernel.preflight import explain
from agentwatch.notify import Notifier


@click.command()
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),  # whether it is readable, we say ourselves
    help=f"The configuration.  [default: {config.DEFAULT}, if there is one]",
)
def daemon(path: Path | None) -> None:
    """Watch every agent on this machine, those that run already included, until told to stop."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "the daemon loads probes, which needs root", "sudo agentwatch daemon"
        )
    settings = config.load(path)
    notifier = Notifier()
    with ExitStack() as stack:
        try:
            running = Daemon(stack, settings, notifier)
        except ProgramRefused as error:
            raise explain(error) from None
        running.run()
