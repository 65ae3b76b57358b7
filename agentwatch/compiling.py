"""Rules as this host's kernel gets them."""

from __future__ import annotations

import time
from collections.abc import Callable

from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError
from agentwatch.policy import compiler, levels
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.levels import Host
from agentwatch.policy.subjects import AgentBits
from agentwatch.rules.model import Ruleset

_NAMED = 3  # rules that are told by name


def compile_here(
    ruleset: Ruleset,
    host: Host,
    mode: str = "enforce",
    *,
    without_hook: str = "kill",
    agents: AgentBits | None = None,
    generation: int = 1,
    paused: frozenset[str] = frozenset(),
    room: int,
) -> Compiled:
    """The rules as the kernel of this host gets them. room: bytes it has for them.

    Raises AgentwatchError.
    """
    if not host.decides:
        raise AgentwatchError(levels.BCC)
    try:
        return compiler.compile(
            ruleset,
            mode=mode,
            without_hook=without_hook,
            agents=agents or AgentBits(),
            prevents=host.cgroup,
            lsm=bool(host.lsm),
            generation=generation,
            size=room,
            paused=paused,
            clock=time.monotonic,
        )
    except AgentwatchError:
        raise
    except Exception as error:  # a fault of ours: the engine decides on, and everybody is told
        raise AgentwatchError(f"the compiler failed: {error!r}", "report it") from error


def compile_for(
    engine: Engine,
    host: Host,
    before: Engine | None = None,
    *,
    agents: AgentBits | None = None,
    room: int,
) -> None:
    """Compiles an engine's rules for the kernel; before: the engine whose policy is in force, or
    agents: the bits of that one. room: bytes of the largest image that the kernel takes.

    Where that is not possible the engine decides everything, and `refused` says why.
    """
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    engine.bits = before.bits if before else agents or AgentBits()
    engine.paused = engine.memory.paused_rules(now)
    try:
        engine.compiled = compile_here(
            engine.ruleset,
            host,
            engine.mode,
            without_hook=engine.without_hook,
            agents=engine.bits,
            generation=engine.generation,
            paused=engine.paused,
            room=room,
        )
    except AgentwatchError as error:
        engine.compiled, engine.refused = None, error.message
    else:
        engine.bits = engine.compiled.agents


def left_out(compiled: Compiled | None, named: Callable[[str], bool] = lambda rule: True) -> str:
    """Which rules found no place among the others in the kernel, in words; "" for none of `named`.

    They act all the same, by the engine and so milliseconds later.
    """
    lowered = compiled.lowered if compiled else {}
    ids = [rule for rule, one in lowered.items() if one.squeezed and named(rule)]
    if not ids:
        return ""
    stay = "1 rule stays" if len(ids) == 1 else f"{len(ids)} rules stay"
    more = ", ..." * (len(ids) > _NAMED)
    return f"{stay} with the engine for room: {', '.join(ids[:_NAMED])}{more}"
