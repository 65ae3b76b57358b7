"""Each real incident, as a sequence of events: the rules that know it fire."""

from __future__ import annotations

import pytest

from agentwatch.engine import Engine
from tests.packs.incidents import INCIDENTS, Incident
from tests.packs.score import Score
from tests.packs.story import Story


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.id)
def test_an_incident_is_caught(
    engine: Engine, scores: dict[str, Score], incident: Incident
) -> None:
    """Every rule that has to fire does."""
    story = Story(engine)
    incident.tell(story)
    scores["events"].incident(incident.rules, story.fired, len(story.severe))
    missed = set(incident.rules) - story.fired
    assert not missed, f"{incident.title}\n" + "\n".join(map(str, story.found))


def test_every_incident_has_something_stopped(engine: Engine) -> None:
    """A deny or kill is among the findings, but where nothing is lost for good."""
    only_told = {"open-to-all", "environment", "sandbox"}
    for incident in INCIDENTS:
        story = Story(engine)
        incident.tell(story)
        stopped = any(found.action in ("deny", "kill") for found in story.found)
        assert stopped != (incident.id in only_told), incident.id
