"""From a verdict to what was done about it, and to knowing that it worked.

A kill counts as done when the victim's end is seen and SIGKILL was its cause. One that had ended by
itself is `too late`, one that is still there is `failed`: both are records and metrics. What the
kernel has killed is not killed again: that it ended of it is looked for all the same.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from agentwatch import actions
from agentwatch.engine import Engine, Verdict
from agentwatch.events import Change, Connect, Event, Exec, Exit, Mount, Open, ProcessKey
from agentwatch.policy.levels import Host
from agentwatch.sinks import frames
from agentwatch.sinks.redact import Redactor

PATIENCE = 2_000_000_000  # ns after which a killed process should be gone
REMEMBERED = 4096  # ends of processes, for calls of theirs that are read later
DEFAULT = "default"  # in place of a rule's id, where none but a default decided


@dataclass(frozen=True, slots=True)
class _End:
    """How a process has ended. word: killed | too late, "" before there is a verdict on it.

    status: as wait(2) gives it, and time, ns: of an end that was seen.
    """

    word: str = ""
    status: int = 0
    time: int = 0


@dataclass(frozen=True, slots=True)
class _Kill:
    """A kill whose victim has not been seen to end. since: ns, the call; sent: ns, the signal."""

    process: ProcessKey
    session: ProcessKey
    since: int
    sent: int
    agent: str
    rule: str


class Enforcement:
    """Acts on verdicts. say: where its frames go. decisions, failures: for metrics, by label."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        redactor: Redactor,
        say: Callable[[frames.Frame], None],
        breaker: actions.Breaker,
    ) -> None:
        self.host, self._redactor, self._say = host, redactor, say
        self.breaker = breaker
        self._engine: Engine | None = None
        self.take(engine)
        self._kills: dict[ProcessKey, _Kill] = {}
        self._ends: dict[ProcessKey, _End] = {}
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        self.failures: Counter[str] = Counter()

    def take(self, engine: Engine) -> None:
        """Tells of verdicts of another policy from now on."""
        # Records of the policy before are still to come.
        before = self._engine.ruleset.rules if self._engine else ()
        self._engine = engine
        self._rules = {rule.id: rule for rule in (*before, *engine.ruleset.rules)}

    @property
    def _generation(self) -> int:
        return self._engine.generation if self._engine else 0

    def forget(self, session: ProcessKey) -> None:
        """A session that is over."""
        self.breaker.forget(session)

    @property
    def waiting(self) -> bool:
        """Whether a process that was killed has not been seen to end."""
        return bool(self._kills)

    def frozen(self, session: ProcessKey) -> bool:
        """Whether the breaker stopped the session."""
        return self.breaker.tripped(session)

    def act(self, event: Event, verdict: Verdict, agent: str) -> bool:
        """Does what the verdict says and tells. True: this kill was one too many in its session.

        What counts is the processes that were to be killed, those that had ended by then included.
        """
        kills = verdict.response == "kill"
        end = self._ends.get(event.process)
        tried = event.process in self._kills or bool(end and end.word)
        sent = actions.Sent(True)
        if kills:
            sent = self._killed(event.process) if verdict.done else self._kill(event.process)
        outcome = "observed" if verdict.mode == "observe" else "alerted"
        if kills:
            outcome = "killed" if sent.ok else "too late" if sent == actions.GONE else "failed"
        elif verdict.response == "deny":
            outcome = "denied"
        rule = verdict.rule or DEFAULT
        self.decisions[rule, verdict.action, verdict.level] += 1
        self._say(self._verdict(event, verdict, agent, outcome))
        if not kills:
            return False
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        kill = _Kill(event.process, event.session, event.time, now, agent, rule)
        if not sent.ok:
            self._settle(kill, outcome, 0, sent.reason)
        elif not tried and end is not None:
            self._settle(kill, outcome, max(end.time - event.time, 0))
        elif not tried:
            self._kills[event.process] = kill
        return not tried and self.breaker.trips(event.session, event.time)

    def _kill(self, process: ProcessKey) -> actions.Sent:
        """One SIGKILL is enough: a process may have made more calls before it died of it."""
        end = self._ends.get(process)
        if process in self._kills or (end and end.word == "killed"):
            return actions.Sent(True)
        # Its end may be known before it is a zombie: then a signal still reaches it, for nothing.
        sent = actions.send(process, signal.SIGKILL) if end is None else actions.GONE
        if sent == actions.GONE:
            self._remember(process, replace(end or _End(), word="too late"))
        return sent

    def _killed(self, process: ProcessKey) -> actions.Sent:
        """What came of the kernel's SIGKILL: the process's end may have been told before this."""
        end = self._ends.get(process)
        if end is None or end.word == "killed":
            return actions.Sent(True)
        if end.word or end.status & 0x7F != signal.SIGKILL:
            self._remember(process, replace(end, word="too late"))
            return actions.GONE
        self._remember(process, replace(end, word="killed"))
        return actions.Sent(True)

    def _remember(self, process: ProcessKey, end: _End) -> None:
        self._ends[process] = end
        if len(self._ends) > REMEMBERED:
            del self._ends[next(iter(self._ends))]

    def _verdict(self, event: Event, verdict: Verdict, agent: str, outcome: str) -> frames.Verdict:
        rule = self._rules.get(verdict.rule or "")
        return frames.Verdict(
            time=event.time,
            event=frames.EventRef.of(event),
            process=event.process,
            session=event.session,
            agent=agent,
            kind=kind_of(event),
            what=self._what(event),
            rule=verdict.rule or DEFAULT,
            title=rule.title if rule else "",
            action=verdict.action,
            response=verdict.response,
            level=verdict.level,
            lossy=self.host.lossy and verdict.level != "prevents",
            generation=event.generation if verdict.done else self._generation,
            severity=verdict.severity,
            because=verdict.because,
            instead=verdict.instead,
            outcome=outcome,
            tags=rule.tags if rule else (),
            by="kernel" if verdict.done else "engine",
        )

    def _what(self, event: Event) -> str:
        """What an event is about in one line: a command line, a path, an address."""
        if isinstance(event, Exec):
            argv = self._redactor.argv(event.argv, event.argv_cut)
            return " ".join(argv) or event.path or event.asked
        if isinstance(event, Open):
            return event.path or event.asked
        if isinstance(event, Change | Mount):
            return event.what
        if isinstance(event, Connect):
            return event.where or f"family {event.family}"
        return ""

    def ended(self, event: Exit) -> None:
        """A process has ended: if it was to be killed, was it that?"""
        kill = self._kills.pop(event.process, None)
        if kill is None:
            before = self._ends.get(event.process, _End())
            self._remember(event.process, _End(before.word, event.status, event.time))
            return
        outcome = "killed" if event.status & 0x7F == signal.SIGKILL else "too late"
        self._remember(event.process, _End(outcome, event.status, event.time))
        self._settle(kill, outcome, event.time - kill.since)

    def give_up(self, now: int) -> None:
        """Kills whose victim is still there after PATIENCE have failed. now: ns, boottime."""
        for kill in [k for k in self._kills.values() if k.sent < now - PATIENCE]:
            del self._kills[kill.process]
            there = actions.send(kill.process, actions.PROBE).ok
            self._settle(kill, "failed", 0, "still running" if there else "its end was not seen")

    def _settle(self, kill: _Kill, outcome: str, latency: int, reason: str = "") -> None:
        if outcome != "killed":
            self.failures[outcome] += 1
        self._say(
            frames.Kill(
                process=kill.process,
                session=kill.session,
                agent=kill.agent,
                rule=kill.rule,
                outcome=outcome,
                latency=latency,
                reason=reason,
            )
        )


def kind_of(event: Event) -> str:
    """The rule kind an event is mostly of: what a record of a decision says."""
    if isinstance(event, Change | Mount):
        return "change" if isinstance(event, Change) else "mount"
    if isinstance(event, Open):
        return "change" if event.changes else "read"
    return "exec" if isinstance(event, Exec) else "connect"
