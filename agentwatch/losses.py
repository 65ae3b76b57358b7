"""What was lost: counted by stage, told as gaps, and acted on as the policy says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from agentwatch import abi
from agentwatch.kernel.keeping import Told
from agentwatch.kernel.probes import Probes
from agentwatch.sessions import Session, Sessions
from agentwatch.sinks import frames

STAGES = ("ring", "scratch", "tag", "recursion", "record", "journal")
ON_LOSS = ("log", "freeze", "kill")
_LIFECYCLE = frozenset({abi.FORK, abi.EXEC, abi.EXIT})
_TREE = ("process_fork", "process_exec", "process_exit")


class Losses:
    """The kernel's counters of losses, as far as they were told. say: where gaps go.

    counts: lost records by stage, since the watch began; of "recursion" runs of probes. on_loss:
    what is done to a session whose records found no room, and to all where runs of probes were
    skipped: log | freeze | kill.
    """

    def __init__(
        self,
        probes: Probes,
        sessions: Sessions,
        say: Callable[[frames.Frame], None],
        on_loss: str = "log",
    ) -> None:
        self._probes, self._sessions, self._say = probes, sessions, say
        self.on_loss = on_loss
        self.counts: Counter[str] = Counter()
        self.execs = 0  # of anybody, that no probe saw: one may have been an agent's first
        told = probes.keeping.told
        # What nobody has told since a daemon before this one was there is still to be told.
        self._seen = told.counters if told else probes.counters()
        self._misses = {hook: stats.misses for hook, stats in probes.stats().items()}
        if not probes.keeping.inherited:
            self.told()

    def check(self) -> bool:
        """Looks at every counter; whether forks or execs may have been missed since last time."""
        now, seen = self._probes.counters(), self._seen
        self._seen = now
        lost = {kind: now.lost[kind] - seen.lost[kind] for kind in abi.KIND_NAMES}
        acted = self._act(self._losers()) if any(lost.values()) else "log"
        for kind, count in lost.items():
            ring = 0 if kind in _LIFECYCLE else 1
            self.gap("ring", count, ring, acted)
            self.gap("scratch", now.unrecorded[kind] - seen.unrecorded[kind], ring)
        untagged = (now.doomed, now.unbegun, now.unlabelled)
        before = (seen.doomed, seen.unbegun, seen.unlabelled)
        self.gap("tag", sum(untagged) - sum(before), 0)
        skipped = self._skipped()
        return skipped or any(lost[kind] for kind in _LIFECYCLE)

    def told(self) -> None:
        """The journal has all of it: whoever comes next begins from here."""
        self._probes.keeping.tell(Told(self._seen, dict(self._misses)))

    def _skipped(self) -> bool:
        """Runs of probes that the kernel left out; whether forks, execs or exits were among them.

        Whose runs they were nobody knows: of everybody who runs now. Where that is nobody, only an
        exec may have been one that begins a session.
        """
        skipped = {}
        for hook, stats in self._probes.stats().items():
            skipped[hook] = stats.misses - self._misses.get(hook, 0)
            self._misses[hook] = stats.misses
        self.execs += skipped["process_exec"]
        if not len(self._sessions):
            skipped = {"process_exec": skipped["process_exec"]}
        count = sum(skipped.values())
        why = f"{count} runs of probes were skipped while it ran"
        acted = self._act((one, why) for one in tuple(self._sessions)) if count else "log"
        self.gap("recursion", count, -1, acted)
        if skipped.get("process_fork"):
            for one in self._probes.reconcile():
                self._sessions.join(one)
        if skipped.get("process_exit"):
            self._probes.sweep_mirror()
        return any(skipped.get(hook) for hook in _TREE)

    def _losers(self) -> Iterator[tuple[Session, str]]:
        """Sessions whose records found no room."""
        for session, count in self._sessions.losses():
            yield session, f"{count} of its records were lost"

    def _act(self, lost: Iterable[tuple[Session, str]]) -> str:
        """Does to sessions that lost something what the policy says; what that was."""
        acted = "log"
        for session, why in lost:
            if self.on_loss == "log" or session.held:
                continue
            acted = self.on_loss
            if acted == "freeze":
                self._sessions.freeze(session.key, why)
            else:
                ended = self._sessions.end(session.key)
                text = f"{why}: its {ended} processes are killed"
                self._say(frames.Notice(subject="loss", text=text, session=session.key))
        return acted

    def gap(self, stage: str, count: int, ring: int, acted: str = "log") -> None:
        """Counts and tells; nothing for none."""
        if count > 0:
            self.counts[stage] += count
            self._say(frames.Gap(stage=stage, ring=ring, count=count, acted=acted))
