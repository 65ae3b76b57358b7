"""Rulesets and events nobody wrote: of every construct of the language, made to meet one another.

Rules take their shapes from the packs that ship, and from a small alphabet, so that patterns
overlap. Most events are made from the patterns: what a pattern covers, often spoiled by one edit.
"""

from __future__ import annotations

import ipaddress
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentwatch.events import Connect, Event, Exec, Mount, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy import patterns
from agentwatch.policy.globs import ANY_COMPONENTS, ARGV, PATH, WORD, Atom, rows
from agentwatch.rules.homes import expand
from agentwatch.rules.load import read_rules
from agentwatch.rules.model import Agent, Condition, Default, Match, Place, Rule, Ruleset
from tests.rules.reference_matcher import ARGVS, LITERALLY, PATHS

PACKS = Path(__file__).parents[2] / "rules"
HERE = Place("generated.yaml", 1, 1)
SESSION, PROCESS = ProcessKey(4000, 7), ProcessKey(4001, 9)
AGENTS = ("alpha", "beta")
PROJECT = "/home/dev/pro ject{1}"
HOMES = (
    ("/root", "/home/dev"),
    ("/root",),
    ("/home/dev", "/home/a b", "/srv/h\u00f6mes/x"),
    ("/home/dev", "/home/dev/inner"),
    (),
)
KINDS = (
    ("exec",), ("exec",), ("read",), ("change",), ("open",), ("read", "change"), ("connect",),
    ("mount",),
)  # fmt: skip
FIELDS = {
    "exec": ("path", "args", "cwd", "stdin", "anonymous"),
    "open": ("path", "access", "op"),
    "connect": ("addr", "port", "unix", "proto", "family"),
    "mount": ("path", "op"),
}
EVERY = ("process.exe", "process.args", "process.cwd", "agent")
SUPPORTED = frozenset(sum(FIELDS.values(), EVERY))
WORDS = {
    "stdin": ("tty", "pipe", "socket", "file", "null"),
    "anonymous": ("true", "false"),
    "access": ("read", "write"),
    "op": ("open", "create", "truncate", "mount", "umount", "userns"),
    "proto": ("tcp", "udp", "unix", "icmp", "icmpv6", "sctp"),
    "family": ("inet", "inet6", "unix", "netlink", "packet", "vsock"),
    "agent": (*AGENTS, "gamma"),
}
NAMES = (
    "a", "b", "ab", "ba", "k", "ks", "x.y", ".ssh", "id_rsa", ".env", "usr", "bin", "etc", "git",
    "push", "--force", "-f", "\u00e9", "\u65e5\u672c", "k\u0142", "\U0001f600", "a b", "K", "S",
    "~", "conf", "x", "xx", "xyx", "$HOME", "0", "10", "[a]", "a,b", "\\",
)  # fmt: skip
CHARS = (
    *"abksxyKSAB01._-~ ",
    "\u00e9",
    "\u0142",
    "\u65e5",
    "\u212a",
    "\u017f",
    "\n",
    "\udc80",
    "\udcff",
)
ADDRESSES = (
    "10.0.0.1", "10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.1.77", "0.0.0.0", "8.8.8.8",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00:ec2::254", "2001:db8::1", "::ffff:10.1.2.3",
)  # fmt: skip
NETWORKS = (
    "10.0.0.0/8", "10.1.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/0", "::/0", "::1/128",
    "fe80::/10", "fc00::/7", "2001:db8::/33", "::ffff:10.0.0.0/104", "::ffff:0:0/96", "::/64",
    "::ffff:0:0/90", "192.168.1.64/27", "10.1.2.3/31", "10.1.2.3",
)  # fmt: skip
PORTS = ("22", "80", "443", "8000-8999", "1-65535", "0", "0-1023", "1024-65535", "255-257", "65535")


@dataclass(frozen=True, slots=True)
class Case:
    """An event and who made it. derived: it was made from a pattern, and perhaps edited."""

    event: Event
    actor: Actor
    derived: bool


def packs() -> Ruleset:
    return read_rules([PACKS], patterns).ruleset


class Generator:
    """Everything follows from the random numbers. shipped: rules whose shapes are taken."""

    def __init__(self, rng: random.Random, shipped: Ruleset) -> None:
        self.rng = rng
        self.shipped = [rule for rule in shipped.rules if _is_supported(rule)]
        assert len(self.shipped) > 50

    # Rulesets.

    def ruleset(self, most: int = 12) -> Ruleset:
        rng = self.rng
        homes = rng.choice(HOMES)
        agents = tuple(
            Agent(one, one, ("**/bin/agent-" + one,), expand(self._own(), homes), HERE)
            for one in AGENTS
        )
        kinds = [rng.choice(KINDS) for _ in range(rng.randint(1, 3))]
        rules = [self._rule(i, rng.choice(kinds)) for i in range(rng.randint(1, most))]
        defaults = tuple(
            Default(rng.choice((*AGENTS, "all")), kind, rng.choice(("alert", "deny", "kill")), HERE)
            for kind in ("exec", "read", "change", "open", "connect", "mount")
            if rng.random() < 0.08
        )
        return Ruleset(tuple(rules), agents, defaults, homes=homes)

    def _own(self) -> tuple[str, ...]:
        return tuple(self.path_glob(False) for _ in range(self.rng.randint(0, 2)))

    def _rule(self, number: int, on: tuple[str, ...]) -> Rule:
        rng = self.rng
        name = f"g.r{number:03}"
        if rng.random() < 0.25:
            return replace(rng.choice(self.shipped), id=name, trials=())
        sort = _sort(on[0])
        unless = tuple((f"u{i}", self._match(sort, 2)) for i in range(rng.choice((0, 0, 1, 2))))
        return Rule(
            name,
            on,
            self._match(sort, 3),
            rng.choice(("deny", "deny", "kill", "alert", "allow")),
            HERE,
            agents=rng.choice(((), (), (), AGENTS[:1], AGENTS)),
            unless=unless,
            severity=rng.choice(("low", "medium", "high")),
        )

    def _match(self, sort: str, most: int) -> Match:
        rng = self.rng
        first = {"exec": ("path", "args"), "open": ("path",), "mount": ("path",)}
        first["connect"] = ("addr", "port", "unix")
        fields = [rng.choice(first[sort]) if rng.random() < 0.85 else rng.choice(FIELDS[sort])]
        for _ in range(rng.randint(0, most - 1)):
            more = rng.choice((*FIELDS[sort], *EVERY))
            if more not in fields:
                fields.append(more)
        return Match(tuple(self.condition(field) for field in fields))

    def condition(self, field: str) -> Condition:
        rng = self.rng
        values: Sequence[str]
        modifiers: set[str] = set()
        sequence = False
        if field in WORDS:
            values = rng.sample(WORDS[field], rng.randint(1, 2))
        elif field == "port":
            values = rng.sample(PORTS, rng.randint(1, 2))
        elif field == "addr":
            modifiers = {"cidr"} if rng.random() < 0.7 else set()
            values = rng.sample(NETWORKS if modifiers else ADDRESSES, rng.randint(1, 2))
        else:
            if rng.random() < 0.15:
                modifiers.add("nocase")
            if field in ARGVS and rng.random() < 0.45:
                modifiers.add("has")
            sequence = field in ARGVS and not modifiers & {"has"} and rng.random() < 0.3
            if not sequence and rng.random() < 0.2:
                modifiers.add(rng.choice(LITERALLY))
            if not sequence and rng.random() < 0.15:
                modifiers.add("all")
            values = self._values(field, modifiers, sequence)
        return Condition(field, tuple(values), frozenset(modifiers), HERE, sequence)

    def _values(self, field: str, modifiers: set[str], sequence: bool) -> list[str]:
        rng = self.rng
        make: Callable[[], str]
        if sequence:
            return [
                rng.choice(("**", "", "{**,a}")) if rng.random() < 0.2 else self._component(WORD)
                for _ in range(rng.randint(1, 4))
            ]
        if modifiers & set(LITERALLY):
            make = self._text_of_path if field in PATHS else self._text
        elif field in PATHS:
            make = self._unix if field == "unix" else self.path_glob
        else:
            make = self._word if "has" in modifiers else self._argv
        return [make() for _ in range(rng.choice((1, 1, 2, 3)))]

    # Patterns.

    def _element(self, separator: str) -> str:
        rng = self.rng
        made = rng.random()
        if made < 0.45:
            return _escaped(rng.choice(NAMES))
        if made < 0.62:
            return "*"
        if made < 0.72:
            return "?"
        if made < 0.8:
            return rng.choice(("[a-k]", "[ab]", "[!a]", "[!a-z]", "[!ks]", "[K]", "[ -~]", "[]a]"))
        if made < 0.82:
            return rng.choice(("[\u00e9]", "[!\u00e9]", "[a-\u00ff]", "[\\]]", "[!]]", "[\\--9]"))
        if made < 0.9:
            return "{" + ",".join(self._inside(separator) for _ in range(rng.randint(1, 3))) + "}"
        return rng.choice(("a", "b", "k", "s", "x", ".", "\\*", "\\?", "\\[", "\\{", "\\a"))

    def _inside(self, separator: str) -> str:
        rng = self.rng
        if rng.random() < 0.15:
            return ""
        if rng.random() < 0.1:
            return rng.choice(("{a,b}", "a{b,*}", "*.x"))
        if rng.random() < 0.15 and separator in (PATH, ARGV):
            cut = "/" if separator == PATH else " "
            return rng.choice(("a", "b*", "?")) + cut + rng.choice(("b", "*", "**", "k"))
        return rng.choice(("a", "b", "ab", "*", "?", "k", "x.y", "[a-c]", "\u00e9"))

    def _component(self, separator: str) -> str:
        return self._valid(
            lambda: "".join(
                self._element(separator) for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 4)))
            ),
            separator,
        )

    def _valid(self, make: Callable[[], str], separator: str) -> str:
        while True:
            text = make()
            if text and text != "**" and patterns.check(text, separator) is None:
                return text

    def path_glob(self, project: bool = True) -> str:
        rng = self.rng
        begins = ["/", "/", "**/", "**/", "~/", "/home/dev/", "/**/"]
        ends = ["", "", "", "/**", "/*", "/"]
        special = ("~", "/", "**", "/**", "*", "~/**")
        if project:
            begins += ["$project/", "$project/**/"]
            special += ("$project", "$project/**", "$project-old/**", "$project*", "/x$project")

        def make() -> str:
            if rng.random() < 0.05:
                return rng.choice(special)
            parts = [self._component(PATH) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
            if rng.random() < 0.2:
                parts.insert(rng.randint(0, len(parts)), "**")
            return rng.choice(begins) + "/".join(parts) + rng.choice(ends)

        while True:
            text = make()
            if patterns.check(text, PATH) is None:
                return text

    def _unix(self) -> str:
        if self.rng.random() < 0.4:
            return self._valid(lambda: "@" + self._component(WORD), PATH)
        return self.path_glob()

    def _argv(self) -> str:
        rng = self.rng

        def make() -> str:
            parts = [self._component(ARGV) for _ in range(rng.choice((1, 2, 2, 3)))]
            for _ in range(rng.choice((0, 1, 1, 2))):
                parts.insert(rng.randint(0, len(parts)), "**")
            return " ".join(parts)

        return self._valid(make, ARGV)

    def _word(self) -> str:
        return "**" if self.rng.random() < 0.02 else self._component(WORD)

    def _text(self) -> str:
        rng = self.rng
        return rng.choice(("", "", " ", "-")).join(
            rng.choice(NAMES) for _ in range(rng.randint(1, 3))
        )

    def _text_of_path(self) -> str:
        rng = self.rng
        begins = rng.choice(("", "", "/", "~/", "~", "$project/", "$project", "."))
        return (
            begins
            + rng.choice(("", "/", ".")).join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
            + rng.choice(("", "", "/"))
        )

    # Values.

    def covered(self, condition: Condition, ruleset: Ruleset) -> bytes | tuple[bytes, ...] | int:
        """A value that the condition covers, nearly always."""
        rng = self.rng
        field, how = condition.field, condition.modifiers
        text = rng.choice(condition.values)
        if text == "$own":
            text = rng.choice([own for agent in ruleset.agents for own in agent.own] or ["/none"])
        if field == "addr":
            return self._address(text)
        if field == "port":
            low, _, high = text.partition("-")
            return rng.choice((int(low), int(high or low), rng.randint(int(low), int(high or low))))
        if field in WORDS:
            return text.encode()
        nocase = "nocase" in how
        literally = [word for word in LITERALLY if word in how]
        if "$project" in text:
            project = PROJECT if literally else patterns.escape(PROJECT)
            text = text.replace("$project", project)
        if field in ARGVS:
            if condition.sequence:
                return sum((self._token(one, nocase) for one in condition.values), ())
            wanted = condition.values if "all" in how else (text,)
            found: tuple[bytes, ...] = sum((self._argv_of(one, how) for one in wanted), ())
            return found
        if text == "~" or text.startswith("~/"):
            home = rng.choice(ruleset.homes or ("~",))
            rest = (
                self._literal_of(literally[0], text[1:], nocase)
                if literally
                else (self._path_of(text[1:], nocase) if text[1:] else b"")
            )
            return os.fsencode(home) + rest
        if literally:
            return self._literal_of(literally[0], text, nocase)
        return self._path_of(text, nocase)

    def _address(self, text: str) -> bytes:
        network = ipaddress.ip_network(text, strict=False)
        bits = network.max_prefixlen - network.prefixlen
        number = int(network.network_address) | self.rng.choice(
            (0, 1, self.rng.getrandbits(128))
        ) & ((1 << bits) - 1)
        return str(type(network.network_address)(number)).encode()

    def _path_of(self, text: str, nocase: bool) -> bytes:
        return b"/".join(self._row(text, PATH, nocase))

    def _token(self, text: str, nocase: bool) -> tuple[bytes, ...]:
        return tuple(self._row(text, WORD, nocase)) if text else (b"",)

    def _argv_of(self, text: str, how: frozenset[str]) -> tuple[bytes, ...]:
        nocase = "nocase" in how
        literally = [word for word in LITERALLY if word in how]
        if literally:
            found = self._literal_of(literally[0], text, nocase)
            parts = (
                (found,) if "has" in how or self.rng.random() < 0.3 else tuple(found.split(b" "))
            )
        else:
            parts = tuple(self._row(text, WORD if "has" in how else ARGV, nocase))
        if "has" in how:
            before, behind = self.rng.choice(((0, 0), (1, 0), (0, 1), (1, 2)))
            parts = (*self._tokens(before), *parts, *self._tokens(behind))
        return parts

    def _tokens(self, count: int) -> list[bytes]:
        return [os.fsencode(self.rng.choice(NAMES)) for _ in range(count)]

    def _row(self, text: str, separator: str, nocase: bool) -> list[bytes]:
        found: list[bytes] = []
        for component in self.rng.choice(rows(text, separator)):
            if component == ANY_COMPONENTS:
                found += self._tokens(self.rng.choice((0, 0, 1, 2, 5)))
            else:
                chars = "".join(self._atom(atom) for atom in component)
                found.append(os.fsencode(self._cased(chars) if nocase else chars))
        return found

    def _atom(self, atom: Atom) -> str:
        rng = self.rng
        if atom.kind == "text":
            return atom.text
        if atom.kind == "many":
            return "".join(rng.choice(CHARS) for _ in range(rng.choice((0, 0, 1, 2, 4))))
        if atom.kind == "any" or atom.text == "!":
            return rng.choice(CHARS)
        low, high = rng.choice(atom.ranges)
        return chr(rng.randint(ord(low), ord(high)))

    def _cased(self, text: str) -> str:
        rng = self.rng
        found = [
            rng.choice((c.lower(), c.upper())) if c.isascii() and rng.random() < 0.5 else c
            for c in text
        ]
        special = {"k": "\u212a", "s": "\u017f", "K": "\u212a", "S": "\u017f"}
        return "".join(special.get(c, c) if rng.random() < 0.1 else c for c in found)

    def _literal_of(self, how: str, text: str, nocase: bool) -> bytes:
        body = self._cased(text) if nocase else text
        rest = ["", "/", "a", "/b", "x/", "\udcff", "//"]
        before = "" if how == "startswith" else self.rng.choice(rest)
        behind = "" if how == "endswith" else self.rng.choice(rest)
        return os.fsencode(before + body + behind)

    def spoiled(self, value: bytes) -> bytes:
        """One or two edits."""
        for _ in range(self.rng.choice((1, 1, 2))):
            value = self._edited(value)
        return value

    def _edited(self, value: bytes) -> bytes:
        rng = self.rng
        at = rng.randint(0, len(value))
        with_one = os.fsencode(rng.choice((*CHARS, "/", "/a", "*", "\udcbf", "\udca9")))
        return rng.choice(
            (
                value[:at] + value[at + 1 :],
                value[:at] + with_one + value[at:],
                value[:at] + with_one + value[at + 1 :],
                value[:at],
                value + with_one,
                value[:at] + value[at:].swapcase(),
                value.replace(b"/", b"//", 1),
                value + b"/" + value,
                value[at:] + value[:at],
            )
        ).replace(b"\0", b"")

    def anything(self) -> bytes:
        """A value made from no pattern."""
        rng = self.rng
        if rng.random() < 0.1:
            return bytes(rng.randint(1, 255) for _ in range(rng.randint(1, 60)))
        parts = [os.fsencode(rng.choice(NAMES)) for _ in range(rng.randint(0, 5))]
        return b"/" + b"/".join(parts)

    # Events.

    def cases(self, ruleset: Ruleset, count: int) -> list[Case]:
        return [self.case(ruleset) for _ in range(count)]

    def case(self, ruleset: Ruleset) -> Case:
        rng = self.rng
        rule = rng.choice(ruleset.rules)
        wanted: dict[str, object] = {}
        derived = rng.random() < 0.85
        if derived:
            matches = [rule.match]
            if rule.unless and rng.random() < 0.4:
                matches.append(rng.choice(rule.unless)[1])
            for match in matches:
                for condition in match.conditions:
                    wanted[condition.field] = self.covered(condition, ruleset)
            if wanted and rng.random() < 0.4:
                self._spoil(wanted)
        event = self._event(_sort(rule.on[0]), rule.on, wanted)
        return Case(event, self._actor(rule, wanted), derived)

    def _spoil(self, wanted: dict[str, object]) -> None:
        rng = self.rng
        field = rng.choice(list(wanted))
        value = wanted[field]
        if field in WORDS:
            wanted[field] = rng.choice(WORDS[field]).encode()
        elif field == "port":
            wanted[field] = min(max(int(str(value)) + rng.choice((-1, 1, 256)), 0), 65535)
        elif field == "addr":
            wanted[field] = rng.choice(ADDRESSES).encode()
        elif isinstance(value, tuple):
            tokens = list(value)
            at = rng.randint(0, len(tokens))
            edit = rng.choice(("insert", "remove", "change", "swap"))
            if edit == "insert":
                tokens.insert(at, os.fsencode(rng.choice((*NAMES, ""))))
            elif edit == "remove":
                del tokens[at : at + 1]
            elif edit == "swap":
                tokens = tokens[at:] + tokens[:at]
            elif at < len(tokens):
                tokens[at] = self.spoiled(tokens[at])
            wanted[field] = tuple(tokens)
        else:
            assert isinstance(value, bytes)
            wanted[field] = self.spoiled(value)

    def _text_for(self, wanted: dict[str, object], field: str) -> str:
        value = wanted.get(field)
        found = value if isinstance(value, bytes) else self.anything()
        return os.fsdecode(found.replace(b"\0", b""))

    def _named(self, wanted: dict[str, object], field: str) -> tuple[str, str, str]:
        """The canonical name, and perhaps one or two others: it may be any of them that fits."""
        names = [self._text_for(wanted, field)]
        roll = self.rng.random()
        if roll < 0.25:
            others = (self._text_for({}, field), self._text_for(wanted, field))
            names += others[: 1 + (roll < 0.1)]
            self.rng.shuffle(names)
        path, *others_ = names
        view, known = (*others_, "", "")[:2]
        if not path or any(len(name) > 900 or name == path for name in (view, known)):
            return names[0], "", ""
        return (path, known, view) if roll < 0.05 else (path, view, known)

    def _args_for(self, wanted: dict[str, object], field: str) -> tuple[str, ...]:
        value = wanted.get(field)
        tokens = value if isinstance(value, tuple) else self._tokens(self.rng.choice((0, 1, 3)))
        return tuple(os.fsdecode(token.replace(b"\0", b"")) for token in tokens)

    def _word_for(self, wanted: dict[str, object], field: str) -> str:
        value = wanted.get(field)
        return value.decode() if isinstance(value, bytes) else self.rng.choice(WORDS[field])

    def _event(self, sort: str, on: Sequence[str], wanted: dict[str, object]) -> Event:
        make = {"exec": self._exec, "open": self._open, "connect": self._connect}
        make["mount"] = self._mount
        event = make[sort](on, wanted)
        if self.rng.random() < 0.06:
            names = {"exec": ("path", "argv", "cwd"), "open": ("path",), "mount": ("path",)}
            names["connect"] = ("address",)
            event = replace(event, unresolved=frozenset({self.rng.choice(names[sort])}))
        return event

    def _exec(self, on: Sequence[str], wanted: dict[str, object]) -> Event:
        argv = ("argv0", *self._args_for(wanted, "args"))
        begins = self.rng.random() < 0.1
        path, view, known = self._named(wanted, "path")
        return Exec(
            time=1,
            process=SESSION if begins else PROCESS,
            session=SESSION,
            path=path,
            asked=path,
            argv=argv,
            argc=len(argv),
            stdin=self._word_for(wanted, "stdin"),
            cwd=self._text_for(wanted, "cwd") or "/",
            anonymous=self._word_for(wanted, "anonymous") == "true",
            view=view,
            known=known,
        )

    def _open(self, on: Sequence[str], wanted: dict[str, object]) -> Event:
        rng = self.rng
        reads, changes = rng.choice(((True, False), (False, True), (True, True), (False, False)))
        if wanted and rng.random() < 0.9:
            reads, changes = reads or "read" in on, changes or "change" in on
            access = wanted.get("access")
            reads, changes = reads or access == b"read", changes or access == b"write"
        op = wanted.get("op", rng.choice((b"open", b"create", b"truncate")))
        path, view, known = self._named(wanted, "path")
        if rng.random() < 0.05:
            path = "[0:77]" + path
        return Open(
            time=1,
            process=PROCESS,
            session=SESSION,
            path=path,
            asked=path,
            flags=os.O_TRUNC if op == b"truncate" else 0,
            result=3,
            reads=reads,
            changes=changes,
            created=op == b"create",
            view=view,
            known=known,
        )

    def _mount(self, on: Sequence[str], wanted: dict[str, object]) -> Event:
        op = self._word_for(wanted, "op")
        path = self._text_for(wanted, "path") or "/"
        if self.rng.random() < 0.05:
            path = "[0:77]" + path
        path = "" if op == "userns" else path
        return Mount(time=1, process=PROCESS, session=SESSION, op=op, path=path)

    def _connect(self, on: Sequence[str], wanted: dict[str, object]) -> Event:
        rng = self.rng
        unix = "unix" in wanted or (not wanted and rng.random() < 0.3)
        if unix:
            return Connect(
                time=1, process=PROCESS, session=SESSION, family=1, protocol="unix",
                unix=self._text_for(wanted, "unix"), from_socket=rng.random() < 0.8,
            )  # fmt: skip
        value = wanted.get("addr")
        addr = value.decode() if isinstance(value, bytes) else rng.choice(ADDRESSES)
        port = wanted.get("port")
        family = 10 if ":" in addr else 2
        protocol = self._word_for(wanted, "proto")
        return Connect(
            time=1, process=PROCESS, session=SESSION, family=family, addr=addr,
            port=port if isinstance(port, int) else rng.choice((22, 80, 443, 8080, 256)),
            protocol="tcp" if protocol == "unix" else protocol,
            syn=protocol in ("tcp", "unix"), from_socket=rng.random() < 0.8,
        )  # fmt: skip

    def _actor(self, rule: Rule, wanted: dict[str, object]) -> Actor:
        rng = self.rng
        agents: tuple[str, ...] = rng.choice(((), AGENTS[:1], AGENTS[1:], AGENTS))
        if rule.agents and rng.random() < 0.8:
            agents = rule.agents
        image = Image(
            self._text_for(wanted, "process.exe"),
            None,
            ("argv0", *self._args_for(wanted, "process.args")),
            self._text_for(wanted, "process.cwd"),
            others=(self._text_for(wanted, "process.exe"),) if rng.random() < 0.1 else (),
        )
        project = PROJECT if rng.random() < 0.8 else None
        known = rng.random() < 0.93
        return Actor(PROCESS, SESSION, agents, image if known else None, (), project)


def _sort(kind: str) -> str:
    return kind if kind in ("exec", "connect", "mount") else "open"


def _escaped(text: str) -> str:
    return patterns.escape(text)


def _is_supported(rule: Rule) -> bool:
    matches = (rule.match, *(match for _, match in rule.unless))
    conditions = [one for match in matches for one in match.conditions]
    kinds = set(rule.on)
    return (
        any(
            kinds <= sort for sort in ({"exec"}, {"read", "change", "open"}, {"connect"}, {"mount"})
        )
        and rule.count is None
        and all(one.field in SUPPORTED and "re" not in one.modifiers for one in conditions)
    )
