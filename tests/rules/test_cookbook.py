"""docs/cookbook: each policy loads and passes its tests, and its index tells the truth about it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentwatch import config

REPOSITORY = Path(__file__).resolve().parents[2]
COOKBOOK = REPOSITORY / "docs" / "cookbook"
PACKS = REPOSITORY / "rules"
POLICIES = tuple(sorted(COOKBOOK.glob("*.yaml")))
NAMES = [policy.stem for policy in POLICIES]
BESIDE = "# Beside the packs"  # the policy names an agent or a rule that ships
HEADER = "# yaml-language-server: $schema=../schema/agentwatch-v1.json\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command of agentwatch printed and its exit code."""

    code: int
    stdout: str
    stderr: str


def rules(agentwatch: Path, *words: str | Path) -> Answer:
    """`agentwatch rules WORDS`."""
    done = subprocess.run(
        [agentwatch, "rules", *words],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def beside(policy: Path) -> tuple[Path, ...]:
    """What has to be named together with the policy."""
    return (PACKS,) if BESIDE in policy.read_text(encoding="utf-8") else ()


def rules_of(policy: Path) -> dict[str, str]:
    """The text of each rule in the file, by its id."""
    _, _, text = policy.read_text(encoding="utf-8").partition("\nrules:\n")
    parts = re.split(r"^  - id: ", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part for part in parts}


def sections() -> dict[str, str]:
    """Each policy's file name and its text in the index."""
    found: dict[str, str] = {}
    index = (COOKBOOK / "README.md").read_text(encoding="utf-8")
    for text in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        for name in re.findall(r"\]\(([\w-]+\.yaml)\)", text):
            assert name not in found, f"{name} is in the index twice"
            found[name] = " ".join(text.split())
    return found


@pytest.fixture(scope="module")
def levels(agentwatch: Path) -> dict[str, str]:
    """The level of every rule of packs and cookbook on this host, by id."""
    answer = rules(agentwatch, "list", "-o", "json", PACKS, *POLICIES)
    assert answer.code == 0, answer.stderr
    return {rule["id"]: rule["level"] for rule in json.loads(answer.stdout)}


def test_there_are_twenty_policies() -> None:
    """As many as the index promises."""
    assert len(POLICIES) == 20


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_policy_is_right_without_the_others(policy: Path, agentwatch: Path) -> None:
    """No error, no warning, every test green: by itself, or beside the packs where it says so."""
    checked = rules(agentwatch, "check", *beside(policy), policy)
    assert (checked.code, checked.stdout) == (0, ""), checked
    assert "0 errors, 0 warnings" in checked.stderr
    tested = rules(agentwatch, "test", *beside(policy), policy)
    assert tested.code == 0, tested
    assert re.search(r"^[1-9]\d* tests, 0 failed$", tested.stderr, re.MULTILINE), tested


@pytest.mark.parametrize(
    "policy", [p for p in POLICIES if beside(p)], ids=[p.stem for p in POLICIES if beside(p)]
)
def test_a_policy_that_asks_for_the_packs_is_told_so(policy: Path, agentwatch: Path) -> None:
    """By itself it is checked with them in the background: it names what only they have."""
    alone = rules(agentwatch, "check", policy)
    assert alone.code == 0
    assert "with the shipped packs as background" in alone.stderr


def test_all_policies_and_the_packs_are_one_ruleset(agentwatch: Path) -> None:
    """Ids and lists do not collide; every test holds, those about all rules together included."""
    checked = rules(agentwatch, "check", PACKS, *POLICIES)
    assert (checked.code, checked.stdout) == (0, ""), checked
    assert "0 errors, 0 warnings" in checked.stderr
    assert rules(agentwatch, "test", PACKS, *POLICIES).code == 0


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_a_policy_is_complete(policy: Path) -> None:
    """Header for editors, title, because, hit and miss in every rule; what denies says instead."""
    text = policy.read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    for name, rule in rules_of(policy).items():
        for key in ("    title: ", "    because: ", "      - hit: ", "      - miss: ", "cookbook"):
            assert key in rule, (name, key)
        if re.search(r"^    action: (deny|kill)$", rule, re.MULTILINE):
            assert "    instead: " in rule, name


def test_the_index_names_every_policy() -> None:
    """Once each, and no file that is not there."""
    assert set(sections()) == {policy.name for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_the_index_says_what_a_policy_gives_and_does_not(
    policy: Path, levels: dict[str, str]
) -> None:
    """What it is not, how to vary it, whether it needs the packs, whether a rule is worth none."""
    text = sections()[policy.name]
    assert "**Not:**" in text
    assert "**Vary:**" in text or "pause" in text
    assert bool(beside(policy)) == (f"]({policy.name}), beside the packs" in text)
    ids = rules_of(policy)
    assert ids
    assert any(levels[rule] == "none" for rule in ids) == ("worth `none`" in text), policy.name


def test_the_contents_lead_to_the_sections() -> None:
    """A row for each, whose link is the heading as the forge spells it."""
    index = (COOKBOOK / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", index, re.MULTILINE)
    spelled = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert re.findall(r"^\| \[.+?\]\(#(\S+)\)", index, re.MULTILINE) == spelled


def test_the_configuration_in_the_index_loads(tmp_path: Path) -> None:
    """The breaker that freezes: two kills within a minute."""
    index = (COOKBOOK / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```yaml\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    assert found
    file = tmp_path / "agentwatch.yaml"
    file.write_text(found[1], encoding="utf-8")
    file.chmod(0o644)
    assert config.load(file).breaker == config.Breaker(kills=2, within=60_000_000_000)
