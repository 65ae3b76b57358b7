"""The loop: rings -> events -> engine -> enforcement -> journal and whoever else listens.

What has a clock or a side effect between the probes and the sinks is here or in `enforcement`; what
decides (engine) and what knows who is who (lineage) are handed their inputs and do nothing else.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from agentwatch import abi, actions, decoding, known, processes
from agentwatch.aside import Aside
from agentwatch.enforcement import Enforcement
from agentwatch.engine import NO_VERDICT, Engine, Verdict, names_of
from agentwatch.errors import JournalError
from agentwatch.events import Event, Exec, Exit, Fork, ProcessKey
from agentwatch.freezer import Freezer
from agentwatch.holding import Holding
from agentwatch.hooks import Hooks
from agentwatch.inforce import InForce
from agentwatch.kernel.links import LOOKED_UP, Links
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Actor, Lineage
from agentwatch.losses import Losses
from agentwatch.mounts import Mounts, Namespace
from agentwatch.policy.levels import Host
from agentwatch.policy.readers import kinds_of
from agentwatch.recognition import Recognition
from agentwatch.sessions import Left, Session, Sessions
from agentwatch.sinks import frames
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.metrics import DurationCounter
from agentwatch.sinks.redact import Redactor

POLL = 0.020  # s between two looks at the rings when nothing wakes us
BUSY_POLL = 0.002  # s, while records that may be acted on keep coming
QUIET_POLL = 0.100  # s, when nothing came for QUIET
IDLE_POLL = 0.5  # s, when besides there is nobody to watch: a program like an agent's wakes us
QUIET = 1.0  # s
BATCH = 1 << 16  # bytes of a ring handled in one go: bounds how late a kill can be
SLICE = 0.010  # s of a step, and a batch more, before others get their turn
CHECK = 0.5  # s between two looks at the counters of losses
SETTLE = 2.0  # s that handling what a policy's swap waits for may take
SWEEP = 30.0  # s between two searches for processes whose beginning or end was not told
_SHOWN = frozenset({abi.CONNECT, abi.SYN, abi.CHANGE, abi.MOUNT})


class Sink(Protocol):
    """Somebody who is told what happens, in order."""

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        """A decoded event of a confirmed session; argv is redacted.

        Opens that neither change anything nor are judged by the engine are not decoded; without
        Watch.told, nothing is that the engine does not judge.
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
        freezer: Freezer | None = None,
        on_loss: str = "log",
        identities: frozenset[str] | None = None,
        threaded: bool = False,
    ) -> None:
        self.probes, self.engine, self.journal, self.host = probes, engine, journal, host
        self.sinks = tuple(sinks)
        self.told = True  # whether sinks want events that no rule is about
        self.lineage = Lineage(processes.image_now)
        self.delays = DurationCounter()  # from probe to journal
        self.turns = DurationCounter()  # of whoever's loop `step` is part of
        self.redactor = Redactor.load()
        self.quiet_agents: frozenset[str] = frozenset()  # of whom only findings are journaled
        self._namespace = Namespace(mounts)
        self._links = Links(self._name)
        self.aside, self.listing = Aside(threaded), Aside(threaded)
        self._searching, self._closed = Aside(threaded=True), threading.Event()
        holding = Holding(probes, freezer)
        self.force = InForce(probes, self.lineage, self.say)
        self.force.mounted(mounts)
        self.sessions = Sessions(probes, self.lineage, self.say, holding, self.aside, self.force)
        self.recognition = Recognition(
            probes, self.sessions, self.lineage, self.redactor, self.say, self.listing
        )
        self.recognition.identities = identities
        self.hooks = Hooks(probes, self.say)
        self.losses = Losses(probes, self.sessions, self.say, on_loss)
        self.enforcement = Enforcement(
            engine, host, self.redactor, self.say, breaker or actions.Breaker()
        )
        self._failed: list[Exception] = []  # while handling records of the batch at hand
        self._urgent = self._behind = False  # behind: a ring holds more than a batch
        self._drained = 0  # ns of boottime: whatever happened before was read
        self.unsettled = 0  # policies that came into force before all that ran was known
        self._checked = self._swept = self._heard = self._known_since = time.monotonic()
        self._known_for = engine  # whose rules' files are known
        self.journal_error = ""  # why the journal cannot be written at present
        self.journal_failed = ""  # ... could not, the last time
        if probes.keeping.inherited:
            self._expect(engine)
        else:
            self.take(engine)

    def take(self, engine: Engine) -> None:
        """Judges by another policy from the next record on. Raises OSError: not by that one."""
        self.recognition.take(engine)
        try:
            self.force.take(engine, self._settle)
        except BaseException:
            self.recognition.take(self.engine)
            raise
        self.engine = engine
        self.enforcement.take(engine)
        self.probes.wake_for(engine.acting_kinds)
        self._know()

    def _know(self) -> None:
        """Has the files that the rules name looked for, beside the loop."""
        self._known_since = time.monotonic()
        engine, mounts = self.engine, self._namespace.mounts
        before = self.force.known.files if engine is self._known_for else ()
        self._known_for = engine
        if engine.compiled is None:  # the kernel judges nothing
            self.force.know(known.Found())
            return

        def take(found: known.Found) -> None:
            if engine is self.engine:  # else another search is on its way
                self.force.know(found)

        def find() -> known.Found:
            return known.search(engine.ruleset, mounts, before, self._closed.is_set)

        self._searching.do(find, take)

    def _expect(self, engine: Engine) -> None:
        """The policy of a daemon before this one stays in force until `inherit`."""
        self.recognition.take(engine)
        self.force.expect(engine)
        self.enforcement.take(engine)
        self.probes.wake_for(engine.acting_kinds)

    def inherit(self, left: Iterable[Left]) -> None:
        """Goes on where a daemon before this one has stopped: with its sessions, with what was
        recorded since, then by our policy. left: what it remembered. Raises OSError.
        """
        self.recognition.inherit(left)
        self.take(self.engine)
        self._sweep()

    def take_host(self, host: Host) -> None:
        """There are other hooks than before."""
        self.host = self.enforcement.host = host

    def look_at_hooks(self) -> None:
        """Says which hooks are missing, if that was not said, and attaches what was detached."""
        now = self.hooks.check(self.engine, self.host)
        if now != self.host:
            self.take_host(now)

    def _settle(self) -> None:
        """Handles what the rings hold by now, by the policy before."""
        now, limit = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic() + SETTLE
        while len(self.sessions) and self._drained < now:
            if time.monotonic() >= limit:
                self.unsettled += 1
                text = f"what runs was not all known within {SETTLE:.0f} s: "
                text += "new rules that ask who makes a call make no exception for what has begun"
                self.say(frames.Notice(subject="policy", text=text))
                break
            self.step()
        self.force.tidy(self._drained)

    @property
    def drained(self) -> int:
        """ns of CLOCK_BOOTTIME: whatever happened before was read."""
        return self._drained

    def close(self) -> None:
        """Lets go of what is the watch's own; probes, journal and sinks are whoever made them's."""
        self._closed.set()
        for aside in (self.aside, self.listing, self._searching):
            aside.close()
        self._namespace.close()

    # The loop.

    @property
    def patience(self) -> float:
        """Seconds until the next step, if nothing wakes us before."""
        if self._behind:
            return 0
        if self._urgent:
            return BUSY_POLL
        if time.monotonic() - self._heard < QUIET:
            return POLL
        return QUIET_POLL if len(self.sessions) else IDLE_POLL

    def poller(self) -> select.epoll:
        """Ready when a ring has something that cannot wait; others may be registered with it.

        Edge-triggered: most records wait for the next poll, and must not make it return at once.
        """
        poller = select.epoll()
        self.register(poller)
        return poller

    def register(self, poller: select.epoll) -> None:
        """Has the rings wake somebody's poller."""
        for ring in (self.probes.lifecycle, self.probes.activity):
            poller.register(ring.fd, select.EPOLLIN | select.EPOLLET)
        for aside in (self.aside, self.listing, self._searching):
            poller.register(aside.fileno(), select.EPOLLIN)

    def step(self) -> int:
        """Handles what the rings hold, for a SLICE of time; how many records that were."""
        handled = 0
        self._urgent = False
        self._take_results()
        rings, begun = (self.probes.activity, self.probes.lifecycle), time.monotonic()
        while True:
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            # What comes while a batch is handled waits for the next step, where it is a larger one.
            self._behind = any(ring.pending > BATCH for ring in rings)
            handled += self._drain()
            if not self._behind:
                self._drained = now
                self.probes.keeping.listen(now)
                self.sessions.let_off(now)
                break
            if time.monotonic() - begun >= SLICE:
                break
        if handled:
            self._heard = time.monotonic()
        if time.monotonic() - self._checked >= CHECK:
            self.check()
        return handled

    def catch_up(self, seconds: float) -> None:
        """Steps until the rings are empty, for so long at most."""
        limit = time.monotonic() + seconds
        while self.step() and time.monotonic() < limit:
            pass

    def _take_results(self) -> None:
        """Of work beside the loop: what failed there is told, and does not end the loop."""
        try:
            self.aside.turn()
            self.listing.turn()
            self._searching.turn()
        except Exception as error:
            text = f"what was begun has failed: {type(error).__name__}: {error}"
            self.say(frames.Notice(subject="failure", text=text))

    def _drain(self) -> int:
        # Activity first: whatever led to it is in the lifecycle ring by the time that is read.
        activity = self.probes.activity.records(BATCH)
        lifecycle = self.probes.lifecycle.records(BATCH)
        if not activity and not lifecycle:
            return 0
        if self._namespace.changed():
            self._say_mounts()
        activity = self._looked_up(activity)
        kept = [record for record in map(self._handled, lifecycle) if record is not None]
        kept += self._wanted(activity)
        judged, acting = self.engine.kinds, self.engine.acting_kinds
        several = self.force.several
        # What is decoded though no rule is about it.
        shown = _SHOWN if self.told else frozenset[int]()
        changes = abi.FLAG_CHANGES if self.told or self.engine.follows_writes else 0
        for record in activity:
            _, kind, flags = abi.peek(record)
            generation, verdict = abi.judged(record)
            # The kernel has decided what it has judged and not flagged.
            ours = not generation or verdict or (several and abi.session_of(record) in several)
            if verdict or (ours and kind in judged) or kind in shown or flags & changes:
                self._urgent |= bool(ours) and kind in acting
                try:
                    self._activity(record, bool(ours))
                except Exception as error:  # as with those of the other ring
                    self._failed.append(error)
        self._say_failed()
        self.written(lambda: self.journal.records(b"".join(kept), len(kept)))
        self.written(self.journal.flush)  # what leaves the rings outlives us
        self._measure(lifecycle, activity)
        self.probes.lifecycle.release()
        self.probes.activity.release()
        return len(lifecycle) + len(activity)

    def _looked_up(self, activity: list[memoryview]) -> list[memoryview]:
        """With the links in names followed that calls were given: what is judged is kept."""
        self._links.forget()
        kinds = [abi.peek(record)[1] for record in activity]
        if LOOKED_UP.isdisjoint(kinds):
            return activity
        for place, kind in enumerate(kinds):
            if kind in LOOKED_UP:
                try:
                    activity[place] = self._links.looked_up(activity[place])
                except Exception as error:  # as with those of the other ring
                    self._failed.append(error)
        return activity

    def _wanted(self, activity: list[memoryview]) -> list[memoryview]:
        """Those that go into the journal."""
        rejected = self.sessions.rejected
        if not rejected and not self.quiet_agents:
            return activity
        kept = []
        for record in activity:
            session = abi.session_of(record)
            if session in rejected:
                own = self.lineage.session(abi.process_of(record))
                if own is None or own not in self.sessions:
                    continue
                session, record = own, _moved(record, own)
            if not self._is_quiet(session):
                kept.append(record)
        return kept

    def _is_quiet(self, session: ProcessKey) -> bool:
        return bool(self.quiet_agents) and self.lineage.agent(session) in self.quiet_agents

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
        self.force.mounted(self._namespace.mounts)
        self.say(frames.MountsChanged(rows=tuple(self._namespace.mounts.rows())))

    def _handled(self, record: memoryview) -> bytes | memoryview | None:
        """A lifecycle record, as it goes into the journal; None for nothing."""
        try:
            return self._lifecycle(record)
        except Exception as error:  # of one record, and it must not be the last one read
            self._failed.append(error)
        try:
            _, _, flags = abi.peek(record)
            if flags & abi.FLAG_PROVISIONAL and abi.session_of(record) not in self.sessions:
                return None
            return self.redactor.record(bytes(record))
        except Exception as error:  # what cannot be redacted is not written
            self._failed[-1:] = [error]
            return None

    def _say_failed(self) -> None:
        """What could not be handled is a loss, whoever is to blame."""
        failed, self._failed = self._failed, []
        if failed:
            self.losses.gap("record", len(failed), -1)
            error = failed[0]
            text = f"{len(failed)} not handled, the first for {type(error).__name__}: {error}"
            self.say(frames.Notice(subject="record", text=text))

    def _lifecycle(self, record: memoryview) -> bytes | memoryview | None:
        """Handles one record; what of it goes into the journal, None for nothing."""
        event = decoding.decode(record, self._name)
        session = self._owner(event)
        if session is None:
            return None
        if session != event.session:
            event, record = replace(event, session=session), _moved(record, session)
            if isinstance(event, Fork):
                self.probes.adopt({event.child: session})
        if isinstance(event, Exec):
            self._executed(event)
        elif isinstance(event, Fork):
            self._forked(event)
        elif isinstance(event, Exit):
            self._exited(event)
        if self._is_quiet(event.session):
            return None
        return self.redactor.record(bytes(record)) if isinstance(event, Exec) else record

    def _owner(self, event: Event) -> ProcessKey | None:
        """The session that an event is of; None for nobody's.

        What an agent did before it was known to be one has the mark of what had started it.
        """
        if event.session in self.sessions:
            return event.session
        if not event.provisional:
            return None  # of a session that was let go meanwhile
        session = self.lineage.session(event.process)
        if session is not None and session in self.sessions:
            return session
        return self.recognition.settle(event)

    def _forked(self, event: Fork) -> None:
        self.lineage.fork(event)
        session = self.sessions.get(event.session)
        if session is not None:
            session.seen += 1
        self._tell(event, self.lineage.actor(event), NO_VERDICT)

    def _executed(self, event: Exec) -> None:
        actor = self.lineage.actor(event)
        several = event.session in self.force.several
        verdict = NO_VERDICT
        ours = abi.EXEC in self.engine.kinds and (not event.generation or several)
        if event.verdict or ours:
            verdict = self._judge(event, actor)
            self._urgent |= abi.EXEC in self.engine.acting_kinds
        if event.result == 0:
            agent = self.engine.identify(names_of(event)) if event.candidate else None
            if self.lineage.exec(event, agent) and agent:
                self.force.added(event.session)
                self._say_agent(event, agent)
            elif several:
                self.force.added(event.session)
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
        self.enforcement.ended(event)
        if first:
            self._tell(event, self.lineage.actor(event), NO_VERDICT)

    def _activity(self, record: memoryview, judged: bool) -> None:
        event = decoding.decode(record, self._name)
        session = self._owner(event)
        if session is None:
            return
        if session != event.session:
            event = replace(event, session=session)
        actor = self.lineage.actor(event)
        if not judged:
            self.engine.saw(event)
        self._tell(event, actor, self._judge(event, actor) if judged else NO_VERDICT)

    def _judge(self, event: Event, actor: Actor) -> Verdict:
        verdict = self.engine.judge(event, actor)
        done = self.force.verdict(event)
        if done.done:  # not once more
            if verdict.response == "none" and self._is_comparable(event, done):
                self.force.disagrees(event, done)
            scope = "session" if "session" in (done.scope, verdict.scope) else "process"
            verdict = replace(done, matches=verdict.matches, scope=scope)
        if verdict.response != "none":
            agent = self.lineage.agent(event.session)
            if self.enforcement.act(event, verdict, agent):
                self.sessions.freeze(event.session, "too many kills in too short a time (breaker)")
            session = self.sessions.get(event.session)
            if session is not None and verdict.response == "kill":
                session.kills += 1
                if verdict.scope == "session":
                    self.sessions.end(event.session)
        return verdict

    def _is_comparable(self, event: Event, done: Verdict) -> bool:
        """Whether the engine was asked what the kernel was: what failed is nothing it judges."""
        if event.generation != self.engine.generation or not kinds_of(event):
            return False
        return not (done.rule and self.engine.memory.paused(done.rule, event.time))

    # Who is told.

    def _tell(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        for sink in self.sinks:
            sink.event(event, actor, verdict)

    def say(self, frame: frames.Frame) -> None:
        """Puts a frame into the journal and before every sink."""
        self.written(lambda: self.journal.write(frame))
        for sink in self.sinks:
            sink.frame(frame)

    def written(self, write: Callable[[], object]) -> None:
        """A journal that cannot be written is told once until it works again; it keeps frames."""
        try:
            write()
        except JournalError as error:
            self.losses.counts["journal"] = self.journal.lost
            before, self.journal_error = self.journal_error, f"{error.message}: {error.remedy}"
            self.journal_failed = self.journal_error
            if not before:
                for sink in self.sinks:
                    sink.frame(frames.Notice(subject="journal", text=self.journal_error))
        else:
            # What only went into its buffer proves nothing.
            if not self.journal.waiting:
                self.journal_error = ""

    # What goes wrong.

    def check(self) -> None:
        """Losses, kills that did not work, sessions that are over, since the last look."""
        self._checked = time.monotonic()
        self.look_at_hooks()
        missed = self.losses.check()
        if missed or self._checked - self._swept >= SWEEP:
            self._swept = self._checked
            self._sweep()
        self.force.tidy(self._drained)
        if self._checked - self._known_since >= known.RENEW:
            self._know()
        self.sessions.restop()
        for session in self.sessions.over(self._drained):
            self.forget(session)
        self.enforcement.give_up(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self.written(self.journal.flush)
        if not self.journal.waiting:
            self.losses.told()

    def forget(self, session: Session) -> None:
        """A session is over, or goes on unwatched."""
        self.sessions.forget(session)
        self.enforcement.forget(session.key)
        self.force.forget(session.key)
        self.engine.memory.forget(session.key)

    def _sweep(self) -> None:
        """What records that were lost would have told: beginnings, ends, and whose a session is."""
        self.sessions.sweep(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        for key, one in self.probes.sessions().items():
            if one.state == abi.SESSION_PROVISIONAL and one.since < self._drained:
                self.recognition.settle_late(key)
            elif one.state == abi.SESSION_ENDING and not self.probes.is_held(key):
                self.sessions.end(key)  # by the probes, whose record of it was lost


def _moved(record: memoryview, session: ProcessKey) -> memoryview:
    """The record in a confirmed session."""
    values, strings = abi.unpack(record)
    place = {"session_tgid": session.pid, "session_start": session.start}
    flags = values["flags"] & ~abi.FLAG_PROVISIONAL
    return memoryview(abi.pack(values["kind"], values | place | {"flags": flags}, strings))
