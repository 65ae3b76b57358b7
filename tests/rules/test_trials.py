"""Tests inside rules: they judge what they say they judge, and cannot pass by accident."""

from __future__ import annotations

from pathlib import Path

from agentwatch.admission import Outcome, run_trials
from agentwatch.policy import patterns
from agentwatch.rules.load import read_rules

HEAD = "schema: agentwatch/v1\nagents: [{id: stub, exec: '**/bin/stub', own: '~/.stub/**'}]\n"


def outcomes(tmp_path: Path, text: str) -> tuple[Outcome, ...]:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + text)
    return run_trials(read_rules([path], patterns))


def rule(match: str, test: str, on: str = "read", action: str = "deny", more: str = "") -> str:
    return (
        f"rules:\n  - id: a\n    on: {on}\n    match: {match}\n    action: {action}\n"
        f"    because: b\n    tests: [{test}]\n{more}"
    )


def passed(tmp_path: Path, match: str, test: str, on: str = "read") -> bool:
    return all(outcome.passed for outcome in outcomes(tmp_path, rule(match, test, on)))


def test_omitted_fields_match_nothing(tmp_path: Path) -> None:
    """A hit needs every field that its rule asks for."""
    match = '{path: /x, process.exe: "/**", process.uid: 0}'
    assert not passed(tmp_path, match, "{hit: {path: /x}}")
    assert not passed(tmp_path, match, "{hit: {path: /x, process.exe: /y}}")
    assert passed(tmp_path, match, "{hit: {path: /x, process.exe: /y, process.uid: 0}}")


def test_omitted_fields_of_a_connection_match_nothing(tmp_path: Path) -> None:
    """Nor does a port without an address, or an address without a port."""
    match = "{addr|cidr: 10.0.0.0/8, port: 1-65535}"
    match = match.replace("1-65535", '"1-65535"')
    assert not passed(tmp_path, match, "{hit: {addr: 10.1.1.1}}", "connect")
    assert not passed(tmp_path, match, "{hit: {port: 80}}", "connect")
    assert passed(tmp_path, match, "{hit: {addr: 10.1.1.1, port: 80}}", "connect")


def test_omitted_arguments_match_nothing(tmp_path: Path) -> None:
    """Arguments that were not given are not an empty row of them."""
    assert not passed(tmp_path, "{argc: 1}", "{hit: {path: /x}}", "exec")
    assert passed(tmp_path, "{argc: 1}", "{hit: {args: []}}", "exec")


def test_a_test_runs_for_every_kind_of_its_rule(tmp_path: Path) -> None:
    """Without `on:`; with it, for those kinds only."""
    text = rule("{path: /x}", "{hit: {path: /x}}, {hit: {path: /x}, on: change}", "[read, change]")
    assert [(o.kind, o.passed) for o in outcomes(tmp_path, text)] == [
        ("read", True),
        ("change", True),
        ("change", True),
    ]


def test_opening_is_reading_and_writing(tmp_path: Path) -> None:
    """A test of an `open` rule that says no access must hold for both."""
    assert passed(tmp_path, "{path: /x}", "{hit: {path: /x}}", "open")
    assert not passed(tmp_path, "{path: /x, access: write}", "{hit: {path: /x}}", "open")
    assert passed(tmp_path, "{path: /x, access: write}", "{hit: {path: /x, access: write}}", "open")


def test_the_passwd_of_tests_is_their_own(tmp_path: Path) -> None:
    """root and dev live there whatever the host's passwd says, and $project is dev's."""
    assert passed(tmp_path, "{path: ~/.k}", "{hit: {path: /home/dev/.k}}, {hit: {path: /root/.k}}")
    assert passed(tmp_path, "{path: ~/.k}", "{miss: {path: /home/other/.k}}")
    assert passed(tmp_path, '{path: "$project/**"}', "{hit: {path: /home/dev/project/a}}")


def test_own_is_that_of_the_agent_named(tmp_path: Path) -> None:
    """Without an agent, $own covers nothing."""
    hit, miss = "{hit: {agent: stub, path: /root/.stub/a}}", "{miss: {path: /root/.stub/a}}"
    assert passed(tmp_path, "{path: $own}", f"{hit}, {miss}")


def test_a_script_stands_before_its_arguments(tmp_path: Path) -> None:
    """As the kernel puts it there: a rule that forgets it is not tested green."""
    given = "{path: /usr/bin/node, script: /usr/bin/npm, args: [ci]}"
    assert not passed(tmp_path, "{script: '**/npm', args: [ci]}", f"{{hit: {given}}}", "exec")
    assert passed(tmp_path, "{script: '**/npm', args: '*/npm ci'}", f"{{hit: {given}}}", "exec")
    whole = given.replace("[ci]", "[node, /usr/bin/npm, ci]")
    assert passed(tmp_path, "{args: 'node */npm ci'}", f"{{hit: {whole}}}", "exec")
    by = "{path: /x, parent.script: /usr/bin/npm, parent.args: [ci]}"
    assert passed(tmp_path, "{parent.args: '*/npm ci'}", f"{{hit: {by}}}", "exec")


def test_the_root_is_a_path_like_others(tmp_path: Path) -> None:
    """`/` alone is exactly that directory."""
    assert passed(tmp_path, "{path: /}", "{hit: {path: /}}, {miss: {path: /x}}")
    assert passed(tmp_path, "{cwd: /}", "{hit: {cwd: /}}, {miss: {cwd: /x}}", "exec")


def test_a_deny_of_everything_may_spare_some(tmp_path: Path) -> None:
    """An allow-list in one rule."""
    more = '    unless: {tmp: {path: "/tmp/**"}}\n'
    tests = "{hit: {path: /etc/x}}, {miss: {path: /tmp/x}}"
    text = rule('{path: "/**"}', tests, on="change", more=more)
    assert all(outcome.passed for outcome in outcomes(tmp_path, text))
    networks = '{addr|cidr: ["0.0.0.0/0", "::/0"]}'
    more = "    unless: {lo: {addr|cidr: [127.0.0.0/8, '::1/128']}}\n"
    tests = "{hit: {addr: 192.0.2.1}}, {miss: {addr: 127.0.0.53}}, {miss: {unix: /run/x}}"
    text = rule(networks, tests, on="listen", more=more)
    assert all(outcome.passed for outcome in outcomes(tmp_path, text))


def test_a_default_for_all_holds_whatever_the_agent(tmp_path: Path) -> None:
    """Of an agent the stricter of the two; without an agent, too."""
    text = rule(
        "{path: /tmp/x}",
        "{event: {path: /x}, verdict: deny}, {event: {path: /tmp/x}, verdict: allow},"
        " {event: {agent: stub, path: /x}, verdict: kill}",
        on="change",
        action="allow",
        more="defaults: {all: {change: deny}, stub: {change: kill}}\n",
    )
    assert [outcome.got for outcome in outcomes(tmp_path, text)] == ["deny", "allow", "kill"]


def test_a_hit_that_is_carved_out_says_by_what(tmp_path: Path) -> None:
    """The message of a failing test is enough to mend it."""
    test = ["{hit: {path: /x, process.exe: /ssh}}", "    unless: {ssh: {process.exe: /ssh}}"]
    text = rule("{path: /x}", test[0], more=test[1] + "\n")
    (outcome,) = outcomes(tmp_path, text)
    assert (outcome.passed, outcome.why) == (False, '; the exception "ssh" carves it out')


def test_a_list_of_arguments_that_was_meant_as_alternatives(tmp_path: Path) -> None:
    """In a match or an exception, the message says what a list of them is."""
    (outcome,) = outcomes(tmp_path, rule("{args: [-v, -h]}", "{hit: {args: [-v]}}", "exec"))
    hint = "(a list is one row of tokens; for some one of them, |has)"
    assert outcome.why == f"; args does not match {hint}"
    more = "    unless: {asks: {args: [-v, -h]}}\n"
    (outcome,) = outcomes(tmp_path, rule("{path: /x}", "{miss: {path: /x}}", "exec", more=more))
    assert outcome.why == f'; it matches; of the exception "asks": args {hint}'
    (outcome,) = outcomes(tmp_path, rule("{args: -v}", "{hit: {args: [-h]}}", "exec"))
    assert outcome.why == "; args does not match"


def test_hit_judges_the_rule_alone_and_verdict_all_of_them(tmp_path: Path) -> None:
    """A stricter rule takes the verdict and not the hit."""
    text = rule(
        "{path: /x}",
        "{hit: {path: /x}}, {event: {path: /x}, verdict: kill}, {event: {path: /y}, verdict: none}",
        action="alert",
        more="  - {id: b, on: read, match: {path: /x}, action: kill, because: b}\n",
    )
    assert [(o.got, o.passed) for o in outcomes(tmp_path, text)] == [
        ("hit", True),
        ("kill", True),
        ("none", True),
    ]


def test_a_verdict_may_come_from_a_default(tmp_path: Path) -> None:
    """Defaults and the allow rules that make holes in them are tested together."""
    text = rule(
        '{path: "$project/**"}',
        "{event: {agent: stub, path: /home/dev/project/a}, verdict: allow},"
        " {event: {agent: stub, path: /x}, verdict: deny}",
        on="change",
        action="allow",
        more="defaults: {stub: {change: deny}}\n",
    )
    assert [outcome.got for outcome in outcomes(tmp_path, text)] == ["allow", "deny"]
