"""What rule files say, once read and validated. No YAML beyond this point, and no policy yet.

A Ruleset is what all files together mean: lists expanded, `~` resolved, overrides applied. The
engine (and, later, the kernel's policy compiler) takes it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("exec", "read", "change", "open", "connect", "listen", "mount", "ptrace", "signal")
ACTIONS = ("allow", "alert", "deny", "kill")
MODES = ("observe", "enforce")
SCOPES = ("process", "session")
ALL = "all"  # of defaults: every session, whatever agent it is of
COUNTED_BY = ("session", "process")
SEVERITIES = ("info", "low", "medium", "high", "critical")
WITHOUT_HOOK = ("kill", "alert", "refuse")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands. line and column count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Condition:
    """One key of a match: `field|modifier: values`.

    values: text of globs or literals with lists expanded; `$own` and `$project/...` are still in
    it, for they depend on the event. modifiers: glob (none given), startswith, endswith, contains,
    cidr, nocase, re, has, all. sequence: values are the tokens of one exact argv pattern, one entry
    a token, instead of alternatives (`args: [push, --force]`; a text's spaces part its tokens).
    """

    field: str
    values: tuple[str, ...]
    modifiers: frozenset[str] = frozenset()
    place: Place | None = None
    sequence: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions, all of which must hold."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A test inside a rule: an event by its fields, and what is expected of it.

    expect: hit | miss (this rule alone) or verdict (the whole ruleset gives `verdict`). on: the
    kinds it runs for; empty: every kind of its rule.
    """

    expect: str
    fields: tuple[tuple[str, object], ...]
    place: Place
    on: tuple[str, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """A rule acts when it matched more than `over` times within `within` ns.

    by: each of COUNTED_BY has a count of its own. distinct: a field; its values are counted once.
    """

    over: int
    within: int
    by: str = "session"
    distinct: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. agents: ids it is for; empty: all. unless: named exceptions, any of which holds.

    without_hook, mode: "" is what the host says for all rules. scope: what a kill ends.
    """

    id: str
    on: tuple[str, ...]
    match: Match
    action: str
    place: Place
    title: str = ""
    agents: tuple[str, ...] = ()
    unless: tuple[tuple[str, Match], ...] = ()
    without_hook: str = ""
    mode: str = ""
    scope: str = "process"
    count: Count | None = None
    severity: str = "medium"
    because: str = ""
    instead: str = ""
    false_positives: str = ""
    tags: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    enabled: bool = True
    overridden: Place | None = None  # the `overrides:` entry that changed it


@dataclass(frozen=True, slots=True)
class Agent:
    """An identity. exec: globs of its names. own: globs of its own state (`$own`)."""

    id: str
    title: str
    exec: tuple[str, ...]
    own: tuple[str, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Default:
    """What events of a kind meet that no rule allows. agent: an id, or ALL. action: alert | deny |
    kill.
    """

    agent: str
    kind: str
    action: str
    place: Place


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything the files of one load say. rules: those in force. disabled: those that a file or
    an override turned off. homes: what a leading `~` in the value of a condition stands for.
    """

    rules: tuple[Rule, ...] = ()
    agents: tuple[Agent, ...] = ()
    defaults: tuple[Default, ...] = ()
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    disabled: tuple[Rule, ...] = ()
    homes: tuple[str, ...] = ()
