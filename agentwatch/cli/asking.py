"""What the commands share that ask the daemon: its socket, and its answers read into dataclasses.

An answer of another version of the daemon may lack values, which then have their defaults, and may
have others, which are left out; one of another type is not understood.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from agentwatch.control.client import Client
from agentwatch.errors import AgentwatchError
from agentwatch.sinks.escape import utf8

DEFAULT_SOCKET = Path("/run/agentwatch/control.sock")
PINS = Path("/sys/fs/bpf/agentwatch")

T = TypeVar("T")

socket_option = click.option(
    "--socket",
    "socket",
    metavar="PATH",
    type=click.Path(path_type=Path),
    envvar="AGENTWATCH_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The daemon's control socket; also from AGENTWATCH_SOCKET.",
)
pins_option = click.option(
    "--pins",
    "pins",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="AGENTWATCH_PINS",
    default=PINS,
    show_default=True,
    help="Where in bpffs is what outlives the daemon; also from AGENTWATCH_PINS.",
)
output_option = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")


def ask(socket: Path, verb: str, **args: Any) -> dict[str, Any]:
    """The daemon's answer. Raises what it raised, NotRunningError where there is no daemon."""
    with Client.connect(socket) as client:
        return client.request(verb, **args)


def show_json(value: object) -> None:
    """An answer as one object on one line; names that are no UTF-8 as the rest of us write them."""
    click.echo(json.dumps(_plain(value)))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {utf8(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    return utf8(value) if isinstance(value, str) else value


def made(cls: type[T], raw: object) -> T:
    """A frozen dataclass from a map: every field has a default, and a value of its type.

    The items of a tuple are texts, or what the field's metadata says under `of`. Raises
    AgentwatchError.
    """
    if not isinstance(raw, Mapping):
        raise _foreign(cls.__name__, f"{type(raw).__name__} where a map belongs")
    values = {}
    for field in fields(cls):  # type: ignore[arg-type]  # there is no type of all dataclasses
        if field.name in raw:
            factory = field.default_factory
            default = factory() if factory is not MISSING else field.default
            values[field.name] = _like(raw[field.name], default, field.metadata.get("of", str))
    return cls(**values)


def _like(value: Any, default: Any, of: type) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list):
            raise _foreign("list", f"{type(value).__name__} where a list belongs")
        return tuple(_like(one, "", str) if of is str else made(of, one) for one in value)
    if isinstance(default, Mapping):
        if not isinstance(value, dict):
            raise _foreign("map", f"{type(value).__name__} where a map belongs")
        return {str(key): _like(one, of(), of) for key, one in value.items()}
    if hasattr(default, "__dataclass_fields__"):
        return made(type(default), value)
    if isinstance(default, str) and isinstance(value, bytes):  # a hash
        return value.hex()
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    if not isinstance(value, type(default)):
        expected = type(default).__name__
        raise _foreign(expected, f"{type(value).__name__} where {expected} belongs")
    return value


def _foreign(what: str, why: str) -> AgentwatchError:
    message = f"the daemon's answer is not understood: {what}: {why}"
    return AgentwatchError(message, "restart the daemon: it may be of another version")


def many(number: int, noun: str) -> str:
    """1 rule, 2 rules, 1,000 processes."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
