"""The mirror of bpf/agentwatch.h, and the only file that knows the layout of a record.

A record is described by its kind's fields: (name, offset, type) with type one of u8 u16 u32 u64
s32 bytesN, and by its strings: (name, length field), one after the other behind the struct. The
same table is written into each journal segment, so that any version reads any journal.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agentwatch.errors import RecordError
from agentwatch.events import ProcessKey

ABI = 5

FORK, EXEC, EXIT, OPEN, CONNECT, SYN, CHANGE, MOUNT = 1, 2, 3, 4, 5, 6, 7, 8
KINDS = 16
KIND_NAMES: Mapping[int, str] = MappingProxyType(
    {
        FORK: "fork",
        EXEC: "exec",
        EXIT: "exit",
        OPEN: "open",
        CONNECT: "connect",
        SYN: "syn",
        CHANGE: "change",
        MOUNT: "mount",
    }
)

FLAG_PROVISIONAL = 0x0001
FLAG_CANDIDATE = 0x0002
FLAG_ARGV_CUT = 0x0004
FLAG_SCRIPT = 0x0008
FLAG_READS = 0x0010
FLAG_CHANGES = 0x0020
FLAG_CREATED = 0x0040
FLAG_DIRECTORY = 0x0080
FLAG_ANONYMOUS = 0x0100
FLAG_DELETED = 0x0200
FLAG_FROM_SOCKET = 0x0400
FLAG_COMPAT = 0x0800
FLAG_SHARED = 0x1000
FLAG_HOOK = 0x2000
FLAG_BASE = 0x4000
FLAG_BELOW = 0x8000

UNRESOLVED_PATH = 0x01
UNRESOLVED_ASKED = 0x02
UNRESOLVED_CWD = 0x04
UNRESOLVED_ARGV = 0x08
UNRESOLVED_ADDRESS = 0x10
UNRESOLVED_NEW_PATH = 0x20
UNRESOLVED_NEW_ASKED = 0x40

OP_CREATE, OP_TRUNCATE, OP_RENAME, OP_LINK, OP_SYMLINK, OP_DELETE = 1, 2, 3, 4, 5, 6
OP_CHMOD, OP_CHOWN, OP_XATTR, OP_MKDIR, OP_RMDIR = 7, 8, 9, 10, 11
OP_MOUNT, OP_MOVE, OP_REMOUNT, OP_UMOUNT, OP_USERNS = 12, 13, 14, 15, 16

STDIN_NULL, STDIN_TTY, STDIN_PIPE, STDIN_SOCKET, STDIN_FILE = range(5)

VERDICT_KILL, VERDICT_DENY, VERDICT_LOOK, VERDICT_ALLOW = 1, 2, 3, 4

SESSION_PROVISIONAL, SESSION_CONFIRMED = 1, 2
SESSION_FROZEN, SESSION_ENDING = 3, 4

PATH_MAX = 4096
ARGV_MAX = 4096
DATA_MAX = 7808
LITERAL_MAX = 64
KNOWN_MAX = 248
PROJECT_MAX = 1016
ROOT_MAX = 64
POINT_MAX = 192
MOUNTS = 8
POLICY_SLOTS, POLICY_NONE = 4, 0xFFFFFFFF
PREEMPTION_NONE, PREEMPTION_SOME = 1, 2

POLICY_MAGIC, POLICY_ABI, POLICY_GENERATION = 0x31505741, 3, 2
POLICY_BASE, POLICY_UNREAD, POLICY_DEFAULTS = 5, 8, 11
POLICY_ROLES, POLICY_UNREAD_ROLES, POLICY_SETS = 12, 13, 16
POLICY_OBJECT = 0x1000000

_CODES = {
    "u8": "B",
    "u16": "H",
    "u32": "I",
    "u64": "Q",
    "s32": "i",
}
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "s32": 4}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a struct. offset: bytes from the start of the struct."""

    name: str
    offset: int
    type: str


def _code(kind: str) -> str:
    """The struct code of a type; TYPE*N is N of them in a row, bytesN one value of N bytes."""
    if kind.startswith("bytes"):
        return f"{kind[5:]}s"
    one, _, count = kind.partition("*")
    return f"{count}{_CODES[one]}"


def _size(kind: str) -> int:
    """Bytes of a field of this type."""
    if kind.startswith("bytes"):
        return int(kind[5:])
    one, _, count = kind.partition("*")
    return _SIZES[one] * int(count or 1)


class Layout:
    """A struct of the contract. `strings`: those behind it; each has a length field."""

    fields: tuple[Field, ...]
    size: int

    def __init__(
        self,
        name: str,
        fields: tuple[tuple[str, str], ...],
        strings: tuple[str, ...] = (),
        base: Layout | None = None,
    ) -> None:
        self.name = name
        placed: list[Field] = list(base.fields) if base else []
        offset: int = base.size if base else 0
        for field, kind in fields:
            one = kind.partition("*")[0]
            if not one.startswith("bytes") and offset % _SIZES[one]:
                raise ValueError(f"{name}.{field} is not aligned")
            placed.append(Field(field, offset, kind))
            offset += _size(kind)
        self.fields = tuple(placed)
        self.strings = strings
        self.size = offset
        self.struct = struct.Struct("<" + "".join(_code(f.type) for f in self.fields))
        self.names = tuple(f.name for f in self.fields)
        if self.struct.size != self.size or self.size % 8:
            raise ValueError(f"{name} is {self.size} bytes: pad it to a multiple of 8")

    def table(self) -> dict[str, Any]:
        """The layout as plain data, for the header of a journal segment."""
        return {
            "size": self.size,
            "fields": [[f.name, f.offset, f.type] for f in self.fields],
            "strings": list(self.strings),
        }


HEADER = Layout(
    "aw_header",
    (
        ("length", "u32"),
        ("kind", "u16"),
        ("flags", "u16"),
        ("time", "u64"),
        ("sequence", "u64"),
        ("cpu", "u32"),
        ("generation", "u32"),
        ("tgid", "u32"),
        ("tid", "u32"),
        ("start", "u64"),
        ("session_start", "u64"),
        ("session_tgid", "u32"),
        ("unresolved", "u32"),
        ("rule", "u32"),
        ("verdict", "u32"),
    ),
)
LAYOUTS: Mapping[int, Layout] = MappingProxyType(
    {
        FORK: Layout(
            "aw_fork",
            (("child_start", "u64"), ("child_tgid", "u32"), ("pad", "u32")),
            base=HEADER,
        ),
        EXEC: Layout(
            "aw_exec",
            (
                ("parent_start", "u64"),
                ("parent_tgid", "u32"),
                ("uid", "u32"),
                ("result", "s32"),
                ("argc", "u32"),
                ("path_dev", "u32"),
                ("cwd_dev", "u32"),
                ("path_len", "u16"),
                ("asked_len", "u16"),
                ("cwd_len", "u16"),
                ("argv_len", "u16"),
                ("stdin_kind", "u8"),
                ("pad", "u8"),
                ("view_len", "u16"),
                ("known_len", "u16"),
                ("pad2", "bytes2"),
            ),
            ("path", "asked", "cwd", "view", "known", "argv"),
            base=HEADER,
        ),
        EXIT: Layout("aw_exit", (("status", "s32"), ("pad", "u32")), base=HEADER),
        OPEN: Layout(
            "aw_open",
            (
                ("open_flags", "u32"),
                ("result", "s32"),
                ("path_dev", "u32"),
                ("path_len", "u16"),
                ("asked_len", "u16"),
                ("view_len", "u16"),
                ("known_len", "u16"),
                ("pad", "bytes4"),
            ),
            ("path", "view", "known", "asked"),
            base=HEADER,
        ),
        CHANGE: Layout(
            "aw_change",
            (
                ("result", "s32"),
                ("op", "u32"),
                ("path_dev", "u32"),
                ("new_dev", "u32"),
                ("mode", "u32"),
                ("path_len", "u16"),
                ("asked_len", "u16"),
                ("new_len", "u16"),
                ("new_asked_len", "u16"),
                ("view_len", "u16"),
                ("new_view_len", "u16"),
                ("known_len", "u16"),
                ("new_known_len", "u16"),
                ("found_len", "u16"),
                ("new_found_len", "u16"),
            ),
            (
                "path",
                "view",
                "known",
                "asked",
                "new",
                "new_view",
                "new_known",
                "new_asked",
                "found",
                "new_found",
            ),
            base=HEADER,
        ),
        MOUNT: Layout(
            "aw_mounting",
            (
                ("result", "s32"),
                ("op", "u32"),
                ("path_dev", "u32"),
                ("source_dev", "u32"),
                ("mount_flags", "u32"),
                ("path_len", "u16"),
                ("asked_len", "u16"),
                ("source_len", "u16"),
                ("source_asked_len", "u16"),
                ("view_len", "u16"),
                ("source_view_len", "u16"),
                ("known_len", "u16"),
                ("source_known_len", "u16"),
                ("found_len", "u16"),
                ("source_found_len", "u16"),
                ("fstype_len", "u16"),
                ("pad", "bytes6"),
            ),
            (
                "path",
                "view",
                "known",
                "asked",
                "source",
                "source_view",
                "source_known",
                "source_asked",
                "fstype",
                "found",
                "source_found",
            ),
            base=HEADER,
        ),
        CONNECT: (
            _connect := Layout(
                "aw_connect",
                (
                    ("address", "bytes16"),
                    ("result", "s32"),
                    ("family", "u16"),
                    ("port", "u16"),
                    ("protocol", "u16"),
                    ("path_len", "u16"),
                    ("asked_len", "u16"),
                    ("view_len", "u16"),
                    ("path_dev", "u32"),
                    ("pad", "u32"),
                ),
                ("path", "asked", "view"),
                base=HEADER,
            )
        ),
        SYN: _connect,
    }
)

SESSION_KEY = Layout("aw_session_key", (("start", "u64"), ("tgid", "u32"), ("pad", "u32")))
SESSION = Layout(
    "aw_session",
    (("state", "u32"), ("pad", "u32"), ("since", "u64"), ("lost", "u64"), ("agents", "u64")),
)
TAG = Layout(
    "aw_tag",
    (("since", "u64"), ("agents", "u64"), ("image", "u64"), ("predicates", "u64*3")),
    base=SESSION_KEY,
)
_IMAGE = next(field.offset for field in TAG.fields if field.name == "image")
MARK = Layout(
    "aw_mark",
    (("agents", "u64"), ("predicates", "u64*3"), ("generation", "u32"), ("pad", "u32")),
)
FORMER = Layout(
    "aw_former",
    (
        ("successor", "u64"),
        ("image", "u64"),
        ("predicates", "u64*3"),
        ("instance", "u32"),
        ("pad", "u32"),
    ),
)
PROJECT = Layout("aw_project", (("len", "u32"), ("pad", "u32"), ("path", f"bytes{PROJECT_MAX}")))
MOUNTED = Layout(
    "aw_mount",
    (
        ("root_len", "u32"),
        ("point_len", "u32"),
        ("root", f"bytes{ROOT_MAX}"),
        ("point", f"bytes{POINT_MAX}"),
    ),
)

FILE_KEY = Layout("aw_file_key", (("dev", "u32"), ("pad", "u32"), ("inode", "u64")))
KNOWN = Layout(
    "aw_known",
    (("len", "u16"), ("versioned", "u16"), ("generation", "u32"), ("path", f"bytes{KNOWN_MAX}")),
)


def _nested(name: str) -> tuple[tuple[str, str], ...]:
    """A session key as a member of another struct."""
    return tuple((f"{name}.{field.name}", field.type) for field in SESSION_KEY.fields)


ORIGIN = Layout(
    "aw_origin",
    (("start", "u64"), *_nested("first"), *_nested("parent")),
)
PROCESS = Layout(
    "aw_process",
    (
        ("start", "u64"),
        ("parent_start", "u64"),
        ("session_start", "u64"),
        ("tgid", "u32"),
        ("parent_tgid", "u32"),
        ("session_tgid", "u32"),
        ("state", "u32"),
        *_nested("first"),
        *_nested("first_parent"),
        ("group", "u32"),
        ("terminal", "u32"),
    ),
)
COUNTERS = Layout(
    "aw_counters",
    (
        ("sequence", "u64*2"),
        ("emitted", f"u64*{KINDS}"),
        ("lost", f"u64*{KINDS}"),
        ("unresolved", f"u64*{KINDS}"),
        ("unrecorded", f"u64*{KINDS}"),
        ("untracked", "u64"),
        ("mirror_full", "u64"),
        ("doomed", "u64"),
        ("reconciled", "u64"),
        ("unbegun", "u64"),
        ("unlabelled", "u64"),
        ("unjudged", "u64"),
    ),
)
CONTROL = Layout(
    "aw_control",
    (
        ("abi", "u32"),
        ("wake_kinds", "u32"),
        ("identify", "u32"),
        ("doomed", "u32"),
        ("mirror_full", "u32"),
        ("untracked", "u32"),
        ("looking", "u32"),
        ("held", "u32"),
        ("woken", "u64"),
        ("condemned", "u32"),
        ("in_force", "u32"),
        ("next", "u32"),
        ("refusing", "u32"),
        ("known", "u32"),
        ("preemption", "u32"),
        ("recorder", "u32"),
        ("published", "u32"),
        ("listened", "u64"),
    ),
)
MAP_VALUES = (
    SESSION_KEY,
    SESSION,
    TAG,
    MARK,
    FORMER,
    PROJECT,
    MOUNTED,
    FILE_KEY,
    KNOWN,
    ORIGIN,
    PROCESS,
    COUNTERS,
    CONTROL,
)


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters, all CPUs together; each only grows. By kind number where a mapping."""

    emitted: Mapping[int, int]
    lost: Mapping[int, int]
    unresolved: Mapping[int, int]
    unrecorded: Mapping[int, int]
    untracked: int = 0
    mirror_full: int = 0
    doomed: int = 0
    reconciled: int = 0
    unbegun: int = 0
    unlabelled: int = 0
    unjudged: int = 0


def counters(values: Sequence[bytes]) -> Counters:
    """From one aw_counters per CPU."""
    rows = [COUNTERS.struct.unpack(value) for value in values]
    sums = [sum(column) for column in zip(*rows, strict=True)]

    def by_kind(first: int) -> Mapping[int, int]:
        return MappingProxyType({kind: sums[first + kind] for kind in KIND_NAMES})

    return Counters(
        by_kind(2),
        by_kind(2 + KINDS),
        by_kind(2 + 2 * KINDS),
        by_kind(2 + 3 * KINDS),
        *sums[2 + 4 * KINDS :],
    )


def session_key(session: ProcessKey) -> bytes:
    """The key of the session in the sessions map."""
    return SESSION_KEY.struct.pack(session.start, session.pid, 0)


def key_of_session(key: bytes) -> ProcessKey:
    """The session that a key of the sessions map stands for."""
    start, pid, _ = SESSION_KEY.struct.unpack(key)
    return ProcessKey(pid, start)


@dataclass(frozen=True, slots=True)
class Session:
    """A value of the sessions map. state: SESSION_*. since: ns of boottime when it began.

    lost: records of its processes that found no room. agents: bit per agent; 0: the policy in the
    kernel does not judge it yet.
    """

    state: int
    since: int
    lost: int = 0
    agents: int = 0

    def pack(self) -> bytes:
        return SESSION.struct.pack(self.state, 0, self.since, self.lost, self.agents)


def session(value: bytes) -> Session:
    state, _, since, lost, agents = SESSION.struct.unpack(value)
    return Session(state, since, lost, agents)


def tag(session: ProcessKey, since: int, process: ProcessKey) -> bytes:
    """A process's, of a session that began at `since` (ns of boottime); its image is its fork's."""
    return TAG.struct.pack(session.start, session.pid, 0, since, 0, process.start, 0, 0, 0)


def mark(generation: int, agents: int, predicates: int) -> bytes:
    """What is known of an image: predicates, 176 bits, of the policy of that generation."""
    words = (predicates >> 64 * place & (1 << 64) - 1 for place in range(3))
    return MARK.struct.pack(agents, *words, generation, 0)


def generation_of_mark(value: bytes) -> int:
    """The policy that a mark's predicates are of."""
    return int(MARK.struct.unpack(value)[-2])


def project(path: bytes) -> bytes | None:
    """The directory of a session; None where it is too long for the kernel."""
    if len(path) > PROJECT_MAX:
        return None
    return PROJECT.struct.pack(len(path), 0, path)


def path_of_project(value: bytes) -> bytes:
    """The other way round."""
    length, _, path = PROJECT.struct.unpack(value)
    return bytes(path[:length])


def image_of_tag(value: bytes) -> int:
    """ns of the exec that made what a tag's process runs, or of its fork."""
    return int.from_bytes(value[_IMAGE : _IMAGE + 8], "little")


def mounts(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The (root, mount point) rows of one file system; `partial` where they do not all fit."""
    kept: list[tuple[bytes, bytes]] = []
    partial = 0
    for root, point in rows:
        if len(kept) == MOUNTS or len(root) > ROOT_MAX or len(point) > POINT_MAX:
            partial = 1
            break
        kept.append((root, point))
        if not root:  # the whole file system: the others are never tried
            break
    filled = b"".join(MOUNTED.struct.pack(len(r), len(p), r, p) for r, p in kept)
    return struct.pack("<II", len(kept), partial) + filled.ljust(MOUNTED.size * MOUNTS, b"\0")


def file_key(dev: int, inode: int) -> bytes:
    """The key of a file in the map of those that are known. dev: kernel dev_t."""
    return FILE_KEY.struct.pack(dev, 0, inode)


def known(path: bytes, generation: int | None) -> bytes | None:
    """What such a file is called. generation: of its inode, None where that is not known. None
    where the name is too long for the kernel.
    """
    if len(path) > KNOWN_MAX:
        return None
    return KNOWN.struct.pack(len(path), generation is not None, generation or 0, path)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as the kernel's iterators tell of it.

    session: it has a tag of it that counts; state: that session's. first: the nearest ancestor that
    was there when agents that run already were first looked for, where it was forked since, and
    first_parent: that one's parent. group, terminal: pids of the leaders of its process group and
    of its session of a terminal, be they gone.
    """

    process: ProcessKey
    parent: ProcessKey
    session: ProcessKey | None
    state: int
    first: ProcessKey | None = None
    first_parent: ProcessKey | None = None
    group: int = 0
    terminal: int = 0


def processes(told: bytes) -> list[Process]:
    """From what an iterator has written. Raises RecordError for half a process."""
    try:
        rows = list(PROCESS.struct.iter_unpack(told))
    except struct.error as error:
        raise RecordError(f"processes that do not decode: {error}") from None
    return [
        Process(
            ProcessKey(row[3], row[0]),
            ProcessKey(row[4], row[1]),
            ProcessKey(row[5], row[2]) if row[2] else None,
            row[6],
            ProcessKey(row[8], row[7]) if row[7] else None,
            ProcessKey(row[11], row[10]) if row[10] else None,
            row[13],
            row[14],
        )
        for row in rows
    ]


def peek(record: bytes | memoryview, offset: int = 0) -> tuple[int, int, int]:
    """(length, kind, flags) of the record at offset, without decoding it."""
    length, kind, flags = _PEEK(record, offset)
    return length, kind, flags


def time_of(record: bytes | memoryview) -> int:
    """ns of CLOCK_BOOTTIME when the probe ran, without decoding the rest."""
    return int(_TIME(record, 8)[0])


def session_of(record: bytes | memoryview) -> ProcessKey:
    """The session of a record, without decoding the rest."""
    start, pid = _SESSION(record, 48)
    return ProcessKey(pid, start)


def process_of(record: bytes | memoryview) -> ProcessKey:
    """Whose record it is, without decoding the rest."""
    return ProcessKey(_TGID(record, 32)[0], _TIME(record, 40)[0])


def judged(record: bytes | memoryview) -> tuple[int, int]:
    """(generation, verdict) of a record, without decoding the rest."""
    return _TGID(record, 28)[0], _TGID(record, 68)[0]


_TGID = struct.Struct("<I").unpack_from
_PEEK = struct.Struct("<IHH").unpack_from
_TIME = struct.Struct("<Q").unpack_from
_SESSION = struct.Struct("<QI").unpack_from


def unpack(
    record: bytes | memoryview, layouts: Mapping[int, Layout] = LAYOUTS
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields and the strings of a record. Raises RecordError when they do not fit in it."""
    try:
        length, kind, _ = peek(record)
        layout = layouts[kind]
        values = dict(zip(layout.names, layout.struct.unpack_from(record), strict=True))
    except (struct.error, KeyError) as error:
        raise RecordError(f"a record that does not decode: {error}") from None
    strings = {}
    offset = layout.size
    for name in layout.strings:
        end = offset + values[f"{name}_len"]
        strings[name] = bytes(record[offset:end])
        offset = end
    if offset > length or length > len(record):
        raise RecordError(f"a record of {length} bytes whose strings end at {offset}")
    return values, strings


def pack(kind: int, values: Mapping[str, Any], strings: Mapping[str, bytes]) -> bytes:
    """The record for these fields; lengths are worked out, what is not named is zero."""
    layout = LAYOUTS[kind]
    filled = {
        name: b"" if kind_.startswith("bytes") else 0 for name, kind_ in _types(layout)
    } | dict(values)
    tail = b"".join(strings.get(name, b"") for name in layout.strings)
    for name in layout.strings:
        filled[f"{name}_len"] = len(strings.get(name, b""))
    filled["length"] = layout.size + len(tail)
    filled["kind"] = kind
    return layout.struct.pack(*(filled[name] for name in layout.names)) + tail


def _types(layout: Layout) -> list[tuple[str, str]]:
    return [(f.name, f.type) for f in layout.fields]
