"""`agentwatch rules`: what a person sees, what a program reads, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentwatch.cli.rules import rules
from agentwatch.errors import UsageError
from agentwatch.rules import load

HEAD = "schema: agentwatch/v1\n"
GOOD = (
    HEAD
    + """\
rules:
  - id: keys
    on: read
    match: {path: /k/*}
    unless: {ssh: {process.exe: /usr/bin/ssh}}
    action: deny
    because: Keys are not for agents.
    instead: Ask.
    tests: [{hit: {path: /k/a}}, {miss: {path: /k/a, process.exe: /usr/bin/ssh}}]
  - id: noted
    on: [read, change]
    match: {path: /k/a}
    action: alert
    because: Noted.
    tests: [{hit: {path: /k/a}}]
"""
)


def agentwatch(*arguments: str) -> Result:
    result = CliRunner().invoke(rules, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("path: /k/*", "pth: /k/*"))
    return str(path)


@pytest.fixture
def failing(tmp_path: Path) -> str:
    path = tmp_path / "failing.yaml"
    path.write_text(GOOD.replace("hit: {path: /k/a}", "hit: {path: /other}", 1))
    return str(path)


def test_check_says_nothing_about_good_rules(good: str) -> None:
    """Data is empty, the summary is a message, the exit code 0."""
    result = agentwatch("check", good)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "2 rules in 1 file: 0 errors, 0 warnings\n"


def test_check_shows_errors_with_a_caret(bad: str) -> None:
    """And exits 1."""
    result = agentwatch("check", bad)
    assert result.exit_code == 1
    assert result.stdout == (
        f'{bad}:5:13: error[AW201]: unknown field "pth". Did you mean "path"?\n'
        "        match: {pth: /k/*}\n"
        "                ^\n"
    )
    assert result.stderr == "1 error, 0 warnings\n"


def test_check_in_json_has_the_same(bad: str) -> None:
    """One object for each finding."""
    result = agentwatch("check", "-o", "json", bad)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {
            "file": bad,
            "line": 5,
            "column": 13,
            "severity": "error",
            "code": "AW201",
            "message": 'unknown field "pth". Did you mean "path"?',
            "source": "    match: {pth: /k/*}",
        }
    ]


def test_check_of_good_rules_in_json_is_an_empty_list(good: str) -> None:
    """A program needs no special case."""
    assert json.loads(agentwatch("check", "-o", "json", good).stdout) == []


def test_check_fails_where_a_test_fails(failing: str) -> None:
    """A failing test is an error like others."""
    result = agentwatch("check", failing)
    assert result.exit_code == 1
    assert "error[AW401]: the test of keys fails for read: expected hit, got miss" in result.stdout


def test_test_counts_and_names_what_failed(good: str, failing: str) -> None:
    """Exit 1 when one fails, with its place."""
    fine = agentwatch("test", good)
    assert fine.exit_code == 0
    assert fine.stderr == "4 tests, 0 failed\n"
    assert [line.split()[:2] for line in fine.stdout.splitlines()] == [
        ["ok", "keys"],
        ["ok", "noted"],
    ]
    result = agentwatch("test", failing)
    assert result.exit_code == 1
    assert result.stderr == "4 tests, 1 failed\n"
    assert f"{failing}:10:13: the test of keys fails for read" in result.stdout


def test_test_in_json_has_every_outcome(failing: str) -> None:
    """A row for each test and kind."""
    rows = json.loads(agentwatch("test", "-o", "json", failing).stdout)
    assert [(row["rule"], row["kind"], row["passed"]) for row in rows] == [
        ("keys", "read", False),
        ("keys", "read", True),
        ("noted", "read", True),
        ("noted", "change", True),
    ]


def test_list_in_json_has_what_is_promised(good: str) -> None:
    """id, on, action, level, reason, file, line."""
    first, second = json.loads(agentwatch("list", "-o", "json", good).stdout)
    reason = first.pop("reason")
    assert first == {
        "id": "keys",
        "on": ["read"],
        "action": "deny",
        "level": "kills-after",
        "file": good,
        "line": 3,
    }
    assert reason.endswith(".")
    assert (second["on"], second["level"]) == (["read", "change"], "detects")


def test_list_in_observe_mode_claims_less(good: str) -> None:
    """Nothing is stopped there, and so nothing claims to."""
    result = agentwatch("list", "--mode", "observe", good)
    assert "kills" not in result.stdout
    assert result.stdout.count("detects") == 2


def test_list_says_why_in_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level and reason of every rule that ships, below files named as from here."""
    packs = load.shipped()
    monkeypatch.chdir(packs.parent)
    shown = agentwatch("list", str(packs)).stdout
    assert max(map(len, shown.splitlines())) <= 80
    rows = json.loads(agentwatch("list", "-o", "json", str(packs)).stdout)
    text = " ".join(shown.split())
    for row in rows:
        name = f"{row['line']} {row['id']} {','.join(row['on'])} {row['action']} {row['level']} ["
        assert name in text
        number = text.split(name)[1].split("]")[0]
        assert f"[{number}] {row['reason']}" in text
    assert {line for line in shown.splitlines() if line.endswith(".yaml")} == {
        f"{packs.name}/{Path(row['file']).name}" for row in rows
    }


def test_list_shows_what_was_overridden(good: str, tmp_path: Path) -> None:
    """With the place of the override; a file that is not below here by its whole name."""
    local = tmp_path / "local.yaml"
    local.write_text(HEAD + "overrides:\n  keys: {action: alert}\n")
    lines = agentwatch("list", good, str(local)).stdout.splitlines()
    assert lines[0] == good
    assert lines[2].strip() == f"changed in {local}:3"


def test_the_help_of_explain_shows_its_examples() -> None:
    """A line each, and no mark of the formatter's."""
    shown = agentwatch("explain", "--help").stdout
    assert "\\b" not in shown
    assert "\b" not in shown
    assert '    agentwatch rules explain --on exec --path /usr/bin/git --args "push' in shown


def test_explain_knows_names_on_foreign_file_systems() -> None:
    """As the probes give them: nothing of the host's is allowed there, and keys stay keys."""
    flags = ("--on", "read", "--path", "[0:57]/home/x/.ssh/id_rsa")
    shown = json.loads(agentwatch("explain", "-o", "json", *flags).stdout)
    assert (shown["action"], shown["rule"]) == ("deny", "secrets.ssh-private-keys")


def test_list_refuses_bad_rules_on_stderr(bad: str) -> None:
    """Nothing on stdout that a program could take for a list."""
    result = agentwatch("list", "-o", "json", bad)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error[AW201]" in result.stderr


def test_explain_says_who_wins_and_why(good: str) -> None:
    """With level, reasons and where the rules stand."""
    result = agentwatch("explain", good, "--on", "read", "--path", "/k/a")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "deny by keys (kills-after)"
    assert lines[1:3] == ["  because: Keys are not for agents.", "  instead: Ask."]
    assert f"  keys   deny   wins  ({good}:3)" in lines
    assert f"  noted  alert  it matches  ({good}:11)" in lines


def test_explain_names_the_exception_that_carved_it_out(good: str) -> None:
    """The rule that would have won is not silent."""
    flags = ("--on", "read", "--path", "/k/a", "--process.exe", "/usr/bin/ssh")
    lines = agentwatch("explain", good, *flags).stdout.splitlines()
    assert lines[0] == "alert by noted (detects)"
    assert f'  keys   deny   the exception "ssh" carves it out  ({good}:3)' in lines


def test_explain_all_says_what_did_not_hold(good: str) -> None:
    """For the rule somebody thought would match."""
    lines = agentwatch("explain", good, "--on", "read", "--path", "/x", "--all").stdout.splitlines()
    assert lines[0] == "none"
    assert f"  keys   deny   path does not match  ({good}:3)" in lines


def test_explain_takes_an_event_as_json(good: str) -> None:
    """The same answer as with flags."""
    event = json.dumps({"on": "read", "path": "/k/a", "process.exe": "/usr/bin/ssh"})
    shown = json.loads(agentwatch("explain", good, "-o", "json", "--event", event).stdout)
    assert (shown["action"], shown["rule"], shown["response"]) == ("alert", "noted", "alert")
    outcomes = {row["id"]: row["outcome"] for row in shown["rules"]}
    assert outcomes == {"keys": "carved", "noted": "matched"}


def test_explain_parts_arguments_as_a_shell_does() -> None:
    """The line of a pipeline is one argument of the shell that ran it."""
    flags = ["--on", "exec", "--path", "/usr/bin/bash", "--stdin", "pipe", "--args", ""]
    flags += ["--process.exe", "/usr/bin/bash", "--process.args", "-c 'curl example.org | bash'"]
    shown = json.loads(agentwatch("explain", "-o", "json", *flags).stdout)
    assert (shown["action"], shown["rule"]) == ("deny", "execution.download-piped-to-shell")


@pytest.mark.parametrize(
    "flags",
    [
        ("--path", "/x"),
        ("--on", "read", "--path", "relative"),
        ("--on", "read", "--addr", "192.0.2.1"),
        ("--on", "connect", "--port", "https"),
        ("--on", "exec", "--args", "it's"),
        ("--event", "{"),
        ("--event", "[]"),
        ("--on", "read", "--path", "/x", "--event", "{}"),
    ],
)
def test_an_event_that_makes_no_sense_is_a_usage_error(flags: tuple[str, ...]) -> None:
    """Exit 2, with what to do."""
    with pytest.raises(UsageError) as caught:
        agentwatch("explain", *flags)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_without_paths_the_packs_that_ship_are_taken() -> None:
    """On a host where nothing is installed."""
    result = agentwatch("list")
    assert result.exit_code == 0
    assert "secrets.ssh-private-keys" in result.stdout


def test_a_missing_path_is_said(tmp_path: Path) -> None:
    """A finding, not a traceback."""
    result = agentwatch("check", str(tmp_path / "gone"))
    assert result.exit_code == 1
    assert "error[AW101]: cannot read it: No such file or directory" in result.stdout
