"""Tells systemd how the daemon is: the sd_notify protocol, a datagram for each thing to say.

Without NOTIFY_SOCKET, as when a person starts the daemon, nothing is sent. Nothing here raises: a
supervisor that does not listen is no reason to stop watching.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

STATUS_BYTES = 2048  # systemd reads 4096 of a message
PATIENCE = 1.0  # s that a change of state waits for room in the supervisor's queue


class Notifier:
    """Speaks to the supervisor named in an environment. What sends says whether it was sent."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._watchdog = _interval(environment)

    def ready(self, status: str = "") -> bool:
        """Started, or done with reloading."""
        return self._send("READY=1" + _status(status), PATIENCE)

    def reloading(self) -> bool:
        """Followed by ready(), whether or not anything came of it."""
        now = time.monotonic_ns() // 1000
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={now}", PATIENCE)

    def stopping(self, status: str = "") -> bool:
        return self._send("STOPPING=1" + _status(status), PATIENCE)

    def status(self, text: str) -> bool:
        """The line that `systemctl status` shows."""
        return self._send(_status(text).lstrip("\n"), 0)

    def watchdog(self) -> bool:
        """Alive; to be said once in every watchdog_interval()."""
        return self._send("WATCHDOG=1", 0)

    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of watchdog(), half of what is allowed; None: none are due."""
        return self._watchdog

    def _send(self, message: str, patience: float) -> bool:
        if not self._address or not message:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(patience)
                sender.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError:
            return False
        return True


def _status(text: str) -> str:
    """As a further line of a message: one line, for a second would be another assignment."""
    line = " ".join(text.split()).encode("utf-8", "replace")[:STATUS_BYTES]
    return "\nSTATUS=" + line.decode("utf-8", "ignore") if line else ""


def _interval(environment: Mapping[str, str]) -> float | None:
    try:
        allowed = int(environment.get("WATCHDOG_USEC", "0"))
        pid = int(environment.get("WATCHDOG_PID", os.getpid()))
        return allowed / 2e6 if allowed > 0 and pid == os.getpid() else None
    except (ValueError, OverflowError):
        return None
