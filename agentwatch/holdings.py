"""What a process holds open, from before anybody watched it. Nothing is asked of what it holds."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agentwatch import processes
from agentwatch.events import ProcessKey

HELD_MAX = 1024  # descriptors of one process that are listed
NAME_MAX = 512  # characters of a name


@dataclass(frozen=True, slots=True)
class Holdings:
    """Descriptors of a process. files: `r /path`, `rw /path`; connections: `tcp 192.0.2.4:443`.

    No file system is asked anything: what is held may be one that does not answer.
    """

    files: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()


def holdings(process: ProcessKey) -> Holdings:
    """What a process holds open now, HELD_MAX of each at most; nothing when it is gone."""
    here = f"/proc/{process.pid}/fd"
    descriptors = _directory(here)
    files, sockets = set(), False
    for fd in descriptors[:HELD_MAX]:
        with suppress(OSError):
            target = os.readlink(f"{here}/{fd}")
            sockets |= target.startswith("socket:")
            if target.startswith("/"):
                files.add(f"{_access(process.pid, fd)} {target[:NAME_MAX]}")
    more = len(descriptors) - HELD_MAX
    rest = (f"? {more} more",) if more > 0 else ()
    # Of more than that, psutil would look at every one.
    connections = _connections(process.pid) if sockets and more <= 0 else ()
    if not processes.runs(process):
        return Holdings()
    return Holdings((*sorted(files), *rest), connections)


def _directory(path: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(path)
    return []


def _access(pid: int, fd: str) -> str:
    """r, w or rw, from the octal flags of fdinfo."""
    with suppress(OSError, ValueError, IndexError):
        flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
        return ("r", "w", "rw", "rw")[int(flags, 8) & os.O_ACCMODE]
    return "?"


def _connections(pid: int) -> tuple[str, ...]:
    """Of sockets that have a peer, or a name of their own."""
    try:
        process = psutil.Process(pid)
        # The old name, of psutil before 6, is what Debian 12 has.
        connections = getattr(process, "net_connections", None) or process.connections
        return tuple(sorted({text for one in connections("all") if (text := _connection(one))}))
    except Exception as error:  # it stumbles over names of sockets that anybody may choose
        return (f"? not listed: {type(error).__name__}",)


def _connection(one: Any) -> str:
    place = one.raddr or one.laddr
    if not place:
        return ""
    if one.family == socket.AF_UNIX:
        return f"unix {place[:NAME_MAX]}"
    kind = "tcp" if one.type == socket.SOCK_STREAM else "udp"
    where = f"[{place.ip}]" if ":" in place.ip else place.ip
    return f"{kind} {'' if one.raddr else 'on '}{where}:{place.port}"
