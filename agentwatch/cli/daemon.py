"""`agentwatch daemon`: what systemd runs."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import click

from agentwatch.cli import report
from agentwatch.errors import AgentwatchError, PermissionDenied, ProgramRefused
from agentwatch.kernel.probes import Probes

CONFIG = "/etc/agentwatch/agentwatch.yaml"


@click.command()
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),  # whether it is readable, we say ourselves
    help=f"The configuration.  [default: {CONFIG}, if there is one]",
)
def daemon(path: Path | None) -> None:
    """Watch every agent on this machine, those that run already included, until told to stop."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "the daemon loads probes, which needs root", "sudo agentwatch daemon"
        )
    with ExitStack() as stack:
        probes = _ahead(stack)
        # The kernel takes its time to verify the probes: the rest is imported and read meanwhile.
        from agentwatch import config
        from agentwatch.daemon import Daemon
        from agentwatch.kernel.preflight import explain
        from agentwatch.notify import Notifier

        try:
            running = Daemon(stack, config.load(path), Notifier(), probes.result, _tell)
        except ProgramRefused as error:
            raise explain(error) from None
        running.run()


def _tell(text: str | AgentwatchError) -> None:
    """To whoever looks at the terminal, or the service's log; nobody need be there."""
    with suppress(OSError):
        if isinstance(text, AgentwatchError):
            report(text)
        else:
            click.echo(f"agentwatch: {text}", err=True)


def _ahead(stack: ExitStack) -> Future[Probes]:
    """Probes that are being loaded in a thread, and are closed at the end whatever became of it."""
    loader = ThreadPoolExecutor(1, "load")
    probes = loader.submit(Probes, identify=True)
    loader.shutdown(wait=False)

    def close() -> None:
        with suppress(AgentwatchError):  # it has been raised to whoever wanted them
            probes.result().close()

    stack.callback(close)
    return probes
