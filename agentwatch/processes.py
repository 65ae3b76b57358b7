"""Processes as /proc shows them at this moment; all that psutil is asked is asked here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from agentwatch.events import ProcessKey
from agentwatch.lineage import Image

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns; /proc tells starts to this precision
PF_KTHREAD = 0x00200000  # linux/sched.h
PROC_MAX = 1 << 16  # bytes read of a file of /proc that its process may lengthen
WORDS_MAX = 256


def image_now(process: ProcessKey) -> Image | None:
    """What a process runs; None when it is gone or not ours to see."""
    here = f"/proc/{process.pid}"
    try:
        exe, cwd = os.readlink(f"{here}/exe"), os.readlink(f"{here}/cwd")
        uid = _real_uid(_beginning(f"{here}/status"))
    except (OSError, ValueError, IndexError):
        return None
    exe = exe.removesuffix(" (deleted)")
    return Image(exe, None, _argv(process.pid), cwd, uid, since=process.start)


def names_now(process: ProcessKey) -> tuple[str, ...]:
    """What an identity is looked for under when the exec was not seen: () when it is gone.

    The executable, argv[0], and the script of an interpreter. argv is what the process says of
    itself: one that calls itself `claude`, as programs in node do, is looked for in its own PATH.
    """
    image = image_now(process)
    if image is None or not image.exe:
        return ()
    names = [image.exe, *(word for word in image.argv[:1] if "/" in word)]
    if INTERPRETER.fullmatch(os.path.basename(image.exe)):
        names += [word for word in image.args if word and not word.startswith("-")][:1]
        title = "".join(image.argv[:1])
        if title and "/" not in title:
            names += [os.path.join(place, title) for place in _search_path(process.pid)]
    return tuple(dict.fromkeys(os.path.normpath(os.path.join(image.cwd, name)) for name in names))


def _beginning(path: str) -> bytes:
    """PROC_MAX bytes of a file of /proc at most: prctl(PR_SET_MM) makes argv of any length."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, PROC_MAX)
    finally:
        os.close(fd)


def _argv(pid: int) -> tuple[str, ...]:
    with suppress(OSError):
        told = _beginning(f"/proc/{pid}/cmdline")
        words = told.removesuffix(b"\0").split(b"\0", WORDS_MAX) if told else []
        return tuple(map(os.fsdecode, words[:WORDS_MAX]))
    return ()


def _real_uid(status: bytes) -> int:
    """Raises ValueError, IndexError for what is no status."""
    return int(status[status.index(b"\nUid:") :].split(maxsplit=2)[1])


def _search_path(pid: int) -> list[str]:
    """The directories of a process's own PATH, from the environment it was started with."""
    with suppress(OSError):
        for entry in _beginning(f"/proc/{pid}/environ").split(b"\0"):
            if entry.startswith(b"PATH="):
                return os.fsdecode(entry[5:]).split(":")[:WORDS_MAX]
    return []


INTERPRETER = re.compile(r"(?:node(?:js)?|bun|deno|python|ruby|perl|php|(?:ba|da|z|k|a)?sh)[\d.]*")


def line_now(pid: int) -> tuple[Image, ...]:
    """What a process runs, and its ancestors: nearest first, 8 at most."""
    found: list[Image] = []
    while len(found) < 8 and pid > 1:
        image = image_now(ProcessKey(pid, 0))
        if image is None:
            break
        found.append(image)
        pid = parent_now(pid)
    return tuple(found)


def parent_now(pid: int) -> int:
    """The pid of a process's parent; 0 for nobody's."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return int(fields[1]) if fields else 0


def is_kernel_thread(pid: int) -> bool:
    """proc(5): field 9 has the kernel's flags of a task."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return bool(fields) and bool(int(fields[6]) & PF_KTHREAD)


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
