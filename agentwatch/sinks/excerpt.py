"""Of a journal, what one person may see: the frames of their own agents' sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from agentwatch import abi
from agentwatch.errors import JournalError
from agentwatch.events import NO_PROCESS, ProcessKey
from agentwatch.sinks import frames, segments
from agentwatch.sinks.frames import Control, Frame, Header, Records, Session, Start
from agentwatch.sinks.host import Host
from agentwatch.sinks.verify import Problem, Step, examine

PRIVATE = (Control, Start)
"""Frames of no session that are root's business alone."""

Sees = Callable[[ProcessKey], bool]
"""Whether somebody may see what is of a session."""


class Part(NamedTuple):
    """A frame as a stream of the control socket carries it. type: its number. time: ns boottime."""

    type: int
    time: int
    payload: bytes


def session_of(frame: Frame) -> ProcessKey | None:
    """The session that a frame is about; None for one of the whole host."""
    session = getattr(frame, "session", NO_PROCESS)
    return session if isinstance(session, ProcessKey) and session != NO_PROCESS else None


def may_see(frame: Frame, uid: int, sees: Sees) -> bool:
    """Whether a frame that holds no records is for this person's eyes."""
    session = session_of(frame)
    if session is not None:
        return sees(session)
    return uid == 0 or not isinstance(frame, PRIVATE)


def records_of(data: bytes, sees: Sees) -> Records | None:
    """Of a batch's records those of sessions that may be seen; None for none."""
    kept, offset, seen = [], 0, dict[ProcessKey, bool]()
    view = memoryview(data)
    while offset < len(view):
        length, _, _ = abi.peek(view, offset)
        record = view[offset : offset + length]
        session = abi.session_of(record)
        if session not in seen:
            seen[session] = sees(session)
        kept += [record] if seen[session] else []
        offset += length
    return Records(count=len(kept), data=b"".join(kept)) if kept else None


def excerpt(
    directory: Path, uid: int, since: int = 0, session: ProcessKey | None = None
) -> Iterator[Part]:
    """A chain's frames that a person may see, from a moment on (ns since the epoch).

    session: only of this one, beside what is of none.

    Headers, and what says whose a session is, come from before it as well. Frames that do not
    decode are left out: whoever wants to know asks root to verify. Raises JournalError and
    PermissionDenied for a chain that is not there, or not readable.
    """
    (chain,) = segments.chains(directory)
    owners: dict[ProcessKey, int] = {}
    file: Path | None = None

    def sees(other: ProcessKey) -> bool:
        if session is not None and other != session:
            return False
        return uid == 0 or owners.get(other) == uid

    for item in examine(chain, live=True):
        if isinstance(item, Problem):
            continue
        if item.file != file:
            file = item.file
            yield _part(item.header)
        found = _seen(item, owners, uid, sees, since)
        if found is not None:
            yield found


def _seen(
    step: Step, owners: dict[ProcessKey, int], uid: int, sees: Sees, since: int
) -> Part | None:
    header = step.header
    host = Host(boot_id=header.boot_id, offset=header.wall - header.boottime)
    late = host.wall(step.raw.time) >= since
    if step.raw.type == frames.RECORDS and not late:
        return None
    try:
        frame = frames.decode(step.raw.type, step.raw.time, step.raw.payload)
        if isinstance(frame, Records):
            part = records_of(frame.data, sees)
            return Part(frames.RECORDS, frame.time, frames.encode(part)) if part else None
    except (*frames.GARBLED, JournalError):
        return None
    if isinstance(frame, Session):
        owners[frame.session] = frame.uid
    if frame is None or isinstance(frame, Header) or not may_see(frame, uid, sees):
        return None
    names = (frames.Session, frames.AgentAdded, frames.MountsChanged)
    return _part(frame) if late or isinstance(frame, names) else None


def _part(frame: Frame) -> Part:
    return Part(frames.NUMBERS[type(frame)], frame.time, frames.encode(frame))
