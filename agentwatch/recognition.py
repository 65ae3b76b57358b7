"""Whose a process is: sessions that begin because a program is an agent's, or somebody says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from agentwatch import abi, processes
from agentwatch.aside import Aside
from agentwatch.backfill import Backfill, Found
from agentwatch.engine import Engine, names_of
from agentwatch.errors import KernelError
from agentwatch.events import Event, Exec, ProcessKey
from agentwatch.holdings import Holdings, holdings
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Lineage
from agentwatch.policy.subjects import AgentBits
from agentwatch.project import home_of, project_here
from agentwatch.sessions import Left, Session, Sessions
from agentwatch.sinks import frames
from agentwatch.sinks.redact import Redactor


class Recognition:
    """Begins sessions. say: where its frames go.

    identities: ids of agents whose sessions begin by themselves; None for all that have rules.
    """

    def __init__(
        self,
        probes: Probes,
        sessions: Sessions,
        lineage: Lineage,
        redactor: Redactor,
        say: Callable[[frames.Frame], None],
        listing: Aside,
    ) -> None:
        self._probes, self._sessions, self._lineage = probes, sessions, lineage
        self._redactor, self._say, self._listing = redactor, say, listing
        self._engine: Engine
        self.identities: frozenset[str] | None = None

    def take(self, engine: Engine) -> None:
        """Goes by the identities of another policy from now on."""
        self._engine = engine
        self._probes.set_literals(engine.literals())

    def identify(self, names: Sequence[str]) -> str | None:
        """The agent whose session begins by itself with a program of these names, or None."""
        agent = self._engine.identify(names)
        return agent if self.identities is None or agent in self.identities else None

    def search(
        self, asked: Mapping[ProcessKey, str] | None = None, project: str = ""
    ) -> list[Session]:
        """Tags agents that run already and begins their sessions; those.

        asked: instead of those the identities cover, these: process -> agent, "" for none.
        project: of their sessions, "" to work it out. Raises KernelError without room in the maps.
        """
        backfill = Backfill(self._probes, self.identify, os.getpid())
        how = "running" if asked is None else "tag"
        begun = []
        for found in backfill.search(asked):
            if found.session not in self._sessions:
                begun.append(self._begin_running(found, how, project))
            for one in found.processes:
                self._sessions.join(one)  # of a session that there was before
                self._say_holdings(one.process, found.session)
        return begun

    def resume(self, left: Iterable[Left]) -> list[Session]:
        """Goes on with sessions that there were before, of whom processes still run; those."""
        known = {one.session: one for one in left}
        owned = {process: one.session for one in known.values() for process in one.members}
        begun = []
        for found in Backfill(self._probes, self.identify, os.getpid()).search({}, owned):
            one = known.get(found.session)
            if one is None or found.session in self._sessions:
                continue
            image = processes.image_now(found.session)
            begun.append(
                self._sessions.begin(
                    found.session,
                    how="running",
                    agents=one.agents,
                    project=one.project or None,
                    image=image,
                    uid=one.uid,
                    command=self._redactor.argv(image.argv) if image else (),
                    members=found.processes,
                )
            )
        return begun

    def inherit(self, left: Iterable[Left]) -> None:
        """Goes on with the sessions that the kernel has kept, be nobody of them left: what it has
        recorded of them is still to be read.

        Those that are provisional are settled by their records. left: what is known besides.
        """
        known = {one.session: one for one in left}
        kept = self._probes.sessions()
        rows = [one for one in self._probes.census() if one.session in kept]
        since, told = self._probes.images(), self._probes.keeping.told
        lost = told is None or self._probes.counters().lost != told.counters.lost
        for key, state in kept.items():
            if state.state == abi.SESSION_PROVISIONAL or key in self._sessions:
                continue
            one = known.get(key)
            image = processes.image_now(key)
            if image is not None:
                image = replace(image, since=since.get(key.pid, image.since))
            session = self._sessions.begin(
                key,
                how="running",
                agents=one.agents if one else self._agents_of(state.agents),
                project=(one.project if one else self._probes.project(key)) or None,
                image=image,
                uid=one.uid if one else image.uid if image else 0,
                command=self._redactor.argv(image.argv, False) if image else (),
            )
            session.lost = 0 if lost else state.lost
            for row in rows:
                if row.session == key:
                    self._sessions.join(row, since.get(row.process.pid, 0))
                    self._say_holdings(row.process, key)

    def guess(self, session: ProcessKey, members: Iterable[ProcessKey]) -> Left:
        """A session that nobody remembers, by what its first process runs now."""
        agent = self._engine.identify(processes.names_now(session))
        image = processes.image_now(session)
        where = project_here(image.cwd, home_of(image.uid)) if image else None
        uid = image.uid if image else 0
        return Left(session, (agent,) if agent else (), where or "", uid, tuple(members))

    def _agents_of(self, bits: int) -> tuple[str, ...]:
        """By the numbers of the daemon before."""
        numbered = AgentBits(self._probes.keeping.agents)
        return tuple(name for name in numbered.names if bits >> numbered.bit(name) & 1)

    def _begin_running(self, found: Found, how: str, project: str) -> Session:
        image = processes.image_now(found.session)
        # Whoever is tagged by hand is an agent by its names, where nobody has said which.
        agent = found.agent or self._engine.identify(processes.names_now(found.session)) or ""
        if image is not None and agent:
            image = replace(image, identity=agent)
        uid = image.uid if image else 0
        where = project_here(image.cwd, home_of(uid)) if image else None
        return self._sessions.begin(
            found.session,
            how=how,
            agents=(agent,) if agent else (),
            project=project or where,
            image=image,
            uid=uid,
            command=self._redactor.argv(image.argv, False) if image else (),
            members=found.processes,
        )

    def _say_holdings(self, process: ProcessKey, session: ProcessKey) -> None:
        """What a process holds from before it was tagged, which no rule was asked about.

        Aside: a process may hold so much that looking at it takes its time.
        """
        agent = self._lineage.agent(session)

        def say(held: Holdings) -> None:
            if held.files or held.connections:
                self._say(
                    frames.Holdings(
                        process=process,
                        session=session,
                        agent=agent,
                        files=held.files,
                        connections=held.connections,
                    )
                )

        def failed(error: Exception) -> None:
            say(Holdings((f"? not listed: {error}",)))

        self._listing.do(lambda: holdings(process), say, failed)

    def settle(self, event: Event) -> ProcessKey | None:
        """Confirms or rejects a session that the kernel began on the strength of one literal.

        The session that the event belongs to; None when it is nobody's.
        """
        session = event.session
        if not isinstance(event, Exec) or event.result:
            return None
        agent = self.identify(names_of(event))
        if agent is None:
            if event.process == session:
                self._sessions.reject(session)
            return None
        if event.process != session:
            return self._begin_anew(event, agent)
        # Where it was taken back a moment ago for what the process ran before, it begins anew.
        if not self._probes.confirm(session):
            return self._begin_anew(event, agent)
        self._begin(event, agent)
        return session

    def _begin(self, event: Exec, agent: str, members: Sequence[abi.Process] = ()) -> None:
        """The session of a process that has become an agent by this exec."""
        self._sessions.begin(
            event.process,
            how="identity",
            agents=(agent,),
            project=project_here(event.cwd, home_of(event.uid)),
            image=None,
            uid=event.uid,
            command=self._redactor.argv(event.argv, event.argv_cut),
            parent=event.parent.pid,
            members=members,
        )
        self._say_holdings(event.process, event.process)

    def _begin_anew(self, event: Exec, agent: str) -> ProcessKey | None:
        """A session for an agent that was started by what only looked like one.

        It was started before that was known, and carried a tag that is good for nothing by now.
        """
        process = event.process
        try:
            found = Backfill(self._probes, self.identify, os.getpid()).search({process: agent})
        except (OSError, KernelError):
            found = []
        mine = [one for one in found if one.session == process]
        if not mine:
            return None
        self._begin(event, agent, mine[0].processes)  # with what it has forked by now
        return process

    def settle_late(self, key: ProcessKey) -> None:
        """A provisional session whose exec was not told."""
        agent = self.identify(processes.names_now(key))
        if agent is None:
            self._sessions.reject(key)
            return
        if self._probes.confirm(key):
            self._begin_running(Found(key, agent, ()), "identity", "")
