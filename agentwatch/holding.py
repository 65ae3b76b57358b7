"""Holding all of a session, letting it go, ending it: what takes its time.

The probes hold it meanwhile, so nothing here is a race that somebody else could win; see
docs/decisions/0010-a-session-is-held-by-the-probes.md. May run beside the loop.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agentwatch import abi, actions, processes
from agentwatch.events import ProcessKey
from agentwatch.freezer import Freezer
from agentwatch.kernel.probes import Probes


@dataclass(frozen=True, slots=True)
class Frozen:
    """How a session is frozen: cgroup | signal. problem: why it is not by cgroup."""

    how: str
    stopped: int
    killed: int
    problem: str = ""


class Holding:
    """Of the sessions of these probes. freezer: None where there is no cgroup2."""

    def __init__(self, probes: Probes, freezer: Freezer | None) -> None:
        self._probes, self._freezer = probes, freezer
        self._in_cgroups: set[ProcessKey] = set()

    def begin(self, key: ProcessKey) -> set[ProcessKey]:
        """At once: whatever of it makes a call from now on is stopped. Who was stopped before."""
        tagged = self._probes.tagged(key)
        stopped = {one for one in tagged if processes.is_stopped(one)}
        self._probes.set_state(key, abi.SESSION_FROZEN)
        actions.stop(tagged)
        return stopped

    def hold(self, key: ProcessKey) -> actions.Held:
        """Stops all of a session and waits until it is."""
        self._probes.set_state(key, abi.SESSION_FROZEN)
        return actions.hold(lambda: self._probes.tagged(key))

    def let_go(self, key: ProcessKey, stopped: Collection[ProcessKey] = ()) -> None:
        """Lets a held session go on, but for those that were stopped before."""
        self._probes.set_state(key, abi.SESSION_CONFIRMED)
        actions.resume(one for one in self._probes.tagged(key) if one not in stopped)

    def freeze(self, key: ProcessKey, stopped: Collection[ProcessKey]) -> Frozen:
        """Stops a session until it is thawed, in a frozen cgroup if that can be.

        That holds without anybody noticing: then the signals are taken back, but for those who were
        stopped before.
        """
        held = self.hold(key)
        if self._freezer is None:
            return Frozen("signal", held.stopped, held.killed)
        try:
            self._freezer.freeze(_name(key), lambda: self._probes.tagged(key))
        except Exception as error:  # whatever it is, the session is held and its end is told
            return Frozen("signal", held.stopped, held.killed, str(error))
        self._in_cgroups.add(key)
        self.let_go(key, stopped)
        return Frozen("cgroup", held.stopped, held.killed)

    def thaw(self, key: ProcessKey) -> str:
        """Lets a frozen session go on, also one that a daemon before this one stopped.

        "", or what went wrong.
        """
        problem = self._leave(key)
        self.let_go(key)
        return problem

    def end(self, keys: Collection[ProcessKey]) -> None:
        """Kills all of some sessions and what is forked meanwhile; waits until they are gone."""
        for key in keys:
            self._probes.set_state(key, abi.SESSION_ENDING)
            if key in self._in_cgroups and self._freezer is not None:
                self._freezer.killed(_name(key))
        wanted = set(keys)
        actions.end_all(
            lambda: [one.process for one in self._probes.census() if one.session in wanted]
        )
        for key in keys:
            self._leave(key)

    def _leave(self, key: ProcessKey) -> str:
        """Out of its frozen cgroup."""
        if key not in self._in_cgroups or self._freezer is None:
            return ""
        self._in_cgroups.discard(key)
        try:
            self._freezer.thaw(_name(key))
        except Exception as error:  # whatever it is, somebody waits for an answer
            return str(error)
        return ""

    def keep(self, key: ProcessKey) -> Frozen | None:
        """Freezes again whoever was moved out of the frozen cgroup; None where nobody was."""
        if key not in self._in_cgroups or self._freezer is None:
            return None
        inside = self._freezer.inside(_name(key))
        if all(one.pid in inside for one in self._probes.tagged(key)):
            return None
        self._in_cgroups.discard(key)
        return self.freeze(key, ())

    def forget(self, key: ProcessKey) -> None:
        """Nothing of it is left, or it goes on unwatched: then not frozen."""
        self._leave(key)


def _name(key: ProcessKey) -> str:
    return f"{key.pid}-{key.start}"
