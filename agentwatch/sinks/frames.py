"""What a journal says: one frozen dataclass per type of frame, decoded at the edge.

The payload of a frame is a msgpack map of its fields' names. Fields are append-only and have
defaults, unknown ones are ignored: any version reads any journal. Names of files are `str` with
undecodable bytes as surrogate escapes. Times are ns of CLOCK_BOOTTIME unless said otherwise.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from agentwatch.errors import JournalError
from agentwatch.events import NO_PROCESS, Event, Exec, Exit, Fork, ProcessKey

RINGS = ("lifecycle", "activity")


class EventRef(NamedTuple):
    """Which event a verdict is about. sequence counts per ring and CPU; 0 is no event."""

    ring: int = 0
    cpu: int = 0
    sequence: int = 0

    @classmethod
    def of(cls, event: Event) -> EventRef:
        return cls(0 if isinstance(event, Fork | Exec | Exit) else 1, event.cpu, event.sequence)


NO_EVENT = EventRef()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What every frame has."""

    time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header(Frame):
    """The first frame of every segment: all that is needed to read the segment by itself.

    wall: ns since the epoch at the moment `boottime` (ns) was taken. segment: counts from 1.
    previous: the hash the chain stood at. torn: bytes of a cut write left at the end of the
    segment before. tables: kind -> abi.Layout.table(). mounts: Mounts.rows().
    """

    format: int = 1
    abi: int = 0
    version: str = ""
    boot_id: str = ""
    host: str = ""
    wall: int = 0
    boottime: int = 0
    segment: int = 0
    previous: bytes = b""
    torn: int = 0
    tables: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    kinds: Mapping[int, str] = field(default_factory=dict)
    mounts: tuple[Any, ...] = ()
    types: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records(Frame):
    """A batch of records exactly as drained from the kernel (exec records redacted)."""

    count: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Frame):
    """A writer begins. tier: signal | lsm. user: who asked for it. generation: of the policy."""

    pid: int = 0
    command: tuple[str, ...] = ()
    user: str = ""
    mode: str = ""
    tier: str = ""
    rules: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Frame):
    """The clean end of a chain (or of one run of the daemon). status: CMD's exit code, or -1."""

    reason: str = ""
    status: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Frame):
    """A session is confirmed: from here on (and back to its first record) it is an agent's.

    how it became one: run | identity | running (when the daemon began) | tag. began: ns of
    CLOCK_BOOTTIME.
    """

    session: ProcessKey = NO_PROCESS
    agent: str = ""
    command: tuple[str, ...] = ()
    user: str = ""
    uid: int = -1
    project: str = ""
    how: str = ""
    began: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAdded(Frame):
    """A process of a session turned out to be an agent too: the rules of both apply from now on."""

    session: ProcessKey = NO_PROCESS
    process: ProcessKey = NO_PROCESS
    agent: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Frame):
    """The decision on one event, complete enough to be read without it.

    kind: of the rule (exec, read, change, connect). what: the path, address or command line.
    action: of the rule; response: what was done about it. outcome: killed | too late | failed |
    denied | observed | alerted. level: what this was worth here. by: kernel | engine, who did it.
    """

    event: EventRef = NO_EVENT
    process: ProcessKey = NO_PROCESS
    session: ProcessKey = NO_PROCESS
    agent: str = ""
    kind: str = ""
    what: str = ""
    rule: str = ""
    title: str = ""
    action: str = ""
    response: str = ""
    level: str = ""
    lossy: bool = False
    generation: int = 0
    severity: str = ""
    because: str = ""
    instead: str = ""
    outcome: str = ""
    tags: tuple[str, ...] = ()
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Frame):
    """What became of a kill. latency: ns from the event to the process being gone; 0: it is not.

    outcome: killed | too late | failed. reason: why it failed.
    """

    process: ProcessKey = NO_PROCESS
    session: ProcessKey = NO_PROCESS
    agent: str = ""
    rule: str = ""
    outcome: str = ""
    latency: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Frame):
    """Something was lost. stage: ring | probe | journal | ... count: records.

    frames, decisions: what else gave way in the journal, decisions last. ring, cpu: where, -1 if
    not known. acted: what on_loss did (log | freeze | kill).
    """

    stage: str = ""
    ring: int = -1
    cpu: int = -1
    count: int = 0
    frames: int = 0
    acted: str = "log"
    decisions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MountsChanged(Frame):
    """A new table of mounts (Mounts.rows()), in force for the records after it."""

    rows: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload(Frame):
    """A policy was loaded, or refused: then the one before stays in force.

    pause: it has the rules of the one before; message says which of them are paused, or act again.
    """

    generation: int = 0
    rules: int = 0
    ok: bool = True
    message: str = ""
    pause: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Frame):
    """Anything else that changes what is enforced: breaker, mode, pause, freeze."""

    subject: str = ""
    text: str = ""
    session: ProcessKey = NO_PROCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnd(Frame):
    """The last process of a session has ended. processes: how many it had; kills: of them."""

    session: ProcessKey = NO_PROCESS
    agent: str = ""
    processes: int = 0
    kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings(Frame):
    """What a process held when it was tagged: names of open files, and connections."""

    process: ProcessKey = NO_PROCESS
    session: ProcessKey = NO_PROCESS
    agent: str = ""
    files: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control(Frame):
    """Somebody asked over the control socket for a change; ok: it was made. uid, pid: the asker's.

    text: what the verb was about, or why it was refused.
    """

    uid: int = -1
    pid: int = 0
    verb: str = ""
    text: str = ""
    ok: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Frame):
    """An old chain is continued: how the next writer found it.

    clean: it ended with a stop frame. sequence, last: of its last frame on disk, last in ns since
    the epoch. torn: bytes of a cut write behind it. rebooted: that was in another boot (boot_id),
    so what was not synced may be gone.
    """

    clean: bool = False
    sequence: int = 0
    last: int = 0
    torn: int = 0
    rebooted: bool = False
    boot_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired(Frame):
    """Old segments go, for `reason` (age | bytes): written and synced before they are removed.

    chain: whose; "" for the one this stands in. last: every segment up to this number. sequence,
    hash: the last frame of what goes. size: bytes removed this time.
    """

    chain: str = ""
    last: int = 0
    sequence: int = 0
    hash: bytes = b""
    size: int = 0
    reason: str = ""


HEADER, RECORDS = 0, 1
TYPES: Mapping[int, type[Frame]] = {
    HEADER: Header,
    RECORDS: Records,
    2: Start,
    3: Stop,
    4: Session,
    5: AgentAdded,
    6: Verdict,
    7: Kill,
    8: Gap,
    9: MountsChanged,
    10: Reload,
    11: Notice,
    12: SessionEnd,
    13: Holdings,
    14: Control,
    15: Resumed,
    16: Retired,
}
NUMBERS: Mapping[type[Frame], int] = {frame: number for number, frame in TYPES.items()}
STOP = NUMBERS[Stop]
RETIRED = NUMBERS[Retired]
FORMAT = 1

GARBLED = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    OverflowError,
    struct.error,
    RecursionError,
    MemoryError,
)
"""What decoding bytes may raise that somebody made up: the frame is damaged, the rest is read."""

_DEFAULTS: Mapping[type[Frame], tuple[tuple[str, Any, type], ...]] = {
    frame: tuple(
        (
            f.name,
            {} if f.default is dataclasses.MISSING else f.default,
            str if f.type == "tuple[str, ...]" else object,
        )
        for f in dataclasses.fields(frame)
        if f.name != "time"
    )
    for frame in TYPES.values()
}


def type_name(number: int) -> str:
    """records, verdict, ... as `journal` prints it; the number where it is from a newer version."""
    frame = TYPES.get(number)
    return frame.__name__.lower() if frame else str(number)


def is_decision(frame: Frame) -> bool:
    """A kill or a deny: written through at once, never held back in a buffer."""
    if isinstance(frame, Verdict):
        return frame.response in ("kill", "deny", "freeze")
    return isinstance(frame, Kill)


def encode(frame: Frame) -> bytes:
    """The payload. Raises JournalError for a value that msgpack has no form for."""
    values = {name: getattr(frame, name) for name, _, _ in _DEFAULTS[type(frame)]}
    try:
        packed: bytes = msgpack.packb(values, unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError) as error:
        raise JournalError(f"a {type(frame).__name__} frame cannot be written: {error}") from None
    return packed


def decode(number: int, time: int, payload: bytes | memoryview) -> Frame | None:
    """The frame, or None for a type this version does not know. Raises JournalError."""
    kind = TYPES.get(number)
    if kind is None:
        return None
    try:
        raw = msgpack.unpackb(payload, strict_map_key=False, unicode_errors="surrogateescape")
        if not isinstance(raw, dict):
            raise TypeError(f"a {type(raw).__name__} where a map belongs")
        fields = [field for field in _DEFAULTS[kind] if field[0] in raw]
        values = {name: _like(raw[name], default, item) for name, default, item in fields}
    except (*GARBLED, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise JournalError(f"a {kind.__name__} frame does not decode: {reason}") from None
    return kind(time=time, **values)


def _like(value: Any, default: Any, item: type) -> Any:
    """The value in the shape of the field's default. Raises TypeError when it has another.

    item: what a plain tuple holds.
    """
    if isinstance(default, ProcessKey | EventRef):
        numbers = tuple(_list(value, int))
        if len(numbers) != len(default):
            raise TypeError(f"{len(numbers)} numbers where {len(default)} belong")
        return type(default)(*numbers)
    if isinstance(default, tuple):
        return tuple(_list(value, item))
    if not isinstance(value, type(default)):
        raise TypeError(f"a {type(value).__name__} where a {type(default).__name__} belongs")
    return value


def _list(value: Any, item: type) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list belongs")
    for one in value:
        if not isinstance(one, item):
            raise TypeError(f"a {type(one).__name__} where a {item.__name__} belongs")
    return value
