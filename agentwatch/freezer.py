"""A session that is held by the kernel's cgroup freezer: nothing in it runs, whoever signals it.

    ROOT/agentwatch-frozen-PID-START/   of one daemon
        session-PID-START/         cgroup.freeze is 1
            0/ 1/ ...                   one for each cgroup that processes came from

Which one that was is an extended attribute of the directory, so what is frozen outlives a daemon
that is killed, and the next one can put it back. The cgroups are made at the top and not below
those of the processes: a person may move processes between cgroups that are their own, and so let
a frozen one go on. Without a daemon, `echo 0` into a session's cgroup.freeze thaws it.

Limits: while a session is frozen, the cgroups it came from do not count what it holds, and an
empty one may be removed (systemd does that with a scope); then its nearest ancestor that takes
processes gets them back. In a threaded cgroup, which thread was where is forgotten.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from agentwatch import processes
from agentwatch.errors import KernelError
from agentwatch.events import ProcessKey

FREEZING = 1.0  # s in which a session should be frozen; one that is not goes on
LEAVING = 1.0  # s in which it should be thawed and its cgroups gone, or killed
PAUSE = 0.002  # s between two looks

_MOUNTS = Path("/proc/self/mountinfo")
_ORIGIN = "trusted.agentwatch.origin"  # only who has CAP_SYS_ADMIN sees or sets it
_DAEMON = re.compile(r"agentwatch-frozen-(\d{1,10})-(\d{1,20})")
_SESSION = "session-"

Find = Callable[[], Iterable[ProcessKey]]
"""The processes of a session as they are known at this moment. One that has ended since it was
listed is better given (its start as 0, if it is not known) than left out: it may have children.
"""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What came of freezing a session. how: cgroup. processes: how many are in it."""

    how: str
    processes: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """A session that a daemon which is dead had frozen, thawed by now.

    session: as it was named; pids: its processes.
    """

    session: str
    pids: tuple[int, ...]


class Freezer:
    """Freezes sessions in cgroups below `root`, a directory of the cgroup2 hierarchy at `mount`."""

    def __init__(self, root: Path, mount: Path) -> None:
        self._root, self._mount = root, mount
        own = processes.key_now(os.getpid())
        assert own is not None, "/proc is not mounted"
        self._top = root / f"agentwatch-frozen-{own.pid}-{own.start}"

    @classmethod
    def open(cls, root: Path | None = None) -> Freezer | None:
        """The freezer of this host, its cgroups below `root` (default: the top of the hierarchy).

        None where there is no cgroup2, or one that is read-only or has no freezer (before 5.2):
        then a session can only be stopped by signals.
        """
        found = [mount for mount in _mounts() if root is None or root.is_relative_to(mount)]
        if not found:
            return None
        mount = max(found, key=lambda path: len(path.parts)) if root else found[0]
        freezer = cls(root or mount, mount)
        try:
            freezer._top.mkdir(exist_ok=True)
            able = (freezer._top / "cgroup.freeze").exists()
            freezer._top.rmdir()
        except OSError:
            return None
        return freezer if able else None

    def freeze(self, session: str, find: Find) -> Frozen:
        """Freezes all that `find` gives, and all they have started by then. Again: who is new.

        Raises KernelError where that does not work in time; then nothing of it is frozen.
        """
        place = self._place(session)
        try:
            place.mkdir(parents=True, exist_ok=True)
            # Before anybody is inside: who comes in stops forking, and a storm ends.
            _write(place / "cgroup.freeze", "1")
            return Frozen("cgroup", self._hold(place, find))
        except OSError as error:
            with suppress(KernelError):
                self.thaw(session)
            remedy = "stop it by signals, or see whether cgroups below it are used up"
            raise KernelError(f"{session} cannot be frozen: {error}", remedy) from None

    def inside(self, session: str) -> frozenset[int]:
        """The pids in a session's frozen cgroup; none where it is not frozen."""
        return frozenset(_pids(self._place(session)))

    def thaw(self, session: str) -> int:
        """Lets a session go on, in the cgroups it came from; how many processes. 0: not frozen.

        Raises KernelError when its cgroup cannot be removed: what is in there goes on as well.
        """
        place = self._place(session)
        return self._dissolve(place) if place.is_dir() else 0

    def killed(self, session: str) -> int | None:
        """Ends a frozen session all at once; how many processes.

        None where it is not frozen, or the kernel cannot (before 5.14) or did not: then send
        signals, which reach frozen processes as well, and thaw what is left.
        """
        place = self._place(session)
        pids = _pids(place)
        try:
            _write(place / "cgroup.kill", "1")
        except OSError:
            return None
        deadline = time.monotonic() + LEAVING
        while _event(place, "populated"):
            if time.monotonic() > deadline:
                return None
            time.sleep(PAUSE)
        self._dissolve(place)
        return len(pids)

    def recover(self, before: Callable[[Iterable[int]], object]) -> tuple[Leftover, ...]:
        """Thaws what daemons that are dead have left frozen, and says whom.

        before: told the pids of each session before it is thawed.
        """
        found = []
        for top in sorted(self._root.glob("agentwatch-frozen-*")):
            match = _DAEMON.fullmatch(top.name)
            if match is None or processes.runs(ProcessKey(int(match[1]), int(match[2]))):
                continue
            for place in sorted(top.glob(f"{_SESSION}*")):
                pids = _pids(place)
                before(pids)
                with suppress(KernelError):  # what stays of it holds nobody
                    self._dissolve(place)
                found.append(Leftover(place.name.removeprefix(_SESSION), tuple(sorted(pids))))
            with suppress(OSError):
                top.rmdir()
        return tuple(found)

    def _place(self, session: str) -> Path:
        """A session's cgroup. No interface file begins like it, and no name leads elsewhere."""
        return self._top / (_SESSION + re.sub(r"[^A-Za-z0-9:-]", "_", session)[:200])

    # In.

    def _hold(self, place: Path, find: Find) -> int:
        """Moves processes in until all found are at rest inside; how many. Raises OSError.

        Looks once more when all inside are at rest, for until then one of them may still be in
        fork, with a child that was born outside and is in nobody's list; and when somebody ended
        before being moved in, for what that one has started is outside.
        """
        deadline = time.monotonic() + FREEZING
        rests, ended = False, set[ProcessKey]()
        while True:
            outside, gone = self._gather(place, find())
            if rests and not outside and gone <= ended:
                return len(_pids(place))
            ended |= gone
            while not (rests := _event(place, "frozen")):
                if time.monotonic() > deadline:
                    raise TimeoutError("its processes do not come to rest")
                time.sleep(PAUSE)
            if time.monotonic() > deadline:
                raise TimeoutError("it starts processes faster than they are found")

    def _gather(
        self, place: Path, found: Iterable[ProcessKey]
    ) -> tuple[set[ProcessKey], set[ProcessKey]]:
        """Moves in who is outside: (who that was, who had ended before)."""
        # By threads: a process whose first one has ended is listed where that was at its end.
        inside = _tids(place)
        # Whoever is to thaw it is not frozen with it.
        others = {p for p in found if p.pid not in inside and p.pid != os.getpid()}
        outside = {p for p in others if processes.runs(p) and not inside & _threads(p.pid)}
        for process in outside:
            self._enter(place, process)
        return outside, {p for p in others - outside if not processes.runs(p)}

    def _enter(self, place: Path, process: ProcessKey) -> None:
        """Moves it in, unless it is gone."""
        origin = _cgroup(process.pid)
        # cgroup.procs takes a number and no pidfd. For somebody else to have it at the write below,
        # all pids there are would have to be used up within the microseconds after this.
        if origin is None or not processes.runs(process):
            return
        group = self._group(place, origin)
        try:
            _write(group / "cgroup.procs", str(process.pid))
        except OSError:
            if processes.runs(process):
                raise

    def _group(self, place: Path, origin: bytes) -> Path:
        """The cgroup for those that came from `origin`."""
        for group in _groups(place):
            if _origin(group) == origin:
                return group
        group = next(path for n in count() if not (path := place / str(n)).exists())
        group.mkdir()
        os.setxattr(group, _ORIGIN, origin)
        return group

    # Out.

    def _dissolve(self, place: Path) -> int:
        """Puts everybody back and removes a session's cgroups; how many processes that were.

        They are put back while they are frozen, and each goes on where it belongs.
        """
        deadline = time.monotonic() + LEAVING
        moved = sum(self._empty(group, deadline) for group in _groups(place))
        with suppress(OSError):
            _write(place / "cgroup.freeze", "0")
        for path in (*_groups(place), place):
            _remove(path, deadline)
        with suppress(OSError):  # another session is frozen
            place.parent.rmdir()
        return moved

    def _empty(self, group: Path, deadline: float) -> int:
        targets = self._targets(group)
        moved = sum(_move(pid, targets) for pid in _numbers(group / "cgroup.procs"))
        # Those whose first thread has ended are not listed as processes.
        while (threads := _numbers(group / "cgroup.threads")) and time.monotonic() < deadline:
            if _move(threads[0], targets):
                moved += 1
            else:
                time.sleep(PAUSE)
        return moved

    def _targets(self, group: Path) -> list[Path]:
        """Where its processes may go, best first: an inner cgroup with controllers takes none."""
        path = self._mount / os.fsdecode(_origin(group).lstrip(b"/"))
        return [p for p in (path, *path.parents) if p.is_relative_to(self._mount) and p.is_dir()]


def _mounts() -> list[Path]:
    """Where cgroup2 is mounted. proc(5): the type follows a lone dash."""
    lines = [line.split() for line in _MOUNTS.read_text(errors="replace").splitlines()]
    return [Path(f[4]) for f in lines if "-" in f and f[f.index("-") + 1] == "cgroup2"]


def _cgroup(pid: int) -> bytes | None:
    """A process's own cgroup, from the top of the hierarchy; None when it is gone.

    Raises OSError for one in another cgroup namespace, which has no path here.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().split(b"\n")
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith(b"0::")), None)
    if path is not None and b".." in path.split(b"/"):
        raise OSError(f"the cgroup of {pid} is outside of this namespace")
    return path


def _origin(group: Path) -> bytes:
    """As `_cgroup` gave it; the top where nobody noted it."""
    with suppress(OSError):
        return os.getxattr(group, _ORIGIN)
    return b"/"


def _groups(place: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in place.iterdir() if path.is_dir())
    return []


def _tids(place: Path) -> set[int]:
    """The threads in a session's cgroup."""
    return {tid for group in _groups(place) for tid in _numbers(group / "cgroup.threads")}


def _pids(place: Path) -> set[int]:
    """The processes of these threads; cgroup.procs lacks those whose first thread has ended."""
    found = set()
    for tid in _tids(place):
        with suppress(OSError):
            status = Path(f"/proc/{tid}/status").read_text(errors="replace")
            found.add(int(status.partition("\nTgid:")[2].split(maxsplit=1)[0]))
    return found


def _numbers(path: Path) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in path.read_text().split()]
    return []


def _threads(pid: int) -> set[int]:
    with suppress(OSError):
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    return set()


def _event(place: Path, key: str) -> bool:
    """What cgroup.events says. Raises OSError."""
    return f"{key} 1" in (place / "cgroup.events").read_text().splitlines()


def _write(path: Path, text: str) -> None:
    """In one call, as cgroup files want it, and never a new file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _move(pid: int, targets: Iterable[Path]) -> bool:
    """Puts a process into the first cgroup that takes it; False when none does or it is gone."""
    for target in targets:
        try:
            _write(target / "cgroup.procs", str(pid))
        except ProcessLookupError:
            return False
        except OSError:
            continue
        return True
    return False


def _remove(path: Path, deadline: float) -> None:
    """Who is just ending is in it for a moment longer. Raises KernelError."""
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                remedy = f"move what {path}/cgroup.procs lists, then rmdir it"
                raise KernelError(f"{path} cannot be removed: {error.strerror}", remedy) from None
            time.sleep(PAUSE)
        else:
            return
