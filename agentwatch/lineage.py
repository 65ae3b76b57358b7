"""Who did it: processes, their images, their parents, their session."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agentwatch.events import NO_PROCESS, Event, Exec, Exit, Fork, ProcessKey


@dataclass(frozen=True, slots=True)
class Image:
    """What a process runs since its last exec. identity: the agent it is the program of.

    since: ns, that exec; the start of its process, where nobody saw one. others: what else exe was
    called, as the caller saw it and when the policy was loaded.
    """

    exe: str
    script: str | None = None
    argv: tuple[str, ...] = ()
    cwd: str = ""
    uid: int = 0
    identity: str | None = None
    since: int = field(default=0, compare=False)
    others: tuple[str, ...] = ()

    @property
    def args(self) -> tuple[str, ...]:
        """argv without argv[0], which a program chooses freely."""
        return self.argv[1:]


@dataclass(frozen=True, slots=True)
class Actor:
    """What rules may ask about whoever made a call, at the time of the call.

    image: the program that makes the call; for an exec, the one that calls execve. ancestors:
    images of the parent, its parent, ... nearest first, 8 at most. agents: every agent whose
    rules apply, the session's own first. project: $project, None when unset.
    """

    process: ProcessKey
    session: ProcessKey
    agents: tuple[str, ...]
    image: Image | None = None
    ancestors: tuple[Image, ...] = ()
    project: str | None = None

    @property
    def role(self) -> str:
        """agent: the image is the identity; child: something the agent started."""
        return "agent" if self.image is not None and self.image.identity else "child"


class Living(NamedTuple):
    """A process that has not ended, and whose it is."""

    process: ProcessKey
    session: ProcessKey


@dataclass(slots=True)
class _Process:
    """A process we know of. images: (time it came into force, image), oldest first.

    dropped: whether older ones were forgotten.

    parents: the nearest ANCESTORS, nearest first; a link to one would keep all above it for ever.
    """

    key: ProcessKey
    session: ProcessKey
    parents: tuple[_Process, ...]
    agents: tuple[str, ...]
    images: list[tuple[int, Image | None]]
    dropped: bool = False
    ended: int = 0

    def image(self, time: int) -> Image | None:
        """What it ran at `time`: an open may be read after the exec that followed it.

        None where that was forgotten: then nobody knows, and what restricts applies.
        """
        for since, image in reversed(self.images):
            if since <= time:
                return image
        return None if self.dropped else self.images[0][1]


Backfill = Callable[[ProcessKey], Image | None]
"""What a process runs now, for one whose start was not seen; None when it is gone."""


class Lineage:
    """The processes of all sessions, from fork, exec and exit events in the order of their rings.

    Nothing here looks at the machine but `backfill`. Ended processes are kept for KEPT ns of event
    time, for records of theirs that come later through the other ring.
    """

    KEPT = 10_000_000_000
    ANCESTORS = 8
    IMAGES = 8  # of one process: more execs than that between two reads are not told apart

    def __init__(self, backfill: Backfill = lambda process: None) -> None:
        self._backfill = backfill
        self._processes: dict[ProcessKey, _Process] = {}
        self._ended: deque[_Process] = deque()
        self._projects: dict[ProcessKey, str | None] = {}
        self._agents: dict[ProcessKey, tuple[str, ...]] = {}  # of a whole session, first one first
        self._alive: Counter[ProcessKey] = Counter()  # processes of a session

    def begin(
        self,
        session: ProcessKey,
        project: str | None,
        image: Image | None,
        agents: tuple[str, ...],
        above: Sequence[Image] = (),
    ) -> None:
        """A session: its first process, the image it has now, the agents it is known to be.

        above: what its ancestors run, nearest first; they are of no session.
        """
        self._projects[session] = project
        self._agents[session] = agents
        parents = tuple(
            _Process(NO_PROCESS, NO_PROCESS, (), (), [(0, one)]) for one in above[: self.ANCESTORS]
        )
        self._enter(_Process(session, session, parents, agents, [(0, image)]))

    def join(
        self, process: ProcessKey, parent: ProcessKey, session: ProcessKey, image: Image | None
    ) -> bool:
        """A process that ran already when its session began, or whose fork was not seen.

        False where it is known.
        """
        above = self._processes.get(parent)
        parents = (above, *above.parents)[: self.ANCESTORS] if above else ()
        agents = self._agents.get(session, ())
        known = self._processes.get(process)
        if known is not None and known.session == session:
            return False
        self._enter(_Process(process, session, parents, agents, [(0, image)]))
        return True

    def forget(self, session: ProcessKey) -> None:
        """A session that is over."""
        self._projects.pop(session, None)
        self._agents.pop(session, None)
        for key in [k for k, p in self._processes.items() if p.session == session]:
            self._processes.pop(key).parents = ()
        del self._alive[session]

    def _enter(self, process: _Process) -> None:
        before = self._processes.get(process.key)
        if before is not None and not before.ended:
            self._alive[before.session] -= 1
        self._processes[process.key] = process
        self._alive[process.session] += 1

    def _known(self, process: ProcessKey, session: ProcessKey) -> _Process:
        found = self._processes.get(process)
        if found is None:
            # Whose child it is was lost: the rules of every agent of the session apply.
            agents = self._agents.get(session, ())
            images = [(0, self._backfill(process))]
            found = _Process(process, session, (), agents, images)
            self._enter(found)
        return found

    def fork(self, event: Fork) -> None:
        parent = self._known(event.process, event.session)
        image = parent.image(event.time)
        parents = (parent, *parent.parents)[: self.ANCESTORS]
        images = [(event.time, image)]
        self._enter(_Process(event.child, event.session, parents, parent.agents, images))

    def exec(self, event: Exec, identity: str | None) -> bool:
        """The process runs something else from now on. True: it became an agent it was not before.

        The first agent stays; a further one is added and its rules apply as well.
        """
        process = self._known(event.process, event.session)
        process.images.append(
            (
                event.time,
                Image(
                    event.path,
                    event.script,
                    event.argv,
                    event.cwd,
                    event.uid,
                    identity,
                    event.time,
                    event.others,
                ),
            )
        )
        process.dropped = process.dropped or len(process.images) > self.IMAGES
        del process.images[: -self.IMAGES]
        if identity is None or identity in process.agents:
            return False
        process.agents = (*process.agents, identity)
        of_session = self._agents.get(event.session, ())
        if identity not in of_session:
            self._agents[event.session] = (*of_session, identity)
        return True

    def exit(self, event: Exit) -> bool:
        """False when the end of this process was told already."""
        process = self._processes.get(event.process)
        if process is None or process.ended:
            return process is None
        self._end(process, event.time)
        return True

    def gone(self, process: ProcessKey, time: int) -> None:
        """A process that was found not to run any more, though its exit was not told. time: now."""
        found = self._processes.get(process)
        if found is not None and not found.ended:
            self._end(found, time)

    def _end(self, process: _Process, time: int) -> None:
        process.ended = time
        self._alive[process.session] -= 1
        self._ended.append(process)
        while self._ended and self._ended[0].ended < time - self.KEPT:
            gone = self._ended.popleft()
            gone.parents = ()
            if self._processes.get(gone.key) is gone:
                del self._processes[gone.key]

    def actor(self, event: Event) -> Actor:
        """Who made the call this event is about, as it was then."""
        process = self._known(event.process, event.session)
        above = (parent.image(event.time) for parent in process.parents)
        return Actor(
            event.process,
            event.session,
            process.agents,
            process.image(event.time),
            tuple(image for image in above if image is not None),
            self._projects.get(event.session),
        )

    def agent(self, session: ProcessKey) -> str:
        """The agent a session is shown under: the first one it was; "" before there is one."""
        return next(iter(self._agents.get(session, ())), "")

    def image(self, process: ProcessKey) -> Image | None:
        """What a process runs now; None for one that is not known."""
        found = self._processes.get(process)
        return found.images[-1][1] if found else None

    def living(self) -> list[Living]:
        """Processes not known to have ended, with their sessions."""
        return [Living(p.key, p.session) for p in list(self._processes.values()) if not p.ended]

    def running(
        self, session: ProcessKey | None = None
    ) -> list[tuple[Image, tuple[str, ...], str | None]]:
        """What the processes of one session, or of all, run: each image once, the agents whose
        rules apply to it, and its project.
        """
        found = {}
        for process in self._processes.values():
            image = process.images[-1][1]
            if process.ended or image is None or session not in (None, process.session):
                continue
            project = self._projects.get(process.session)
            found[image.since, process.agents] = image, process.agents, project
        return list(found.values())

    def alive(self, session: ProcessKey) -> int:
        """How many processes of a session are not known to have ended."""
        return self._alive[session]

    def agents(self, session: ProcessKey) -> tuple[str, ...]:
        """Every agent whose rules apply somewhere in the session, the first one first."""
        return self._agents.get(session, ())

    def project(self, session: ProcessKey) -> str | None:
        return self._projects.get(session)

    def session(self, process: ProcessKey) -> ProcessKey | None:
        """The session of a process that is known."""
        found = self._processes.get(process)
        return found.session if found else None

    def parent(self, process: ProcessKey) -> ProcessKey | None:
        """The parent of a process, where that is known and of its session."""
        found = self._processes.get(process)
        above = found.parents[0].key if found and found.parents else NO_PROCESS
        return None if above == NO_PROCESS else above
