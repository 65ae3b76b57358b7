"""Processes as /proc shows them at this moment; all that psutil is asked is asked here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from agentwatch.events import ProcessKey
from agentwatch.lineage import Image

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns; /proc tells starts to this precision


def image_now(process: ProcessKey) -> Image | None:
    """What a process runs; None when it is gone or not ours to see."""
    try:
        found = psutil.Process(process.pid)
        with found.oneshot():
            return Image(found.exe(), None, tuple(found.cmdline()), found.cwd(), found.uids().real)
    except (psutil.Error, OSError):
        return None


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
