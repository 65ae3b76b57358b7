"""What the daemon starts for a person who asks for the past: it must not stop to read a journal."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from agentwatch.control import wire
from agentwatch.errors import AgentwatchError
from agentwatch.events import ProcessKey
from agentwatch.sinks.excerpt import excerpt as excerpt_of


@click.command(hidden=True)
@click.option("--journal", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--uid", type=int, required=True)
@click.option("--since", type=int, default=0)
@click.option("--session", type=(int, int), metavar="PID START")
def excerpt(directory: Path, uid: int, since: int, session: tuple[int, int] | None) -> None:
    """A chain's frames that a person may see, as frames of the control protocol, to stdout."""
    out = sys.stdout.buffer
    reason = ""
    only = ProcessKey(*session) if session else None
    with suppress(BrokenPipeError):
        try:
            for part in excerpt_of(directory, uid, since, only):
                out.write(wire.encode_stream(wire.Streamed(*part)))
        except AgentwatchError as error:
            reason = error.message
        out.write(wire.encode_stream(wire.End(reason)))
        out.flush()
