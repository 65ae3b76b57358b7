"""Whose journal, and its clocks: events carry CLOCK_BOOTTIME, people read the time of day."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One boot of one machine. offset: ns to add to CLOCK_BOOTTIME for ns since the epoch."""

    boot_id: str = ""
    name: str = ""
    offset: int = 0

    def wall(self, time: int) -> int:
        """ns since the epoch for ns of CLOCK_BOOTTIME."""
        return time + self.offset


def this_host() -> Host:
    """Where we run, by the clocks at this moment."""
    offset = time.time_ns() - now()
    return Host(boot_id=read_boot_id(), name=socket.gethostname(), offset=offset)


def now() -> int:
    """ns of CLOCK_BOOTTIME, the clock of the probes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_boot_id() -> str:
    """The kernel's id of this boot; "" where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
