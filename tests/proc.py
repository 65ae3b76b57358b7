"""What /proc says of a process that may end at any moment, also while it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: a program chooses its own name.

    Raises FileNotFoundError for a process that is gone, ProcessLookupError for one that ends now.
    """
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text[text.rindex(")") + 2 :].split()


def state(pid: int) -> str:
    """One letter of proc(5); "" when it is gone."""
    with suppress(OSError):
        return stat(pid)[0]
    return ""


def is_there(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state(pid) not in ("", "Z", "X")


def below(pid: int) -> Iterator[tuple[int, str]]:
    """Processes started by one, directly or not, with their command lines."""
    children: list[str] = []
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        with suppress(OSError):
            line = Path(f"/proc/{child}/cmdline").read_text(errors="replace")
            yield child, line.replace("\0", " ")
        yield from below(child)


def executable(pid: int) -> str:
    """The file that it runs; "" when it is gone."""
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink())
    return ""
