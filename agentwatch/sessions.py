"""Sessions: when one begins, who belongs to it, how it is held, when it is over.

The kernel's own table says who is tagged; what is kept here is what people ask about a session.
"""

from __future__ import annotations

import functools
import pwd
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from agentwatch import abi, actions, processes
from agentwatch.aside import Aside
from agentwatch.events import ProcessKey
from agentwatch.holding import Frozen, Holding
from agentwatch.inforce import InForce
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Image, Lineage
from agentwatch.sinks import frames

GONE_LOOKS = 2  # in a row at which nothing of a session was there, before it is over
REJECTED = 4096  # sessions that turned out to be nobody's, for records still on their way


@dataclass(slots=True)
class Session:
    """One agent at work. told: the frame that said that it began.

    held: "" | signal | cgroup, as it is frozen, and held_for: why. lost: records of its processes
    with no room.
    """

    key: ProcessKey
    told: frames.Session
    held: str = ""
    held_for: str = ""
    lost: int = 0
    kills: int = 0
    seen: int = 1  # processes
    gone: int = 0  # looks at which none was there
    gone_since: int = 0


@dataclass(frozen=True, slots=True)
class Left:
    """A session as the last daemon knew it. members: its processes, by then."""

    session: ProcessKey
    agents: tuple[str, ...]
    project: str
    uid: int
    members: tuple[ProcessKey, ...]


@functools.lru_cache(256)
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
        holding: Holding,
        aside: Aside,
        force: InForce,
    ) -> None:
        self._probes, self._lineage, self._say = probes, lineage, say
        self.holding, self._aside, self._force = holding, aside, force
        self._sessions: dict[ProcessKey, Session] = {}
        self._rejected: dict[ProcessKey, None] = {}  # the last REJECTED
        self._keeping: set[ProcessKey] = set()  # looked after aside at this moment
        self._doubted: dict[ProcessKey, int] = {}  # of those, that still have their tag: since when

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
        parent: int = 0,
        members: Iterable[abi.Process] = (),
    ) -> Session:
        """A session whose first process is tagged. command: redacted. parent: its pid, if known.

        members: processes that were tagged with it. From here on the kernel judges it.
        """
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
        above = processes.line_now(parent or processes.parent_now(key.pid))
        self._lineage.begin(key, project, image, agents, above)
        self._force.mark(image, agents, project)
        self._say(told)
        for one in members:
            self.join(one)
        self._force.enter(key, agents, project)
        return session

    def reject(self, key: ProcessKey) -> None:
        """A provisional session that turned out to be nobody's: let_off takes the tag off."""
        self._rejected[key] = None
        if len(self._rejected) > REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._doubted[key] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def let_off(self, drained: int) -> None:
        """Takes the tag off what was rejected, once nothing is left to read of it.

        Not before: somebody of it may have become an agent by now. drained: ns of boottime, all is
        read up to it.
        """
        for key in [key for key, since in self._doubted.items() if since < drained]:
            del self._doubted[key]
            if key not in self._sessions:
                self._probes.release(key)

    # Holding. What takes its time is done aside; `then` is told what came of it.

    def freeze(
        self,
        key: ProcessKey,
        why: str,
        again: bool = False,
        then: Callable[[str], object] = lambda how: None,
    ) -> None:
        """Stops a session until somebody thaws or ends it. then: how, cgroup | signal.

        again: it was frozen before, so whoever of it is stopped is so for that.
        """
        session = self._sessions.get(key)
        if session is None or session.held:
            then(session.held if session else "")
            return
        session.held, session.held_for = "signal", why
        stopped = self.holding.begin(key)

        def done(frozen: Frozen) -> None:
            session.held = frozen.how if session.held else ""
            killed = f", {frozen.killed} killed that could not be held" if frozen.killed else ""
            problem = f"; {frozen.problem}" if frozen.problem else ""
            text = f"{why}: frozen, {frozen.stopped} stopped{killed}{problem}"
            self._say(frames.Notice(subject="freeze", text=text, session=key))
            then(frozen.how)

        def failed(error: Exception) -> None:
            done(Frozen("signal", 0, 0, str(error)))

        self._aside.do(lambda: self.holding.freeze(key, () if again else stopped), done, failed)

    def thaw(self, key: ProcessKey, then: Callable[[str], object] = lambda how: None) -> None:
        """Lets a frozen session go on, also one that was stopped by a daemon before this one."""
        session = self._sessions.get(key)
        if session is None:
            then("")
            return

        how, session.held = session.held, ""

        def done(problem: str) -> None:
            text = f"let go on{f': {problem}' if problem else ''}"
            self._say(frames.Notice(subject="thaw", text=text, session=key))
            then(how)

        self._aside.do(lambda: self.holding.thaw(key), done, lambda error: done(str(error)))

    def end(
        self, key: ProcessKey | None = None, then: Callable[[int], object] = lambda count: None
    ) -> int:
        """Kills every process of one session, or of all; how many there were, `then` as well.

        The probes kill whoever is forked meanwhile.
        """
        keys = list(self._sessions) if key is None else [key]
        found = {one for each in keys for one in self._probes.tagged(each)}
        for each in keys:
            self._probes.set_state(each, abi.SESSION_ENDING)
        actions.end(found)

        def done(_: object) -> None:
            then(len(found))

        self._aside.do(lambda: self.holding.end(keys), done, done)
        return len(found)

    # The end.

    def over(self, drained: int) -> list[Session]:
        """Those that are over. drained: ns of boottime, all is read up to it.

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

    def join(self, one: abi.Process, since: int = 0) -> None:
        """A process that nothing told of. since: ns, the exec of what it runs; 0: unknown."""
        if one.session is not None and self._lineage.session(one.process) != one.session:
            image = processes.image_now(one.process)
            if image is not None and since:
                image = replace(image, since=since)
            session = self._sessions.get(one.session)
            if self._lineage.join(one.process, one.parent, one.session, image):
                agents = self._lineage.agents(one.session)
                self._force.mark(image, agents, self._lineage.project(one.session))
                if session:
                    session.seen += 1

    def forget(self, session: Session) -> None:
        """A session is over: nothing of it runs any more, or it is let go unwatched."""
        agent = self._lineage.agent(session.key)
        if session.held:
            self._aside.do(lambda: self.holding.forget(session.key), _nothing, _nothing)
        self._probes.release(session.key)
        self._say(
            frames.SessionEnd(
                session=session.key, agent=agent, processes=session.seen, kills=session.kills
            )
        )
        self._lineage.forget(session.key)
        del self._sessions[session.key]

    def left(self) -> list[Left]:
        """For whoever goes on after us."""
        members: dict[ProcessKey, list[ProcessKey]] = {}
        for one in self._lineage.living():
            members.setdefault(one.session, []).append(one.process)
        return [
            Left(
                one.key,
                self._lineage.agents(one.key),
                one.told.project,
                one.told.uid,
                tuple(members.get(one.key, ())),
            )
            for one in self
        ]

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
            if session.held == "cgroup" and session.key not in self._keeping:
                self._keep(session)
            elif self._probes.is_held(session.key):
                tagged = self._probes.tagged(session.key)
                actions.stop(one for one in tagged if not processes.held(one))

    def _keep(self, session: Session) -> None:
        def done(found: Frozen | None) -> None:
            self._keeping.discard(session.key)
            if found is not None:
                session.held = found.how if session.held else ""
                text = f"moved out of its frozen cgroup, and frozen again by {found.how}"
                self._say(frames.Notice(subject="freeze", text=text, session=session.key))

        self._keeping.add(session.key)
        self._aside.do(lambda: self.holding.keep(session.key), done, lambda _: done(None))


def _nothing(_: object) -> None:
    """Nobody waits for it."""
