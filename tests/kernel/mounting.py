"""System calls that mount, for witnesses, and what a process's own table of mounts says of it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.kernel.recording import call

CLONE, MOUNT, UMOUNT2, PIVOT_ROOT, UNSHARE = 56, 165, 166, 155, 272
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, FSPICK = 428, 429, 430, 431, 432, 433
CLONE3, MOUNT_SETATTR = 435, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
NEWNS, NEWUSER = 0x20000, 0x10000000
RDONLY, REMOUNT, BIND, MOVE, REC, PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 18
OPEN_TREE_CLONE, F_EMPTY_PATH = 1, 4
CREATE, RECONFIGURE = 6, 7


def alone() -> None:
    """A mount namespace of the caller's own: nothing that it mounts is seen outside."""
    assert call(UNSHARE, NEWNS) == 0
    assert call(MOUNT, b"none", b"/", 0, REC | PRIVATE, 0) == 0


def points() -> list[str]:
    """The mount points that the caller has, in the order of its mounts."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def bind(source: Path, point: Path) -> int:
    return call(MOUNT, os.fsencode(source), os.fsencode(point), 0, BIND, 0)


def tmpfs(point: Path) -> int:
    return call(MOUNT, b"none", os.fsencode(point), b"tmpfs", 0, 0)


def tree(source: Path) -> int:
    """A descriptor of a copy of what is mounted there, which hangs nowhere yet."""
    found = call(OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | AT_RECURSIVE)
    assert found >= 0, os.strerror(-found)
    return found


def fresh() -> int:
    """A descriptor of a tmpfs that hangs nowhere yet."""
    context = call(FSOPEN, b"tmpfs", 0)
    assert call(FSCONFIG, context, CREATE, 0, 0, 0) == 0
    return call(FSMOUNT, context, 0, 0)


def attach(tree: int, point: Path) -> int:
    """Mounts it; the descriptor, which would keep the mount busy, is closed."""
    found = call(MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(point), F_EMPTY_PATH)
    os.close(tree)
    return found


def umount(point: Path) -> int:
    return call(UMOUNT2, os.fsencode(point), 0)
