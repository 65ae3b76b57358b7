"""Journals read again: frames and events of all chains of a directory, in order of time.

A verdict stands near its event in the chain, before it or behind; the reader looks a little ahead
and back, attaches it, and says whose agent and which program an event belongs to. Damage does not
stop it: it goes on with the next frame that can be read, and keeps what it found in `problems`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentwatch.abi import Name, plain_name
from agentwatch.errors import JournalError, RecordError
from agentwatch.events import Event, Exec, Exit, Fork, ProcessKey
from agentwatch.lineage import Image
from agentwatch.mounts import Mounts
from agentwatch.sinks import frames, segments
from agentwatch.sinks.fieldtable import FieldTable, split
from agentwatch.sinks.frames import EventRef, Frame, Header, Verdict
from agentwatch.sinks.host import Host
from agentwatch.sinks.segments import Chain
from agentwatch.sinks.verify import Problem, Step, examine

__all__ = ["Entry", "Host", "Reader", "read"]

AHEAD_BYTES = 4 << 20
AHEAD_FRAMES = 512
ORDER = 8192
"""Records of two rings and several CPUs are put in order within this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One event, or one frame of another type than records and header; the other one is None.

    number: sequence of the frame in its chain. wall: ns since the epoch. agent: the session's,
    "" if not known. verdicts: on this event. attached: this frame is a verdict that an event of
    the journal carries already. image: what the process ran when it did it. intact: the frame's
    hash fits the chain.
    """

    chain: str
    host: Host
    number: int
    wall: int
    agent: str = ""
    event: Event | None = None
    frame: Frame | None = None
    verdicts: tuple[Verdict, ...] = ()
    attached: bool = False
    image: Image | None = None
    intact: bool = True


class Reader:
    """Iterates the entries of a directory of chains, or of one chain; `problems` fills meanwhile.

    Records of sessions that were never confirmed as an agent's are left out, unless provisional.
    """

    def __init__(self, directory: Path, provisional: bool = False) -> None:
        """Raises JournalError when there is none, PermissionDenied when it may not be read."""
        self._chains = segments.chains(directory)
        self._provisional = provisional
        self.problems: list[Problem] = []

    def __iter__(self) -> Iterator[Entry]:
        single = (self._chain(one) for one in self._chains)
        return heapq.merge(*single, key=lambda entry: entry.wall)

    def _chain(self, one: Chain) -> Iterator[Entry]:
        reading = _Reading(one, self.problems, self._provisional)
        return _with_images(_in_order(reading.entries()))


def read(directory: Path | str) -> Reader:
    """`Reader(directory)`; raises JournalError or PermissionDenied at once."""
    return Reader(Path(directory))


class _Ahead:
    """A frame in the look-ahead. run: how many start frames came before it."""

    __slots__ = ("frame", "name", "run", "size", "step", "table")

    def __init__(self, step: Step, frame: Frame, table: FieldTable, name: Name, run: int) -> None:
        self.step, self.frame, self.table, self.name, self.run = step, frame, table, name, run
        self.size = len(step.raw.payload)


class _Reading:
    """One chain: what is known of it while it is read."""

    def __init__(self, one: Chain, problems: list[Problem], provisional: bool) -> None:
        self._one = one
        self._problems = problems
        self._provisional = provisional
        self._ahead: deque[_Ahead] = deque()
        self._agents: dict[ProcessKey, str] = {}
        self._verdicts: dict[tuple[int, EventRef], list[Verdict]] = {}
        self._attached: set[int] = set()
        self._held: deque[tuple[int, tuple[int, EventRef], Entry]] = deque()
        self._left = 0
        self._file: Path | None = None
        self._table = FieldTable({})
        self._name: Name = plain_name
        self._run = 0

    def entries(self) -> Iterator[Entry]:
        size = 0
        for item in examine(self._one, self._one.live):
            if isinstance(item, Problem):
                self._problems.append(item)
                continue
            ahead = self._enter(item)
            if ahead is None:
                continue
            self._ahead.append(ahead)
            size += ahead.size
            while size > AHEAD_BYTES or len(self._ahead) > AHEAD_FRAMES:
                size -= self._ahead[0].size
                yield from self._leave(self._ahead.popleft())
        while self._ahead:
            yield from self._leave(self._ahead.popleft())
        yield from self._release(self._left)

    def _enter(self, step: Step) -> _Ahead | None:
        """Decode a frame and note what it says about events before it too."""
        try:
            if step.file != self._file:
                self._file = step.file
                self._begin(step.header)
            frame = frames.decode(step.raw.type, step.raw.time, step.raw.payload)
            if isinstance(frame, frames.MountsChanged):
                self._name = _name(frame.rows)
        except JournalError as error:
            self._damaged(step, error.message)
            return None
        if frame is None or isinstance(frame, Header):
            return None
        if isinstance(frame, frames.Start):
            self._run += 1
        elif isinstance(frame, frames.Session):
            if frame.agent:
                self._agents[frame.session] = frame.agent
        elif isinstance(frame, frames.AgentAdded):
            self._agents.setdefault(frame.session, frame.agent)
        elif isinstance(frame, Verdict) and frame.event.sequence:
            self._verdicts.setdefault((self._run, frame.event), []).append(frame)
        return _Ahead(step, frame, self._table, self._name, self._run)

    def _begin(self, header: Header) -> None:
        """What a segment is read with. Raises JournalError; what is sound is in force."""
        self._table, self._name = FieldTable({}), plain_name
        try:
            self._table = FieldTable(header.tables)
        finally:
            self._name = _name(header.mounts)

    def _leave(self, ahead: _Ahead) -> Iterator[Entry]:
        self._left += 1
        yield from self._release(self._left - AHEAD_FRAMES)
        step, frame = ahead.step, ahead.frame
        header = step.header
        host = Host(boot_id=header.boot_id, name=header.host, offset=header.wall - header.boottime)
        base = Entry(
            chain=self._one.name,
            host=host,
            number=step.raw.sequence,
            wall=host.wall(frame.time),
            intact=step.intact,
        )
        if isinstance(frame, frames.Records):
            yield from self._events(ahead, frame, base)
            yield from self._release(0)
            return
        session = getattr(frame, "session", None)
        agent = getattr(frame, "agent", "") or self._agents.get(session, "") if session else ""
        found = replace(base, agent=agent, frame=frame)
        if isinstance(frame, Verdict):
            self._held.append((self._left, (ahead.run, frame.event), found))
            yield from self._release(0)
        else:
            yield found

    def _release(self, before: int) -> Iterator[Entry]:
        """Verdicts whose event was found, and those held since `before` frames had left."""
        for _ in range(len(self._held)):
            since, key, entry = self._held.popleft()
            if id(entry.frame) in self._attached:
                self._attached.discard(id(entry.frame))
                yield replace(entry, attached=True)
            elif since <= before:
                self._verdicts.pop(key, None)
                yield entry
            else:
                self._held.append((since, key, entry))

    def _events(self, ahead: _Ahead, frame: frames.Records, base: Entry) -> Iterator[Entry]:
        """The entries of a batch; what is wrong with its records is one problem, the first."""
        wrong: RecordError | None = None
        try:
            for record in split(memoryview(frame.data)):
                try:
                    event = ahead.table.event(record, ahead.name)
                except RecordError as error:
                    wrong = wrong or error
                    continue
                if event is not None:
                    yield from self._event(ahead, event, base)
        except RecordError as error:
            wrong = wrong or error
        if wrong is not None:
            self._damaged(ahead.step, wrong.message)

    def _event(self, ahead: _Ahead, event: Event, base: Entry) -> Iterator[Entry]:
        agent = self._agents.get(event.session, "")
        if event.provisional and not agent and not self._provisional:
            return
        verdicts = self._verdicts.pop((ahead.run, EventRef.of(event)), ())
        self._attached.update(map(id, verdicts))
        yield Entry(
            chain=base.chain,
            host=base.host,
            number=base.number,
            wall=base.host.wall(event.time),
            agent=agent,
            event=event,
            verdicts=tuple(verdicts),
            intact=base.intact,
        )

    def _damaged(self, step: Step, message: str) -> None:
        raw = step.raw
        self._problems.append(
            Problem("tampered", self._one.name, step.file, raw.offset, raw.sequence, message)
        )


def _name(rows: tuple[Any, ...]) -> Name:
    """Canonical names by a table of mounts; without one, names from their file system's root.

    Raises JournalError for rows that are none.
    """
    try:
        for dev, pairs in rows:
            sound = isinstance(dev, int) and all(
                isinstance(root, bytes) and isinstance(point, bytes) for root, point in pairs
            )
            if not sound:
                raise TypeError("other types than a number and pairs of bytes")
        return Mounts.from_rows(rows).name if rows else plain_name
    except frames.GARBLED as error:
        raise JournalError(f"a table of mounts that does not decode: {error}") from None


def _in_order(entries: Iterator[Entry]) -> Iterator[Entry]:
    waiting: list[tuple[int, int, Entry]] = []
    for count, entry in enumerate(entries):
        item = (entry.wall, count, entry)
        if len(waiting) < ORDER:
            heapq.heappush(waiting, item)
        else:
            yield heapq.heappushpop(waiting, item)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _with_images(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Say which program each event's process ran, from the execs and forks before it."""
    images: dict[ProcessKey, Image] = {}
    for entry in entries:
        event = entry.event
        if event is None:
            yield entry
            continue
        image = images.get(event.process)
        yield entry if image is None else replace(entry, image=image)
        if isinstance(event, Exec) and event.result >= 0:
            images[event.process] = Image(
                event.path, event.script, event.argv, event.cwd, event.uid
            )
        elif isinstance(event, Fork) and image is not None:
            images[event.child] = image
        elif isinstance(event, Exit):
            images.pop(event.process, None)
