"""From one daemon to the next: what the kernel has kept, and what is said about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from agentwatch import abi
from agentwatch.errors import AgentwatchError, KernelError
from agentwatch.events import ProcessKey
from agentwatch.sessions import Left
from agentwatch.sinks.host import this_host
from agentwatch.watch import Watch

AGAIN = "a daemon before this one had frozen it"


class Succession:
    """Of one daemon. say: (subject, text) of what is to be known about it.

    keep: whether this daemon may leave anything in force.
    """

    def __init__(self, watch: Watch, say: Callable[[str, str], None]) -> None:
        self._watch, self._say, self.keep = watch, say, True
        self._keeping = watch.probes.keeping

    def begin(self, left: Iterable[Left]) -> None:
        """Goes on with what is in force. left: sessions that the last daemon remembered.

        Raises AgentwatchError where that cannot be: then it stays in force.
        """
        for name, why in self._keeping.wrong:
            self._say("pins", f"the pins of {name} are not gone on with: {why}")
        if self._keeping.problem:
            self._say("pins", f"nothing is in force without this daemon: {self._keeping.problem}")
        if self._keeping.inherited:
            self._say("unattended", self._unattended())
            self._watch.probes.reconcile()
            self._watch.inherit(left)
            self._hold()
        else:
            self._adopt(left)

    def _unattended(self) -> str:
        """When nobody listened, and what has become of that time."""
        keeping, clock = self._keeping, this_host()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        began, end = (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(clock.wall(moment) // 10**9))
            for moment in (keeping.listened, now)
        )
        lost = sum(self._watch.probes.counters().lost.values())
        lost -= sum(keeping.told.counters.lost.values()) if keeping.told else 0
        went_on = "the kernel went on by the policy it had, the engine's rules waited"
        if not keeping.enforcing:
            went_on = "the programs were gone: nothing was enforced"
        seconds = (now - keeping.listened) / 1e9
        return (
            f"nobody listened from {began} to {end} ({seconds:.1f} s): {went_on}; "
            f"{keeping.waiting} records of that time follow, {lost} were lost"
        )

    def _hold(self) -> None:
        """Sessions that were frozen or ending stay so."""
        for key, one in self._watch.probes.sessions().items():
            if one.state == abi.SESSION_FROZEN:
                self._watch.sessions.freeze(key, AGAIN, again=True)
            elif one.state == abi.SESSION_ENDING:
                self._watch.sessions.end(key)

    def _adopt(self, left: Iterable[Left]) -> None:
        """Sessions that pins of another version hold: tagged anew, beside the old tags."""
        members = self._keeping.members()
        if members is None:
            if not left:
                raise KernelError(
                    "what is in force is of another version, and whose it is cannot be read",
                    "agentwatch release: nothing is watched from there until the daemon starts",
                )
            return
        pids = {one.process.pid: one.process for one in self._watch.probes.census()}
        known = {one.session for one in left}
        found: dict[ProcessKey, list[ProcessKey]] = {}
        for pid, session in members.items():
            if pid in pids and session not in known:
                found.setdefault(session, []).append(pids[pid])
        recognition = self._watch.recognition
        recognition.resume([recognition.guess(key, of) for key, of in found.items()])

    def end(self) -> None:
        """This daemon watches, from here on whatever becomes of it; what was before it goes.

        Raises KernelError where that cannot be: then what was stays in force.
        """
        done = self._keeping.commit()
        losses = self._watch.losses
        losses.gap("recursion", done.skipped, -1)
        losses.gap("ring", done.unread, -1)
        if done.replaced:
            self._say("pins", f"{', '.join(done.replaced)}: taken over, and removed")
        if self._keeping.problem and self._keeping.place:
            self._say("pins", f"nothing is in force without this daemon: {self._keeping.problem}")

    def leave(self, on_exit: str) -> str:
        """Before the end: what goes on without this daemon, in words; "" for nothing."""
        if not self._keeping.kept:
            return ""
        if on_exit == "keep" and self.keep:
            return "the kernel goes on by the policy it has, and nobody listens"
        try:
            self._keeping.release()
        except (OSError, AgentwatchError) as error:
            self._say("pins", f"not released: {error}")
        return ""
