"""`~`: the home directories it stands for, and putting them in its place.

A ruleset is read with `~` still in it, for tests inside rules have a passwd of their own.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from agentwatch.rules.model import Agent, Ruleset

TRIAL_HOMES = ("/root", "/home/dev")
TRIAL_PROJECT = "/home/dev/project"

# "Homes" of passwd entries that nobody lives in: `~/**` must not mean /dev or the whole system.
SYSTEM = frozenset(
    (
        *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/mnt", "/nonexistent"),
        *("/opt", "/proc", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib"),
        *("/usr/local", "/usr/local/bin", "/usr/local/sbin", "/usr/sbin", "/usr/share", "/var"),
        *("/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"),
    )
)


def homes() -> tuple[str, ...]:
    """Every home directory of this host's passwd, as written and with links resolved."""
    return select(entry.pw_dir for entry in pwd.getpwall())


def select(directories: Iterable[str]) -> tuple[str, ...]:
    """Those that somebody can live in, each once, in order, links resolved too."""
    found: dict[str, None] = {}
    for directory in directories:
        if not directory.startswith("/"):
            continue
        for name in (os.path.normpath(directory), os.path.realpath(directory)):
            if name not in SYSTEM:
                found.setdefault(name)
    return tuple(found)


def at_home(ruleset: Ruleset, homes: Sequence[str]) -> Ruleset:
    """The ruleset on a host with these homes: agents' `~` written out, rules' ones known.

    Rules name `~` so often, and hosts have so many homes, that writing it out would make most of
    what the engine compiles.
    """
    agents = tuple(_agent(agent, homes) for agent in ruleset.agents)
    return replace(ruleset, agents=agents, homes=tuple(homes))


def expand(values: Iterable[str], homes: Sequence[str]) -> tuple[str, ...]:
    """Globs with a leading `~` written out."""
    found: dict[str, None] = {}
    for value in values:
        if value == "~" or value.startswith("~/"):
            for home in homes:
                found.setdefault(_escape(home) + value[1:])
        else:
            found.setdefault(value)
    return tuple(found)


def _escape(path: str) -> str:
    return re.sub(r"([\\*?\[\]{}, ])", r"\\\1", path)


def _agent(agent: Agent, homes: Sequence[str]) -> Agent:
    return replace(agent, exec=expand(agent.exec, homes), own=expand(agent.own, homes))
