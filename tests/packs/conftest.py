"""The two suites' score, printed at the end: precision and recall of the packs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwatch.engine import Engine
from agentwatch.policy import patterns
from agentwatch.rules import homes, load
from tests.packs.score import Score

SCORE = pytest.StashKey[dict[str, Score]]()


@pytest.fixture(scope="session")
def scores(request: pytest.FixtureRequest) -> dict[str, Score]:
    """By suite: `events` without root, `runs` with real programs."""
    return request.config.stash.setdefault(SCORE, {"events": Score(), "runs": Score()})


@pytest.fixture(scope="session")
def packs() -> Path:
    """The rule files that ship."""
    return load.shipped()


@pytest.fixture(scope="session")
def engine(packs: Path) -> Engine:
    """The packs, with the homes that tests inside rules have."""
    ruleset = load.read_rules([packs], patterns).ruleset
    return Engine(homes.at_home(ruleset, homes.TRIAL_HOMES))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    scores = config.stash.get(SCORE, {})
    for suite, score in scores.items():
        for line in score.lines(suite):
            terminalreporter.write_line(line)
