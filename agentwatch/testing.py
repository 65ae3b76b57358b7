"""Fakes that ship: records made by hand, a source that replays them, a sink that remembers.

What users test their rules and their log pipelines with, and agentwatch itself. The records are
real ones, byte for byte as the probes write them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentwatch import abi, decoding
from agentwatch.events import NO_PROCESS, Event, ProcessKey
from agentwatch.sinks.frames import Frame
from agentwatch.sinks.reader import read

AGENT = ProcessKey(4242, 1_000_000_000)
"""The process that makes an event where no other is named, and its session."""


class Records:
    """Makes records, numbered as the probes of one CPU number them. Times are ns of the boot."""

    def __init__(
        self,
        process: ProcessKey = AGENT,
        session: ProcessKey = AGENT,
        *,
        time: int = 2_000_000_000,
        step: int = 1_000_000,
        cpu: int = 0,
    ) -> None:
        self._process, self._session, self._cpu = process, session, cpu
        self._time, self._step = time, step
        self._sequences = [0, 0]

    def fork(self, child: ProcessKey, process: ProcessKey | None = None) -> bytes:
        values = {"child_tgid": child.pid, "child_start": child.start}
        return self._record(abi.FORK, process, values, {})

    def exec(
        self,
        path: str,
        argv: tuple[str, ...] = (),
        *,
        process: ProcessKey | None = None,
        parent: ProcessKey = NO_PROCESS,
        asked: str = "",
        cwd: str = "/home/dev/project",
        uid: int = 1000,
        result: int = 0,
        cut: bool = False,
        flags: int = 0,
    ) -> bytes:
        """cut: argv is longer than what is here, and its last token has no end."""
        joined = b"\0".join(map(os.fsencode, argv)) + (b"" if cut or not argv else b"\0")
        values = {"uid": uid, "result": result, "argc": len(argv), "parent_tgid": parent.pid}
        values |= {"parent_start": parent.start, "flags": flags | abi.FLAG_ARGV_CUT * cut}
        values |= {"stdin_kind": abi.STDIN_PIPE}
        strings = {"path": path, "asked": asked or path, "cwd": cwd}
        encoded = {name: os.fsencode(text) for name, text in strings.items()}
        return self._record(abi.EXEC, process, values, encoded | {"argv": joined})

    def exit(self, status: int = 0, process: ProcessKey | None = None) -> bytes:
        """status: as wait(2) gives it."""
        return self._record(abi.EXIT, process, {"status": status}, {})

    def open(
        self,
        path: str,
        *,
        process: ProcessKey | None = None,
        asked: str = "",
        result: int = 3,
        changes: bool = False,
        created: bool = False,
        flags: int = 0,
        dev: int = 0,
    ) -> bytes:
        bits = abi.FLAG_CHANGES if changes or created else abi.FLAG_READS
        bits |= flags | abi.FLAG_CREATED * created
        values = {"result": result, "flags": bits, "path_dev": dev}
        values["open_flags"] = os.O_WRONLY if changes else os.O_RDONLY
        names = {"path": b"" if result < 0 else os.fsencode(path)}
        names["asked"] = os.fsencode(asked or path)
        return self._record(abi.OPEN, process, values, names)

    def change(
        self,
        op: str,
        path: str,
        new_path: str = "",
        *,
        process: ProcessKey | None = None,
        base: str = "/",
        view: str = "",
        found: str = "",
        result: int = 0,
        mode: int = 0,
        flags: int = 0,
        unresolved: int = 0,
    ) -> bytes:
        """path, new_path: as asked, from `base`; of a symbolic link, new_path is its text. view:
        `base` as the process sees it. found: what path leads to, where a link in it was followed.
        """
        number = next(number for number, word in decoding.OPS.items() if word == op)
        values = {"op": number, "result": result, "mode": mode, "unresolved": unresolved}
        values["flags"] = flags | (0 if result < 0 else abi.FLAG_BASE)
        names = {"asked": path, "new_asked": new_path}
        if result >= 0 or flags & abi.FLAG_HOOK:
            begins = "" if base == "/" else base
            names |= {"path": begins, "view": view, "found": found}
            names["new"] = begins if new_path and op != "symlink" else ""
            values["new_dev"] = int(bool(new_path) and op != "symlink")
        encoded = {name: os.fsencode(text) for name, text in names.items()}
        return self._record(abi.CHANGE, process, values, encoded)

    def mount(
        self,
        op: str,
        path: str,
        source: str = "",
        fstype: str = "",
        *,
        process: ProcessKey | None = None,
        found: str = "",
        result: int = 0,
        flags: int = 0,
        unresolved: int = 0,
    ) -> bytes:
        """path, source: as asked; path is absolute, "" of a user namespace. found: as of change."""
        number = next(number for number, word in decoding.OPS.items() if word == op)
        values = {"op": number, "result": result, "unresolved": unresolved}
        based = bool(path) and result >= 0
        values |= {"flags": flags | abi.FLAG_BASE * based, "path_dev": int(based)}
        names = {"asked": path, "source_asked": source, "fstype": fstype, "found": found}
        encoded = {name: os.fsencode(text) for name, text in names.items()}
        return self._record(abi.MOUNT, process, values, encoded)

    def connect(
        self,
        addr: str,
        port: int = 443,
        *,
        process: ProcessKey | None = None,
        result: int = 0,
        syn: bool = False,
        protocol: int = socket.IPPROTO_TCP,
    ) -> bytes:
        """addr: IPv4 or IPv6 in text form, or a unix socket's path (`@name`: abstract)."""
        values: dict[str, int | bytes] = {"port": port, "result": result, "protocol": protocol}
        strings: dict[str, bytes] = {}
        if addr.startswith(("/", "@")):
            values |= {"family": socket.AF_UNIX, "port": 0, "protocol": 0}
            strings["asked"] = os.fsencode(addr.replace("@", "\0", 1))
        else:
            family = socket.AF_INET6 if ":" in addr else socket.AF_INET
            values |= {"family": family, "address": socket.inet_pton(family, addr)}
        return self._record(abi.SYN if syn else abi.CONNECT, process, values, strings)

    def _record(
        self,
        kind: int,
        process: ProcessKey | None,
        values: dict[str, int] | dict[str, int | bytes],
        strings: dict[str, bytes],
    ) -> bytes:
        ring = 0 if kind in (abi.FORK, abi.EXEC, abi.EXIT) else 1
        self._sequences[ring] += 1
        self._time += self._step
        who = process or self._process
        common = {
            "time": self._time,
            "sequence": self._sequences[ring],
            "cpu": self._cpu,
            "tgid": who.pid,
            "tid": who.pid,
            "start": who.start,
            "session_tgid": self._session.pid,
            "session_start": self._session.start,
        }
        return abi.pack(kind, common | values, strings)


class ReplaySource:
    """Gives records in batches, as a drained ring does; then nothing."""

    def __init__(self, records: Iterable[bytes], batch: int = 256) -> None:
        """batch: records in each."""
        self._records = list(records)
        self._batch = batch

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """(records one after the other, how many)."""
        for start in range(0, len(self._records), self._batch):
            part = self._records[start : start + self._batch]
            yield b"".join(part), len(part)

    def events(self) -> Iterator[Event]:
        """The same, decoded; the file system is the root."""
        return map(decoding.decode, self._records)


def replay_journal(directory: Path | str) -> Iterator[Event]:
    """Every event of a journal, in order of time: judge last week's with today's rules."""
    return (entry.event for entry in read(directory) if entry.event is not None)


class RecordingSink:
    """In the place of a sinks.journal.Journal; keeps everything. batches: (raw records, count)."""

    def __init__(self) -> None:
        self.batches: list[tuple[bytes, int]] = []
        self.frames: list[Frame] = []
        self.flushed = 0
        self.closed = False

    def records(self, batch: bytes | memoryview, count: int) -> None:
        self.batches.append((bytes(batch), count))

    def write(self, frame: Frame) -> None:
        self.frames.append(frame)

    def flush(self) -> None:
        self.flushed += 1

    def close(self, reason: str = "ended") -> None:
        self.closed = True
