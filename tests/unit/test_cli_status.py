"""`agentwatch status`, asked of a real control server with prepared answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwatch.cli.asking import DEFAULT_SOCKET, many
from agentwatch.cli.status import duration
from agentwatch.config.model import Config
from agentwatch.errors import AgentwatchError, NotRunningError, PermissionDenied
from tests.unit.played import Played, failure, played, run

NOW = time.time_ns()
HOUR = 3600 * 10**9
STATUS: dict[str, Any] = {
    "version": "9.8",
    "pid": 4711,
    "started_at": NOW - 2 * HOUR - 60 * 10**9,
    "mode": "enforce",
    "tier": "signal",
    "config": "/etc/agentwatch/agentwatch.yaml",
    "hooks": {"process_exec": True, "sys_exit": True},
    "rules": {
        "loaded": 44,
        "levels": {"detects": 13, "kills": 20, "kills-after": 9, "prevents": 2},
        "paths": ["/usr/share/agentwatch/rules", "/etc/agentwatch/rules.d"],
        "warnings": 2,
    },
    "generation": 7,
    "policy": {"kernel": True, "bytes": 2 << 20, "states": 12345, "engine": 11},
    "reloaded_at": NOW - HOUR,
    "reload_error": "",
    "losses": {"ring": 0, "scratch": 0},
    "journal": {
        "directory": "/var/log/agentwatch/daemon",
        "sequence": 123,
        "hash": b"\xab\xcd",
        "bytes": 5 << 20,
        "segments": 2,
        "failures": 0,
        "waiting": 0,
        "lost": 0,
    },
    "agents": [
        {"agent": "claude-code", "sessions": 2, "processes": 1014},
        {"agent": "codex", "sessions": 1, "processes": 1},
    ],
    "subscribers": 1,
    "connections": 3,
    "pins": {"directory": "/sys/fs/bpf/agentwatch/v4", "kept": True, "on_exit": "keep"},
    "problems": [],
}
BAD = STATUS | {
    "hooks": {"process_exec": True, "sys_exit": False},
    "reload_error": "2 errors in the rule files",
    "losses": {"ring": 1200, "scratch": 0},
    "journal": STATUS["journal"] | {"failures": 1, "waiting": 7, "lost": 3},
    "problems": ["the disk is full", "sys_exit\n\x1b[2J is not attached"],
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Played]:
    """All is well with it."""
    with played(tmp_path / "s", status=STATUS) as made:
        yield made


def shown(daemon: Played) -> list[str]:
    return run("status", "--socket", str(daemon.path)).stdout.splitlines()


def test_one_screen_says_what_is_watched_and_how(daemon: Played) -> None:
    """Mode, tier, agents, rules by level, hooks, losses, journal head, subscribers."""
    began = time.time_ns() - 2 * HOUR - 60 * 10**9
    daemon.answers["status"] = STATUS | {"started_at": began}
    lines = shown(daemon)
    assert "agentwatch 9.8 watches, pid 4711, started " in lines[0]
    assert lines[0].endswith("(2 h 1 min ago)")
    assert lines[1:9] == [
        "mode      enforce, signal tier",
        "agents    claude-code: 2 sessions, 1,014 processes",
        "          codex: 1 session, 1 process",
        "rules     44 rules: 2 prevents, 20 kills, 9 kills-after, 13 detects; 2 warnings",
        lines[5],
        "          the kernel decides 33, the engine 11; 2.0 MiB, 12,345 states",
        "          from /usr/share/agentwatch/rules",
        "          from /etc/agentwatch/rules.d",
    ]
    assert lines[5].startswith("          generation 7, loaded ")
    assert lines[9:] == [
        "hooks     2 of 2 attached",
        "lost      nothing",
        "journal   /var/log/agentwatch/daemon, 5.0 MiB in 2 segments",
        "          head 123:abcd",
        "pins      /sys/fs/bpf/agentwatch/v4: in force should the daemon die; "
        "a clean stop keeps them",
        "clients   3 connected, 1 of them following",
        "config    /etc/agentwatch/agentwatch.yaml",
    ]
    assert len(lines) <= 24


def test_what_only_observes_decides_nothing(daemon: Played) -> None:
    """The kernel picks what the engine looks at."""
    daemon.answers["status"] = STATUS | {"mode": "observe"}
    picks = "          the kernel picks the events of 33, the engine those of 11; "
    assert f"{picks}2.0 MiB, 12,345 states" in shown(daemon)


def test_problems_come_first_and_cannot_forge_lines(daemon: Played) -> None:
    """Each on a line of its own; what is lost, refused or missing is said where it belongs too."""
    daemon.answers["status"] = BAD
    lines = shown(daemon)
    assert lines[1:3] == [
        "PROBLEM   the disk is full",
        "PROBLEM   sys_exit\\n\\x1b[2J is not attached",
    ]
    assert "hooks     1 of 2 attached; not sys_exit" in lines
    assert "lost      1,200 ring" in lines
    assert "          the last reload was refused: 2 errors in the rule files" in lines
    assert "          1 write failed, 3 records lost, 7 bytes waiting" in lines


def test_nothing_at_work_is_said(daemon: Played) -> None:
    """An empty list is no empty screen."""
    daemon.answers["status"] = STATUS | {"agents": [], "config": ""}
    assert "agents    none at work" in shown(daemon)
    assert "config    none: defaults" in shown(daemon)


def test_json_is_the_answer_as_one_object_on_one_line(daemon: Played) -> None:
    """Every value of the protocol, the hash as text; names that are no UTF-8 are valid JSON."""
    daemon.answers["status"] = STATUS | {"config": "/etc/\udcff"}
    (line,) = run("status", "--socket", str(daemon.path), "-o", "json").stdout.splitlines()
    journal = STATUS["journal"] | {"hash": "abcd"}
    assert json.loads(line) == STATUS | {"journal": journal, "config": "/etc/\\xff"}
    assert line.isascii()


def test_without_a_daemon_the_exit_code_is_3(tmp_path: Path) -> None:
    """And it says how to start one."""
    command = [sys.executable, "-m", "agentwatch", "status", f"--socket={tmp_path / 'none'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"agentwatch: no daemon listens at {tmp_path / 'none'}\n")
    assert "agentwatch daemon" in done.stderr


def test_the_socket_may_come_from_the_environment(
    daemon: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AGENTWATCH_SOCKET; the option goes before it."""
    monkeypatch.setenv("AGENTWATCH_SOCKET", str(daemon.path))
    assert "pid 4711" in run("status").stdout
    assert isinstance(failure("status", "--socket", f"{daemon.path}-none"), NotRunningError)


def test_the_default_socket_is_the_daemons() -> None:
    """Both sides know it without a configuration."""
    assert Config().socket == DEFAULT_SOCKET


def test_what_the_daemon_refuses_is_its_own_error(daemon: Played) -> None:
    """A tagged process, with the daemon's words and exit code."""
    daemon.answers["status"] = PermissionDenied("a tagged process may ask why", "agentwatch why")
    error = failure("status", "--socket", str(daemon.path))
    assert (error.message, error.remedy) == ("a tagged process may ask why", "agentwatch why")
    assert error.exit_code == 4


def test_the_answer_of_another_version_is_shown_as_far_as_it_goes(daemon: Played) -> None:
    """What it lacks has a default, what is new is left out."""
    daemon.answers["status"] = {"version": "10", "pid": 1, "started_at": NOW, "novel": {"a": 1}}
    assert "agentwatch 10 watches, pid 1" in shown(daemon)[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": "x"},
        {"agents": {}},
        {"agents": [3]},
        {"losses": []},
        {"losses": {"a": "b"}},
        {"journal": "j"},
        {"problems": [1]},
    ],
)
def test_an_answer_of_another_shape_is_an_error(daemon: Played, wrong: dict[str, Any]) -> None:
    """Not a traceback, and no half of a screen."""
    daemon.answers["status"] = STATUS | wrong
    error = failure("status", "--socket", str(daemon.path))
    assert type(error) is AgentwatchError
    assert "is not understood" in error.message
    assert "restart" in error.remedy


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (90000, "1 d 1 h"),
        (86400 * 400, "400 d"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: int, text: str) -> None:
    """The largest that are not zero."""
    assert duration(seconds) == text


def test_words_are_counted() -> None:
    """One process, two processes."""
    assert [many(n, "process") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
