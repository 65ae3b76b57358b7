"""Events made from fields: for tests inside rules, and for asking what a rule would say.

A field that is not given gets a value that nothing but `**` matches, so that no test passes by
accident and no rule fires because something could not be read.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agentwatch.events import Change, Connect, Event, Exec, Mount, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.rules.unprobed import Listen, NamedConnect, Ptrace, Signal

UNLIKE = "\x01"  # a name, a token: what no rule names
_NO_ADDRESS = "240.0.0.255"  # of the block that was never given out
_NO_FAMILY = 0xFFFF
_PROCESS = ProcessKey(2, 2)
_PARENT = ProcessKey(1, 1)
_OPENING = frozenset({"open", "create", "truncate"})
_FAMILIES = {"inet": 2, "inet6": 10, "unix": 1, "netlink": 16, "packet": 17, "vsock": 40}


@dataclass(frozen=True, slots=True)
class Sample:
    """An event that never happened, who would have made it, and what would have come before."""

    kind: str
    event: Event
    actor: Actor
    before: tuple[Event, ...] = ()


def samples(
    kind: str, fields: Mapping[str, Any], agents: tuple[str, ...], project: str | None
) -> tuple[Sample, ...]:
    """The events that fields of a kind stand for: text, numbers, tokens of an argv as tuples.

    One, but for `open` without access: opened for reading, and for writing.
    """
    actor = _actor(fields, agents, project)
    if kind in ("read", "change", "open"):
        return tuple(Sample(kind, event, actor) for event in _opens(kind, fields))
    event = _MAKERS[kind](fields)
    return (Sample(kind, event, actor, _written(event, fields)),)


def _written(event: Event, fields: Mapping[str, Any]) -> tuple[Event, ...]:
    """What makes `written_by_agent` true of an exec: the session wrote the file before."""
    if fields.get("written_by_agent") != "true" or not isinstance(event, Exec):
        return ()
    return (Open(**_common(), path=event.path, flags=os.O_WRONLY, result=3, changes=True),)


def _exec(fields: Mapping[str, Any]) -> Exec:
    argv = fields.get("argv")
    if argv is None:
        argv = _argv(fields.get("script"), fields)
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


def _argv(script: str | None, fields: Mapping[str, Any], who: str = "") -> tuple[str, ...]:
    """argv of the arguments given. A script's name is the first of them, as the kernel puts it
    there, unless they have it already.
    """
    args = tuple(fields.get(f"{who}args", (UNLIKE,)))
    if script and os.path.basename(script) not in map(os.path.basename, args):
        args = (script, *args)
    return (UNLIKE, *args)


def _opens(kind: str, fields: Mapping[str, Any]) -> tuple[Event, ...]:
    op, access = fields.get("op", "open"), fields.get("access")
    if op not in _OPENING or "new_path" in fields:
        path, new_path = fields.get("path", UNLIKE), fields.get("new_path", "")
        op = fields.get("op", "rename")
        return (Change(**_common(), op=op, path=path, new_path=new_path),)
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
    return NamedConnect(**_socket(fields))


def _listen(fields: Mapping[str, Any]) -> Listen:
    return Listen(**_socket(fields))


def _socket(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a connect or listen."""
    unix, addr = fields.get("unix", ""), fields.get("addr", "")
    more = _common() | {"from_socket": True, "peer": fields.get("peer", UNLIKE)}
    if unix:
        return more | {"family": socket.AF_UNIX, "protocol": "unix", "unix": unix}
    family = _FAMILIES.get(fields.get("family", ""), _NO_FAMILY)
    if addr and "family" not in fields:
        family = socket.AF_INET6 if ipaddress.ip_address(addr).version == 6 else socket.AF_INET
    protocol = fields.get("proto", UNLIKE)
    return more | {
        "family": int(family),
        "addr": addr or _NO_ADDRESS,
        "port": fields.get("port", -1),
        "protocol": protocol,
        "syn": protocol == "tcp",
        "host": fields.get("host", UNLIKE),
    }


def _mount(fields: Mapping[str, Any]) -> Mount:
    op = fields.get("op", "mount")
    names = {name: fields.get(name, UNLIKE) for name in ("path", "source", "fstype")}
    if op == "userns":
        names = {}
    return Mount(**_common(), op=op, **names)


def _ptrace(fields: Mapping[str, Any]) -> Ptrace:
    return Ptrace(**_common(), **_aimed(fields))


def _signal(fields: Mapping[str, Any]) -> Signal:
    return Signal(**_common(), signal=fields.get("signal", UNLIKE), **_aimed(fields))


def _aimed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"target": fields.get("target.exe", UNLIKE), "peer": fields.get("peer", UNLIKE)}


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Event]] = MappingProxyType(
    {
        "exec": _exec,
        "connect": _connect,
        "listen": _listen,
        "mount": _mount,
        "ptrace": _ptrace,
        "signal": _signal,
    }
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
    session = _PARENT
    if "session" in fields:
        pid, _, start = fields["session"].partition(":")
        session = ProcessKey(int(pid), int(start))
    return Actor(
        process=_PROCESS,
        session=session,
        agents=agents,
        image=_image("process", fields, identity),
        ancestors=tuple(ancestors),
        project=project,
    )


def _has(who: str, fields: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{who}.") for name in fields)


def _image(who: str, fields: Mapping[str, Any], identity: str | None = None) -> Image:
    script = fields.get(f"{who}.script")
    return Image(
        exe=fields.get(f"{who}.exe", UNLIKE),
        script=script,
        argv=_argv(script, fields, f"{who}."),
        cwd=fields.get(f"{who}.cwd", UNLIKE),
        uid=fields.get(f"{who}.uid", -1),
        identity=identity,
    )
