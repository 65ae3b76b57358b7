"""The decision - precedence, responses, defaults, and what its reader and people ask of it."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace

import pytest

from agentwatch import abi
from agentwatch.compiling import compile_for
from agentwatch.engine import NO_VERDICT, Hit
from agentwatch.errors import AgentwatchError
from agentwatch.events import Change, ProcessKey
from agentwatch.lineage import Image
from agentwatch.policy.levels import Host
from agentwatch.policy.readers import kinds_of
from agentwatch.rules.model import Condition, Default, Match, Rule
from tests.unit.small import (
    CLOSED,
    HERE,
    KEY,
    actor,
    connected,
    engine,
    match,
    opened,
    ran,
    rule,
)


@pytest.mark.parametrize("order", list(itertools.permutations(["kill", "deny", "alert", "allow"])))
def test_the_strictest_rule_wins_in_any_order(order: tuple[str, ...]) -> None:
    """kill > deny > alert > allow, wherever in the files they stand; all that matched are named."""
    rules = [rule(action, path="/x") for action in order]
    for strictest in ("kill", "deny", "alert", "allow"):
        verdict = engine(*rules).judge(opened("/x"), actor())
        assert verdict.action == strictest
        assert verdict.rule == f"{strictest}.read"
        assert {hit.action for hit in verdict.matches} == {r.action for r in rules}
        rules = [r for r in rules if r.action != strictest]


def test_of_equals_the_more_severe_rule_wins() -> None:
    """Severity decides between two denials, then the id, and never the order."""
    low = replace(rule("deny", name="a", path="/x"), severity="low")
    high = replace(rule("deny", name="b", path="/x"), severity="high", because="B", instead="C")
    for rules in ((low, high), (high, low)):
        verdict = engine(*rules).judge(opened("/x"), actor())
        assert (verdict.rule, verdict.severity, verdict.because, verdict.instead) == (
            "b",
            "high",
            "B",
            "C",
        )


def test_nothing_said_is_no_verdict() -> None:
    """An event that no rule matches gets the one shared verdict."""
    assert engine(rule("deny", path="/x")).judge(opened("/y"), actor()) is NO_VERDICT
    assert engine().judge(opened("/y"), actor()) is NO_VERDICT


def test_an_exception_carves_out_of_its_own_rule_only() -> None:
    """`unless` of one rule does not help against another, and any one of several is enough."""
    carved = replace(
        rule("deny", name="a", path="/x/**"),
        unless=(
            ("one", match(path="/x/1")),
            ("two", match(path="/x/2", process__exe="/usr/bin/node")),
        ),
    )
    other = rule("alert", name="b", path="/x/1")
    judge = engine(carved, other).judge
    assert judge(opened("/x/1"), actor()).rule == "b"
    assert judge(opened("/x/2"), actor()) is NO_VERDICT
    assert judge(opened("/x/2"), actor(image=Image("/bin/cat"))).rule == "a"
    assert judge(opened("/x/3"), actor()).rule == "a"


def test_an_exception_without_conditions_carves_nothing() -> None:
    """An empty exception is a mistake and not a way to switch a rule off."""
    asked = replace(rule("deny", path="/x"), unless=(("empty", Match(())),))
    assert engine(asked).judge(opened("/x"), actor()).action == "deny"


def test_values_are_alternatives_and_keys_must_all_hold() -> None:
    """A list is OR, several keys are AND."""
    judge = engine(rule("deny", path=("/a", "/b"), process__exe="/usr/bin/node")).judge
    assert judge(opened("/b"), actor()).action == "deny"
    assert judge(opened("/b"), actor(image=Image("/bin/cat"))) is NO_VERDICT


@pytest.mark.parametrize(
    ("action", "without_hook", "mode", "response", "level"),
    [
        ("kill", "kill", "enforce", "kill", "kills-after"),
        ("deny", "kill", "enforce", "kill", "kills-after"),
        ("deny", "alert", "enforce", "alert", "detects"),
        ("alert", "kill", "enforce", "alert", "detects"),
        ("allow", "kill", "enforce", "none", ""),
        ("kill", "kill", "observe", "alert", "detects"),
        ("deny", "kill", "observe", "alert", "detects"),
    ],
)
def test_the_response_is_what_can_be_done_here(
    action: str, without_hook: str, mode: str, response: str, level: str
) -> None:
    """A deny is answered as without_hook says; observing never does more than alert."""
    asked = replace(rule(action, path="/x"), without_hook=without_hook)
    verdict = engine(asked, mode=mode).judge(opened("/x"), actor())
    assert (verdict.action, verdict.response, verdict.level) == (action, response, level)


def test_allow_makes_a_hole_in_a_default_and_in_nothing_else() -> None:
    """A default holds until an allow rule of the kind matches; a deny rule is not impressed."""
    allow = rule("allow", on="change", path="/tmp/**")
    deny = rule("deny", on="change", path="/tmp/x")
    judge = engine(allow, deny, defaults=CLOSED).judge
    writing = {"reads": False, "changes": True}
    closed = judge(opened("/etc/passwd", **writing), actor())
    assert (closed.action, closed.default, closed.rule, closed.response) == (
        "deny",
        True,
        None,
        "kill",
    )
    assert "codex" in closed.because
    assert judge(opened("/tmp/y", **writing), actor()).action == "allow"
    assert judge(opened("/tmp/x", **writing), actor()).rule == "deny.change"
    assert judge(opened("/etc/passwd"), actor()) is NO_VERDICT
    assert judge(opened("/etc/passwd", **writing), actor("claude")) is NO_VERDICT


def test_an_alert_does_not_weaken_a_default() -> None:
    """The default's deny is stricter than the alert that matched too, which stays in the record."""
    verdict = engine(rule("alert", on="change", path="/**"), defaults=CLOSED).judge(
        opened("/etc/passwd", changes=True), actor()
    )
    assert (verdict.action, verdict.default) == ("deny", True)
    assert verdict.matches == (Hit("alert.change", "alert", "codex"),)


def test_the_strictest_default_of_all_files_wins() -> None:
    """Two files that disagree about a kind do not cancel each other."""
    for order in itertools.permutations(["alert", "kill", "deny"]):
        defaults = tuple(Default("codex", "connect", action, HERE) for action in order)
        assert engine(defaults=defaults).judge(connected("192.0.2.1", 80), actor()).action == "kill"


def test_a_default_for_all_that_the_kernel_decides_names_no_agent() -> None:
    """`all` is none: it is this session that nothing allows it."""
    judge = engine(defaults=(Default("all", "connect", "deny", HERE),))
    compile_for(judge, Host(cgroup=True), room=1 << 20)
    event = connected("192.0.2.1", 80, rule=1, verdict=abi.VERDICT_DENY, result=-errno.EPERM)
    verdict = judge.of_kernel(event)
    assert (verdict.level, verdict.default) == ("prevents", True)
    assert verdict.because == "No rule allows this session to connect there."


def test_a_default_for_all_is_for_every_session() -> None:
    """Known agents, unknown ones and none; an agent's own is added, and the stricter one wins."""
    defaults = (Default("all", "change", "deny", HERE), Default("codex", "change", "alert", HERE))
    judge = engine(defaults=defaults).judge
    event = opened("/x", False, True)
    for who in (("codex",), ("claude",), ("claude", "codex"), ()):
        verdict = judge(event, replace(actor(), agents=who))
        assert (verdict.action, verdict.default) == ("deny", True)
    assert verdict.because == "No rule allows this session to change this file."


def test_the_exec_that_begins_a_session_has_no_caller() -> None:
    """Whoever started it was not watched: that is none, and not what could not be read."""
    asking = {
        "process.exe": "/**",
        "process.args": "**",
        "process.cwd": "/**",
        "process.role": "child",
        "process.uid": "1000",
        "parent.exe": "/**",
        "ancestor.exe": "/**",
    }
    begins = ran("/home/dev/.local/bin/codex", "codex")
    outside = actor(image=None, ancestors=())
    for name, value in asking.items():
        conditions = Match((Condition(name, (value,), frozenset(), HERE),))
        judge = engine(Rule("r", ("exec",), conditions, "kill", HERE)).judge
        assert judge(begins, outside) is NO_VERDICT, name
    lost = replace(begins, process=ProcessKey(8, 800))
    assert engine(rule("kill", "exec", process__exe="/**")).judge(lost, outside).rule == "kill.exec"
    assert engine(rule("kill", "exec", path="**/codex")).judge(begins, outside).rule == "kill.exec"


def test_opening_for_both_needs_a_hole_in_both_defaults() -> None:
    """An O_RDWR open is reading and changing; an allow rule on `open` covers both."""
    both = tuple(Default("codex", kind, "deny", HERE) for kind in ("read", "change"))
    event = opened("/x", reads=True, changes=True)
    assert engine(rule("allow", on="read", path="/x"), defaults=both).judge(event, actor()).default
    for on in ("read change", "open"):
        verdict = engine(rule("allow", on=on, path="/x"), defaults=both).judge(event, actor())
        assert verdict.action == "allow"


def test_a_default_on_open_has_the_holes_of_what_is_opened() -> None:
    """What may be read may be opened for reading, and not for changing."""
    defaults = (Default("codex", "open", "deny", HERE),)
    judge = engine(rule("allow", on="read", path="/x"), defaults=defaults).judge
    assert judge(opened("/x"), actor()).action == "allow"
    assert judge(opened("/x", changes=True), actor()).action == "deny"
    assert judge(opened("/x", reads=False), actor()).action == "deny"


def test_rules_for_agents_apply_to_these_agents() -> None:
    """A rule with agents is nothing to others; one without is for all and for sessions of none."""
    only = replace(rule("deny", name="only", path="/x"), agents=("codex",))
    judge = engine(only, rule("alert", name="all", path="/x")).judge
    assert judge(opened("/x"), actor("codex")).rule == "only"
    assert judge(opened("/x"), actor("claude")).rule == "all"
    assert judge(opened("/x"), replace(actor(), agents=())).rule == "all"


def test_an_agent_started_by_an_agent_loosens_nothing() -> None:
    """The second agent's allow rules, exceptions and own files do not help the first."""
    allow = replace(rule("allow", name="claude-may", on="change", path="/x"), agents=("claude",))
    own = rule("allow", name="own", on="change", path="$own")
    settings = replace(
        rule("kill", name="mine", path="/home/*/.claude/**"), unless=(("own", match(path="$own")),)
    )
    judge = engine(allow, own, settings, defaults=CLOSED).judge
    for agents in (("codex", "claude"), ("claude", "codex")):
        assert judge(opened("/x", changes=True), actor(*agents)).action == "deny"
        assert judge(opened("/home/dev/.claude/s", changes=True), actor(*agents)).action == "kill"
        assert judge(opened("/home/dev/.codex/s", changes=True), actor(*agents)).action == "allow"
    assert judge(opened("/home/dev/.claude/s"), actor("claude")) is NO_VERDICT


def test_matches_name_the_agent_they_are_for() -> None:
    """With two agents every match is there once for each."""
    verdict = engine(rule("alert", path="/x")).judge(opened("/x"), actor("codex", "claude"))
    assert verdict.matches == (
        Hit("alert.read", "alert", "codex"),
        Hit("alert.read", "alert", "claude"),
    )


def test_kinds_are_the_records_that_rules_are_about() -> None:
    """Rules and defaults name the records to decode, those that can kill the ones to wake for."""
    asked = engine(rule("alert", on="read", path="/x"), rule("deny", on="exec", path="/x"))
    assert asked.kinds == {abi.OPEN, abi.EXEC}
    assert asked.acting_kinds == {abi.EXEC}
    closed = engine(defaults=(Default("codex", "connect", "deny", HERE),))
    assert closed.kinds == closed.acting_kinds == {abi.CONNECT, abi.SYN}
    assert engine(rule("kill", path="/x"), mode="observe").acting_kinds == frozenset()
    alert_only = replace(rule("deny", path="/x"), without_hook="alert")
    assert engine(alert_only).acting_kinds == frozenset()


def test_explain_says_what_became_of_every_rule() -> None:
    """Each rule of the kind: matched, which condition failed, which exception, or whose it is."""
    rules = (
        rule("deny", name="hit", path="/x"),
        rule("deny", name="path", path="/y", process__exe="/z"),
        rule("kill", name="exe", path="/x", process__exe="/z"),
        replace(
            rule("kill", name="carved", path="/x"),
            unless=(("node", match(process__exe="**/node")),),
        ),
        replace(rule("kill", name="theirs", path="/x"), agents=("claude",)),
        rule("kill", on="exec", name="exec", path="/x"),
    )
    explained = engine(*rules).explain(opened("/x"), actor())
    told = {trace.rule.id: trace for trace in explained.rules}
    assert explained.verdict.rule == "hit"
    assert explained.kinds == ("open", "read")
    assert {name: trace.outcome for name, trace in told.items()} == {
        "hit": "matched",
        "path": "failed",
        "exe": "failed",
        "carved": "carved",
        "theirs": "other-agent",
    }
    assert told["carved"].unless == "node"
    failing = [told[name].failed for name in ("path", "exe")]
    assert [condition.field for condition in failing if condition] == ["path", "process.exe"]


def test_a_rule_that_cannot_be_judged_is_refused() -> None:
    """What the engine does not understand is an error, not a rule that sleeps."""
    for wrong in ({"weather": "rain"}, {"argc": "many"}, {"path": "{a"}):
        with pytest.raises(AgentwatchError, match=f"{next(iter(wrong))}|deny.exec"):
            engine(replace(rule("deny", on="exec", **wrong), agents=("codex",)))


def renamed(path: str, new_path: str) -> Change:
    return Change(time=1, process=KEY, session=KEY, op="rename", path=path, new_path=new_path)


def test_a_rename_is_judged_under_either_name() -> None:
    """A deny on one of them matches; what loosens must cover both."""
    judge = engine(rule("deny", on="change", path="/secret/**")).judge
    assert judge(renamed("/secret/a", "/tmp/a"), actor()).action == "deny"
    assert judge(renamed("/tmp/a", "/secret/a"), actor()).action == "deny"
    assert judge(renamed("/tmp/a", "/tmp/b"), actor()) is NO_VERDICT
    only_new = engine(rule("deny", on="change", new_path="/secret/**")).judge
    assert only_new(renamed("/tmp/a", "/secret/a"), actor()).action == "deny"
    assert only_new(renamed("/secret/a", "/tmp/a"), actor()) is NO_VERDICT
    holes = engine(rule("allow", on="change", path=("/a/**", "/b/**")), defaults=CLOSED).judge
    assert holes(renamed("/a/1", "/b/1"), actor()).action == "allow"
    assert holes(renamed("/a/1", "/c/1"), actor()).action == "deny"
    assert holes(renamed("/c/1", "/a/1"), actor()).action == "deny"


def test_policies_of_agents_share_what_they_have_in_common() -> None:
    """Only what names $own or $project is compiled again for another agent or project."""
    rules = [rule("deny", name=f"r{i}", path=f"/srv/{i}/**") for i in range(50)]
    rules.append(rule("alert", name="own", path=("$own", "/srv/1/**", "$project/x")))
    judge = engine(*rules)
    policies = [judge._policy("codex", "/p"), judge._policy("claude", "/q")]
    kinds = kinds_of(opened("/x"))
    lowered = [{r.rule.id: r for r in policy.tables[kinds].rules} for policy in policies]
    assert all(lowered[0][f"r{i}"] is lowered[1][f"r{i}"] for i in range(50))
    for agent, path, hit in (
        ("codex", "/home/dev/.codex/a", True),
        ("claude", "/home/dev/.codex/a", False),
        ("claude", "/srv/1/a", True),
    ):
        found = judge.judge(opened(path), actor(agent)).matches
        assert ("own" in {one.rule for one in found}) is hit
