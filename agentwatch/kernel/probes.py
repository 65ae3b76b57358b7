"""The probes of bpf/agentwatch.bpf.c: load, attach, tag, read, count."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch import abi
from agentwatch.errors import KernelError, PermissionDenied
from agentwatch.events import ProcessKey
from agentwatch.kernel.libbpf import Object
from agentwatch.kernel.ringbuf import Ring

OBJECT = Path(__file__).parent.parent / "data" / "agentwatch.bpf.o"

# In this order: a child must be tagged before anything it does can be seen.
HOOKS = (
    "process_fork",
    "process_exit",
    "process_exec",
    "tcp_syn",
    "sys_exit",
)
ITERATORS = ("adopt", "reconcile")  # run on request, over all tasks
_KEY = bytes(4)  # of the only entry of an array


@dataclass(frozen=True, slots=True)
class ProgramStats:
    """runs and seconds grow only while kernel.bpf_stats_enabled; misses always."""

    runs: int
    seconds: float
    misses: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Room of the maps: rings in bytes (powers of two), the others in entries."""

    activity: int = 16 << 20
    lifecycle: int = 4 << 20
    mirror: int = 32768


def _need_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(
            "loading probes needs root", "run it with sudo, or through `agentwatch run`"
        )


class Probes:
    """Loaded and attached on construction; detached by close, or when the process ends.

    identify: also put provisional tags on untagged processes whose names look like an identity's.
    Raises PermissionDenied without root, ProgramRefused when the kernel or its verifier refuses.
    """

    def __init__(self, *, identify: bool = False, sizes: Sizes | None = None) -> None:
        _need_root()
        if not OBJECT.exists():
            raise KernelError(f"{OBJECT.name} is missing: it was not built", "make")
        sizes = sizes or Sizes()
        self._object = Object(OBJECT)
        try:
            self._load(sizes, identify)
        except BaseException:
            self._object.close()
            raise

    def _load(self, sizes: Sizes, identify: bool) -> None:
        bpf = self._object
        for name in ("activity", "lifecycle", "mirror"):
            bpf.resize(name, getattr(sizes, name))
        bpf.load()
        self._control = bpf.memory(".data")
        found = self._get("abi")
        if found != abi.ABI:
            raise KernelError(f"the probes speak ABI {found}, this agentwatch {abi.ABI}", "make")
        self._set("identify", int(identify))
        self._mirror = bpf.map("mirror")
        self._sessions = bpf.map("sessions")
        self._literals = bpf.map("literals")
        self._counters = bpf.per_cpu_map("counters")
        self.lifecycle = Ring(bpf.map("lifecycle").fd, sizes.lifecycle)
        self.activity = Ring(bpf.map("activity").fd, sizes.activity)
        for name in (*HOOKS, *ITERATORS):
            bpf.attach(name)

    def _cell(self, name: str) -> memoryview:
        """A field of aw_control as one word, so that it is read and written whole."""
        field = next(f for f in abi.CONTROL.fields if f.name == name)
        if field.type == "u64":
            return memoryview(self._control)[field.offset : field.offset + 8].cast("Q")
        return memoryview(self._control)[field.offset : field.offset + 4].cast("I")

    def _set(self, name: str, value: int) -> None:
        self._cell(name)[0] = value

    def _get(self, name: str) -> int:
        return int(self._cell(name)[0])

    # Tags and sessions.

    def tag(self, pid: int) -> ProcessKey:
        """Begins a confirmed session with a process and all its threads.

        Raises ProcessLookupError when there is no such process, KernelError when the maps are full.
        """
        self._set("adopt", pid)
        self._set("adopted", 0)
        self._object.iterate("adopt")
        start = self._get("adopted")
        if start:
            return ProcessKey(pid, start)
        os.kill(pid, 0)
        raise KernelError(f"process {pid} could not be tagged", "agentwatch doctor")

    def confirm(self, session: ProcessKey) -> None:
        """Makes a provisional session one that is acted on."""
        self._sessions.update(abi.session_key(session), abi.session_value(abi.SESSION_CONFIRMED))

    def release(self, session: ProcessKey) -> None:
        """Takes the tag off every process of a session."""
        self._sessions.delete(abi.session_key(session))

    def set_literals(self, literals: Iterable[bytes]) -> None:
        """The literal components of all identities (Engine.literals); replaces the ones before."""
        wanted = {literal.ljust(abi.LITERAL_MAX, b"\0") for literal in literals}
        for stale in set(self._literals.keys(abi.LITERAL_MAX)) - wanted:
            self._literals.delete(stale)
        for literal in wanted:
            self._literals.update(literal, bytes(4))

    def wake_for(self, kinds: Iterable[int]) -> None:
        """The kinds of records that wake the reader instead of waiting for its next poll."""
        self._set("wake_kinds", sum(1 << kind for kind in kinds))

    def reconcile(self) -> None:
        """Tags children that skipped runs of the fork probe left out, generation by generation."""
        before = -1
        while (now := self.counters().reconciled) != before:
            before = now
            self._object.iterate("reconcile")

    # What there is to know.

    def counters(self) -> abi.Counters:
        return abi.counters(self._counters.values(_KEY))

    def attached(self) -> frozenset[str]:
        return self._object.attached & frozenset(HOOKS)

    def stats(self) -> dict[str, ProgramStats]:
        """Of the program of every hook."""
        found = {}
        for hook in HOOKS:
            info = self._object.info(hook)
            found[hook] = ProgramStats(info.run_cnt, info.run_time_ns / 1e9, info.recursion_misses)
        return found

    def tagged_pids(self, session: ProcessKey | None = None) -> list[int]:
        """Processes that hold a tag in the mirror: of one session, or of all, ended ones too."""
        wanted = b"" if session is None else abi.session_key(session)
        found = []
        for key in self._mirror.keys(4):
            tag = self._mirror.lookup(key)
            if tag is not None and tag.startswith(wanted):
                found.append(int.from_bytes(key, "little"))
        return found

    def room(self) -> dict[str, tuple[int, int]]:
        """(entries or bytes in use, capacity) of the maps that can fill up."""
        sessions = sum(1 for _ in self._sessions.keys(abi.SESSION_KEY.size))
        return {
            "mirror": (len(self.tagged_pids()), self._mirror.max_entries),
            "sessions": (sessions, self._sessions.max_entries),
            "activity": (self.activity.pending, self.activity.size),
            "lifecycle": (self.lifecycle.pending, self.lifecycle.size),
        }

    def close(self) -> None:
        for ring in (self.lifecycle, self.activity):
            with suppress(BufferError):  # records still held by a reader: freed with them
                ring.close()
        self._control.close()
        self._object.close()
