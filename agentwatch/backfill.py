"""Agents that run already: found, tagged with all that comes from them, and listed.

The probes note who forks whom from before the first look (`Probes.look`), and tag the child of
whoever is about to be tagged: so nothing forked meanwhile escapes, however fast it goes. What was
orphaned before we came can only be known by its process group or terminal session, which nobody
joins from outside: those that an agent leads are its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agentwatch import abi, processes
from agentwatch.events import ProcessKey
from agentwatch.kernel.probes import Probes

LOOKS = 16  # until nothing new is found; each takes milliseconds


@dataclass(frozen=True, slots=True)
class Found:
    """An agent that runs already, and all that belongs to it, itself first."""

    session: ProcessKey
    agent: str
    processes: tuple[abi.Process, ...]


def plan(
    rows: Iterable[abi.Process],
    agents: Mapping[ProcessKey, str],
    owned: Mapping[ProcessKey, ProcessKey] = MappingProxyType({}),
) -> dict[ProcessKey, ProcessKey]:
    """Whose each untagged process is: process -> session, for those that are somebody's.

    agents: processes that are agents. owned: process -> session, as it was before. A session is
    named after the topmost of them; what descends from a tagged process belongs to that one's.
    Ancestors that are gone are named as well where what they forked meanwhile is known by them.
    """
    known = {one.process: one for one in rows}
    tagged = {p: one.session for p, one in known.items() if one.session and not _passing(one)}
    found: dict[ProcessKey, ProcessKey] = {}
    free = [one for p, one in known.items() if p not in tagged]
    for one in free:
        owners = [p for p in _line(one, known) if p in tagged or p in agents or p in owned]
        if owners:
            topmost = min(owners, key=lambda p: p.start)
            _put(found, one, tagged.get(topmost) or owned.get(topmost, topmost))
    leaders = {p.pid: p for p, session in (*tagged.items(), *found.items()) if p == session}
    for one in free if leaders else ():
        if one.process not in found:
            orphan = _of_group(one, leaders, known)
            if orphan is not None:
                _put(found, one, orphan)
    return found


def _put(found: dict[ProcessKey, ProcessKey], one: abi.Process, session: ProcessKey) -> None:
    found[one.process] = session
    # What is older than the session is not its descendant, but where it came from.
    if one.first is not None and one.first.start >= session.start:
        found[one.first] = session


def _passing(one: abi.Process) -> bool:
    return one.state == abi.SESSION_PROVISIONAL


def _line(one: abi.Process, known: Mapping[ProcessKey, abi.Process]) -> list[ProcessKey]:
    """A process and its ancestors, also those known only by what they forked before they ended."""
    found = [one.process]
    waiting = [one]
    while waiting:
        at = waiting.pop(0)
        for key in (at.parent, at.first, at.first_parent):
            if key is not None and key.pid and key not in found:
                found.append(key)
                waiting += [known[key]] if key in known else []
    return found


def _of_group(
    one: abi.Process,
    leaders: Mapping[int, ProcessKey],
    known: Mapping[ProcessKey, abi.Process],
) -> ProcessKey | None:
    """The session of an orphan, by the agent that leads its process group or terminal session.

    Who has a parent that is alive in the same group is no orphan: it is whose that one is.
    """
    parent = known.get(one.parent)
    if parent is not None and parent.process.pid > 1 and parent.terminal == one.terminal:
        return None
    if one.terminal in leaders:
        return leaders[one.terminal]
    return leaders.get(one.group)


class Backfill:
    """One search. identify: the agent that a process is by its names; None for nobody's."""

    def __init__(
        self, probes: Probes, identify: Callable[[tuple[str, ...]], str | None], own: int
    ) -> None:
        """own: the pid that is never tagged: this process."""
        self._probes, self._identify, self._own = probes, identify, own

    def search(
        self,
        asked: Mapping[ProcessKey, str] | None = None,
        owned: Mapping[ProcessKey, ProcessKey] = MappingProxyType({}),
    ) -> list[Found]:
        """Tags every agent that runs (or, with `asked`, these: process -> agent, "" for none).

        owned: processes of sessions that there were before: process -> session.

        The probes' `look` is on meanwhile and off afterwards. Sessions of what was found are
        confirmed in the kernel; whoever calls begins them. Raises KernelError without room.
        """
        self._probes.look(True)
        agents: dict[ProcessKey, str] = {}
        members: dict[ProcessKey, dict[ProcessKey, abi.Process]] = defaultdict(dict)
        begun: set[ProcessKey] = set()
        wanted: dict[ProcessKey, ProcessKey] = {}
        try:
            for _ in range(LOOKS):
                rows = [one for one in self._probes.census() if one.process.pid != self._own]
                agents |= self._agents(rows, agents, asked)
                new = {p: s for p, s in plan(rows, agents, owned).items() if p not in wanted}
                wanted |= new
                for session in set(new.values()) - begun:
                    known = session in agents or session in owned.values()
                    if known and self._begins(session):
                        self._probes.begin(session)
                    begun.add(session)
                adopted = self._probes.adopt(new)
                for one in adopted:
                    if one.session is not None:
                        members[one.session][one.process] = one
                if not new and not adopted:
                    break
        finally:
            self._probes.look(False)
        return [
            Found(session, agents.get(session, ""), _ordered(session, rows_of))
            for session, rows_of in members.items()
        ]

    def _begins(self, session: ProcessKey) -> bool:
        found = self._probes.session(session)
        return found is None or found.state == abi.SESSION_PROVISIONAL

    def _agents(
        self,
        rows: Iterable[abi.Process],
        known: Mapping[ProcessKey, str],
        asked: Mapping[ProcessKey, str] | None,
    ) -> dict[ProcessKey, str]:
        """Agents among the processes that are nobody's yet."""
        found = {}
        for one in rows:
            if one.process in known or (one.session is not None and not _passing(one)):
                continue
            if asked is not None:
                if one.process in asked:
                    found[one.process] = asked[one.process]
            elif agent := self._identify(processes.names_now(one.process)):
                found[one.process] = agent
        return found


def _ordered(
    session: ProcessKey, rows: Mapping[ProcessKey, abi.Process]
) -> tuple[abi.Process, ...]:
    """The session's own process first, then by age: a parent before what it forked."""
    return tuple(sorted(rows.values(), key=lambda one: (one.process != session, one.process.start)))
