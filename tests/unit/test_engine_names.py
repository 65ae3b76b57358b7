"""A file with several names: what restricts is asked of each, what loosens of the canonical one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch.events import Change, Connect, Event
from agentwatch.lineage import Image
from agentwatch.policy.image import Image as PolicyImage
from agentwatch.policy.subjects import subject_of
from agentwatch.rules.model import Default, Place, Rule
from tests.rules.judging import compiled_of
from tests.unit.small import KEY, actor, engine, match, opened, ran, rule

HERE = Place("rules.yaml", 1, 1)
OTHERS = ({"view": "/secret/key"}, {"known": "/secret/key"}, {"view": "/x", "known": "/secret/key"})


def verdicts(event: Event, *rules: Rule, defaults: tuple[Default, ...] = ()) -> tuple[str, int]:
    """The engine's response, and what the kernel says."""
    judge = engine(*rules, defaults=defaults)
    image = PolicyImage(compiled_of(judge.ruleset).image)
    who = actor("alpha") if defaults else actor()
    subject = subject_of(event, who, compiled_of(judge.ruleset).agents)
    assert subject is not None
    return judge.judge(event, who).response, image.decide(subject).verdict


@pytest.mark.parametrize("others", OTHERS)
def test_a_rule_on_another_name_kills(others: dict[str, str]) -> None:
    """The view and the name that was known, of a file and of a program."""
    for make, on in ((opened, "read"), (ran, "exec")):
        event = replace(make("/own/key"), **others)
        assert verdicts(event, rule("kill", on=on, path="/secret/**")) == ("kill", 1)
        assert verdicts(event, rule("kill", on=on, path="/elsewhere/**")) == ("none", 0)


def test_a_rule_on_another_name_of_a_change_kills() -> None:
    """By the first name and by the second, and no exception or allowance rests on one of them."""
    event = Change(time=1, process=KEY, session=KEY, op="rename", path="/own/a", new_path="/own/b")
    names = ("view", "known", "written", "new_view", "new_known", "new_written")
    by = engine(rule("kill", on="change", path="/secret/**"))
    spared = engine(
        replace(
            rule("kill", on="change", path="/own/**"), unless=(("mine", match(path="/secret/**")),)
        )
    )
    for name in names:
        one = replace(event, **{name: "/secret/key"})
        assert by.judge(one, actor()).response == "kill"
        assert spared.judge(one, actor()).response == "kill"
    assert by.judge(event, actor()).response == "none"


def test_a_rule_on_another_name_of_a_socket_kills() -> None:
    """As the process sees it, below a root of its own; an exception does not rest on that."""
    event = Connect(
        time=1, process=KEY, session=KEY, family=1, protocol="unix", unix="/jail/s", view="/s",
        from_socket=True,
    )  # fmt: skip
    assert verdicts(event, rule("kill", on="connect", unix="/s")) == ("kill", 1)
    assert verdicts(event, rule("kill", on="connect", unix="/other")) == ("none", 0)
    spared = replace(
        rule("kill", on="connect", unix="/jail/**"), unless=(("mine", match(unix="/s")),)
    )
    assert verdicts(event, spared) == ("kill", 1)
    on_view = replace(rule("kill", on="connect", unix="/s"), unless=(("mine", match(unix="/s")),))
    assert verdicts(event, on_view) == ("kill", 1)


@pytest.mark.parametrize("others", OTHERS)
def test_no_exception_rests_on_another_name(others: dict[str, str]) -> None:
    """Neither does it hold for the canonical name, nor for the other one that a rule is about."""
    event = replace(opened("/own/key"), **others)
    spared = replace(rule("kill", path="/**/key"), unless=(("mine", match(path="/secret/**")),))
    assert verdicts(event, spared) == ("kill", 1)
    on_other = replace(
        rule("kill", path="/secret/**"), unless=(("mine", match(path="/secret/key")),)
    )
    assert verdicts(event, on_other) == ("kill", 1)


def test_a_default_is_about_the_canonical_name() -> None:
    """What is allowed by that is allowed; an allowed view opens nothing."""
    defaults = (Default("alpha", "read", "deny", HERE),)
    allow = rule("allow", path="/allowed/**")
    honest = replace(opened("/allowed/x"), view="/elsewhere")
    assert verdicts(honest, allow, defaults=defaults)[0] == "none"
    sly = replace(opened("/elsewhere"), view="/allowed/x")
    assert verdicts(sly, allow, defaults=defaults) == ("kill", 1)


def test_a_caller_is_restricted_by_each_name_of_its_program() -> None:
    """And excepted by the canonical one alone."""
    image = Image("/own/tool", others=("/usr/bin/tool",))
    who = actor(image=image)
    event = opened("/key")
    by = engine(rule("kill", path="/key", **{"process.exe": "/usr/bin/tool"}))
    assert by.judge(event, who).response == "kill"
    spared = replace(
        rule("kill", path="/key"), unless=(("tool", match(**{"process.exe": "/usr/bin/tool"})),)
    )
    assert engine(spared).judge(event, who).response == "kill"
    assert engine(spared).judge(event, actor(image=Image("/usr/bin/tool"))).response == "none"


def test_one_event_is_counted_once_whatever_its_names() -> None:
    """Both names match the rule, and it is one open."""
    event = replace(opened("/a/key"), view="/b/key")
    both = rule("kill", path="/*/key")
    verdict = engine(both).judge(event, actor())
    assert [hit.rule for hit in verdict.matches] == [both.id]
