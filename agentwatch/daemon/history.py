"""The past, for people who may not read the journal: another process reads it for them.

What it finds is passed on as fast as it is taken, and no faster: nothing of it is dropped.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentwatch.command import itself
from agentwatch.control.connection import Poller
from agentwatch.control.server import Stream
from agentwatch.errors import AgentwatchError
from agentwatch.events import ProcessKey

AT_ONCE = 4  # and one more for root
PATIENCE = 60.0  # s that a stream may take nothing
PIECE = 256 << 10  # bytes passed on in one go


@dataclass(slots=True)
class _Reading:
    process: subprocess.Popen[bytes]
    stream: Stream
    uid: int
    since: float  # when something was passed on last


class History:
    """Processes that read the chain in `directory`, each for one stream."""

    def __init__(self, directory: Path, poller: Poller) -> None:
        self._directory, self._poller = directory, poller
        self._readings: dict[int, _Reading] = {}
        self._paused: set[int] = set()

    def __contains__(self, fd: int) -> bool:
        return fd in self._readings

    def check(self, uid: int) -> None:
        """Raises AgentwatchError where there is no room for one more, or one more of this uid."""
        uids = [reading.uid for reading in self._readings.values()]
        if uid in uids or len(uids) - (0 in uids) >= AT_ONCE + (uid == 0):
            message = "others are reading the journal through the daemon"
            if uid in uids:
                message = f"uid {uid} is reading the journal through the daemon already"
            raise AgentwatchError(message, "try again in a moment")

    def begin(
        self, stream: Stream, uid: int, since: int, session: ProcessKey | None, eyes: int
    ) -> None:
        """Begins to send uid's part of the journal from `since` (ns since the epoch) on.

        session: only of this one. eyes: the uid whose part it is; 0 is all of it.
        """
        only = ["--session", str(session.pid), str(session.start)] if session else []
        process = subprocess.Popen(
            [
                "nice",
                *itself(),
                "excerpt",
                f"--journal={self._directory}",
                f"--uid={eyes}",
                f"--since={since}",
                *only,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        self._readings[fd] = _Reading(process, stream, uid, time.monotonic())
        self._poller.register(fd, select.EPOLLIN)

    def ready(self, fd: int) -> None:
        """Passes on what was read, if the one who asked takes it."""
        reading = self._readings[fd]
        if reading.stream.closed:
            self._end(fd)
        elif reading.stream.connection.queued > PIECE:
            self._poller.unregister(fd)  # a pipe whose writer has gone is told whatever is asked
            self._paused.add(fd)
        else:
            try:
                piece = os.read(fd, PIECE)
            except BlockingIOError:
                return
            reading.since = time.monotonic()
            if piece:
                reading.stream.pass_on(piece)
            else:
                reading.stream.finish()
                self._end(fd)

    def revoke(self, refused: Callable[[Stream], str]) -> None:
        """Ends what is sent to those who may not have it any more; refused: why, "" if they may."""
        for fd, reading in list(self._readings.items()):
            reason = "" if reading.stream.closed else refused(reading.stream)
            if reason:
                reading.stream.end(reason)
                self._end(fd)

    def tick(self) -> None:
        """Goes on where there is room again, and ends where nobody listens any more."""
        for fd in list(self._paused):
            stream = self._readings[fd].stream
            if time.monotonic() - self._readings[fd].since > PATIENCE:
                stream.end("nothing was taken for too long")
                self._end(fd)
            elif stream.closed or stream.connection.queued <= PIECE:
                self._paused.discard(fd)
                self._poller.register(fd, select.EPOLLIN)
                self.ready(fd)

    def close(self) -> None:
        for fd in list(self._readings):
            self._end(fd)

    def _end(self, fd: int) -> None:
        reading = self._readings.pop(fd)
        if fd in self._paused:
            self._paused.discard(fd)
        else:
            self._poller.unregister(fd)
        reading.process.kill()
        reading.process.wait()
        assert reading.process.stdout is not None
        reading.process.stdout.close()
