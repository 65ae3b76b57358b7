"""The probes of bpf/agentwatch.bpf.c: load, attach, tag, read, count."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from agentwatch import abi
from agentwatch.errors import KernelError, PermissionDenied, ProgramRefused
from agentwatch.events import ProcessKey
from agentwatch.kernel import lsm
from agentwatch.kernel.keeping import Keeping
from agentwatch.kernel.libbpf import Object
from agentwatch.kernel.pins import Pins
from agentwatch.kernel.policies import CONNECT_HOOKS, Policies
from agentwatch.kernel.ringbuf import Ring
from agentwatch.known import File
from agentwatch.mounts import Mounts

OBJECT = Path(__file__).parent.parent / "data" / "agentwatch.bpf.o"

# In this order: a child must be tagged before anything it does can be seen.
HOOKS = (
    "process_fork",
    "process_exit",
    "process_exec",
    "tcp_syn",
    "sys_exit",
)
ITERATORS = ("census", "adopt", "reconcile", "refresh")  # run on request, over all tasks
PREPARATIONS = ("find_symbols", "find_homes")  # run once
HELD = frozenset({abi.SESSION_FROZEN, abi.SESSION_ENDING})
_KEY = bytes(4)  # of the only entry of an array


def _is_lasting(program: str) -> bool:
    return program not in ITERATORS


@dataclass(frozen=True, slots=True)
class ProgramStats:
    """runs and seconds grow only while kernel.bpf_stats_enabled; misses always."""

    runs: int
    seconds: float
    misses: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Room of the maps: rings and policy in bytes (powers of two), the others in entries."""

    activity: int = 16 << 20
    lifecycle: int = 4 << 20
    mirror: int = 32768
    policy: int = 16 << 20


def need_root() -> None:
    """Raises PermissionDenied."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "loading probes needs root", "run it with sudo, or through `agentwatch run`"
        )


def _opened(sizes: Sizes, hooks: frozenset[str], pins: Pins | None) -> Object:
    """Ready to be loaded. hooks: the programs of lsm.HOOKS that are."""
    if not OBJECT.exists():
        raise KernelError(f"{OBJECT.name} is missing: it was not built", "make")
    bpf = Object(OBJECT)
    try:
        for name in ("activity", "lifecycle", "mirror"):
            bpf.resize(name, getattr(sizes, name))
        Policies.prepare(bpf, sizes.policy)
        if pins is not None:
            pins.fit(bpf, _layout(sizes))
            bpf.set_constants(".rodata.instance", pins.instance.to_bytes(4, "little"))
        bpf.only(frozenset(bpf.programs) - (frozenset(lsm.HOOKS) - hooks))
    except BaseException:
        bpf.close()
        raise
    return bpf


def _layout(sizes: Sizes) -> dict[str, object]:
    """What policies in pinned maps must be laid out as."""
    return {"image": abi.POLICY_ABI, "room": sizes.policy}


class Loading:
    """The object of Probes while the kernel verifies it, in a thread, beside whoever made this.

    Only the load is in the thread: a thread waits for the interpreter's lock after each call, and
    may have it only every few ms where somebody else is busy.
    hooks: programs of the preventing tier, of which one that the verifier refuses is left out.
    refused: those, and what was said. pins: what is there to go on with, closed with this.
    Raises PermissionDenied without root, ProgramRefused where it cannot be opened.
    """

    loader = "core"

    def __init__(self, sizes: Sizes | None = None, pins: Pins | None = None) -> None:
        self.sizes, self.pins = sizes or Sizes(), pins
        need_root()
        self.hooks = lsm.programs()
        self.refused: dict[str, str] = {}
        self._object = _opened(self.sizes, self.hooks, pins)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._load, name="load")
        self._thread.start()

    def _load(self) -> None:
        try:
            while not self._is_loaded():
                self._object = _opened(self.sizes, self.hooks, self.pins)
        except Exception as error:  # raised to whoever wants what was loaded
            self._error = error

    def _is_loaded(self) -> bool:
        """False where it is worth another try, without what was refused now."""
        try:
            self._object.load()
            return True
        except ProgramRefused as error:
            refused = lsm.refused(error.log) & self.hooks
            if not refused:
                raise
            self.refused |= dict.fromkeys(refused, error.log)
            self.hooks -= refused
            self._object.close()
            return False

    def loaded(self) -> Object:
        """Waits for it. Raises ProgramRefused when the kernel or its verifier refuses."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._object

    def probes(self, *, identify: bool = False) -> Probes:
        """Attached, once they are loaded. Raises ProgramRefused."""
        return Probes(identify=identify, loading=self)

    def close(self) -> None:
        """Waits for it and unloads it, whatever became of it."""
        self._thread.join()
        self._object.close()


class Probes:
    """Loaded and attached on construction; detached by close, or when the process ends.

    identify: also put provisional tags on untagged processes whose names look like an identity's,
    and begin with looking for those that run already (`look`). loading: what was begun before; the
    sizes are its own then. hooks: the programs of lsm.HOOKS that are attached. missing: the hooks
    that should have a program and have none, and why.
    Raises PermissionDenied without root, ProgramRefused when the kernel or its verifier refuses.
    """

    def __init__(
        self,
        *,
        identify: bool = False,
        sizes: Sizes | None = None,
        loading: Loading | None = None,
    ) -> None:
        loading = loading or Loading(sizes)
        try:
            self._object = loading.loaded()
            self._attach(loading, identify)
        except BaseException:
            loading.close()
            raise

    def _attach(self, loading: Loading, identify: bool) -> None:
        bpf, sizes = self._object, loading.sizes
        self._control = bpf.memory(".data")
        found = self._get("abi")
        if found != abi.ABI:
            raise KernelError(f"the probes speak ABI {found}, this agentwatch {abi.ABI}", "make")
        layout = _layout(sizes)
        self.keeping = Keeping(bpf, loading.pins, layout, _is_lasting, self._get, self._set)
        self._set("identify", int(identify))
        self._set("looking", int(identify))
        self._mirror = bpf.map("mirror")
        self._sessions = bpf.map("sessions")
        self._tags = bpf.map("tags")
        self._origins = bpf.map("origins")
        self._adoptees = bpf.map("adoptees")
        self._held: set[ProcessKey] = set()
        self._lock = threading.Lock()  # states are changed from beside the loop, too
        self._literals = bpf.map("literals")
        self._counters = bpf.per_cpu_map("counters")
        self.lifecycle = Ring(bpf.map("lifecycle").fd, sizes.lifecycle)
        self.activity = Ring(bpf.map("activity").fd, sizes.activity)
        self._policies = Policies(bpf, sizes.policy, self._set, self.keeping)
        if self.keeping.inherited:
            self.keeping.waiting = self.lifecycle.waiting + self.activity.waiting
            self._held |= {key for key, one in self.sessions().items() if one.state in HELD}
        self.set_mounts(Mounts.read())
        for name in PREPARATIONS:
            bpf.run(name)
        for name in (*HOOKS, *ITERATORS):
            bpf.attach(name)
        threading.Thread(target=int, name="fork").start()  # and the probes know what preempts them
        self._offered = loading.hooks | loading.refused.keys()
        self.missing = {
            hook: "this kernel has no such hook"
            for hook in lsm.HOOKS_NEEDED - self._offered
            if loading.hooks
        }
        for hook, log in loading.refused.items():
            self.missing[hook] = f"this kernel's verifier refuses it: {lsm.reason(log)}"
        self.hooks = frozenset(name for name in loading.hooks if self._prevents(name))

    def images(self) -> dict[int, int]:
        """By pid: ns of the exec that made what a tagged process runs, or of its own fork."""
        found = {}
        for key in list(self._mirror.keys(4)):
            if value := self._mirror.lookup(key):
                found[int.from_bytes(key, "little")] = abi.image_of_tag(value)
        return found

    def project(self, session: ProcessKey) -> str:
        """As the kernel has it; "" for none."""
        return self._policies.project(session)

    def _prevents(self, hook: str) -> bool:
        """Attaches a program of the preventing tier; without it, rules are worth less."""
        try:
            self._object.attach(hook)
        except ProgramRefused as error:
            self.missing[hook] = error.message
            return False
        return True

    def attach_again(self) -> frozenset[str]:
        """Of what somebody has detached since: the programs that are attached again.

        Those that cannot be are in `missing`, and no longer in `hooks`.
        """
        again = set()
        lost = {*HOOKS, *self.hooks} - self._object.attached - self.missing.keys()
        for name in sorted(lost):
            if self.keeping.regain(name):  # it was never detached
                continue
            try:
                self.keeping.unlink(name)
                self._object.attach_again(name)
                self.keeping.link(name)
                again.add(name)
            except (KernelError, OSError) as error:
                self.hooks -= {name}
                self.missing[name] = f"it was detached: {getattr(error, 'message', error)}"
        return frozenset(again)

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
        found = [one.process for one in self.census() if one.process.pid == pid]
        if not found:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        session = found[0]
        self.begin(session)
        if session not in (one.process for one in self.adopt({session: session})):
            self.release(session)
            os.kill(pid, 0)
            raise KernelError(f"process {pid} could not be tagged", "agentwatch doctor")
        return session

    def begin(self, session: ProcessKey) -> None:
        """A confirmed session that nobody belongs to yet. Raises KernelError when there is no room.

        Tags of a session of the same key that is over do not count in the new one.
        """
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        value = abi.Session(abi.SESSION_CONFIRMED, now).pack()
        try:
            self._sessions.update(abi.session_key(session), value)
        except OSError as error:
            raise KernelError(f"no room for one more session: {error}", "end some agents") from None

    def adopt(self, into: Mapping[ProcessKey, ProcessKey]) -> list[abi.Process]:
        """Tags processes (process -> the session it is to belong to) that have no tag yet.

        While looking, also those that descend from them. Those that were tagged now.
        """
        for process, session in into.items():
            self._adoptees.update(abi.session_key(process), abi.session_key(session))
        adopted = abi.processes(self._object.iterate("adopt"))
        if not self._get("looking"):
            for process in into:
                self._adoptees.delete(abi.session_key(process))
        return adopted

    def look(self, looking: bool) -> None:
        """Whether it is noted who forks whom, so that what comes from an adopted one is tagged."""
        self._set("looking", int(looking))
        if not looking:
            for key in list(self._adoptees.keys(abi.SESSION_KEY.size)):
                self._adoptees.delete(key)
            for key in list(self._origins.keys(4)):
                self._origins.delete(key)

    def census(self) -> list[abi.Process]:
        """Every process that runs: one whose last thread has ended does not."""
        return abi.processes(self._object.iterate("census"))

    def session(self, session: ProcessKey) -> abi.Session | None:
        """What the kernel has about a session; None when it is over."""
        value = self._sessions.lookup(abi.session_key(session))
        return abi.session(value) if value else None

    def sessions(self) -> dict[ProcessKey, abi.Session]:
        """Those that are not over, the provisional ones included."""
        keys = map(abi.key_of_session, self._sessions.keys(abi.SESSION_KEY.size))
        return {key: found for key in list(keys) if (found := self.session(key)) is not None}

    def session_of(self, pidfd: int) -> ProcessKey | None:
        """The session that a process is tagged with; None for nobody's, or when it is gone."""
        tag = self._tags.lookup(pidfd.to_bytes(4, "little"))
        if tag is None:
            return None
        session = abi.key_of_session(tag[: abi.SESSION_KEY.size])
        since = int.from_bytes(tag[abi.SESSION_KEY.size : abi.SESSION_KEY.size + 8], "little")
        found = self.session(session)
        return session if found is not None and found.since == since else None

    def set_state(self, session: ProcessKey, state: int) -> bool:
        """One of abi.SESSION_*; frozen and ending ones are held by the probes themselves.

        False where the session is over.
        """
        with self._lock:
            found = self.session(session)
            if found is None:
                return False
            if state in HELD:
                self._held.add(session)
            else:
                self._held.discard(session)
            self._sessions.update(abi.session_key(session), replace(found, state=state).pack())
            self._tell_held()
            return True

    def _tell_held(self) -> None:
        before = self._get("held")
        self._set("held", int(bool(self._held)))
        # The probes end a session first, then they set the word: this is the other way round.
        if before and not self._held and any(one.state in HELD for one in self.sessions().values()):
            self._set("held", 1)

    def is_held(self, session: ProcessKey) -> bool:
        """Whether the probes stop or kill whatever of it makes a call."""
        return session in self._held

    def confirm(self, session: ProcessKey) -> bool:
        """Makes a provisional session one that is acted on; False where it is over."""
        return self.set_state(session, abi.SESSION_CONFIRMED)

    def release(self, session: ProcessKey) -> None:
        """Takes the tag off every process of a session."""
        with self._lock:
            self._sessions.delete(abi.session_key(session))
            self._policies.set_project(session, None)
            self._held.discard(session)
            self._tell_held()

    # The policy.

    @property
    def policy_room(self) -> int:
        """Bytes of the largest image there is room for."""
        return self._policies.room

    def publish(self, image: bytes) -> None:
        """Loads the policy that comes next: from here on each exec leaves a mark for it, too.

        Raises KernelError where there is no room.
        """
        self._policies.publish(image)

    def put_in_force(self, image: bytes) -> None:
        """The kernel decides by it, and by no other from the end of this call on."""
        self._policies.put_in_force(image)

    def unpublish(self) -> None:
        """What was published does not come into force."""
        self._policies.unpublish()

    def withdraw(self) -> None:
        """The kernel decides nothing: records have generation 0."""
        self._policies.withdraw()

    def mark(self, image: int, generation: int, agents: int, predicates: int) -> bool:
        """What is known of a program's image, ns of the exec that made it (or of its process's
        fork): bits of its agents and predicates. False where there is no room for one more.
        """
        return self._policies.mark(image, generation, agents, predicates)

    def forget_marks(self, generation: int) -> set[int]:
        """Those of older policies than this one; the images that have one still."""
        return self._policies.forget_marks(generation)

    def unmark(self, images: Iterable[int]) -> None:
        """Images that nobody runs any more."""
        self._policies.unmark(images)

    def refresh(self) -> None:
        """Every tag takes over the mark of its image, if there is one."""
        self._policies.refresh()

    def set_session(self, session: ProcessKey, agents: int, project: str | None) -> bool:
        """The kernel judges a session from here on: as these agents (bits, never none), with this
        project. False where the session is over.

        Raises KernelError where there is no room for the project: the engine judges it then.
        """
        try:
            self._policies.set_project(session, project)
        except KernelError:
            self._set_agents(session, 0)
            raise
        return self._set_agents(session, agents)

    def _set_agents(self, session: ProcessKey, agents: int) -> bool:
        with self._lock:
            found = self.session(session)
            if found is None:
                self._policies.set_project(session, None)
                return False
            self._sessions.update(abi.session_key(session), replace(found, agents=agents).pack())
            return True

    def set_mounts(self, table: Mounts) -> None:
        """Where file systems are mounted; replaces what was known before."""
        self._policies.set_mounts(table)

    def set_known(self, files: Iterable[File]) -> None:
        """Files by what they are, whatever they are called; replaces what was known before."""
        self._policies.set_known(files)

    def attach_connect(self, cgroup: Path | None = None) -> bool:
        """Connections are refused before anything is sent, of whoever is below a cgroup (None: of
        everybody). False where that cannot be.
        """
        return self._policies.attach_connect(cgroup)

    def refused_below(self, cgroup: Path | None = None) -> bool:
        """Whether what attach_connect did for this directory still holds: it may be gone, or be
        another one by the same name.
        """
        return self._policies.refused_below(cgroup)

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

    def reconcile(self) -> list[abi.Process]:
        """Tags children that skipped runs of the fork probe left out, generation by generation."""
        found: list[abi.Process] = []
        before = -1
        while (now := self.counters().reconciled) != before:
            before = now
            found += abi.processes(self._object.iterate("reconcile"))
        return found

    def sweep_mirror(self) -> None:
        """Removes what skipped runs of the exit probe left: who gets such a pid would be taken for
        a process that is gone. Listed before it is asked who runs: what is new meanwhile stays.
        """
        listed = list(self._mirror.keys(4))
        running = {one.pid.to_bytes(4, "little") for one in self.tagged()}
        for key in listed:
            if key not in running:
                self._mirror.delete(key)

    # What there is to know.

    def counters(self) -> abi.Counters:
        return abi.counters(self._counters.values(_KEY))

    def no_room(self) -> dict[str, int]:
        """How often the policy in the kernel found no room: for what it knows of a program (mark),
        a session's project, a file system's mounts, and to judge a call in, which it refused.
        """
        return {**self._policies.no_room, "judging": self.counters().unjudged}

    def attached(self) -> frozenset[str]:
        """Hooks whose program is attached to what is there."""
        tiers = frozenset((*HOOKS, *lsm.HOOKS))
        return self._object.attached & tiers | self._policies.attached()

    @property
    def lossy(self) -> bool:
        """Whether this kernel may skip runs of tracing programs under load."""
        return self._get("preemption") == abi.PREEMPTION_SOME

    def wanted(self) -> tuple[str, ...]:
        """The hooks there can be something attached to on this kernel."""
        return (*HOOKS, *CONNECT_HOOKS, *(name for name in lsm.HOOKS if name in self._offered))

    def stats(self) -> dict[str, ProgramStats]:
        """Of the program of every hook."""
        found = {}
        for hook in (*HOOKS, *CONNECT_HOOKS, *sorted(self.hooks)):
            try:
                info = self._object.info(hook)
            except OSError:  # somebody has closed it
                continue
            found[hook] = ProgramStats(info.run_cnt, info.run_time_ns / 1e9, info.recursion_misses)
        return found

    def tagged(self, session: ProcessKey | None = None) -> list[ProcessKey]:
        """Processes with a tag that counts: of one session, or of all."""
        return [
            one.process
            for one in self.census()
            if one.session is not None and session in (None, one.session)
        ]

    def room(self) -> dict[str, tuple[int, int]]:
        """(entries or bytes in use, capacity) of the maps that can fill up."""
        sessions = sum(1 for _ in self._sessions.keys(abi.SESSION_KEY.size))
        return {
            "mirror": (sum(1 for _ in self._mirror.keys(4)), self._mirror.max_entries),
            "sessions": (sessions, self._sessions.max_entries),
            "activity": (self.activity.pending, self.activity.size),
            "lifecycle": (self.lifecycle.pending, self.lifecycle.size),
            **self._policies.entries(),
        }

    def close(self) -> None:
        for ring in (self.lifecycle, self.activity):
            with suppress(BufferError):  # records still held by a reader: freed with them
                ring.close()
        self._policies.close()
        self.keeping.close()
        self._control.close()
        self._object.close()
