"""What a reader of a journal, or of its live stream, gives out; and what frames teach it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentwatch.decoding import Name, plain_name
from agentwatch.errors import JournalError, RecordError
from agentwatch.events import Event, Exec, Exit, Fork, ProcessKey
from agentwatch.lineage import Image
from agentwatch.mounts import Mounts
from agentwatch.sinks import frames
from agentwatch.sinks.fieldtable import FieldTable, split
from agentwatch.sinks.frames import Frame, Header, Records, Verdict
from agentwatch.sinks.host import Host

KEPT = 1 << 16
"""Sessions and processes that are remembered, should their end never come."""


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


class Learned:
    """What frames say about those that follow: field table, mounts, clocks, whose session it is."""

    def __init__(self) -> None:
        self.table = FieldTable({})
        self.name: Name = plain_name
        self.host = Host()
        self._agents: dict[ProcessKey, str] = {}

    def begin(self, header: Header) -> None:
        """What a segment is read with. Raises JournalError; what is sound is in force."""
        self.table, self.name = FieldTable({}), plain_name
        self.host = host_of(header)
        try:
            self.table = FieldTable(header.tables)
        finally:
            self.name = _name(header.mounts)

    def learn(self, frame: Frame) -> None:
        """Raises JournalError for a table of mounts that is none."""
        if isinstance(frame, frames.MountsChanged):
            self.name = _name(frame.rows)
        elif isinstance(frame, frames.Session):
            if frame.agent:
                self._agents[frame.session] = frame.agent
        elif isinstance(frame, frames.AgentAdded):
            self._agents.setdefault(frame.session, frame.agent)
        while len(self._agents) > KEPT:
            del self._agents[next(iter(self._agents))]

    def agent(self, session: ProcessKey) -> str:
        """Of a session; "" if not known."""
        return self._agents.get(session, "")

    def agent_of(self, frame: Frame) -> str:
        """Whom a frame is about; "" if about nobody, or not known."""
        session = getattr(frame, "session", None)
        return getattr(frame, "agent", "") or self.agent(session) if session else ""


class Images:
    """Which program a process runs, from the execs and forks before."""

    def __init__(self) -> None:
        self._images: dict[ProcessKey, Image] = {}

    def before(self, event: Event) -> Image | None:
        """What the event's process ran when it came to it; what follows from it is noted."""
        image = self._images.get(event.process)
        if isinstance(event, Exec) and event.result >= 0:
            self._images[event.process] = Image(
                event.path, event.script, event.argv, event.cwd, event.uid
            )
        elif isinstance(event, Fork) and image is not None:
            self._images[event.child] = image
        elif isinstance(event, Exit):
            self._images.pop(event.process, None)
        if len(self._images) > KEPT:
            del self._images[next(iter(self._images))]
        return image


def host_of(header: Header) -> Host:
    return Host(boot_id=header.boot_id, name=header.host, offset=header.wall - header.boottime)


def events(frame: Records, table: FieldTable, name: Name) -> Iterator[Event | RecordError]:
    """The events of a batch, and what is wrong with those of its records that have none."""
    try:
        for record in split(memoryview(frame.data)):
            try:
                event = table.event(record, name)
            except RecordError as error:
                yield error
                continue
            if event is not None:
                yield event
    except RecordError as error:
        yield error


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
