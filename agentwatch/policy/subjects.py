"""What the automata are asked of an event: subjects as bytes, kinds and words as bits.

A subject is what `patterns.subject` makes of a value: a path with `/` behind it, the tokens of an
argv each with a NUL behind it, an address as 16 bytes (IPv4 mapped), a port as two. The kernel
makes the same bytes of what it sees.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agentwatch.events import Change, Connect, Event, Exec, Mount, Open
from agentwatch.lineage import Actor
from agentwatch.policy.readers import FIELDS, FOREIGN, kinds_of
from agentwatch.rules.sample import UNLIKE
from agentwatch.rules.unprobed import NamedConnect

FILE, EXE, CWD, ARGS, ADDR, PORT, UNIX, NOTHING = range(8)
"""Subjects, as rules' programs and masks of subjects number them."""

KINDS: Mapping[str, int] = {
    "exec": 1,
    "read": 2,
    "change": 4,
    "open": 8,
    "connect": 16,
    "mount": 32,
}
EXEC, OPENING, CONNECT, MOUNT = 1, 2 | 4 | 8, 16, 32
"""The sorts of events: masks of kinds."""

LISTS = (EXEC, OPENING | MOUNT, CONNECT)
"""The sorts that share lists of rules to consider, in the order of an image's header."""

WORDS: Mapping[str, Mapping[str, int]] = {
    "access": {"read": 1 << 0, "write": 1 << 1},
    "op": {
        "open": 1 << 2,
        "create": 1 << 3,
        "truncate": 1 << 4,
        "rename": 1 << 5,
        "link": 1 << 6,
        "symlink": 1 << 7,
        "delete": 1 << 8,
        "chmod": 1 << 9,
        "chown": 1 << 10,
        "xattr": 1 << 11,
        "mkdir": 1 << 12,
        "rmdir": 1 << 13,
        "mount": 1 << 14,
        "move": 1 << 15,
        "remount": 1 << 16,
        "umount": 1 << 17,
        "userns": 1 << 18,
    },
    "stdin": {"null": 1 << 5, "tty": 1 << 6, "pipe": 1 << 7, "socket": 1 << 8, "file": 1 << 9},
    "anonymous": {"true": 1 << 10, "false": 1 << 11},
    "proto": {
        "tcp": 1 << 12,
        "udp": 1 << 13,
        "unix": 1 << 14,
        "icmp": 1 << 15,
        "icmpv6": 1 << 16,
        "sctp": 1 << 17,
    },
    "family": {
        "inet": 1 << 18,
        "inet6": 1 << 19,
        "unix": 1 << 20,
        "netlink": 1 << 21,
        "packet": 1 << 22,
        "vsock": 1 << 23,
    },
}
"""By field: the bit of each word an event can have. Fields of files share bits with those of execs
and connects: an event is of one sort, and so is a program.
"""

IN_PROJECT = 1 << 24
"""The word of every event whose session has a project."""

OF_NONE = 63  # the agent bit of a session of none
EVERY_AGENT = (1 << 64) - 1
_SHARED = 62


@dataclass(frozen=True, slots=True)
class AgentBits:
    """Which bit stands for which agent. Bits are only added, so that what the kernel holds of
    sessions stays true from one policy to the next.
    """

    names: tuple[str, ...] = ()

    def extended(self, names: Iterable[str]) -> AgentBits:
        """With the names it does not know yet behind those it knows."""
        return AgentBits(tuple(dict.fromkeys((*self.names, *names))))

    def bit(self, name: str) -> int:
        """0 to 63. Agents beyond the 62nd share bit 62; "" and agents nobody named are of none."""
        if name not in self.names:
            return OF_NONE
        return min(self.names.index(name), _SHARED)

    def mask(self, names: Iterable[str]) -> int:
        """Of a process these agents' rules apply to; of none, the bit for that."""
        found = 0
        for name in names:
            found |= 1 << self.bit(name)
        return found or 1 << OF_NONE

    def is_shared(self, name: str) -> bool:
        """Whether the agent's bit may stand for another one as well."""
        return len(self.names) > _SHARED + 1 and self.bit(name) == _SHARED


@dataclass(frozen=True, slots=True)
class Subject:
    """An event as the automata are asked about it.

    kinds, words, agents: masks. path, cwd, args, addr, port, unix: bytes as above; b"" where the
    event has none (args of an exec: a row of no tokens), None where it could not be read.
    uncertain: mask of subjects that loosen nothing, though they were read. project: the name of the
    session's directory, None while it is unset. predicates: what holds of the image that makes the
    call; None where that is not known. cut: args is only where they begin, more of which could not
    be read. others: further names of what path (of a connect, unix) is the canonical one of.
    """

    kinds: int
    words: int = 0
    agents: int = 1 << OF_NONE
    path: bytes | None = b""
    cwd: bytes | None = b""
    args: bytes | None = b""
    addr: bytes | None = b""
    port: bytes | None = b""
    unix: bytes | None = b""
    uncertain: int = 0
    project: bytes | None = None
    predicates: int | None = field(default=0)
    cut: bool = False
    others: tuple[bytes, ...] = ()

    def by_name(self, name: bytes) -> Subject:
        """As the same is asked about by one of its other names: nothing is certain of it."""
        if self.kinds & CONNECT:
            return replace(self, unix=name, uncertain=self.uncertain | 1 << UNIX, others=())
        subject = EXE if self.kinds & EXEC else FILE
        return replace(self, path=name, uncertain=self.uncertain | 1 << subject, others=())


def uses_of(changed: Subject) -> tuple[Subject, ...]:
    """What may be done by a name, of a change: the file is read, run, or connected to."""
    kept, foreign = changed.words & IN_PROJECT, changed.uncertain >> FILE & 1
    reads = WORDS["access"]["read"] | WORDS["op"]["open"]
    named = WORDS["anonymous"]["false"]
    connects = WORDS["proto"]["unix"] | WORDS["family"]["unix"]
    unix = replace(changed, path=b"", unix=changed.path, kinds=CONNECT, words=kept | connects)
    return (
        replace(changed, kinds=KINDS["read"] | KINDS["open"], words=kept | reads),
        replace(changed, kinds=EXEC, words=kept | named, uncertain=foreign << EXE),
        replace(unix, uncertain=foreign << UNIX),
    )


def subject_of(
    event: Event, actor: Actor, agents: AgentBits, predicates: int | None = 0
) -> Subject | None:
    """The event as the kernel sees it; None for one that it does not see, or not all of.

    predicates: of the image that makes the call, by Image.predicates_of.
    """
    kinds = kinds_of(event)
    if not kinds or not set(kinds) <= KINDS.keys():
        return None
    if not isinstance(event, Exec | Open | Change | Connect | Mount):
        return None
    if isinstance(event, NamedConnect) and {event.host, event.peer} - {"", UNLIKE}:
        return None
    project = None if actor.project is None else _bytes(actor.project)
    begins = isinstance(event, Exec) and event.process == event.session
    if predicates is None and actor.image is None and begins:
        predicates = 0  # who called it was not watched: there is nobody to ask about
    return Subject(
        kinds=sum(KINDS[kind] for kind in kinds),
        words=_words(event, actor) | (0 if project is None else IN_PROJECT),
        agents=agents.mask(actor.agents),
        path=named(event, actor, "path"),
        cwd=named(event, actor, "cwd"),
        args=_args(event, actor),
        addr=_address(event, actor),
        port=_port(event, actor),
        unix=named(event, actor, "unix"),
        uncertain=_uncertain(event),
        project=project,
        predicates=predicates,
        others=tuple(map(path_subject, event.others)),
    )


def named(event: Event, actor: Actor, field: str) -> bytes | None:
    """A field that is a name, as a subject."""
    values = FIELDS[field].read(event, actor)
    if values is None:
        return None
    return path_subject(str(values[0])) if values else b""


def path_subject(name: str) -> bytes:
    """A name as bytes with what ends its last component."""
    return _bytes(name) + b"/"


def args_subject(args: Iterable[str]) -> bytes:
    """The tokens of an argv without its first one."""
    return b"".join(_bytes(token) + b"\0" for token in args)


def address_subject(text: str) -> bytes:
    """An address in text form as 16 bytes; b"" for what is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return b""
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _words(event: Event, actor: Actor) -> int:
    found = 0
    for name, bits in WORDS.items():
        for value in FIELDS[name].read(event, actor) or ():
            found |= bits.get(str(value), 0)
    return found


def _args(event: Event, actor: Actor) -> bytes | None:
    values = FIELDS["args"].read(event, actor)
    if values is None:
        return None
    tokens = values[0] if values else ()
    assert isinstance(tokens, tuple)
    return args_subject(tokens)


def _address(event: Event, actor: Actor) -> bytes | None:
    values = FIELDS["addr"].read(event, actor)
    if values is None:
        return None
    return address_subject(str(values[0])) if values else b""


def _port(event: Event, actor: Actor) -> bytes | None:
    values = FIELDS["port"].read(event, actor)
    if values is None:
        return None
    number = int(str(values[0])) if values else -1
    return number.to_bytes(2, "big") if 0 <= number < 1 << 16 else b""


def _uncertain(event: Exec | Open | Change | Connect | Mount) -> int:
    if isinstance(event, Connect):
        foreign = event.unix.startswith(FOREIGN)
        found = 0 if event.from_socket else 1 << ADDR | 1 << PORT | 1 << UNIX
        return found | (1 << UNIX if foreign else 0)
    if isinstance(event, Open | Change | Mount):
        return 1 << FILE if event.path.startswith(FOREIGN) else 0
    found = 1 << EXE if event.path.startswith(FOREIGN) else 0
    return found | (1 << CWD if event.cwd.startswith(FOREIGN) else 0)
