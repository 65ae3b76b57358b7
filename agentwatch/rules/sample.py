"""Events made from fields: for tests inside rules, and for asking what a rule would say.

A field that is not given gets a value that nothing but `**` matches, so that no test passes by
accident and no rule fires because something could not be read.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentwatch.events import Connect, Event, Exec, Open, ProcessKey
from agentwatch.lineage import Actor, Image

UNLIKE = "\x01"  # a name, a token: what no rule names
_NO_ADDRESS = "240.0.0.255"  # of the block that was never given out
_NO_FAMILY = 0xFFFF
_PROCESS = ProcessKey(2, 2)
_PARENT = ProcessKey(1, 1)
_FAMILIES = {"inet": 2, "inet6": 10, "unix": 1, "netlink": 16, "packet": 17, "vsock": 40}


@dataclass(frozen=True, slots=True)
class Sample:
    """An event that never happened, and who would have made it."""

    kind: str
    event: Event
    actor: Actor


def samples(
    kind: str, fields: Mapping[str, Any], agents: tuple[str, ...], project: str | None
) -> tuple[Sample, ...]:
    """The events that fields of a kind stand for: text, numbers, tokens of an argv as tuples.

    One, but for `open` without access: opened for reading, and for writing.
    """
    actor = _actor(fields, agents, project)
    if kind == "exec":
        events: tuple[Event, ...] = (_exec(fields),)
    elif kind == "connect":
        events = (_connect(fields),)
    else:
        events = _opens(kind, fields)
    return tuple(Sample(kind, event, actor) for event in events)


def _exec(fields: Mapping[str, Any]) -> Exec:
    argv = fields.get("argv")
    if argv is None:
        argv = (UNLIKE, *fields.get("args", (UNLIKE,)))
    path = fields.get("path", UNLIKE)
    return Exec(
        **_common(),
        path=path,
        asked=fields.get("script", path),
        script=fields.get("script"),
        argv=argv,
        argc=fields.get("argc", len(argv)),
        stdin=fields.get("stdin", UNLIKE),
        cwd=fields.get("cwd", UNLIKE),
        anonymous=fields.get("anonymous") == "true",
        parent=_PARENT,
    )


def _opens(kind: str, fields: Mapping[str, Any]) -> tuple[Event, ...]:
    op, access = fields.get("op", "open"), fields.get("access")
    if kind == "open" and access is None and op == "open":
        return _open(fields, True, False), _open(fields, False, True)
    changes = kind == "change" or access == "write" or op != "open"
    reads = kind == "read" or access == "read" or not changes
    return (_open(fields, reads, changes),)


def _open(fields: Mapping[str, Any], reads: bool, changes: bool) -> Open:
    op = fields.get("op")
    mode = os.O_RDWR if reads and changes else os.O_WRONLY if changes else os.O_RDONLY
    return Open(
        **_common(),
        path=fields.get("path", UNLIKE),
        flags=mode | (os.O_TRUNC if op == "truncate" else 0),
        result=3,
        reads=reads,
        changes=changes,
        created=op == "create",
    )


def _connect(fields: Mapping[str, Any]) -> Connect:
    unix, addr = fields.get("unix", ""), fields.get("addr", "")
    family = _FAMILIES.get(fields.get("family", ""), _NO_FAMILY)
    if addr and "family" not in fields:
        family = socket.AF_INET6 if ipaddress.ip_address(addr).version == 6 else socket.AF_INET
    if unix:
        return Connect(
            **_common(), family=socket.AF_UNIX, protocol="unix", unix=unix, from_socket=True
        )
    protocol = fields.get("proto", UNLIKE)
    return Connect(
        **_common(),
        family=int(family),
        addr=addr or _NO_ADDRESS,
        port=fields.get("port", -1),
        protocol=protocol,
        syn=protocol == "tcp",
        from_socket=True,
    )


def _common() -> dict[str, Any]:
    return {"time": 0, "process": _PROCESS, "session": _PARENT}


def _actor(fields: Mapping[str, Any], agents: tuple[str, ...], project: str | None) -> Actor:
    if "agent" in fields:
        agents = (fields["agent"],)
    identity = "agent" if fields.get("process.role") == "agent" else None
    ancestors = [_image("parent", fields)] if _has("parent", fields) else []
    if _has("ancestor", fields):
        ancestors += [] if ancestors else [Image(exe=UNLIKE, argv=(UNLIKE, UNLIKE))]
        ancestors.append(_image("ancestor", fields))
    return Actor(
        process=_PROCESS,
        session=_PARENT,
        agents=agents,
        image=_image("process", fields, identity),
        ancestors=tuple(ancestors),
        project=project,
    )


def _has(who: str, fields: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{who}.") for name in fields)


def _image(who: str, fields: Mapping[str, Any], identity: str | None = None) -> Image:
    return Image(
        exe=fields.get(f"{who}.exe", UNLIKE),
        script=fields.get(f"{who}.script"),
        argv=(UNLIKE, *fields.get(f"{who}.args", (UNLIKE,))),
        cwd=fields.get(f"{who}.cwd", UNLIKE),
        uid=fields.get(f"{who}.uid", -1),
        identity=identity,
    )
