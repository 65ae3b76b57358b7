"""What an event can be asked: the fields of rules.md, and where each is found.

A reader takes the event and its actor and gives the values of one field: usually one, none when
the event has no such thing (no script, no parent known), several where there are several (the
ancestors); or None when there is one that could not be read.

What loosens (`allow`, `unless`) is asked of less: of what the agent could not have made up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from agentwatch.events import Change, Connect, Event, Exec, Mount, Open
from agentwatch.lineage import Actor, Image
from agentwatch.policy import patterns
from agentwatch.policy.index import Value
from agentwatch.rules.unprobed import Listen, NamedConnect, Ptrace, Signal

Values: TypeAlias = tuple[Value, ...]
Reader: TypeAlias = Callable[[Event, Actor], Values | None]

NUMBER, ADDRESS = "number", "address"
"""Types of fields besides the separators of patterns.py."""

FOREIGN = "["
"""How a path begins whose file system init does not have: `[major:minor]/path`."""

_EINPROGRESS = -115  # a connect that goes on without the caller
_FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 40: "vsock"}


@dataclass(frozen=True, slots=True)
class FieldType:
    """How a field's values compare (a separator, NUMBER or ADDRESS), and its reader.

    vouched: reads what is certain of the values, where `read` gives more than that. of_file: they
    are the name of the file that the event is about.
    """

    type: str
    read: Reader
    vouched: Reader | None = None
    of_file: bool = False

    def certain(self, event: Event, actor: Actor) -> Values | None:
        """The values that what loosens may rest on.

        A path on a file system that the initial mount namespace does not have is none of them:
        whoever mounted it gave every file in it the name it has.
        """
        values = (self.vouched or self.read)(event, actor)
        if values and self.of_file and by_other_name(event):
            return None
        if values and self.type == patterns.PATH:
            return tuple(v for v in values if not str(v).startswith(FOREIGN))
        return values


def kinds_of(event: Event) -> tuple[str, ...]:
    """The kinds of the rules that judge an event; none for what failed and what is not judged.

    TCP is judged once, by the record of its first packet.
    """
    if isinstance(event, Open):
        if event.result < 0:
            return ()
        return _OPEN_KINDS[event.reads, event.changes]
    if isinstance(event, Exec):
        return ("exec",) if event.result == 0 else ()
    if isinstance(event, Change):
        return ("change",) if event.result >= 0 and not event.anonymous else ()
    if isinstance(event, Mount):
        return ("mount",) if event.result >= 0 else ()
    if type(event) in _ONE_KIND:
        return _ONE_KIND[type(event)]
    if isinstance(event, Connect) and event.family:  # 0, AF_UNSPEC, ends a connection
        made = event.result >= 0 or event.result == _EINPROGRESS
        return ("connect",) if (event.syn if event.protocol == "tcp" else made) else ()
    return ()


_OPEN_KINDS = {
    (False, False): ("open",),
    (True, False): ("open", "read"),
    (False, True): ("open", "change"),
    (True, True): ("open", "read", "change"),
}
_ONE_KIND: Mapping[type[Event], tuple[str, ...]] = {
    Listen: ("listen",),
    Ptrace: ("ptrace",),
    Signal: ("signal",),
}
KIND_SETS = (
    ("exec",),
    ("connect",),
    ("change",),
    ("mount",),
    *_OPEN_KINDS.values(),
    *_ONE_KIND.values(),
)
"""Every answer of kinds_of but ()."""


_Named = Exec | Open | Change | Mount | Connect


def views(event: Event) -> tuple[Event, ...]:
    """The events one stands for: a change with two names is judged under each of them.

    So a rule on either name finds it, and what loosens must cover both. A file with other names
    than its canonical one is judged under those as well, and by them nothing is loosened.
    """
    if by_other_name(event) or not isinstance(event, _Named):
        return (event,)
    ones: tuple[_Named, ...] = (event,)
    if isinstance(event, Change):
        other = event.new_path not in ("", event.path) or "new_path" in event.unresolved
        ones = (event, _second(event)) if other else (event,)
    return *ones, *(view for one in ones for view in _by_others(one))


def by_other_name(event: Event) -> bool:
    """Whether `views` gave the event another name than the canonical one."""
    if isinstance(event, Connect):
        return bool(event.view) and event.view == event.unix
    if not isinstance(event, Exec | Open | Change | Mount):
        return False
    return bool(event.view) and event.view == event.path


def _by_others(event: _Named) -> Iterator[Event]:
    if isinstance(event, Connect):
        yield from (replace(event, unix=name, view=name) for name in event.others)
    elif "path" not in event.unresolved:
        yield from (replace(event, path=name, view=name) for name in event.others)


def _second(event: Change) -> Change:
    """A change as one of its second name."""
    unresolved = event.unresolved - {"path"}
    if "new_path" in unresolved:
        unresolved |= {"path"}
    return replace(
        event,
        path=event.new_path,
        view=event.new_view,
        known=event.new_known,
        written=event.new_written,
        unresolved=unresolved,
    )


def _path(event: Event, actor: Actor) -> Values | None:
    if "path" in event.unresolved:
        return None
    if not isinstance(event, Exec | Open | Change | Mount) or not event.path:
        return ()
    return (event.path,)


def _script(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Exec) or event.script is None:
        return ()
    relative = not event.asked.startswith("/")
    if "asked" in event.unresolved or (relative and "cwd" in event.unresolved):
        return None
    return (event.script,)


def _argv(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Exec):
        return ()
    return None if "argv" in event.unresolved else (event.argv,)


def _args(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Exec):
        return ()
    return None if "argv" in event.unresolved else (event.argv[1:],)


def _cwd(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Exec):
        return ()
    return None if "cwd" in event.unresolved else (event.cwd,)


def _exec_word(word: Callable[[Exec], Value]) -> Reader:
    """A field of an exec that is always known."""
    return lambda event, actor: (word(event),) if isinstance(event, Exec) else ()


def _access(event: Event, actor: Actor) -> Values | None:
    if isinstance(event, Change):
        return ("write",)
    if not isinstance(event, Open):
        return ()
    return ("read",) * event.reads + ("write",) * event.changes


def _op(event: Event, actor: Actor) -> Values | None:
    if isinstance(event, Change | Mount):
        return (event.op,)
    if not isinstance(event, Open):
        return ()
    truncated = event.changes and event.flags & os.O_TRUNC and not event.created
    return ("open",) + ("create",) * event.created + ("truncate",) * bool(truncated)


def _address(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Connect) or event.unix or event.protocol == "unix":
        return ()
    if "address" in event.unresolved:
        return None
    return (event.addr,) if event.addr else ()


def _port(event: Event, actor: Actor) -> Values | None:
    known = _address(event, actor)
    return (event.port,) if known and isinstance(event, Connect) else known


def _unix(event: Event, actor: Actor) -> Values | None:
    if not isinstance(event, Connect) or event.protocol != "unix":
        return ()
    if event.unresolved & {"address", "path"}:
        return None
    return (event.unix,) if event.unix else ()


def _connect_word(word: Callable[[Connect], str]) -> Reader:
    """A field of a connect that is always known."""
    return lambda event, actor: (word(event),) if isinstance(event, Connect) else ()


def _new_path(event: Event, actor: Actor) -> Values | None:
    if "new_path" in event.unresolved:
        return None
    return (event.new_path,) if isinstance(event, Change) and event.new_path else ()


def _host(event: Event, actor: Actor) -> Values | None:
    return (event.host,) if isinstance(event, NamedConnect) and event.host else ()


def _peer(event: Event, actor: Actor) -> Values | None:
    return (event.peer,) if isinstance(event, NamedConnect | Ptrace | Signal) else ()


def _target(event: Event, actor: Actor) -> Values | None:
    return (event.target,) if isinstance(event, Ptrace | Signal) else ()


def _signal(event: Event, actor: Actor) -> Values | None:
    return (event.signal,) if isinstance(event, Signal) else ()


def _mounted(word: Callable[[Mount], str]) -> Reader:
    """A field of a mount; there may be none."""

    def read(event: Event, actor: Actor) -> Values | None:
        if "source" in event.unresolved:
            return None
        return (word(event),) if isinstance(event, Mount) and word(event) else ()

    return read


def _chosen(event: Event, actor: Actor) -> Values | None:
    """Of a name that is as somebody asked for it, nothing is certain."""
    return None


def _of_socket(read: Reader) -> Reader:
    """An address, certain where the kernel's socket gave it and not the caller's memory."""

    def certain(event: Event, actor: Actor) -> Values | None:
        known = isinstance(event, Connect) and event.from_socket
        return read(event, actor) if known else None

    return certain


def _image_word(word: Callable[[Image], Value | None]) -> Callable[[Image], Values | None]:
    """A field of an image; one that no program can have empty was not read when it is."""

    def read(image: Image) -> Values | None:
        value = word(image)
        return None if value == "" else () if value is None else (value,)

    return read


def _begins(event: Event, actor: Actor) -> bool:
    """Whether this is the exec that begins a session: who called it was not watched, which is not
    to say that something could not be read.
    """
    return isinstance(event, Exec) and event.process == event.session and actor.image is None


def _process(read: Callable[[Image], Values | None]) -> Reader:
    def of_caller(event: Event, actor: Actor) -> Values | None:
        if actor.image is not None:
            return read(actor.image)
        return () if _begins(event, actor) else None

    return of_caller


def _parent(read: Callable[[Image], Values | None]) -> Reader:
    return lambda event, actor: read(actor.ancestors[0]) if actor.ancestors else ()


def _ancestor(read: Callable[[Image], Values | None]) -> Reader:
    def every(event: Event, actor: Actor) -> Values | None:
        found: Values = ()
        for image in actor.ancestors:
            values = read(image)
            if values is None:
                return None
            found += values
        return found

    return every


def _role(event: Event, actor: Actor) -> Values | None:
    if actor.image is None:
        return () if _begins(event, actor) else None
    return (actor.role,)


def _session(event: Event, actor: Actor) -> Values | None:
    return (f"{actor.session.pid}:{actor.session.start}",)


def _every_exe(image: Image) -> Values | None:
    """Every name of its executable."""
    names = dict.fromkeys((image.exe, *image.others))
    return tuple(names) if image.exe else None


_EXE = _image_word(lambda image: image.exe)  # the canonical one
_SCRIPT = _image_word(lambda image: image.script)
_ARGS = _image_word(lambda image: image.args)
_CWD = _image_word(lambda image: image.cwd)
_UID = _image_word(lambda image: image.uid)

FIELDS: Mapping[str, FieldType] = MappingProxyType(
    {
        "session": FieldType(patterns.WORD, _session),
        "process.exe": FieldType(patterns.PATH, _process(_every_exe), _process(_EXE)),
        "process.script": FieldType(patterns.PATH, _process(_SCRIPT), _chosen),
        "process.args": FieldType(patterns.ARGV, _process(_ARGS)),
        "process.cwd": FieldType(patterns.PATH, _process(_CWD)),
        "process.uid": FieldType(NUMBER, _process(_UID)),
        "process.role": FieldType(patterns.WORD, _role),
        "parent.exe": FieldType(patterns.PATH, _parent(_every_exe), _parent(_EXE)),
        "parent.script": FieldType(patterns.PATH, _parent(_SCRIPT), _chosen),
        "parent.args": FieldType(patterns.ARGV, _parent(_ARGS)),
        "ancestor.exe": FieldType(patterns.PATH, _ancestor(_every_exe), _ancestor(_EXE)),
        "ancestor.args": FieldType(patterns.ARGV, _ancestor(_ARGS)),
        "path": FieldType(patterns.PATH, _path, of_file=True),
        "script": FieldType(patterns.PATH, _script, _chosen),
        "argv": FieldType(patterns.ARGV, _argv, _chosen),  # argv[0] is in it
        "args": FieldType(patterns.ARGV, _args),
        "argc": FieldType(NUMBER, _exec_word(lambda event: event.argc)),
        "stdin": FieldType(patterns.WORD, _exec_word(lambda event: event.stdin)),
        "cwd": FieldType(patterns.PATH, _cwd),
        "anonymous": FieldType(
            patterns.WORD, _exec_word(lambda event: "true" if event.anonymous else "false")
        ),
        "access": FieldType(patterns.WORD, _access),
        "op": FieldType(patterns.WORD, _op),
        "host": FieldType(patterns.HOST, _host),
        "addr": FieldType(ADDRESS, _address, _of_socket(_address)),
        "port": FieldType(NUMBER, _port, _of_socket(_port)),
        "proto": FieldType(patterns.WORD, _connect_word(lambda event: event.protocol)),
        "family": FieldType(
            patterns.WORD,
            _connect_word(lambda event: _FAMILIES.get(event.family, str(event.family))),
        ),
        "unix": FieldType(patterns.PATH, _unix, _of_socket(_unix), of_file=True),
        "peer": FieldType(patterns.WORD, _peer),
        "new_path": FieldType(patterns.PATH, _new_path),
        "source": FieldType(patterns.PATH, _mounted(lambda event: event.source), _chosen),
        "fstype": FieldType(patterns.WORD, _mounted(lambda event: event.fstype)),
        "target.exe": FieldType(patterns.PATH, _target),
        "signal": FieldType(patterns.WORD, _signal),
    }
)
"""Every field but those of lowering, which depend on the rules or on what happened before."""
