"""Events that the language can judge and no probe reports yet.

Tests inside rules and `rules explain` make them; a rule that only they can match has the level
`none` (fields.py says which). What gets a probe moves to agentwatch.events and leaves here.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentwatch.events import Connect, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedConnect(Connect):
    """A connect of which more is known: host, the name that was resolved; peer: own | tagged |
    other, whose process listens.
    """

    host: str = ""
    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen(NamedConnect):
    """A socket that takes connections, on the address it is bound to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ptrace(Event):
    """Another process was attached to. target: its executable. peer: own | tagged | other."""

    target: str
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Event):
    """A signal was sent to another process. signal: KILL, STOP, ... See Ptrace for the others."""

    signal: str
    target: str
    peer: str
