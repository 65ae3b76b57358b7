"""The loop: rings -> events -> engine -> enforcement -> journal and whoever else listens.

What has a clock or a side effect between the probes and the sinks is here or in `enforcement`; what
decides (engine) and what knows who is who (lineage) are handed their inputs and do nothing else.
"""

from __future__ import annotations

import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from agentwatch import abi, actions, processes
from agentwatch.enforcement import Enforcement
from agentwatch.engine import NO_VERDICT, Engine, Verdict, names_of
from agentwatch.errors import JournalError, KernelError
from agentwatch.events import Event, Exec, Exit, Fork, ProcessKey
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Actor, Image, Lineage
from agentwatch.mounts import Mounts, Namespace
from agentwatch.policy.levels import Host
from agentwatch.sinks import frames
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.metrics import DelayCounter
from agentwatch.sinks.redact import Redactor

POLL = 0.020  # s between two looks at the rings when nothing wakes us
BUSY_POLL = 0.002  # s, while records that may be acted on keep coming
BATCH = 1 << 20  # bytes of a ring handled in one go: bounds how late a kill can be
BATCHES = 64  # in one step, before others get their turn
CHECK = 0.5  # s between two looks at the counters of losses
REJECTED = 4096  # sessions that turned out to be nobody's, for records still on their way
RESTOPS = 16  # of one process of a frozen session; then it is killed


class Sink(Protocol):
    """Somebody who is told what happens, in order."""

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        """A decoded event of a confirmed session; argv is redacted.

        Opens that neither change anything nor are of a kind some rule judges are not decoded.
        """

    def frame(self, frame: frames.Frame) -> None:
        """A verdict, a kill, a gap, a session, a notice: what the journal says of its own."""


class Watch:
    """One loop over one set of probes. `step` is one turn of it."""

    def __init__(
        self,
        probes: Probes,
        engine: Engine,
        journal: Journal,
        *,
        host: Host,
        mounts: Mounts,
        sinks: Sequence[Sink] = (),
        breaker: actions.Breaker | None = None,
    ) -> None:
        self.probes, self.engine, self.journal, self.host = probes, engine, journal, host
        self.sinks = tuple(sinks)
        self.lineage = Lineage(processes.image_now)
        self.lost: Counter[str] = Counter()
        self.delays = DelayCounter()
        self.redactor = Redactor.load()
        self._namespace = Namespace(mounts)
        self.enforcement = Enforcement(
            engine, host, self.redactor, self.say, breaker or actions.Breaker()
        )
        self._confirmed: set[ProcessKey] = set()
        self._rejected: dict[ProcessKey, None] = {}  # the last REJECTED
        self._decoded = engine.kinds | {abi.CONNECT, abi.SYN}
        self._failed: list[Exception] = []  # while handling records of the batch at hand
        self._frozen: dict[ProcessKey, int] = {}  # session -> since when it is held, ns of boottime
        self._restops: Counter[ProcessKey] = Counter()
        self._urgent = False
        self._seen = probes.counters()
        self._misses = {hook: stats.misses for hook, stats in probes.stats().items()}
        self._checked = time.monotonic()
        self._journal_failing = False
        probes.set_literals(engine.literals())
        probes.wake_for(engine.acting_kinds)

    def close(self) -> None:
        """Lets go of what is the watch's own; probes, journal and sinks are whoever made them's."""
        self._namespace.close()

    # Sessions.

    def begin(
        self,
        session: ProcessKey,
        *,
        agents: tuple[str, ...],
        project: str | None,
        image: Image | None,
    ) -> None:
        """A session somebody asked for: its first process is tagged already."""
        self._confirmed.add(session)
        self.lineage.begin(session, project, image, agents)

    def freeze(self, session: ProcessKey, why: str) -> None:
        """Stops every process of a session until somebody ends it; what goes on is killed."""
        held = self._hold(session)
        killed = f", {held.killed} killed that could not be held" if held.killed else ""
        text = f"{why}; {held.stopped} stopped{killed}"
        self.say(frames.Notice(subject="freeze", text=text, session=session))

    def _hold(self, session: ProcessKey) -> actions.Held:
        held = actions.hold(lambda: self.alive(session))
        self._frozen[session] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return held

    def _restop(self, session: ProcessKey, process: ProcessKey, since: int) -> None:
        """A process of a frozen session that did something: somebody has let it go on."""
        frozen = self._frozen.get(session)
        if frozen is None:
            return
        self._restops[process] += since > frozen
        often = self._restops[process] > RESTOPS
        actions.send(process, signal.SIGKILL if often else signal.SIGSTOP)

    def alive(self, session: ProcessKey | None = None) -> set[ProcessKey]:
        """The live processes of one session or of all: those told of, and those tagged by now."""
        return {*self.lineage.alive(session), *self._tagged(session)}

    def _tagged(self, session: ProcessKey | None) -> set[ProcessKey]:
        """From the kernel's own table: who was forked a moment ago, or whose fork was lost."""
        known = {p.pid for p in self.lineage.alive() if processes.runs(p)}
        found = set()
        for pid in self.probes.tagged_pids(session):
            process = None if pid in known else processes.key_now(pid)
            if process is not None:
                found.add(process)
        return found

    def end(self, session: ProcessKey | None = None) -> None:
        """Ends every process of one session or of all, and does not depend on the rings for it."""
        actions.end_all(lambda: self.alive(session))

    # The loop.

    @property
    def patience(self) -> float:
        """Seconds until the next step, if nothing wakes us before."""
        return BUSY_POLL if self._urgent else POLL

    def poller(self) -> select.epoll:
        """Ready when a ring has something that cannot wait; others may be registered with it.

        Edge-triggered: most records wait for the next poll, and must not make it return at once.
        """
        poller = select.epoll()
        for ring in (self.probes.lifecycle, self.probes.activity):
            poller.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        return poller

    def step(self) -> int:
        """Handles what the rings hold; how many records that were."""
        handled = 0
        self._urgent = False
        for _ in range(BATCHES):
            count = self._drain()
            handled += count
            if not count:
                break
        if handled:
            self._written(self.journal.flush)
        if time.monotonic() - self._checked >= CHECK:
            self.check()
        return handled

    def _drain(self) -> int:
        # Activity first: whatever led to it is in the lifecycle ring by the time that is read.
        activity = self.probes.activity.records(BATCH)
        lifecycle = self.probes.lifecycle.records(BATCH)
        if not activity and not lifecycle:
            return 0
        if self._namespace.changed():
            self._say_mounts()
        kept = [record for record in map(self._handled, lifecycle) if record is not None]
        if self._rejected:
            kept += [r for r in activity if abi.session_of(r) not in self._rejected]
        else:
            kept += activity
        decoded, acting = self._decoded, self.engine.acting_kinds
        for record in activity:
            _, kind, flags = abi.peek(record)
            if kind in decoded or flags & abi.FLAG_CHANGES:
                self._urgent |= kind in acting
                try:
                    self._activity(record)
                except Exception as error:  # as with those of the other ring
                    self._failed.append(error)
        self._say_failed()
        self._written(lambda: self.journal.records(b"".join(kept), len(kept)))
        self._measure(lifecycle, activity)
        self.probes.lifecycle.release()
        self.probes.activity.release()
        return len(lifecycle) + len(activity)

    def _measure(self, *batches: Sequence[memoryview]) -> None:
        """Probe to journal, by each batch's oldest record: what waited longest."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for batch in batches:
            if batch:
                self.delays.observe((now - abi.time_of(batch[0])) / 1e9, len(batch))

    # Records.

    def _name(self, dev: int, path: bytes) -> str:
        if self._namespace.looked_up(dev):
            self._say_mounts()
        return self._namespace.mounts.name(dev, path)

    def _say_mounts(self) -> None:
        self.say(frames.MountsChanged(rows=tuple(self._namespace.mounts.rows())))

    def _handled(self, record: memoryview) -> bytes | memoryview | None:
        """A lifecycle record, as it goes into the journal; None for nothing."""
        try:
            return self._lifecycle(record)
        except Exception as error:  # of one record, and it must not be the last one read
            self._failed.append(error)
        try:
            _, _, flags = abi.peek(record)
            if flags & abi.FLAG_PROVISIONAL and abi.session_of(record) not in self._confirmed:
                return None
            return self.redactor.record(bytes(record))
        except Exception as error:  # what cannot be redacted is not written
            self._failed[-1:] = [error]
            return None

    def _say_failed(self) -> None:
        """What could not be handled is a loss, whoever is to blame."""
        failed, self._failed = self._failed, []
        if failed:
            self._gap("record", len(failed), -1)
            error = failed[0]
            text = f"{len(failed)} not handled, the first for {type(error).__name__}: {error}"
            self.say(frames.Notice(subject="record", text=text))

    def _lifecycle(self, record: memoryview) -> bytes | memoryview | None:
        """Handles one record; what of it goes into the journal, None for nothing."""
        event = abi.decode(record, self._name)
        if event.provisional and event.session not in self._confirmed:
            session = self._settle(event)
            if session is None:
                return None
            if session != event.session:
                event, record = replace(event, session=session), _moved(record, session)
        if isinstance(event, Exec):
            self._executed(event)
            return self.redactor.record(bytes(record))
        if isinstance(event, Fork):
            self._forked(event)
        elif isinstance(event, Exit):
            self._exited(event)
        return record

    def _settle(self, event: Event) -> ProcessKey | None:
        """Confirms or rejects a session that the kernel began on the strength of one literal.

        The session that the event belongs to; None when it is nobody's.
        """
        session = event.session
        if not isinstance(event, Exec) or event.result:
            return None
        if self.engine.identify(names_of(event)) is None:
            if event.process == session:
                self._reject(session)
            return None
        if event.process != session:
            return self._begin_anew(event.process)
        self._rejected.pop(session, None)
        self._confirmed.add(session)
        self.probes.confirm(session)
        self.lineage.begin(session, None, processes.image_now(session), ())
        return session

    def _reject(self, session: ProcessKey) -> None:
        self._rejected[session] = None
        if len(self._rejected) > REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self.probes.release(session)

    def _begin_anew(self, process: ProcessKey) -> ProcessKey | None:
        """A session for an agent that was started by what only looked like one.

        It was started before that was known, and carried a tag that is good for nothing by now.
        """
        try:
            session = self.probes.tag(process.pid)
        except (OSError, KernelError):
            return None
        if session != process:
            self.probes.release(session)
            return None
        self._confirmed.add(session)
        self.lineage.begin(session, None, processes.image_now(session), ())
        return session

    def _forked(self, event: Fork) -> None:
        self.lineage.fork(event)
        self._restop(event.session, event.child, event.time)
        self._tell(event, self.lineage.actor(event), NO_VERDICT)

    def _executed(self, event: Exec) -> None:
        actor = self.lineage.actor(event)
        verdict = self._judge(event, actor) if abi.EXEC in self.engine.kinds else NO_VERDICT
        self._urgent |= abi.EXEC in self.engine.acting_kinds
        if event.result == 0:
            agent = self.engine.identify(names_of(event)) if event.candidate else None
            if self.lineage.exec(event, agent) and agent:
                self._say_agent(event, agent)
        self._restop(event.session, event.process, event.time)
        redacted = self.redactor.argv(event.argv, event.argv_cut)
        self._tell(replace(event, argv=redacted), actor, verdict)

    def _say_agent(self, event: Exec, agent: str) -> None:
        self.say(
            frames.AgentAdded(
                time=event.time,
                session=event.session,
                process=event.process,
                agent=agent,
                path=event.script or event.path,
            )
        )

    def _exited(self, event: Exit) -> None:
        first = self.lineage.exit(event)
        self._restops.pop(event.process, None)
        self.enforcement.ended(event)
        if first:
            self._tell(event, self.lineage.actor(event), NO_VERDICT)

    def _activity(self, record: memoryview) -> None:
        event = abi.decode(record, self._name)
        if event.provisional and event.session not in self._confirmed:
            return
        actor = self.lineage.actor(event)
        self._tell(event, actor, self._judge(event, actor))
        self._restop(event.session, event.process, event.time)

    def _judge(self, event: Event, actor: Actor) -> Verdict:
        verdict = self.engine.judge(event, actor)
        if verdict.response != "none":
            agent = self.lineage.agent(event.session)
            if self.enforcement.act(event, verdict, agent):
                self.freeze(event.session, "too many kills in too short a time")
        return verdict

    # Who is told.

    def _tell(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        for sink in self.sinks:
            sink.event(event, actor, verdict)

    def say(self, frame: frames.Frame) -> None:
        """Puts a frame into the journal and before every sink."""
        self._written(lambda: self.journal.write(frame))
        for sink in self.sinks:
            sink.frame(frame)

    def _written(self, write: Callable[[], object]) -> None:
        """A journal that cannot be written is told once until it works again; it keeps frames."""
        try:
            write()
        except JournalError as error:
            self.lost["journal"] = self.journal.lost
            if not self._journal_failing:
                self._journal_failing = True
                text = f"{error.message}: {error.remedy}"
                for sink in self.sinks:
                    sink.frame(frames.Notice(subject="journal", text=text))
        else:
            # What only went into its buffer proves nothing.
            self._journal_failing = self._journal_failing and self.journal.waiting > 0

    # What goes wrong.

    def check(self) -> None:
        """Losses since the last look, kills that did not work, children the kernel left out."""
        self._checked = time.monotonic()
        now, seen = self.probes.counters(), self._seen
        for kind in abi.KIND_NAMES:
            ring = 0 if kind in (abi.FORK, abi.EXEC, abi.EXIT) else 1
            self._gap("ring", now.lost[kind] - seen.lost[kind], ring)
            self._gap("scratch", now.unrecorded[kind] - seen.unrecorded[kind], ring)
        self._gap("tag", now.doomed - seen.doomed, 0)
        self._seen = now
        for hook, stats in self.probes.stats().items():
            skipped = stats.misses - self._misses.get(hook, 0)
            self._misses[hook] = stats.misses
            self._gap("recursion", skipped, -1)
            if skipped > 0 and hook == "process_fork":
                self.probes.reconcile()
        for session in self._frozen:
            self._hold(session)
        self.enforcement.give_up(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._written(self.journal.flush)

    def _gap(self, stage: str, count: int, ring: int) -> None:
        if count > 0:
            self.lost[stage] += count
            self.say(frames.Gap(stage=stage, ring=ring, count=count))


def _moved(record: memoryview, session: ProcessKey) -> memoryview:
    """The record in a confirmed session."""
    values, strings = abi.unpack(record)
    place = {"session_tgid": session.pid, "session_start": session.start}
    flags = values["flags"] & ~abi.FLAG_PROVISIONAL
    return memoryview(abi.pack(values["kind"], values | place | {"flags": flags}, strings))
