"""The decision: precedence, exceptions, defaults, what was not read, and who asks."""

from __future__ import annotations

import errno
import itertools
import os
import random
from dataclasses import replace

import pytest

from agentwatch import abi
from agentwatch.compiling import compile_for
from agentwatch.engine import NO_VERDICT, Engine, Hit
from agentwatch.errors import AgentwatchError
from agentwatch.events import Connect, Event, Exec, Exit, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy.levels import Host
from agentwatch.policy.readers import FIELDS, kinds_of
from agentwatch.policy.table import Masks
from agentwatch.rules import fields
from agentwatch.rules.model import Agent, Condition, Count, Default, Match, Place, Rule, Ruleset
from agentwatch.rules.unprobed import Change

KEY = ProcessKey(7, 700)
HERE = Place("test.yaml", 1, 1)
CODEX = Agent("codex", "Codex", ("**/bin/codex",), ("/home/dev/.codex/**",), HERE)
CLAUDE = Agent("claude", "Claude", ("**/bin/claude",), ("/home/dev/.claude/**",), HERE)


def match(**fields: str | tuple[str, ...]) -> Match:
    """path="/x" or process__exe__startswith=("/a", "/b"): `__` is `.` before a known part."""
    conditions = []
    for key, values in fields.items():
        name, *words = key.split("__")
        if name in ("process", "parent", "ancestor"):
            name = f"{name}.{words.pop(0)}"
        texts = (values,) if isinstance(values, str) else values
        conditions.append(Condition(name, texts, frozenset(words), HERE))
    return Match(tuple(conditions))


def rule(action: str, on: str = "read", name: str = "", **fields: str | tuple[str, ...]) -> Rule:
    return Rule(name or f"{action}.{on}", tuple(on.split()), match(**fields), action, HERE)


def engine(*rules: Rule, defaults: tuple[Default, ...] = (), mode: str = "enforce") -> Engine:
    return Engine(Ruleset(rules, (CODEX, CLAUDE), defaults), mode=mode)


def opened(path: str, reads: bool = True, changes: bool = False, **more: object) -> Open:
    made = Open(time=1, process=KEY, session=KEY, path=path, result=3, reads=reads, changes=changes)
    return replace(made, **more)  # type: ignore[arg-type]


def ran(path: str, *argv: str, **more: object) -> Exec:
    made = Exec(time=1, process=KEY, session=KEY, path=path, asked=path, argv=argv, argc=len(argv))
    return replace(made, **more)  # type: ignore[arg-type]


def connected(addr: str = "", port: int = 0, **more: object) -> Connect:
    made = Connect(
        time=1,
        process=KEY,
        session=KEY,
        family=2,
        addr=addr,
        port=port,
        protocol="tcp",
        syn=True,
        from_socket=True,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def actor(*agents: str, **more: object) -> Actor:
    image = Image("/usr/bin/node", "/opt/x/cli.js", ("node", "cli.js"), "/home/dev", 1000)
    return replace(Actor(KEY, KEY, agents or ("codex",), image), **more)  # type: ignore[arg-type]


# Precedence --------------------------------------------------------------------------------------


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


# Responses ---------------------------------------------------------------------------------------


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


# Defaults ----------------------------------------------------------------------------------------

CLOSED = (Default("codex", "change", "deny", HERE),)


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


# Several agents ----------------------------------------------------------------------------------


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


# Variables ---------------------------------------------------------------------------------------


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


# What was not read -------------------------------------------------------------------------------


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
    event, somebody = ran("/bin/sh", "sh", script="/x"), actor(ancestors=(Image("/x", "/y"),))
    never = {
        n for n, f in FIELDS.items() if f.read(event, somebody) and not f.certain(event, somebody)
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


# Which events are judged -------------------------------------------------------------------------


def test_what_failed_is_not_judged() -> None:
    """Only what happened is: a failed open, exec or connect did nothing to judge."""
    everything = engine(*(rule("kill", on=on, name=on) for on in ("exec", "open", "connect")))
    udp = connected("192.0.2.1", 53, protocol="udp", syn=False)
    unix = connected(family=1, protocol="unix", syn=False, unix="/run/x")
    judged: list[Event] = [opened("/x"), ran("/x"), udp, unix, replace(udp, result=-115)]
    ignored: list[Event] = [
        replace(opened("/x"), result=-13),
        replace(ran("/x"), result=-2),
        replace(udp, result=-101),
        replace(unix, result=-11),
        Exit(time=1, process=KEY, session=KEY),
    ]
    assert [everything.judge(event, actor()).action for event in judged] == ["kill"] * 5
    assert [everything.judge(event, actor()) for event in ignored] == [NO_VERDICT] * 5


def test_tcp_is_judged_once_by_its_first_packet() -> None:
    """The record from the kernel's socket decides; the end of the call does not."""
    judge = engine(rule("kill", on="connect", addr="192.0.2.1")).judge
    assert judge(connected("192.0.2.1", 80), actor()).action == "kill"
    assert judge(connected("192.0.2.1", 80, syn=False, result=0), actor()) is NO_VERDICT
    assert judge(connected("192.0.2.1", 80, syn=False, result=-115), actor()) is NO_VERDICT


def test_ending_a_connection_is_no_connection() -> None:
    """connect to AF_UNSPEC dissolves an association."""
    event = connected(family=0, protocol="udp", syn=False)
    assert engine(rule("kill", on="connect")).judge(event, actor()) is NO_VERDICT


def test_an_open_is_read_change_or_neither() -> None:
    """Kinds follow what the kernel granted; O_PATH is an open and nothing more."""
    rules = [rule("alert", on=on, name=on, path="/x") for on in ("open", "read", "change")]
    judge = engine(*rules).judge
    for reads, changes in itertools.product((False, True), repeat=2):
        verdict = judge(opened("/x", reads, changes), actor())
        expected = {"open"} | ({"read"} if reads else set()) | ({"change"} if changes else set())
        assert {hit.rule for hit in verdict.matches} == expected


# Fields ------------------------------------------------------------------------------------------

PARENT = Image("/bin/bash", "/x/build.sh", ("bash", "-c", "make"))
GRANDPARENT = Image("/usr/bin/tmux", None, ("tmux", "new"))
CALLER = actor(ancestors=(PARENT, GRANDPARENT))


@pytest.mark.parametrize(
    ("fields", "hit", "miss"),
    [
        ({"path": "**/sh"}, ran("/bin/sh"), ran("/bin/bash")),
        ({"script": "/x/*.sh"}, ran("/bin/sh", script="/x/a.sh"), ran("/bin/sh")),
        ({"argv": "sh -c **"}, ran("/bin/sh", "sh", "-c", "x"), ran("/bin/sh", "sh")),
        ({"args": "-c *"}, ran("/bin/sh", "evil", "-c", "x"), ran("/bin/sh", "-c", "x")),
        ({"args__has": ("-x", "-y")}, ran("/b", "b", "a", "-y"), ran("/b", "-y", "a")),
        ({"args__has__all": ("-x", "-y")}, ran("/b", "b", "-y", "-x"), ran("/b", "b", "-y")),
        ({"args__contains": "a b"}, ran("/b", "b", "xa", "bx"), ran("/b", "b", "ab")),
        ({"args__re": "^a b$"}, ran("/b", "b", "a", "b"), ran("/b", "b", "a", "bc")),
        ({"argc": "2"}, ran("/b", "b", "x"), ran("/b", "b")),
        ({"stdin": "pipe"}, ran("/b", stdin="pipe"), ran("/b", stdin="tty")),
        ({"cwd": "/tmp/**"}, ran("/b", cwd="/tmp/x"), ran("/b", cwd="/srv")),
        ({"anonymous": "true"}, ran("memfd:x", anonymous=True), ran("/b")),
        ({"starts_agent": "true"}, ran("/x/bin/claude"), ran("/x/bin/clang")),
        (
            {"starts_agent": "true"},
            ran("/n", asked="bin/codex", cwd="/h"),
            ran("/n", asked="x", cwd="/h"),
        ),
        ({"path__nocase": "/ETC/x"}, ran("/etc/X"), ran("/etc/y")),
        ({"path__startswith": ("/a", "/b")}, ran("/bc"), ran("/c/b")),
        ({"path__endswith": ".sh"}, ran("/x/a.sh"), ran("/x/a.sh/b")),
        ({"path__contains__all": ("/x", ".s")}, ran("/x/a.sh"), ran("/x/a")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_of_an_exec(fields: dict[str, str], hit: Exec, miss: Exec) -> None:
    """Each field is the new program's own; argv[0] is no argument."""
    judge = engine(rule("alert", on="exec", **fields)).judge
    assert judge(hit, CALLER).action == "alert"
    assert judge(miss, CALLER) is NO_VERDICT


@pytest.mark.parametrize(
    ("fields", "hits"),
    [
        ({"process__exe": "/usr/bin/node"}, True),
        ({"process__exe": "/bin/sh"}, False),
        ({"process__script": "**/cli.js"}, True),
        ({"process__args": "cli.js"}, True),
        ({"process__cwd": "/home/*"}, True),
        ({"process__uid": "1000"}, True),
        ({"process__uid": "0"}, False),
        ({"process__role": "child"}, True),
        ({"process__role": "agent"}, False),
        ({"parent__exe": "/bin/bash"}, True),
        ({"parent__exe": "/usr/bin/tmux"}, False),
        ({"parent__script": "**/build.sh"}, True),
        ({"parent__args": "-c **"}, True),
        ({"ancestor__exe": "/usr/bin/tmux"}, True),
        ({"ancestor__exe": "/usr/bin/ssh"}, False),
        ({"ancestor__args__has": "new"}, True),
        ({"agent": "codex"}, True),
        ({"agent": "claude"}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_of_the_caller(fields: dict[str, str], hits: bool) -> None:
    """process.* made the call (on an exec: called execve), parent.* and ancestor.* started it."""
    judge = engine(rule("alert", on="exec read", **fields)).judge
    for event in (ran("/bin/sh", "sh"), opened("/x")):
        assert (judge(event, CALLER).action == "alert") == hits


def test_role_agent_is_the_program_of_the_identity() -> None:
    """The agent's own program, not what it started."""
    judge = engine(rule("alert", process__role="agent")).judge
    assert judge(opened("/x"), actor(image=Image("/b", identity="codex"))).action == "alert"
    assert judge(opened("/x"), actor(image=Image("/b"))) is NO_VERDICT


def test_a_process_without_known_parents_has_none() -> None:
    """The first process of a session does not match whatever is said of parents."""
    assert engine(rule("kill", parent__exe="**")).judge(opened("/x"), actor()) is NO_VERDICT


def test_fields_of_an_open() -> None:
    """op and access tell how; an open that creates is an open too."""
    rules = [rule("alert", on="open", name=op, op=op) for op in ("open", "create", "truncate")]
    rules += [rule("alert", on="open", name=access, access=access) for access in ("read", "write")]

    def hits(event: Open) -> set[str]:
        return {hit.rule for hit in engine(*rules).judge(event, actor()).matches}

    assert hits(opened("/x")) == {"open", "read"}
    made = opened("/x", False, True, created=True, flags=os.O_TRUNC)
    assert hits(made) == {"open", "create", "write"}
    assert hits(opened("/x", False, True, flags=os.O_TRUNC)) == {"open", "truncate", "write"}
    assert hits(opened("/x", False, False)) == {"open"}


def test_fields_of_a_connect() -> None:
    """Addresses in any notation, ports and ranges, protocols, families and unix paths."""
    rules = [
        rule("alert", on="connect", name="meta", addr="169.254.169.254"),
        rule("alert", on="connect", name="net", addr__cidr=("10.0.0.0/8", "fd00::/8")),
        rule("alert", on="connect", name="port", port=("443", "8000-8999")),
        rule("alert", on="connect", name="udp", proto="udp"),
        rule("alert", on="connect", name="inet6", family="inet6"),
        rule("alert", on="connect", name="unix", unix=("/run/docker.sock", "@x*")),
        rule("alert", on="connect", name="named", host=("*.example.com", "*", "**")),
    ]

    def hits(event: Connect) -> set[str]:
        return {hit.rule for hit in engine(*rules).judge(event, actor()).matches}

    unix = connected(family=1, protocol="unix", syn=False)
    assert hits(connected("169.254.169.254", 80)) == {"meta"}
    assert hits(connected("::ffff:169.254.169.254", 443, family=10)) == {"meta", "port", "inet6"}
    assert hits(connected("::ffff:10.0.0.1", 9000, family=10)) == {"net", "inet6"}
    assert hits(connected("fd12::1", 8080, family=10)) == {"net", "port", "inet6"}
    assert hits(connected("192.0.2.1", 53, protocol="udp", syn=False)) == {"udp"}
    assert hits(replace(unix, unix="/run/docker.sock")) == {"unix"}
    assert hits(replace(unix, unix="@xyz")) == {"unix"}
    assert hits(replace(unix, unix="/run/other")) == set()


def test_a_name_that_no_probe_gives_matches_nothing() -> None:
    """`host: none` is about what is known to have no name, not about what nobody looked up."""
    judge = engine(rule("kill", on="connect", host=("none", "**"))).judge
    assert judge(connected("192.0.2.1", 80), actor()) is NO_VERDICT


# What the reader and people ask ------------------------------------------------------------------


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


# Selecting candidates changes nothing ------------------------------------------------------------


def _random_rules(rng: random.Random) -> list[Rule]:
    paths = ["/a/**", "**/b", "/a/*", "$own", "$project/**", "/a/b", "**/{a,b}/c"]
    rules = []
    for number in range(12):
        fields: dict[str, str | tuple[str, ...]] = {}
        if rng.random() < 0.8:
            fields["path"] = tuple(rng.sample(paths, rng.randint(1, 2)))
        if rng.random() < 0.4:
            fields["process__exe"] = rng.choice(["/usr/bin/node", "**/cat"])
        made = rule(
            rng.choice(["allow", "alert", "deny", "kill"]), "exec read", f"r{number}", **fields
        )
        if rng.random() < 0.4:
            made = replace(made, unless=(("u", match(path=rng.choice(paths))),))
        rules.append(made)
    return rules


def test_candidates_lose_no_rule() -> None:
    """What the patterns select and then hold is what asking every rule finds, unread fields too."""
    rng = random.Random(11)
    hits = 0
    for _ in range(60):
        judge = engine(*_random_rules(rng))
        for _ in range(20):
            path = "/" + "/".join(rng.choices("abc", k=rng.randint(1, 3)))
            lost = frozenset({"path"}) if rng.random() < 0.1 else frozenset[str]()
            image = rng.choice([None, Image("/usr/bin/node"), Image("/bin/cat")])
            who = actor(image=image, project=rng.choice([None, "/a"]))
            event = rng.choice([opened(path, unresolved=lost), ran(path, unresolved=lost)])
            explained = judge.explain(event, who)
            matched = {t.rule.id for t in explained.rules if t.outcome == "matched"}
            assert {hit.rule for hit in explained.verdict.matches} == matched
            hits += len(matched)
    assert hits > 1000


def test_only_candidates_are_looked_at() -> None:
    """Of a thousand rules on paths a path selects the few whose patterns cover it."""
    rules = [rule("deny", name=f"r{i}", path=f"/srv/{i}/**") for i in range(1000)]
    rules.append(rule("deny", name="any", process__exe="/bin/never"))
    judged = engine(*rules)
    policy = judged._policy("codex", None)
    event = opened("/srv/7/x")
    found = policy.tables[kinds_of(event)].candidates(Masks(policy.fields, event, actor()))
    assert [candidate.rule.id for candidate in found] == ["any", "r7"]


def test_many_rules_on_one_program_are_told_apart_by_their_arguments() -> None:
    """What a program is says little where two hundred rules are about it."""
    rules = [
        rule("deny", on="exec", name=f"r{i}", path="**/curl", args__has=f"*host{i}.example*")
        for i in range(200)
    ]
    judged = engine(*rules)
    policy = judged._policy("codex", None)
    event = ran("/usr/bin/curl", "curl", "https://host7.example.org/")
    found = policy.tables[("exec",)].candidates(Masks(policy.fields, event, actor()))
    assert [candidate.rule.id for candidate in found] == ["r7"]


# Counts, pauses, modes, scope --------------------------------------------------------------------


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


# Events without a probe --------------------------------------------------------------------------


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
