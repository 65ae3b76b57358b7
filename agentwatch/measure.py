"""Every metric of a watch at one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from agentwatch import abi
from agentwatch.kernel.probes import HOOKS
from agentwatch.losses import STAGES
from agentwatch.policy.levels import level
from agentwatch.sinks.metrics import JournalState, Snapshot
from agentwatch.watch import Watch

UNKNOWN = "unknown"  # the label of a session that no identity covers


def snapshots(watch: Watch, loaded: Callable[[], tuple[float, float]]) -> Callable[[], Snapshot]:
    """A function that takes one; it may be called from another thread than the watch's.

    loaded: of the policy in force, (seconds it took to load, when that was since the epoch).
    """

    def snapshot() -> Snapshot:
        probes, engine = watch.probes, watch.engine
        compile_seconds, reloaded = loaded()
        levels = Counter(str(level(r, watch.host, engine.mode)) for r in engine.ruleset.rules)
        counters, stats, room = probes.counters(), probes.stats(), probes.room()
        return Snapshot(
            events=_by_name(counters.emitted),
            events_lost={**dict.fromkeys(STAGES, 0), **watch.losses.counts},
            decisions=dict(watch.enforcement.decisions),
            kill_failures=dict(watch.enforcement.failures),
            unresolved=_by_name(counters.unresolved),
            tagged_processes=Counter(
                watch.lineage.agent(p.session) or UNKNOWN for p in watch.lineage.living()
            ),
            hook_attached={hook: int(hook in probes.attached()) for hook in HOOKS},
            rules_loaded=dict(levels),
            policy_generation=engine.generation,
            policy_compile_seconds=compile_seconds,
            last_reload_success=reloaded,
            map_entries={name: used for name, (used, _) in room.items()},
            map_capacity={name: size for name, (_, size) in room.items()},
            program_runs={hook: s.runs for hook, s in stats.items()},
            program_run_seconds={hook: s.seconds for hook, s in stats.items()},
            delays=watch.delays.read(),
            journal=_journal(watch),
        )

    return snapshot


def _by_name(numbers: Mapping[int, int]) -> dict[str, int]:
    return {abi.KIND_NAMES[kind]: number for kind, number in numbers.items()}


def _journal(watch: Watch) -> JournalState:
    journal = watch.journal
    return JournalState(
        journal.directory.name,
        journal.head.sequence,
        journal.head.hash.hex(),
        journal.bytes,
        journal.frames,
        journal.segments,
        journal.failures,
    )
