"""Records as events: what each kind of record means (bpf/agentwatch.h, by way of abi)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from agentwatch import abi
from agentwatch.abi import Layout
from agentwatch.events import (
    NO_PROCESS,
    Change,
    Connect,
    Event,
    Exec,
    Exit,
    Fork,
    Mount,
    Open,
    ProcessKey,
)

Name = Callable[[int, bytes], str]
"""(kernel dev_t, path from the root of its file system) -> the canonical name."""


def plain_name(dev: int, path: bytes) -> str:
    """The name where the file system is the root: for tests and for readers without mounts."""
    return os.fsdecode(path) or "/"


_UNRESOLVED = (
    (0x01, "path"),
    (0x02, "asked"),
    (0x04, "cwd"),
    (0x08, "argv"),
    (0x10, "address"),
    (0x20, "new_path"),
    (0x40, "new_asked"),
)
OPS: Mapping[int, str] = MappingProxyType(
    {
        abi.OP_CREATE: "create",
        abi.OP_TRUNCATE: "truncate",
        abi.OP_RENAME: "rename",
        abi.OP_LINK: "link",
        abi.OP_SYMLINK: "symlink",
        abi.OP_DELETE: "delete",
        abi.OP_CHMOD: "chmod",
        abi.OP_CHOWN: "chown",
        abi.OP_XATTR: "xattr",
        abi.OP_MKDIR: "mkdir",
        abi.OP_RMDIR: "rmdir",
        abi.OP_MOUNT: "mount",
        abi.OP_MOVE: "move",
        abi.OP_REMOUNT: "remount",
        abi.OP_UMOUNT: "umount",
        abi.OP_USERNS: "userns",
    }
)
"""By abi.OP_*: the word that rules have for it."""
_STDIN = ("null", "tty", "pipe", "socket", "file")


def decode(
    record: bytes | memoryview, name: Name = plain_name, layouts: Mapping[int, Layout] = abi.LAYOUTS
) -> Event:
    """The event a record stands for. Raises RecordError for anything that is not a record."""
    values, strings = abi.unpack(record, layouts)
    flags, unresolved = values["flags"], values["unresolved"]
    common = {
        "time": values["time"],
        "process": ProcessKey(values["tgid"], values["start"]),
        "session": ProcessKey(values["session_tgid"], values["session_start"]),
        "tid": values["tid"],
        "cpu": values["cpu"],
        "sequence": values["sequence"],
        "generation": values["generation"],
        "rule": values.get("rule", 0),
        "verdict": values.get("verdict", 0),
        "provisional": bool(flags & abi.FLAG_PROVISIONAL),
        "refused": bool(flags & abi.FLAG_HOOK) and values.get("result", 0) < 0,
    }
    if unresolved:
        common["unresolved"] = frozenset(word for bit, word in _UNRESOLVED if unresolved & bit)
    return _DECODERS[values["kind"]](values, strings, name, common)


def _fork(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    return Fork(child=ProcessKey(v["child_tgid"], v["child_start"]), **common)


def _exit(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    return Exit(status=v["status"], **common)


def _exec(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    flags = v["flags"]
    asked = os.fsdecode(s["asked"])
    failed = v["result"] < 0 and not common["refused"]
    cwd = "" if failed else name(v["cwd_dev"], s["cwd"])
    argv = s["argv"]
    path = "" if failed else _file(v, s["path"], name)
    tokens = argv.removesuffix(b"\0").split(b"\0") if argv else []
    return Exec(
        path=path,
        asked=asked,
        script=absolute(asked, cwd) if flags & abi.FLAG_SCRIPT else None,
        argv=tuple(os.fsdecode(token) for token in tokens),
        argv_cut=bool(flags & abi.FLAG_ARGV_CUT),
        argc=v["argc"],
        stdin=_STDIN[v["stdin_kind"]] if v["stdin_kind"] < len(_STDIN) else "file",
        cwd=cwd,
        uid=v["uid"],
        parent=ProcessKey(v["parent_tgid"], v["parent_start"]) if not failed else NO_PROCESS,
        result=v["result"],
        candidate=bool(flags & abi.FLAG_CANDIDATE),
        anonymous=bool(flags & abi.FLAG_ANONYMOUS),
        deleted=bool(flags & abi.FLAG_DELETED),
        view=_other(s, "view", path),
        known=_other(s, "known", path),
        **common,
    )


def _open(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    flags = v["flags"]
    path = "" if v["result"] < 0 and not common["refused"] else _file(v, s["path"], name)
    return Open(
        path=path,
        asked=os.fsdecode(s["asked"]),
        flags=v["open_flags"],
        result=v["result"],
        reads=bool(flags & abi.FLAG_READS),
        changes=bool(flags & abi.FLAG_CHANGES),
        created=bool(flags & abi.FLAG_CREATED),
        directory=bool(flags & abi.FLAG_DIRECTORY),
        deleted=bool(flags & abi.FLAG_DELETED),
        shared=bool(flags & abi.FLAG_SHARED),
        view=_other(s, "view", path),
        known=_other(s, "known", path),
        **common,
    )


def _change(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    unresolved: frozenset[str] = common.get("unresolved", frozenset())
    done = v["result"] >= 0 or common["refused"]
    based = bool(v["flags"] & abi.FLAG_BASE)
    if based:  # a name whose text could not be read is not known
        for text, whole in (("asked", "path"), ("new_asked", "new_path")):
            unresolved |= {whole} if text in unresolved else set()
        common["unresolved"] = unresolved
    op = OPS.get(v["op"], str(v["op"]))
    first = second = _NOT_CHANGED
    if done:
        first = _changed(v, s, ("path_dev", "path", "", "asked"), name)
    if done and (s["new"] or v["new_dev"]):
        second = _changed(v, s, ("new_dev", "new", "new_", "new_asked"), name)
    return Change(
        op=op,
        path=first.path,
        new_path=second.path,
        asked=os.fsdecode(s["asked"]),
        new_asked=os.fsdecode(s["new_asked"]),
        view=first.view,
        new_view=second.view,
        known=first.known,
        new_known=second.known,
        written=first.written,
        new_written=second.written,
        result=v["result"],
        mode=v["mode"],
        anonymous=bool(v["flags"] & abi.FLAG_ANONYMOUS),
        **common,
    )


def _mount(v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]) -> Event:
    unresolved: frozenset[str] = common.get("unresolved", frozenset())
    if unresolved:  # source is the second name that a record can have
        words = {"new_path": "source", "new_asked": "source"}
        unresolved = frozenset(words.get(word, word) for word in unresolved)
        if v["flags"] & abi.FLAG_BASE and "asked" in unresolved:
            unresolved |= {"path"}
        common["unresolved"] = unresolved
    done = v["result"] >= 0 or common["refused"]
    point = _NOT_CHANGED
    source = os.fsdecode(s["source_asked"])
    if done and (s["path"] or v["path_dev"]):
        point = _changed(v, s, ("path_dev", "path", "", "asked"), name)
    if done and (s["source"] or v["source_dev"]):
        names = ("source_dev", "source", "source_", "source_asked")
        source = _changed(v, s, names, name).path
    return Mount(
        op=OPS.get(v["op"], str(v["op"])),
        path=point.path,
        source=source,
        fstype=os.fsdecode(s["fstype"]),
        asked=os.fsdecode(s["asked"]),
        view=point.view,
        known=point.known,
        written=point.written,
        result=v["result"],
        flags=v["mount_flags"],
        **common,
    )


@dataclass(frozen=True, slots=True)
class _Changed:
    """A name of a change, and the others that it has."""

    path: str = ""
    view: str = ""
    known: str = ""
    written: str = ""


_NOT_CHANGED = _Changed()


def _changed(
    v: dict[str, Any], s: dict[str, bytes], fields: tuple[str, str, str, str], name: Name
) -> _Changed:
    dev, base, which, asked = fields
    begins = _file(v, s[base], name) if base == "path" else name(v[dev], s[base])
    view = s.get(which + "view", b"")
    if not v["flags"] & abi.FLAG_BASE:
        known = _other(s, which + "known", begins)
        return _Changed(begins, _other(s, which + "view", begins), known)
    written = _written(os.fsencode(begins), s[asked])
    path = os.fsdecode(s.get(which + "found", b"")) or written
    seen = _written(view, s[asked]) if view else ""
    return _Changed(path, seen if seen != path else "", written=written if written != path else "")


def _written(begins: bytes, asked: bytes) -> str:
    """The name that a text comes to, with no link looked up."""
    return os.path.normpath(os.fsdecode(joined(begins, asked)))


def _connect_event(
    v: dict[str, Any], s: dict[str, bytes], name: Name, common: dict[str, Any]
) -> Event:
    family = v["family"]
    addr = ""
    if family == socket.AF_INET:
        addr = socket.inet_ntop(socket.AF_INET, v["address"][:4])
    elif family == socket.AF_INET6:
        addr = socket.inet_ntop(socket.AF_INET6, v["address"])
    unix = ""
    if family == socket.AF_UNIX:
        asked = s["asked"]
        if asked[:1] == b"\0":
            unix = "@" + os.fsdecode(asked[1:])
        else:
            unix = name(v["path_dev"], s["path"]) if s["path"] else os.fsdecode(asked)
    protocol = _PROTOCOLS.get(v["protocol"], str(v["protocol"]) if v["protocol"] else "")
    return Connect(
        family=family,
        addr=addr,
        port=v["port"],
        protocol="unix" if family == socket.AF_UNIX else protocol,
        unix=unix,
        result=v["result"],
        syn=v["kind"] == abi.SYN,
        from_socket=bool(v["flags"] & abi.FLAG_FROM_SOCKET),
        view=_other(s, "view", unix),
        **common,
    )


_PROTOCOLS = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_ICMPV6: "icmpv6",
    132: "sctp",
    socket.IPPROTO_UDPLITE: "udp",  # of which rules do not speak
}
_DECODERS = {
    abi.FORK: _fork,
    abi.EXEC: _exec,
    abi.EXIT: _exit,
    abi.OPEN: _open,
    abi.CHANGE: _change,
    abi.MOUNT: _mount,
    abi.CONNECT: _connect_event,
    abi.SYN: _connect_event,
}


def _file(v: dict[str, Any], path: bytes, name: Name) -> str:
    """A file's name; one without a place in a file system keeps the name the kernel gave it."""
    if v["flags"] & abi.FLAG_ANONYMOUS or (not path and v["unresolved"] & abi.UNRESOLVED_PATH):
        return os.fsdecode(path)
    return name(v["path_dev"], path)


def _other(s: dict[str, bytes], which: str, path: str) -> str:
    """A file's other name; "" where it is the canonical one, and in records that had none yet."""
    found = os.fsdecode(s.get(which, b""))
    return "" if found == path else found


def joined(begins: bytes, asked: bytes) -> bytes:
    """A name and where it begins as one: an absolute one begins at its task's root."""
    return os.path.join(begins, asked.lstrip(b"/"))


def absolute(asked: str, cwd: str) -> str:
    """`asked` as an absolute name, `.` and `..` taken out without looking at symbolic links."""
    return os.path.normpath(os.path.join(cwd, asked)) if asked else asked
