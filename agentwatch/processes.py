"""Processes as /proc shows them at this moment; all that psutil is asked is asked here."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from agentwatch.events import ProcessKey
from agentwatch.lineage import Image

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns; /proc tells starts to this precision
PF_KTHREAD = 0x00200000  # linux/sched.h
HELD_MAX = 4096  # descriptors of one process that are listed


def image_now(process: ProcessKey) -> Image | None:
    """What a process runs; None when it is gone or not ours to see."""
    try:
        found = psutil.Process(process.pid)
        with found.oneshot():
            return Image(found.exe(), None, tuple(found.cmdline()), found.cwd(), found.uids().real)
    except (psutil.Error, OSError):
        return None


def names_now(process: ProcessKey) -> tuple[str, ...]:
    """What an identity is looked for under when the exec was not seen: () when it is gone.

    The executable, argv[0] where that is a path, and the script of an interpreter.
    """
    here = f"/proc/{process.pid}"
    try:  # without psutil: this is asked of every process there is
        exe = os.readlink(f"{here}/exe").removesuffix(" (deleted)")
        argv = os.fsdecode(Path(f"{here}/cmdline").read_bytes()).split("\0")
        cwd = os.readlink(f"{here}/cwd")
    except OSError:  # it is gone, or the kernel's own
        return ()
    names = [exe, *(argv[:1] if "/" in argv[0] else ())]
    if INTERPRETER.fullmatch(os.path.basename(exe)):
        names += [word for word in argv[1:] if word and not word.startswith("-")][:1]
    return tuple(dict.fromkeys(os.path.normpath(os.path.join(cwd, name)) for name in names))


INTERPRETER = re.compile(r"(?:node(?:js)?|bun|deno|python|ruby|perl|php|(?:ba|da|z|k|a)?sh)[\d.]*")


def is_kernel_thread(pid: int) -> bool:
    """proc(5): field 9 has the kernel's flags of a task."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return bool(fields) and bool(int(fields[6]) & PF_KTHREAD)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Descriptors of a process. files: `r /path`, `rw /path`; connections: `tcp 192.0.2.4:443`.

    No file system is asked anything: what is held may be one that does not answer.
    """

    files: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()


def holdings(process: ProcessKey) -> Holdings:
    """What a process holds open now; nothing when it is gone. At most HELD_MAX of each."""
    files, sockets = [], False
    for fd in islice(_directory(f"/proc/{process.pid}/fd"), HELD_MAX):
        with suppress(OSError):
            target = os.readlink(f"/proc/{process.pid}/fd/{fd}")
            sockets |= target.startswith("socket:")
            if target.startswith("/"):
                files.append(f"{_access(process.pid, fd)} {target}")
    return (
        Holdings(tuple(sorted(set(files))), _connections(process.pid) if sockets else ())
        if runs(process)
        else Holdings()
    )


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
    found = []
    with suppress(psutil.Error, OSError):
        one: Any  # of a unix socket, the places are paths
        process = psutil.Process(pid)
        # The old name, of psutil before 6, is what Debian 12 has.
        connections = getattr(process, "net_connections", None) or process.connections
        for one in connections("all")[:HELD_MAX]:
            place = one.raddr or one.laddr
            if not place:
                continue
            if one.family == socket.AF_UNIX:
                found.append(f"unix {place}")
            else:
                kind = "tcp" if one.type == socket.SOCK_STREAM else "udp"
                where = f"[{place.ip}]" if ":" in place.ip else place.ip
                found.append(f"{kind} {'' if one.raddr else 'on '}{where}:{place.port}")
    return tuple(sorted(set(found)))


def key_now(pid: int) -> ProcessKey | None:
    """The process that has this pid, its start rounded down to a tick; None for nobody."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return ProcessKey(pid, int(fields[19]) * TICK) if fields else None


def runs(process: ProcessKey) -> bool:
    """Whether the pid is still this process and it has not ended. proc(5): fields 3, 20 and 22.

    One whose first thread has ended while others run on looks like a zombie, and is none.
    """
    fields = _stat(Path(f"/proc/{process.pid}/stat"))
    if not fields or int(fields[19]) != process.start // TICK:
        return False
    return fields[0] not in "ZX" or int(fields[17]) > 1


def held(process: ProcessKey) -> bool:
    """Whether no thread of it can execute an instruction: all are stopped, or it is gone.

    One that sleeps in the kernel and cannot be interrupted stops before it leaves it: so does the
    parent of a vfork.
    """
    return not runs(process) or _states(process) <= {*"TtDZX"}


def is_stopped(process: ProcessKey) -> bool:
    """Whether a signal has stopped it."""
    return runs(process) and "T" in _states(process)


def below(pid: int) -> list[psutil.Process]:
    """The children of a process, their children and so on."""
    with suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def end(found: Iterable[psutil.Process]) -> None:
    """SIGKILL to each that is still there."""
    for process in found:
        with suppress(psutil.Error):
            process.kill()


def _states(process: ProcessKey) -> set[str]:
    """Of its threads."""
    with suppress(OSError):
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        return {fields[0] for thread in threads if (fields := _stat(thread / "stat"))}
    return set()


def _stat(path: Path) -> list[str]:
    """The fields from the state on: a program chooses its own name, brackets and all."""
    try:
        stat = path.read_text(errors="replace")
    except OSError:
        return []
    return stat[stat.rindex(")") + 2 :].split()
