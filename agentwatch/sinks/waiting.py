"""Frames that are not on disk yet, and which of them give way when there are too many.

Raw records go first, then frames that only inform, decisions last; within each, the oldest. All of
it is counted.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from agentwatch.sinks import frames
from agentwatch.sinks.frames import Frame, Gap

RECORD, INFORMATION, DECISION = range(3)
"""Ranks, in the order of giving way."""

WAITING_MAX = 32 << 20
ITEM = 256  # bytes of memory that a frame takes beside its payload

_LASTING = (frames.Gap, frames.Stop, frames.Resumed, frames.Retired)


class Item(NamedTuple):
    """A frame before it is chained. records: in it. arrival: its place in the order of all."""

    type: int
    time: int
    payload: bytes
    records: int = 0
    rank: int = INFORMATION
    arrival: int = 0


class GivenWay(NamedTuple):
    """How much was given up: raw records, informational frames, decisions."""

    records: int = 0
    frames: int = 0
    decisions: int = 0


NOTHING = GivenWay()


def item_of(frame: Frame, time: int) -> Item:
    """Raises JournalError for a frame that has no form."""
    lasting = isinstance(frame, _LASTING) or frames.is_decision(frame)
    rank = DECISION if lasting else INFORMATION
    return Item(frames.NUMBERS[type(frame)], frame.time or time, frames.encode(frame), 0, rank)


class Waiting:
    """A queue for each rank, taken in order of arrival. bytes: of payloads.

    given_way: counted since the beginning; untold: of that, what no gap frame says yet.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.given_way = self.untold = NOTHING
        self._queues: tuple[deque[Item], ...] = (deque(), deque(), deque())
        self._arrivals = self._count = 0
        self._oldest = self._newest = 0

    def __len__(self) -> int:
        return self._count

    @property
    def span(self) -> int:
        """ns from the first frame that waits to the last one."""
        return self._newest - self._oldest

    @property
    def newest_type(self) -> int:
        """The type of the frame that came last; -1 when none waits."""
        newest = max((q[-1] for q in self._queues if q), key=lambda i: i.arrival, default=None)
        return -1 if newest is None else newest.type

    def append(self, item: Item) -> None:
        if not self._count:
            self._oldest = item.time
        self._newest = item.time
        self._arrivals += 1
        self._queues[item.rank].append(item._replace(arrival=self._arrivals))
        self._count += 1
        self.bytes += len(item.payload)
        if self._cost() > WAITING_MAX:
            self._give_way()

    def take(self, room: int, least: int = RECORD) -> Item | None:
        """The next one of at least this rank; None when there is none, or its payload is longer."""
        queues = [queue for queue in self._queues[least:] if queue]
        if not queues:
            return None
        queue = min(queues, key=lambda queue: queue[0].arrival)
        if len(queue[0].payload) > room:
            return None
        self._count -= 1
        self.bytes -= len(queue[0].payload)
        return queue.popleft()

    def holds(self, least: int) -> bool:
        """Whether one of at least this rank waits."""
        return any(self._queues[least:])

    def put_back(self, items: list[Item]) -> None:
        """What was taken and not written, in the order it was taken."""
        for item in reversed(items):
            self._queues[item.rank].appendleft(item)
            self._count += 1
            self.bytes += len(item.payload)

    def told(self, time: int) -> Gap:
        """The gap frame for what gave way since the last one."""
        lost, self.untold = self.untold, NOTHING
        return Gap(
            time=time,
            stage="journal",
            count=lost.records,
            frames=lost.frames,
            decisions=lost.decisions,
        )

    def untell(self, gap: Gap) -> None:
        """That gap frame could not be written: it will be another's turn to say it."""
        self.untold = _sum(self.untold, GivenWay(gap.count, gap.frames, gap.decisions))

    def _cost(self) -> int:
        return self.bytes + self._count * ITEM

    def give_up(self, least: int) -> None:
        """Everything below this rank: it will not be written any more."""
        self._drop(self._queues[:least], 0)

    def _give_way(self) -> None:
        """Down to half, so that it does not happen again at once."""
        self._drop(self._queues, WAITING_MAX // 2)

    def _drop(self, queues: tuple[deque[Item], ...], most: int) -> None:
        """From the first queue on, until what waits costs no more than `most`."""
        lost = [0, 0, 0]
        for rank, queue in enumerate(queues):
            while queue and self._cost() > most:
                item = queue.popleft()
                self._count -= 1
                self.bytes -= len(item.payload)
                lost[rank] += item.records or 1
        given = GivenWay(*lost)
        self.given_way, self.untold = _sum(self.given_way, given), _sum(self.untold, given)


def _sum(one: GivenWay, other: GivenWay) -> GivenWay:
    return GivenWay(*map(sum, zip(one, other, strict=True)))
