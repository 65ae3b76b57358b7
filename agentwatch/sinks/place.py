"""The directory of a chain, held open by its writer, who notices when it is gone."""

from __future__ import annotations

import os
from pathlib import Path

from agentwatch.errors import AgentwatchError, JournalError
from agentwatch.sinks import segments


class Place:
    """DIR/NAME. fd: its descriptor; who takes it over closes it. path: as it was asked for."""

    def __init__(self, directory: Path, name: str, group: int | None) -> None:
        """Raises PermissionDenied or JournalError, also where another writer is at work."""
        self._asked = (Path(os.getcwd()) / directory, name, group)
        self.fd = _open(*self._asked)
        self.path = directory / name

    def is_there(self) -> bool:
        """The path still leads to the directory that was opened: not removed, moved, unmounted."""
        try:
            found = os.stat(self._asked[0] / self._asked[1])
        except OSError:
            return False
        ours = os.fstat(self.fd)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) and ours.st_nlink > 0

    def renew(self) -> int:
        """Make it anew, and checked anew; its descriptor. Raises JournalError."""
        try:
            self.fd = _open(*self._asked)
        except AgentwatchError as error:
            raise JournalError(f"the journal is gone: {error.message}", error.remedy) from None
        return self.fd

    def last(self) -> int:
        """The number of the last segment that is in it; 0 for none. Raises OSError."""
        return max(map(segments.number_of, os.listdir(self.fd)), default=0)


def _open(directory: Path, name: str, group: int | None) -> int:
    fd, path = segments.make_directory(directory, name, group)
    try:
        if not segments.hold(fd):
            remedy = "stop the other one, or name another place: `journal.dir`, or --journal of run"
            raise JournalError(f"{path} is being written by another agentwatch", remedy)
    except BaseException:
        os.close(fd)
        raise
    return fd
