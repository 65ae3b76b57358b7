"""What files mean together: lists, homes, defaults, overrides, and where they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwatch import admission
from agentwatch.engine import Engine
from agentwatch.policy import levels, patterns
from agentwatch.rules import load, sample
from agentwatch.rules.homes import select
from agentwatch.rules.model import Condition, Count, Default, Rule, Ruleset

HEAD = "schema: agentwatch/v1\n"
AGENT = "agents: [{id: stub, exec: '**/bin/stub', own: '~/.stub/**'}]\n"


def read(tmp_path: Path, *texts: str, homes: tuple[str, ...] = ("/home/dev",)) -> Ruleset:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(HEAD + text)
    return load.load([tmp_path], homes=homes, patterns=patterns)


def one_rule(match: str, on: str = "read", more: str = "") -> str:
    return (
        f"rules:\n  - id: a\n    on: {on}\n    match: {match}\n    action: alert\n    because: b\n"
        + more
    )


def only(ruleset: Ruleset) -> Rule:
    (rule,) = ruleset.rules
    return rule


def condition(ruleset: Ruleset) -> Condition:
    (found,) = only(ruleset).match.conditions
    return found


def said(ruleset: Ruleset, path: str) -> bool:
    """Whether any rule matches a reading of the file."""
    (made,) = sample.samples("read", {"path": path}, (), None)
    return bool(Engine(ruleset).judge(made.event, made.actor).matches)


def test_on_is_text_and_not_a_truth_value(tmp_path: Path) -> None:
    """YAML 1.1 would make `on:` a key named True."""
    assert only(read(tmp_path, one_rule("{path: /x}", "[read, change]"))).on == ("read", "change")


def test_a_list_stands_for_its_values_across_files(tmp_path: Path) -> None:
    """Lists may stand inside lists, in any file and any order."""
    ruleset = read(
        tmp_path,
        one_rule("{path: [$keys, /own]}"),
        "lists: {keys: [/a, $more], more: [/b]}\n",
    )
    assert condition(ruleset).values == ("/a", "/b", "/own")
    assert ruleset.lists["keys"] == ("/a", "/b")


def test_a_tilde_is_every_home(tmp_path: Path) -> None:
    """`~` is written out once for each home, special characters of its name taken literally."""
    ruleset = read(
        tmp_path, AGENT + one_rule('{path: "~/.aws/**"}'), homes=("/root", "/home/we[i]rd")
    )
    assert condition(ruleset).values == ("~/.aws/**",)
    assert ruleset.homes == ("/root", "/home/we[i]rd")
    for home in ruleset.homes:
        assert said(ruleset, f"{home}/.aws/x")
    for path in ("/home/wei/.aws/x", "/root/x/.aws/y", "/root.aws/x", "~/.aws/x"):
        assert not said(ruleset, path)
    assert ruleset.agents[0].own == ("/root/.stub/**", r"/home/we\[i\]rd/.stub/**")


def test_a_tilde_in_literal_text_is_not_escaped(tmp_path: Path) -> None:
    """|startswith takes its text literally, and so the home's name too."""
    ruleset = read(tmp_path, one_rule("{path|startswith: ~/.a}"), homes=("/home/a[b",))
    assert said(ruleset, "/home/a[b/.a/x")
    assert said(ruleset, "/home/a[b/.aws")
    assert not said(ruleset, "/home/ab/.a")


def test_own_and_project_are_left_to_the_engine(tmp_path: Path) -> None:
    """They depend on the event."""
    ruleset = read(tmp_path, one_rule('{path: ["$project/**", $own]}'))
    assert condition(ruleset).values == ("$project/**", "$own")


def test_homes_that_nobody_lives_in_are_left_out() -> None:
    """`~/**` never means /dev, / or the whole of /usr/sbin."""
    found = select(["/root", "/", "/dev", "/usr/sbin", "/nonexistent", "", "/srv/app/", "/root"])
    assert found == ("/root", "/srv/app")


def test_argv_as_a_list_is_one_exact_pattern(tmp_path: Path) -> None:
    """Tokens, not alternatives; with |has they are alternatives."""
    exact = condition(read(tmp_path, one_rule("{args: [push, -f, push]}", "exec")))
    assert (exact.sequence, exact.values) == (True, ("push", "-f", "push"))
    some = condition(read(tmp_path, one_rule("{args|has: [push, -f]}", "exec")))
    assert (some.sequence, some.modifiers) == (False, {"has"})


def test_the_strictest_default_of_all_files_wins(tmp_path: Path) -> None:
    """A second file never loosens the first."""
    ruleset = read(
        tmp_path,
        AGENT + "defaults: {stub: {change: deny, connect: alert}}\n",
        "defaults: {stub: {change: alert, connect: kill}}\n",
    )
    assert {(d.kind, d.action) for d in ruleset.defaults} == {
        ("change", "deny"),
        ("connect", "kill"),
    }
    assert all(isinstance(d, Default) and d.agent == "stub" for d in ruleset.defaults)


def test_an_override_changes_a_rule_and_says_where(tmp_path: Path) -> None:
    """Action and exceptions of a vendor's rule are a local matter."""
    local = "overrides:\n  a: {action: deny, unless: {mine: {path: /x/mine}}}\n"
    changed = only(read(tmp_path, one_rule("{path: [/x, /x/mine]}"), local))
    assert changed.action == "deny"
    assert [name for name, _ in changed.unless] == ["mine"]
    assert changed.overridden is not None
    assert (Path(changed.overridden.file).name, changed.overridden.line) == ("1.yaml", 3)


def test_an_override_disables_a_rule(tmp_path: Path) -> None:
    """A disabled rule is not in force, and who disabled it is known."""
    ruleset = read(tmp_path, one_rule("{path: /x}"), "overrides: {a: {enabled: false}}\n")
    assert ruleset.rules == ()
    (disabled,) = ruleset.disabled
    assert disabled.overridden is not None
    assert Path(disabled.overridden.file).name == "1.yaml"


def test_an_override_does_not_fail_the_tests_of_its_rule(tmp_path: Path) -> None:
    """hit and miss are about the rule as it was written."""
    tested = one_rule("{path: /x}", more="    tests: [{hit: {path: /x}}]\n")
    (tmp_path / "a.yaml").write_text(HEAD + tested)
    local = "overrides: {a: {unless: {mine: {path: /x, process.uid: 7}}}}\n"
    (tmp_path / "b.yaml").write_text(HEAD + local)
    assert len(only(admission.load([tmp_path], homes=())).unless) == 1


def test_a_rule_has_everything_its_file_says(tmp_path: Path) -> None:
    """No key is read and then lost."""
    text = AGENT + one_rule(
        "{path: /x}",
        more="""\
    title: T
    agents: stub
    unless: {u: {process.exe: /y}}
    without_hook: alert
    severity: low
    instead: i
    false_positives: f
    tags: [t1, t2]
    tests: [{miss: {path: /z}, on: read}, {event: {path: /x, agent: stub}, verdict: alert}]
""",
    )
    rule = only(read(tmp_path, text))
    assert (rule.title, rule.agents, rule.without_hook, rule.severity, rule.because) == (
        "T",
        ("stub",),
        "alert",
        "low",
        "b",
    )
    assert (rule.instead, rule.false_positives, rule.tags) == ("i", "f", ("t1", "t2"))
    assert [(t.expect, t.verdict, t.on) for t in rule.trials] == [
        ("miss", "", ("read",)),
        ("verdict", "alert", ()),
    ]
    assert (rule.place.line, rule.place.column) == (4, 9)


def test_a_file_of_comments_only_is_fine(tmp_path: Path) -> None:
    """Packages leave templates in rules.d."""
    (tmp_path / "local.yaml").write_text("# put your rules here\n")
    assert load.load([tmp_path], homes=(), patterns=patterns).rules == ()


def test_directories_are_read_by_suffix_and_files_as_given(tmp_path: Path) -> None:
    """Editors' leftovers in a directory are not rules; a file that was named is."""
    read(tmp_path, one_rule("{path: /x}"))
    (tmp_path / "0.yaml~").write_text("broken: [")
    named = tmp_path / "more.rules"
    named.write_text(HEAD + "lists: {l: [/x]}\n")
    ruleset = load.load([tmp_path, named, named], homes=(), patterns=patterns)
    assert [Path(file).name for file in ruleset.files] == ["0.yaml", "more.rules"]


def test_the_installed_rules_come_before_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without either directory the packs beside the package are used."""
    monkeypatch.setattr(load, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(load, "LOCAL", tmp_path / "local")
    assert load.default_paths() == (load.shipped(),)
    (tmp_path / "local").mkdir()
    (tmp_path / "vendor").mkdir()
    assert load.default_paths() == (load.shipped(),)
    (tmp_path / "local" / "x.yaml").write_text(HEAD)
    assert load.default_paths() == (tmp_path / "local",)


def test_a_rule_may_count_and_end_its_session(tmp_path: Path) -> None:
    """`count`, `scope` and `mode` come through as the file has them."""
    more = "    count: {over: 50, within: 10s, by: process, distinct: path}\n    mode: observe\n"
    text = one_rule("{path: /x}", more=more + "    scope: session\n")
    rule = only(read(tmp_path, text.replace("action: alert", "action: kill")))
    assert rule.count == Count(50, 10_000_000_000, "process", "path")
    assert (rule.mode, rule.scope, rule.without_hook) == ("observe", "session", "")


def test_what_no_probe_reports_yet_loads_and_is_tested(tmp_path: Path) -> None:
    """Kinds and fields without a probe: the rule loads, its level says none."""
    for on, match, test in (
        ("listen", "{port: '8000-8999'}", "{port: 8080}"),
        ("connect", "{host: '*.example.com'}", "{host: a.EXAMPLE.com}"),
        ("connect", "{host: none}", "{host: none}"),
        ("ptrace", "{peer: other}", "{peer: other}"),
        (
            "signal",
            "{signal: USR1, target.exe: '**/node'}",
            "{signal: USR1, target.exe: /bin/node}",
        ),
    ):
        more = f"    tests: [{{hit: {test}}}, {{miss: {{process.exe: /x}}}}]\n"
        path = tmp_path / "r.yaml"
        path.write_text(HEAD + one_rule(match, on, more))
        (rule,) = admission.load([path], homes=()).rules
        found = levels.level(rule, levels.Host())
        assert (found.name, "no probe yet" in found.reason) == ("none", True), found


def test_a_rule_may_ship_disabled_and_be_enabled(tmp_path: Path) -> None:
    """`enabled: false` keeps a rule out until an override lets it in."""
    asleep = one_rule("{path: /x}", more="    enabled: false\n")
    assert [r.id for r in read(tmp_path, asleep).disabled] == ["a"]
    awake = read(tmp_path, asleep, "overrides: {a: {enabled: true, mode: observe}}\n")
    assert (only(awake).enabled, only(awake).mode, awake.disabled) == (True, "observe", ())
