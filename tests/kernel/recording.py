"""Witnesses and what the probes saw of them.

A witness is a child process that waits at a gate until it is tagged, then acts, and tells the truth
about what it did: one JSON value a line on its standard output, by `tell` or printed by a program
of programs/. A recording is what the probes recorded meanwhile; the tests compare the two.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from agentwatch import abi, decoding
from agentwatch.events import Change, Connect, Event, Exec, Exit, Fork, Mount, Open, ProcessKey
from agentwatch.kernel.links import LOOKED_UP, Links
from agentwatch.kernel.probes import Probes
from agentwatch.mounts import Mounts

PATIENCE = 120.0  # s; an emulated machine under load needs most of it
QUIET = 0.1  # s without a record: there will be none
RAISED = 99  # exit code of a witness whose act raised; what it was is on standard error

NAME_TO_HANDLE_AT = 303

Act = Callable[[], object]
Kind = TypeVar("Kind", bound=Event)
_libc = ctypes.CDLL(None, use_errno=True)  # opened here: a witness must not open anything for it


def call(number: int, *arguments: Any) -> int:
    """A raw system call: its result, or -errno. bytes are passed by their address."""
    ctypes.set_errno(0)
    words = [a if isinstance(a, bytes | ctypes.Array) else ctypes.c_long(a) for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result


def handle_of(directory: int, name: bytes) -> ctypes.Array[ctypes.c_char]:
    """The struct file_handle of a file, with room for the largest."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount = ctypes.create_string_buffer(4)
    assert call(NAME_TO_HANDLE_AT, directory, name, handle, mount, 0) == 0
    return handle


def tell(value: object) -> None:
    """In a witness: one line of truth."""
    os.write(1, json.dumps(value).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Record:
    """One record, decoded, with the bits that events do not carry."""

    event: Event
    flags: int
    ring: str


@dataclass(frozen=True, slots=True)
class Recording:
    """All records of one session, by time, beside what its processes told."""

    session: ProcessKey
    status: int
    told: tuple[Any, ...]
    records: tuple[Record, ...]

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [r.event for r in self.records if isinstance(r.event, kind)]

    @property
    def opens(self) -> list[Open]:
        return self.of(Open)

    @property
    def changes(self) -> list[Change]:
        return self.of(Change)

    @property
    def mounts(self) -> list[Mount]:
        return self.of(Mount)

    @property
    def execs(self) -> list[Exec]:
        return self.of(Exec)

    @property
    def forks(self) -> list[Fork]:
        return self.of(Fork)

    @property
    def exits(self) -> list[Exit]:
        return self.of(Exit)

    @property
    def connects(self) -> list[Connect]:
        """Of connect(2) alone; `syns` are apart."""
        return [event for event in self.of(Connect) if not event.syn]

    @property
    def syns(self) -> list[Connect]:
        return [event for event in self.of(Connect) if event.syn]

    def opened(self, asked: str) -> Open:
        """The one open that asked for this name."""
        (found,) = [event for event in self.opens if event.asked == asked]
        return found


@dataclass(slots=True)
class Witness:
    """A child at its gate. Killed at the end of the test if it is still there."""

    pid: int
    gate: int
    telling: int
    session: ProcessKey | None = None
    status: int | None = None
    _heard: bytearray = field(default_factory=bytearray)

    def go(self) -> None:
        os.write(self.gate, b"!")

    @property
    def told(self) -> tuple[Any, ...]:
        return tuple(json.loads(line) for line in bytes(self._heard).splitlines())

    def hear(self, lines: int) -> tuple[Any, ...]:
        """Waits until this many lines were told; all of them."""
        return self._listen(lambda: self._heard.count(b"\n") >= lines)

    def finish(self) -> int:
        """Waits until it and all that share its standard output are gone; its wait status."""
        self._listen(lambda: False)
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        assert self.status != RAISED << 8, "the witness raised: see standard error"
        return self.status

    def _listen(self, enough: Callable[[], bool]) -> tuple[Any, ...]:
        limit = time.monotonic() + PATIENCE
        while not enough():
            ready, _, _ = select.select([self.telling], [], [], limit - time.monotonic())
            assert ready, f"the witness is stuck; it told {bytes(self._heard)!r}"
            heard = os.read(self.telling, 65536)
            if not heard:
                break
            self._heard += heard
        return self.told

    def close(self) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.gate)
        os.close(self.telling)


class Gate:
    """Where witnesses wait, after they were begun, until the test lets them all pass."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        os.read(self._read, 1)

    def fileno(self) -> int:
        """To wait at by reading a byte."""
        return self._read

    def open(self) -> None:
        os.write(self._write, bytes(64))

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def witness(act: Act) -> Iterator[Witness]:
    """A child that does `act` once its gate opens; told nothing, tagged by nobody."""
    gate_read, gate_write = os.pipe()
    telling_read, telling_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(gate_write)
        os.close(telling_read)
        _bear(act, gate_read, telling_write)
    os.close(gate_read)
    os.close(telling_write)
    child = Witness(pid, gate_write, telling_read)
    try:
        yield child
    finally:
        child.close()


def _bear(act: Act, gate: int, telling: int) -> NoReturn:
    code = RAISED
    try:
        os.dup2(telling, 1)
        os.close(telling)
        if os.read(gate, 1):
            os.close(gate)
            act()
            code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


class Recorder:
    """Tags witnesses and collects what the probes record of them."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self.mounts = Mounts.read()
        self.links = Links(self.mounts.name)
        self._records: list[Record] = []

    def record(self, act: Act) -> Recording:
        """What one witness did, told beside recorded."""
        with witness(act) as child:
            self.tag(child)
            child.go()
            child.finish()
            return self.recording(child)

    def tag(self, child: Witness) -> ProcessKey:
        child.session = self.probes.tag(child.pid)
        return child.session

    def recording(self, child: Witness) -> Recording:
        """Of a witness that has finished, and of everything it started."""
        assert child.session is not None
        assert child.status is not None
        self.settle(child.session)
        mine = [r for r in self._records if r.event.session == child.session]
        mine.sort(key=lambda r: r.event.time)
        return Recording(child.session, child.status, child.told, tuple(mine))

    def settle(self, session: ProcessKey) -> None:
        """Collects until every process of the session has ended, or nothing more comes."""
        heard = time.monotonic()
        while not self._ended(session) and time.monotonic() - heard < QUIET:
            if self.collect():
                heard = time.monotonic()
            else:
                time.sleep(0.002)

    def _ended(self, session: ProcessKey) -> bool:
        mine = [r.event for r in self._records if r.event.session == session]
        begun = {session} | {event.child for event in mine if isinstance(event, Fork)}
        return begun == {event.process for event in mine if isinstance(event, Exit)}

    def collect(self) -> list[Record]:
        """The records that came since the last look, lifecycle first."""
        found = []
        self.links.forget()
        for name, ring in (
            ("lifecycle", self.probes.lifecycle),
            ("activity", self.probes.activity),
        ):
            for raw in ring.records():
                _, kind, flags = abi.peek(raw)
                if kind in LOOKED_UP:
                    raw = self.links.looked_up(raw)
                found.append(Record(decoding.decode(raw, self.mounts.name), flags, name))
            ring.release()
        self._records += found
        return found

    def quiet(self) -> list[Record]:
        """Everything recorded up to now, of whatever session, once nothing more comes."""
        found, heard = [], time.monotonic()
        while time.monotonic() - heard < QUIET:
            new = self.collect()
            if new:
                found += new
                heard = time.monotonic()
            time.sleep(0.002)
        return found
