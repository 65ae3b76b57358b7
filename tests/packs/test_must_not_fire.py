"""What an agent does all day, as events: nothing of it is a finding of severity medium or above."""

from __future__ import annotations

import pytest

from agentwatch.engine import Engine
from tests.packs.everyday import WORK
from tests.packs.score import Score
from tests.packs.story import Story


@pytest.mark.parametrize("work", WORK)
def test_ordinary_work_is_left_alone(engine: Engine, scores: dict[str, Score], work: str) -> None:
    """Low findings are for whoever looks for them; these would wake somebody up."""
    story = Story(engine)
    WORK[work](story)
    wrong = [f"{found.rules}: {found.what}" for found in story.severe]
    scores["events"].work(wrong)
    assert not wrong, "\n".join(wrong)
