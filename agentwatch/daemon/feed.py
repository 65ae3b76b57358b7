"""What subscribers of `events -f` are sent: the journal as it is written, each their own part.

A frame is encoded once for all who see the same of it. Nobody is waited for: what a subscriber does
not take in time is dropped and counted by its connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from agentwatch import abi
from agentwatch.control import wire
from agentwatch.control.server import Stream
from agentwatch.engine import Verdict
from agentwatch.errors import AgentwatchError
from agentwatch.events import Event, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.sessions import Sessions
from agentwatch.sinks import frames
from agentwatch.sinks.excerpt import may_see
from agentwatch.sinks.fieldtable import split
from agentwatch.sinks.journal import Journal


@dataclass(frozen=True, slots=True)
class View:
    """Whose sessions somebody sees: a person's own (uid 0: all), or one of those alone."""

    uid: int
    session: ProcessKey | None = None


class Feed:
    """A sink and the journal's tap."""

    def __init__(self, journal: Journal, sessions: Sessions) -> None:
        self._journal, self._sessions = journal, sessions
        self._streams: dict[View, list[Stream]] = {}
        self.dropped = 0  # frames, of all streams there were
        self.stale = False  # a session has begun: a subscriber may be of it
        journal.tap = self._journaled

    def subscribe(self, stream: Stream, view: View) -> None:
        """From now on; first what is needed to read the rest."""
        header = self._journal.header()
        stream.send(_encoded(frames.HEADER, header.time, frames.encode(header)))
        for session in self._sessions:
            if self._sees(view, session.key):
                told = session.told
                stream.send(_encoded(frames.NUMBERS[type(told)], told.time, frames.encode(told)))
        self._streams.setdefault(view, []).append(stream)

    def revoke(self, refused: Callable[[Stream], str]) -> None:
        """Ends streams of those who may not have them any more; refused: why, "" if they may."""
        self.stale = False
        for view, streams in list(self._streams.items()):
            for stream in streams:
                reason = "" if stream.closed else refused(stream)
                if reason:
                    stream.end(reason)
            self._streams[view] = [stream for stream in streams if not stream.closed]
            if not self._streams[view]:
                del self._streams[view]

    # As a sink.

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        """Events go as records, undecoded."""

    def frame(self, frame: frames.Frame) -> None:
        """Frames are told before they are written, so that a full disk hides nothing."""
        if not self._streams:
            return
        self.stale |= isinstance(frame, frames.Session)
        data = b""
        for view, streams in self._streams.items():
            if self._may_see(view, frame):
                number = frames.NUMBERS[type(frame)]
                data = data or _encoded(number, frame.time or _now(), frames.encode(frame))
                self._send(streams, data)

    def _journaled(self, number: int, at: int, payload: bytes, records: int) -> None:
        """The journal's tap: batches of records."""
        if not records or not self._streams:
            return
        whole, parts = b"", dict[frozenset[ProcessKey], bytes]()
        by_session: dict[ProcessKey, list[memoryview]] | None = None
        for view, streams in self._streams.items():
            if view == View(0):
                whole = whole or _encoded(number, at, payload)
                self._send(streams, whole)
                continue
            by_session = by_session if by_session is not None else _by_session(at, payload)
            seen = frozenset(one for one in by_session if self._sees(view, one))
            if seen and seen not in parts:
                parts[seen] = _encoded(number, at, _part(by_session, seen))
            if seen:
                self._send(streams, parts[seen])

    def _send(self, streams: list[Stream], data: bytes) -> None:
        for stream in streams:
            if not data:  # it has no form that a client would take
                self.dropped += 1
                continue
            before = stream.dropped
            stream.send(data)
            self.dropped += stream.dropped - before

    def _may_see(self, view: View, frame: frames.Frame) -> bool:
        return may_see(frame, view.uid, lambda session: self._sees(view, session))

    def _sees(self, view: View, session: ProcessKey) -> bool:
        if view.session is not None and session != view.session:
            return False
        found = self._sessions.get(session)
        return view.uid == 0 or (found is not None and found.told.uid == view.uid)


def _encoded(number: int, at: int, payload: bytes) -> bytes:
    """b"" for what is longer than a frame may be."""
    try:
        return wire.encode_stream(wire.Streamed(number, at, payload))
    except AgentwatchError:
        return b""


def _by_session(at: int, payload: bytes) -> dict[ProcessKey, list[memoryview]]:
    """The records of a batch, parted once for all who see some of them."""
    batch = frames.decode(frames.RECORDS, at, payload)
    assert isinstance(batch, frames.Records)
    found: dict[ProcessKey, list[memoryview]] = {}
    for record in split(memoryview(batch.data)):
        found.setdefault(abi.session_of(record), []).append(record)
    return found


def _part(records: dict[ProcessKey, list[memoryview]], seen: frozenset[ProcessKey]) -> bytes:
    kept = [record for session in seen for record in records[session]]
    return frames.encode(frames.Records(count=len(kept), data=b"".join(kept)))


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
