"""Sessions that a daemon leaves to the next one, so that a restart forgets nobody.

What a process says of itself may have changed since it was recognised: node programs rename
themselves, and whoever was tagged by hand has no name to be known by. The file lies beside the
control socket, where only root writes; it is of this boot, or nobody's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from agentwatch.events import ProcessKey
from agentwatch.sessions import Left


class Remembered:
    """The file. boot: the kernel's id of this boot."""

    def __init__(self, socket: Path, boot: str) -> None:
        self._path = socket.with_name(socket.name + ".sessions")
        self._boot = boot
        self._written = ""

    def write(self, sessions: Iterable[Left]) -> None:
        """Replaces what was there, if it is other than that. Raises OSError."""
        rows = [
            [*one.session, list(one.agents), one.project, one.uid, list(map(list, one.members))]
            for one in sessions
        ]
        text = json.dumps({"boot": self._boot, "sessions": rows})
        if text == self._written:
            return
        new = self._path.with_name(self._path.name + ".new")
        with suppress(FileNotFoundError):
            new.unlink()
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        new.rename(self._path)
        self._written = text

    def read(self) -> tuple[Left, ...]:
        """What the last daemon of this boot left; nothing where there is none, or it is damaged."""
        try:
            if self._path.is_symlink() or self._path.stat().st_uid != os.geteuid():
                return ()
            told = json.loads(self._path.read_text())
            return tuple(_rows(told["sessions"])) if told["boot"] == self._boot else ()
        except (OSError, ValueError, TypeError, KeyError):
            return ()


def _rows(rows: Iterable[list[object]]) -> Iterator[Left]:
    for pid, start, agents, project, uid, members in rows:
        keys = tuple(ProcessKey(int(p), int(s)) for p, s in members)  # type: ignore[attr-defined]
        yield Left(
            ProcessKey(int(str(pid)), int(str(start))),
            tuple(map(str, agents)),  # type: ignore[call-overload]
            str(project),
            int(str(uid)),
            keys,
        )
