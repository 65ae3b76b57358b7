"""What the engine remembers of events: counts, pauses, files that a session wrote.

It outlives the rules, so that a reload neither forgives what was counted nor ends a pause. Its only
clock is the events' own (ns of CLOCK_BOOTTIME); all of it is bounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agentwatch.events import ProcessKey
from agentwatch.rules.model import Count

COUNTED = 4096  # processes of one session; beyond it those quiet longest are forgotten
WRITTEN = 65_536  # files of one session


@dataclass(slots=True)
class _Counter:
    """One count. seen: what was counted and when, oldest first. fired: and not re-armed yet."""

    seen: dict[int, int] = field(default_factory=dict)
    last: int = 0
    fired: bool = False
    number: int = 0

    def add(self, count: Count, time: int, value: Hashable) -> bool:
        """Whether this one is too many. A time before the last one's is taken for the last."""
        time = max(time, self.last)
        if time - self.last >= count.within:
            self.fired = False
            self.seen.clear()
        self.last = time
        if self.fired:
            return False
        # A hash, not the value: a session cannot make it hold thousands of long names.
        self.number += 1
        key = hash(value) if count.distinct else self.number
        self.seen.pop(key, None)
        self.seen[key] = time
        while self.seen[oldest := next(iter(self.seen))] <= time - count.within:
            del self.seen[oldest]
        if len(self.seen) <= count.over:
            return False
        self.fired = True
        self.seen.clear()
        return True


@dataclass(slots=True)
class _Session:
    whole: dict[Hashable, _Counter] = field(default_factory=dict)
    processes: dict[Hashable, _Counter] = field(default_factory=dict)
    written: dict[int, None] = field(default_factory=dict)


class Memory:
    """Of one engine after the other: hand it to the next one when rules are reloaded."""

    def __init__(self) -> None:
        self._sessions: dict[ProcessKey, _Session] = {}
        self._pauses: dict[str, int] = {}

    @property
    def pauses(self) -> Mapping[str, int]:
        """By rule: the time (ns of CLOCK_BOOTTIME) until which it does not act."""
        return MappingProxyType(self._pauses)

    def pause(self, rule: str, until: int) -> None:
        """For events before `until` the rule is as if it were not there."""
        self._pauses[rule] = until

    def resume(self, rule: str) -> None:
        """The rule acts again; nothing to do when it was not paused."""
        self._pauses.pop(rule, None)

    def paused_rules(self, time: int) -> frozenset[str]:
        """The rules that are paused for an event of this time."""
        return frozenset(rule for rule, until in dict(self._pauses).items() if time < until)

    def paused(self, rule: str, time: int) -> bool:
        """Whether a rule is paused for an event of this time."""
        return time < self._pauses.get(rule, 0)

    def forget(self, session: ProcessKey) -> None:
        """A session has ended."""
        self._sessions.pop(session, None)

    def counted(
        self,
        rule: str,
        count: Count,
        session: ProcessKey,
        process: ProcessKey,
        time: int,
        value: Hashable,
    ) -> bool:
        """Counts a match; True: it is the one too many. value: what `distinct` asks for."""
        known = self._of(session)
        counters = known.processes if count.by == "process" else known.whole
        # Another count under the same id begins anew.
        key = (rule, count, process if count.by == "process" else None)
        counter = counters.pop(key, None) or _Counter(last=time)
        counters[key] = counter
        if len(counters) > COUNTED:
            del counters[next(iter(counters))]
        return counter.add(count, time, value)

    def wrote(self, session: ProcessKey, path: str) -> None:
        """The session opened a file for writing."""
        written = self._of(session).written
        written[hash(path)] = None
        if len(written) > WRITTEN:
            del written[next(iter(written))]

    def has_written(self, session: ProcessKey, path: str) -> bool:
        """Whether the session opened a file of that name for writing."""
        known = self._sessions.get(session)
        return known is not None and hash(path) in known.written

    def _of(self, session: ProcessKey) -> _Session:
        return self._sessions.setdefault(session, _Session())
