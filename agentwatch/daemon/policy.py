"""Loading a policy aside, while the one before is in force."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from agentwatch import config as configuration
from agentwatch.admission import Admitted, admit
from agentwatch.compiling import compile_for
from agentwatch.config import Config
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError, ConfigErrors, Diagnostic
from agentwatch.policy.levels import Host
from agentwatch.policy.subjects import AgentBits


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


def following(generation: int) -> int:
    """The number of the next policy: programs keep 16 bits of it, and 0 is none there."""
    return generation + (1 if (generation + 1) & 0xFFFF else 2)


def load(config: Config, host: Host, room: int, before: Engine) -> Loaded:
    """What follows a policy. Raises RuleErrors, ConfigErrors: then nothing has changed."""
    began = time.monotonic()
    admitted = admit(config.rule_paths, host=host, without_hook=config.without_hook)
    wrong = config.check_agents([agent.id for agent in admitted.ruleset.agents])
    if wrong:
        raise ConfigErrors(wrong)
    return compiled(config, admitted, time.monotonic() - began, host, room, before)


def compiled(
    config: Config,
    admitted: Admitted,
    seconds: float,
    host: Host,
    room: int,
    before: Engine | None = None,
    *,
    agents: AgentBits | None = None,
    generation: int = 0,
) -> Loaded:
    """The policy of these rules. seconds: it took to read them. room: bytes the kernel has.

    agents, generation: of the policy before, where that was another daemon's.
    """
    began = time.monotonic()
    engine = Engine(
        admitted.ruleset,
        mode=config.mode,
        generation=following(before.generation if before else generation),
        without_hook=config.without_hook,
        memory=before.memory if before else None,
    )
    compile_for(engine, host, before, agents=agents, room=room)
    return Loaded(config, engine, admitted, seconds + time.monotonic() - began)


def compiled_again(loaded: Loaded, host: Host, room: int, before: Engine) -> Loaded:
    """The policy in force, as the next generation: other rules are paused than before.

    Raises AgentwatchError: then the one before stays in force.
    """
    engine = before.again(following(before.generation))
    compile_for(engine, host, before, room=room)
    if engine.compiled is None and host.decides:
        raise AgentwatchError(engine.refused, "the kernel keeps the policy it has")
    return replace(loaded, engine=engine)


Result = Loaded | AgentwatchError


@dataclass(frozen=True, slots=True)
class Done:
    """What a load has come to. waiting: who is to be told. more: one more was asked for meanwhile.

    pause: it was the policy in force, compiled anew.
    """

    result: Result
    waiting: Sequence[Callable[[Result], None]]
    more: bool
    pause: bool


class Reloading:
    """One load at a time, in a thread; a request meanwhile is one more load when it is done.

    room: bytes the kernel has for a policy. fileno: readable when a result is there to be taken.
    """

    def __init__(self, host: Host, room: int) -> None:
        self.host, self._room = host, room
        self._pause = False
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
        self._next, self._again, self._pause = [], False, False
        self._start(lambda: self._read(config, before))
        return True

    def again(
        self,
        loaded: Loaded,
        before: Engine,
        tell: Sequence[Callable[[AgentwatchError | None], None]],
    ) -> None:
        """Begins to compile the policy in force anew; not while something is under way.

        tell: told when that is done; an error: the policy before is in force.
        """
        assert self._thread is None
        self._waiting, self._pause = [partial(_tell_all, tell)], True
        self._start(lambda: compiled_again(loaded, self.host, self._room, before))

    @property
    def busy(self) -> bool:
        """Whether something is under way, or there to be taken."""
        return self._thread is not None

    def _start(self, load: Callable[[], Loaded]) -> None:
        self._thread = threading.Thread(target=self._load, args=(load,), name="reload", daemon=True)
        self._thread.start()

    def take(self) -> Done | None:
        """What was under way, once; None where that is not done."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return None
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        assert self._result is not None
        return Done(self._result, tuple(self._waiting), self._again, self._pause)

    def _read(self, config: Config, before: Engine) -> Loaded:
        if config.path is not None:
            config = configuration.load(config.path)
        return load(config, self.host, self._room, before)

    def _load(self, load: Callable[[], Loaded]) -> None:
        try:
            self._result = load()
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


def _tell_all(tell: Sequence[Callable[[AgentwatchError | None], None]], result: Result) -> None:
    for one in reversed(tell):  # the last pause of a rule is undone first
        one(result if isinstance(result, AgentwatchError) else None)
