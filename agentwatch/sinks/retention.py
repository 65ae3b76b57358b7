"""Which segments of a journal are old enough to go, and their removal.

A clock that jumps must not empty a journal. Within this boot age is measured by CLOCK_BOOTTIME
alone. What other boots left has only the wall clock: it counts once the machine has been up for
SETTLED (a broken clock is put right by then), and what the clock says may run at most twice as fast
as time does. Sizes know no clock.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from agentwatch.errors import JournalError
from agentwatch.sinks import ancestors, chain, frames, reserve, segments
from agentwatch.sinks.chain import Head, RawFrame
from agentwatch.sinks.frames import Header, Retired
from agentwatch.sinks.tape import SEGMENT_AGE

SETTLED = 3_600_000_000_000  # ns of uptime
CHAINS = 64  # of other writers that are looked at for the first time, or retired, in one turn
HEADER_BYTES = 256 << 10
END_BYTES = 64 << 10

_OTHERS = re.compile(r"run-[0-9A-Za-z-]+")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Limits:
    """size: bytes that may be kept; age: ns. others: chains of dead `run`s in DIR are retired, too,
    and count for size.
    """

    size: int | None = None
    age: int | None = None
    others: bool = False


class Removal(NamedTuple):
    """What goes once its frame is on disk.

    names: its segments, in the order of going. again: a frame has said so before.
    """

    frame: Retired
    names: tuple[str, ...]
    again: bool


class _Begun(NamedTuple):
    """A segment's beginning, by its header; before: where the chain stood."""

    boot_id: str
    wall: int
    boottime: int
    before: Head


class _Unit(NamedTuple):
    """What goes together: a segment of ours (chain ""), or a whole chain of a dead writer.

    With a segment go those after it that have no header: of writers killed before they wrote one.
    numbers: all of them. age: in ns. order: when it ended, in ns since the epoch. until: where.
    """

    chain: str
    numbers: tuple[int, ...]
    size: int
    age: int
    order: int
    until: Head

    @property
    def last(self) -> int:
        return self.numbers[-1]


class Retention:
    """Of one writer's chain and, if wanted, of those that lie beside it."""

    def __init__(self, limits: Limits, boot_id: str) -> None:
        self._limits = limits
        self._boot_id = boot_id
        self._begun: dict[int, _Begun] = {}
        self._dead: dict[str, _Unit] = {}
        self._ends: dict[str, _Begun] = {}
        self._told: dict[str, int] = {}
        self._clock = self._looked = self._turn = 0

    def due(self, directory: int, current: int, now: int) -> list[Removal]:
        """What is to go now. directory: of our chain, whose last segment is `current`."""
        if self._limits.size is None and self._limits.age is None:
            return []
        wall = self._wall(now)
        own, total = self._own(directory, current, now, wall)
        others: list[_Unit] = []
        if self._limits.others:
            others, more = self._others(directory, now, wall)
            total += more
        return self._removals(own, others, total)

    def _wall(self, now: int) -> int:
        """The wall clock, less what it has jumped ahead. ns since the epoch."""
        found = time.time_ns()
        if self._clock:
            found = min(found, self._clock + 2 * (now - self._looked))
        self._clock, self._looked = found, now
        return found

    def _age(self, begun: _Begun, now: int, wall: int) -> int:
        if begun.boot_id and begun.boot_id == self._boot_id:
            return now - begun.boottime
        return wall - begun.wall if now >= SETTLED else 0

    def _own(self, directory: int, current: int, now: int, wall: int) -> tuple[list[_Unit], int]:
        """(segments before the current one, oldest first; bytes of all)."""
        sizes = _sizes(directory)
        numbers = sorted(number for number in sizes if number < current)
        found, together, order = [], [], 0
        for number, following in zip(numbers, [*numbers[1:], current], strict=False):
            together.append(number)
            after = self._begun.get(following) or _begun(directory, following)
            if after is None:
                continue  # where this one ends, the next header says
            self._begun[following] = after
            age = self._age(after, now, wall)
            order = max(after.wall, order)
            size = sum(sizes[one] for one in together)
            found.append(_Unit("", tuple(together), size, age, order, after.before))
            together = []
        self._begun = {n: begun for n, begun in self._begun.items() if n in sizes}
        return found, sum(sizes.values())

    def _others(self, directory: int, now: int, wall: int) -> tuple[list[_Unit], int]:
        """(chains of dead writers, bytes of all chains). Those that run are only counted."""
        units, total, looked = [], 0, 0
        with _opened("..", directory) as above:
            names = sorted(filter(_OTHERS.fullmatch, os.listdir(above)))
            first = self._turn % len(names) if names else 0
            for name in (*names[first:], *names[:first]):
                if name not in self._dead and looked < CHAINS:
                    looked += 1
                    total += self._look(above, name)
                if name in self._dead:
                    unit, end = self._dead[name], self._ends[name]
                    age = self._age(end, now, wall) - SEGMENT_AGE
                    units.append(unit._replace(age=age))
                    total += unit.size
        self._turn += looked  # more living writers than CHAINS must not hide the dead ones
        self._dead = {name: self._dead[name] for name in names if name in self._dead}
        return units, total

    def _look(self, above: int, name: str) -> int:
        """Notes a chain whose writer is dead; the size of one whose writer is not."""
        with suppress(OSError, JournalError), _opened(name, above) as fd:
            ancestors.check_owner(os.fstat(fd), segments.DEFAULT_DIRECTORY / name)
            sizes = _sizes(fd)
            if not _locked(fd):
                return sum(sizes.values())
            numbers, size = tuple(sorted(sizes)), sum(sizes.values())
            for last in reversed(numbers):
                begun = _begun(fd, last)
                if begun is not None:
                    until = _end(fd, last)
                    self._dead[name] = _Unit(name, numbers, size, 0, begun.wall, until)
                    self._ends[name] = begun
                    break
        return 0

    def _removals(self, own: list[_Unit], others: list[_Unit], total: int) -> list[Removal]:
        """Oldest first, until both limits hold."""
        chosen: dict[str, list[_Unit]] = {}
        ours = True
        for unit in sorted([*own, *others], key=lambda unit: unit.order):
            aged = self._limits.age is not None and unit.age > self._limits.age
            large = self._limits.size is not None and total > self._limits.size
            if not unit.chain:
                ours = wanted = ours and (aged or large)
            else:
                wanted = (aged or large) and len(chosen) <= CHAINS
            if wanted:
                total -= unit.size
                chosen.setdefault(unit.chain, []).append(unit)
        return [self._removal(units) for units in chosen.values()]

    def told(self, frame: Retired) -> None:
        """It is on disk: that much need not be said again."""
        self._told[frame.chain] = frame.last

    def _removal(self, units: list[_Unit]) -> Removal:
        last = units[-1]
        aged = self._limits.age is not None and last.age > self._limits.age
        again = self._told.get(last.chain, 0) >= last.last
        frame = Retired(
            chain=last.chain,
            last=last.last,
            sequence=last.until.sequence,
            hash=last.until.hash,
            size=sum(unit.size for unit in units),
            reason="age" if aged else "bytes",
        )
        numbers = (number for unit in units for number in unit.numbers)
        return Removal(frame, tuple(map(segments.segment_name, numbers)), again)


def remove(directory: int, removal: Removal) -> None:
    """Remove what is said. directory: of the writer's own chain; the descriptor is closed.

    Never fails: what cannot be removed is tried again at the next turn.
    """
    try:
        _remove(directory, removal)
    except OSError:
        return
    finally:
        os.close(directory)


def _remove(directory: int, removal: Removal) -> None:
    if not removal.frame.chain:
        for name in removal.names:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
        return
    with _opened("..", directory) as above, _opened(removal.frame.chain, above) as fd:
        sizes = _sizes(fd)
        if not _locked(fd) or max(sizes, default=0) > removal.frame.last:
            return
        # Newest first: what is left when this is interrupted is a chain without its end.
        for number in sorted(sizes, reverse=True):
            os.unlink(segments.segment_name(number), dir_fd=fd)
        reserve.remove(fd)
        os.rmdir(removal.frame.chain, dir_fd=above)


@contextmanager
def _opened(name: str, above: int) -> Iterator[int]:
    """A directory below another one. Raises OSError."""
    fd = os.open(name, _DIRECTORY, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)


def _locked(directory: int) -> bool:
    """No writer has the chain; and none gets it until the descriptor is closed."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sizes(directory: int) -> dict[int, int]:
    """Number -> bytes of each segment in a directory."""
    sizes = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            number = segments.number_of(entry.name)
            with suppress(FileNotFoundError):  # the thread that removes may be at work
                if number and entry.is_file(follow_symlinks=False):
                    sizes[number] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _read(directory: int, number: int, most: int, end: bool = False) -> memoryview:
    """The first bytes of a segment, or its last ones. Raises OSError."""
    fd = os.open(segments.segment_name(number), _FILE, dir_fd=directory)
    try:
        offset = max(0, os.fstat(fd).st_size - most) if end else 0
        return memoryview(os.pread(fd, most, offset))
    finally:
        os.close(fd)


def _begun(directory: int, number: int) -> _Begun | None:
    """None for a segment without a header that can be read."""
    with suppress(OSError, JournalError):
        for first in chain.walk(_read(directory, number, HEADER_BYTES)):
            if not isinstance(first, RawFrame):
                return None
            header = frames.decode(first.type, first.time, first.payload)
            if not isinstance(header, Header):
                return None
            before = Head(first.sequence - 1, header.previous)
            return _Begun(header.boot_id, header.wall, header.boottime, before)
    return None


def _end(directory: int, number: int) -> Head:
    """Where a segment ends. Raises OSError."""
    for most in (END_BYTES, segments.SEGMENT_MAX):
        found = [
            item
            for item in chain.walk(_read(directory, number, most, end=True))
            if isinstance(item, RawFrame)
        ]
        if found:
            return Head(found[-1].sequence, found[-1].hash)
    return Head(0, chain.ROOT)
