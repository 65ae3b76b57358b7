"""`agentwatch agents`, asked of a real control server with prepared answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwatch.cli.agents import DEPTH, Process, tree
from agentwatch.errors import AgentwatchError, PermissionDenied
from tests.unit.played import Played, failure, played, run

NOW = time.time_ns()


def process(pid: int, parent: int, command: str, role: str = "child") -> dict[str, Any]:
    return {
        "pid": pid,
        "started_at": NOW,
        "parent": parent,
        "exe": "/usr/bin/x",
        "command": command,
        "role": role,
    }


SESSION: dict[str, Any] = {
    "session": "boot:100:5",
    "pid": 100,
    "agents": ["claude-code", "codex"],
    "user": "dev",
    "uid": 1000,
    "project": "/home/dev/project",
    "began_at": NOW,
    "how": "identity",
    "state": "running",
    "held": "",
    "processes": [
        process(130, 100, "sleep 60"),
        process(120, 110, "cat a\x1b[31m\nb"),
        process(100, 0, "claude -p", "agent"),
        process(110, 100, "sh -c 'cat a'"),
        process(140, 999, ""),
    ],
}
FROZEN = SESSION | {
    "session": "boot:200:5",
    "agents": [],
    "user": "",
    "project": "",
    "state": "frozen",
    "held": "cgroup",
    "processes": [process(200, 0, "agent")],
}
LIST = {"sessions": [SESSION, FROZEN]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Played]:
    """Two sessions, one of them frozen."""
    done = {"sessions": ["boot:100:5"], "processes": 5, "how": ""}
    with played(
        tmp_path / "s",
        agents_list=LIST,
        agents_tag={"session": "boot:100:5", "processes": 2},
        agents_untag=done,
        agents_kill=done | {"how": "signal"},
        agents_freeze=done | {"how": "cgroup", "sessions": ["boot:100:5", "boot:200:5"]},
        agents_thaw=done,
    ) as made:
        yield made


def shown(daemon: Played, *arguments: str) -> list[str]:
    return run("agents", *arguments, "--socket", str(daemon.path)).stdout.splitlines()


def test_a_session_is_listed_with_the_tree_of_its_processes(daemon: Played) -> None:
    """Each process behind its parent and further in; an agent is marked, hostile names are text."""
    lines = shown(daemon, "list")
    assert lines[0].startswith("claude-code, codex: dev, since ")
    assert lines[0].endswith(", 5 processes")
    assert lines[1:8] == [
        "  session boot:100:5",
        "  project /home/dev/project",
        "      100 * claude -p",
        "      110     sh -c 'cat a'",
        "      120       cat a\\x1b[31m\\nb",
        "      130     sleep 60",
        "      140   /usr/bin/x",
    ]
    assert lines[8].startswith("-: 1000, since ")
    assert lines[8].endswith("1 process, frozen by cgroup")
    assert lines[9:] == ["  session boot:200:5", "      200   agent"]


def test_no_agent_at_work_is_said(daemon: Played) -> None:
    """On stderr; it is no failure."""
    daemon.answers["agents.list"] = {"sessions": []}
    result = run("agents", "list", "--socket", str(daemon.path))
    assert (result.stdout, result.stderr) == ("", "agentwatch: no agent is at work\n")


def test_json_is_the_answer_as_one_object_on_one_line(daemon: Played) -> None:
    """All of it, as the protocol has it."""
    (line,) = shown(daemon, "list", "-o", "json")
    assert json.loads(line) == LIST


def test_every_process_is_shown_once_whatever_the_snapshot_says() -> None:
    """Parents in a circle, a process that is its own parent, the same pid twice."""
    rows = ((1, 2), (2, 1), (3, 3), (4, 3), (4, 3), (5, 77))
    found = [one.pid for _, one in tree(tuple(Process(pid, parent=up) for pid, up in rows))]
    assert sorted(found) == [1, 2, 3, 4, 4, 5]


def test_a_long_chain_of_processes_is_no_wide_screen(daemon: Played) -> None:
    """A thousand generations: all are shown, indented as far as it makes sense."""
    chain = [process(pid, pid - 1 if pid > 1 else 0, "sh") for pid in range(1, 1001)]
    daemon.answers["agents.list"] = {"sessions": [SESSION | {"processes": chain}]}
    lines = shown(daemon, "list")
    assert len(lines) == 1003
    assert max(map(len, lines[3:])) <= 12 + 2 * DEPTH + 2


def test_tagging_says_which_session_it_became(daemon: Played, tmp_path: Path) -> None:
    """The daemon gets a project that means the same in its own working directory."""
    place = tmp_path / "project"
    place.mkdir()
    lines = shown(daemon, "tag", "100", "--agent", "codex", "--project", f"{place}/../project")
    assert lines == ["tagged 100: session boot:100:5, 2 processes"]
    assert shown(daemon, "tag", "7") == ["tagged 7: session boot:100:5, 2 processes"]
    assert daemon.asked == [
        ("agents.tag", {"pid": 100, "agent": "codex", "project": str(place.resolve())}),
        ("agents.tag", {"pid": 7, "agent": "", "project": ""}),
    ]


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("untag", "untagged: 1 session, 5 processes"),
        ("kill", "killed: 1 session, 5 processes"),
        ("freeze", "frozen by cgroup: 2 sessions, 5 processes"),
        ("thaw", "thawed: 1 session, 5 processes"),
    ],
)
@pytest.mark.parametrize("which", ["100", "boot:100:5", "claude-code"])
def test_a_change_says_what_it_did_to_whom(
    daemon: Played, verb: str, line: str, which: str
) -> None:
    """WHICH reaches the daemon as it was typed; the sessions are listed."""
    lines = shown(daemon, verb, which)
    assert lines[:2] == [line, "  boot:100:5"]
    assert daemon.asked == [(f"agents.{verb}", {"which": which})]
    (plain,) = shown(daemon, verb, which, "-o", "json")
    assert json.loads(plain) == daemon.answers[f"agents.{verb}"]


@pytest.mark.parametrize(
    "arguments", [("tag", "1"), ("untag", "1"), ("kill", "1"), ("freeze", "1"), ("thaw", "1")]
)
def test_what_the_daemon_refuses_is_its_own_error(
    daemon: Played, arguments: tuple[str, ...]
) -> None:
    """Only root may change anything: exit code 4."""
    refused = PermissionDenied("only root may do that", "sudo")
    daemon.answers = dict.fromkeys(daemon.answers, refused)
    error = failure("agents", *arguments, "--socket", str(daemon.path))
    assert (type(error), error.message, error.exit_code) == (PermissionDenied, refused.message, 4)


@pytest.mark.parametrize("pid", ["0", "-1", "x", "1.5"])
def test_a_pid_is_a_number_above_zero(daemon: Played, pid: str) -> None:
    """A usage error before the daemon is asked."""
    run("agents", "tag", "--socket", str(daemon.path), "--", pid, code=2)
    assert daemon.asked == []


def test_an_answer_of_another_shape_is_an_error(daemon: Played) -> None:
    """Not a traceback."""
    daemon.answers["agents.list"] = {"sessions": [{"processes": [{"pid": None}]}]}
    error = failure("agents", "list", "--socket", str(daemon.path))
    assert type(error) is AgentwatchError
    assert "is not understood" in error.message
