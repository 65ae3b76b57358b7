"""Names that calls were given, with the symbolic links in them looked up.

Of a change that is no opening the kernel tells where a name began and its text. What that comes to
is looked up when the record is read, so a moment later: who exchanges a link meanwhile is not found
out. Nothing here waits for a file system, which may be an agent's own: only what the kernel has in
its cache of names is looked at, and there the call has just put it.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from contextlib import suppress

from agentwatch import abi, decoding
from agentwatch.decoding import Name

_OPENAT2 = ctypes.c_long(437)
_RESOLVE_CACHED = 0x20
_HOW = struct.pack("<QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
_SIZE = ctypes.c_size_t(len(_HOW))
_AT_FDCWD = ctypes.c_long(-100)
_PATH = ("path_dev", "path", "found", "asked")
_NAMES = {
    abi.CHANGE: (_PATH, ("new_dev", "new", "new_found", "new_asked")),
    abi.MOUNT: (_PATH, ("source_dev", "source", "source_found", "source_asked")),
}
LOOKED_UP = frozenset(_NAMES)
"""Kinds of records with such names."""

_OWN = re.compile(rb"/proc/(?:self|thread-self|\d+(?:/task/\d+)?)/((?:cwd|root|fd/\d+))(?=/|$)")
_FOLLOWING = frozenset(
    {
        abi.OP_TRUNCATE,
        abi.OP_CHMOD,
        abi.OP_CHOWN,
        abi.OP_XATTR,
        abi.OP_LINK,
        abi.OP_MOUNT,
        abi.OP_MOVE,
        abi.OP_REMOUNT,
        abi.OP_UMOUNT,
    }
)  # calls that may act on what a link points to
_libc = ctypes.CDLL(None, use_errno=True)


class Links:
    """Looks names up. name: the canonical name of where one begins.

    What was found is remembered until `forget`: many changes in a row are of one directory.
    """

    REMEMBERED = 4096

    def __init__(self, name: Name) -> None:
        self._name = name
        self._known: dict[bytes, bytes | None] = {}

    def forget(self) -> None:
        """Looks anew from now on."""
        self._known.clear()

    def looked_up(self, record: memoryview) -> memoryview:
        """The record of a change or mount, with its names in `found` and `new_found` (or
        `source_found`) where a link makes them other ones than they say.
        """
        _, kind, flags = abi.peek(record)
        if not flags & abi.FLAG_BASE:
            return record
        values, strings = abi.unpack(record)
        found = {}
        for dev, base, which, asked in _NAMES[kind]:
            if not strings[asked] or strings[which] or not (strings[base] or values[dev]):
                continue
            follows = base == "path" and values["op"] in _FOLLOWING
            begins = os.fsencode(self._name(values[dev], strings[base]))
            name = self._resolved(values["tgid"], begins, strings[asked], follows)
            if name is not None:
                found[which] = name
        if not found:
            return record
        return memoryview(abi.pack(values["kind"], values, {**strings, **found}))

    def _resolved(self, pid: int, begins: bytes, asked: bytes, follows: bool) -> bytes | None:
        """The name as it is, None where that is what it says or cannot be known."""
        if not begins.startswith(b"/"):
            return None
        written = decoding.joined(begins, asked)
        whole, found = written, None
        own = _OWN.match(written)
        if own is not None:  # of which the kernel's cache says nothing
            with suppress(OSError):
                place = os.readlink(b"/proc/%d/%b" % (pid, own[1]))
                whole = place + whole[own.end() :] if place.startswith(b"/") else whole
        head, _, tail = whole.rstrip(b"/").rpartition(b"/")
        if tail in (b"", b".", b"..") or follows:
            found = _seen(whole)
        if found is None and tail not in (b"", b".", b".."):
            place = self._directory(head or b"/") or b""
            found = os.path.join(place, tail) if place else None
        return None if found == os.path.normpath(written) else found

    def _directory(self, head: bytes) -> bytes | None:
        if head not in self._known:
            if len(self._known) >= self.REMEMBERED:
                self._known.clear()
            self._known[head] = _seen(head)
        return self._known[head]


def _seen(name: bytes) -> bytes | None:
    """What a name leads to by the kernel's cache of names alone; None for what it does not know."""
    fd = _libc.syscall(_OPENAT2, _AT_FDCWD, name, _HOW, _SIZE)
    if fd < 0:
        return None
    try:
        found = os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return found if found.startswith(b"/") and not found.endswith(b" (deleted)") else None
