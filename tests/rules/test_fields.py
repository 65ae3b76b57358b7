"""The one table of fields: the engine can judge all of it, and the documentation says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwatch import admission
from agentwatch.engine import Engine
from agentwatch.errors import RuleErrors
from agentwatch.policy import patterns
from agentwatch.rules import fields, sample
from agentwatch.rules.load import read_rules
from agentwatch.rules.model import KINDS, Condition, Match, Place, Rule, Ruleset

VALUES = {
    "path": ("/x", "/x"),
    "unix": ("/x", "/x"),
    "argv": ("a", ("a",)),
    "address": ("192.0.2.1", "192.0.2.1"),
    "host": ("*.example.com", "www.example.com"),
    "text": ("7:*", "7:700"),
    "agent": ("stub", "stub"),
    "number": ("7", 7),
    "port": ("7", 7),
    "flag": ("true", "true"),
}
PLACE = Place("test.yaml", 1, 1)
CASES = [
    (field, kind, word)
    for field in fields.FIELDS
    if field.name != "starts_agent"
    for kind in field.kinds
    for word in field.words or ("",)
]


@pytest.mark.parametrize(
    ("field", "kind", "word"), CASES, ids=lambda case: getattr(case, "name", case)
)
def test_every_field_is_judged_and_can_be_tested(field: fields.Field, kind: str, word: str) -> None:
    """A condition on it holds for an event made with its value, and for none made without."""
    rule_value, event_value = (word, word) if word else VALUES[field.type]
    condition = Condition(field.name, (rule_value,))
    engine = Engine(Ruleset(rules=(Rule("r", (kind,), Match((condition,)), "alert", PLACE),)))
    with_it = {field.name: event_value}
    if field.name == "argv":
        with_it = {"argv": ("a",)}
    made = sample.samples(kind, with_it, (), None)
    for one in made:
        for earlier in one.before:
            engine.judge(earlier, one.actor)
    assert any(engine.judge(one.event, one.actor).rule == "r" for one in made)
    engine.memory.forget(made[0].event.session)
    if field.name not in ("access", "op", "process.role", "anonymous"):
        without = sample.samples(kind, {}, (), None)
        assert all(engine.judge(one.event, one.actor).rule is None for one in without)


def test_a_name_means_one_type_everywhere() -> None:
    """`path` of an exec and of a read are matched alike."""
    types: dict[str, set[str]] = {}
    for field in fields.FIELDS:
        types.setdefault(field.name, set()).add(field.type)
        assert set(field.kinds) <= set(KINDS)
    assert all(len(found) == 1 for found in types.values())


def test_the_example_in_the_documentation_is_a_rule(repository: Path, tmp_path: Path) -> None:
    """What a newcomer copies loads without a warning, and its tests pass."""
    page = (repository / "docs" / "rules.md").read_text()
    copied = tmp_path / "my.yaml"
    copied.write_text(page.split("```yaml\n")[1].split("```")[0])
    admitted = admission.admit([copied], homes=("/home/dev",))
    assert (len(admitted.ruleset.rules), admitted.warnings) == (1, ())


def test_the_reference_in_the_documentation_is_the_table(repository: Path) -> None:
    """docs/rules.md has the tables of kinds and fields as fields.py writes them."""
    page = (repository / "docs" / "rules.md").read_text()
    assert fields.reference() in page
    assert fields.kinds_reference() in page
    assert tuple(fields.ABOUT_KINDS) == KINDS


def test_every_example_in_the_documentation_is_read(repository: Path, tmp_path: Path) -> None:
    """Parts of files are put where they belong; what they say of agents and lists is made up."""
    page = (repository / "docs" / "rules.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```yaml\n")[2:]]
    assert len(blocks) >= 4
    agent = "agents: [{id: claude-code, exec: '**/claude/versions/*', own: '~/.claude/**'}]\n"
    for block in blocks:
        path = tmp_path / "r.yaml"
        if block.startswith("tests:"):
            lines = "".join(f"    {line}\n" for line in block.splitlines())
            block = f"  - id: a\n    on: read\n    match: {{path: /x}}\n    action: alert\n{lines}"
            block += "    because: b\n"
        text = "schema: agentwatch/v1\n" + ("" if block.startswith("agents:") else agent)
        path.write_text(text + ("rules:\n" if block.startswith("  - ") else "") + block)
        try:
            said = read_rules([path], patterns).report.all
        except RuleErrors as error:
            said = error.diagnostics
        # Overrides name rules of files that are not here.
        assert {one.code for one in said if one.severity == "error"} <= {"AW302"}, path.read_text()
