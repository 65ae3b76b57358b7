"""What strace says a process did: calls that execute, open and connect, out of the file it writes.

Written for `strace -f -yy -xx -v -X raw` and no other: with -xx every string is hexadecimal
throughout, so nothing that a name contains can be taken for strace's own punctuation.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

OPENS = ("open", "openat", "openat2", "creat", "open_by_handle_at")
EXECS = ("execve", "execveat")
CHANGES = {
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("link", "linkat"), "link"),
    **dict.fromkeys(("symlink", "symlinkat"), "symlink"),
    **dict.fromkeys(("unlink", "unlinkat"), "delete"),
    **dict.fromkeys(("mkdir", "mkdirat"), "mkdir"),
    **dict.fromkeys(("mknod", "mknodat"), "create"),
    **dict.fromkeys(("truncate", "ftruncate"), "truncate"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), "chmod"),
    **dict.fromkeys(("chown", "fchown", "lchown", "fchownat"), "chown"),
    **dict.fromkeys(("setxattr", "lsetxattr", "fsetxattr"), "xattr"),
    **dict.fromkeys(("removexattr", "lremovexattr", "fremovexattr"), "xattr"),
    "rmdir": "rmdir",
}
"""The operation of each call that changes names or attributes; of unlinkat it may be rmdir too."""
ON_DESCRIPTORS = frozenset({"ftruncate", "fchmod", "fchown", "fsetxattr", "fremovexattr"})
_TWO_NAMES = frozenset({"rename", "link", "symlink"})
_AT_REMOVEDIR = 0x200
RINGS = ("io_uring_setup",)  # what goes through a ring is no system call: strace is blind to it
OPTIONS = (
    "-f", "-yy", "-xx", "-v", "-X", "raw", "-s", "200000",
    "-e", f"trace={','.join((*EXECS, *OPENS, *RINGS, 'connect', *(f'?{c}' for c in CHANGES)))}",
)  # fmt: skip

_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CHANGED = re.compile(r"(.*) <pid changed to (\d+) \.\.\.>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_CWD = re.compile(r"-100<((?:\\x[0-9a-f]{2})*)>")
_RESULT = re.compile(
    r"(\?|-?\d+)(?:<((?:\\x[0-9a-f]{2})*)(?:<(?:char|block) [\d:]+>)?>(\(deleted\))?)?"
    r"(?: ([A-Z]+))?"
)
_RESTARTS = {"ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514}
_RESTARTS["ERESTART_RESTARTBLOCK"] = 516


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. result: as the kernel returned it, None when the caller died in it.

    op, new_asked: of a change; the second name, of a symbolic link its text.
    asked: the path given, None for one that could not be read. cwd: the directory it is relative
    to, where strace has told it last. path: what the descriptor returned is of. family, addr, port:
    of connect; addr is packed, for AF_UNIX the path with its leading NUL if it is abstract.
    socket: what the descriptor is, in strace's words (TCP, UDPv6, UNIX-STREAM), "" for no socket.
    """

    tid: int
    name: str
    result: int | None
    asked: bytes | None = None
    cwd: bytes = b""
    argv: tuple[bytes, ...] = ()
    flags: int = 0
    op: str = ""
    new_asked: bytes | None = None
    path: bytes | None = None
    deleted: bool = False
    family: int = 0
    addr: bytes = b""
    port: int = 0
    socket: str = ""


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls of a file, each where it ended. Raises ValueError for a line it cannot read."""
    pending: dict[int, str] = {}
    directories: dict[int, bytes] = {}
    for line in lines:
        found = _LINE.fullmatch(line.rstrip("\n"))
        if not found:
            raise ValueError(f"not a line of strace -f: {line[:200]!r}")
        tid, text = int(found[1]), found[2]
        if text.startswith(("---", "+++", "strace: ")):
            continue
        if resumed := _RESUMED.fullmatch(text):
            text = pending.pop(tid) + resumed[1]
        if changed := _CHANGED.fullmatch(text):
            pending[int(changed[2])] = changed[1]
            continue
        if "<unfinished ...>" in text:
            whole = text.replace("<unfinished ...>", "")
            if not whole.endswith(") = ?"):
                pending[tid] = whole
                continue
            text = whole
        yield _call(tid, text, directories)
    if pending:
        raise ValueError(f"calls without an end: {sorted(pending)}")


def _call(tid: int, text: str, directories: dict[int, bytes]) -> Call:
    found = _CALL.fullmatch(text)
    if not found:
        raise ValueError(f"not a call: {text[:200]!r}")
    name, arguments, ending = found.groups()
    result, path, deleted = _result(ending)
    if told := _CWD.search(arguments):
        directories[tid] = _bytes(told[1])
    if name == "connect":
        family, addr, port = _address(arguments)
        return Call(
            tid=tid, name=name, result=result, family=family, addr=addr, port=port,
            cwd=directories.get(tid, b""), socket=_socket(arguments),
        )  # fmt: skip
    if name in EXECS:
        return _exec(tid, name, arguments, result)
    if name in CHANGES:
        return _change(tid, name, arguments, result)
    if name in RINGS:
        return Call(tid=tid, name=name, result=result)
    return Call(
        tid=tid,
        name=name,
        result=result,
        asked=None if name == "open_by_handle_at" else _asked(arguments),
        flags=_flags(name, arguments),
        path=path,
        deleted=deleted,
    )


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def _strings(text: str) -> list[bytes]:
    return [_bytes(found) for found in _STRING.findall(text)]


def _asked(arguments: str) -> bytes | None:
    return next(iter(_strings(arguments)), None)


def _result(ending: str) -> tuple[int | None, bytes | None, bool]:
    found = _RESULT.match(ending)
    if not found:
        raise ValueError(f"not a result: {ending[:200]!r}")
    number, path, deleted, code = found.groups()
    if code:
        return -(_RESTARTS.get(code) or getattr(errno, code)), None, False
    if number == "?":
        return None, None, False
    return int(number), None if path is None else _bytes(path), bool(deleted)


def _flags(name: str, arguments: str) -> int:
    if name == "openat2":
        how = re.search(r"\{flags=(0x[0-9a-f]+|\d+)", arguments)
        return int(how[1], 0) if how else 0
    if name == "creat":
        return 0o1101
    behind = _STRING.sub("", arguments).split(", ")
    number = behind[{"open": 1, "openat": 2, "open_by_handle_at": -1}[name]]
    return int(number, 0)


def _change(tid: int, name: str, arguments: str, result: int | None) -> Call:
    # Descriptors are shown with the names of what they are of, in <>.
    op, strings = CHANGES[name], _strings(re.sub(r"<[^>]*>", "", arguments))
    if name == "unlinkat" and int(_STRING.sub("", arguments).split(", ")[-1], 0) & _AT_REMOVEDIR:
        op = "rmdir"
    asked = None if name in ON_DESCRIPTORS else next(iter(strings), None)
    second = strings[1] if op in _TWO_NAMES and len(strings) > 1 else None
    if op == "symlink":
        asked, second = second, asked
    return Call(tid=tid, name=name, result=result, op=op, asked=asked, new_asked=second)


def _exec(tid: int, name: str, arguments: str, result: int | None) -> Call:
    """A path given with a directory's descriptor is named as the kernel names it then."""
    path, _, rest = arguments.partition("[")
    argv, _, _ = rest.partition("]")
    asked = _asked(path)
    directory = re.match(r"(\d+)<", path)
    relative = asked is not None and not asked.startswith(b"/")
    if name == "execveat" and result == 0 and directory and relative:
        asked = b"/dev/fd/" + directory[1].encode() + (b"/" + asked if asked else b"")
    return Call(tid=tid, name=name, result=result, asked=asked, argv=tuple(_strings(argv)))


def _address(arguments: str) -> tuple[int, bytes, int]:
    """Family, packed address and port; (0, b"", 0) for an address that could not be read."""
    found = re.search(r"\{sa_family=(0x[0-9a-f]+|\d+)(.*)\}", arguments)
    if not found:
        return 0, b"", 0
    family, rest = int(found[1], 0), found[2]
    if family == socket.AF_UNIX:
        name = next(iter(_strings(rest)), b"")
        return family, b"\0" + name if "=@" in rest else name, 0
    if family not in (socket.AF_INET, socket.AF_INET6):
        return family, b"", 0
    if "sa_data" in rest:  # too short: what there is of port and address
        data = _strings(rest)[0].ljust(18, b"\0")
        return family, data[2:6], int.from_bytes(data[:2], "big")
    strings = _strings(rest)
    return family, strings[-1], int.from_bytes(strings[0], "big")


def _socket(arguments: str) -> str:
    found = re.match(r"-?\d+<([A-Za-z0-9-]+):\[", arguments)
    return found[1] if found else ""
