"""The packs that ship: they load without a word, pass their tests, and know the agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwatch import admission
from agentwatch.engine import Engine
from agentwatch.policy import patterns
from agentwatch.rules import homes, load

HOME = "/home/dev"
NPM = "/usr/lib/node_modules"
NPX = f"{HOME}/.npm/_npx/0a1b2c/node_modules"
PIPX = f"{HOME}/.local/share/pipx/venvs"


@pytest.fixture(scope="module")
def loaded() -> load.Loaded:
    return load.read_rules([load.shipped()], patterns)


@pytest.fixture(scope="module")
def engine(loaded: load.Loaded) -> Engine:
    return Engine(homes.at_home(loaded.ruleset, homes.TRIAL_HOMES))


def test_the_packs_load_without_warnings(loaded: load.Loaded) -> None:
    """Not one finding, errors or warnings."""
    assert admission.admit([load.shipped()], homes=(HOME,)).warnings == ()
    assert loaded.warnings == ()


def test_the_tests_in_the_packs_pass(loaded: load.Loaded) -> None:
    """Every one of them."""
    outcomes = admission.run_trials(loaded)
    assert [admission.message(o) for o in outcomes if not o.passed] == []
    assert len(outcomes) > 700


def test_every_rule_that_ships_is_complete(loaded: load.Loaded) -> None:
    """It says why, what to do instead and when it is wrong, and is tested both ways."""
    for rule in loaded.ruleset.rules:
        assert all((rule.title, rule.because, rule.instead, rule.false_positives)), rule.id
        assert rule.tags, rule.id
        assert all(tag.startswith("attack.t") for tag in rule.tags), rule.id
        assert {"hit", "miss"} <= {trial.expect for trial in rule.trials}, rule.id


def test_every_pack_has_one_subject(loaded: load.Loaded) -> None:
    """Ids begin with the name of their file; no subject is missing."""
    subjects = {Path(rule.place.file).stem for rule in loaded.ruleset.rules}
    assert subjects == {"control", "delegation", "destruction", "egress", "execution"} | {
        *("installs", "persistence", "secrets")
    }
    for rule in loaded.ruleset.rules:
        assert rule.id.split(".")[0] == Path(rule.place.file).stem, rule.id


def test_only_what_is_grave_is_stopped(loaded: load.Loaded) -> None:
    """A deny or kill is of high severity, and says why it may be wrong."""
    for rule in loaded.ruleset.rules:
        if rule.action in ("deny", "kill"):
            assert rule.severity in ("high", "critical"), rule.id


def test_every_rule_is_tested_both_ways_more_than_once(loaded: load.Loaded) -> None:
    """Three tests at least, of everything that stops somebody."""
    for rule in loaded.ruleset.rules:
        if rule.action in ("deny", "kill"):
            assert len(rule.trials) >= 3, rule.id


def test_every_agent_has_its_own_state(loaded: load.Loaded) -> None:
    """The eleven agents, each with the files that are its own."""
    known = {agent.id for agent in loaded.ruleset.agents}
    assert known == {"claude-code", "codex", "gemini", "cursor-agent", "aider", "opencode"} | {
        *("goose", "copilot", "amp", "qwen", "crush")
    }
    assert all(agent.title and agent.own for agent in loaded.ruleset.agents)


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("claude-code", f"{HOME}/.local/bin/claude"),
        ("claude-code", f"{HOME}/.local/share/claude/versions/2.1.0"),
        ("claude-code", f"{NPM}/@anthropic-ai/claude-code/cli.js"),
        ("claude-code", f"{NPX}/.bin/claude"),
        ("codex", "/usr/local/bin/codex"),
        ("codex", f"{NPM}/@openai/codex/bin/codex.js"),
        ("codex", f"{NPM}/@openai/codex/vendor/x86_64-unknown-linux-musl/codex/codex"),
        ("codex", "/opt/codex-x86_64-unknown-linux-musl"),
        ("gemini", f"{NPX}/.bin/gemini"),
        ("gemini", f"{NPM}/@google/gemini-cli/dist/index.js"),
        ("cursor-agent", f"{HOME}/.local/bin/cursor-agent"),
        ("cursor-agent", f"{HOME}/.local/share/cursor-agent/versions/2026.1/node"),
        ("aider", f"{PIPX}/aider-chat/bin/aider"),
        ("aider", f"{HOME}/.local/share/uv/tools/aider-chat/bin/aider"),
        ("opencode", f"{HOME}/.opencode/bin/opencode"),
        ("opencode", f"{NPM}/opencode-ai/node_modules/opencode-linux-x64/bin/opencode"),
        ("goose", f"{HOME}/.local/bin/goose"),
        ("copilot", f"{NPM}/@github/copilot/index.js"),
        ("copilot", f"{NPX}/.bin/copilot"),
        ("amp", f"{NPX}/.bin/amp"),
        ("amp", f"{NPM}/@sourcegraph/amp/dist/main.js"),
        ("qwen", f"{NPM}/@qwen-code/qwen-code/dist/index.js"),
        ("qwen", "/usr/local/bin/qwen"),
        ("crush", "/usr/bin/crush"),
        ("crush", f"{NPX}/.bin/crush"),
    ],
)
def test_an_agent_is_known_however_it_was_installed(engine: Engine, agent: str, name: str) -> None:
    """Natively, by npm, by npx, by pipx and uv."""
    assert engine.identify([name]) == agent


@pytest.mark.parametrize(
    "name",
    [
        "/usr/bin/bash",
        "/usr/bin/node",
        "/usr/bin/git",
        "/home/claude/bin/tool",
        "/home/claude/project/build.sh",
        f"{HOME}/go/bin/goose",
        f"{HOME}/project/claude",
        f"{NPM}/@anthropic-ai/claude-code/vendor/ripgrep/x64-linux/rg",
        f"{NPM}/@openai/codex/package.json",
        "/usr/lib/systemd/systemd",
        "/usr/bin/cursor",
    ],
)
def test_what_only_looks_like_an_agent_is_none(engine: Engine, name: str) -> None:
    """A user called claude, a database tool called goose, a program an agent brings along."""
    assert engine.identify([name]) is None


def test_every_identity_has_a_telling_component(engine: Engine) -> None:
    """The kernel looks every component of every exec up: none may be as common as `bin`."""
    assert not {b"bin", b"node", b"versions", b"local", b"src", b"dist"} & set(engine.literals())
