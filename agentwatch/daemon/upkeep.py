"""When a policy is loaded: somebody asks, its files have changed, a pause begins or ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from agentwatch.config import Config
from agentwatch.daemon.changes import Changes
from agentwatch.daemon.policy import Loaded, Reloading, Result
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError


class Upkeep:
    """Begins loads. now: the configuration and the policy in force, by their engine.

    begun: told that files are read; nobody has asked for it. missing: told which rules are in none
    of them any more. over: told of a rule whose pause ends.
    """

    def __init__(
        self,
        reloading: Reloading,
        now: Callable[[], tuple[Config, Loaded, Engine]],
        begun: Callable[[], object],
        over: Callable[[str], object],
        missing: Callable[[Sequence[str]], object],
    ) -> None:
        self._reloading, self._now, self._begun, self._over = reloading, now, begun, over
        self._missing = missing
        self._rules: frozenset[str] = frozenset()  # that were paused at the last look
        self._changes = Changes()
        # Told when the kernel knows of pauses, or why it does not.
        self._paused: list[Callable[[AgentwatchError | None], None]] = []
        self._failed: tuple[Engine, frozenset[str]] | None = None  # could not be compiled so
        self._files: tuple[Path, ...] = ()

    def read(self, tell: Callable[[Result], None] | None = None) -> None:
        """Has the files read again. tell: told what came of it."""
        config, _, engine = self._now()
        self._took(config)
        self._reloading.begin(config, engine, tell)

    def took(self, config: Config) -> None:
        """This configuration was read: it may name other files than the one before."""
        if _files(config) != self._files:
            self._took(config)

    def pause(self, then: Callable[[AgentwatchError | None], None]) -> None:
        """A rule was paused, or acts again. then: told once the kernel knows, or why not."""
        self._paused.append(then)
        self.keep_pauses()

    def tick(self) -> None:
        """Looks at the files and at what is paused; about once a second."""
        if not self._reloading.busy and self._changes.look(self._files):
            self._begun()
            _, _, engine = self._now()
            self.read(partial(self._look_for, engine))
        self.keep_pauses()

    def keep_pauses(self) -> None:
        """Has the kernel know who is paused now, once nothing else is under way.

        What could not be compiled is not tried again before somebody asks for it.
        """
        _, loaded, engine = self._now()
        paused = engine.memory.paused_rules(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        for rule in sorted(self._rules - paused):
            if rule in engine.memory.pauses:  # and not resumed
                self._over(rule)
        self._rules = paused
        if self._reloading.busy:
            return
        told, self._paused = self._paused, []
        stale = engine.compiled is not None and paused != engine.paused
        if stale and (told or self._failed != (engine, paused)):
            self._reloading.again(loaded, engine, [partial(self._kept, engine, paused), *told])
            return
        for then in told:
            then(None)

    def _kept(self, engine: Engine, paused: frozenset[str], error: AgentwatchError | None) -> None:
        self._failed = (engine, paused) if error else None

    def _look_for(self, before: Engine, result: Result) -> None:
        """A file that is half written may be a whole one with fewer rules: nobody would know."""
        if isinstance(result, Loaded):
            ruleset = result.engine.ruleset
            there = {rule.id for rule in (*ruleset.rules, *ruleset.disabled)}
            gone = [rule.id for rule in before.ruleset.rules if rule.id not in there]
            if gone:
                self._missing(gone)

    def _took(self, config: Config) -> None:
        self._files = _files(config)
        self._changes.took(self._files)


def _files(config: Config) -> tuple[Path, ...]:
    """What a reload reads: the configuration, and rule files or their directories."""
    return (*((config.path,) if config.path else ()), *config.rule_paths)
