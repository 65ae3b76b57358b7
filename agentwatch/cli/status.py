"""`agentwatch status`: what the daemon watches, and how it is, on one screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from agentwatch.cli import wants_colour
from agentwatch.cli.asking import (
    ask,
    made,
    many,
    output_option,
    pins_option,
    show_json,
    socket_option,
)
from agentwatch.cli.events import quiet_pipe
from agentwatch.errors import NotRunningError
from agentwatch.sinks.escape import shown

SECOND = 1_000_000_000
LEVELS = ("prevents", "kills", "kills-after", "detects", "none")
_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Rules:
    """levels: how many rules have each. warnings: of the last load."""

    loaded: int = 0
    levels: Mapping[str, int] = field(default_factory=dict, metadata={"of": int})
    paths: tuple[str, ...] = ()
    warnings: int = 0


@dataclass(frozen=True, slots=True)
class Journal:
    """sequence, hash: of the last frame. failures: writes; waiting: frames; lost: given up."""

    directory: str = ""
    sequence: int = 0
    hash: str = ""
    bytes: int = 0
    segments: int = 0
    failures: int = 0
    waiting: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Agent:
    """How many sessions and processes an agent has at this moment."""

    agent: str = ""
    sessions: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the kernel has of the rules. engine: how many rules the engine decides."""

    kernel: bool = False
    bytes: int = 0
    states: int = 0
    engine: int = 0


@dataclass(frozen=True, slots=True)
class Pins:
    """kept: whether the kernel goes on, should the daemon die. on_exit: keep | release."""

    directory: str = ""
    kept: bool = False
    on_exit: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon's answer. Times are ns since the epoch, 0 for never."""

    version: str = ""
    pid: int = 0
    started_at: int = 0
    mode: str = ""
    tier: str = ""
    loader: str = "core"
    config: str = ""
    hooks: Mapping[str, bool] = field(default_factory=dict, metadata={"of": bool})
    rules: Rules = field(default_factory=Rules)
    generation: int = 0
    policy: Policy = field(default_factory=Policy)
    reloaded_at: int = 0
    reload_error: str = ""
    losses: Mapping[str, int] = field(default_factory=dict, metadata={"of": int})
    journal: Journal = field(default_factory=Journal)
    agents: tuple[Agent, ...] = field(default=(), metadata={"of": Agent})
    subscribers: int = 0
    connections: int = 0
    pins: Pins = field(default_factory=Pins)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One line. bad: something is not as it should be."""

    name: str
    text: str
    bad: bool = False


@click.command()
@socket_option
@pins_option
@output_option
def status(socket: Path, pins: Path, output: str) -> None:
    """Show what the daemon watches, and how it is.

    Exits 3 where no daemon runs, and says what the kernel goes on with.
    """
    try:
        value = ask(socket, "status")
    except NotRunningError:
        with quiet_pipe():
            _show_kept(pins, output)
        raise
    with quiet_pipe():
        if output == "json":
            show_json(value)
        else:
            _show(made(Status, value), wants_colour(sys.stdout))


def _show(found: Status, colour: bool) -> None:
    began = _ago(found.started_at)
    click.echo(shown(f"agentwatch {found.version} watches, pid {found.pid}, started {began}"))
    for problem in found.problems:
        _line("PROBLEM", problem, "red" if colour else None)
    name = ""
    for row in rows(found):
        _line(
            "" if row.name == name else row.name, row.text, "yellow" if row.bad and colour else None
        )
        name = row.name


def _show_kept(root: Path, output: str) -> None:
    """What goes on without a daemon, if that may be looked at."""
    from agentwatch.kernel.pins import sets

    states = [one.state() for one in sets(root)]
    if output == "json":
        show_json({"pid": 0, "kept": [asdict(state) for state in states]})
        return
    for state in states:
        policy = f"by policy {state.policy}" if state.policy else "by no policy"
        has = f"{many(state.programs, 'program')}, {many(state.sessions, 'session')}"
        click.echo(f"the kernel goes on {policy}, and nobody listens: {has} in {root / state.name}")


def _line(name: str, text: str, fg: str | None) -> None:
    line = f"{name:<{_WIDTH}}{shown(text)}"
    click.echo(click.style(line, fg=fg) if fg else line)


def rows(found: Status) -> Iterator[Row]:
    """All but the problems; several rows of one name stand below each other."""
    loader = f", {found.loader} loader" * (found.loader != "core")
    yield Row("mode", f"{found.mode}, {found.tier} tier{loader}")
    yield from _agents(found.agents)
    yield from _rules(found)
    yield _hooks(found.hooks)
    lost = [f"{count:,} {stage}" for stage, count in found.losses.items() if count]
    yield Row("lost", ", ".join(lost) or "nothing", bad=bool(lost))
    yield from _journal(found.journal)
    yield _pins(found.pins)
    yield Row("clients", f"{found.connections} connected, {found.subscribers} of them following")
    yield Row("config", found.config or "none: defaults")


def _agents(agents: tuple[Agent, ...]) -> Iterator[Row]:
    for one in agents:
        count = f"{many(one.sessions, 'session')}, {many(one.processes, 'process')}"
        yield Row("agents", f"{one.agent or '-'}: {count}")
    if not agents:
        yield Row("agents", "none at work")


def _rules(found: Status) -> Iterator[Row]:
    rules = found.rules
    known = [level for level in LEVELS if rules.levels.get(level)]
    other = [level for level in rules.levels if level not in LEVELS]
    levels = ", ".join(f"{rules.levels[level]} {level}" for level in (*known, *other))
    text = many(rules.loaded, "rule") + f": {levels}" * bool(levels)
    yield Row("rules", text + f"; {many(rules.warnings, 'warning')}" * bool(rules.warnings))
    loaded = f", loaded {_ago(found.reloaded_at)}" * bool(found.reloaded_at)
    yield Row("rules", f"generation {found.generation}{loaded}")
    yield _policy(found.policy, rules.loaded, found.mode)
    for path in rules.paths:
        yield Row("rules", f"from {path}")
    if found.reload_error:
        yield Row("rules", f"the last reload was refused: {found.reload_error}", bad=True)


def _policy(policy: Policy, rules: int, mode: str) -> Row:
    if not policy.kernel:
        return Row("rules", "the engine decides all of them: no policy is in the kernel", bad=True)
    size = f"{_bytes(policy.bytes)}, {policy.states:,} states"
    kernel = max(rules - policy.engine, 0)
    decides = f"the kernel decides {kernel}, the engine {policy.engine}"
    if mode == "observe":  # it leaves everything to the engine then
        decides = f"the kernel picks the events of {kernel}, the engine those of {policy.engine}"
    return Row("rules", f"{decides}; {size}")


def _hooks(hooks: Mapping[str, bool]) -> Row:
    missing = [hook for hook, attached in hooks.items() if not attached]
    text = f"{len(hooks) - len(missing)} of {len(hooks)} attached"
    return Row("hooks", text + f"; not {', '.join(missing)}" * bool(missing), bad=bool(missing))


def _pins(pins: Pins) -> Row:
    if not pins.kept:
        return Row("pins", "none: without the daemon nothing is in force", bad=True)
    exits = "keeps them" if pins.on_exit == "keep" else "releases them"
    return Row("pins", f"{pins.directory}: in force should the daemon die; a clean stop {exits}")


def _journal(journal: Journal) -> Iterator[Row]:
    size = f"{_bytes(journal.bytes)} in {many(journal.segments, 'segment')}"
    yield Row("journal", f"{journal.directory}, {size}")
    yield Row("journal", f"head {journal.sequence}:{journal.hash}")
    trouble = [
        text
        for count, text in (
            (journal.failures, f"{many(journal.failures, 'write')} failed"),
            (journal.lost, f"{many(journal.lost, 'record')} lost"),
        )
        if count
    ]
    if trouble:
        waiting = f"{many(journal.waiting, 'byte')} waiting"
        yield Row("journal", ", ".join([*trouble, waiting]), bad=True)


def _ago(moment: int) -> str:
    """ns since the epoch as local time, and how long ago that was."""
    seconds = max(0, time.time_ns() - moment) // SECOND
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment // SECOND))
    return f"{clock} ({duration(seconds)} ago)"


def duration(seconds: int) -> str:
    """The two largest units: 42 s, 3 min 5 s, 2 h 10 min, 4 d 1 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next((n for n, (_, size) in enumerate(units) if seconds >= size), 3)
    parts: list[str] = []
    for name, size in units[first : first + 2]:
        count, seconds = divmod(seconds, size)
        if count or not parts:
            parts.append(f"{count} {name}")
    return " ".join(parts)


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
