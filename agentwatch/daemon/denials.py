"""What was stopped lately, and why: the answers to `agentwatch why`."""

from __future__ import annotations

from collections import OrderedDict, deque

from agentwatch.engine import Verdict
from agentwatch.events import Event, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.sinks import frames

KEPT = 16  # of one session
SESSIONS = 256  # those that are over included


class Denials:
    """A sink that remembers verdicts that denied or killed, or would have."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[ProcessKey, deque[frames.Verdict]] = OrderedDict()
        self._alive: set[ProcessKey] = set()
        self._uids: dict[ProcessKey, int] = {}  # of sessions that began, while they are here

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        """Only verdicts matter here."""

    def frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Session):
            self._uids[frame.session] = frame.uid
            self._alive.add(frame.session)
        elif isinstance(frame, frames.SessionEnd):
            self._alive.discard(frame.session)
            if frame.session not in self._sessions:
                self._uids.pop(frame.session, None)
        if not isinstance(frame, frames.Verdict) or frame.action not in ("deny", "kill"):
            return
        self._sessions.setdefault(frame.session, deque(maxlen=KEPT)).append(frame)
        self._sessions.move_to_end(frame.session)
        if len(self._sessions) > SESSIONS:
            gone, _ = self._sessions.popitem(last=False)
            if gone not in self._alive:
                self._uids.pop(gone, None)

    def of(self, session: ProcessKey) -> tuple[frames.Verdict, ...]:
        """The last KEPT of a session, oldest first."""
        return tuple(self._sessions.get(session, ()))

    def session_of(self, pid: int) -> ProcessKey | None:
        """The latest session with a denial for a process of that pid."""
        for session, told in reversed(self._sessions.items()):
            if any(one.process.pid == pid for one in told):
                return session
        return None

    def uid(self, session: ProcessKey) -> int:
        """Whose session it is or was; root's, where that is not known any more."""
        return self._uids.get(session, 0)

    @property
    def latest(self) -> tuple[ProcessKey, ...]:
        """Sessions with denials, the one that was denied something last first."""
        return tuple(reversed(self._sessions))
