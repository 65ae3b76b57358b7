"""Agents that start while the daemon does: from the first that it tags, it misses none."""

from __future__ import annotations

import os

import pytest

from agentwatch.events import Exec
from agentwatch.sinks.frames import Start
from tests.daemon.running import Place, until

pytestmark = pytest.mark.root


def test_an_agent_that_starts_before_the_daemon_is_ready_is_recorded(place: Place) -> None:
    """Agents that end at once come one after the other: of those after the first that is recorded
    every one is, and that one came before the journal began to be written.
    """
    agent, came = str(place.stub), []
    daemon = place.start(check=False)
    while not place.supervisor.count("READY=1"):
        assert not daemon.gone, daemon.err
        came.append(os.posix_spawn(agent, [agent, ":"], os.environ))
        os.waitpid(came[-1], 0)

    def recorded() -> list[Exec]:
        execs = (entry.event for entry in place.entries() if isinstance(entry.event, Exec))
        return [event for event in execs if event.script == agent]

    until(lambda: {event.process.pid for event in recorded()} >= {came[-1]}, "the last one's")
    first = recorded()[0]
    (start,) = place.frames(Start)
    assert first.time < start.time
    told = [event.process.pid for event in recorded()]
    assert told == came[came.index(first.process.pid) :]
