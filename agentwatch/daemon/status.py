"""What there is to know about the daemon: the answer to `agentwatch status`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentwatch.compiling import left_out
from agentwatch.control.server import Server
from agentwatch.daemon.policy import Loaded
from agentwatch.engine import Engine
from agentwatch.hooks import problems
from agentwatch.kernel.probes import HOOKS
from agentwatch.losses import STAGES
from agentwatch.sessions import Session
from agentwatch.sinks.host import Host, now
from agentwatch.watch import Watch

NAMED = 8  # sessions of one problem that are named


@dataclass(slots=True)
class Policy:
    """What is in force, and how it came about. started, since: ns since the epoch.

    error: why the last reload was refused. restart: keys that were changed and wait for one.
    """

    loaded: Loaded
    started: int
    since: int
    error: str = ""
    restart: tuple[str, ...] = ()


class Status:
    """Answers by what is there at that moment."""

    def __init__(self, watch: Watch, server: Server, policy: Policy, clock: Host) -> None:
        self._watch, self._server, self._policy, self._clock = watch, server, policy, clock

    def of(self, visible: Iterable[Session]) -> Mapping[str, Any]:
        """For somebody whose business these sessions are."""
        watch, engine, policy = self._watch, self._watch.engine, self._policy
        config, rules = policy.loaded.config, engine.ruleset.rules
        attached = watch.probes.attached()
        levels = Counter(str(engine.level(rule, watch.host)) for rule in rules)
        return {
            "pid": os.getpid(),
            "started_at": policy.started,
            "mode": engine.mode,
            "tier": watch.host.tier,
            "loader": watch.host.loader,
            "config": str(config.path or ""),
            "hooks": {hook: hook in attached for hook in watch.probes.wanted()},
            "rules": {
                "loaded": len(rules),
                "levels": dict(levels),
                "paths": [str(path) for path in config.rule_paths],
                "warnings": len(policy.loaded.warnings),
            },
            "generation": engine.generation,
            "policy": _policy(engine),
            "reloaded_at": policy.since,
            "reload_error": policy.error,
            "losses": {**dict.fromkeys(STAGES, 0), **watch.losses.counts},
            "journal": self._journal(),
            "agents": self._agents(visible),
            "pins": {
                "directory": watch.probes.keeping.place,
                "kept": watch.probes.keeping.kept,
                "on_exit": config.on_exit,
            },
            "subscribers": self._server.subscribers,
            "connections": len(self._server),
            "frozen": [one.key.pid for one in visible if one.held],
            "paused": dict(self._paused()),
            "problems": [*self._problems(attached), *self._stopped(visible), *_homeless(visible)],
        }

    def _journal(self) -> Mapping[str, Any]:
        journal = self._watch.journal
        names = ("bytes", "segments", "failures", "waiting", "lost")
        return {
            "directory": str(journal.directory),
            "sequence": journal.head.sequence,
            "hash": journal.head.hash.hex(),
            **{name: getattr(journal, name) for name in names},
        }

    def _agents(self, visible: Iterable[Session]) -> list[Mapping[str, Any]]:
        sessions: Counter[str] = Counter()
        processes: Counter[str] = Counter()
        for one in visible:
            agent = self._watch.lineage.agent(one.key)
            sessions[agent] += 1
            processes[agent] += max(self._watch.lineage.alive(one.key), 0)
        return [
            {"agent": agent, "sessions": sessions[agent], "processes": processes[agent]}
            for agent in sorted(sessions)
        ]

    def _paused(self) -> Mapping[str, int]:
        """Rules that do not act at present: until when, ns since the epoch."""
        pauses = self._watch.engine.memory.pauses
        return {rule: self._clock.wall(until) for rule, until in pauses.items() if until > now()}

    def _stopped(self, visible: Iterable[Session]) -> list[str]:
        """What somebody has to do something about sooner or later."""
        found = []
        for rule, until in self._paused().items():
            clock = time.strftime("%H:%M:%S", time.localtime(until // 10**9))
            found.append(f"{rule} is paused until {clock}: agentwatch rules resume {rule}")
        for one in visible:
            if one.held:
                pid = one.key.pid
                found.append(
                    f"the session of {pid} is frozen, {one.held_for}: "
                    f"agentwatch agents thaw {pid}, or kill {pid}"
                )
        return found

    def _problems(self, attached: frozenset[str]) -> list[str]:
        """What an operator should know first."""
        watch, policy = self._watch, self._policy
        found = [f"the probe {hook} is not attached" for hook in HOOKS if hook not in attached]
        if watch.force.problem:
            found.append(watch.force.problem)
        if cut := watch.force.known.cut:
            found.append(f"the search for files that rules name ended {cut}: see docs/levels.md")
        if left := left_out(watch.engine.compiled):
            found.append(f"{left}: agentwatch rules check -v")
        found += problems(dict(watch.probes.missing))
        if unjudged := watch.probes.counters().unjudged:
            found.append(f"{unjudged} calls were refused: there was no memory to judge them in")
        if not watch.host.cgroup:
            found.append("connections cannot be refused here: agentwatch doctor says why")
        if policy.error:
            found.append(f"the last reload was refused: {policy.error}")
        if policy.restart:
            keys = ", ".join(policy.restart)
            found.append(f"changed in the configuration, and wants a restart: {keys}")
        if watch.probes.keeping.problem:
            found.append(f"nothing is in force without the daemon: {watch.probes.keeping.problem}")
        if watch.journal_error:
            found.append(watch.journal_error)
        elif times := watch.journal.failures:
            found.append(f"the journal failed {times} times, the last time: {watch.journal_failed}")
        for name, (used, room) in watch.probes.room().items():
            if name not in ("activity", "lifecycle") and used >= room * 0.9:
                found.append(f"the kernel's table of {name} is nearly full: {used} of {room}")
        skipped = watch.losses.counts["recursion"]
        if skipped:
            found.append(
                f"the kernel skipped {skipped} runs of probes while agents ran: "
                "agentwatch events shows when"
            )
        if lost := sum(watch.losses.counts.values()) - skipped:
            found.append(f"{lost} records were lost: agentwatch events shows the gaps")
        if failed := sum(watch.enforcement.failures.values()):
            found.append(f"{failed} kills did not stop what they were meant to stop")
        if self._server.failure:
            found.append(f"an answer failed: {self._server.failure}")
        return found


def _policy(engine: Engine) -> Mapping[str, Any]:
    """What the kernel has of the rules. engine: how many rules stay with the engine."""
    compiled = engine.compiled
    if compiled is None:
        return {"kernel": False, "bytes": 0, "states": 0, "engine": len(engine.ruleset.rules)}
    return {
        "kernel": True,
        "bytes": compiled.bytes,
        "states": sum(one.states for one in compiled.sets),
        "engine": sum(one.where == "engine" for one in compiled.lowered.values()),
    }


def _homeless(visible: Iterable[Session]) -> list[str]:
    pids = [str(one.key.pid) for one in visible if not one.told.project]
    if not pids:
        return []
    more = f" and {len(pids) - NAMED} more" if len(pids) > NAMED else ""
    named = ", ".join(pids[:NAMED])
    return [f"$project is unset, so no rule allows by it, in the session of {named}{more}"]
