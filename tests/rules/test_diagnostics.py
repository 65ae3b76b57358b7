"""Every code: the exact message, at the exact line and column, with the line and a caret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentwatch import admission
from agentwatch.errors import Diagnostic, RuleErrors
from agentwatch.rules.diagnostics import CODES, MAX_FINDINGS, Report, render
from agentwatch.rules.load import packs
from agentwatch.rules.model import Place
from agentwatch.rules.read import MAX_BYTES

HEAD = "schema: agentwatch/v1\n"
RULE = """\
schema: agentwatch/v1
rules:
  - id: a
    on: {on}
    match: {match}
    action: {action}
    because: b
    tests: [{test}]
"""
NAMED_TOO = f" What ships with agentwatch is known when its files are named too: {packs()}"
HIT = "{hit: {path: /x}}"
CONNECTED = "{hit: {addr: 192.0.2.1, port: 1}}"


def rule(match: str, on: str = "read", action: str = "alert", test: str = HIT) -> str:
    return RULE.format(match=match, on=on, action=action, test=test)


def found(tmp_path: Path, text: str | bytes) -> list[str]:
    """What is said about a file of this text, `line:col: severity[code]: message` each."""
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return diagnostics(tmp_path, path)


def diagnostics(tmp_path: Path, *paths: Path) -> list[str]:
    try:
        said = admission.admit(paths, homes=("/home/dev",)).warnings
    except RuleErrors as error:
        said = error.diagnostics
    return [
        f"{d.line}:{d.column}: {d.severity}[{d.code}]: {d.message}".replace(f"{tmp_path}/", "")
        for d in said
    ]


# (text of the file, what is said about it)
CASES: list[tuple[str, str | bytes, list[str]]] = [
    (
        "AW102",
        b"schema: agentwatch/v1\nlists: {a: [caf\xe9]}\n",
        ["2:16: error[AW102]: the byte 0xe9 is not UTF-8; save the file as UTF-8"],
    ),
    (
        "AW102",
        HEAD + "lists: {a: ['\x1b[2J']}\n",
        ["2:14: error[AW102]: the character U+001B is not allowed in YAML; remove it"],
    ),
    (
        "AW103",
        b"#" * (MAX_BYTES + 1),
        ["0:0: error[AW103]: the file is larger than 4 MiB; split it"],
    ),
    (
        "AW103",
        HEAD + "lists: " + "[" * 100_000,
        ["2:40: error[AW103]: this is nested more than 32 deep"],
    ),
    (
        "AW104",
        HEAD + "rules: 'x\n",
        [
            "3:1: error[AW104]: this is not YAML: "
            "while scanning a quoted scalar: found unexpected end of stream"
        ],
    ),
    (
        "AW104",
        rule("{path: /x}\n      process.exe: /y"),
        [
            '6:7: error[AW104]: "process.exe" cannot be added to "match", which ended on the line '
            'above: put it inside the braces, or write each key of "match" on a line of its own'
        ],
    ),
    (
        "AW105",
        rule("\n      path: *.x"),
        [
            '6:13: error[AW105]: YAML reads "*.x" as an alias, for it begins with "*"; '
            "put it in quotes"
        ],
    ),
    (
        "AW105",
        rule("{path: [/a, **/x]}"),
        [
            '5:24: error[AW105]: YAML reads "**/x" as an alias, for it begins with "*"; '
            "put it in quotes"
        ],
    ),
    (
        "AW105",
        rule("\n      path: ~"),
        [
            "6:13: error[AW105]: ~ alone is nothing (null) in YAML; "
            'in a rule write "~/**" for every home directory, elsewhere the whole path'
        ],
    ),
    (
        "AW105",
        rule("{port: 0443}", "connect", test=CONNECTED),
        ["5:19: error[AW105]: 0443 is octal to some YAML readers and decimal to others; write 443"],
    ),
    (
        "AW105",
        rule("\n      path: {a,b}.pem"),
        [
            '6:13: error[AW105]: "{a,b}.pem" begins with "{", which opens a mapping in YAML; '
            "put it in quotes"
        ],
    ),
    (
        "AW105",
        rule("\n      path: {a,b}"),
        ['6:13: error[AW105]: {a,b} is a mapping in YAML; put it in quotes: "{a,b}"'],
    ),
    (
        "AW105",
        rule("\n      path: [a-z]*.x"),
        [
            '6:13: error[AW105]: "[a-z]*.x" begins with "[", which opens a list in YAML; '
            "put it in quotes"
        ],
    ),
    (
        "AW105",
        HEAD + "rules:\n  - id: a\n    because: Use this: that\n",
        [
            '4:22: error[AW105]: the text after "because:" has a ": " in it, '
            "which begins a new key in YAML; put it in quotes"
        ],
    ),
    (
        "AW105",
        HEAD + "rules: @x\n",
        ['2:8: error[AW105]: "@x" begins with "@", which YAML reserves; put it in quotes'],
    ),
    (
        "AW105",
        HEAD + "lists: {a: !x y}\n",
        [
            '2:12: error[AW105]: text that begins with "!" is a tag to YAML; quote it',
        ],
    ),
    (
        "AW105",
        HEAD + "rules:\n\t- id: a\n",
        ["3:1: error[AW105]: YAML is indented with spaces; this line begins with a tab"],
    ),
    (
        "AW106",
        rule("{path: /x}") + "    action: deny\n",
        ['9:5: error[AW106]: the key "action" is already on line 6'],
    ),
    ("AW201", rule("{pth: /x}"), ['5:13: error[AW201]: unknown field "pth". Did you mean "path"?']),
    (
        "AW201",
        rule("{path: /x}") + "    becuase: c\n",
        ['9:5: error[AW201]: a rule has no key "becuase". Did you mean "because"?'],
    ),
    ("AW202", HEAD + "rules: x\n", ['2:8: error[AW202]: "rules" must be a list, not text']),
    (
        "AW202",
        "- a\n",
        [
            "1:1: error[AW202]: a rule file must be a mapping "
            "(schema, lists, agents, defaults, rules, overrides), not a list: "
            'begin it with two lines, "schema: agentwatch/v1" and "rules:"'
        ],
    ),
    (
        "AW202",
        rule("{path: /x}\n    unless: {path: /y}"),
        ["6:14: error[AW202]: an exception has a name: unless: {some-name: {path: …}}"],
    ),
    (
        "AW202",
        HEAD + "---\nrules: []\n",
        ["2:1: error[AW202]: a second document begins here; use a file for each"],
    ),
    (
        "AW203",
        "rules: []\n",
        [
            '1:1: error[AW203]: a rule file needs "schema": '
            'begin it with two lines, "schema: agentwatch/v1" and "rules:"'
        ],
    ),
    (
        "AW203",
        HEAD + "rules:\n  - {id: a, on: read, match: {path: /x}, action: alert}\n",
        ['3:5: error[AW203]: a rule needs "because": one sentence for the person who meets it'],
    ),
    (
        "AW204",
        rule("{path: /x}", action="denny"),
        [
            '6:13: error[AW204]: "action" cannot be "denny"; it is allow, alert, deny or kill. '
            'Did you mean "deny"?'
        ],
    ),
    (
        "AW504",
        "schema: agentwatch/v2\n",
        [
            "1:1: warning[AW504]: the file says nothing but its schema: "
            "no rule of it can be in force",
            '1:9: error[AW204]: "schema" cannot be "agentwatch/v2"; it is agentwatch/v1.',
        ],
    ),
    (
        "AW205",
        rule("{path|startwith: /x}"),
        ['5:13: error[AW205]: unknown modifier "|startwith". Did you mean "startswith"?'],
    ),
    (
        "AW205",
        rule("{addr|contains: '1'}", "connect", test=CONNECTED),
        ["5:13: error[AW205]: addr does not take |contains; it takes |cidr"],
    ),
    (
        "AW205",
        rule("{path|all: [/x, /y]}"),
        ["5:13: error[AW205]: |all needs |has, |contains or |re before it: path|contains|all"],
    ),
    (
        "AW205",
        rule("{starts_agent: true}", "exec", test="{hit: {starts_agent: true}}"),
        [
            '8:20: error[AW205]: an event does not say "starts_agent", which follows from path and '
            "script by the identities: give a path that one covers"
        ],
    ),
    (
        "AW207",
        rule("{path: /x}", test="{hit: {path: $project/x}}, {hit: {path: $own}}"),
        [
            '8:26: error[AW207]: "path" of an event is written out: '
            "$project is /home/dev/project in tests, so /home/dev/project/x",
            '8:53: error[AW207]: "path" of an event is one name, written out: '
            "variables are for rules",
        ],
    ),
    (
        "AW207",
        rule('{args|has: "--url=https://x/**"}', "exec", test="{miss: {path: /x}}"),
        [
            "5:23: error[AW207]: there is no `**` inside one token or word: "
            "write `*`, which is any text in it, `/` too"
        ],
    ),
    (
        "AW203",
        rule("{path: /x}\n    count: {over: 5}"),
        ['6:12: error[AW203]: count needs "within": a time like 10s or 5m'],
    ),
    (
        "AW207",
        rule("{path: /x}\n    count: {over: 0, within: 10 seconds}"),
        [
            '6:19: error[AW207]: "over" is a number from 1 to 100000, not "0"',
            '6:30: error[AW207]: "within" is a time like 500ms, 10s or 5m, up to 24h, '
            'not "10 seconds"',
        ],
    ),
    (
        "AW207",
        rule("{path: /x}\n    count: {over: 5, within: 48h, by: agent}"),
        [
            '6:30: error[AW207]: "within" is a time like 500ms, 10s or 5m, up to 24h, not "48h"',
            '6:39: error[AW204]: "by" cannot be "agent"; it is session or process.',
        ],
    ),
    (
        "AW208",
        rule("{path: /x}\n    count: {over: 5, within: 10s, distinct: addr}"),
        ['6:45: error[AW208]: read has no field "addr"; connect or listen has'],
    ),
    (
        "AW311",
        rule("{path: /x}\n    count: {over: 5, within: 10s}", action="deny"),
        [
            "3:9: error[AW311]: a rule with count may alert or kill, not deny: "
            "it acts after the fact"
        ],
    ),
    (
        "AW311",
        rule("{path: /x}\n    scope: session"),
        ["3:9: error[AW311]: scope says what a kill ends; this rule's action is alert"],
    ),
    (
        "AW206",
        rule("{path: /x}", on="[read, mcp]"),
        ['4:16: error[AW206]: the kind "mcp" is not supported yet: nothing reports it'],
    ),
    (
        "AW207",
        rule("{host: 'https://example.org/x'}", "connect", test=CONNECTED),
        [
            '5:19: error[AW207]: "https://example.org/x" is no name of a host; '
            "write it without scheme and path"
        ],
    ),
    (
        "AW207",
        rule("{host: 'example.org:443'}", "connect", test=CONNECTED),
        [
            '5:19: error[AW207]: "example.org:443" is no name: '
            "addresses are asked with addr, ports with port"
        ],
    ),
    (
        "AW303",
        rule("{host: example.org.}", "connect", test=CONNECTED),
        [
            "5:19: error[AW303]: this can never match: "
            'names are without a dot at either end, and without ".."'
        ],
    ),
    (
        "AW204",
        rule("{op: delete}", "read"),
        ['5:17: error[AW204]: "op" cannot be "delete"; it is open, create or truncate.'],
    ),
    (
        "AW505",
        rule("{host: example.org}", "connect", "allow", "{hit: {host: example.org}}")
        + "agents: [{id: stub, exec: '**/bin/stub'}]\ndefaults: {stub: {connect: deny}}\n",
        [
            "3:9: warning[AW505]: this makes no hole in the default, which stays closed. "
            "There is no probe yet for `host`."
        ],
    ),
    (
        "AW505",
        rule("{family: inet}", "connect", "deny", "{hit: {family: inet}}")
        + "    unless: {gh: {host: api.github.com, port: 443}}\n",
        [
            '3:9: warning[AW505]: the exception "gh" spares nothing here. '
            "There is no probe yet for `host`."
        ],
    ),
    ("AW504", "", ["0:0: warning[AW504]: the file is empty: no rule of it can be in force"]),
    (
        "AW504",
        HEAD,
        [
            "1:1: warning[AW504]: the file says nothing but its schema: "
            "no rule of it can be in force"
        ],
    ),
    (
        "AW207",
        rule("{path: '/x{a'}"),
        [r"5:19: error[AW207]: `{` is not closed: write `\{` for the character"],
    ),
    (
        "AW207",
        rule("{port: https}", "connect", test=CONNECTED),
        ['5:19: error[AW207]: "https" is no port; write 443 or "8000-8999"'],
    ),
    (
        "AW207",
        rule("{addr: 10.0.0.0/8}", "connect", test=CONNECTED),
        [
            '5:19: error[AW207]: "10.0.0.0/8" is no address; '
            'write networks as addr|cidr: "10.0.0.0/8"'
        ],
    ),
    (
        "AW208",
        rule("{path: /x, stdin: pipe}", "[exec, read]"),
        ['5:23: error[AW208]: read has no field "stdin"; exec has'],
    ),
    (
        "AW301",
        rule("{path: /x}") + rule("{path: /x}").split("rules:\n")[1],
        ['9:9: error[AW301]: the rule "a" is already defined in r.yaml, line 3'],
    ),
    (
        "AW301",
        HEAD + "lists: {own: [/a]}\n",
        ["2:9: error[AW301]: $own is given by agentwatch; choose another name"],
    ),
    (
        "AW301",
        HEAD + "agents: [{id: all, exec: /opt/codex}]\n",
        ['2:15: error[AW301]: "all" stands for every agent in "defaults"; choose another id'],
    ),
    (
        "AW302",
        rule("{path: [$cloudkeys]}") + "lists: {cloud_keys: [/x]}\n",
        ['5:20: error[AW302]: there is no list "cloudkeys". Did you mean "cloud_keys"?'],
    ),
    (
        "AW302",
        rule("{path: /x}\n    agents: [codx]") + "agents: [{id: codex, exec: /opt/codex}]\n",
        [f'6:14: error[AW302]: there is no agent "codx". Did you mean "codex"?{NAMED_TOO}'],
    ),
    (
        "AW302",
        rule("{path: /x}\n    agents: all"),
        ['6:13: error[AW302]: there is no agent "all": a rule without "agents" is for all of them'],
    ),
    (
        "AW302",
        rule("{path: /x}") + "overrides: {b.c: {action: alert}}\n",
        [f'9:13: error[AW302]: there is no rule "b.c".{NAMED_TOO}'],
    ),
    (
        "AW303",
        rule("{path: /a/../b}"),
        [
            '5:19: error[AW303]: this can never match: names have no ".", ".." or "//" in them '
            "once links are resolved"
        ],
    ),
    (
        "AW303",
        rule("{port: 70000}", "connect", test=CONNECTED),
        [
            "5:19: error[AW303]: this can never match: "
            "ports are 1 to 65535, the lower end of a range first"
        ],
    ),
    (
        "AW303",
        rule("{path: []}"),
        ["5:19: error[AW303]: this can never match: path has no values"],
    ),
    (
        "AW303",
        rule("{path: /x}\n    unless: {all: {path: [/x, /y]}}"),
        ['3:9: error[AW303]: this can never match: exception "all" carves out all of it'],
    ),
    (
        "AW303",
        rule("{unix: /run/x, port: 1}", "connect", test=CONNECTED),
        [
            "5:13: error[AW303]: this can never match: "
            "a connection has either a unix socket or an address"
        ],
    ),
    (
        "AW304",
        rule('{path: "/**"}', "change", "deny"),
        [
            "5:13: error[AW304]: a deny that matches everything belongs in defaults: "
            "defaults: {all: {change: deny}}; or say with unless what it spares"
        ],
    ),
    (
        "AW304",
        rule('{path: "/**"}', "exec", "kill") + "    unless: {n: {script: /usr/bin/npm}}\n",
        [
            "5:13: error[AW304]: a kill that matches everything belongs in defaults: "
            "defaults: {all: {exec: kill}}; or say with unless what it spares",
            '9:18: warning[AW503]: exception "n" never holds: an agent gives script any value '
            "it likes; ask path and args",
        ],
    ),
    (
        "AW305",
        HEAD + "agents:\n  - {id: x, exec: '/usr/bin/{x,bash}'}\n",
        ['3:19: error[AW305]: "/usr/bin/{x,bash}" covers /usr/bin/bash, which is no agent'],
    ),
    (
        "AW306",
        HEAD + "agents:\n  - {id: x, exec: '**/bin/x*'}\n",
        [
            '3:19: error[AW306]: "**/bin/x*" has no component the kernel could look for: '
            'write out one that is the agent\'s own, like "**/bin/claude"'
        ],
    ),
    (
        "AW307",
        rule("{path: .env}"),
        ['5:19: error[AW307]: ".env" matches nothing, for names are absolute; write "**/.env"'],
    ),
    (
        "AW307",
        rule("{path: ~/.aws/}"),
        [
            '5:19: error[AW307]: "~/.aws/" matches nothing, for no name ends in a slash; '
            'write "~/.aws/**"'
        ],
    ),
    (
        "AW207",
        rule("{path: /x}").replace("because: b", 'because: "b\\e[2J"'),
        ['7:14: error[AW207]: "because" has the control character U+001B in it; remove it'],
    ),
    (
        "AW207",
        rule("{path: /x}\n    title: |\n      one\n      two"),
        ['6:12: error[AW207]: "title" has more than one line; fold it into one with >-'],
    ),
    (
        "AW207",
        rule('{path: /x}\n    instead: "a\\u202eb"'),
        ['6:14: error[AW207]: "instead" has the control character U+202E in it; remove it'],
    ),
    (
        "AW207",
        rule('{path: /x}\n    unless: {"\\a": {path: /y}}'),
        [
            "6:14: error[AW207]: the exception's name has the control character U+0007 in it; "
            "remove it"
        ],
    ),
    (
        "AW205",
        rule("{path|contains|all: [~/.ssh, x]}"),
        [
            '5:33: error[AW205]: |all wants every value at once, and "~/.ssh" stands for one path '
            "in every home; write the path out, or leave |all"
        ],
    ),
    (
        "AW308",
        rule("{path: $one}") + "lists: {one: [/x, $two], two: [$one]}\n",
        ['9:32: error[AW308]: the list "one" contains itself'],
    ),
    (
        "AW310",
        rule("{path: /x}\n    without_hook: refuse", action="deny"),
        [
            "3:9: error[AW310]: rule a says `without_hook: refuse`, and read cannot be prevented "
            "here: write `without_hook: kill` or `alert`"
        ],
    ),
    (
        "AW401",
        rule("{path: /y}"),
        [
            "8:13: error[AW401]: the test of a fails for read: expected hit, got miss; "
            "path does not match"
        ],
    ),
    (
        "AW402",
        rule("{path: /x}", test="{hit: {}}"),
        ["8:19: error[AW402]: this test is not finished: hit: needs the fields of an event"],
    ),
    (
        "AW402",
        rule("{path: /x}", test="{event: {path: /x}}"),
        [
            "8:13: error[AW402]: this test is not finished: "
            "verdict: says what is expected of the event: beside it"
        ],
    ),
    (
        "AW503",
        rule(
            "{path: /x}\n    unless: {safe: {process.script: /usr/bin/safe}}",
            action="deny",
        ),
        [
            '6:21: warning[AW503]: exception "safe" never holds: an agent gives process.script any '
            "value it likes; ask process.exe and process.args"
        ],
    ),
    (
        "AW501",
        rule("{path: /x}", test=""),
        ['3:9: warning[AW501]: the rule "a" has no tests; give it a hit and a miss'],
    ),
    (
        "AW502",
        rule("{path: /x}", action="allow"),
        [
            "3:9: warning[AW502]: nothing denies read by default, so this allows nothing new",
        ],
    ),
]


@pytest.mark.parametrize(
    ("text", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_mistake_is_answered_where_it_is(
    tmp_path: Path, text: str | bytes, said: list[str]
) -> None:
    """Nothing but this is said, with this line and column."""
    assert found(tmp_path, text) == said


ELSEWHERE = {"AW101", "AW309"}


def test_every_code_is_answered_for() -> None:
    """A code without a test here, or a test without a code, is a mistake."""
    assert {code for code, _, _ in CASES} | ELSEWHERE == set(CODES)
    assert all(code in said[0] for code, _, said in CASES)


def test_a_missing_file_and_an_empty_directory_are_errors(tmp_path: Path) -> None:
    """AW101: no path given is ever passed over."""
    empty = tmp_path / "empty"
    empty.mkdir()
    missing, gone = tmp_path / "gone.yaml", tmp_path / "link.yaml"
    gone.symlink_to("nowhere")
    assert diagnostics(tmp_path, empty, missing, gone) == [
        "0:0: error[AW101]: the directory holds no rule files (*.yaml); give another one, or files",
        "0:0: error[AW101]: cannot read it: No such file or directory. "
        "Check the path and its permissions.",
        "0:0: error[AW101]: cannot read it: No such file or directory. "
        "Check the path and its permissions.",
    ]


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """AW101: a FIFO would never answer, and a device may do something when it is opened."""
    os.mkfifo(tmp_path / "r.yaml")
    (tmp_path / "s.yaml").symlink_to("/dev/zero")
    message = "it is no regular file, and nothing else is read: name a regular file"
    assert diagnostics(tmp_path, tmp_path) == [f"0:0: error[AW101]: {message}"] * 2


def test_a_file_that_becomes_a_fifo_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and opening somebody may put one there."""
    regular = os.stat(__file__)
    monkeypatch.setattr(Path, "stat", lambda self, **_: regular)
    os.mkfifo(tmp_path / "r.yaml")
    (said,) = diagnostics(tmp_path, tmp_path / "r.yaml")
    assert "it is no regular file" in said


def test_text_for_people_may_be_folded(tmp_path: Path) -> None:
    """Long sentences over several lines become one; what is only for authors may have several."""
    text = rule("{path: /x}") + (
        "    title: naïve \u200d\U0001f469\n      and plain\n"
        "    instead: >-\n      one\n      two\n"
        "    false_positives: |\n      - this\n      - that\n"
    )
    assert found(tmp_path, text) == []


def test_lists_in_lists_are_written_out_once(tmp_path: Path) -> None:
    """Thirty lines that name the one before twice: two values, not 2 ** 31 of them."""
    lists = "".join(f"  l{n}: [$l{n - 1}, $l{n - 1}]\n" for n in range(1, 31))
    text = rule("{path: $l30}") + "lists:\n  l0: [/x, /y]\n" + lists
    assert found(tmp_path, text) == []
    path = tmp_path / "r.yaml"
    ruleset = admission.load([path], homes=())
    assert ruleset.lists["l30"] == ruleset.rules[0].match.conditions[0].values == ("/x", "/y")


@pytest.mark.parametrize("backwards", [False, True])
def test_lists_in_lists_have_a_depth(tmp_path: Path, backwards: bool) -> None:
    """AW103, whatever the order they stand in."""
    lists = [f"  l{n}: [$l{n - 1}, $l{n - 1}]\n" for n in range(1, 3000)]
    text = HEAD + "lists:\n  l0: [/x]\n" + "".join(reversed(lists) if backwards else lists)
    said = found(tmp_path, text)
    assert said
    assert all("AW103]: lists are inside lists more than 32 deep" in line for line in said)


def test_what_lists_bring_in_is_bounded(tmp_path: Path) -> None:
    """AW103: a hundred uses of ten thousand values are refused before they are made."""
    big = "lists:\n  big: [" + ", ".join(f"/{n}" for n in range(10_000)) + "]\n"
    users = "".join(f"  u{n}: [$big]\n" for n in range(100))
    said = found(tmp_path, HEAD + big + users)
    assert said[0] == (
        "54:9: error[AW103]: the lists bring in more than 500000 values; use fewer, or globs"
    )


def test_a_file_with_a_name_that_steers_a_terminal(tmp_path: Path) -> None:
    """Whoever can write the rules cannot redraw the screen of who checks them."""
    shown = render(Diagnostic("/x/\x1b[2J.yaml", 0, 0, "error", "AW101", "gone"))
    assert "\x1b" not in shown


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """AW101: a file among readable ones is not passed over; here it is a directory named so."""
    (tmp_path / "d.yaml").mkdir()
    assert diagnostics(tmp_path, tmp_path) == [
        "0:0: error[AW101]: cannot read it: Is a directory. Check the path."
    ]


def test_overrides_are_refused_in_files_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AW309: what a package brings cannot change other rules behind an administrator's back."""
    monkeypatch.setattr("agentwatch.rules.load.VENDOR", tmp_path)
    text = rule("{path: /x}") + "overrides:\n  a: {action: deny}\n"
    assert found(tmp_path, text) == [
        "10:3: error[AW309]: overrides are for local files; change the rule itself"
    ]


def test_all_errors_of_all_files_come_in_one_run(tmp_path: Path) -> None:
    """A person fixes everything once, not one thing after the other."""
    one, two, three = (tmp_path / f"{name}.yaml" for name in ("one", "two", "three"))
    one.write_text(
        rule("{pth: /x}") + "  - id: b\n    on: red\n    action: alert\n    because: c\n"
    )
    two.write_text("rules: *x\n")
    three.write_text(rule('{path: "/**"}', action="kill").replace("id: a", "id: c"))
    codes = [line.split("[")[1][:5] for line in diagnostics(tmp_path, one, two, three)]
    assert codes == ["AW201", "AW204", "AW304", "AW105"]


def test_a_finding_shows_its_line_with_a_caret() -> None:
    """Tabs stay tabs so that the caret stands under the column; nothing steers the terminal."""
    report = Report()
    report.source("r.yaml", "a\n\tb: \x1b[2J c\n")
    report.error("AW201", Place("r.yaml", 2, 5), "unknown")
    assert render(report.all[0]) == (
        "r.yaml:2:5: error[AW201]: unknown\n    \tb: \N{REPLACEMENT CHARACTER}[2J c\n    \t   ^"
    )


def test_what_anchors_stand_for_is_bounded(tmp_path: Path) -> None:
    """A small file that means billions of values is refused before they are made."""
    rows = [f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 20)]
    text = "\n".join([HEAD + "lists:", "  l0: &l0 [/x]", *rows, ""])
    (said,) = found(tmp_path, text)
    assert said.startswith("9:")
    assert said.endswith(
        "error[AW103]: the file stands for more than 500000 values; use fewer or no anchors"
    )


def test_an_anchor_is_fine(tmp_path: Path) -> None:
    """Anchors themselves are YAML that people use."""
    text = rule("{path: &p /x}", test="{hit: {path: *p}}")
    assert found(tmp_path, text) == []


def test_findings_have_an_end(tmp_path: Path) -> None:
    """A file of nothing but mistakes is not answered with a million of them or long lines."""
    path = tmp_path / "r.yaml"
    path.write_text("{" + ", ".join(f"k{i}: v" for i in range(5000)) + "}")
    with pytest.raises(RuleErrors) as caught:
        admission.admit([path], homes=())
    told = caught.value.diagnostics
    assert len(told) == MAX_FINDINGS + 1
    assert any("more than 1000" in one.message for one in told)
    assert all(one.source == "" for one in told)
