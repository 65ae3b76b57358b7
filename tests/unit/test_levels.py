"""What a rule is worth: never more is claimed than the probes there are can do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch.policy.levels import LEVELS, Host, Level, level, refusal, response
from agentwatch.rules import fields
from agentwatch.rules.model import Condition, Match, Place, Rule

HERE = Place("test.yaml", 1, 1)
HOST = Host()


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


@pytest.mark.parametrize("fields", [{"host": "*.example.com"}, {"peer": "own"}, {"new_path": "/x"}])
def test_a_rule_about_what_no_probe_gives_is_worth_nothing(fields: dict[str, str]) -> None:
    """Such a rule can never match, and its level says which field it is."""
    kind = "change" if "new_path" in fields else "connect"
    found = level(rule("kill", (kind,), **fields), HOST)
    assert found.name == "none"
    assert next(iter(fields)) in found.reason


def test_an_operation_that_no_probe_sees_is_worth_nothing() -> None:
    """Deletions are not seen yet; creations by opening are."""
    assert level(rule("kill", ("change",), op="delete"), HOST).name == "none"
    assert level(rule("kill", ("change",), op="create"), HOST).name == "kills-after"


def test_changes_are_said_to_be_seen_by_opening_only() -> None:
    """A change rule without `op` promises no more than it keeps."""
    assert "renamed or deleted" in level(rule("kill", ("change",)), HOST).reason


def test_lossy_is_a_flag_beside_the_level() -> None:
    """On kernels that skip tracing programs it is shown, and is no level of its own."""
    found = level(rule("kill"), Host(lossy=True))
    assert (found.name, found.lossy, str(found)) == ("kills-after", True, "kills-after (lossy)")
    assert str(Level("detects")) == "detects"


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
