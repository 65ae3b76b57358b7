"""Counts, pauses, modes, the scope of a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch import abi
from agentwatch.engine import NO_VERDICT, Engine
from agentwatch.events import Open
from agentwatch.policy.levels import Host
from agentwatch.rules.model import Count, Default, Rule, Ruleset
from tests.unit.small import (
    CODEX,
    HERE,
    KEY,
    actor,
    engine,
    match,
    opened,
    ran,
    rule,
)


def counting(over: int = 2, action: str = "kill", **more: object) -> Rule:
    made = replace(rule(action, on="change", name="many", path="/x/**"), count=Count(over, 10))
    return replace(made, **more)  # type: ignore[arg-type]


def changed(number: int, **more: object) -> Open:
    return opened(f"/x/{number}", reads=False, changes=True, time=number, **more)


def test_a_count_acts_on_the_one_too_many() -> None:
    """Before it and after it the rule is not there."""
    judge = engine(counting())
    told = [judge.judge(changed(number), actor()).rule for number in range(1, 7)]
    assert told == [None, None, "many", None, None, None]


def test_a_count_counts_matches_whatever_their_verdict() -> None:
    """What a deny stops is counted too."""
    judge = engine(counting(), rule("deny", on="change", name="no", path="/x/**"))
    told = [judge.judge(changed(number), actor()) for number in range(1, 4)]
    assert [verdict.rule for verdict in told] == ["no", "no", "many"]
    assert [hit.rule for hit in told[2].matches] == ["many", "no"]


def test_an_event_of_several_agents_is_counted_once() -> None:
    """It is judged as each of them, and is one event."""
    judge = engine(counting())
    told = [judge.judge(changed(n), actor("codex", "claude")).rule for n in range(1, 4)]
    assert told == [None, None, "many"]


def test_what_is_explained_is_not_counted() -> None:
    """Asking what the rules would say changes nothing."""
    judge = engine(counting())
    for number in range(1, 9):
        explained = judge.explain(changed(number), actor())
        assert [trace.outcome for trace in explained.rules] == ["counting"]
        assert explained.verdict is NO_VERDICT
    assert judge.judge(changed(9), actor()) is NO_VERDICT


def test_distinct_values_of_an_unread_field_are_all_different() -> None:
    """What could not be read restricts."""
    judge = engine(replace(counting(), count=Count(2, 10, distinct="path")))
    lost = frozenset({"path"})
    told = [judge.judge(changed(1, unresolved=lost, sequence=n), actor()).rule for n in range(1, 4)]
    assert told == [None, None, "many"]
    told = [judge.judge(changed(1, sequence=n), actor()).rule for n in range(20, 24)]
    assert told == [None, None, None, None]


def test_a_reload_keeps_counts_and_pauses() -> None:
    """The memory is handed to the next engine; a session that ends is forgotten."""
    first = engine(counting())
    first.judge(changed(1), actor())
    first.judge(changed(2), actor())
    second = Engine(first.ruleset, generation=2, memory=first.memory)
    assert second.judge(changed(3), actor()).rule == "many"
    first.pause("many", 50)
    third = Engine(first.ruleset, generation=3, memory=second.memory)
    third.memory.forget(KEY)
    assert [third.judge(changed(n), actor()).rule for n in (40, 41, 42)] == [None, None, None]
    assert [third.judge(changed(n), actor()).rule for n in (50, 51, 52)] == [None, None, "many"]


def test_a_paused_rule_is_as_if_it_were_not_there() -> None:
    """By the event's own time; the other rules and the defaults go on."""
    judge = engine(
        rule("kill", path="/x"), rule("alert", path="/x"), defaults=(Default("codex", *_READ),)
    )
    judge.pause("kill.read", 100)
    assert judge.judge(opened("/x", time=99), actor()).action == "deny"
    assert judge.judge(opened("/x", time=100), actor()).rule == "kill.read"
    outcomes = {t.rule.id: t.outcome for t in judge.explain(opened("/x", time=5), actor()).rules}
    assert outcomes == {"kill.read": "paused", "alert.read": "matched"}
    judge.resume("kill.read")
    assert judge.judge(opened("/x", time=99), actor()).rule == "kill.read"
    with pytest.raises(ValueError, match="nothing"):
        judge.pause("nothing", 100)


_READ = ("read", "deny", HERE)


@pytest.mark.parametrize(
    ("whole", "own", "response", "mode"),
    [
        ("enforce", "", "kill", "enforce"),
        ("enforce", "observe", "alert", "observe"),
        ("observe", "", "alert", "observe"),
        ("observe", "enforce", "kill", "enforce"),
    ],
)
def test_a_rules_own_mode_comes_first(whole: str, own: str, response: str, mode: str) -> None:
    """So rules are tried out, or put in force, one by one."""
    verdict = engine(replace(rule("deny", path="/x"), mode=own), mode=whole).judge(
        opened("/x"), actor()
    )
    assert (verdict.action, verdict.response, verdict.mode) == ("deny", response, mode)


def test_a_rule_that_only_observes_hides_no_other() -> None:
    """Nor does one that may only alert here: the strictest thing that is done wins."""
    observing = replace(rule("kill", name="tried", path="/x"), mode="observe", severity="critical")
    softly = replace(rule("deny", name="softly", path="/x"), without_hook="alert", severity="high")
    for weaker in (observing, softly):
        verdict = engine(weaker, rule("deny", name="no", path="/x")).judge(opened("/x"), actor())
        assert (verdict.rule, verdict.response) == ("no", "kill")
        closed = engine(weaker, defaults=(Default("codex", *_READ),)).judge(opened("/x"), actor())
        assert (closed.default, closed.response) == (True, "kill")


def test_the_host_says_what_a_deny_does_unless_its_rule_does() -> None:
    """without_hook of the configuration is for rules that say nothing."""
    rules = (
        rule("deny", path="/x"),
        replace(rule("deny", on="exec", path="/x"), without_hook="kill"),
    )
    judge = Engine(Ruleset(rules, (CODEX,)), without_hook="alert")
    assert judge.judge(opened("/x"), actor()).response == "alert"
    assert judge.judge(ran("/x"), actor()).response == "kill"
    assert judge.acting_kinds == {abi.EXEC}
    assert [judge.level(r, Host()).name for r in rules] == ["detects", "kills-after"]


def test_a_kill_may_end_the_session() -> None:
    """When any rule that kills asks for it, whichever wins."""
    whole = replace(rule("kill", name="whole", path="/x"), scope="session", severity="low")
    other = replace(rule("kill", name="other", path="/x"), severity="high")
    verdict = engine(whole, other).judge(opened("/x"), actor())
    assert (verdict.rule, verdict.scope) == ("other", "session")
    assert engine(other).judge(opened("/x"), actor()).scope == "process"
    assert engine(whole, mode="observe").judge(opened("/x"), actor()).scope == "process"


def test_a_program_that_the_session_wrote() -> None:
    """Opened for writing before, by any process of the session; never a reason to allow."""
    asked = rule("deny", on="exec", written_by_agent="true")
    judge = engine(asked, replace(asked, id="not", match=match(written_by_agent="false")))
    assert abi.OPEN in judge.kinds
    assert abi.OPEN not in judge.acting_kinds
    assert judge.judge(ran("/tmp/x"), actor()).rule == "not"
    judge.judge(opened("/tmp/x", reads=True, changes=False), actor())
    assert judge.judge(ran("/tmp/x"), actor()).rule == "not"
    judge.judge(opened("/tmp/x", reads=False, changes=True), actor())
    assert judge.judge(ran("/tmp/x"), actor()).rule == "deny.exec"
    carved = replace(rule("deny", on="exec", path="/**/x"), unless=(("u", asked.match),))
    other = replace(carved, unless=(("u", match(written_by_agent="false")),))
    for one in (carved, other):
        assert engine(one).judge(ran("/tmp/x"), actor()).rule == "deny.exec"
