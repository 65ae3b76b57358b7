"""How far somebody has read the chains of a journal: a small file that a shipper comes back with.

It is written once everything before it was handed over, so what was interrupted is handed over
again: each thing at least once, and `metadata.uid` tells which are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agentwatch.errors import UsageError

_REMEDY = "name another file; without one, everything is exported"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def load(path: Path) -> dict[str, int]:
    """Chain -> sequence of the last frame that was read; {} where there is no file yet.

    Raises UsageError for what is no cursor.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a cursor: {error}", _REMEDY) from None
    if not isinstance(found, dict) or not all(isinstance(n, int) for n in found.values()):
        raise UsageError(f"{path} is no cursor", _REMEDY)
    return dict(found)


def store(path: Path, cursor: Mapping[str, int]) -> None:
    """Whole or not at all. Raises UsageError."""
    aside = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(aside, _FLAGS, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(cursor, file)
            file.flush()
            os.fsync(fd)
        os.rename(aside, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(aside)
        message = f"{path} cannot be written: {error.strerror}"
        raise UsageError(message, "name a place that you may write to") from None
