"""Loading a policy aside, while the one before is in force."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agentwatch import config as configuration
from agentwatch.admission import Admitted, admit
from agentwatch.config import Config
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError, ConfigErrors, Diagnostic
from agentwatch.policy.levels import Host


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and the policy it names, ready to be put in force. seconds: it took."""

    config: Config
    engine: Engine
    admitted: Admitted
    seconds: float

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """Of the rule files."""
        return self.admitted.warnings


def load(config: Config, host: Host, before: Engine) -> Loaded:
    """What follows a policy. Raises RuleErrors, ConfigErrors: then nothing has changed."""
    began = time.monotonic()
    admitted = admit(config.rule_paths, host=host, without_hook=config.without_hook)
    wrong = config.check_agents([agent.id for agent in admitted.ruleset.agents])
    if wrong:
        raise ConfigErrors(wrong)
    return compiled(config, admitted, time.monotonic() - began, before)


def compiled(
    config: Config, admitted: Admitted, seconds: float, before: Engine | None = None
) -> Loaded:
    """The policy of these rules. seconds: it took to read them."""
    began = time.monotonic()
    engine = Engine(
        admitted.ruleset,
        mode=config.mode,
        generation=before.generation + 1 if before else 1,
        without_hook=config.without_hook,
        memory=before.memory if before else None,
    )
    return Loaded(config, engine, admitted, seconds + time.monotonic() - began)


Result = Loaded | AgentwatchError


class Reloading:
    """One load at a time, in a thread; a request meanwhile is one more load when it is done.

    fileno: readable when a result is there to be taken.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._result: Result | None = None
        self._waiting: list[Callable[[Result], None]] = []
        self._next: list[Callable[[Result], None]] = []
        self._again = False

    def fileno(self) -> int:
        return self._wake

    def begin(
        self, config: Config, before: Engine, tell: Callable[[Result], None] | None = None
    ) -> bool:
        """Begins, or has one more follow; whether it began. tell: told what came of it."""
        told = [tell] if tell else []
        if self._thread is not None:
            self._again = True
            self._next += told
            return False
        self._waiting = self._next + told
        self._next, self._again = [], False
        self._thread = threading.Thread(
            target=self._load, args=(config, before), name="reload", daemon=True
        )
        self._thread.start()
        return True

    def take(self) -> tuple[Result, list[Callable[[Result], None]], bool] | None:
        """(the result, who is to be told, whether one more was asked for), once; None for none."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return None
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        assert self._result is not None
        return self._result, self._waiting, self._again

    def _load(self, config: Config, before: Engine) -> None:
        try:
            if config.path is not None:
                config = configuration.load(config.path)
            self._result = load(config, self._host, before)
        except AgentwatchError as error:
            self._result = error
        except Exception as error:  # ours, and it must not end the daemon's watching
            self._result = AgentwatchError(f"the rules could not be loaded: {error!r}", "report it")
        finally:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake)
