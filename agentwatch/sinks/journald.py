"""Tells systemd's journal what the daemon says, with fields: journald's own protocol.

Only where our stderr is the journal's (systemd says so in JOURNAL_STREAM). Nothing here raises or
waits: what is not taken is counted, and the journal of our own has all of it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from agentwatch.engine import Verdict as Decision
from agentwatch.errors import AgentwatchError
from agentwatch.events import NO_PROCESS, Event, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.sinks import frames, lines
from agentwatch.sinks.chain import Head
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.escape import utf8
from agentwatch.sinks.host import Host
from agentwatch.sinks.jsonl import is_finding

SOCKET = Path("/run/systemd/journal/socket")
VALUE_MAX = 4096  # bytes of a field: a datagram holds about 200 KiB
BURST = 100  # messages in a second; the rest of it is counted
ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # syslog's
PRIORITIES = {"critical": 2, "high": ERROR, "medium": WARNING, "low": NOTICE}
"""Of a finding that was acted on, by its rule's severity."""

TOLD = (frames.Reload, frames.Notice, frames.Resumed, frames.Retired)


class Journald:
    """A sink. dropped: messages that were not taken, or were too many."""

    def __init__(self, boot_id: str, path: Path = SOCKET) -> None:
        self._boot_id, self._path = boot_id, os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._second, self._sent, self._skipped = 0.0, 0, 0
        self.dropped = 0

    def close(self) -> None:
        self._socket.close()

    def tell(self, text: str | AgentwatchError) -> None:
        """A line for whoever reads the service's log."""
        if isinstance(text, AgentwatchError):
            message = f"{text.message}; try: {text.remedy}" if text.remedy else text.message
            self._send(message, ERROR, {"AGENTWATCH_REMEDY": text.remedy})
            for one in getattr(text, "diagnostics", ())[: BURST // 2]:
                where = {"CODE_FILE": one.file, "CODE_LINE": str(one.line)}
                place = f"{one.file}:{one.line}:{one.column}"
                more = {"AGENTWATCH_ERROR": one.code, **where}
                self._send(f"{place}: {one.severity}[{one.code}]: {one.message}", ERROR, more)
        else:
            self._send(text, NOTICE, {})

    def anchor(self, chain: str, head: Head) -> None:
        """Where the chain stands: what is kept elsewhere shows a journal that was cut."""
        known = f"{chain}:{head.sequence}:{head.hash.hex()}"
        self._send(f"journal head {known}", INFO, {"AGENTWATCH_HEAD": known})

    # As a sink.

    def event(self, event: Event, actor: Actor, verdict: Decision) -> None:
        """Events are in the journal of our own."""

    def frame(self, frame: frames.Frame) -> None:
        """Findings, losses and what changes how is watched."""
        if not (is_finding(frame) or isinstance(frame, TOLD)):
            return
        line = lines.line(Entry(chain="", host=Host(), number=0, wall=0, frame=frame))
        if line is None:
            return
        text = " ".join(part for part in (line.what, line.verdict) if part)
        self._send(text, _priority(frame), self._fields(frame))

    def _fields(self, frame: frames.Frame) -> Mapping[str, str]:
        found = {"AGENTWATCH_FRAME": frames.type_name(frames.NUMBERS[type(frame)])}
        for name in ("rule", "action", "outcome", "level", "severity", "kind", "agent", "stage"):
            found[f"AGENTWATCH_{name.upper()}"] = str(getattr(frame, name, ""))
        session = getattr(frame, "session", NO_PROCESS)
        if session != NO_PROCESS:
            found["AGENTWATCH_SESSION"] = session.id(self._boot_id)
        process = getattr(frame, "process", NO_PROCESS)
        if isinstance(process, ProcessKey) and process != NO_PROCESS:
            found["AGENTWATCH_PID"] = str(process.pid)
        if isinstance(frame, frames.Verdict):
            found |= {"AGENTWATCH_BECAUSE": frame.because, "AGENTWATCH_WHAT": frame.what}
        return found

    # How.

    def _send(self, message: str, priority: int, fields: Mapping[str, str]) -> None:
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._sent = now, 0
            skipped, self._skipped = self._skipped, 0
            if skipped:
                self._put(f"{skipped} messages more than {BURST} a second are left out", WARNING)
        if self._sent >= BURST:
            self._skipped += 1
            self.dropped += 1
            return
        self._sent += 1
        self._put(message, priority, fields)

    def _put(self, message: str, priority: int, fields: Mapping[str, str] | None = None) -> None:
        known = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "agentwatch"}
        try:
            self._socket.sendto(encoded(known | dict(fields or {})), self._path)
        except OSError:
            self.dropped += 1


def encoded(fields: Mapping[str, str]) -> bytes:
    """A datagram of journald's protocol: each value with its length, so that none ends another."""
    parts = []
    for name, value in fields.items():
        data = utf8(value).encode()[:VALUE_MAX]
        if data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data))
    return b"".join(parts)


def here(boot_id: str, stream: str | None = None) -> Journald | None:
    """The journal, where it is what our stderr writes to; else None: a person looks at it.

    stream: JOURNAL_STREAM, "DEVICE:INODE" of what systemd gave us.
    """
    stream = os.environ.get("JOURNAL_STREAM", "") if stream is None else stream
    try:
        ours = os.fstat(2)
    except OSError:
        return None
    if stream != f"{ours.st_dev}:{ours.st_ino}" or not SOCKET.exists():
        return None
    return Journald(boot_id)


def _priority(frame: frames.Frame) -> int:
    if isinstance(frame, frames.Verdict):
        acted = frame.outcome not in ("alerted", "observed")
        return PRIORITIES.get(frame.severity, WARNING) if acted else NOTICE
    if isinstance(frame, frames.Gap | frames.Kill) or (
        isinstance(frame, frames.Reload) and not frame.ok
    ):
        return ERROR
    return NOTICE
