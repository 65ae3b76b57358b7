"""Whether the journal and strace tell the same of the same run, thread by thread, in order."""

from __future__ import annotations

import os
import socket
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from agentwatch.events import Change, Connect, Event, Exec, Open
from tests.completeness.strace import CHANGES, EXECS, RINGS, Call

KINDS = ("exec", "failed exec", "open", "failed open", "connect", "change", "failed change")
KEPT = 1000  # bytes of a name that tell calls apart: a longer one may be cut in a record
_LOOPBACK = {bytes(4): bytes((127, 0, 0, 1)), bytes(16): bytes(15) + b"\1"}
_MAPPED = bytes(10) + b"\xff\xff"
_BEGUN = (0, -115)  # EINPROGRESS


@dataclass(frozen=True, slots=True)
class Difference:
    """kind: one of KINDS. what: missing | invented | disordered | differs."""

    kind: str
    what: str
    tid: int
    said: str


@dataclass(slots=True)
class Comparison:
    """What came out. strace, journal: calls by kind. syns: first packets of TCP in the journal.

    threads: those that made any of the calls. rings: those of io_uring that were made; what went
    through them neither side sees.
    """

    strace: Counter[str] = field(default_factory=Counter)
    journal: Counter[str] = field(default_factory=Counter)
    syns: int = 0
    threads: int = 0
    rings: int = 0
    differences: list[Difference] = field(default_factory=list)

    def table(self) -> str:
        """One line per kind: how many each side has, and how many differ how."""
        ways = ("missing", "invented", "disordered", "differs")
        found = Counter((d.kind, d.what) for d in self.differences)
        lines = [f"{'':13} strace journal " + " ".join(f"{way:>10}" for way in ways)]
        for kind in KINDS:
            numbers = " ".join(f"{found[kind, way]:10}" for way in ways)
            lines.append(f"{kind:13} {self.strace[kind]:6} {self.journal[kind]:7} {numbers}")
        return "\n".join(lines)


def compare(calls: Iterable[Call], events: Iterable[Event]) -> Comparison:
    """events: of CMD's processes, in order of time; other kinds are passed over."""
    told: defaultdict[int, list[Call]] = defaultdict(list)
    seen: defaultdict[int, list[Exec | Open | Change | Connect]] = defaultdict(list)
    syns: list[Connect] = []
    rings = 0
    for call in calls:
        if call.name in RINGS:
            rings += call.result is None or call.result >= 0
        else:
            told[call.tid].append(call)
    for event in events:
        if isinstance(event, Connect) and event.syn:
            syns.append(event)
        elif isinstance(event, Exec | Open | Change | Connect):
            seen[event.tid].append(event)
    tids = sorted({*told, *seen})
    outcome = Comparison(syns=len(syns), threads=len(tids), rings=rings)
    for tid in tids:
        outcome.strace.update(map(kind_of, told[tid]))
        outcome.journal.update(map(kind_of, seen[tid]))
        outcome.differences += _thread(tid, told[tid], seen[tid])
    for syn in syns:
        if not any(_same_peer(syn, event) for event in seen[syn.tid]):
            outcome.differences.append(Difference("connect", "invented", syn.tid, repr(syn)))
    return outcome


def kind_of(call: Call | Event) -> str:
    """One of KINDS."""
    if isinstance(call, Connect) or (isinstance(call, Call) and call.name == "connect"):
        return "connect"
    execs = isinstance(call, Exec) or (isinstance(call, Call) and call.name in EXECS)
    changes = isinstance(call, Change) or (isinstance(call, Call) and call.name in CHANGES)
    failed = call.result is None or call.result < 0  # type: ignore[union-attr]
    if changes:
        return "failed change" if failed else "change"
    return ("failed " if failed else "") + ("exec" if execs else "open")


def _thread(
    tid: int, told: list[Call], seen: list[Exec | Open | Change | Connect]
) -> Iterator[Difference]:
    theirs, ours = [_told_key(call) for call in told], [_seen_key(event) for event in seen]
    missing, invented = Counter(theirs), Counter(ours)
    missing.subtract(ours)
    invented.subtract(theirs)
    for counts, keys, calls, what in (
        (missing, theirs, told, "missing"),
        (invented, ours, seen, "invented"),
    ):
        for key, call in zip(keys, calls, strict=True):
            if counts[key] > 0:
                counts[key] -= 1
                yield Difference(kind_of(call), what, tid, repr(call))
    if Counter(theirs) == Counter(ours):
        for number, (key, call, event) in enumerate(zip(theirs, told, seen, strict=True)):
            if key != ours[number]:
                said = f"{call!r} where the journal has {event!r}"
                yield Difference(kind_of(call), "disordered", tid, said)
            elif why := _disagreement(call, event):
                yield Difference(kind_of(call), "differs", tid, f"{why}: {call!r} and {event!r}")


def _told_key(call: Call) -> Hashable:
    result = -4096 if call.result is None else call.result
    if call.name == "connect":
        if call.family == socket.AF_UNIX:  # its name is looked at by _disagreement
            return "connect", call.family, b"", 0, result
        addr = call.addr
        if result in _BEGUN:  # the kernel takes the loopback address for none
            addr = _LOOPBACK.get(addr, addr)
        return "connect", *_unmapped(call.family, addr), call.port, result
    if call.name in CHANGES:
        names = ((call.asked or b"")[:KEPT], (call.new_asked or b"")[:KEPT])
        return "change", call.op, *names, result
    kind = "exec" if call.name in EXECS else "open"
    return kind, (call.asked or b"")[:KEPT], result


def _seen_key(event: Exec | Open | Change | Connect) -> Hashable:
    if isinstance(event, Connect):
        inet = event.family in (socket.AF_INET, socket.AF_INET6)
        addr = socket.inet_pton(event.family, event.addr) if inet else b""
        return "connect", *_unmapped(event.family, addr), event.port, event.result
    if isinstance(event, Change):
        names = (os.fsencode(event.asked)[:KEPT], os.fsencode(event.new_asked)[:KEPT])
        return "change", event.op, *names, event.result
    kind = "exec" if isinstance(event, Exec) else "open"
    return kind, os.fsencode(event.asked)[:KEPT], event.result


def _unmapped(family: int, addr: bytes) -> tuple[int, bytes]:
    """IPv4 through an IPv6 socket is asked for either way, and mapped in the socket."""
    return (socket.AF_INET, addr[12:]) if addr.startswith(_MAPPED) else (family, addr)


def _same_peer(syn: Connect, event: Event) -> bool:
    return isinstance(event, Connect) and (syn.addr, syn.port) == (event.addr, event.port)


def _disagreement(call: Call, event: Exec | Open | Change | Connect) -> str:
    """What two accounts of one call disagree on; "" for nothing."""
    if isinstance(event, Connect):
        return _of_connect(call, event)
    if isinstance(event, Change):
        return "a name that was not resolved" if event.unresolved else ""
    asked, given = os.fsencode(event.asked), call.asked or b""
    cut = "asked" in event.unresolved
    if (call.asked is None and call.name != "open_by_handle_at") != (cut and not asked):
        return "a name that cannot be read"
    if asked != given and not (cut and given.startswith(asked)):
        return "the name asked for"
    if call.result is None or call.result < 0:
        return ""
    return _of_exec(call, event) if isinstance(event, Exec) else _of_open(call, event)


def _of_open(call: Call, event: Open) -> str:
    if (call.flags ^ event.flags) & ~os.O_ACCMODE:
        return "flags"
    if event.unresolved - {"asked"}:
        return "a path that was not resolved"
    if call.path is not None and os.fsencode(event.path) != _without_place(call.path):
        return "the canonical path"
    return "deleted" if call.deleted != event.deleted and event.path[:1] == "/" else ""


def _without_place(path: bytes) -> bytes:
    """As readlink has it, but for what is in no file system: memfd:x, and a pipe has no name."""
    if path.startswith(b"pipe:["):
        return b""
    return path[1:] if path.startswith(b"/memfd:") else path


def _of_exec(call: Call, event: Exec) -> str:
    argv = tuple(map(os.fsencode, event.argv))
    given = call.argv or (b"",)  # the kernel adds an empty argv[0] where there is none
    if event.script is not None:  # interpreters and their arguments first, then the script
        given = (call.asked or b"", *given[1:])
        argv = argv[max(0, event.argc - len(given)) :]
        if event.argc <= len(given):
            return "an interpreter's arguments"
    elif event.argc != len(given):
        return "argc"
    if event.argv_cut:
        return "" if b"\0".join(given).startswith(b"\0".join(argv)) else "the beginning of argv"
    if argv != given:
        return "argv"
    return "unresolved" if event.unresolved - {"asked"} else ""


def _of_connect(call: Call, event: Connect) -> str:
    if call.socket.startswith(("TCP", "UDP")) and event.protocol != call.socket[:3].lower():
        return "" if event.family == socket.AF_UNIX else "the protocol"
    if call.family != socket.AF_UNIX:
        return ""
    if call.addr[:1] == b"\0":
        return "" if os.fsencode(event.unix) == b"@" + call.addr[1:] else "the abstract name"
    whole = os.path.join(call.cwd, call.addr.replace(b"/proc/self/cwd", call.cwd))
    said = os.fsencode(event.unix)
    return "" if said in (call.addr, os.path.realpath(whole)) else "the unix path"
