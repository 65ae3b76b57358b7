"""What outlives a daemon: maps and programs, pinned in bpffs, and who may touch them.

    ROOT/v4/maps/NAME         what every daemon of that ABI goes on with
    ROOT/v4/maps/policy_SLOT  the policies of its slots
    ROOT/v4/links/N/PROGRAM   programs of one instance, attached for as long as they are here
    ROOT/v4/programs/N/...    the same, to look at: what the kernel tells by number it tells few

One daemon at a time has ROOT locked. It takes over the maps of its own ABI where all of them are
there and of its own shapes. Everything else is foreign: it stays in force until the new daemon's
policy is, and its sessions are known; then it is removed. (bpffs takes no dots in names.)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentwatch import abi
from agentwatch.errors import AgentwatchError, KernelError
from agentwatch.events import ProcessKey
from agentwatch.kernel import libbpf
from agentwatch.kernel.libbpf import ArrayMap, Map, Object, Shape
from agentwatch.kernel.ringbuf import Ring

CONTROL = "control"
BLOBS: Mapping[str, int] = {"kept": 1 << 20, "told": 1 << 14}
"""Maps of one value that no program knows: JSON with its length before it, by bytes of room."""

_OWN = frozenset({"records", "walks", "pieces"})  # scratch, laid out as one object has it
_RINGS = ("lifecycle", "activity")
_SET = re.compile(r"v(\d{1,9})(?:_(\d{1,9}))?")


class Unpinned(Exception):
    """There is no place to pin anything in. args: why."""


def shared(bpf: Object) -> dict[str, str]:
    """The maps that outlive an object: name in bpffs -> name in the object."""
    found = {}
    for name in bpf.shapes():
        if name.endswith(".data"):
            found[CONTROL] = name
        elif "." not in name and name not in _OWN:
            found[name] = name
    return found


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of what is pinned there. Raises OSError."""
    fd = libbpf.pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)


class Blob:
    """What userspace tells whoever comes after it."""

    def __init__(self, array: ArrayMap, room: int) -> None:
        self.array, self._room = array, room

    def read(self) -> Any:
        """None for nothing that can be read."""
        raw = self.array.lookup(bytes(4)) or bytes(4)
        size = int.from_bytes(raw[:4], "little")
        try:
            return json.loads(raw[4 : 4 + size]) if size else None
        except ValueError:
            return None

    def write(self, value: object) -> bool:
        """False where there is no room: then it has what it had."""
        text = json.dumps(value, separators=(",", ":")).encode()
        if len(text) > self._room - 4:
            return False
        self.array.update(bytes(4), (len(text).to_bytes(4, "little") + text).ljust(self._room))
        return True


@dataclass(frozen=True, slots=True)
class State:
    """What a set of pins does by itself. policy: generation in force, 0 for none."""

    name: str
    programs: int
    sessions: int
    policy: int


class Set:
    """One version's pins. Nothing of it is held open."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        found = _SET.fullmatch(path.name)
        assert found is not None
        self.abi, self.number = int(found[1]), int(found[2] or 0)

    def map(self, name: str) -> Path:
        return self.path / "maps" / name

    def slot(self, slot: int) -> Path:
        return self.map(f"policy_{slot}")

    def link(self, instance: int, name: str) -> Path:
        return self.path / "links" / str(instance) / name

    def program(self, instance: int, name: str) -> Path:
        return self.path / "programs" / str(instance) / name

    @property
    def instances(self) -> list[int]:
        """Whose programs are attached, oldest first."""
        return sorted(int(name) for name in _names(self.path / "links") if name.isdigit())

    @property
    def maps(self) -> set[str]:
        """What is pinned of them, by name."""
        return set(_names(self.path / "maps"))

    def programs(self, instance: int) -> list[str]:
        return _names(self.path / "links" / str(instance))

    def shape(self, name: str) -> Shape | None:
        """None for a map that is not there, or is none."""
        try:
            with opened(self.map(name)) as fd:
                return libbpf.shape(fd)
        except OSError:
            return None

    def control(self) -> Mapping[str, int]:
        """The fields of aw_control; nothing where they are not there as we know them."""
        try:
            with opened(self.map(CONTROL)) as fd:
                if libbpf.shape(fd).value_size != abi.CONTROL.size:
                    return {}
                raw = Map(CONTROL, fd, abi.CONTROL.size, 1).lookup(bytes(4)) or b""
        except OSError:
            return {}
        names = [field.name for field in abi.CONTROL.fields]
        return dict(zip(names, abi.CONTROL.struct.unpack(raw), strict=True))

    def members(self) -> dict[int, ProcessKey] | None:
        """Tagged processes, pid -> session; None where that cannot be read.

        Of any version whose table of processes has the session first in its values.
        """
        size = abi.SESSION_KEY.size
        shape = self.shape("mirror")
        if shape is None or shape.key_size != 4 or shape.value_size < size:
            return None
        found = {}
        with opened(self.map("mirror")) as fd:
            mirror = Map("mirror", fd, shape.value_size, shape.max_entries)
            for key in list(mirror.keys(4)):
                if value := mirror.lookup(key):
                    found[int.from_bytes(key, "little")] = abi.key_of_session(value[:size])
        return found

    def sessions(self) -> int:
        shape = self.shape("sessions")
        if shape is None or not shape.key_size:
            return 0
        with opened(self.map("sessions")) as fd:
            return sum(1 for _ in Map("sessions", fd, 0, 0).keys(shape.key_size))

    def state(self) -> State:
        control = self.control()
        in_force = control.get("in_force", abi.POLICY_NONE) != abi.POLICY_NONE
        return State(
            self.name,
            sum(len(self.programs(one)) for one in self.instances),
            self.sessions(),
            control.get("published", 0) if in_force else 0,
        )

    def unread(self) -> int:
        """Records in its rings."""
        found = 0
        for name in _RINGS:
            with suppress(OSError, ValueError), opened(self.map(name)) as fd:
                ring = Ring(fd, libbpf.shape(fd).max_entries)
                found += ring.waiting
                ring.close()
        return found

    def misses(self, instance: int) -> dict[str, int]:
        """How often the kernel skipped each program."""
        found = {}
        for name in self.programs(instance):
            with suppress(OSError), opened(self.program(instance, name)) as fd:
                found[name] = int(libbpf.info_of(name, fd).recursion_misses)
        return found

    def release(self, instance: int) -> None:
        """Takes an instance's programs away."""
        for kind in ("links", "programs"):
            _removed(self.path / kind / str(instance))

    def remove(self) -> None:
        """Takes all of it away: nothing of it goes on. Raises OSError."""
        for instance in self.instances:
            self.release(instance)
        _removed(self.path)


class Pins:
    """A root, locked until `close`, and what there is below it.

    taken: the set whose maps go on, once `fit` has seen the object; foreign: the others.
    wrong: (set, why) of those that are of our ABI and could not be taken over.
    Raises Unpinned where nothing can be pinned, AgentwatchError where another daemon has it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = locked(root)
        self.foreign = sets(root)
        self.taken: Set | None = None
        self.wrong: list[tuple[str, str]] = []
        self._fitted = False
        self.instance = 1

    @property
    def empty(self) -> bool:
        return self.taken is None and not self.foreign

    def fit(self, bpf: Object, kept: Mapping[str, object]) -> None:
        """Before load: has the object go on with the maps there are, if they fit it.

        kept: what the blob of that name must say, for the policies to be understood.
        """
        if not self._fitted:
            self._fitted = True
            self._choose(bpf, kept)
        if self.taken is not None:
            for pin, name in shared(bpf).items():
                with opened(self.taken.map(pin)) as fd:
                    bpf.reuse(name, fd)

    def _choose(self, bpf: Object, kept: Mapping[str, object]) -> None:
        for one in reversed(self.foreign):
            if one.abi != abi.ABI:
                continue
            why = _misfit(one, bpf, kept)
            if why:
                self.wrong.append((one.name, why))
                continue
            self.foreign.remove(one)
            self.taken = one
            self.instance = 1 + max(*one.instances, one.control().get("recorder", 0), 0)
            return

    def fresh(self) -> Set:
        """The place of a set of our own where none was taken over."""
        number = max((one.number + 1 for one in self.foreign if one.abi == abi.ABI), default=0)
        return Set(self.root / (f"v{abi.ABI}_{number}" if number else f"v{abi.ABI}"))

    def close(self) -> None:
        os.close(self._lock)


def sets(root: Path) -> list[Set]:
    """What is pinned, by version."""
    found = [Set(root / name) for name in _names(root) if _SET.fullmatch(name)]
    return sorted(found, key=lambda one: (one.abi, one.number))


def release(root: Path) -> list[State]:
    """Takes all pins away; what they were. Raises AgentwatchError while a daemon has them."""
    try:
        lock = locked(root, make=False)
    except Unpinned:
        return []
    try:
        found = sets(root)
        states = [one.state() for one in found]
        for one in found:
            one.remove()
        return states
    except OSError as error:
        raise KernelError(
            f"not released: {error}", "look at what is left below " + str(root)
        ) from None
    finally:
        os.close(lock)


def locked(root: Path, make: bool = True) -> int:
    """The descriptor that holds the lock. Raises Unpinned, AgentwatchError."""
    try:
        if not _is_bpffs(root.parent):
            raise Unpinned(f"no bpffs is mounted at {root.parent}")
        if make:
            with suppress(FileExistsError):
                root.mkdir(0o700)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unpinned(f"{root}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = holder(fd)
        os.close(fd)
        message = f"a daemon runs already{f' (pid {pid})' if pid else ''}: it has {root}"
        raise AgentwatchError(message, "agentwatch status, or stop it first") from None
    return fd


def holder(fd: int) -> int:
    """Who has locked a directory, 0 where that is not known."""
    inode = os.fstat(fd).st_ino
    with suppress(OSError, ValueError), open("/proc/locks") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rsplit(":", 1)[-1] == str(inode):
                return int(fields[4])
    return 0


def _is_bpffs(directory: Path) -> bool:
    """By the mount table: Python has no statfs that tells the type of a file system."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        kind = fields[fields.index(b"-") + 1]
        if kind == b"bpf" and directory.is_relative_to(os.fsdecode(fields[4])):
            return True
    return False


def _misfit(one: Set, bpf: Object, kept: Mapping[str, object]) -> str:
    """Why an object cannot go on with a set's maps; "" where it can."""
    shapes = bpf.shapes()
    for pin, name in shared(bpf).items():
        found = one.shape(pin)
        if found is None:
            return f"{pin} is missing"
        if found != shapes[name]:
            return f"{pin} is of another size or kind"
    control = one.control()
    if control.get("abi") != abi.ABI:
        return "it says that it is of another ABI"
    in_force = control["in_force"]
    if in_force != abi.POLICY_NONE and one.shape(f"policy_{in_force}") is None:
        return "the policy in force is missing"
    for name in BLOBS:
        if one.shape(name) is None:
            return f"{name} is missing"
    told = blob(one, "kept").read()
    if not isinstance(told, dict) or any(told.get(key) != value for key, value in kept.items()):
        return "its policies are not laid out as ours"
    return ""


def blob(one: Set, name: str) -> Blob:
    """What a set has. Raises OSError."""
    fd = libbpf.pinned(one.map(name))
    size = libbpf.shape(fd).value_size
    return Blob(ArrayMap(name, fd, size, 1), size)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _removed(directory: Path) -> None:
    """All of a directory; what is gone already is gone. Raises OSError."""
    for path, directories, files in os.walk(directory, topdown=False):
        for name in files:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        for name in directories:
            with suppress(FileNotFoundError):
                os.rmdir(os.path.join(path, name))
    with suppress(FileNotFoundError):
        os.rmdir(directory)


def unusable(error: OSError) -> KernelError:
    """Ours could not be pinned beside those that are there."""
    text = f"nothing could be pinned, and what was there stays in force: {error}"
    return KernelError(text, "agentwatch release, then start again")
