"""Metrics as a file, for hosts on which nothing may listen: node_exporter's textfile collector.

Written aside and renamed, so that whoever reads it reads a whole page.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agentwatch.errors import AgentwatchError, PermissionDenied

EVERY = 15.0  # s
MODE = 0o644  # node_exporter is nobody in particular
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class TextFile:
    """Writes the page to `path` in a thread of its own, until close(), which removes it.

    Raises AgentwatchError where it cannot be written the first time. failures: of later times.
    """

    def __init__(self, path: Path, page: Callable[[], bytes], every: float = EVERY) -> None:
        self.path, self._page, self._every = path, page, every
        self.failures = 0
        try:
            self._write()
        except OSError as error:
            raise _refused(path, error) from None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Numbers of a daemon that is gone would look like those of one that is well."""
        self._closing.set()
        self._thread.join()
        with suppress(OSError):
            os.unlink(self.path)

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self._write()
            except Exception:  # whatever is wrong with a number or the disk: the next time
                self.failures += 1

    def _write(self) -> None:
        page, aside = self._page(), self.path.with_name(f".{self.path.name}.new")
        fd = os.open(aside, _FLAGS, MODE)
        try:
            os.fchmod(fd, MODE)
            with open(fd, "wb", closefd=False) as file:
                file.write(page)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(aside)
            raise
        os.close(fd)
        os.rename(aside, self.path)


def _refused(path: Path, error: OSError) -> AgentwatchError:
    message = f"metrics cannot be written to {path}: {error.strerror}"
    if isinstance(error, PermissionError):
        return PermissionDenied(message, "run as root, or name a directory of your own")
    return AgentwatchError(
        message, f"mkdir -p {path.parent}; a hardened service also needs it in ReadWritePaths="
    )
