"""The configuration file: what it may say, what it means, and every mistake at its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentwatch import actions, config
from agentwatch.config import Address, Audit, Breaker, Config, Journal
from agentwatch.errors import ConfigErrors, RuleErrors
from agentwatch.rules.diagnostics import render
from agentwatch.rules.load import default_paths
from agentwatch.rules.model import MODES
from agentwatch.rules.read import MAX_BYTES
from agentwatch.sinks import journal, segments, waiting

WHOLE = """\
mode: observe
rules: [{here}/rules, {here}/one.yaml]
agents: [claude-code, codex]
audit: {{default: findings, claude-code: all}}
without_hook: refuse
on_loss: freeze
on_exit: keep
cgroup: {here}/cgroup
journal:
  dir: {here}/journal
  segment_bytes: 1.5MiB
  keep_bytes: 10 GiB
  keep_days: 90
  fsync: 250ms
jsonl: {here}/findings.jsonl
metrics: "[::1]:9100"
socket: {here}/control.sock
breaker: {{kills: 5, within: 2m}}
"""


def load(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "agentwatch.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(path)


def found(tmp_path: Path, text: str | bytes) -> list[str]:
    """What is said about a file of this text, `line:col: code: message` each."""
    with pytest.raises(ConfigErrors) as refused:
        load(tmp_path, text)
    return [
        f"{d.line}:{d.column}: {d.code}: {d.message}".replace(str(tmp_path), "HERE")
        for d in refused.value.diagnostics
    ]


def places(tmp_path: Path) -> Path:
    """What WHOLE names and must exist; the cgroup is a directory that has what cgroup2's have."""
    for name in ("rules", "cgroup"):
        (tmp_path / name).mkdir()
    for name in ("one.yaml", "cgroup/cgroup.controllers"):
        (tmp_path / name).touch()
    return tmp_path


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each value arrives where it belongs, in the unit that is promised."""
    here = places(tmp_path)
    assert load(tmp_path, WHOLE.format(here=here)) == Config(
        mode="observe",
        rules=(here / "rules", here / "one.yaml"),
        agents=("claude-code", "codex"),
        audit=Audit("findings", (("claude-code", "all"),)),
        without_hook="refuse",
        on_loss="freeze",
        on_exit="keep",
        cgroup=here / "cgroup",
        journal=Journal(here / "journal", 3 << 19, 10 << 30, 90, 0.25),
        jsonl=here / "findings.jsonl",
        metrics=Address("::1", 9100),
        socket=here / "control.sock",
        breaker=Breaker(5, 120 * 10**9),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}\n", "\ufeff", "null\n"])
def test_a_file_that_says_nothing_is_the_defaults(tmp_path: Path, text: str) -> None:
    """An empty file, one of comments, and an empty mapping."""
    assert load(tmp_path, text) == Config()


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at the default path is no mistake."""
    monkeypatch.setattr(config, "DEFAULT", tmp_path / "none.yaml")
    found = config.load()
    assert found == Config()
    assert found.path is None


def test_a_default_file_that_is_there_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used without being named, and the configuration knows it."""
    path = tmp_path / "agentwatch.yaml"
    path.write_text("mode: observe\n")
    monkeypatch.setattr(config, "DEFAULT", path)
    found = config.load()
    assert (found.mode, found.path) == ("observe", path)


def test_a_default_file_that_leads_nowhere_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody meant a file to be there: a broken link is not taken for none."""
    path = tmp_path / "agentwatch.yaml"
    path.symlink_to(tmp_path / "gone")
    monkeypatch.setattr(config, "DEFAULT", path)
    with pytest.raises(ConfigErrors, match="1 error in the configuration"):
        config.load()


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """What was asked for is not replaced by defaults."""
    with pytest.raises(ConfigErrors) as refused:
        config.load(tmp_path / "gone.yaml")
    (only,) = refused.value.diagnostics
    assert render(only).startswith(f"{tmp_path}/gone.yaml: error[AW101]: cannot read it: No such")


def test_defaults_are_those_of_what_is_configured() -> None:
    """The numbers here are the numbers of the modules that use them."""
    assert Config().journal.dir == segments.DEFAULT_DIRECTORY
    assert Config().journal.segment_bytes == journal.SEGMENT_BYTES
    assert Config().rule_paths == default_paths()
    breaker = actions.Breaker()
    assert (breaker._kills, breaker._within) == (Config().breaker.kills, Config().breaker.within)
    assert {Config().mode, "observe"} == set(MODES)


def test_a_segment_as_large_as_may_be_is_not_made_smaller() -> None:
    """The bound is the journal's own, so that no value is accepted and then not used."""
    limit = segments.SEGMENT_MAX - 2 * waiting.WAITING_MAX
    assert config.SEGMENT_BYTES.high == limit


# (what is written, what it means)
MEANT: list[tuple[str, Config]] = [
    ("mode: enforce", Config()),
    ("rules: default", Config()),
    ("rules: /", Config(rules=(Path("/"),))),
    ("rules: [/, /proc, /]", Config(rules=(Path("/"), Path("/proc")))),
    ("agents: all", Config()),
    ("agents: []", Config(agents=())),
    ("agents: codex", Config(agents=("codex",))),
    ("agents: [codex, codex]", Config(agents=("codex",))),
    ("audit: findings", Config(audit=Audit("findings"))),
    ("audit: {}", Config()),
    ("audit: {codex: findings}", Config(audit=Audit("all", (("codex", "findings"),)))),
    ("cgroup: root", Config()),
    ("jsonl: off", Config()),
    ("metrics: off", Config(metrics=None)),
    ("metrics: /x/agentwatch.prom", Config(metrics=Path("/x/agentwatch.prom"))),
    ("group: none", Config()),
    ("group: adm", Config(group="adm")),
    ("metrics: localhost:0", Config(metrics=Address("localhost", 0))),
    ("metrics: 0.0.0.0:65535", Config(metrics=Address("0.0.0.0", 65535))),
    ("journal: {}", Config()),
    ("journal: {fsync: 0}", Config(journal=Journal(fsync=0.0))),
    ("journal: {fsync: 0.5}", Config(journal=Journal(fsync=0.5))),
    ("journal: {fsync: never}", Config(journal=Journal(fsync=None))),
    ("journal: {keep_days: 48h}", Config(journal=Journal(keep_days=2))),
    ("journal: {keep_days: 7d}", Config(journal=Journal(keep_days=7))),
    ("journal: {segment_bytes: 1048576}", Config(journal=Journal(segment_bytes=1 << 20))),
    ("journal: {keep_bytes: 64MiB}", Config(journal=Journal(keep_bytes=64 << 20))),
    ("journal: {keep_bytes: 2TiB}", Config(journal=Journal(keep_bytes=2 << 40))),
    ("breaker: {within: 3}", Config(breaker=Breaker(within=3 * 10**9))),
    ('breaker: {kills: "7"}', Config(breaker=Breaker(kills=7))),
]


@pytest.mark.parametrize(("text", "meant"), MEANT, ids=[text for text, _ in MEANT])
def test_a_value_means(tmp_path: Path, text: str, meant: Config) -> None:
    """Words, units and lists as the reference has them."""
    assert load(tmp_path, text) == meant


SIZE = "write a number of bytes, or one with a unit (B, KiB, MiB, GiB or TiB) as in 64MiB."
DAYS = "write a number of days, or one with a unit (ms, s, m, h or d) as in 30d."
SYNC = "write a number of seconds, or one with a unit (ms, s, m, h or d) as in 1s, or never."
WITHIN = "write a number of seconds, or one with a unit (ms, s, m, h or d) as in 10s."
ADDRESS = "write HOST:PORT, such as 127.0.0.1:9477, or off"
KNOWN = ", ".join(dict.fromkeys(key.split(".")[0] for key in config.KEYS))
LONG = "/run/" + "a" * 103

# (what is written, all that is said about it)
MISTAKES: list[tuple[str, list[str]]] = [
    ("moed: x", ['1:1: AW201: the configuration has no key "moed". Did you mean "mode"?']),
    ("[mode]", [f"1:1: AW202: the configuration must be a mapping ({KNOWN}), not a list"]),
    ("enforce", [f"1:1: AW202: the configuration must be a mapping ({KNOWN}), not text"]),
    ("mode: a\nmode: b", [
        '1:7: AW204: "mode" cannot be "a"; it is observe or enforce.',
        '2:1: AW106: the key "mode" is already on line 1',
    ]),
    ("mode:", ['1:6: AW202: "mode" is empty; it must be text']),
    ("mode: [observe]", ['1:7: AW202: "mode" must be text, not a list']),
    ("without_hook: deny", [
        '1:15: AW204: "without_hook" cannot be "deny"; it is kill, alert or refuse.',
    ]),
    ("on_loss: Log", [
        '1:10: AW204: "on_loss" cannot be "Log"; it is log, freeze or kill. Did you mean "log"?',
    ]),
    ("rules: rules.d", [
        '1:8: AW512: "rules" cannot be the relative path "rules.d"; write it from / on',
    ]),
    ("rules: [/proc/1/none, /proc/none]", [
        '1:9: AW514: there are no rules at "/proc/1/none": '
        "No such file or directory; correct the path",
        '1:23: AW514: there are no rules at "/proc/none": '
        "No such file or directory; correct the path",
    ]),
    ("rules: []", [
        "1:8: AW207: a daemon without rules stops nothing; name some, or leave the key out",
    ]),
    ("rules:", ['1:7: AW202: "rules" is empty; it must be default or a list of paths']),
    ('rules: "/a\\0b"', ['1:8: AW207: "rules" has the control character U+0000 in it; remove it']),
    ("agents: {codex: all}", [
        '1:9: AW202: "agents" must be all or a list of agents, not a mapping',
    ]),
    ("agents: [[codex]]", ['1:10: AW202: "agents" must be text, not a list']),
    ("audit: some", ['1:8: AW204: "audit" cannot be "some"; it is all or findings.']),
    ("audit: [all]", ['1:8: AW202: "audit" must be text, not a list']),
    ("audit: {codex: finding}", [
        '1:16: AW204: audit of "codex" cannot be "finding"; it is all or findings. '
        'Did you mean "findings"?',
    ]),
    ("cgroup: sys/fs", [
        '1:9: AW512: "cgroup" cannot be the relative path "sys/fs"; write it from / on',
    ]),
    ("cgroup: /proc", [
        '1:9: AW514: "cgroup" must be a directory of the cgroup2 hierarchy, and "/proc" is none; '
        "`findmnt -t cgroup2` shows where that is",
    ]),
    ("journal: /var/log", ['1:10: AW202: "journal" must be a mapping, not text']),
    ("journal:", ['1:9: AW202: "journal" is empty; it must be a mapping']),
    ("journal: {keep: 1}", ['1:11: AW201: "journal" has no key "keep". Did you mean "keep_days"?']),
    ("journal: {dir: logs}", [
        '1:16: AW512: "dir" cannot be the relative path "logs"; write it from / on',
    ]),
    ("journal: {dir: /proc/version}", [
        '1:16: AW514: "dir" must be a directory, and "/proc/version" is something else; '
        "name another one",
    ]),
    ("journal: {segment_bytes: 64MB}", [
        f'1:26: AW207: "segment_bytes" cannot be "64MB"; {SIZE} Did you mean "MiB"?',
    ]),
    ("journal: {segment_bytes: 1023KiB}", [
        '1:26: AW511: "segment_bytes" must be 1MiB to 192MiB, not 1023KiB',
    ]),
    ("journal: {segment_bytes: 193MiB}", [
        '1:26: AW511: "segment_bytes" must be 1MiB to 192MiB, not 193MiB',
    ]),
    ("journal: {segment_bytes: 1048576.5}", [
        '1:26: AW511: "segment_bytes" must be a multiple of 1B, not 1048576.5',
    ]),
    ("journal: {keep_bytes: -1}", [f'1:23: AW207: "keep_bytes" cannot be "-1"; {SIZE}']),
    ("journal: {keep_bytes: ٣}", [f'1:23: AW207: "keep_bytes" cannot be "٣"; {SIZE}']),
    ("journal: {keep_bytes: 1e9}", [f'1:23: AW207: "keep_bytes" cannot be "1e9"; {SIZE}']),
    ("journal: {keep_bytes: 010}", [
        "1:23: AW105: 010 is octal to some YAML readers and decimal to others; write 10",
    ]),
    ("journal: {keep_bytes: 63MiB}", [
        "1:23: AW513: keep_bytes (63MiB) is less than one segment (segment_bytes: 64MiB); "
        "keep more, or make segments smaller",
    ]),
    ("journal: {segment_bytes: 2MiB, keep_bytes: 1MiB}", [
        "1:44: AW513: keep_bytes (1MiB) is less than one segment (segment_bytes: 2MiB); "
        "keep more, or make segments smaller",
    ]),
    # One mistake is not two: the default stands in for what is wrong, and is not what is compared.
    ("journal: {segment_bytes: x, keep_bytes: 1MiB}", [
        f'1:26: AW207: "segment_bytes" cannot be "x"; {SIZE}',
    ]),
    ("journal: {keep_days: 0}", ['1:22: AW511: "keep_days" must be 1d to 36500d, not 0']),
    ("journal: {keep_days: 36h}", ['1:22: AW511: "keep_days" must be a multiple of 1d, not 36h']),
    ("journal: {keep_days: 2w}", [f'1:22: AW207: "keep_days" cannot be "2w"; {DAYS}']),
    ("journal: {fsync: ever}", [f'1:18: AW207: "fsync" cannot be "ever"; {SYNC}']),
    ("journal: {fsync: 2h}", ['1:18: AW511: "fsync" must be 0 to 1h, not 2h']),
    ("journal: {fsync: 0.0001}", ['1:18: AW511: "fsync" must be a multiple of 1ms, not 0.0001']),
    ("jsonl: findings", [
        '1:8: AW512: "jsonl" cannot be the relative path "findings"; write it from / on',
    ]),
    ("jsonl: /proc", [
        '1:8: AW514: "jsonl" must name a file, and "/proc" is a directory; add the file\'s name',
    ]),
    ("metrics: /x/agentwatch.txt", [
        '1:10: AW207: "metrics": node_exporter reads files called *.prom, '
        'and "/x/agentwatch.txt" is none; rename it',
    ]),
    ("group: no-such-group", [
        '1:8: AW514: "group": there is no group "no-such-group"; '
        "make it with groupadd --system, or write none",
    ]),
    ("metrics: 9477", [f'1:10: AW207: "metrics" cannot be "9477"; {ADDRESS}']),
    ("metrics: :9477", [f'1:10: AW207: "metrics" cannot be ":9477"; {ADDRESS}']),
    ("metrics: localhost:http", [f'1:10: AW207: "metrics" cannot be "localhost:http"; {ADDRESS}']),
    ("metrics: localhost:65536", [
        '1:10: AW207: "metrics" cannot be "localhost:65536"; ports end at 65535',
    ]),
    ("metrics: 256.0.0.1:80", [
        '1:10: AW207: "metrics" cannot be "256.0.0.1:80"; '
        '"256.0.0.1" is no address and no host name',
    ]),
    ("metrics: a b:80", [
        '1:10: AW207: "metrics" cannot be "a b:80"; "a b" is no address and no host name',
    ]),
    ('metrics: "[127.0.0.1]:80"', [
        '1:10: AW207: "metrics" cannot be "[127.0.0.1]:80"; '
        '"[127.0.0.1]" is no address and no host name',
    ]),
    ("metrics: fe80::1:80", [
        '1:10: AW207: "metrics" cannot be "fe80::1:80"; '
        'write an IPv6 address in brackets, and all of it in quotes: "[fe80::1]:80"',
    ]),
    ("metrics: [::1]:80", [
        '1:10: AW105: "[::1]:80" begins with "[", which opens a list in YAML; put it in quotes',
    ]),
    ("socket: ./s", ['1:9: AW512: "socket" cannot be the relative path "./s"; write it from / on']),
    ("socket: /run/x/", [
        '1:9: AW514: "socket" must name a file, and "/run/x/" is a directory; add the file\'s name',
    ]),
    (f"socket: {LONG}", [
        '1:9: AW512: "socket" has 108 bytes, and a socket\'s path 107 at most; shorten it',
    ]),
    ("breaker: {kills: 0}", ['1:18: AW511: "kills" must be 1 to 1000000, not 0']),
    ("breaker: {kills: 1.5}", ['1:18: AW511: "kills" must be a multiple of 1, not 1.5']),
    ("breaker: {kills: 5s}", ['1:18: AW207: "kills" cannot be "5s"; write a whole number.']),
    ("breaker: {within: 0}", ['1:19: AW511: "within" must be 1ms to 1d, not 0']),
    ("breaker: {within: 10sec}", [f'1:19: AW207: "within" cannot be "10sec"; {WITHIN}']),
    ("breaker: {withing: 1s}", [
        '1:11: AW201: "breaker" has no key "withing". Did you mean "within"?',
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text[:40] for text, _ in MISTAKES])
def test_a_mistake_is_answered_where_it_is(tmp_path: Path, text: str, said: list[str]) -> None:
    """Line, column, code, and what to write instead."""
    assert found(tmp_path, text) == said


def test_the_longest_socket_is_taken(tmp_path: Path) -> None:
    """107 bytes are what the kernel takes: the bound is not one too low."""
    assert load(tmp_path, f"socket: {LONG[:-1]}").socket == Path(LONG[:-1])


def test_every_code_of_the_configuration_has_a_mistake() -> None:
    """No code is promised that nothing gives."""
    given = {word for _, said in MISTAKES for line in said for word in line.split(": ")[1:2]}
    assert {code for code in given if code.startswith("AW5")} == set(config.CODES)


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    """One run shows them all, in the order of the file, with the line and a caret."""
    text = "mode: x\njournal:\n  fsync: y\nbreaker: {kills: z}\nmetrics: w\n"
    with pytest.raises(ConfigErrors, match="4 errors in the configuration") as refused:
        load(tmp_path, text)
    assert [d.line for d in refused.value.diagnostics] == [1, 3, 4, 5]
    assert render(refused.value.diagnostics[1]).endswith("\n      fsync: y\n             ^")


def test_the_error_is_shown_as_those_of_rule_files() -> None:
    """The command line renders whatever is a RuleErrors, each finding with its line."""
    assert issubclass(ConfigErrors, RuleErrors)


HOSTILE = {
    "not UTF-8": (b"mode: caf\xe9\n", "AW102"),
    "no YAML": (b"mode: 'observe\n", "AW104"),
    "large": (b"# " + b"x" * MAX_BYTES, "AW103"),
    "deep": (b"audit: " + b"[" * 40 + b"]" * 40, "AW103"),
    "laughs": (
        b"".join(
            b"l%d: &l%d [%s]\n" % (n, n, b", ".join([b"*l%d" % (n - 1)] * 9 if n else [b"lol"] * 9))
            for n in range(12)
        ),
        "AW103",
    ),
    "two documents": (b"mode: observe\n---\nmode: enforce\n", "AW202"),
    "a tag": (b"mode: !!python/object:os.system observe\n", "AW105"),
    "many keys": (b"".join(b"mode%d: x\n" % n for n in range(2000)), "AW103"),
    "many rules": (b"rules: [" + b"/proc, " * 2000 + b"]", "AW103"),
    "many agents": (b"agents: [" + b"x, " * 2000 + b"]", "AW103"),
    "many audits": (
        b"audit: {" + b", ".join(b"a%d: all" % n for n in range(2000)) + b"}",
        "AW103",
    ),
    "many keys below": (
        b"journal: {" + b", ".join(b"a%d: all" % n for n in range(2000)) + b"}",
        "AW103",
    ),
}


@pytest.mark.parametrize(("text", "code"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, text: bytes, code: str) -> None:
    """It is one diagnostic, not a crash, and not thousands of them."""
    assert [line.split(": ")[1] for line in found(tmp_path, text)] == [code]


def test_a_file_of_a_gigabyte_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """Its size is refused by what is read of it at most."""
    path = tmp_path / "agentwatch.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigErrors) as refused:
        config.load(path)
    assert [d.code for d in refused.value.diagnostics] == ["AW103"]


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """A FIFO nobody writes to, a device without an end, a directory."""
    path = {"device": Path("/dev/zero"), "directory": tmp_path}.get(kind, tmp_path / "fifo")
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(ConfigErrors) as refused:
        config.load(path)
    assert [(d.code, d.line) for d in refused.value.diagnostics] == [("AW101", 0)]


AGENTS = """\
agents:
  - claude-code
  - codxe
audit: {default: all, gemini: findings, codex: all}
"""


def test_agents_that_no_rule_file_defines_are_found(tmp_path: Path) -> None:
    """Each where it is named, with its line and the likeliest of those there are."""
    read = load(tmp_path, AGENTS)
    said = [render(one) for one in read.check_agents(["claude-code", "codex"])]
    file = tmp_path / "agentwatch.yaml"
    assert said == [
        f'{file}:3:5: error[AW302]: there is no agent "codxe". Did you mean "codex"?\n'
        "      - codxe\n        ^",
        f'{file}:4:23: error[AW302]: there is no agent "gemini".\n'
        "    audit: {default: all, gemini: findings, codex: all}\n                          ^",
    ]


def test_agents_are_checked_against_each_ruleset_anew(tmp_path: Path) -> None:
    """What one ruleset lacked is not held against the next."""
    read = load(tmp_path, AGENTS)
    assert len(read.check_agents([])) == 4
    assert read.check_agents(["claude-code", "codxe", "gemini", "codex"]) == ()
    assert Config().check_agents([]) == ()


def test_an_agent_of_its_own_audit_and_the_others() -> None:
    """The default is for those that are not named."""
    audit = Audit("findings", (("codex", "all"),))
    assert [audit.of(agent) for agent in ("codex", "claude-code")] == ["all", "findings"]


def test_the_place_of_a_key_is_known(tmp_path: Path) -> None:
    """For what turns out to be wrong later, such as a port that is taken."""
    read = load(tmp_path, "journal:\n  dir: /x\nmetrics: off\n")
    assert [(p.line, p.column) for p in map(read.place, ("journal.dir", "metrics")) if p] == [
        (2, 3),
        (3, 1),
    ]
    assert read.place("socket") is None


# key -> a configuration in which it has another value
OTHER = {
    "mode": Config(mode="observe"),
    "rules": Config(rules=(Path("/"),)),
    "agents": Config(agents=()),
    "audit": Config(audit=Audit("findings")),
    "without_hook": Config(without_hook="alert"),
    "on_loss": Config(on_loss="kill"),
    "on_exit": Config(on_exit="keep"),
    "cgroup": Config(cgroup=Path("/x")),
    "journal.dir": Config(journal=Journal(dir=Path("/x"))),
    "journal.segment_bytes": Config(journal=Journal(segment_bytes=1 << 20)),
    "journal.keep_bytes": Config(journal=Journal(keep_bytes=1 << 40)),
    "journal.keep_days": Config(journal=Journal(keep_days=1)),
    "journal.fsync": Config(journal=Journal(fsync=None)),
    "jsonl": Config(jsonl=Path("/x")),
    "metrics": Config(metrics=None),
    "socket": Config(socket=Path("/x")),
    "group": Config(group="adm"),
    "breaker.kills": Config(breaker=Breaker(kills=1)),
    "breaker.within": Config(breaker=Breaker(within=1)),
}
LATER = {key for key in OTHER if key.startswith("journal.")}
LATER |= {"cgroup", "metrics", "socket", "group"}


def test_every_key_can_change() -> None:
    """The table above has them all."""
    assert tuple(OTHER) == config.KEYS


@pytest.mark.parametrize("key", OTHER)
def test_a_reload_applies_a_key_or_says_that_it_waits(key: str) -> None:
    """One or the other, never both; what waits keeps its running value."""
    came = Config().reload(OTHER[key])
    assert (came.applied, came.restart) == (((), (key,)) if key in LATER else ((key,), ()))
    assert came.config == (Config() if key in LATER else OTHER[key])


def test_what_waits_for_a_restart_is_said_again_at_each_reload() -> None:
    """Until it is taken back: what runs is compared with what is written."""
    new = Config(mode="observe", socket=Path("/x"))
    came = Config().reload(new)
    assert came.config.reload(new).restart == ("socket",)
    assert came.config.reload(new).applied == ()
    assert came.config.reload(Config(mode="observe")).restart == ()


def test_a_file_written_in_another_way_changes_nothing(tmp_path: Path) -> None:
    """Two files that mean the same are equal, wherever their keys stand."""
    one = load(tmp_path, "breaker: {within: 60}\nmode: enforce\n")
    other = load(tmp_path, "# as before\nmode: enforce\nbreaker:\n  within: 1m\n")
    assert one == other
    came = one.reload(other)
    assert (came.applied, came.restart) == ((), ())
    assert came.config.places == other.places
