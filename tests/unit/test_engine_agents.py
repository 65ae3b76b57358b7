"""Who asks, and what is not known - agents, variables, what was not read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch.engine import NO_VERDICT
from agentwatch.lineage import Image
from agentwatch.policy.readers import FIELDS
from agentwatch.rules import fields
from agentwatch.rules.model import Default
from tests.unit.small import (
    CLOSED,
    HERE,
    actor,
    connected,
    engine,
    match,
    mounted,
    opened,
    ran,
    rule,
)


def test_own_are_the_files_of_the_agent() -> None:
    """`$own` differs by agent, and a session of none has none."""
    judge = engine(rule("deny", path=("$own", "/y"))).judge
    assert judge(opened("/home/dev/.codex/x"), actor("codex")).action == "deny"
    assert judge(opened("/home/dev/.codex/x"), actor("claude")) is NO_VERDICT
    assert judge(opened("/home/dev/.codex/x"), replace(actor(), agents=())) is NO_VERDICT
    assert judge(opened("/y"), actor("claude")).action == "deny"


def test_project_is_where_the_session_began() -> None:
    """Its characters mean themselves, and each session has its own."""
    judge = engine(rule("alert", path="$project/**", process__cwd="$project")).judge
    for project in ("/home/dev/a", "/srv/we[i]rd*{x,y} z"):
        inside = actor(project=project, image=Image("/bin/sh", cwd=project))
        assert judge(opened(f"{project}/src/x"), inside).action == "alert"
        assert judge(opened(f"{project}2/x"), inside) is NO_VERDICT
    assert judge(opened("/srv/wei/x"), actor(project="/srv/we[i]")) is NO_VERDICT


def test_a_project_may_have_the_longest_name_there_is() -> None:
    """What bounds the patterns people write does not bound the directories agents begin in."""
    project = "/d{e}p" * 680
    who = actor(project=project)
    judge = engine(rule("kill", path="$project/{.git,.ssh}/**")).judge
    assert judge(opened(f"{project}/.git/x"), who).action == "kill"
    assert judge(opened(f"{project}/x"), who) is NO_VERDICT


def test_a_project_that_is_not_set_matches_nothing() -> None:
    """Neither permits nor restricts, and the other values of the list still count."""
    rules = (
        rule("allow", on="change", path=("$project/**", "/tmp/**")),
        rule("kill", on="change", path="$project/.git/**"),
        replace(rule("deny", name="u", path="/x"), unless=(("p", match(process__cwd="$project")),)),
    )
    judge = engine(*rules, defaults=CLOSED).judge
    nowhere = actor(project=None)
    assert judge(opened("/home/dev/p/.git/x", changes=True), nowhere).default
    assert judge(opened("/tmp/x", changes=True), nowhere).action == "allow"
    assert judge(opened("/x"), nowhere).rule == "u"


def test_all_of_a_list_with_an_unset_project_cannot_hold() -> None:
    """With `|all` a value that nothing matches is not left out: the condition fails."""
    asked = engine(rule("deny", on="exec", args__has__all=("-x", "$project/*"))).judge
    event = ran("/b", "b", "-x", "/home/dev/p/y")
    assert asked(event, actor(project="/home/dev/p/")) is NO_VERDICT
    assert asked(event, actor(project=None)) is NO_VERDICT
    assert asked(event, actor(project="/home/dev/p")).action == "deny"


def test_a_dollar_in_a_regular_expression_is_the_end_of_the_text() -> None:
    """`|re` has no variables: what looks like one is RE2's own `$`."""
    judge = engine(rule("deny", path__re=(r"\.key$project", r"\.pem$"))).judge
    assert judge(opened("/x.pem"), actor(project="/p")).action == "deny"
    assert judge(opened("/x.key/p"), actor(project="/p")) is NO_VERDICT


def test_what_could_not_be_read_matches_what_restricts() -> None:
    """deny, kill and alert match an unresolved path, allow and unless do not."""
    lost = frozenset({"path"})
    event = opened("", changes=True, unresolved=lost)
    for action in ("alert", "deny", "kill"):
        asked = replace(rule(action, path="/x"), unless=(("y", match(path="/**")),))
        assert engine(asked).judge(event, actor()).action == action
    allowing = engine(rule("allow", on="change", path="/**"), defaults=CLOSED)
    assert allowing.judge(event, actor()).default
    assert allowing.judge(opened("/x", changes=True), actor()).action == "allow"


def test_an_unread_field_leaves_the_others_to_decide() -> None:
    """Still reachable means that whatever is known must fit."""
    judge = engine(rule("kill", on="exec", path="**/git", args__has="--force")).judge
    lost = frozenset({"argv"})
    assert judge(ran("/usr/bin/git", unresolved=lost), actor()).action == "kill"
    assert judge(ran("/usr/bin/ls", unresolved=lost), actor()) is NO_VERDICT
    assert judge(ran("/usr/bin/git", "git", "status"), actor()) is NO_VERDICT


@pytest.mark.parametrize(
    "field", ["process__exe", "process__args", "process__uid", "process__role"]
)
def test_an_unknown_caller_matches_what_restricts(field: str) -> None:
    """A process whose program is not known cannot use it to get out of a rule, nor as a permit."""
    value = "child" if field.endswith("role") else "5"
    unknown = actor(image=None)
    denies = engine(rule("deny", path="/x", **{field: value}))
    assert denies.judge(opened("/x"), unknown).action == "deny"
    carved = engine(replace(rule("deny", path="/x"), unless=(("y", match(**{field: value})),)))
    assert carved.judge(opened("/x"), unknown).action == "deny"


def test_a_script_is_as_unread_as_what_its_name_is_made_of() -> None:
    """A relative script's name needs the working directory, an absolute one does not."""
    judge = engine(rule("kill", on="exec", script="/x/evil")).judge
    lost = frozenset({"cwd"})
    assert judge(ran("/sh", script="a", asked="a", unresolved=lost), actor()).action == "kill"
    assert judge(ran("/sh", script="/y/a", asked="/y/a", unresolved=lost), actor()) is NO_VERDICT
    lost = frozenset({"asked"})
    assert judge(ran("/sh", script="", asked="", unresolved=lost), actor()).action == "kill"
    assert judge(ran("/sh", asked="", unresolved=lost), actor()) is NO_VERDICT


def test_an_unread_address_is_reachable_and_an_absent_one_is_not() -> None:
    """A unix socket has no address, so no rule on addresses is about it."""
    judge = engine(rule("kill", on="connect", addr="169.254.169.254", port="80")).judge
    assert judge(connected(unresolved=frozenset({"address"})), actor()).action == "kill"
    unix = connected(
        family=1, protocol="unix", syn=False, unix="/run/x", unresolved=frozenset({"path"})
    )
    assert judge(unix, actor()) is NO_VERDICT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("process__script", "/usr/bin/safe-tool"),
        ("parent__script", "/usr/bin/safe-tool"),
        ("script", "/usr/bin/safe-tool"),
        ("argv", "safe-tool **"),
    ],
)
def test_a_name_that_an_agent_chooses_loosens_nothing(field: str, value: str) -> None:
    """A link, a mount namespace or a made-up argv[0] gives it any value: it restricts only."""
    made = Image("/usr/bin/bash", "/usr/bin/safe-tool", ("bash", "/usr/bin/safe-tool"))
    event = ran("/usr/bin/bash", "safe-tool", "x", script="/usr/bin/safe-tool")
    somebody = actor(image=made, ancestors=(made,))
    asked = match(**{field: value})
    carved = replace(rule("deny", on="exec", path="/**"), unless=(("safe", asked),))
    assert engine(carved).judge(event, somebody).action == "deny"
    allowing = engine(
        rule("allow", on="exec", **{field: value}),
        defaults=(Default("codex", "exec", "deny", HERE),),
    )
    assert allowing.judge(event, somebody).default
    for action in ("alert", "deny", "kill"):
        restricting = engine(rule(action, on="exec", **{field: value}))
        assert restricting.judge(event, somebody).action == action


def test_the_language_and_the_engine_agree_on_what_an_agent_chooses() -> None:
    """What loading warns of is what never holds."""
    events = ran("/bin/sh", "sh", script="/x"), mounted(source="/dev/x")
    somebody = actor(ancestors=(Image("/x", "/y"),))
    never = {
        name
        for name, field in FIELDS.items()
        for event in events
        if field.read(event, somebody) and not field.certain(event, somebody)
    }
    assert never == fields.CHOSEN


@pytest.mark.parametrize("pattern", ["**/.ssh/id_*", "**", "**/x/**"])
def test_a_file_system_that_init_does_not_have_loosens_nothing(pattern: str) -> None:
    """Who mounted it named its files: floating patterns restrict there, and permit nothing."""
    event = opened("[0:57]/home/x/.ssh/id_rsa", changes=True)
    for action in ("alert", "deny", "kill"):
        asked = replace(rule(action, path=pattern), unless=(("y", match(path=pattern)),))
        assert engine(asked).judge(event, actor()).action == action
        assert engine(asked).judge(opened("/home/x/.ssh/id_rsa"), actor()) is NO_VERDICT
    allowing = engine(rule("allow", on="change", path=pattern), defaults=CLOSED)
    assert allowing.judge(event, actor()).default
    home = opened("/home/x/.ssh/id_rsa", changes=True)
    assert allowing.judge(home, actor()).action == "allow"


@pytest.mark.parametrize("pattern", ["/**", "/home/**", "/home/x/.ssh/*", "/*/x/.ssh/id_rsa"])
def test_an_anchored_pattern_is_about_the_file_systems_of_init(pattern: str) -> None:
    """A sandbox's own root is not this host's."""
    judge = engine(rule("kill", path=pattern)).judge
    assert judge(opened("[0:57]/home/x/.ssh/id_rsa"), actor()) is NO_VERDICT
    assert judge(opened("/home/x/.ssh/id_rsa"), actor()).action == "kill"


def test_a_program_on_a_file_system_of_the_agents_own_carves_out_nothing() -> None:
    """Nor does it among the ancestors, where a program of this host still does."""
    carved = replace(
        rule("deny", path="/x"), unless=(("y", match(ancestor__exe="**/usr/bin/ssh")),)
    )
    judge = engine(carved).judge
    own, real = Image("[0:57]/usr/bin/ssh"), Image("/usr/bin/ssh")
    assert judge(opened("/x"), actor(ancestors=(own,))).action == "deny"
    assert judge(opened("/x"), actor(ancestors=(own, real))) is NO_VERDICT


@pytest.mark.parametrize("field", ["addr", "port", "unix"])
def test_an_address_out_of_the_callers_memory_loosens_nothing(field: str) -> None:
    """Another thread may have rewritten it since: it may add a kill, never an allow."""
    value = {"addr": "192.0.2.1", "port": "53", "unix": "/run/x"}[field]
    event = connected("192.0.2.1", 53, protocol="udp", syn=False)
    if field == "unix":
        event = connected(family=1, protocol="unix", syn=False, unix="/run/x")
    asked = match(**{field: value})
    carved = engine(replace(rule("deny", on="connect"), unless=(("y", asked),))).judge
    assert carved(event, actor()) is NO_VERDICT
    assert carved(replace(event, from_socket=False), actor()).action == "deny"
    restricting = engine(rule("kill", on="connect", **{field: value})).judge
    assert restricting(replace(event, from_socket=False), actor()).action == "kill"


def test_an_argv_that_is_cut_matches_by_what_is_there() -> None:
    """An ordinary long argv does not match by being long, and its visible tokens do count."""
    judge = engine(rule("kill", on="exec", args__has="--evil")).judge
    long = ran("/bin/cc", "cc", *["-DX"] * 1000, argv_cut=True)
    assert judge(long, actor()) is NO_VERDICT
    assert judge(replace(long, argv=(*long.argv, "--evil")), actor()).action == "kill"
