"""Small policies and events made at random, and the question whether two judges agree on one."""

from __future__ import annotations

import os
import socket

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from agentwatch.engine import Verdict
from agentwatch.events import Connect, Event, Exec, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.image import DENY, KILL, LOOK, Decision
from agentwatch.policy.image import Image as PolicyImage
from agentwatch.policy.subjects import subject_of
from agentwatch.rules.model import Agent, Condition, Count, Default, Match, Place, Rule, Ruleset

HERE = Place("made.yaml", 1, 1)
SESSION, PROCESS = ProcessKey(1, 1), ProcessKey(2, 2)
HOMES = ("/h/a", "/h/b")
PROJECT = "/h/a/p"
AGENTS = ("one", "two", "six")  # of which the ruleset defines two

_PATH_GLOBS = (
    *("**", "/**", "/h/**", "/h/*", "/h/a", "/h/?/**", "**/x", "**/x/**", "**/*.pub", "/**/x/*"),
    *("~/**", "~/x", "~", "~/.[!s]*/**", "$own", "$project/**", "$project", "$project/x/*"),
    *("/h/{a,b}/x", "**/p/**/x", "/", "**/[a-b]/*", "/h/a/**/y", "**/x*y*", "@x"),
)
_NAMES = (
    *("/", "/h", "/h/a", "/h/b", "/h/a/x", "/h/b/x", "/h/a/p", "/h/a/p/x", "/h/a/p/x/y", "/h/a/px"),
    *(
        "/x",
        "/x/y/x",
        "/h/a/.ssh/k.pub",
        "/h/a/.config/x",
        "/h/c/p/a/b/x",
        "[0:9]/h/a/x",
        "[0:9]/x",
        "/h/xay",
    ),
    *("/own/1", "/own/2/x", "", "/h/\udcff/x", "/h/é/x", "/usr/bin/x"),
)
_ARG_GLOBS = ("**", "x", "x **", "** x", "** -f* **", "x y", "{a,x} **", "*", "x * **", "* x")
_TOKENS = ("x", "y", "a", "-f", "-fx", "--", "x y", "", "/h/a/x")
_WORDS = {
    "exec": {"stdin": ("tty", "pipe", "null"), "anonymous": ("true", "false")},
    "read": {"access": ("read", "write"), "op": ("open", "create", "truncate")},
    "connect": {"proto": ("tcp", "udp", "unix"), "family": ("inet", "inet6", "unix")},
}
_ENGINE_ONLY = {"exec": ("script", "argv", "argc"), "read": (), "connect": ("host",)}
_KINDS = (("exec",), ("read",), ("change",), ("read", "change"), ("open",), ("connect",))


def _literal(draw: DrawFn, values: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    how = draw(st.sampled_from(("startswith", "endswith", "contains")))
    values = tuple(v for v in values if v not in ("$own", "$project") and v)
    return frozenset({how}), values or ("x",)


@st.composite
def conditions(draw: DrawFn, kinds: tuple[str, ...]) -> Condition:
    """A condition that events of these kinds have, some of which only the engine knows."""
    sort = kinds[0] if kinds[0] in _WORDS else "read"
    own = {"exec": ("path", "args", "cwd"), "read": ("path",), "connect": ("addr", "port", "unix")}
    common = ("process.exe", "process.cwd", "process.args", "agent")
    rare = ("parent.exe", "process.role", "process.script", *_ENGINE_ONLY[sort])
    field = draw(st.sampled_from((*own[sort] * 4, *_WORDS[sort], *common, *rare)))
    return draw(_of_field(field, sort))


@st.composite
def _of_field(draw: DrawFn, field: str, sort: str) -> Condition:
    some = {"min_size": 1, "max_size": 3}
    if field in _WORDS[sort]:
        words = draw(st.lists(st.sampled_from(_WORDS[sort][field]), **some))
        return Condition(field, tuple(words))
    if field in ("process.role", "agent", "argc", "port"):
        values = {"process.role": ("agent", "child"), "agent": AGENTS, "argc": ("1", "2")}
        ports = values.get(field, ("80", "443", "80-90", "255-512", "1-65535"))
        return Condition(field, tuple(draw(st.lists(st.sampled_from(ports), **some))))
    if field == "addr":
        networks = ("10.0.0.0/8", "::/0", "0.0.0.0/0", "fe80::/10", "10.1.2.3/32", "::ffff:0:0/95")
        if draw(st.booleans()):
            return Condition(
                field, tuple(draw(st.lists(st.sampled_from(networks), **some))), frozenset({"cidr"})
            )
        return Condition(field, ("10.1.2.3", "::1"))
    if field == "host":
        return Condition(field, (draw(st.sampled_from(("x.example", "**.x"))),))
    if field.endswith(("args", "argv")):
        return draw(_of_arguments(field))
    values = tuple(draw(st.lists(st.sampled_from(_PATH_GLOBS), **some)))
    modifiers: frozenset[str] = frozenset()
    if draw(st.integers(0, 5)) == 0:
        modifiers, values = _literal(draw, values)
    elif draw(st.integers(0, 5)) == 0:
        modifiers = frozenset({"nocase"})
    return Condition(field, values, modifiers)


@st.composite
def _of_arguments(draw: DrawFn, field: str) -> Condition:
    how = draw(st.integers(0, 4))
    if how == 0:
        tokens = draw(
            st.lists(st.sampled_from(("x", "y", "*", "**", "-f*")), min_size=1, max_size=3)
        )
        return Condition(field, tuple(tokens), sequence=True)
    if how == 1:
        values = tuple(draw(st.lists(st.sampled_from(("x", "-f*", "*y", "a")), min_size=1)))
        every = {"all"} if draw(st.booleans()) else set[str]()
        return Condition(field, values, frozenset({"has"} | every))
    if how == 2:
        found = frozenset({draw(st.sampled_from(("contains", "startswith", "endswith")))})
        return Condition(field, (draw(st.sampled_from(("x", "x y", "-f"))),), found)
    return Condition(field, tuple(draw(st.lists(st.sampled_from(_ARG_GLOBS), min_size=1))))


@st.composite
def rules(draw: DrawFn, number: int) -> Rule:
    """A rule of any action, with exceptions, for some agents or all."""
    kinds = draw(st.sampled_from(_KINDS))
    matches = st.lists(conditions(kinds), max_size=3).map(tuple).map(Match)
    action = draw(st.sampled_from(("allow", "alert", "deny", "kill", "kill")))
    exceptions = draw(st.lists(matches, max_size=2))
    return Rule(
        id=f"r{number}",
        on=kinds,
        match=draw(matches),
        action=action,
        place=HERE,
        agents=tuple(draw(st.sets(st.sampled_from(AGENTS[:2]), max_size=1))),
        unless=tuple((f"u{n}", one) for n, one in enumerate(exceptions)),
        without_hook=draw(st.sampled_from(("", "", "alert"))),
        mode=draw(st.sampled_from(("", "", "observe", "enforce"))),
        count=Count(1, 10) if draw(st.integers(0, 9)) == 0 else None,
        severity=draw(st.sampled_from(("low", "high"))),
    )


@st.composite
def rulesets(draw: DrawFn) -> Ruleset:
    """Up to four rules, two agents, some defaults."""
    made = tuple(draw(rules(n)) for n in range(draw(st.integers(1, 4))))
    # Where something is allowed, it is mostly closed, too.
    allowed = [kind for one in made if one.action == "allow" for kind in one.on]
    default = st.builds(
        Default,
        agent=st.sampled_from(("all", "one")),
        kind=st.sampled_from((*allowed * 4, "exec", "read", "change", "open", "connect")),
        action=st.sampled_from(("alert", "deny", "kill")),
        place=st.just(HERE),
    )
    agents = tuple(
        Agent(name, name, ("**/bin/agent-of-tests",), (f"/own/{place}/**",), HERE)
        for place, name in enumerate(AGENTS[:2], 1)
    )
    return Ruleset(
        rules=made,
        agents=agents,
        defaults=tuple(draw(st.lists(default, max_size=2))),
        homes=HOMES,
    )


_names = st.sampled_from(_NAMES)
_tokens = st.lists(st.sampled_from(_TOKENS), max_size=4).map(tuple)


@st.composite
def actors(draw: DrawFn) -> Actor:
    """Of any agents, and one whose image is known, unknown, or not there yet."""
    image = Image(
        exe=draw(_names),
        script=draw(st.sampled_from((None, "/h/a/x"))),
        argv=("0", *draw(_tokens)),
        cwd=draw(_names),
        identity=draw(st.sampled_from((None, "one"))),
    )
    begins = draw(st.integers(0, 4)) == 0
    return Actor(
        process=SESSION if begins else PROCESS,
        session=SESSION,
        agents=tuple(draw(st.lists(st.sampled_from(AGENTS), unique=True, max_size=2))),
        image=None if draw(st.integers(0, 4)) == 0 else image,
        ancestors=(image,) if draw(st.booleans()) else (),
        project=draw(st.sampled_from((None, PROJECT))),
    )


@st.composite
def events(draw: DrawFn, process: ProcessKey) -> Event:
    """One that the probes report, with some fields unread."""
    unread = draw(st.sets(st.sampled_from(("path", "cwd", "argv", "address")), max_size=1))
    common = {
        "time": 1,
        "process": process,
        "session": SESSION,
        "unresolved": frozenset(unread if draw(st.integers(0, 3)) == 0 else ()),
    }
    kind = draw(st.sampled_from(("exec", "open", "connect")))
    if kind == "exec":
        argv = ("0", *draw(_tokens))
        return Exec(
            **common,
            path=draw(_names),
            asked="x",
            script=draw(st.sampled_from((None, "/h/a/x"))),
            argv=argv,
            argc=len(argv),
            stdin=draw(st.sampled_from(("tty", "pipe", "null", "file"))),
            cwd=draw(_names),
            anonymous=draw(st.booleans()),
        )
    if kind == "open":
        return Open(
            **common,
            path=draw(_names),
            flags=draw(st.sampled_from((0, os.O_TRUNC))),
            reads=draw(st.booleans()),
            changes=draw(st.booleans()),
            created=draw(st.booleans()),
        )
    return draw(_connects(common))


@st.composite
def _connects(draw: DrawFn, common: dict[str, object]) -> Event:
    origin = {"from_socket": draw(st.booleans())}
    if draw(st.integers(0, 3)) == 0:
        return Connect(
            **common, **origin, family=socket.AF_UNIX, protocol="unix",
            unix=draw(st.sampled_from((*_NAMES, "@x"))),
        )  # fmt: skip
    addr = draw(st.sampled_from(("10.1.2.3", "11.0.0.1", "::1", "fe80::1", "::ffff:10.1.2.3", "")))
    protocol = draw(st.sampled_from(("tcp", "udp", "icmp", "")))
    return Connect(
        **common,
        **origin,
        family=draw(st.sampled_from((socket.AF_INET, socket.AF_INET6))),
        addr=addr,
        port=draw(st.sampled_from((0, 80, 85, 255, 256, 443, 65535))),
        protocol=protocol,
        syn=protocol == "tcp",
    )


def decided(compiled: Compiled, event: Event, actor: Actor) -> Decision | None:
    """What the kernel says; None for what it does not see."""
    image = PolicyImage(compiled.image)
    subject = subject_of(event, actor, compiled.agents, image.predicates_for(actor))
    return None if subject is None else image.decide(subject)


def disagreement(compiled: Compiled, actor: Actor, verdict: Verdict, decision: Decision) -> str:
    """In what the kernel (that prevents nothing) and the engine differ, or ""."""
    lowered = {rule for rule, one in compiled.lowered.items() if one.where == "kernel"}
    allowing = {r.rule for r in compiled.rules if r.action == "allow"} - lowered
    said = f"kernel {decision}, engine {verdict}"
    if decision.verdict == DENY:
        return f"nothing can be denied: {said}"
    if decision.verdict == KILL:
        if verdict.response != "kill":
            return f"only the kernel kills: {said}"
        winner = compiled.rules[decision.rule - 1].rule
        alone = len(actor.agents) < 2  # as several agents, the first of equals wins in the engine
        sure = verdict.default or verdict.rule in lowered
        if alone and sure and winner != (verdict.rule or ""):
            return f"another rule wins ({winner}): {said}"
        return ""
    if verdict.response == "kill" and (
        verdict.rule in lowered or (verdict.default and not allowing)
    ):
        return f"only the engine kills: {said}"
    if verdict.response != "none" and decision.verdict != LOOK:
        return f"the engine is not shown it: {said}"
    return ""
