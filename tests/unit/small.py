"""Small rules and events, for asking an engine."""

from __future__ import annotations

from dataclasses import replace

from agentwatch.engine import Engine
from agentwatch.events import Connect, Exec, Mount, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.rules.model import Agent, Condition, Default, Match, Place, Rule, Ruleset

KEY = ProcessKey(7, 700)

HERE = Place("test.yaml", 1, 1)

CODEX = Agent("codex", "Codex", ("**/bin/codex",), ("/home/dev/.codex/**",), HERE)

CLAUDE = Agent("claude", "Claude", ("**/bin/claude",), ("/home/dev/.claude/**",), HERE)


def match(**fields: str | tuple[str, ...]) -> Match:
    """path="/x" or process__exe__startswith=("/a", "/b"): `__` is `.` before a known part."""
    conditions = []
    for key, values in fields.items():
        name, *words = key.split("__")
        if name in ("process", "parent", "ancestor"):
            name = f"{name}.{words.pop(0)}"
        texts = (values,) if isinstance(values, str) else values
        conditions.append(Condition(name, texts, frozenset(words), HERE))
    return Match(tuple(conditions))


def rule(action: str, on: str = "read", name: str = "", **fields: str | tuple[str, ...]) -> Rule:
    return Rule(name or f"{action}.{on}", tuple(on.split()), match(**fields), action, HERE)


def engine(*rules: Rule, defaults: tuple[Default, ...] = (), mode: str = "enforce") -> Engine:
    return Engine(Ruleset(rules, (CODEX, CLAUDE), defaults), mode=mode)


def opened(path: str, reads: bool = True, changes: bool = False, **more: object) -> Open:
    made = Open(time=1, process=KEY, session=KEY, path=path, result=3, reads=reads, changes=changes)
    return replace(made, **more)  # type: ignore[arg-type]


def ran(path: str, *argv: str, **more: object) -> Exec:
    made = Exec(time=1, process=KEY, session=KEY, path=path, asked=path, argv=argv, argc=len(argv))
    return replace(made, **more)  # type: ignore[arg-type]


def connected(addr: str = "", port: int = 0, **more: object) -> Connect:
    made = Connect(
        time=1,
        process=KEY,
        session=KEY,
        family=2,
        addr=addr,
        port=port,
        protocol="tcp",
        syn=True,
        from_socket=True,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def mounted(op: str = "mount", path: str = "/mnt", **more: object) -> Mount:
    made = Mount(time=1, process=KEY, session=KEY, op=op, path=path)
    return replace(made, **more)  # type: ignore[arg-type]


def actor(*agents: str, **more: object) -> Actor:
    image = Image("/usr/bin/node", "/opt/x/cli.js", ("node", "cli.js"), "/home/dev", 1000)
    return replace(Actor(KEY, KEY, agents or ("codex",), image), **more)  # type: ignore[arg-type]


CLOSED = (Default("codex", "change", "deny", HERE),)
