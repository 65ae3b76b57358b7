"""Whether the programs are where they were put, and what the rules are worth where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from agentwatch.engine import Engine
from agentwatch.kernel.probes import HOOKS, Probes
from agentwatch.policy.levels import Host
from agentwatch.sinks import frames

_NAMED = 8  # rules that are told by name


class Hooks:
    """Attaches what somebody has detached, and tells what is missing. say: where its frames go."""

    def __init__(self, probes: Probes, say: Callable[[frames.Frame], None]) -> None:
        self._probes, self._say = probes, say
        self._told: frozenset[str] = frozenset()

    def check(self, engine: Engine, host: Host) -> Host:
        """Looks at all of them; the host as it is now."""
        again = self._probes.attach_again()
        if again:
            what = "a hook was" if len(again) == 1 else "hooks were"
            text = f"{what} detached by somebody, and nothing was seen or refused there meanwhile; "
            self._tell(f"{text}attached again: {_named(again)}")
        self._pin()
        missing = self._probes.missing
        gone = frozenset(missing) - self._told
        self._told |= gone
        tracing = missing.keys().isdisjoint(HOOKS)
        now = replace(host, lsm=self._probes.hooks, lost=frozenset(missing), tracing=tracing)
        before = replace(now, lsm=now.lsm | gone, lost=now.lost - gone, tracing=True)
        for reason in dict.fromkeys(missing[hook] for hook in sorted(gone)):
            self._tell(f"{_named(h for h in gone if missing[h] == reason)}: {reason}")
        if gone:
            self._tell(_worth_less(engine, before, now))
        return now

    def _pin(self) -> None:
        keeping = self._probes.keeping
        try:
            if unpinned := keeping.pin_again():
                keeping.problem = ""
                self._tell(f"unpinned by somebody, and pinned again: {_named(unpinned)}")
        except OSError as error:
            text = f"what was unpinned by somebody cannot be pinned again: {error}"
            if keeping.problem != text:
                keeping.problem = text
                self._tell(text)

    def _tell(self, text: str) -> None:
        self._say(frames.Notice(subject="hooks", text=text))


def problems(missing: dict[str, str]) -> list[str]:
    """What is missing, by reason, in words."""
    return [
        f"{_named(hook for hook in missing if missing[hook] == reason)}: {reason}; "
        "what they would see or refuse is worth less: agentwatch rules list"
        for reason in dict.fromkeys(missing[hook] for hook in sorted(missing))
    ]


def _worth_less(engine: Engine, before: Host, now: Host) -> str:
    """Which rules are worth less on a host than on another."""
    rules = engine.ruleset.rules
    found = [r.id for r in rules if engine.level(r, now).name != engine.level(r, before).name]
    if not found:
        return "no rule is worth less without"
    more = f" and {len(found) - _NAMED} more" * (len(found) > _NAMED)
    many = "1 rule is" if len(found) == 1 else f"{len(found)} rules are"
    return f"{many} worth less without: {', '.join(found[:_NAMED])}{more}"


def _named(hooks: Iterable[str]) -> str:
    return ", ".join(sorted(hooks))
