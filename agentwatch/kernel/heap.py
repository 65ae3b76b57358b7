"""The C library's heap in a process that lives long.

Rules are read in threads, and each would have a heap of its own that keeps what reading once took:
three reloads and a daemon has twice the memory it needs.
"""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # malloc.h: M_ARENA_MAX


def share() -> None:
    """One heap for all threads. To be called before there is a second one.

    A C library that knows no such thing (musl) has one anyhow.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """What is free goes back to the kernel."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
