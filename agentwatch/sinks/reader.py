"""Journals read again: frames and events of all chains of a directory, in order of time.

A verdict stands near its event in the chain, before it or behind; the reader looks a little ahead
and back, attaches it, and says whose agent and which program an event belongs to. Damage does not
stop it: it goes on with the next frame that can be read, and keeps what it found in `problems`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agentwatch.decoding import Name
from agentwatch.errors import JournalError, RecordError
from agentwatch.events import Event
from agentwatch.sinks import entries, frames, segments
from agentwatch.sinks.entries import Entry, Images, Learned
from agentwatch.sinks.fieldtable import FieldTable
from agentwatch.sinks.frames import EventRef, Frame, Header, Verdict
from agentwatch.sinks.host import Host
from agentwatch.sinks.segments import Chain
from agentwatch.sinks.verify import Problem, Step, examine

__all__ = ["Entry", "Host", "Reader", "read"]

AHEAD_BYTES = 4 << 20
AHEAD_FRAMES = 512
ORDER = 8192
"""Records of two rings and several CPUs are put in order within this many."""


class Reader:
    """Iterates the entries of a directory of chains, or of one chain; `problems` fills meanwhile.

    spans: chain -> sequences of the first and the last frame of it that were read so far.
    Records of sessions that were never confirmed as an agent's are left out, unless provisional.
    """

    def __init__(self, directory: Path, provisional: bool = False) -> None:
        """Raises JournalError when there is none, PermissionDenied when it may not be read."""
        self._chains = segments.chains(directory)
        self._provisional = provisional
        self.problems: list[Problem] = []
        self.spans: dict[str, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[Entry]:
        single = (self._chain(one) for one in self._chains)
        return heapq.merge(*single, key=lambda entry: entry.wall)

    def _chain(self, one: Chain) -> Iterator[Entry]:
        reading = _Reading(one, self.problems, self._provisional, self.spans)
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

    def __init__(
        self,
        one: Chain,
        problems: list[Problem],
        provisional: bool,
        spans: dict[str, tuple[int, int]],
    ) -> None:
        self._one, self._spans = one, spans
        self._problems = problems
        self._provisional = provisional
        self._ahead: deque[_Ahead] = deque()
        self._learned = Learned()
        self._verdicts: dict[tuple[int, EventRef], list[Verdict]] = {}
        self._attached: set[int] = set()
        self._held: deque[tuple[int, tuple[int, EventRef], Entry]] = deque()
        self._left = 0
        self._file: Path | None = None
        self._run = 0

    def entries(self) -> Iterator[Entry]:
        size = 0
        for item in examine(self._one, self._one.live):
            if isinstance(item, Problem):
                self._problems.append(item)
                continue
            first, _ = self._spans.get(self._one.name, (item.raw.sequence, 0))
            self._spans[self._one.name] = first, item.raw.sequence
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
                self._learned.begin(step.header)
            frame = frames.decode(step.raw.type, step.raw.time, step.raw.payload)
            if frame is None or isinstance(frame, Header):
                return None
            self._learned.learn(frame)
        except JournalError as error:
            self._damaged(step, error.message)
            return None
        if isinstance(frame, frames.Start):
            self._run += 1
        elif isinstance(frame, Verdict) and frame.event.sequence:
            self._verdicts.setdefault((self._run, frame.event), []).append(frame)
        return _Ahead(step, frame, self._learned.table, self._learned.name, self._run)

    def _leave(self, ahead: _Ahead) -> Iterator[Entry]:
        self._left += 1
        yield from self._release(self._left - AHEAD_FRAMES)
        step, frame = ahead.step, ahead.frame
        host = entries.host_of(step.header)
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
        found = replace(base, agent=self._learned.agent_of(frame), frame=frame)
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
        for event in entries.events(frame, ahead.table, ahead.name):
            if isinstance(event, RecordError):
                wrong = wrong or event
            else:
                yield from self._event(ahead, event, base)
        if wrong is not None:
            self._damaged(ahead.step, wrong.message)

    def _event(self, ahead: _Ahead, event: Event, base: Entry) -> Iterator[Entry]:
        agent = self._learned.agent(event.session)
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


def _in_order(found: Iterator[Entry]) -> Iterator[Entry]:
    waiting: list[tuple[int, int, Entry]] = []
    for count, entry in enumerate(found):
        item = (entry.wall, count, entry)
        if len(waiting) < ORDER:
            heapq.heappush(waiting, item)
        else:
            yield heapq.heappushpop(waiting, item)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _with_images(found: Iterator[Entry]) -> Iterator[Entry]:
    """Say which program each event's process ran, from the execs and forks before it."""
    images = Images()
    for entry in found:
        image = None if entry.event is None else images.before(entry.event)
        yield entry if image is None else replace(entry, image=image)
