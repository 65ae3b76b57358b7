"""Rule files made of pieces that mean something to the loader: nearly right, and wrong on purpose.

`made` asks a chooser for numbers, so that hypothesis, atheris and a seed can each be one.
"""

from __future__ import annotations

from collections.abc import Callable

from agentwatch.rules.fields import MODIFIERS, NAMES
from agentwatch.rules.model import ACTIONS, KINDS, MODES, SCOPES, SEVERITIES, WITHOUT_HOOK
from agentwatch.rules.parse import (
    AGENT_KEYS,
    COUNT_KEYS,
    FILE_KEYS,
    OVERRIDE_KEYS,
    RULE_KEYS,
    TEST_KEYS,
)

Choose = Callable[[int], int]
"""A number from 0 up to, and without, the one given."""

KEYS = (*FILE_KEYS, *RULE_KEYS, *AGENT_KEYS, *COUNT_KEYS, *OVERRIDE_KEYS, *TEST_KEYS)
WORDS = (*KINDS, *ACTIONS, *SEVERITIES, *WITHOUT_HOOK, *MODES, *SCOPES, "mcp", "true", "none")
VALUES = (
    *WORDS,
    *("agentwatch/v1", "a", "b", "$a", "$b", "$own", "$project", "$project/x", "$own/x", "$", "$$"),
    *(
        "/x",
        "/x/**",
        "**/y",
        "**",
        "/**",
        "*",
        "~",
        "~/",
        "~/.aws/**",
        "~x",
        ".env",
        "a/../b",
        "//",
    ),
    *(
        "{a,b}",
        "{{{a}}}",
        "[a-z]",
        "[!",
        "[]",
        "[^a]",
        "\\",
        "\\*",
        "a\\",
        "{a",
        "a}",
        "***",
        "a**b",
    ),
    *("443", "0443", "1-2", "2-1", "0", "-1", "99999999999999999999", "1e3", "0x1f", "8000-8999"),
    *(
        "1.2.3.4",
        "1.2.3.4/8",
        "10.0.0.0/8",
        "::1",
        "::/0",
        "fd00::/8",
        "1.2.3",
        "@abstract",
        "host",
    ),
    *(
        "a.example.com",
        "*.example.com",
        "https://x/y",
        "x:1",
        "a.",
        ".a",
        "é",
        "\u202e",
        "\x7f",
        "",
    ),
    *("10s", "5m", "0s", "10 s", "1h", "99h", "(", "(?i)a", "a{1000}", "((a{100}){100}){100}"),
    *("push --force", "push  **", "7:700", "\U0001f600", "\ud800", "yes", "null", "on", "="),
    *("{" + "a,b}{" * 9 + "a,b}", "{a,b}" * 40, "*" * 300, "[" * 50, "**/" * 200, "?" * 500),
)
PIECES = (
    ": ",
    ": ",
    ":",
    "- ",
    "- ",
    "-",
    ", ",
    "[",
    "]",
    "{",
    "}",
    "\n",
    "\n  ",
    "\n    ",
    "\n      ",
)
ODD = (
    *(
        "'",
        '"',
        "&a ",
        "*a",
        "*b",
        "<<",
        "!",
        "!!str ",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "|\n",
        ">-\n",
    ),
    *(
        "#",
        " #x\n",
        "\t",
        "\r\n",
        "\r",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "? ",
        "@",
        "`",
        "| ",
        "> ",
    ),
)

RULE = """\
schema: agentwatch/v1
lists: {a: [/x, $b], b: ["~/.ssh/**"]}
agents:
  - {id: stub, exec: "**/bin/stub", own: ["~/.stub/**"]}
defaults: {stub: {change: deny}}
rules:
  - id: a
    on: [read, change]
    match: {path: [$a, "$project/**"], op: open, process.exe|startswith: /usr}
    unless: {own: {path: $own}}
    action: kill
    scope: session
    count: {over: 5, within: 10s, distinct: path}
    because: b
    tests:
      - hit: {path: /x, process.exe: /usr/x}
      - miss: {path: /y}
overrides: {a: {action: alert, unless: {more: {parent.args|has: "-x*"}}}}
"""


def made(choose: Choose) -> str:
    """A file: the lines of RULE with some of them changed, or pieces one after the other."""
    if choose(3) == 0:
        return "".join(_piece(choose) for _ in range(choose(200)))
    lines = RULE.splitlines(keepends=True)
    for _ in range(1 + choose(6)):
        place = choose(len(lines)) if lines else 0
        lines[place : place + choose(2)] = [_line(choose, lines[place] if lines else "")]
    return "".join(lines)


def _line(choose: Choose, line: str) -> str:
    """A line with something else in it."""
    what = choose(6)
    if what == 0:
        return line + line
    if what == 1:
        return " " * choose(12) + line.lstrip()
    if what == 2:
        cut = choose(len(line) + 1)
        return line[:cut] + _piece(choose) + line[cut:]
    if what == 3:
        key, colon, _ = line.partition(": ")
        return f"{key}{colon}{_value(choose)}\n"
    if what == 4:
        return f"    {_of(choose, KEYS)}: {_value(choose)}\n"
    return (
        f"    match: {{{_field(choose)}: {_value(choose)}, {_field(choose)}: {_value(choose)}}}\n"
    )


def _field(choose: Choose) -> str:
    words = sorted(MODIFIERS)
    return "|".join((_of(choose, NAMES), *(_of(choose, words) for _ in range(choose(3)))))


def _value(choose: Choose) -> str:
    value = _of(choose, VALUES)
    how = choose(5)
    if how == 0:
        return value
    if how == 1:
        return "'" + value.replace("'", "''") + "'"
    if how == 2:
        return f"[{', '.join(_value(choose) for _ in range(choose(4)))}]"
    if how == 3:
        return f"{{{_of(choose, (*KEYS, *NAMES))}: {value}}}"
    return f"{value}{_of(choose, ODD)}{_of(choose, VALUES)}"


def _piece(choose: Choose) -> str:
    return _of(choose, (PIECES, PIECES, KEYS, KEYS, VALUES, NAMES, ODD)[choose(7)])


def _of(choose: Choose, texts: tuple[str, ...] | list[str]) -> str:
    return texts[choose(len(texts))]
