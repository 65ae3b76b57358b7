"""A daemon's start, and what it takes while nothing happens."""

from __future__ import annotations

from bench import daemon_idling, daemon_starting
from bench.daemon_place import place


def measure(seconds: int = daemon_idling.SECONDS) -> None:
    """seconds: of being idle."""
    with place() as here:
        daemon_starting.measure(here)
        daemon_idling.measure(here, seconds)
