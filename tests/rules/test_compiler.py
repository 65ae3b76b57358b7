"""The policy compiler: what the kernel gets, what stays with the engine, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentwatch.compiling import left_out
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError
from agentwatch.events import Connect, Exec, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy import compiler, patterns
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.image import DENY, KILL, LOOK, SMALLEST, Decision
from agentwatch.policy.subjects import AgentBits
from agentwatch.rules import sample
from agentwatch.rules.homes import TRIAL_HOMES, TRIAL_PROJECT, at_home
from agentwatch.rules.load import read_rules
from agentwatch.rules.model import Agent, Condition, Count, Default, Match, Place, Rule, Ruleset
from tests.unit.policies import decided, disagreement

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Place("made.yaml", 1, 1)
SESSION, PROCESS = ProcessKey(1, 1), ProcessKey(2, 2)
ONE = Agent("one", "One", ("**/bin/agent-of-tests",), ("/own/1/**",), HERE)
TWO = Agent("two", "Two", ("**/bin/agent-of-tests",), ("/own/2/**",), HERE)
COMMON: Mapping[str, Any] = {"time": 1, "process": PROCESS, "session": SESSION}


def rule(on: str = "read", action: str = "deny", **more: Any) -> Rule:
    """A rule of one kind. Other keywords are parts of it, or conditions: `process__exe="/x"`."""
    fields = {key: more.pop(key) for key in tuple(more) if key in Rule.__dataclass_fields__}
    return Rule(
        id=fields.pop("id", "r"),
        on=(on,),
        match=asked(**more),
        action=action,
        place=HERE,
        **fields,
    )


def asked(**conditions: str | tuple[str, ...]) -> Match:
    """Conditions by field: `args__has="x"` has a modifier, `process__exe` is a field."""
    found = []
    for key, value in conditions.items():
        name, *words = key.split("__")
        if name in ("process", "parent", "ancestor"):
            name, words = f"{name}.{words[0]}", words[1:]
        values = (value,) if isinstance(value, str) else value
        found.append(Condition(name, values, frozenset(words)))
    return Match(tuple(found))


def compiled(*rules: Rule, **more: Any) -> Compiled:
    """For a host that enforces and, unless it is said, prevents nothing."""
    given = {"mode": "enforce", "without_hook": "kill", "prevents": False, "generation": 7}
    given |= {"agents": AgentBits()}
    ruleset = {"agents": (ONE, TWO), "homes": TRIAL_HOMES, "rules": rules}
    for key in tuple(more):
        (ruleset if key in Ruleset.__dataclass_fields__ and key != "agents" else given)[key] = (
            more.pop(key)
        )
    return compiler.compile(Ruleset(**ruleset), **given)


def actor(*agents: str, image: Image | None = None, project: str | None = None) -> Actor:
    return Actor(PROCESS, SESSION, agents, image or Image("/usr/bin/x", cwd="/"), (), project)


def opened(path: str, **more: Any) -> Open:
    return Open(**COMMON, path=path, **{"reads": True, **more})


def connected(addr: str, protocol: str = "udp", **more: Any) -> Connect:
    return Connect(**COMMON, family=2, addr=addr, port=80, protocol=protocol, **more)


def says(policy: Compiled, event: Open | Exec | Connect, who: Actor | None = None) -> int:
    """The kernel's verdict."""
    found = decided(policy, event, who or actor())
    assert found is not None
    return found.verdict


@pytest.fixture(scope="module")
def packs() -> Ruleset:
    """What ships, and the cookbook."""
    paths = (REPOSITORY / "rules", *sorted((REPOSITORY / "docs/cookbook").glob("*.yaml")))
    return at_home(read_rules(paths, patterns).ruleset, TRIAL_HOMES)


def test_the_kernel_says_of_every_trial_what_the_engine_says(packs: Ruleset) -> None:
    """Each event of each test of each rule that ships, judged by all of them."""
    policy = compiler.compile(
        packs,
        mode="enforce",
        without_hook="kill",
        agents=AgentBits(),
        prevents=False,
        generation=1,
    )
    engine = Engine(packs)
    said: Counter[int] = Counter()
    for one in packs.rules:
        for trial in one.trials:
            for kind in trial.on or one.on:
                fields = dict(trial.fields)
                for made in sample.samples(kind, fields, one.agents[:1], TRIAL_PROJECT):
                    decision = decided(policy, made.event, made.actor)
                    if decision is None:
                        continue
                    for event in made.before:
                        engine.judge(event, made.actor)
                    verdict = engine.judge(made.event, made.actor)
                    wrong = disagreement(policy, made.actor, verdict, decision)
                    assert not wrong, (one.id, made.event)
                    assert not decision.crowded
                    said[decision.verdict] += 1
    assert said[KILL] > 100
    assert said[0] > 100


def test_the_packs_are_lowered_but_for_what_has_a_reason(packs: Ruleset) -> None:
    """Nothing that ships is the engine's for want of room, and every reason is a sentence."""
    policy = compiler.compile(
        packs, mode="enforce", without_hook="kill", agents=AgentBits(), prevents=True, generation=1
    )
    reasons = Counter(one.reason for one in policy.lowered.values())
    print(f"{reasons.pop('')} of {len(packs.rules)} rules are decided in the kernel; else:")
    for reason, number in reasons.most_common():
        print(f"{number:4} {reason}")
        assert reason.endswith(".")
        assert "too long to compile" not in reason
    for automaton in policy.sets:
        print(automaton)
    assert policy.lowered["secrets.ssh-private-keys"].where == "kernel"


def test_rules_that_multiply_push_none_out_that_stops(packs: Ruleset) -> None:
    """What decides in the kernel, and on what is severe, has its place before what only looks."""

    def lowered(*more: Rule) -> set[str]:
        ruleset = replace(packs, rules=(*packs.rules, *more))
        policy = compiler.compile(
            ruleset,
            mode="enforce",
            without_hook="kill",
            agents=AgentBits(),
            prevents=True,
            generation=1,
        )
        return {name for name, one in policy.lowered.items() if one.where == "kernel"}

    stops = {one.id for one in packs.rules if one.action in ("deny", "kill")}
    many = [rule(id=f"x{n}", path=f"/srv/p{n}/**/key{n}.{n}", severity="low") for n in range(100)]
    hard = [rule(id=f"h{n}", path=f"**/*a{n}*b{n}*c*") for n in range(30)]
    left_out = lowered() - lowered(*many, *hard)
    assert not left_out & stops


def test_the_same_rules_make_the_same_bytes() -> None:
    """Whatever order Python's sets have in a process."""
    program = (
        "import hashlib, sys; from pathlib import Path\n"
        "from agentwatch.policy import compiler, patterns\n"
        "from agentwatch.policy.subjects import AgentBits\n"
        "from agentwatch.rules.load import read_rules\n"
        "rules = read_rules([Path(sys.argv[1])], patterns).ruleset\n"
        "found = compiler.compile(rules, mode='enforce', without_hook='kill', agents=AgentBits(),"
        " prevents=True, generation=1)\n"
        "print(hashlib.sha256(found.image).hexdigest())\n"
    )
    pack = REPOSITORY / "rules" / "destruction.yaml"
    found = {
        subprocess.run(
            [sys.executable, "-c", program, pack],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(found) == 1


def test_the_generation_is_one_word_of_the_image() -> None:
    """So that a record says which policy judged it, and nothing else changes."""
    one, other = compiled(rule(path="/x")), compiled(rule(path="/x"), generation=8)
    changed = [place for place in range(SMALLEST) if one.image[place] != other.image[place]]
    assert changed == [8]


@pytest.mark.parametrize(
    ("action", "more", "verdict"),
    [
        ("kill", {}, KILL),
        ("deny", {}, KILL),
        ("deny", {"without_hook": "alert"}, LOOK),
        ("deny", {"without_hook": "refuse"}, KILL),
        ("alert", {}, LOOK),
        ("kill", {"mode": "observe"}, LOOK),
        ("kill", {"count": Count(1, 5)}, LOOK),
    ],
)
def test_an_action_is_answered_as_the_engine_answers_it(
    action: str, more: dict[str, Any], verdict: int
) -> None:
    """A kill, or a look of the engine's; and nothing about another file."""
    policy = compiled(rule(action=action, path="/x", **more))
    assert says(policy, opened("/x")) == verdict
    assert says(policy, opened("/xy")) == 0


def test_observing_kills_nothing_but_where_a_rule_says_so() -> None:
    """The rule's own mode comes first."""
    policy = compiled(rule(path="/x"), rule(id="s", path="/y", mode="enforce"), mode="observe")
    assert says(policy, opened("/x")) == LOOK
    assert says(policy, opened("/y")) == KILL


def test_a_deny_of_a_connection_prevents_what_can_be_prevented() -> None:
    """TCP and UDP over IP; elsewhere it is answered as without_hook says."""
    policy = compiled(rule("connect", family=("inet", "unix")), prevents=True)
    assert says(policy, connected("10.0.0.1")) == DENY
    assert says(policy, connected("10.0.0.1", "icmp")) == KILL
    unix = Connect(**COMMON, family=1, protocol="unix", unix="/x")
    assert says(policy, unix) == KILL
    lenient = compiled(
        rule("connect", family=("inet", "unix"), without_hook="alert"), prevents=True
    )
    assert says(lenient, connected("10.0.0.1")) == DENY
    assert says(lenient, unix) == LOOK


def test_a_kill_beats_a_deny_that_would_prevent() -> None:
    """In whatever order, and the default's too."""
    refused = rule("connect", family="inet")
    deadly = rule("connect", "kill", id="z", addr="10.0.0.1")
    policy = compiled(refused, deadly, prevents=True)
    assert says(policy, connected("10.0.0.1")) == KILL
    assert says(policy, connected("10.0.0.2")) == DENY
    closed = Default("all", "connect", "kill", HERE)
    assert says(compiled(refused, defaults=(closed,), prevents=True), connected("10.0.0.2")) == KILL


def test_an_allow_rule_makes_a_hole_in_a_default() -> None:
    """For the agent that it is for."""
    closed = Default("one", "read", "kill", HERE)
    policy = compiled(rule(action="allow", path="/tmp/**", agents=("one",)), defaults=(closed,))
    assert says(policy, opened("/x"), actor("one")) == KILL
    assert says(policy, opened("/tmp/x"), actor("one")) == 0
    assert says(policy, opened("/x"), actor("two")) == 0
    assert says(policy, opened("/tmp/x", unresolved=frozenset({"path"})), actor("one")) == KILL


def test_nothing_loosens_on_a_name_that_somebody_gave_a_file_system_of_their_own() -> None:
    """Neither an allow rule nor an exception; what restricts does see it."""
    closed = Default("all", "change", "kill", HERE)
    policy = compiled(
        rule("change", "allow", path="**/x"),
        rule(id="s", path="/**", unless=(("x", asked(path="**/x")),)),
        rule(id="t", action="alert", path="**/y"),
        defaults=(closed,),
    )
    written = {"reads": False, "changes": True}
    assert says(policy, opened("/a/x", **written)) == 0
    assert says(policy, opened("[0:9]/a/x", **written)) == KILL
    assert says(policy, opened("/a/x")) == 0
    assert (
        says(compiled(rule(path="**", unless=(("x", asked(path="**/x")),))), opened("[0:9]/x"))
        == KILL
    )
    assert says(policy, opened("[0:9]/a/y")) == LOOK


def test_what_an_allow_rule_of_the_engine_may_allow_is_the_engines() -> None:
    """The kernel must not kill there; everything else it may."""
    closed = Default("all", "read", "kill", HERE)
    vague = rule(action="allow", path="/tmp/**", process__uid="0")
    policy = compiled(vague, defaults=(closed,))
    assert says(policy, opened("/tmp/x")) == LOOK
    assert says(policy, opened("/x")) == KILL
    assert policy.lowered["r"].where == "engine"


def test_opening_is_reading_and_changing() -> None:
    """A default on open is satisfied by allowing what the event does besides."""
    closed = Default("all", "open", "kill", HERE)
    policy = compiled(rule(action="allow", path="/tmp/**"), defaults=(closed,))
    assert says(policy, opened("/tmp/x")) == 0
    assert says(policy, opened("/tmp/x", changes=True)) == KILL
    assert says(policy, opened("/tmp/x", reads=False)) == KILL


def test_own_is_what_each_agent_calls_its_own() -> None:
    """A process of two agents is judged as each alone."""
    policy = compiled(rule(path="/own/**", unless=(("own", asked(path="$own")),)))
    assert says(policy, opened("/own/1/x"), actor("one")) == 0
    assert says(policy, opened("/own/2/x"), actor("one")) == KILL
    assert says(policy, opened("/own/1/x"), actor("one", "two")) == KILL
    assert says(policy, opened("/own/1/x"), actor()) == KILL
    assert policy.lowered["r"].where == "kernel"


def test_the_project_is_the_sessions() -> None:
    """Nothing is in it while it is unset, not even what could not be read."""
    policy = compiled(rule(path=("$project/x/**", "$project")))
    inside = actor(project="/p")
    for name, verdict in {"/p": KILL, "/p/x/y": KILL, "/p/y": 0, "/px": 0}.items():
        assert says(policy, opened(name), inside) == verdict, name
    unread = opened("", unresolved=frozenset({"path"}))
    assert says(policy, unread, inside) == KILL
    assert says(policy, unread, actor()) == 0


def test_predicates_tell_who_makes_the_call() -> None:
    """What is not known of the image restricts, and loosens nothing."""
    spared = (("git", asked(process__exe="/usr/bin/git", process__args=("push **",))),)
    policy = compiled(rule(path="/x", unless=spared), rule(id="s", path="/y", process__exe="/z"))

    def by(exe: str, *args: str) -> Actor:
        return actor(image=Image(exe, argv=("", *args), cwd="/"))

    assert says(policy, opened("/x"), by("/usr/bin/git", "push", "-f")) == 0
    assert says(policy, opened("/x"), by("/usr/bin/git", "pull")) == KILL
    assert says(policy, opened("/x"), by("/usr/bin/gits", "push")) == KILL
    assert says(policy, opened("/y"), by("/z")) == KILL
    assert says(policy, opened("/y"), by("/zz")) == 0
    assert says(policy, opened("/y"), by("")) == KILL
    nobody = replace(actor(), image=None)
    assert says(policy, opened("/x"), nobody) == KILL
    assert says(policy, opened("/y"), nobody) == KILL


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"path__re": "x"}, "`path|re` is an expression, which only the engine can search for."),
        ({"path": "/x", "process__uid": "0"}, "Only the engine knows `process.uid`."),
        ({"path": "/x", "parent__exe": "/y"}, "Only the engine knows `parent.exe`."),
        ({"path": "/x", "session": "1:1"}, "Only the engine knows `session`."),
    ],
)
def test_what_cannot_be_lowered_is_selected_for_the_engine(
    more: dict[str, str], reason: str
) -> None:
    """By name and reason; what is left of it says which events it may be about."""
    policy = compiled(rule(**more))
    assert policy.lowered["r"] == compiler.Lowered("engine", reason, True)
    assert says(policy, opened("/x")) == LOOK
    assert says(policy, opened("/y")) == (0 if "path" in more else LOOK)


def test_an_exception_that_cannot_be_lowered_leaves_the_rule_to_the_engine() -> None:
    """One that can never hold does not."""
    asks = rule(path="/x", unless=(("a", asked(process__uid="0")),))
    assert says(compiled(asks), opened("/x")) == LOOK
    chosen = rule(path="/x", unless=(("a", asked(process__script="/s", process__uid="0")),))
    assert compiled(chosen).lowered["r"].where == "kernel"
    assert says(compiled(chosen), opened("/x")) == KILL


def test_what_no_probe_reports_is_in_no_image() -> None:
    """A rule of such a kind, and one that asks for such a field."""
    policy = compiled(rule("listen", port="1"), rule("connect", id="s", host="x.example"))
    assert policy.lowered["r"].where == "engine"
    assert not policy.lowered["r"].prefiltered
    assert says(policy, connected("10.0.0.1")) == 0


def test_a_paused_rule_is_the_engines() -> None:
    """For the engine knows until when."""
    policy = compiled(rule(path="/x"), paused={"r"})
    assert says(policy, opened("/x")) == LOOK
    assert policy.lowered["r"].where == "engine"


def test_agents_keep_their_bits() -> None:
    """From one policy to the next; beyond the 62nd they share one, which the engine tells apart."""
    first = compiled(rule(path="/x"), agents=AgentBits(("old",)))
    assert first.agents.names == ("old", "one", "two")
    many = AgentBits(tuple(f"a{n}" for n in range(70)))
    assert many.bit("a61") == 61
    assert many.bit("a62") == many.bit("a69") == 62
    policy = compiled(
        rule(path="/x", agents=("a69",)), rule(id="s", path="/y", agents=("a1",)), agents=many
    )
    assert says(policy, opened("/x"), actor("a69")) == LOOK
    assert says(policy, opened("/x"), actor("a1")) == 0
    assert says(policy, opened("/y"), actor("a1")) == KILL


def test_an_image_keeps_to_its_budget() -> None:
    """What has no room is the engine's, and still selected."""
    rules = [
        rule(id=f"r{n}", path=(f"/x{n}/**/y{n}*z/*a*", f"**/b{n:02}*c{n:02}*d/**"))
        for n in range(60)
    ]
    policy = compiled(*rules, size=1 << 18)
    assert len(policy.image) <= 1 << 18
    where = Counter(one.where for one in policy.lowered.values())
    assert where["engine"]
    assert where["kernel"] + where["engine"] == 60
    assert all(one.squeezed == (one.where == "engine") for one in policy.lowered.values())
    for number in range(60):
        found = says(policy, opened(f"/b{number:02}1c{number:02}d/e"))
        assert found == (KILL if policy.lowered[f"r{number}"].where == "kernel" else LOOK)


def test_rules_that_do_not_fit_are_refused() -> None:
    """Whatever is done about their patterns: then there is no policy in the kernel."""
    rules = [rule(id=f"r{n}", path="/x", process__exe="/y") for n in range(3000)]
    with pytest.raises(AgentwatchError, match="3000 rules need more room"):
        compiled(*rules, size=SMALLEST)


def test_too_many_predicates_leave_the_weakest_rules_to_the_engine() -> None:
    """The tag of a process has room for so many."""
    rules = [rule(id=f"r{n:03}", path="/x", process__exe=f"/bin/{n}") for n in range(200)]
    policy = compiled(*rules)
    engine = [one.id for one in rules if policy.lowered[one.id].where == "engine"]
    assert engine == [f"r{n:03}" for n in range(176, 200)]
    assert left_out(policy) == "24 rules stay with the engine for room: r176, r177, r178, ..."
    assert left_out(policy, lambda name: name == "r199").startswith("1 rule stays with")
    assert left_out(policy, lambda name: name == "r000") == left_out(None) == ""
    assert says(policy, opened("/x"), actor(image=Image("/bin/3", cwd="/"))) == KILL
    assert says(policy, opened("/x"), actor(image=Image("/bin/199", cwd="/"))) == LOOK


def test_no_rules_say_nothing() -> None:
    """The smallest image there is."""
    policy = compiled()
    assert len(policy.image) == SMALLEST
    assert decided(policy, opened("/x"), actor()) == Decision()
