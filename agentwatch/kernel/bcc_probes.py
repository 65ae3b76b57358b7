"""The probes of bpf/bcc.c, for kernels that the object of CO-RE does not load on.

They offer what Probes does, with less below: nothing is decided in the kernel, a tag is a process's
and found by its pid, and the kernel is asked about one process at a time, by holding a pidfd of it.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from agentwatch import abi
from agentwatch.errors import KernelError, ProgramRefused
from agentwatch.events import ProcessKey
from agentwatch.kernel.bcc_compiler import COMPILING, GOING_ON, HOOKS, MAPS, PROGRAMS
from agentwatch.kernel.keeping import Keeping
from agentwatch.kernel.libbpf import Map, PerCpuMap, attach_raw, info_of
from agentwatch.kernel.policies import Policies
from agentwatch.kernel.preflight import bcc_lacks
from agentwatch.kernel.probes import Probes, ProgramStats, Sizes, need_root
from agentwatch.kernel.ringbuf import Ring
from agentwatch.known import File
from agentwatch.mounts import Mounts
from agentwatch.policy.levels import BCC

_COMPILER = (sys.executable, "-I", "-m", "agentwatch.kernel.bcc_compiler")
_SESSIONS = 4096  # as in bpf/bcc.c, like _MIRROR
_MIRROR = 32768


class BccLoading:
    """What Loading is: bcc compiles and the kernel verifies, beside whoever made this.

    Raises PermissionDenied without root, KernelError where bcc or the kernel's headers are missing.
    """

    loader = "bcc"
    hooks: frozenset[str] = frozenset()

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes or Sizes()
        need_root()
        lacking = bcc_lacks()
        if lacking is not None:
            raise lacking
        self.descriptors: dict[str, int] = {}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the rest
        self._asking, answering = socket.socketpair()
        with answering:
            self._process = subprocess.Popen(
                [*_COMPILER, str(answering.fileno()), *self._flags()],
                pass_fds=[answering.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
            )

    def _flags(self) -> list[str]:
        return [
            f"-DAGENTWATCH_ABI={abi.ABI}",
            f"-DOBSERVER={os.getpid()}",
            f"-DACTIVITY_PAGES={self.sizes.activity // mmap.PAGESIZE}",
            f"-DLIFECYCLE_PAGES={self.sizes.lifecycle // mmap.PAGESIZE}",
        ]

    def loaded(self) -> Mapping[str, int]:
        """Waits for it: descriptors of PROGRAMS and MAPS. Raises ProgramRefused.

        They are closed by `close`.
        """
        if self._process.returncode is None:
            names = (*PROGRAMS, *MAPS)
            said, found, _, _ = socket.recv_fds(self._asking, 64, len(names))
            self._process.wait()
            self.descriptors = dict(zip(names, found, strict=False))
            if len(found) != len(names):
                raise self._refused(said.decode())
        return self.descriptors

    def _refused(self, what: str) -> ProgramRefused:
        """what: the compiler's answer; "" where it ended without one."""
        self._said.seek(0)
        log = self._said.read().decode(errors="replace")
        lines = [line for line in log.splitlines() if line.strip()]
        wrong = next((line for line in lines if "error:" in line), lines[-1] if lines else "")
        if what in PROGRAMS:
            told = f"the kernel refused the probe {what}"
        elif what == COMPILING or "error:" in wrong:  # some that fail end with a fault
            told = f"bcc cannot compile the probes for this kernel ({wrong.strip()})"
        else:
            told = f"bcc ended with {self._process.returncode} ({wrong.strip()})"
        return ProgramRefused(told, "report it, with what is said above", log[-(64 << 10) :])

    def probes(self, *, identify: bool = False) -> BccProbes:
        """Attached, once that is done. Raises ProgramRefused."""
        return BccProbes(identify=identify, loading=self)

    def close(self) -> None:
        """Ends it, and unloads what is not attached; a second call does nothing."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        self._asking.close()
        self._said.close()
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])


class _NoPolicies(Policies):
    """Where the kernel decides nothing. room: 0."""

    def __init__(self) -> None:
        self.room = 0
        self.no_room = Counter(mark=0, project=0, mount=0)

    def publish(self, image: bytes) -> None:
        raise KernelError(BCC, "use the core loader")

    put_in_force = publish

    def withdraw(self) -> None: ...

    unpublish = refresh = close = withdraw

    def entries(self) -> dict[str, tuple[int, int]]:
        return {}

    def mark(self, image: int, generation: int, agents: int, predicates: int) -> bool:
        return True

    def forget_marks(self, generation: int) -> set[int]:
        return set()

    def unmark(self, images: Iterable[int]) -> None: ...

    def set_project(self, session: ProcessKey, project: str | None) -> None: ...

    def set_mounts(self, table: Mounts) -> None: ...

    def set_known(self, files: Iterable[File]) -> None: ...

    def attach_connect(self, cgroup: Path | None) -> bool:
        return False

    def refused_below(self, cgroup: Path | None) -> bool:
        return True

    def attached(self) -> frozenset[str]:
        return frozenset()


class BccProbes(Probes):
    """Loaded and attached on construction; detached by close, or when the process ends.

    Raises PermissionDenied without root, KernelError for what bcc lacks, ProgramRefused.
    """

    def __init__(
        self,
        *,
        identify: bool = False,
        sizes: Sizes | None = None,
        loading: BccLoading | None = None,
    ) -> None:
        self._loading = loading or BccLoading(sizes)
        self._links: list[int] = []
        try:
            self._begin(dict(self._loading.loaded()), self._loading.sizes)
            self._set("identify", int(identify))
            self._attach_all()
        except BaseException:
            self._loading.close()
            raise

    def _begin(self, found: Mapping[str, int], sizes: Sizes) -> None:
        self._found = found
        self._control = mmap.mmap(found["control"], mmap.PAGESIZE, mmap.MAP_SHARED)
        self._mirror = Map("mirror", found["mirror"], abi.TAG.size, _MIRROR)
        self._sessions = Map("sessions", found["sessions"], abi.SESSION.size, _SESSIONS)
        self._literals = Map("literals", found["literals"], 4, 1024)
        self._set("abi", abi.ABI)
        self._told = Map("told", found["told"], abi.PROCESS.size, 1024)
        self._counters = PerCpuMap("counters", found["counters"], abi.COUNTERS.size, 1)
        self._held: set[ProcessKey] = set()
        self._lock = threading.Lock()
        self._policies = _NoPolicies()
        self.keeping = Keeping(None, None, {}, bool, self._get, self._set)
        self.keeping.problem = "what bcc has loaded ends with who loaded it"
        self._offered = self.hooks = frozenset()
        self.missing = {}
        self.lifecycle = Ring(found["lifecycle"], sizes.lifecycle)
        self.activity = Ring(found["activity"], sizes.activity)

    def _attach_all(self) -> None:
        programs = Map("on", self._found["on"], 4, len(GOING_ON))
        for number, name in enumerate(GOING_ON):
            programs.update(_word(number), _word(self._found[name]))
        for name, tracepoint in HOOKS.items():
            self._links.append(attach_raw(name, tracepoint, self._found[name]))

    def attach_again(self) -> frozenset[str]:
        """Nothing: what is on a raw tracepoint nobody else can detach."""
        return frozenset()

    # Tags and sessions.

    def _process(self, pid: int) -> abi.Process | None:
        """A process as the kernel knows it; None where it is gone.

        Whoever has a pidfd of a process opened is told of it: by the probe at the end of that call.
        """
        try:
            os.close(os.pidfd_open(pid))
        except OSError:
            return None
        told = self._told.lookup(_word(pid))
        return abi.processes(told)[0] if told else None

    def census(self) -> list[abi.Process]:
        """Every process that runs: one whose last thread has ended does not."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [one for one in map(self._process, pids) if one is not None]

    def adopt(self, into: Mapping[ProcessKey, ProcessKey]) -> list[abi.Process]:
        """What they fork meanwhile is found by whoever looks again, as Backfill does."""
        return list(self._adopted(into))

    def _adopted(self, into: Mapping[ProcessKey, ProcessKey]) -> Iterator[abi.Process]:
        for process, session in into.items():
            now, begun = self._process(process.pid), self.session(session)
            if now is None or now.process != process or begun is None:
                continue
            if now.session is not None and now.state != abi.SESSION_PROVISIONAL:
                continue
            with suppress(OSError):  # no room: it is not among those that were tagged
                self._mirror.update(_word(process.pid), abi.tag(session, begun.since, now.process))
            tagged = self._process(process.pid)
            if tagged is not None and tagged.session == session:
                yield tagged

    def look(self, looking: bool) -> None:
        """Nobody notes who forks whom: what was forked meanwhile is found by its parent."""

    def reconcile(self) -> list[abi.Process]:
        """Nothing: kernels that lack CO-RE's needs skip no runs of tracing programs."""
        return []

    def session_of(self, pidfd: int) -> ProcessKey | None:
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pid" and int(value) > 0:
                found = self._process(int(value))
                return found.session if found else None
        return None

    # What there is to know.

    def attached(self) -> frozenset[str]:
        return frozenset(HOOKS) if self._links else frozenset()

    @property
    def lossy(self) -> bool:
        return False

    def wanted(self) -> tuple[str, ...]:
        return tuple(HOOKS)

    def stats(self) -> dict[str, ProgramStats]:
        found = {name: info_of(name, self._found[name]) for name in HOOKS}
        return {
            name: ProgramStats(info.run_cnt, info.run_time_ns / 1e9, info.recursion_misses)
            for name, info in found.items()
        }

    def close(self) -> None:
        while self._links:
            os.close(self._links.pop())
        for ring in (self.lifecycle, self.activity):
            with suppress(BufferError):  # records still held by a reader: freed with them
                ring.close()
        self._control.close()
        self._loading.close()


def _word(value: int) -> bytes:
    return value.to_bytes(4, "little")
