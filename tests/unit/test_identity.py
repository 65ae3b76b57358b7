"""Who is an agent: names in every way of installing one, and what the kernel looks for."""

from __future__ import annotations

import random

import pytest

from agentwatch.engine import Engine, names_of
from agentwatch.events import Exec, ProcessKey
from agentwatch.policy import patterns
from agentwatch.policy.patterns import literal_component
from agentwatch.rules.model import Agent, Place, Ruleset

KEY = ProcessKey(1, 1)
HERE = Place("test.yaml", 1, 1)
CLAUDE = Agent(
    "claude-code",
    "Claude Code",
    (
        "**/bin/claude",
        "**/.bin/claude",
        "/home/dev/.local/share/claude/versions/*",
        "**/@anthropic-ai/claude-code/**",
    ),
    (),
    HERE,
)
AIDER = Agent("aider", "aider", ("**/bin/aider", "**/venvs/aider-chat/**"), (), HERE)
ENGINE = Engine(Ruleset(agents=(CLAUDE, AIDER)))


def names(
    path: str, asked: str = "", script: str | None = None, cwd: str = "/home/dev"
) -> tuple[str, ...]:
    return names_of(
        Exec(
            time=1, process=KEY, session=KEY, path=path, asked=asked or path, script=script, cwd=cwd
        )
    )


@pytest.mark.parametrize(
    ("found", "agent"),
    [
        (names("/home/dev/.local/share/claude/versions/2.1.0"), "claude-code"),
        (names("/usr/lib/x", asked="/home/dev/.local/bin/claude"), "claude-code"),
        (
            names("/usr/bin/node", script="/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js"),
            "claude-code",
        ),
        (
            names("/usr/bin/node", asked="node_modules/.bin/claude", script="/srv/x/cli.js"),
            "claude-code",
        ),
        (
            names("/usr/bin/node", script="/home/dev/.npm/_npx/ab12/node_modules/.bin/claude"),
            "claude-code",
        ),
        (names("/usr/bin/python3.11", script="/home/dev/.local/bin/aider"), "aider"),
        (names("/home/dev/.local/share/pipx/venvs/aider-chat/bin/python"), "aider"),
        (names("/usr/bin/ssh-agent"), None),
        (names("/home/claude/bin/ls"), None),
        (names("/usr/bin/vim", asked="vim"), None),
    ],
)
def test_an_agent_is_known_by_any_of_its_names(found: tuple[str, ...], agent: str | None) -> None:
    """The name asked for, the program behind links and the script; look-alikes are nobody."""
    assert ENGINE.identify(found) == agent


def test_names_asked_for_are_made_absolute() -> None:
    """A relative name is what it is in the new program's working directory."""
    assert names("/usr/bin/node", asked="../bin/claude", cwd="/opt/x")[0] == "/opt/bin/claude"


def test_the_first_agent_in_the_files_wins() -> None:
    """Two identities that cover one program: the order of the files decides, not of the names."""
    other = Agent("other", "Other", ("**/claude",), (), HERE)
    both = names("/opt/bin/claude")
    assert Engine(Ruleset(agents=(other, CLAUDE))).identify(both) == "other"
    assert Engine(Ruleset(agents=(CLAUDE, other))).identify(tuple(reversed(both))) == "claude-code"


def test_no_agents_identify_nothing() -> None:
    """Without identities no program is an agent."""
    assert Engine(Ruleset()).identify(names("/usr/bin/claude")) is None
    assert Engine(Ruleset()).literals() == ()


def test_literals_are_one_component_of_each_glob() -> None:
    """What the kernel's table holds: every telling component once."""
    assert ENGINE.literals() == (b"claude", b"claude-code", b"aider", b"aider-chat")


@pytest.mark.parametrize(
    ("glob", "literals"),
    [
        ("**/bin/claude", (b"claude",)),
        ("**/claude/versions/*", (b"claude",)),
        ("**/node_modules/@openai/codex/bin/codex.js", (b"codex.js",)),
        ("**/@anthropic-ai/claude-code/**", (b"claude-code",)),
        ("**/{claude,codex}", (b"claude", b"codex")),
        ("**/{a/b,c}/bin/**", (b"b", b"c")),
        ("/opt/amp\\*/bin/*", (b"amp*",)),
        ("**/bin/é", ("é".encode(),)),
        ("**/aider-*/bin/python", None),
        ("**/bin/*", None),
        ("**/{claude,*}", None),
        ("**/claude*", None),
        ("**/" + "x" * 64, None),
        ("**/good/" + "x" * 64, (b"good",)),
    ],
)
def test_a_literal_component_is_the_most_telling(
    glob: str, literals: tuple[bytes, ...] | None
) -> None:
    """Never bin, lib or node_modules, at most 63 bytes, one for each alternative, or none."""
    assert literal_component(glob) == literals


def test_every_name_of_an_identity_has_a_literal_component() -> None:
    """The kernel must not miss a program that the whole glob would confirm."""
    rng = random.Random(3)
    parts = ["bin", "claude", "claude-code", "versions", "2.1", "usr", "x", "codex"]
    globs = ["**/bin/claude", "**/claude/versions/*", "**/{claude,codex}/**", "/usr/**/claude-code"]
    covered = 0
    for _ in range(4000):
        name = "/" + "/".join(rng.choices(parts, k=rng.randint(1, 4)))
        components = {part.encode() for part in name.split("/")}
        for glob in globs:
            if patterns.matches(glob, name):
                assert components & set(literal_component(glob) or ()), (glob, name)
                covered += 1
    assert covered > 300


def test_a_glob_without_a_literal_is_an_error() -> None:
    """An identity that the kernel could not look for is not silently never found."""
    broad = Agent("any", "Any", ("**/bin/*",), (), HERE)
    with pytest.raises(patterns.PatternError, match="any"):
        Engine(Ruleset(agents=(broad,))).literals()
