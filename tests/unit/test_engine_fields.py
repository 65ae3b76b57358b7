"""Which events are judged, by which fields, and how candidates are found."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace

import pytest

from agentwatch.engine import NO_VERDICT
from agentwatch.events import Connect, Event, Exec, Exit, Open
from agentwatch.lineage import Image
from agentwatch.policy.readers import kinds_of
from agentwatch.policy.table import Masks
from agentwatch.rules.model import Rule
from tests.unit.small import (
    KEY,
    actor,
    connected,
    engine,
    match,
    opened,
    ran,
    rule,
)


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
