"""The journal's writer: append-only segments of frames chained by hash (docs/journal.md).

Written for one caller on the hot path. Frames are buffered and chained when they are written, so
that records that have to give way while the disk is full leave a gap frame and not a broken chain.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgpack

from agentwatch import __version__, abi
from agentwatch.errors import AgentwatchError, JournalError
from agentwatch.mounts import Mounts
from agentwatch.sinks import chain, frames, segments
from agentwatch.sinks.chain import Head
from agentwatch.sinks.frames import Frame, Gap, Header, Stop
from agentwatch.sinks.host import now, read_boot_id
from agentwatch.sinks.syncer import Syncer

__all__ = ["Journal", "now", "read_boot_id"]

SEGMENT_BYTES = 64 << 20
BUFFER_BYTES = 256 << 10
HOLD = 100_000_000  # ns that a frame waits for others, while there are others
WAITING_MAX = 32 << 20
WRITE_BYTES = 1 << 20


class _Waiting(NamedTuple):
    type: int
    time: int
    payload: bytes
    records: int


class Journal:
    """One chain, open for writing. Not thread-safe; made by `Journal.open`.

    head: the last frame chained. bytes, frames, segments, failures, lost (records that gave way
    while nothing could be written): counted since open.
    """

    def __init__(
        self, fd: int, path: Path, tail: _Tail, identity: _Identity, segment_bytes: int
    ) -> None:
        self.directory = path
        self.head = tail.head
        self.bytes = self.frames = self.segments = self.failures = self.lost = 0
        self._fd = fd
        self._number = tail.number
        self._torn = tail.torn
        self._identity = identity
        self._limit = min(segment_bytes, segments.SEGMENT_MAX - 2 * WAITING_MAX)
        self._size = self._header_size = 0
        self._out = -1
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._shed_records = self._shed_frames = 0
        self._wire = b""
        self._last_type = -1
        self._syncer: Syncer

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
    ) -> Journal:
        """A writer's chain in DIR: DIR/name, by default DIR/run-TIME-PID; an old one is continued.

        group: whose members may read the chain. fsync: seconds between two of them at most; None
        leaves it to the kernel. Raises
        PermissionDenied and JournalError, each with a remedy; the first segment exists afterwards.
        """
        name = name or f"run-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        fd, path = segments.make_directory(Path(directory), name, group)
        segments.hold(fd)
        identity = _Identity(
            read_boot_id() if boot_id is None else boot_id,
            socket.gethostname() if host is None else host,
            mounts or Mounts({}),
        )
        journal = None
        try:
            journal = cls(fd, path, _tail(path), identity, segment_bytes)
            journal._syncer = Syncer(fd, fsync)
            journal._rotate()
            journal.flush()
        except BaseException:
            if journal is not None and hasattr(journal, "_syncer"):
                journal._syncer.stop()
            os.close(fd)
            raise
        return journal

    def records(self, batch: bytes | memoryview, count: int) -> None:
        """Raw records exactly as drained. Raises JournalError when a write fails; they are kept."""
        if not count:
            return
        payload = _batch(batch, count)
        self._append(_Waiting(frames.RECORDS, now(), payload, count))
        if self._is_due():
            self.flush()

    def write(self, frame: Frame) -> None:
        """A typed frame. A kill or a deny is written through at once, and its fsync begun.

        Raises JournalError when a write fails (the frame is kept), or for a frame that has no form.
        """
        if isinstance(frame, frames.MountsChanged):
            self._identity = self._identity._replace(mounts=Mounts.from_rows(frame.rows))
        number = frames.NUMBERS[type(frame)]
        self._append(_Waiting(number, frame.time or now(), frames.encode(frame), 0))
        if frames.is_decision(frame):
            self.flush()
            self._syncer.mark(urgent=True)
        elif self._is_due():
            self.flush()

    def flush(self) -> None:
        """Hand everything that waits to the kernel. Raises JournalError; what is left is kept."""
        while self._waiting or self._wire:
            if not self._wire:
                self._chain_some()
            self._send()
        self._raise_sync_error()

    def _raise_sync_error(self) -> None:
        error = self._syncer.take_error()
        if error is not None:
            self.failures += 1
            raise JournalError(
                f"{self.directory} could not be synced: {error.strerror}",
                "check the disk: frames of the last seconds may not survive a power loss",
            )

    def close(self, reason: str = "ended") -> None:
        """Write a stop frame if the last one is none, sync, close. Raises JournalError."""
        last = self._waiting[-1].type if self._waiting else self._last_type
        try:
            if last != frames.STOP:
                self.write(Stop(time=now(), reason=reason))
            self.flush()
        finally:
            self._syncer.stop()
            os.close(self._fd)
        self._raise_sync_error()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet; more than a buffer's worth only while writes fail."""
        return self._waiting_bytes + len(self._wire)

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        last = self._waiting[-1].time
        return self._waiting_bytes >= BUFFER_BYTES or last - self._waiting[0].time >= HOLD

    def _append(self, item: _Waiting) -> None:
        self._waiting.append(item)
        self._waiting_bytes += len(item.payload)
        if self._waiting_bytes > WAITING_MAX:
            self._shed()

    def _shed(self) -> None:
        """Records give way first, oldest first, then other frames; all of it is counted."""
        for records in (True, False):
            kept: deque[_Waiting] = deque()
            for item in self._waiting:
                if self._waiting_bytes <= WAITING_MAX // 2 or bool(item.records) != records:
                    kept.append(item)
                    continue
                self._waiting_bytes -= len(item.payload)
                self._shed_records += item.records
                self.lost += item.records
                self._shed_frames += not item.records
            self._waiting = kept

    def _chain_some(self) -> None:
        """Move up to a write's worth of what waits onto the wire, in this segment or a new one."""
        if self._shed_records or self._shed_frames:
            lost, others = self._shed_records, self._shed_frames
            gap = Gap(time=now(), stage="journal", count=lost, frames=others)
            self._put(_Waiting(frames.NUMBERS[Gap], gap.time, frames.encode(gap), 0))
            self._shed_records = self._shed_frames = 0
        parts = [self._wire]
        size = len(self._wire)
        while self._waiting and size < WRITE_BYTES:
            length = len(self._waiting[0].payload) + chain.OVERHEAD
            if self._size + size + length > self._limit and self._size + size > self._header_size:
                break
            item = self._waiting.popleft()
            self._waiting_bytes -= len(item.payload)
            parts.append(self._encode(item))
            size += length
        self._wire = b"".join(parts)
        if not self._wire:
            self._rotate()

    def _put(self, item: _Waiting) -> None:
        self._wire += self._encode(item)

    def _encode(self, item: _Waiting) -> bytes:
        sequence = self.head.sequence + 1
        frame, hash_ = chain.encode(sequence, item.type, item.time, item.payload, self.head.hash)
        self.head = Head(sequence, hash_)
        self.frames += 1
        self._last_type = item.type
        return frame

    def _send(self) -> None:
        try:
            written = os.write(self._out, self._wire)
        except OSError as error:
            self.failures += 1
            raise segments.write_failed(self.directory, error) from None
        self._wire = self._wire[written:]
        self._size += written
        self.bytes += written
        self._syncer.mark()

    def _rotate(self) -> None:
        """Begin the next segment: its header goes onto the wire."""
        try:
            out = segments.create(self._fd, self._number + 1)
        except OSError as error:
            self.failures += 1
            tell = segments.write_failed if self.segments else segments.unwritable
            raise tell(self.directory, error) from None
        self._syncer.use(out)
        self._out = out
        self._number += 1
        self.segments += 1
        self._size = 0
        header = self._identity.header(self._number, self.head.hash, self._torn)
        self._torn = 0
        self._put(_Waiting(frames.HEADER, header.time, frames.encode(header), 0))
        self._header_size = len(self._wire)


class _Identity(NamedTuple):
    """What every header repeats."""

    boot_id: str
    host: str
    mounts: Mounts

    def header(self, segment: int, previous: bytes, torn: int) -> Header:
        boottime = now()
        return Header(
            time=boottime,
            format=frames.FORMAT,
            abi=abi.ABI,
            version=__version__,
            boot_id=self.boot_id,
            host=self.host,
            wall=time.time_ns(),
            boottime=boottime,
            segment=segment,
            previous=previous,
            torn=torn,
            tables={kind: layout.table() for kind, layout in abi.LAYOUTS.items()},
            kinds=dict(abi.KIND_NAMES),
            mounts=tuple(self.mounts.rows()),
            types={number: frames.type_name(number) for number in frames.TYPES},
        )


class _Tail(NamedTuple):
    """Where an old chain ended: its last segment, last frame, bytes of a cut write after it."""

    number: int
    head: Head
    torn: int


def _tail(directory: Path) -> _Tail:
    """Where to go on. Raises JournalError for an old chain that cannot be read."""
    number = torn = 0
    try:
        names = sorted(directory.glob("*.journal"), reverse=True)
        for path in names:
            number = number or int(path.stem)
            data, _ = segments.load(path)
            items = list(chain.walk(memoryview(data)))
            if path == names[0]:
                torn = sum(i.end - i.offset for i in items[-1:] if isinstance(i, chain.Hole))
            found = [item for item in items if isinstance(item, chain.RawFrame)]
            if found:
                return _Tail(number, Head(found[-1].sequence, found[-1].hash), torn)
    except (AgentwatchError, OSError, ValueError) as error:
        reason = error.message if isinstance(error, AgentwatchError) else error
        raise JournalError(
            f"the journal in {directory} cannot be continued: {reason}", "move it away"
        ) from None
    return _Tail(number, Head(0, chain.ROOT), torn)


def _batch(data: bytes | memoryview, count: int) -> bytes:
    """The payload of a records frame: the map {count, data}."""
    packer = msgpack.Packer()
    head = packer.pack_map_header(2) + packer.pack("count") + packer.pack(count)
    return b"".join((head, packer.pack("data"), b"\xc6", len(data).to_bytes(4, "big"), data))
