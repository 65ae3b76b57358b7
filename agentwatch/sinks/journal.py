"""The journal's writer: append-only segments of frames chained by hash (docs/journal.md).

Written for one caller on the hot path. Frames wait in memory and are chained when they are written
(tape), so that what has to give way while the disk is full (waiting) leaves a gap frame and not a
broken chain.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgpack

from agentwatch.errors import JournalError
from agentwatch.mounts import Mounts
from agentwatch.sinks import chain, frames, reserve, retention, segments
from agentwatch.sinks.chain import Head
from agentwatch.sinks.frames import Frame, Header, Notice, Stop
from agentwatch.sinks.host import now, read_boot_id
from agentwatch.sinks.place import Place
from agentwatch.sinks.resume import tail_of
from agentwatch.sinks.retention import Limits, Retention
from agentwatch.sinks.syncer import Syncer
from agentwatch.sinks.tape import Identity, Tape
from agentwatch.sinks.waiting import DECISION, NOTHING, RECORD, GivenWay, Item, Waiting, item_of

__all__ = ["Journal", "now", "read_boot_id"]

SEGMENT_BYTES = 64 << 20
BUFFER_BYTES = 256 << 10
HOLD = 100_000_000  # ns that a frame waits for others, while there are others
WRITE_BYTES = 1 << 20
LOOK = 0.5  # s between two looks at whether the directory is there, or the full disk has room

Raw = bytes | memoryview
Tap = Callable[[int, int, bytes, int], None]


class Journal:
    """One chain, open for writing. Not thread-safe; made by `Journal.open`.

    tap: called with (type, time, payload, records) of each frame that is accepted, in that order.
    failures: of writing, counted since open.
    """

    def __init__(
        self, place: Place, tape: Tape, syncer: Syncer, keep: Retention, lasting: bool, room: int
    ) -> None:
        self.directory = place.path
        self.failures = 0
        self.tap: Tap | None = None
        self._place, self._tape, self._syncer, self._retention = place, tape, syncer, keep
        self._waiting = Waiting()
        self._lasting, self._reserve = lasting, room
        self._looked = time.monotonic()
        self._gone: JournalError | None = None

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        boot_id: str | None = None,
        mounts: Mounts | None = None,
        host: str | None = None,
        name: str | None = None,
        group: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        fsync: float | None = 1.0,
        keep_bytes: int | None = None,
        keep_seconds: float | None = None,
        keep_others: bool = False,
        reserve_bytes: int = reserve.SIZE,
    ) -> Journal:
        """A writer's chain in DIR: DIR/name, by default DIR/run-TIME-PID; an old one is continued.

        group: whose members may read the chain. fsync: seconds between two of them at most; None
        leaves it to the kernel. keep_bytes, keep_seconds: older segments go (`tidy`); keep_others:
        so do chains of `run`s that are over, and then all of DIR is what keep_bytes is about.
        reserve_bytes: kept for decisions when the disk is full, less on a small one. Raises
        PermissionDenied and JournalError, each with a remedy; the first segment exists afterwards,
        and says how an old chain was found.
        """
        lasting = name is not None
        name = name or f"run-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        identity = Identity(
            read_boot_id() if boot_id is None else boot_id,
            socket.gethostname() if host is None else host,
            mounts or Mounts({}),
        )
        age = None if keep_seconds is None else int(keep_seconds * 1e9)
        keep = Retention(Limits(keep_bytes, age, keep_others), identity.boot_id)
        place = Place(Path(directory), name, group)
        try:
            tail = tail_of(place.path)
        except BaseException:
            os.close(place.fd)
            raise
        syncer = Syncer(place.fd, fsync)
        try:
            tape = Tape(place.fd, tail, identity, segment_bytes, syncer)
            room = reserve.fitting(place.fd, reserve_bytes)
            journal = cls(place, tape, syncer, keep, lasting, room)
            journal._start(tail.resumed(identity.boot_id))
        except BaseException:
            if not lasting:
                reserve.remove(place.fd)
            syncer.stop()
            raise
        return journal

    def _start(self, resumed: Frame | None) -> None:
        reserve.make(self._place.fd, self._reserve)
        try:
            self._tape.rotate()
        except OSError as error:
            raise segments.unwritable(self.directory, error) from None
        if resumed is not None:
            self._append(item_of(resumed, now()))
        self.flush()

    # What is written.

    def records(self, batch: Raw, count: int) -> None:
        """Raw records exactly as drained. Raises JournalError when a write fails; they are kept."""
        if not count:
            return
        self._append(Item(frames.RECORDS, now(), _batch(batch, count), count, RECORD))
        if self._is_due():
            self.flush()

    def write(self, frame: Frame) -> None:
        """A typed frame. A kill or a deny is written through at once, and its fsync begun.

        Raises JournalError when a write fails (the frame is kept), or for a frame that has no form.
        """
        if isinstance(frame, frames.MountsChanged):
            mounts = Mounts.from_rows(frame.rows)
            self._tape.identity = self._tape.identity._replace(mounts=mounts)
        self._append(item_of(frame, now()))
        if frames.is_decision(frame):
            self.flush()
            self._syncer.mark(urgent=True)
        elif self._is_due():
            self.flush()

    def flush(self) -> None:
        """Hand everything that waits to the kernel. Raises JournalError; what is left is kept."""
        told = self._look() if time.monotonic() - self._looked >= LOOK else self._gone
        if self._gone is None:
            try:
                self._drain()
            except OSError as error:
                self.failures += 1
                raise segments.write_failed(self.directory, error) from None
        if told is not None:
            self.failures += 1
            raise told
        self._raise_sync_error()

    def tidy(self, moment: int | None = None) -> None:
        """What is to be done every minute or so: retire what is old, however quiet it is.

        moment: ns of CLOCK_BOOTTIME, now by default. Raises JournalError like `flush`.
        """
        moment = now() if moment is None else moment
        self.flush()
        if not self._tape.narrow:
            reserve.make(self._place.fd, self._reserve)
            if self._tape.is_old(moment):
                self._rotate()
        self._retire(moment)

    def _rotate(self) -> None:
        try:
            self._tape.rotate()
        except OSError as error:
            self.failures += 1
            raise segments.write_failed(self.directory, error) from None
        self.flush()

    def _remove(self, removal: retention.Removal) -> None:
        """In the thread that syncs; tried again at the next turn where it fails."""
        with suppress(OSError):
            retention.remove(os.dup(self._place.fd), removal)

    def _retire(self, moment: int) -> None:
        """Say what goes; it goes once that is synced."""
        failed = None
        for removal in self._retention.due(self._place.fd, self._tape.number, moment):
            if not removal.again:
                try:
                    self.write(removal.frame)
                    self.flush()
                except JournalError as error:
                    failed = error
                if self._waiting.holds(DECISION):
                    break  # nothing goes before it is on disk that it does
                self._retention.told(removal.frame)
            self._syncer.then(partial(self._remove, removal))
        if failed is not None:
            raise failed

    def close(self, reason: str = "ended") -> None:
        """Write a stop frame if the last one is none, sync, close. Raises JournalError."""
        last = self._waiting.newest_type if self._waiting else self._tape.last_type
        self._looked = float("-inf")
        try:
            failed = self._last_flush()
            if last != frames.STOP:
                self._append(item_of(Stop(time=now(), reason=reason), now()))
            self.flush()
        finally:
            self._tape.end()
            if not self._lasting:
                reserve.remove(self._place.fd)
            self._syncer.stop()
        if failed is not None:
            raise failed
        self._raise_sync_error()

    def _last_flush(self) -> JournalError | None:
        """On a full disk what cannot be written any more is given up, and said."""
        try:
            self.flush()
        except JournalError as error:
            if self._tape.narrow:
                self._waiting.give_up(DECISION)
                self._append(item_of(self._waiting.told(now()), now()))
            return error
        return None

    # What it says of itself.

    def header(self) -> Header:
        """What the frames to come are read with, for somebody who is told of them from now on.

        The segment's own, with the mounts of this moment.
        """
        return replace(self._tape.header, mounts=tuple(self._tape.identity.mounts.rows()))

    @property
    def head(self) -> Head:
        """The last frame on disk."""
        return self._tape.head

    @property
    def bytes(self) -> int:
        """Written since open, like frames and segments."""
        return self._tape.bytes

    @property
    def frames(self) -> int:
        return self._tape.frames

    @property
    def segments(self) -> int:
        return self._tape.segments

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet; more than a buffer's worth only while writes fail."""
        return self._waiting.bytes

    @property
    def given_way(self) -> GivenWay:
        """What was given up since open, while nothing could be written."""
        return self._waiting.given_way

    @property
    def lost(self) -> int:
        """Raw records that gave way."""
        return self._waiting.given_way.records

    # How.

    def _append(self, item: Item) -> None:
        self._waiting.append(item)
        if self.tap is not None:
            self.tap(item.type, item.time, item.payload, item.records)

    def _is_due(self) -> bool:
        return self._waiting.bytes >= BUFFER_BYTES or self._waiting.span >= HOLD

    def _drain(self) -> None:
        """Write what waits; on a full disk decisions alone, as far as there is a reserve."""
        tape, full = self._tape, None
        if not tape.narrow:
            try:
                self._write_all(RECORD)
            except OSError as error:
                if error.errno not in reserve.FULL:
                    raise
                full = error
                tape.squeeze()
        if tape.narrow:
            self._write_all(DECISION)
            if self._waiting:
                raise full or OSError(reserve.FULL[0], os.strerror(reserve.FULL[0]))

    def _write_all(self, least: int) -> None:
        """Every frame of at least this rank, until the reserve is used up. Raises OSError."""
        while self._waiting or self._tape.is_empty or self._owes_gap:
            items = self._taken(least)
            if items or self._tape.is_empty or self._owes_gap:
                self._put(items)
            elif self._tape.narrow or not self._waiting.holds(least):
                return
            else:
                self._tape.rotate()

    @property
    def _owes_gap(self) -> bool:
        return self._waiting.untold != NOTHING and not self._tape.narrow

    def _taken(self, least: int) -> list[Item]:
        """Up to a write's worth, as far as it fits in the segment."""
        items: list[Item] = []
        if self._tape.is_old(now()) and not self._tape.narrow:
            return items
        room, left, size = self._tape.room, self._tape.left, 0
        while size < WRITE_BYTES:
            item = self._waiting.take(left - size if items else room, least)
            if item is None:
                break
            items.append(item)
            size += len(item.payload) + chain.OVERHEAD
        return items

    def _put(self, items: list[Item]) -> None:
        """Write these, after a gap frame for what gave way before. Raises OSError."""
        gap = None
        if self._owes_gap:
            gap = self._waiting.told(now())
            items = [item_of(gap, gap.time), *items]
        done, error = self._tape.write(items)
        if gap is not None and not done:
            self._waiting.untell(gap)
            done = 1
        self._waiting.put_back(items[done:])
        if error is not None:
            raise error

    def _look(self) -> JournalError | None:
        """Is the directory there, is there room again? What is to be told if not."""
        self._looked = time.monotonic()
        if self._gone is None and self._place.is_there() and self._tape.is_named():
            if self._tape.narrow:
                self._tape.widen(self._reserve)
            return None
        return self._renew()

    def _renew(self) -> JournalError:
        """Go on in a directory made anew: the chain's head is kept, what is gone is missing."""
        number, sequence = self._tape.number, self._tape.head.sequence
        try:
            if not self._place.is_there():
                self._tape.directory = self._place.renew()
                self._syncer.move(self._place.fd)
            reserve.make(self._place.fd, self._reserve)
            self._tape.rotate(beyond=self._place.last())
        except JournalError as error:
            self._gone = error
            return error
        except OSError as error:
            self._gone = segments.write_failed(self.directory, error)
            return self._gone
        self._gone, self._tape.narrow = None, False
        text = f"segments up to {number}, frames up to {sequence}: removed while it was written"
        self._append(item_of(Notice(subject="journal", text=text), now()))
        return JournalError(
            f"the journal in {self.directory} was removed or moved while it was written",
            "it goes on in a new one; ask who could remove it, and look for it in a backup",
        )

    def _raise_sync_error(self) -> None:
        error = self._syncer.take_error()
        if error is not None:
            self.failures += 1
            raise JournalError(
                f"{self.directory} could not be synced: {error.strerror}",
                "check the disk: frames of the last seconds may not survive a power loss",
            )


def _batch(data: bytes | memoryview, count: int) -> bytes:
    """The payload of a records frame: the map {count, data}."""
    packer = msgpack.Packer()
    head = packer.pack_map_header(2) + packer.pack("count") + packer.pack(count)
    return b"".join((head, packer.pack("data"), b"\xc6", len(data).to_bytes(4, "big"), data))
