"""Findings for log shippers: one OCSF object per line, appended to a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agentwatch.errors import AgentwatchError, JournalError
from agentwatch.sinks import ocsf, segments
from agentwatch.sinks.frames import Frame, Gap, Kill, Notice, Verdict
from agentwatch.sinks.host import Host, now, this_host


class Findings:
    """A JSON Lines file open for appending. Each line leaves in one write.

    Lines of several writers do not mix, and a shipper that rotates the file away and signals
    nothing is found out: the file is opened anew when its name means another one.
    """

    def __init__(self, path: Path, host: Host | None = None, group: int | None = None) -> None:
        """group: whose members may read it. Raises PermissionDenied or JournalError when the file
        cannot be opened.
        """
        self.path, self._group = path, group
        self._host = host or this_host()
        self._fd = self._open()

    def write(self, frame: Frame) -> bool:
        """Append a frame that is a finding; False when it is none. Raises JournalError.

        A frame without a time is of this moment.
        """
        if not is_finding(frame):
            return False
        if not frame.time:
            frame = replace(frame, time=now())
        line = ocsf.dumps(ocsf.from_frame(frame, self._host)).encode() + b"\n"
        try:
            if self._moved():
                moved, self._fd = self._fd, self._open()
                os.close(moved)
            written = os.write(self._fd, line)
        except OSError as error:
            raise segments.write_failed(self.path, error) from None
        if written != len(line):
            self._mend()
            message = f"no room for a finding in {self.path}"
            raise JournalError(message, "free some space; the journal has the finding")
        return True

    def close(self) -> None:
        os.close(self._fd)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags | os.O_NONBLOCK, segments.FILE_MODE)
        except OSError as error:
            raise _refused(self.path, error) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise JournalError(f"{self.path} is no file", "name a file with --jsonl FILE")
        if self._group is not None:
            with suppress(OSError):  # it is written all the same, and root reads it
                os.fchown(fd, -1, self._group)
        return fd

    def _moved(self) -> bool:
        mine = os.fstat(self._fd)
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino)

    def _mend(self) -> None:
        """End a line that was cut, so that the next one stands by itself."""
        try:
            os.write(self._fd, b"\n")
        except OSError:
            return


def is_finding(frame: Frame) -> bool:
    """Verdicts other than allow, losses, and kills that did not work."""
    if isinstance(frame, Verdict):
        return frame.action != "allow"
    return isinstance(frame, Gap) or (isinstance(frame, Kill) and frame.outcome != "killed")


def _refused(path: Path, error: OSError) -> AgentwatchError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return JournalError(f"there is no directory for {path}", f"mkdir -p {path.parent}")
    if isinstance(error, IsADirectoryError):
        return JournalError(f"{path} is a directory", "name a file with --jsonl FILE")
    return segments.unwritable(path, error)


class JsonLines:
    """Findings as a sink. missing: how many could not be written; the first is told to `tell`."""

    def __init__(self, findings: Findings, tell: Callable[[Frame], None]) -> None:
        self._findings, self._tell = findings, tell
        self.missing = 0

    def event(self, *_: object) -> None:
        """Events are no findings."""

    def frame(self, frame: Frame) -> None:
        try:
            self._findings.write(frame)
        except AgentwatchError as error:
            self.missing += 1
            if self.missing == 1:
                self._tell(Notice(subject="jsonl", text=error.message))
