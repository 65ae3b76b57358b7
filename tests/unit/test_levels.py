"""What a rule is worth: never more is claimed than the probes there are can do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch.kernel.lsm import HOOKS
from agentwatch.policy.levels import LEVELS, Host, Level, level, prevents, refusal, response
from agentwatch.rules import fields
from agentwatch.rules.model import Condition, Match, Place, Rule

HERE = Place("test.yaml", 1, 1)
HOST = Host()
HOOKED = Host(cgroup=True)
KERNEL = ""  # why the engine decides: it does not


def rule(
    action: str, on: tuple[str, ...] = ("read",), without_hook: str = "kill", **fields: str
) -> Rule:
    match = Match(tuple(Condition(name, (value,)) for name, value in fields.items()))
    return Rule("r", on, match, action, HERE, without_hook=without_hook)


@pytest.mark.parametrize("on", ["exec", "read", "change", "open", "connect"])
@pytest.mark.parametrize(
    ("action", "without_hook", "name"),
    [
        ("kill", "kill", "kills-after"),
        ("kill", "alert", "kills-after"),
        ("deny", "kill", "kills-after"),
        ("deny", "refuse", "kills-after"),
        ("deny", "alert", "detects"),
        ("alert", "kill", "detects"),
        ("allow", "kill", "detects"),
    ],
)
def test_the_engine_kills_after_or_detects(
    on: str, action: str, without_hook: str, name: str
) -> None:
    """Whatever the kind, what the engine decides comes after the effect."""
    found = level(rule(action, (on,), without_hook), HOST)
    assert found.name == name
    assert found.name in LEVELS


def test_observing_detects() -> None:
    """In observe mode no rule stops anything, and the reason says so."""
    found = level(rule("kill"), HOST, mode="observe")
    assert found.name == "detects"
    assert "observe" in found.reason


def test_a_level_and_a_response_never_disagree() -> None:
    """What is claimed beforehand is what happens: kills-after exactly where the response kills."""
    for action in ("allow", "alert", "deny", "kill"):
        for without_hook in ("kill", "alert", "refuse"):
            for mode in ("observe", "enforce"):
                kills = (
                    level(rule(action, without_hook=without_hook), HOST, mode).name == "kills-after"
                )
                assert kills == (response(action, without_hook, mode) == "kill")


def test_without_probes_a_rule_is_worth_nothing() -> None:
    """A host whose tracing programs do not attach enforces nothing and does not claim to."""
    assert level(rule("kill"), Host(tracing=False)).name == "none"


@pytest.mark.parametrize("fields", [{"host": "*.example.com"}, {"peer": "own"}])
def test_a_rule_about_what_no_probe_gives_is_worth_nothing(fields: dict[str, str]) -> None:
    """Such a rule can never match, and its level says which field it is."""
    found = level(rule("kill", ("connect",), **fields), HOST)
    assert found.name == "none"
    assert next(iter(fields)) in found.reason


@pytest.mark.parametrize("match", [{"op": "delete"}, {"op": "mkdir"}, {"new_path": "/x"}])
def test_a_change_that_is_no_opening_is_killed_for_after_it(match: dict[str, str]) -> None:
    """By the engine, whoever decides about openings; and the reason says what is known of names."""
    found = level(rule("kill", ("change",), **match), HOST, engine="")
    assert found.name == "kills-after"
    assert "the names the call was given" in found.reason
    assert level(rule("alert", ("change",), **match), HOST, engine="").name == "detects"


def test_a_change_of_any_operation_says_what_becomes_of_each() -> None:
    """An opening is the kernel's, what else there is the engine's; `op: open` is no more."""
    every = level(rule("kill", ("change",)), HOST, engine="")
    assert every.name == "kills-after"
    assert "at the end of the call that opens" in every.reason
    assert "rename, delete" in every.reason
    assert "rename" not in level(rule("kill", ("change",), op="open"), HOST, engine="").reason


def test_lossy_is_a_flag_beside_the_level() -> None:
    """On kernels that skip tracing programs it is shown, and is no level of its own."""
    found = level(rule("kill"), Host(lossy=True))
    assert (found.name, found.lossy, str(found)) == ("kills-after", True, "kills-after (lossy)")
    assert str(Level("detects")) == "detects"


def test_what_hooks_and_cgroups_refuse_is_never_lossy() -> None:
    """Their programs are not skipped; the same rules by the engine or without them are lossy."""
    host = Host(frozenset(HOOKS), cgroup=True, lossy=True)
    tcp = rule("deny", ("connect",), addr="10.0.0.1", proto="tcp")
    for one in (rule("deny"), rule("kill", ("exec",)), tcp):
        assert str(level(one, host, engine="")) == "prevents"
        assert level(one, host, engine="It counts.").lossy
        assert level(one, Host(lossy=True), engine="").lossy
    assert str(level(tcp, Host(cgroup=True, lossy=True), engine="")) == "prevents"
    assert str(level(rule("deny", ("exec",), args="x"), host, engine="")) == "kills (lossy)"


@pytest.mark.parametrize("action", ["allow", "alert", "deny", "kill"])
def test_every_level_has_a_sentence(action: str) -> None:
    """A reason begins with a capital, ends with a full stop and is one line."""
    for mode in ("observe", "enforce"):
        reason = level(rule(action), HOST, mode).reason
        assert reason[0].isupper()
        assert reason.endswith(".")
        assert "\n" not in reason


def test_a_rule_that_insists_on_prevention_is_refused() -> None:
    """`without_hook: refuse` names the rule, the kinds and what to write instead."""
    message = refusal(rule("deny", ("read", "change"), "refuse"), HOST)
    assert message is not None
    for part in ("r ", "read, change", "without_hook: kill"):
        assert part in message
    assert refusal(rule("deny"), HOST) is None
    assert refusal(rule("kill", without_hook="refuse"), HOST) is None
    silent = replace(rule("deny"), without_hook="")
    assert "this host" in (refusal(silent, HOST, "refuse") or "")
    assert refusal(silent, HOST) is None
    assert refusal(rule("deny", without_hook="kill"), HOST, "refuse") is None


@pytest.mark.parametrize(
    ("own", "whole", "name"),
    [
        ("", "enforce", "kills-after"),
        ("observe", "enforce", "detects"),
        ("enforce", "observe", "kills-after"),
    ],
)
def test_a_rules_own_mode_is_what_its_level_is_about(own: str, whole: str, name: str) -> None:
    """And so is the host's without_hook where the rule has none."""
    assert level(replace(rule("kill"), mode=own), HOST, whole).name == name
    silent = replace(rule("deny"), mode=own, without_hook="")
    found = level(silent, HOST, whole, "alert")
    assert found.name == "detects"
    if name == "kills-after":
        assert "this host's setting" in found.reason


@pytest.mark.parametrize("kind", sorted(fields.UNPROBED_KINDS))
def test_a_kind_without_a_probe_is_worth_nothing_alone(kind: str) -> None:
    """Beside one that has a probe, the reason says what is missing."""
    assert level(rule("kill", (kind,)), HOST).name == "none"
    both = level(rule("kill", ("exec", kind)), HOST)
    assert (both.name, f"`{kind}`" in both.reason) == ("kills-after", True)


@pytest.mark.parametrize("action", ["deny", "kill"])
@pytest.mark.parametrize(
    ("kind", "host", "fields", "name", "words"),
    [
        ("exec", HOST, {}, "kills", "runs an instruction"),
        ("read", HOST, {"path": "/k"}, "kills", "can read"),
        ("change", HOST, {"path": "/k"}, "kills-after", "created or emptied"),
        ("open", HOST, {"path": "/k"}, "kills-after", "created or emptied"),
        ("connect", HOST, {"addr": "192.0.2.1"}, "kills-after", "other end"),
        ("connect", HOOKED, {"addr": "192.0.2.1"}, "prevents", "EPERM"),
        ("connect", HOOKED, {"port": "25"}, "prevents", "another protocol is killed after"),
        ("connect", HOOKED, {"proto": "udp"}, "prevents", "EPERM"),
        ("connect", HOOKED, {"family": "inet6"}, "prevents", "another protocol is killed after"),
        ("connect", HOOKED, {"addr": "192.0.2.1", "proto": "icmp"}, "kills-after", "other end"),
        ("connect", HOOKED, {"port": "25", "proto": "sctp"}, "kills-after", "other end"),
        ("connect", HOOKED, {"family": "inet", "proto": "icmpv6"}, "kills-after", "other end"),
        ("connect", HOOKED, {"proto": "unix"}, "kills-after", "other end"),
        ("connect", HOOKED, {"unix": "/run/x"}, "kills-after", "other end"),
        ("connect", HOOKED, {}, "kills-after", "TCP and UDP it refuses"),
    ],
)
def test_what_the_kernel_decides_is_worth_more(
    action: str, kind: str, host: Host, fields: dict[str, str], name: str, words: str
) -> None:
    """By kind, and connections by whether a hook refuses them before anything is sent."""
    found = level(rule(action, (kind,), **fields), host, engine=KERNEL)
    assert found.name == name
    assert words in found.reason
    assert ("TCP and UDP it refuses" in found.reason) == (host is HOOKED and not fields)
    assert found.reason.endswith(".")


def test_a_rule_of_several_kinds_is_worth_the_least_of_them() -> None:
    """And the reason says which kind of it is better off."""
    found = level(rule("deny", ("exec", "change")), HOST, engine=KERNEL)
    assert found.name == "kills-after"
    assert "for `exec` alone it is `kills`" in found.reason
    found = level(rule("deny", ("exec", "connect"), port="25"), HOOKED, engine=KERNEL)
    assert found.name == "kills"
    assert "for `connect` alone it is `prevents`" in found.reason


def test_a_deny_that_only_alerts_without_a_hook_prevents_where_there_is_one() -> None:
    """`without_hook: alert` is about hosts that lack it."""
    one = rule("deny", ("connect",), "alert", addr="192.0.2.1")
    assert level(one, HOOKED, engine=KERNEL).name == "prevents"
    assert level(one, HOST, engine=KERNEL).name == "detects"
    assert level(rule("deny", ("read",), "alert"), HOOKED, engine=KERNEL).name == "detects"


def test_what_the_engine_decides_says_why() -> None:
    """The level is the engine's, whatever hooks there are."""
    why = "`path|re` is an expression, which only the engine can search for."
    found = level(rule("kill"), HOOKED, engine=why)
    assert found.name == "kills-after"
    assert found.reason.startswith(why[:-1])
    assert "milliseconds after" in found.reason


def test_observing_detects_in_the_kernel_too() -> None:
    """Nothing is stopped, so nothing is claimed."""
    one = rule("deny", ("connect",), addr="192.0.2.1")
    assert level(one, HOOKED, mode="observe", engine=KERNEL).name == "detects"
    assert level(rule("alert", ("exec",)), HOOKED, engine=KERNEL).name == "detects"
    assert level(rule("allow", ("exec",)), HOOKED, engine=KERNEL).name == "detects"


def test_prevention_is_granted_where_the_hook_is() -> None:
    """A rule that insists on it loads, unless it is about unix sockets, or the engine's."""
    one = rule("deny", ("connect",), "refuse", addr="192.0.2.1", proto="tcp")
    assert refusal(one, HOOKED, engine=KERNEL) is None
    assert prevents(one, HOOKED, KERNEL)
    assert "cannot be prevented" in (refusal(one, HOST, engine=KERNEL) or "")
    everything = rule("deny", ("connect",), "refuse")
    assert "unix sockets" in (refusal(everything, HOOKED, engine=KERNEL) or "")
    assert "Only the engine" in (refusal(one, HOOKED, engine="Only the engine knows it.") or "")
    both = rule("deny", ("connect", "read"), "refuse", addr="192.0.2.1")
    assert refusal(both, HOOKED, engine=KERNEL) is not None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"addr": "192.0.2.1"}, "add `proto: [tcp, udp]`"),
        ({"port": "25"}, "add `proto: [tcp, udp]`"),
        ({"family": "inet"}, "add `proto: [tcp, udp]`"),
        ({"addr": "192.0.2.1", "proto": "icmp"}, "name no other `proto`"),
        ({"proto": "sctp"}, "name no other `proto`"),
    ],
)
def test_prevention_is_not_granted_for_what_is_not_refused(
    fields: dict[str, str], words: str
) -> None:
    """Raw and ICMP sockets reach an address, too; the message says what to write."""
    one = rule("deny", ("connect",), "refuse", **fields)
    assert not prevents(one, HOOKED, KERNEL)
    assert words in (refusal(one, HOOKED, engine=KERNEL) or "")


def test_protocols_of_which_one_is_not_refused_are_not_prevented() -> None:
    """TCP alone would be, and so are TCP and UDP."""
    one = rule("deny", ("connect",), "refuse", addr="192.0.2.1")
    for values, name in ((("tcp", "icmp"), "kills-after"), (("tcp", "udp"), "prevents")):
        match = Match((*one.match.conditions, Condition("proto", values)))
        found = replace(one, match=match)
        assert level(found, HOOKED, engine=KERNEL).name == name
        assert prevents(found, HOOKED, KERNEL) == (name == "prevents")
        assert "another protocol" not in level(found, HOOKED, engine=KERNEL).reason


def test_what_other_protocols_come_to_is_what_the_rule_says() -> None:
    """A rule that only alerts without a hook does not kill who connects by them either."""
    one = rule("deny", ("connect",), "alert", addr="192.0.2.1")
    assert "another protocol is recorded only" in level(one, HOOKED, engine=KERNEL).reason
