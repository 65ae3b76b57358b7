"""Room that decisions still have when the disk is full: a file whose blocks are allocated already.

It is not given back to be taken again, for whoever fills the disk would be quicker: the file itself
becomes the next segment of the chain.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from agentwatch.sinks import segments

NAME = "reserve"
SIZE = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)

_OPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def fitting(directory: int, size: int) -> int:
    """As much of `size` as a disk can spare: a sixteenth of it at most, and whole pages."""
    told = os.fstatvfs(directory)
    return min(size, told.f_blocks * told.f_frsize // 16 & ~4095)


def make(directory: int, size: int, spare: int = 0) -> bool:
    """Have a reserve of `size` bytes; False where there is no room for it and `spare` bytes more.

    Where the file system cannot allocate, the C library writes zeros.
    """
    try:
        fd = _open(directory)
    except OSError:
        return False
    before = os.fstat(fd).st_size
    try:
        os.posix_fallocate(fd, 0, size + spare)
        os.ftruncate(fd, size)
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, before)
        if before < size:
            remove(directory)
        return False
    finally:
        os.close(fd)
    return True


def _open(directory: int) -> int:
    """The file as it is, or a new one. Raises OSError."""
    with suppress(FileNotFoundError):
        status = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
        # One that has two names is a segment already, of a writer that was killed in take().
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return os.open(NAME, _OPEN, dir_fd=directory)
        os.unlink(NAME, dir_fd=directory)
    fd = os.open(NAME, _OPEN | os.O_CREAT | os.O_EXCL, segments.FILE_MODE, dir_fd=directory)
    segments.share(fd, directory)
    return fd


def take(directory: int, number: int, replace: bool) -> tuple[int, int] | None:
    """(descriptor, size) of the reserve as segment `number`, to be written from its start.

    replace: there is an empty one of that number. None where there is no reserve; one whose new
    name finds no room is removed, which makes some.
    """
    name = segments.segment_name(number)
    try:
        fd = os.open(NAME, _OPEN, dir_fd=directory)
    except OSError:
        return None
    try:
        if replace:
            os.rename(NAME, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:  # fails where a name is taken, unlike rename
            os.link(NAME, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.close(fd)
        remove(directory)
        return None
    remove(directory)
    return fd, os.fstat(fd).st_size


def remove(directory: int) -> None:
    """Never fails: it is nobody's record of anything."""
    with suppress(OSError):
        os.unlink(NAME, dir_fd=directory)
