"""What the configuration file says, once read and validated, and what a new one changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from agentwatch.config.values import Address
from agentwatch.errors import Diagnostic
from agentwatch.rules.diagnostics import Report
from agentwatch.rules.load import default_paths
from agentwatch.rules.model import Place
from agentwatch.rules.read import Text
from agentwatch.rules.values import known_agent

METRICS = Address("127.0.0.1", 9477)


@dataclass(frozen=True, slots=True)
class Audit:
    """What is journaled: `all` that tagged processes do, or `findings` only.

    agents: (agent, word), for those that differ from the default.
    """

    default: str = "all"
    agents: tuple[tuple[str, str], ...] = ()

    def of(self, agent: str) -> str:
        """all | findings, for one agent."""
        return dict(self.agents).get(agent, self.default)


@dataclass(frozen=True, slots=True)
class Journal:
    """Where the journal lies and what is kept. fsync: seconds between two at most, 0 for one after
    every write, None for none.
    """

    dir: Path = Path("/var/log/agentwatch")
    segment_bytes: int = 64 << 20
    keep_bytes: int = 4 << 30
    keep_days: int = 30
    fsync: float | None = 1.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """More than `kills` kills within `within` ns stop the session."""

    kills: int = 20
    within: int = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of it; Config() is what holds without a file.

    rules: files and directories, () for those installed (see rule_paths). agents: those the daemon
    tags by itself, None for all, () for none. cgroup: None for the root of the cgroup2 hierarchy.
    jsonl, metrics: None for none; metrics may be a file. group: whose members see what root sees,
    None for nobody's. path: the file, None without. places: (dotted key, where it stands) of every
    key that was written. Two are equal when they mean the same.
    """

    mode: str = "enforce"
    rules: tuple[Path, ...] = ()
    agents: tuple[str, ...] | None = None
    audit: Audit = Audit()
    without_hook: str = "kill"
    on_loss: str = "log"
    on_exit: str = "release"
    cgroup: Path | None = None
    journal: Journal = Journal()
    jsonl: Path | None = None
    metrics: Address | Path | None = METRICS
    socket: Path = Path("/run/agentwatch/control.sock")
    group: str | None = None
    breaker: Breaker = Breaker()
    path: Path | None = field(default=None, compare=False)
    places: tuple[tuple[str, Place], ...] = field(default=(), compare=False, repr=False)
    agents_named: tuple[Text, ...] = field(default=(), compare=False, repr=False)
    report: Report = field(default_factory=Report, compare=False, repr=False)

    @property
    def rule_paths(self) -> tuple[Path, ...]:
        """The rule files and directories to load; the default is looked up at each call."""
        return self.rules or default_paths()

    def place(self, key: str) -> Place | None:
        """Where a key (`journal.dir`) stands, None when it was left out."""
        return dict(self.places).get(key)

    def check_agents(self, ids: Collection[str]) -> tuple[Diagnostic, ...]:
        """An error for each agent that is named here and not among `ids`, those of the rules."""
        report = copy.deepcopy(self.report)  # it has the text of the file; findings are not kept
        for text in self.agents_named:
            known_agent(text, ids, report)
        return report.all

    def reload(self, new: Config) -> Reload:
        """What comes of `new` in a process that runs with this one."""
        kept = {key: getattr(self, key) for key in NEEDS_RESTART}
        config = dataclasses.replace(new, **kept)
        return Reload(config, _changed(self, config), _changed(config, new))


NEEDS_RESTART = ("cgroup", "journal", "metrics", "socket", "group")
"""What is opened once, at the start. All other keys are applied by a reload."""


@dataclass(frozen=True, slots=True)
class Reload:
    """config: what is in force from now on, with the running values of what needs a restart, so
    that the next reload says again what still waits for one. applied, restart: dotted keys.
    """

    config: Config
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def _changed(old: Config, new: Config) -> tuple[str, ...]:
    before, after = _values(old), _values(new)
    return tuple(key for key in before if before[key] != after[key])


def _values(config: Config) -> dict[str, object]:
    """Dotted key -> value. audit is one: its keys are agents."""
    found: dict[str, object] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if isinstance(value, Journal | Breaker):
            found |= {
                f"{one.name}.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)
            }
        elif one.compare:
            found[one.name] = value
    return found


KEYS = tuple(_values(Config()))
"""Every key there is, dotted, in the order of the file: `mode`, ..., `journal.dir`, ..."""
