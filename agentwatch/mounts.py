"""Canonical names: where the file systems of the initial mount namespace are mounted.

The kernel walks a file's dentries to the root of its file system, which no bind mount, chroot or
mount namespace of an agent's own changes, and says which file system (device) that is. This table
puts the mount point in front: the one a person at the console would type.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MOUNTINFO = Path("/proc/1/mountinfo")
OWN_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo. own: it shows a whole file system, or a whole subvolume of one."""

    id: int
    dev: int
    root: bytes
    point: bytes
    own: bool


def _rows(mountinfo: bytes) -> Iterator[Mount]:
    for line in mountinfo.split(b"\n"):  # and at no other byte: names may have all of them
        with suppress(ValueError, IndexError):  # a line that is none names nothing
            fields = line.split(b" ")
            major, minor = map(int, fields[2].split(b":"))
            root, point = (_unescape(fields[i]).rstrip(b"/") for i in (3, 4))
            if set(root.split(b"/")) == {b"", b".."}:
                root = b""  # a control group's hierarchy, seen from a namespace further down
            own = _is_own_root(fields)
            yield Mount(int(fields[0]), major << 20 | minor, root, point, own)


class Mounts:
    """device -> ((root in the file system, mount point), ...), in the order they are tried.

    A file system mounted by its own root is named by that mount and not by a bind mount of one of
    its directories; a btrfs subvolume that is mounted by itself is a root, too, and comes before
    the one it lies in. Among equals the oldest mount is taken.
    """

    def __init__(self, table: Mapping[int, tuple[tuple[bytes, bytes], ...]]) -> None:
        self._table = dict(table)

    @classmethod
    def parse(cls, mountinfo: bytes) -> Mounts:
        """From the text of /proc/PID/mountinfo (proc(5))."""
        found: dict[int, list[tuple[bool, bytes, bytes]]] = {}
        for mount in _rows(mountinfo):
            found.setdefault(mount.dev, []).append((mount.own, mount.root, mount.point))
        return cls(
            {
                dev: tuple((root, point) for _, root, point in sorted(rows, key=_rank))
                for dev, rows in found.items()
            }
        )

    @classmethod
    def read(cls, path: Path = MOUNTINFO) -> Mounts:
        """From this host. An unreadable table is empty: names then start at their file system."""
        try:
            return cls.parse(path.read_bytes())
        except OSError:
            return cls({})

    def __contains__(self, dev: int) -> bool:
        return dev in self._table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mounts) and self._table == other._table

    __hash__ = None  # type: ignore[assignment]  # compared by content, and it has no order

    def name(self, dev: int, path: bytes) -> str:
        """The canonical name of a path from the root of the file system on kernel dev_t `dev`.

        A device that is not in the table gives `[MAJOR:MINOR]/path`.
        """
        for root, point in self._table.get(dev, ()):
            if path == root or path.startswith(root + b"/"):
                return os.fsdecode(point + path[len(root) :]) or "/"
        return f"[{dev >> 20}:{dev & 0xFFFFF}]{os.fsdecode(path)}"

    def plain(self, mountinfo: bytes) -> Iterable[int]:
        """Ids of the mounts of a mount namespace (text as above) below which every file is called
        there as it canonically is: each is what its file system is named by.
        """
        for mount in _rows(mountinfo):
            rows = self._table.get(mount.dev)
            if rows and rows[0] == (mount.root, mount.point):
                yield mount.id

    def items(self) -> Iterable[tuple[int, tuple[tuple[bytes, bytes], ...]]]:
        """By device: its (root, mount point) rows."""
        return self._table.items()

    def rows(self) -> list[list[object]]:
        """The table as plain data, for the journal; `from_rows` is its inverse."""
        return [[dev, [list(row) for row in rows]] for dev, rows in self._table.items()]

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[int, Iterable[tuple[bytes, bytes]]]]) -> Mounts:
        return cls({dev: tuple((root, point) for root, point in pairs) for dev, pairs in rows})


class Namespace:
    """The mounts of one mount namespace as they change. mounts: the table as it is known now.

    Names are never taken from an agent's own namespace: there it mounts what it likes where it
    likes, and a file would have the name that suits it.
    """

    REMEMBERED = 4096  # unknown devices

    def __init__(self, mounts: Mounts, path: Path = MOUNTINFO) -> None:
        self.mounts, self._path = mounts, path
        self._unknown: set[int] = set()
        self._told = select.poll()
        self._file: BinaryIO | None = None
        with suppress(OSError):
            self._file = path.open("rb")
            self._told.register(self._file, select.POLLPRI | select.POLLERR)
        self._unread = True  # what changed between the reading of `mounts` and now was not told

    def changed(self) -> bool:
        """Reads the table again if the kernel says so; whether it is another one than before."""
        if not self._told.poll(0) and not self._unread:
            return False
        self._unread = False
        self._unknown.clear()
        return self._read()

    def looked_up(self, dev: int) -> bool:
        """For a device that is not in the table: the same, once per device and change."""
        if dev in self.mounts or dev in self._unknown:
            return False
        if len(self._unknown) >= self.REMEMBERED:
            self._unknown.clear()
        self._unknown.add(dev)
        return self._read()

    def _read(self) -> bool:
        before, self.mounts = self.mounts, Mounts.read(self._path)
        return self.mounts != before

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _is_own_root(fields: Sequence[bytes]) -> bool:
    """Whether a mount shows a whole file system or a whole subvolume, and no directory of one."""
    subvolume = b"subvol=" + fields[3]
    return fields[3] == b"/" or subvolume in fields[-1].split(b",")


def _rank(row: tuple[bool, bytes, bytes]) -> tuple[bool, int]:
    own, root, _ = row
    return not own, -len(root) if own else len(root)


def unescape(field: str) -> str:
    """The same, of text with undecodable bytes as surrogate escapes."""
    return os.fsdecode(_unescape(os.fsencode(field)))


def _unescape(field: bytes) -> bytes:
    r"""proc(5) writes space, tab, newline and backslash as \ooo."""
    return field.decode("unicode_escape").encode("latin-1") if b"\\" in field else field
