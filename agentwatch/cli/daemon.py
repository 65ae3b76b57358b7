"""`agentwatch daemon`: what systemd runs."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack, suppress
from pathlib import Path

import click

from agentwatch.beginning import begin
from agentwatch.cli import loader_option, report
from agentwatch.cli.asking import pins_option
from agentwatch.errors import AgentwatchError, PermissionDenied, ProgramRefused
from agentwatch.kernel import heap

CONFIG = "/etc/agentwatch/agentwatch.yaml"


@click.command()
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),  # whether it is readable, we say ourselves
    help=f"The configuration.  [default: {CONFIG}, if there is one]",
)
@loader_option
@pins_option
def daemon(path: Path | None, loader: str | None, pins: Path) -> None:
    """Watch every agent on this machine, those that run already included, until told to stop."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "the daemon loads probes, which needs root", "sudo agentwatch daemon"
        )
    heap.share()
    gc.disable()  # next to all that a start makes is kept; the daemon enables it when that is done
    with ExitStack() as stack:
        try:
            begun = begin(stack, path, pins, loader or "")
            from agentwatch.daemon import Daemon  # 0.1 s, in which agents are tagged already
            from agentwatch.notify import Notifier
            from agentwatch.sinks import journald
            from agentwatch.sinks.host import read_boot_id

            log = journald.here(read_boot_id())
            running = Daemon(stack, begun, Notifier(), _tell, log)
        except ProgramRefused as error:
            from agentwatch.kernel.preflight import explain

            raise explain(error) from None
        running.run()


def _tell(text: str | AgentwatchError) -> None:
    """To whoever looks at the terminal, or the service's log; nobody need be there."""
    with suppress(OSError):
        if isinstance(text, AgentwatchError):
            report(text)
        else:
            click.echo(f"agentwatch: {text}", err=True)
