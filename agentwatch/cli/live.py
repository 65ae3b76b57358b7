"""The live view as commands set it up."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agentwatch.cli import wants_colour
from agentwatch.policy import patterns
from agentwatch.policy.index import PatternIndex
from agentwatch.rules.model import Agent
from agentwatch.sinks.live import Live
from agentwatch.sinks.screen import Screen


def live_view(agents: Sequence[Agent], screen: Screen) -> Live:
    """On stderr. agents: whose own state is not worth a line."""
    globs = [glob for agent in agents for glob in agent.own]
    index = PatternIndex([patterns.expression(g, patterns.PATH) for g in globs], patterns.PATH)
    colour = wants_colour(sys.stderr)
    return Live(screen, colour=colour, own=lambda path: bool(index.bits(path)))
