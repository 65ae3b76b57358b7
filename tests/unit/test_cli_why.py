"""`agentwatch why`, asked of a real control server with prepared answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwatch.errors import PermissionDenied
from tests.unit.played import Played, failure, played, run

DENIAL: dict[str, Any] = {
    "at": time.time_ns(),
    "rule": "secrets.private-keys",
    "title": "Private keys",
    "severity": "high",
    "action": "deny",
    "outcome": "killed",
    "level": "kills-after",
    "kind": "read",
    "what": "/home/dev/.ssh/id\n\x1b[31m_rsa",
    "because": "A private key is everything its person can reach, and " + "it says " * 20 + "so.",
    "instead": "Ask for a deploy key.",
}
OBSERVED = DENIAL | {
    "rule": "x.y",
    "title": "",
    "severity": "",
    "outcome": "observed",
    "instead": "",
    "because": "B.\nforged  line",
}
WHY = {"session": "boot:100:5", "agent": "claude-code", "denials": [DENIAL, OBSERVED]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Played]:
    """Of one session, two denials."""
    with played(tmp_path / "s", why=WHY) as made:
        yield made


def test_a_denial_says_what_which_rule_because_and_instead(daemon: Played) -> None:
    """Long reasons are wrapped below each other; names and reasons cannot forge a line."""
    lines = run("why", "--socket", str(daemon.path)).stdout.splitlines()
    assert lines[0] == "claude-code boot:100:5"
    assert lines[1].endswith("  read  /home/dev/.ssh/id\\n\\x1b[31m_rsa")
    by = "  killed by secrets.private-keys (kills-after, high): Private keys"
    assert lines[2] == by
    assert lines[3].startswith("  because  A private key is everything")
    assert lines[4].startswith("           ")
    assert max(map(len, lines)) <= 100
    assert "  instead  Ask for a deploy key." in lines
    assert lines[-2:] == ["  would deny by x.y (kills-after)", "  because  B.\\nforged  line"]


def test_a_denial_says_that_the_kernel_did_it(daemon: Played) -> None:
    """Beside the level; of the engine's nothing is said."""
    daemon.answers["why"] = WHY | {"denials": [DENIAL | {"by": "kernel", "level": "kills"}, DENIAL]}
    lines = run("why", "--socket", str(daemon.path)).stdout.splitlines()
    assert [line for line in lines if line.startswith("  killed")] == [
        "  killed by secrets.private-keys (kills, by the kernel, high): Private keys",
        "  killed by secrets.private-keys (kills-after, high): Private keys",
    ]


def test_the_process_asked_about_reaches_the_daemon(daemon: Played) -> None:
    """Without one it is the caller's own session, which the daemon knows."""
    run("why", "--socket", str(daemon.path))
    run("why", "4242", "--socket", str(daemon.path))
    assert daemon.asked == [("why", {"pid": None}), ("why", {"pid": 4242})]


def test_json_is_the_answer_as_one_object_on_one_line(daemon: Played) -> None:
    """All of it, as the protocol has it."""
    (line,) = run("why", "--socket", str(daemon.path), "-o", "json").stdout.splitlines()
    assert json.loads(line) == WHY


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (WHY | {"denials": []}, "nothing was denied to claude-code boot:100:5"),
        ({"session": "", "agent": "", "denials": []}, "nothing was denied"),
    ],
)
def test_nothing_denied_is_said_and_no_failure(
    daemon: Played, answer: dict[str, Any], said: str
) -> None:
    """On stderr: there is no data."""
    daemon.answers["why"] = answer
    result = run("why", "--socket", str(daemon.path))
    assert (result.stdout, result.stderr) == ("", f"agentwatch: {said}\n")


def test_somebody_elses_session_is_refused(daemon: Played) -> None:
    """The daemon's own error and exit code."""
    daemon.answers["why"] = PermissionDenied("4242 is no process of yours", "ask as root")
    assert failure("why", "4242", "--socket", str(daemon.path)).exit_code == 4


def test_a_pid_is_a_number_above_zero(daemon: Played) -> None:
    """A usage error before the daemon is asked."""
    run("why", "0", "--socket", str(daemon.path), code=2)
    assert daemon.asked == []
