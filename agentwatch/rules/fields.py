"""The one table of fields: what a match, an exception and a test may ask, for which kinds.

Validation, the events of tests and the reference in docs/rules.md all come from here. A field whose
`later` is set is known and refused: a rule is never accepted and then not enforced.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentwatch.rules.model import KINDS

FILE_KINDS = ("read", "change", "open")
LATER_KINDS = ("listen", "mount", "ptrace", "signal", "mcp")

LITERAL = frozenset({"startswith", "endswith", "contains"})
MODIFIERS = LITERAL | {"cidr", "nocase", "re", "has", "all"}
_TEXT = LITERAL | {"nocase", "re", "all"}
# What each type of field takes behind its name. The others are compared as they are.
TAKES = {
    "path": _TEXT,
    "unix": _TEXT,
    "argv": _TEXT | {"has"},
    "address": frozenset({"cidr"}),
    "word": frozenset[str](),
    "agent": frozenset[str](),
    "number": frozenset[str](),
    "port": frozenset[str](),
    "flag": frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. type: a key of TAKES. words: the values a word may have. later_words: known
    words without a probe yet. later: the field itself is not supported yet. chosen: an agent gives
    it any value it likes, so that what loosens never matches on it.
    """

    name: str
    kinds: tuple[str, ...]
    type: str
    about: str
    words: tuple[str, ...] = ()
    later_words: tuple[str, ...] = ()
    later: bool = False
    chosen: bool = False


_LATER_OPS = ("rename", "link", "symlink", "delete", "chmod", "chown", "xattr", "mkdir", "rmdir")
_EXEC, _CONNECT = ("exec",), ("connect",)

FIELDS: tuple[Field, ...] = (
    Field("path", _EXEC, "path", "the executable that runs, every link resolved"),
    Field(
        "script", _EXEC, "path", "the script a `#!` line ran, by the name asked for", chosen=True
    ),
    Field(
        "argv",
        _EXEC,
        "argv",
        "all arguments, argv[0] included, which is never trusted",
        chosen=True,
    ),
    Field("args", _EXEC, "argv", "the arguments without argv[0]"),
    Field("argc", _EXEC, "number", "how many arguments there are, argv[0] included"),
    Field(
        "stdin",
        _EXEC,
        "word",
        "what descriptor 0 is when the program starts",
        ("tty", "pipe", "socket", "file", "null"),
    ),
    Field("cwd", _EXEC, "path", "the working directory of the new program"),
    Field("anonymous", _EXEC, "flag", "the executable has no name in a file system (memfd)"),
    Field("starts_agent", _EXEC, "flag", "the program is an agent's identity"),
    Field("written_by_agent", _EXEC, "flag", "the session wrote the executable", later=True),
    Field("path", FILE_KINDS, "path", "the file's canonical name, every link resolved"),
    Field("access", FILE_KINDS, "word", "what it was opened for", ("read", "write")),
    Field(
        "op",
        FILE_KINDS,
        "word",
        "which operation: any `open` is, some `create` or `truncate`",
        ("open", "create", "truncate"),
        _LATER_OPS,
    ),
    Field("new_path", FILE_KINDS, "path", "the second name of a rename or link", later=True),
    Field("addr", _CONNECT, "address", "an address, or with `|cidr` networks"),
    Field("port", _CONNECT, "port", 'a port, or a range such as "8000-8999"'),
    Field(
        "proto", _CONNECT, "word", "the protocol", ("tcp", "udp", "unix", "icmp", "icmpv6", "sctp")
    ),
    Field(
        "family",
        _CONNECT,
        "word",
        "the address family",
        ("inet", "inet6", "unix", "netlink", "packet", "vsock"),
    ),
    Field(
        "unix", _CONNECT, "unix", "a unix socket: its path, or `@name` in the abstract namespace"
    ),
    Field("host", _CONNECT, "path", "the name that was resolved to the address", later=True),
    Field("peer", _CONNECT, "word", "whose process listens", later=True),
    Field("agent", KINDS, "agent", "an agent of the session"),
    Field("session", KINDS, "word", "the session's id", later=True),
    Field(
        "process.exe", KINDS, "path", "the program that makes the call (exec: that calls execve)"
    ),
    Field("process.script", KINDS, "path", "its script, by the name asked for", chosen=True),
    Field("process.args", KINDS, "argv", "its arguments, without argv[0]"),
    Field("process.cwd", KINDS, "path", "its working directory when it was started"),
    Field("process.uid", KINDS, "number", "its real user id"),
    Field("process.role", KINDS, "word", "is it the agent itself?", ("agent", "child")),
    Field("parent.exe", KINDS, "path", "the parent's program"),
    Field(
        "parent.script", KINDS, "path", "the parent's script, by the name asked for", chosen=True
    ),
    Field("parent.args", KINDS, "argv", "the parent's arguments, without argv[0]"),
    Field("ancestor.exe", KINDS, "path", "the program of any of the 8 nearest ancestors"),
    Field("ancestor.args", KINDS, "argv", "the arguments of any of the 8 nearest ancestors"),
)
NAMES = tuple(dict.fromkeys(field.name for field in FIELDS))
CHOSEN = frozenset(field.name for field in FIELDS if field.chosen)


def lookup(name: str, kind: str) -> Field | None:
    """The field of that name that events of the kind have."""
    return next((f for f in FIELDS if f.name == name and kind in f.kinds), None)


def of_kind(kind: str) -> tuple[Field, ...]:
    """Every supported field of a kind, in the table's order."""
    return tuple(f for f in FIELDS if kind in f.kinds and not f.later)


def kinds_with(name: str) -> tuple[str, ...]:
    """The kinds whose events have a field of that name."""
    return tuple(k for k in KINDS if lookup(name, k) is not None)


def is_path(name: str) -> bool:
    """Whether values of the field are names of files, in which `~` and `$project` are known."""
    return any(f.name == name and f.type in ("path", "unix") for f in FIELDS)


def reference() -> str:
    """The table as Markdown, for docs/rules.md."""
    lines = ["| field | kinds | values | what it is |", "|---|---|---|---|"]
    for field in FIELDS:
        if field.later:
            continue
        kinds = "every kind" if field.kinds == KINDS else ", ".join(field.kinds)
        values = " ".join(f"`{word}`" for word in field.words) or _VALUES[field.type]
        lines.append(f"| `{field.name}` | {kinds} | {values} | {field.about} |")
    return "\n".join(lines) + "\n"


_VALUES = {
    "path": "globs of paths",
    "unix": "globs of paths or names",
    "argv": "globs of tokens",
    "address": "addresses",
    "agent": "ids of agents",
    "number": "numbers",
    "port": "ports, ranges",
    "flag": "`true` `false`",
}
