"""Whether rule files or the configuration have changed, looked at now and then."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from agentwatch.rules.load import SUFFIXES

Seen: TypeAlias = tuple[tuple[str, int, int, int, int], ...]
"""By name: device, inode, size, and ns of the last change; zeros for what is not there."""


class Changes:
    """What was there when it was loaded, and since.

    A change counts once nothing has changed from one look to the next: whoever writes several files
    is not read between two of them.
    """

    def __init__(self) -> None:
        self._taken: Seen = ()  # as it was when something was made of it, good or bad
        self._last: Seen = ()

    def took(self, paths: Iterable[Path]) -> None:
        """These files and directories are about to be read."""
        self._taken = self._last = _seen(paths)

    def look(self, paths: Iterable[Path]) -> bool:
        """Whether they have changed since they were read, and not since the last look.

        True once for each change.
        """
        now = _seen(paths)
        quiet, self._last = now == self._last, now
        if now == self._taken or not quiet:
            return False
        self._taken = now
        return True


def _seen(paths: Iterable[Path]) -> Seen:
    return tuple(_look(name) for path in paths for name in _names(path))


def _names(path: Path) -> list[str]:
    """The files a path stands for, itself included: those of a directory are rule files."""
    try:
        inside = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES))
    except OSError:
        inside = []
    return [str(path), *(os.path.join(path, name) for name in inside)]


def _look(name: str) -> tuple[str, int, int, int, int]:
    try:
        found = os.stat(name)
    except OSError:
        return name, 0, 0, 0, 0
    if os.path.isdir(name):  # of it only its files count
        return name, found.st_dev, found.st_ino, 0, 0
    return name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
