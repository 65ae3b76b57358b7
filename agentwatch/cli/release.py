"""`agentwatch release`: what the kernel goes on with after a daemon is gone ends."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agentwatch.cli.asking import many, pins_option
from agentwatch.errors import PermissionDenied


@click.command()
@pins_option
def release(pins: Path) -> None:
    """End what the kernel goes on with, without a daemon: root's word, at the console.

    Agents that run go on, unwatched. Refused while a daemon runs.
    """
    if os.geteuid() != 0:
        raise PermissionDenied(
            "what is in force ends by root's word only", "sudo agentwatch release"
        )
    from agentwatch.kernel import pins as pinning

    states = pinning.release(pins)
    for one in states:
        programs, sessions = many(one.programs, "program"), many(one.sessions, "session")
        click.echo(f"released {one.name}: {programs} gone, {sessions} unwatched")
    if not states:
        click.echo(f"nothing is kept in {pins}")
