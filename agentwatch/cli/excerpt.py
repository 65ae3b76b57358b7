"""What the daemon starts for a person who asks for the past: it must not stop to read a journal."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from agentwatch.control import wire
from agentwatch.errors import AgentwatchError
from agentwatch.sinks.excerpt import excerpt as excerpt_of


@click.command(hidden=True)
@click.option("--journal", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--uid", type=int, required=True)
@click.option("--since", type=int, default=0)
def excerpt(directory: Path, uid: int, since: int) -> None:
    """A chain's frames that a person may see, as frames of the control protocol, to stdout."""
    out = sys.stdout.buffer
    reason = ""
    with suppress(BrokenPipeError):
        try:
            for part in excerpt_of(directory, uid, since):
                out.write(wire.encode_stream(wire.Streamed(*part)))
        except AgentwatchError as error:
            reason = error.message
        out.write(wire.encode_stream(wire.End(reason)))
        out.flush()
