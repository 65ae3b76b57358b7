"""The end of a chain on disk: frames are chained and appended, segments follow one another.

A frame that could not be written whole is taken back, so a chain on disk ends with a whole frame
whatever the disk does, and what was not written can still be put in another order.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from typing import NamedTuple

from agentwatch import __version__, abi
from agentwatch.mounts import Mounts
from agentwatch.sinks import chain, frames, reserve, segments
from agentwatch.sinks.chain import Head
from agentwatch.sinks.frames import Header
from agentwatch.sinks.host import now
from agentwatch.sinks.resume import Tail
from agentwatch.sinks.syncer import Syncer
from agentwatch.sinks.waiting import WAITING_MAX, Item

SEGMENT_AGE = 86_400_000_000_000  # ns; a segment holds no frame later than that after its header


class Identity(NamedTuple):
    """What every header repeats."""

    boot_id: str
    host: str
    mounts: Mounts

    def header(self, segment: int, previous: bytes, torn: int = 0) -> Header:
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


class Tape:
    """One chain's last segment, open for appending.

    directory: a descriptor of the chain's, owned by somebody else. head: the last frame on disk.
    number, header: of the segment. narrow: the disk is full, and what is written now may be in the
    reserve.
    bytes, frames, segments: written since it was made.
    """

    def __init__(
        self, directory: int, tail: Tail, identity: Identity, limit: int, syncer: Syncer
    ) -> None:
        self.directory = directory
        self.identity = identity
        self.head, self.number = tail.head, tail.number
        self.header = Header()
        self.last_type = -1
        self.bytes = self.frames = self.segments = 0
        self.narrow = False
        self._torn = tail.torn
        self._usual = self._limit = min(limit, segments.SEGMENT_MAX - 2 * WAITING_MAX)
        self._syncer = syncer
        self._out = -1
        self._size = self._began = 0
        self._header = Item(frames.HEADER, 0, b"")
        self._spoiled = self._in_reserve = False

    @property
    def is_empty(self) -> bool:
        """Not even a header is in the segment."""
        return not self._size

    @property
    def is_fresh(self) -> bool:
        """Only a header is in the segment, if that."""
        return self._size <= len(self._header.payload) + chain.OVERHEAD

    @property
    def room(self) -> int:
        """Bytes that the payload of one more frame may have; a first one may have any number."""
        if self._spoiled:
            return -1
        if self.is_fresh and not self._in_reserve:
            return chain.PAYLOAD_MAX
        return self.left

    @property
    def left(self) -> int:
        """Bytes until the segment's limit, for the payload of one more frame."""
        used = self._size or len(self._header.payload) + chain.OVERHEAD
        return self._limit - used - chain.OVERHEAD

    def is_old(self, moment: int) -> bool:
        """It has frames, and is too old for more."""
        return moment - self._began >= SEGMENT_AGE and not self.is_fresh

    def is_named(self) -> bool:
        """The segment is still in a directory."""
        return os.fstat(self._out).st_nlink > 0

    def rotate(self, beyond: int = 0) -> None:
        """Begin the next segment, past number `beyond` too. Raises OSError: nothing has changed."""
        number = max(self.number, beyond) + 1
        out = segments.create(self.directory, number)
        self.end()
        self._begin(out, number, self._usual)
        self._in_reserve = False

    def write(self, items: list[Item]) -> tuple[int, OSError | None]:
        """(how many of them are in the segment now, why not all)."""
        first = not self._size
        head, size, wire, ends, heads = self.head, self._size, [], [], []
        for item in (self._header, *items) if first else items:
            sequence = head.sequence + 1
            frame, hash_ = chain.encode(sequence, item.type, item.time, item.payload, head.hash)
            head = Head(sequence, hash_)
            size += len(frame)
            wire.append(frame)
            ends.append(size)
            heads.append(head)
        at, error = self._append(b"".join(wire))
        done = bisect_right(ends, at)
        if done < len(ends):
            self._take_back(ends[done - 1] if done else self._size, at)
        if done:
            self.head = heads[done - 1]
            self.bytes += ends[done - 1] - self._size
            self._size = ends[done - 1]
            self.frames += done
            self._syncer.mark()
        done -= first and done > 0
        if done:
            self.last_type = items[done - 1].type
        return done, error

    def _append(self, wire: bytes) -> tuple[int, OSError | None]:
        """(where the segment ends now, why not where it should)."""
        view, at = memoryview(wire), 0
        try:
            while at < len(view):
                at += os.write(self._out, view[at:])
        except OSError as error:
            return self._size + at, error
        return self._size + at, None

    def _take_back(self, size: int, at: int) -> None:
        """Cut what is behind the last whole frame; where that fails go on in another segment."""
        try:
            if not self._in_reserve:
                os.ftruncate(self._out, size)
            os.lseek(self._out, size, os.SEEK_SET)
        except OSError:
            self._torn += at - size
            self._spoiled = at > size

    def squeeze(self) -> None:
        """The disk is full: go on in the reserve if there is one, and in any case be narrow."""
        self.narrow = True
        number = self.number + (self._size > 0)
        taken = reserve.take(self.directory, number, replace=not self._size)
        if taken is not None:
            self._begin(taken[0], number, taken[1])
            self._in_reserve = True

    def widen(self, size: int) -> bool:
        """True where there is room again, for a new reserve of `size` and as much for others."""
        if not reserve.make(self.directory, size, spare=size):
            return False
        try:
            self.rotate()
        except OSError:
            return False
        self.narrow = False
        return True

    def end(self) -> None:
        """Leave no allocated room behind in the segment."""
        if self._in_reserve:
            try:
                os.ftruncate(self._out, self._size)
            except OSError:
                self._torn += os.fstat(self._out).st_size - self._size

    def _begin(self, out: int, number: int, limit: int) -> None:
        self._syncer.use(out)
        self._out, self.number, self._limit = out, number, limit
        self.segments += 1
        self._size, self._spoiled = 0, False
        self.header = self.identity.header(number, self.head.hash, self._torn)
        self._torn, self._began = 0, self.header.boottime
        self._header = Item(frames.HEADER, self.header.time, frames.encode(self.header))
