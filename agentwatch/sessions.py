"""Sessions: when one begins, who belongs to it, how it is held, when it is over.

The kernel's own table says who is tagged; what is kept here is what people ask about a session.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from agentwatch import abi, actions, processes
from agentwatch.errors import KernelError
from agentwatch.events import ProcessKey
from agentwatch.freezer import Freezer
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Image, Lineage
from agentwatch.sinks import frames

GONE_LOOKS = 2  # in a row at which nothing of a session was there, before it is over
REJECTED = 4096  # sessions that turned out to be nobody's, for records still on their way


@dataclass(slots=True)
class Session:
    """One agent at work. told: the frame that said that it began.

    held: "" | signal | cgroup, as it is frozen. lost: records of its processes with no room.
    """

    key: ProcessKey
    told: frames.Session
    held: str = ""
    lost: int = 0
    kills: int = 0
    seen: int = 1  # processes
    gone: int = 0  # looks at which none was there
    gone_since: int = 0


def user_name(uid: int) -> str:
    """The name of a user; the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Sessions:
    """Every session that is not over. say: where its frames go."""

    def __init__(
        self,
        probes: Probes,
        lineage: Lineage,
        say: Callable[[frames.Frame], None],
        freezer: Freezer | None = None,
    ) -> None:
        self._probes, self._lineage, self._say, self._freezer = probes, lineage, say, freezer
        self._sessions: dict[ProcessKey, Session] = {}
        self._rejected: dict[ProcessKey, None] = {}  # the last REJECTED

    def __contains__(self, session: ProcessKey) -> bool:
        return session in self._sessions

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session: ProcessKey) -> Session | None:
        return self._sessions.get(session)

    @property
    def rejected(self) -> Collection[ProcessKey]:
        """Sessions that turned out to be nobody's: records of theirs may still be on their way."""
        return self._rejected.keys()

    # Beginning.

    def begin(
        self,
        key: ProcessKey,
        *,
        how: str,
        agents: tuple[str, ...],
        project: str | None,
        image: Image | None,
        uid: int,
        command: tuple[str, ...] = (),
    ) -> Session:
        """A session whose first process is tagged. command: redacted."""
        self._rejected.pop(key, None)
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        told = frames.Session(
            time=now,
            session=key,
            agent=agents[0] if agents else "",
            command=command,
            user=user_name(uid),
            uid=uid,
            project=project or "",
            how=how,
            began=now,
        )
        session = self._sessions[key] = Session(key, told)
        self._lineage.begin(key, project, image, agents)
        self._say(told)
        return session

    def reject(self, key: ProcessKey) -> None:
        """A provisional session that turned out to be nobody's: the tag comes off all of it."""
        self._rejected[key] = None
        if len(self._rejected) > REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._probes.release(key)

    # Holding.

    def hold(self, key: ProcessKey) -> actions.Held:
        """Stops all of a session; the probes stop whoever would go on, children included."""
        self._probes.set_state(key, abi.SESSION_FROZEN)
        return actions.hold(lambda: self._probes.tagged(key))

    def let_go(self, key: ProcessKey, stopped: Collection[ProcessKey] = ()) -> None:
        """Lets a held session go on, but for those that were stopped before."""
        self._probes.set_state(key, abi.SESSION_CONFIRMED)
        actions.resume(one for one in self._probes.tagged(key) if one not in stopped)

    def freeze(self, key: ProcessKey, why: str, again: bool = False) -> str:
        """Stops a session until somebody thaws or ends it. How: cgroup | signal.

        again: it was frozen before, so whoever of it is stopped is so for that.
        """
        session = self._sessions.get(key)
        if session is not None and session.held:
            return session.held
        tagged = () if again else self._probes.tagged(key)
        stopped = {one for one in tagged if processes.is_stopped(one)}
        held = self.hold(key)
        how = self._into_cgroup(key, stopped)
        if session is not None:
            session.held = how
        killed = f", {held.killed} killed that could not be held" if held.killed else ""
        text = f"{why}; {held.stopped} stopped{killed}"
        self._say(frames.Notice(subject="freeze", text=text, session=key))
        return how

    def _into_cgroup(self, key: ProcessKey, stopped: Collection[ProcessKey]) -> str:
        """A frozen cgroup holds without anybody noticing: then the signals are taken back."""
        if self._freezer is None:
            return "signal"
        try:
            self._freezer.freeze(_name(key), lambda: self._probes.tagged(key))
        except KernelError as error:
            self._say(frames.Notice(subject="freeze", text=error.message, session=key))
            return "signal"
        self.let_go(key, stopped)
        return "cgroup"

    def thaw(self, key: ProcessKey) -> None:
        """Lets a frozen session go on, also one that was stopped by a daemon before this one."""
        session = self._sessions.get(key)
        if session is None:
            return
        if session.held == "cgroup" and self._freezer is not None:
            self._freezer.thaw(_name(key))
        else:
            self.let_go(key)
        session.held = ""
        self._say(frames.Notice(subject="thaw", text="let go on", session=key))

    def end(self, key: ProcessKey | None = None) -> int:
        """Kills every process of one session, or of all; how many there were.

        The probes kill whoever is forked meanwhile.
        """
        keys = list(self._sessions) if key is None else [key]
        found = {one for each in keys for one in self._probes.tagged(each)}
        for each in keys:
            self._probes.set_state(each, abi.SESSION_ENDING)
            session = self._sessions.get(each)
            if session is not None and session.held == "cgroup" and self._freezer is not None:
                self._freezer.killed(_name(each))
        wanted = set(keys)
        actions.end_all(
            lambda: [one.process for one in self._probes.census() if one.session in wanted]
        )
        return len(found)

    # The end.

    def look(self, drained: int) -> list[Session]:
        """Forgets those that are over; which. drained: ns of boottime, all is read up to it.

        A session is over when nothing of it runs and all that was recorded of it has been told.
        """
        if not any(self._lineage.alive(one.key) <= 0 for one in self):
            return []
        tagged = {one.session for one in self._probes.census()}
        over = []
        for session in self:
            if session.key in tagged or self._lineage.alive(session.key) > 0:
                session.gone = 0
                continue
            if not session.gone:
                session.gone_since = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            session.gone += 1
            if session.gone >= GONE_LOOKS and drained >= session.gone_since:
                over.append(session)
        for session in over:
            self.forget(session)
        return over

    def sweep(self, drained: int) -> None:
        """Finds processes whose end was not told, or whose beginning was not."""
        rows = self._probes.census()
        tagged = {one.process: one for one in rows if one.session in self._sessions}
        for living in self._lineage.living():
            if living.process not in tagged and living.session in self._sessions:
                self._lineage.gone(living.process, drained)
        for one in tagged.values():
            self.join(one)

    def join(self, one: abi.Process) -> None:
        """A tagged process that nothing told of."""
        if one.session is not None:
            image = processes.image_now(one.process)
            session = self._sessions.get(one.session)
            if self._lineage.join(one.process, one.parent, one.session, image) and session:
                session.seen += 1

    def forget(self, session: Session) -> None:
        """A session is over: nothing of it runs any more, or it is let go unwatched."""
        agent = self._lineage.agent(session.key)
        if session.held == "cgroup" and self._freezer is not None:
            self._freezer.thaw(_name(session.key))
        self._probes.release(session.key)
        self._say(
            frames.SessionEnd(
                session=session.key, agent=agent, processes=session.seen, kills=session.kills
            )
        )
        self._lineage.forget(session.key)
        del self._sessions[session.key]

    def losses(self) -> Iterable[tuple[Session, int]]:
        """Sessions with records lost since the last time, and how many."""
        for session in self:
            found = self._probes.session(session.key)
            if found is not None and found.lost > session.lost:
                yield session, found.lost - session.lost
                session.lost = found.lost

    def restop(self) -> None:
        """Those of frozen sessions that somebody has let go on, and that make no call."""
        for session in self:
            if session.held == "signal":
                tagged = self._probes.tagged(session.key)
                actions.stop(one for one in tagged if not processes.held(one))


def _name(key: ProcessKey) -> str:
    return f"{key.pid}-{key.start}"
