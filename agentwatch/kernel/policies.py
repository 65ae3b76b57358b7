"""The policy in the kernel: images in their slots, marks of programs, projects, mounts, cgroups.

An image is loaded beside the one in force, and comes into force by one word. Nobody who read the
word before is left when the old image goes: the kernel waits for that at each change of a slot.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from agentwatch import abi
from agentwatch.errors import KernelError, ProgramRefused
from agentwatch.events import ProcessKey
from agentwatch.kernel.keeping import Keeping
from agentwatch.kernel.libbpf import ArrayMap, Object
from agentwatch.known import File
from agentwatch.mounts import MOUNTINFO as FIRST_MOUNTINFO
from agentwatch.mounts import Mounts

PLAIN_MOUNTS = 65536  # of bpf/view.bpf.c
CONNECT_HOOKS = ("connect4", "connect6", "sendmsg4", "sendmsg6")
MOUNTINFO = Path("/proc/self/mountinfo")
_KEY = bytes(4)


def cgroup_root() -> Path | None:
    """Where the whole cgroup2 hierarchy that can be seen here is mounted."""
    for line in MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[fields.index(b"-") + 1] == b"cgroup2" and fields[3] == b"/":
            return Path(os.fsdecode(fields[4]))
    return None


class Policies:
    """Of one loaded object. room: bytes of the largest image. set_word: writes aw_control.

    no_room: what was not taken, how often: mark | project | mount | file.
    """

    def __init__(
        self, bpf: Object, room: int, set_word: Callable[[str, int], None], keeping: Keeping
    ) -> None:
        self._object, self.room, self._set_word = bpf, room, set_word
        self._keeping = keeping
        self._slots = bpf.map("policies")
        self._marks = bpf.map("marks")
        self._projects = bpf.map("projects")
        self._mounts = bpf.map("mounts")
        self._plain = bpf.memory(".data.plain")
        self._known = bpf.map("known_files")
        self._known_count: int | None = None  # nobody has counted them yet
        self._in_force = self._next = abi.POLICY_NONE
        self._published: bytes | None = None
        self._loaded: dict[int, ArrayMap] = {}  # by slot
        self.no_room: Counter[str] = Counter(mark=0, project=0, mount=0, file=0)
        if keeping.inherited:
            self._inherit(keeping.in_force)

    def _inherit(self, in_force: int) -> None:
        """Goes on with the policy in force; what was to follow it when its daemon died does not."""
        self._set_word("next", abi.POLICY_NONE)
        for slot in range(abi.POLICY_SLOTS):
            if slot == in_force:
                fd = self._keeping.policy_of(slot)
                self._loaded[slot] = ArrayMap("policy", fd, self.room, 1)
                self._in_force = slot
            else:
                self._slots.delete(_word(slot))
                self._keeping.drop(slot)

    @staticmethod
    def prepare(bpf: Object, room: int) -> None:
        """Before load: images have `room` bytes, a power of two."""
        bpf.resize_inner("policies", room)
        bpf.set_constants(".rodata.policy", (room - 1).to_bytes(8, "little"))

    def publish(self, image: bytes) -> None:
        """From here on each exec leaves a mark for this policy, too."""
        if len(image) > self.room:
            raise KernelError(
                f"the policy has {len(image)} bytes, and {self.room} were set aside for it",
                "use fewer rules, or start agentwatch again",
            )
        self._drop_next()
        slot = next(s for s in range(abi.POLICY_SLOTS) if s != self._in_force)
        self._close(slot)
        try:
            loaded = self._object.array("policy", self.room)
            self._loaded[slot] = loaded
            loaded.update(_KEY, image.ljust(self.room, b"\0"))
            self._keeping.hold(slot, loaded.fd)
            self._slots.update(_word(slot), _word(loaded.fd))
        except OSError as error:
            raise KernelError(
                f"the kernel has no room for the policy: {error}", "use fewer rules"
            ) from None
        self._next, self._published = slot, image
        at = 4 * abi.POLICY_GENERATION
        self._set_word("published", int.from_bytes(image[at : at + 4], "little"))
        self._set_word("next", slot)
        # Waits for each exec that has read the word before: it leaves none.
        self._slots.update(_word(slot), _word(loaded.fd))

    def put_in_force(self, image: bytes) -> None:
        """The kernel decides by it, and by no other from the end of this call on."""
        if self._published != image:
            self.publish(image)
        before, self._in_force = self._in_force, self._next
        # An exec reads them the other way round: one mark too many then, and never one too few.
        self._set_word("in_force", self._in_force)
        self._set_word("next", abi.POLICY_NONE)
        self._next, self._published = abi.POLICY_NONE, None
        if before != abi.POLICY_NONE:
            self._clear(before)

    def withdraw(self) -> None:
        """The kernel decides nothing: records have generation 0."""
        self._drop_next()
        before, self._in_force = self._in_force, abi.POLICY_NONE
        self._set_word("in_force", abi.POLICY_NONE)
        if before != abi.POLICY_NONE:
            self._clear(before)

    def unpublish(self) -> None:
        """What was published does not come into force."""
        self._drop_next()

    def _drop_next(self) -> None:
        dropped, self._next = self._next, abi.POLICY_NONE
        self._published = None
        self._set_word("next", abi.POLICY_NONE)
        if dropped != abi.POLICY_NONE:
            self._clear(dropped)

    def _clear(self, slot: int) -> None:
        """Once nobody walks it any more: a change of a slot waits for all who run, then it goes."""
        self._slots.update(_word(slot), _word(self._loaded[slot].fd))
        self._slots.delete(_word(slot))
        self._keeping.drop(slot)
        self._close(slot)

    def _close(self, slot: int) -> None:
        if slot in self._loaded:
            self._loaded.pop(slot).close()

    def entries(self) -> dict[str, tuple[int, int]]:
        """(entries in use, capacity) of what it is asked about."""
        session = abi.SESSION_KEY.size
        known = self._known_count
        if known is None:
            known = len(set(self._known.keys(abi.FILE_KEY.size)))
        tables = (("marks", self._marks, 8), ("projects", self._projects, session))
        # Not counted twice: a walk begins anew where the key it stands on goes.
        counted = {
            name: (len(set(table.keys(size))), table.max_entries)
            for name, table, size in (*tables, ("mounts", self._mounts, 4))
        }
        return {**counted, "known_files": (known, self._known.max_entries)}

    def close(self) -> None:
        self._plain.close()
        for slot in list(self._loaded):
            self._close(slot)

    # What it is asked about.

    def mark(self, image: int, generation: int, agents: int, predicates: int) -> bool:
        """What is known of an image (ns of the exec that made it): agents' and predicates' bits.

        False where there is no room: then nothing is known, and what restricts holds.
        """
        value = abi.mark(generation, agents, predicates)
        with suppress(OSError):
            self._marks.update(image.to_bytes(8, "little"), value)
            return True
        self.no_room["mark"] += 1
        return False

    def forget_marks(self, generation: int) -> set[int]:
        """Those of older policies than this one; the images that have one still."""
        kept = set()
        for key in list(self._marks.keys(8)):
            value = self._marks.lookup(key)
            if value is not None and abi.generation_of_mark(value) < generation:
                self._marks.delete(key)
            elif value is not None:
                kept.add(int.from_bytes(key, "little"))
        return kept

    def unmark(self, images: Iterable[int]) -> None:
        """Images that nobody runs any more."""
        for image in images:
            self._marks.delete(image.to_bytes(8, "little"))

    def refresh(self) -> None:
        """Every tag takes over the mark of its image, if there is one."""
        self._object.iterate("refresh")

    def set_project(self, session: ProcessKey, project: str | None) -> None:
        """None: it has none. Raises KernelError where there is no room for it: it has none then."""
        key = abi.session_key(session)
        if project is None:
            self._projects.delete(key)
            return
        value = abi.project(os.fsencode(project))
        if value is not None:
            with suppress(OSError):
                self._projects.update(key, value)
                return
        self._projects.delete(key)
        self.no_room["project"] += 1
        why = (
            f"its name has more than {abi.PROJECT_MAX} bytes"
            if value is None
            else f"there are {self._projects.max_entries} of others"
        )
        raise KernelError(f"the kernel has no room for the project: {why}", "use a shorter path")

    def project(self, session: ProcessKey) -> str:
        """As the kernel has it; "" for none."""
        value = self._projects.lookup(abi.session_key(session))
        return os.fsdecode(abi.path_of_project(value)) if value else ""

    def set_mounts(self, table: Mounts) -> None:
        """Where file systems are mounted; replaces what was known before.

        Where there is no room for one, the engine judges what has a name on it.
        """
        wanted = {_word(dev): abi.mounts(rows) for dev, rows in table.items()}
        for stale in set(self._mounts.keys(4)) - wanted.keys():
            self._mounts.delete(stale)
        for dev, value in wanted.items():
            try:
                self._mounts.update(dev, value)
            except OSError:
                self.no_room["mount"] += 1
        self._set_plain(table)

    def _set_plain(self, table: Mounts) -> None:
        """The mounts below which no name is looked for that a task may have for a file: those of
        the first process and our own, where only who may do anything mounts. bpf/view.bpf.c knows
        both namespaces.
        """
        words = memoryview(self._plain).cast("Q")
        wanted = [0] * (PLAIN_MOUNTS // 64)
        for mountinfo in (FIRST_MOUNTINFO, MOUNTINFO):
            with suppress(OSError):
                for one in table.plain(mountinfo.read_bytes()):
                    if one < PLAIN_MOUNTS:  # below others names are looked for, which takes longer
                        wanted[one // 64] |= 1 << one % 64
        for place, word in enumerate(wanted):
            if words[place] != word:
                words[place] = word

    def set_known(self, files: Iterable[File]) -> None:
        """Files by what they are; replaces what was known before."""
        wanted: dict[bytes, bytes] = {}
        for file in files:
            value = abi.known(file.name, file.generation)
            if value is None:
                self.no_room["file"] += 1
            else:
                wanted[abi.file_key(file.dev, file.inode)] = value
        for stale in set(self._known.keys(abi.FILE_KEY.size)) - wanted.keys():
            self._known.delete(stale)
        refused = 0
        for key, value in wanted.items():
            try:
                self._known.update(key, value)
            except OSError:
                refused += 1
        self.no_room["file"] += refused
        self._known_count = len(wanted) - refused  # thousands, and nobody else writes there
        self._set_word("known", int(bool(wanted)))

    def attach_connect(self, cgroup: Path | None) -> bool:
        """The programs that refuse connections of whoever is below a cgroup (None: of everybody).

        False where that cannot be: there is no cgroup2, or another program there refuses it.
        """
        self._detach_connect()
        there = self._attach_connect(cgroup or cgroup_root())
        if not there:
            self._detach_connect()
        self._set_word("refusing", int(there))
        return there

    def _attach_connect(self, directory: Path | None) -> bool:
        if directory is None:
            return False
        try:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            for name in CONNECT_HOOKS:
                self._object.attach_cgroup(name, opened)
                self._keeping.link(name)
        except (ProgramRefused, OSError):
            return False
        finally:
            os.close(opened)
        return True

    def _detach_connect(self) -> None:
        for name in CONNECT_HOOKS:
            self._keeping.unlink(name)
            self._object.detach(name)

    def refused_below(self, cgroup: Path | None) -> bool:
        """Whether the programs are where attach_connect put them, and that is this directory.

        A cgroup that is removed takes them along; one that is made anew in its place has none.
        """
        directory = cgroup or cgroup_root()
        try:
            wanted = os.stat(directory).st_ino if directory else 0
        except OSError:
            return False
        return {self._object.cgroup_of(name) for name in CONNECT_HOOKS} == {wanted}

    def attached(self) -> frozenset[str]:
        """Those of CONNECT_HOOKS whose cgroup is there."""
        return frozenset(name for name in CONNECT_HOOKS if self._object.cgroup_of(name))


def _word(value: int) -> bytes:
    return value.to_bytes(4, "little")
