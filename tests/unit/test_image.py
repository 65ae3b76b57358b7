"""The image decides as the engine does: policies and events at random, and each step by itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError
from agentwatch.events import Connect
from agentwatch.policy import compiler, dfa, layout
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.image import DENY, KILL, LOOK, SMALLEST, Decision, Image
from agentwatch.policy.subjects import EXEC, AgentBits, Subject
from agentwatch.rules.model import Condition, Match, Rule, Ruleset
from tests.unit.policies import HERE, actors, decided, disagreement, events, rulesets

BPF = Path(__file__).parents[2] / "bpf"


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rulesets(), st.sampled_from(("enforce", "enforce", "observe")), st.data())
def test_the_kernel_kills_what_the_engine_would(
    ruleset: Ruleset, mode: str, data: st.DataObject
) -> None:
    """Each rule that is lowered; and nothing that any rule is about escapes the engine."""
    compiled = compiler.compile(
        ruleset,
        mode=mode,
        without_hook="kill",
        agents=AgentBits(("six",)),
        prevents=False,
        generation=1,
    )
    for _ in range(8):
        actor = data.draw(actors())
        event = data.draw(events(actor.process))
        decision = decided(compiled, event, actor)
        if decision is not None:
            verdict = Engine(ruleset, mode=mode).judge(event, actor)
            assert not disagreement(compiled, actor, verdict, decision), (event, actor)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rulesets(), st.data())
def test_what_can_be_prevented_is_denied_and_nothing_else_changes(
    ruleset: Ruleset, data: st.DataObject
) -> None:
    """A deny of a connection; what kills still kills, and what is nothing stays nothing."""

    def made(prevents: bool) -> Compiled:
        return compiler.compile(
            ruleset,
            mode="enforce",
            without_hook="kill",
            agents=AgentBits(),
            prevents=prevents,
            generation=1,
        )

    after, before = made(False), made(True)
    for _ in range(8):
        actor = data.draw(actors())
        event = data.draw(events(actor.process))
        late, early = decided(after, event, actor), decided(before, event, actor)
        if late is None or early is None:
            continue
        if early.verdict == DENY:
            assert isinstance(event, Connect)
            assert event.protocol in ("tcp", "udp")
            assert before.rules[early.rule - 1].action == "deny"
            assert late.verdict in (KILL, LOOK)
            if late.verdict == KILL:
                assert after.rules[late.rule - 1].action == "deny"
        else:
            assert early.verdict == late.verdict


def test_more_lists_than_there_is_room_for_restrict() -> None:
    """Where the walk loses count, no exception holds and every rule may."""
    rules = tuple(
        Rule(
            id=f"r{number}",
            on=("exec",),
            match=Match((Condition("args", (f"t{number}",), frozenset({"has"})),)),
            action="alert",
            place=HERE,
        )
        for number in range(100)
    )
    spared = Match((Condition("path", ("/x",)),))
    deadly = Rule(
        id="deadly",
        on=("exec",),
        match=Match((Condition("cwd", ("/y",)),)),
        action="kill",
        place=HERE,
        unless=(("spared", spared),),
    )
    compiled = compiler.compile(
        Ruleset((*rules, deadly)),
        mode="enforce",
        without_hook="kill",
        agents=AgentBits(),
        prevents=False,
        generation=1,
    )
    image = Image(compiled.image)
    subject = Subject(kinds=EXEC, path=b"/x/", cwd=b"/y/", args=b"t1\0")
    assert image.decide(subject).verdict == LOOK
    many = b"".join(b"t%d\0" % number for number in range(100))
    assert image.decide(replace(subject, args=many)) == Decision(KILL, 1, True)


@pytest.mark.parametrize("blob", [b"", bytes(SMALLEST), bytes(SMALLEST + 1)])
def test_bytes_that_are_no_image_are_refused(blob: bytes) -> None:
    """Empty, of no version, of no power of two."""
    with pytest.raises(AgentwatchError):
        Image(blob)


def test_the_layout_is_that_of_the_contract() -> None:
    """The numbers that bpf/agentwatch.h has for the kernel's side."""
    header = (Path(__file__).resolve().parents[2] / "bpf" / "agentwatch.h").read_text()
    found = dict(re.findall(r"^#define AW_POLICY_(\w+) (\w+)", header, re.MULTILINE))
    expected = {
        "MAGIC": layout.MAGIC,
        "ABI": layout.ABI,
        "OBJECT": layout.OBJECT,
        "GENERATION": layout.H_GENERATION,
        "BASE": layout.H_BASE_EXEC,
        "UNREAD": layout.H_UNREAD_EXEC,
        "DEFAULTS": layout.H_DEFAULTS,
        "ROLES": layout.H_ROLES_MATCH,
        "UNREAD_ROLES": layout.H_UNREAD_EXE,
        "SETS": layout.H_SETS,
    }
    assert {name: int(found[name], 0) for name in expected} == expected


def test_the_symbols_are_those_of_the_walker() -> None:
    """Where classes begin, what is reachable, and what is sticky below directories."""
    sources = "".join(path.read_text() for path in sorted(BPF.glob("*.bpf.c")))
    found = dict(re.findall(r"#define (FIRST_CLASS|AW_SYMBOL_\w+) (\d+)", sources))
    assert int(found["FIRST_CLASS"]) == layout.VIRTUAL == dfa.FIRST_CLASS
    assert int(found["AW_SYMBOL_REACH"]) == layout.REACH
    assert int(found["AW_SYMBOL_BELOW"]) == layout.REACH + 1
