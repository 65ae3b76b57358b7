"""Every metric of a watch at one moment.

A scrape reads from a thread of its own, and the loop waits for no scrape: nothing is locked, and
what may change its size meanwhile is copied in one go (list, tuple or dict of it) before it is
walked.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentwatch import __version__, abi
from agentwatch.engine import Engine, Verdict
from agentwatch.events import Event, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.losses import STAGES
from agentwatch.policy.levels import Host
from agentwatch.sinks import frames
from agentwatch.sinks.metrics import Snapshot
from agentwatch.watch import Watch

UNKNOWN = "unknown"  # the label of a session that no identity covers
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Tally:
    """A sink that counts what is told once and is not there to be counted afterwards."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()  # that began, by agent
        self.reloads = Counter({"ok": 0, "refused": 0})

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        """Events are counted by the probes."""

    def frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Session):
            self.sessions[frame.agent or UNKNOWN] += 1
        elif isinstance(frame, frames.Reload) and not frame.pause:
            self.reloads["ok" if frame.ok else "refused"] += 1


@dataclass(frozen=True, slots=True)
class Desk:
    """What only a daemon has: who asks it. dropped: frames not sent to slow subscribers.

    reloaded: whether the last configuration and rules were taken. findings_lost: by where to.
    """

    connections: int
    subscribers: int
    dropped: int
    reloaded: bool
    findings_lost: Mapping[str, int] = field(default_factory=dict)


class _Worth:
    """How many rules are at which level, worked out when the policy or the host is another one."""

    def __init__(self) -> None:
        self._of: tuple[Engine, object, Host] | None = None
        self._levels: Counter[str] = Counter()

    def levels(self, engine: Engine, host: Host) -> Counter[str]:
        now = engine, engine.compiled, host
        if now != self._of:
            self._levels = Counter(str(engine.level(r, host)) for r in engine.ruleset.rules)
            self._of = now
        return self._levels


def snapshots(
    watch: Watch,
    loaded: Callable[[], tuple[float, float]],
    tally: Tally | None = None,
    desk: Callable[[], Desk] | None = None,
) -> Callable[[], Snapshot]:
    """A function that takes one; it may be called from another thread than the watch's.

    loaded: of the policy in force, (seconds it took to load, when that was since the epoch).
    tally: one of the watch's sinks. desk: of a daemon.
    """
    started, worth = time.time(), _Worth()

    def snapshot() -> Snapshot:
        engine, journal = watch.engine, watch.journal
        compile_seconds, reloaded = loaded()
        now = desk() if desk else None
        counters, stats, room = watch.probes.counters(), watch.probes.stats(), watch.probes.room()
        attached = watch.probes.attached()
        head = journal.head
        none = dict.fromkeys(_known(watch), 0)
        processes = Counter(_agent(watch, one.session) for one in watch.lineage.living())
        return Snapshot(
            sessions=_sessions(watch),
            sessions_begun={**none, **tally.sessions} if tally else {},
            tagged_processes={**none, **processes},
            events=_by_name(counters.emitted),
            events_lost={**dict.fromkeys(STAGES, 0), **watch.losses.counts},
            unresolved=_by_name(counters.unresolved),
            decisions=dict(watch.enforcement.decisions),
            kill_failures=dict(watch.enforcement.failures),
            event_delay_seconds=watch.delays.read(),
            rules_loaded=worth.levels(engine, watch.host),
            rules_paused=_paused(dict(engine.memory.pauses)),
            enforcing=int(engine.mode == "enforce"),
            policy_generation=engine.generation,
            policy_compile_seconds=compile_seconds,
            policy_in_kernel=int(engine.compiled is not None),
            policy_failures=watch.force.failures,
            policy_no_room=watch.probes.no_room(),
            policy_unsettled=watch.unsettled,
            policy_disagreements=watch.force.disagreements,
            policy_bytes=engine.compiled.bytes if engine.compiled else 0,
            policy_states=_states(engine),
            reloads=dict(tally.reloads) if tally else {},
            last_reload_successful=int(now.reloaded) if now else None,
            last_reload_success_timestamp_seconds=reloaded,
            hook_attached={hook: int(hook in attached) for hook in watch.probes.wanted()},
            map_entries={name: used for name, (used, _) in room.items()},
            map_capacity={name: size for name, (_, size) in room.items()},
            program_runs={hook: s.runs for hook, s in stats.items()},
            program_run_seconds={hook: s.seconds for hook, s in stats.items()},
            journal_bytes=journal.bytes,
            journal_frames=journal.frames,
            journal_segments=journal.segments,
            journal_failures=journal.failures,
            journal_waiting_bytes=journal.waiting,
            journal_lost=journal.lost,
            journal_head=(journal.directory.name, str(head.sequence), head.hash.hex()),
            control_connections=now.connections if now else None,
            control_subscribers=now.subscribers if now else None,
            control_dropped_frames=now.dropped if now else None,
            findings_lost=now.findings_lost if now else {},
            loop_turn_seconds=watch.turns.read() if now else None,
            process_cpu_seconds=time.process_time(),
            process_resident_memory_bytes=_resident(),
            process_open_fds=len(os.listdir("/proc/self/fd")) - 1,  # less the one that reads it
            process_start_time_seconds=started,
            build=(__version__,),
        )

    return snapshot


def _states(engine: Engine) -> dict[str, int]:
    """Of each automaton."""
    return {one.name: one.states for one in engine.compiled.sets} if engine.compiled else {}


def _known(watch: Watch) -> list[str]:
    """Every agent there may be: 0 is a number, too."""
    return [*(agent.id for agent in watch.engine.ruleset.agents), UNKNOWN]


def _agent(watch: Watch, session: ProcessKey) -> str:
    return watch.lineage.agent(session) or UNKNOWN


def _sessions(watch: Watch) -> Mapping[tuple[str, str], int]:
    found = {(agent, state): 0 for agent in _known(watch) for state in ("running", "frozen")}
    for one in watch.sessions:
        key = _agent(watch, one.key), "frozen" if one.held else "running"
        found[key] = found.get(key, 0) + 1
    return found


def _paused(pauses: Mapping[str, int]) -> int:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return sum(until > now for until in pauses.values())


def _by_name(numbers: Mapping[int, int]) -> dict[str, int]:
    return {abi.KIND_NAMES[kind]: number for kind, number in numbers.items()}


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _PAGE
