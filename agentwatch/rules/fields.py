"""The one table of fields: what a match, an exception and a test may ask, for which kinds.

Validation, the events of tests, `rules fields`, the JSON Schema and the reference in docs/rules.md
all come from here, and what no probe gives yet: a rule that needs it loads, its tests run, and its
level is `none`.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentwatch.rules.model import KINDS

FILE_KINDS = ("read", "change", "open")
SOCKET_KINDS = ("connect", "listen")
UNPROBED_KINDS = frozenset({"listen", "ptrace", "signal"})
LATER_KINDS = ("mcp",)

ABOUT_KINDS = {
    "exec": "a program starts",
    "read": "a file was opened for reading",
    "change": "a file was opened for writing, created, truncated, renamed, deleted, ... (`op`)",
    "open": "any opening: for reading, for writing, and handles without either (`O_PATH`)",
    "connect": "a connection, or a datagram socket that was given its peer",
    "listen": "a socket takes connections, or a datagram socket an address",
    "mount": "a file system or a directory is mounted, moved, unmounted, ... (`op`)",
    "ptrace": "another process is attached to",
    "signal": "another process is sent a signal",
}

LITERAL = frozenset({"startswith", "endswith", "contains"})
MODIFIERS = LITERAL | {"cidr", "nocase", "re", "has", "all"}
_TEXT = LITERAL | {"nocase", "re", "all"}
# What each type of field takes behind its name. The others are compared as they are.
TAKES = {
    "path": _TEXT,
    "unix": _TEXT,
    "argv": _TEXT | {"has"},
    "host": _TEXT,
    "text": _TEXT,
    "address": frozenset({"cidr"}),
    "word": frozenset[str](),
    "agent": frozenset[str](),
    "number": frozenset[str](),
    "port": frozenset[str](),
    "flag": frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. type: a key of TAKES. words: the values a word may have. unprobed: no probe gives
    it yet. chosen: an agent gives it any value it likes, so that what loosens never matches on it.
    follows: from what else it is worked out, so that a test cannot say it.
    """

    name: str
    kinds: tuple[str, ...]
    type: str
    about: str
    words: tuple[str, ...] = ()
    unprobed: bool = False
    chosen: bool = False
    follows: str = ""


_OPENED = ("open", "create", "truncate")
OPENED = frozenset(_OPENED)
"""Operations that opening a file can be."""
_OTHER_OPS = ("rename", "link", "symlink", "delete", "chmod", "chown", "xattr", "mkdir", "rmdir")
_PEERS = ("own", "tagged", "other")
_EXEC, _AIMED = ("exec",), ("ptrace", "signal")

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
    Field(
        "starts_agent",
        _EXEC,
        "flag",
        "the program is an agent's identity, which is worked out from its names",
        follows="from path and script by the identities: give a path that one covers",
    ),
    Field(
        "written_by_agent",
        _EXEC,
        "flag",
        "the session wrote the executable before, under this name or, renamed or linked, another",
    ),
    Field("path", FILE_KINDS, "path", "the file's canonical name, every link resolved"),
    Field("access", FILE_KINDS, "word", "what it was opened for", ("read", "write")),
    Field(
        "op",
        ("read", "open"),
        "word",
        "any `open` is one, some `create` or `truncate`",
        _OPENED,
    ),
    Field(
        "op",
        ("change",),
        "word",
        "which operation; any `open` is one, some `create` or `truncate`",
        (*_OPENED, *_OTHER_OPS),
    ),
    Field(
        "new_path",
        ("change",),
        "path",
        "the second name of a rename or link; `path` is matched with either",
    ),
    Field(
        "host",
        SOCKET_KINDS,
        "host",
        "the name the address was resolved from; `none` where there was no name",
        unprobed=True,
    ),
    Field("addr", SOCKET_KINDS, "address", "an address, or with `|cidr` networks"),
    Field("port", SOCKET_KINDS, "port", 'a port, or a range such as "8000-8999"'),
    Field(
        "proto",
        SOCKET_KINDS,
        "word",
        "the protocol",
        ("tcp", "udp", "unix", "icmp", "icmpv6", "sctp"),
    ),
    Field(
        "family",
        SOCKET_KINDS,
        "word",
        "the address family",
        ("inet", "inet6", "unix", "netlink", "packet", "vsock"),
    ),
    Field(
        "unix",
        SOCKET_KINDS,
        "unix",
        "a unix socket: its path, or `@name` in the abstract namespace",
    ),
    Field("peer", SOCKET_KINDS, "word", "whose process is at the other end", _PEERS, unprobed=True),
    Field("path", ("mount",), "path", "where it is mounted; of a `userns` there is none"),
    Field(
        "source",
        ("mount",),
        "path",
        "the device or directory that is mounted: a name where the kernel has it, else the text "
        "that mount(2) was given",
        chosen=True,
    ),
    Field(
        "fstype",
        ("mount",),
        "text",
        "the type of the file system; none of a directory that mount(2) mounts",
    ),
    Field(
        "op",
        ("mount",),
        "word",
        "`mount` of whatever was not there before, a directory (`--bind`) included; `userns` makes "
        "a user namespace, without which only root mounts",
        ("mount", "move", "remount", "umount", "userns"),
    ),
    Field("target.exe", _AIMED, "path", "the program of the other process"),
    Field("peer", _AIMED, "word", "whose the other process is", _PEERS),
    Field(
        "signal",
        ("signal",),
        "word",
        "which signal",
        ("HUP", "INT", "QUIT", "USR1", "USR2", "KILL", "TERM", "STOP", "CONT", "TSTP", "WINCH"),
    ),
    Field("agent", KINDS, "agent", "an agent of the session"),
    Field("session", KINDS, "text", "the session, as `pid:start` of its first process"),
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
_BY_NAME = {(field.name, kind): field for field in FIELDS for kind in field.kinds}
_PATHS = frozenset(field.name for field in FIELDS if field.type in ("path", "unix"))
NAMES = tuple(dict.fromkeys(field.name for field in FIELDS))
CHOSEN = frozenset(field.name for field in FIELDS if field.chosen)


def lookup(name: str, kind: str) -> Field | None:
    """The field of that name that events of the kind have."""
    return _BY_NAME.get((name, kind))


def of_kind(kind: str) -> tuple[Field, ...]:
    """Every field of a kind, in the table's order."""
    return tuple(f for f in FIELDS if kind in f.kinds)


def about(name: str) -> str:
    """What a field is, for every kind that has one of that name."""
    found = [field for field in FIELDS if field.name == name]
    if len(found) == 1:
        return found[0].about
    return "; ".join(f"{', '.join(field.kinds)}: {field.about}" for field in found)


def kinds_with(name: str) -> tuple[str, ...]:
    """The kinds whose events have a field of that name."""
    return tuple(k for k in KINDS if lookup(name, k) is not None)


def is_path(name: str) -> bool:
    """Whether values of the field are names of files, in which `~` and `$project` are known."""
    return name in _PATHS


def is_unprobed(field: Field, kind: str) -> bool:
    """Whether no probe gives the field of events of this kind."""
    return field.unprobed or kind in UNPROBED_KINDS


def values_of(field: Field) -> str:
    """What the field's values look like, for people."""
    return " ".join(f"`{word}`" for word in field.words) or _VALUES[field.type]


def kinds_reference() -> str:
    """The kinds as Markdown, for docs/rules.md."""
    rows = [
        f"| `{kind}` | {about}{_NOT_YET if kind in UNPROBED_KINDS else ''} |"
        for kind, about in ABOUT_KINDS.items()
    ]
    return "\n".join(("| kind | is |", "|---|---|", *rows)) + "\n"


def reference() -> str:
    """The table as Markdown, for docs/rules.md."""
    lines = ["| field | kinds | values | what it is |", "|---|---|---|---|"]
    for field in FIELDS:
        kinds = "every kind" if field.kinds == KINDS else ", ".join(field.kinds)
        lines.append(f"| `{field.name}` | {kinds} | {values_of(field)} | {about_probed(field)} |")
    return "\n".join(lines) + "\n"


def about_probed(field: Field) -> str:
    """What a field is, and what no probe gives of it."""
    return field.about + (_NOT_YET if field.unprobed else "")


_NOT_YET = " (no probe yet)"
_VALUES = {
    "path": "globs of paths",
    "unix": "globs of paths or names",
    "argv": "globs of tokens",
    "host": "globs of names, or `none`",
    "text": "globs of words",
    "address": "addresses",
    "agent": "ids of agents",
    "number": "numbers",
    "port": "ports, ranges",
    "flag": "`true` `false`",
}
