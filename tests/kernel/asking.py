"""The kernel's walker, asked directly (asking.bpf.c): BPF_PROG_TEST_RUN over the functions that
every hook calls.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

from agentwatch import abi
from agentwatch.events import ProcessKey
from agentwatch.kernel.libbpf import ArrayMap, Object
from agentwatch.policy.deciding import AT_THE_END, Asking, unread_of
from agentwatch.policy.image import TAKEN, Decision
from agentwatch.policy.subjects import EXEC, FILE, MOUNT, OPENING, UNIX, Subject

REPOSITORY = Path(__file__).parents[2]
SOURCE = Path(__file__).with_suffix(".bpf.c")
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-Wall", "-Werror")
PATH_MAX, SHORT = 4096, 1024
_SORTS = {"exec": 0, "name": 1, "address": 2}
_SYMBOLS = {FILE: 0, UNIX: 6}
_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64


class Ask(ctypes.Structure):
    """struct ask."""

    _fields_ = (
        ("agents", _U64),
        ("predicates", _U64 * 4),
        ("args", _U64),
        ("args_size", _U64),
        ("kinds", _U32),
        ("words", _U32),
        ("unread", _U32),
        ("uncertain", _U32),
        ("sort", _U32),
        ("lists", _U32),
        ("known", _U32),
        ("subject", _U32),
        ("symbol", _U32),
        ("in_project", _U32),
        ("name_len", _U32),
        ("cwd_len", _U32),
        ("slot", _U32),
        ("repeat", _U32),
        ("below", _U32),
        ("preventing", _U32),
        ("later", _U32),
        ("ruled", _U32),
        ("others_len", _U32 * 2),
        ("found", _U64 * 3),
        ("left", _U64),
        ("took", _U64),
        ("verdict", _U32),
        ("rule", _U32),
        ("crowded", _U32),
        ("generation", _U32),
        ("address", ctypes.c_uint8 * 24),
        ("name", ctypes.c_uint8 * PATH_MAX),
        ("cwd", ctypes.c_uint8 * SHORT),
        ("others", ctypes.c_uint8 * (2 * SHORT)),
    )


class Cut:
    """Memory that ends behind some bytes: there is none to read behind it."""

    def __init__(self, begins: bytes) -> None:
        page = mmap.PAGESIZE
        size = (len(begins) + page - 1) // page * page
        self._memory = mmap.mmap(-1, size + page)
        self._memory[size - len(begins) : size] = begins
        whole = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = whole + size - len(begins)
        refused = ctypes.CDLL(None, use_errno=True).mprotect(
            ctypes.c_void_p(whole + size), ctypes.c_size_t(page), 0
        )
        assert not refused, os.strerror(ctypes.get_errno())


def build(directory: Path) -> Path:
    """The program, compiled from the probes' sources."""
    made = directory / "asking.bpf.o"
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True)
    includes = (f"-I{REPOSITORY / 'bpf'}", f"-I/usr/include/{machine.stdout.strip()}-linux-gnu")
    subprocess.run(["clang", *FLAGS, *includes, "-c", SOURCE, "-o", made], check=True, timeout=120)
    return made


class KernelWalker:
    """Loaded for images of at most `size` bytes, a power of two. Needs root.

    project: of every subject that has one.
    """

    def __init__(self, program: Path, size: int, project: bytes) -> None:
        self._object = Object(program)
        self._object.only(frozenset({"ask"}))
        self._object.resize_inner("policies", size)
        self._object.set_constants(".rodata.policy", (size - 1).to_bytes(8, "little"))
        self._object.load()
        self._size = size
        self._images: dict[int, ArrayMap] = {}
        self._memory = self._object.memory("asking")
        self._ask = Ask.from_buffer(self._memory)
        self._buffer = ctypes.create_string_buffer(1)
        projects = self._object.map("projects")
        value = len(project).to_bytes(8, "little") + project
        projects.update(abi.session_key(ProcessKey(1, 1)), value.ljust(1024, b"\0"))

    def put(self, image: bytes, slot: int = 0) -> None:
        """What is asked in a slot from now on."""
        made = self._object.array("aw_image", self._size)
        made.update(bytes(4), image.ljust(self._size, b"\0"))
        policies = self._object.map("policies")
        policies.update(slot.to_bytes(4, "little"), made.fd.to_bytes(4, "little"))
        if slot in self._images:
            self._images[slot].close()
        self._images[slot] = made
        # Images of one test are all of generation 1: what the walker remembers is of another one.
        walking = self._object.map("walking")
        walking.update(bytes(4), bytes(len(walking.lookup(bytes(4)) or b"")))

    def decide(self, subject: Subject, slot: int = 0, asking: Asking = AT_THE_END) -> Decision:
        """As Image.decide; argv that is cut must be whole pages. Raises AssertionError when the
        walker leaves something behind.
        """
        return self._decide(subject, slot, 0, asking)

    def decide_directory(self, subject: Subject, kinds: int = TAKEN) -> Decision:
        """As Image.decide_directory."""
        return self._decide(subject, 0, kinds, AT_THE_END)

    def _decide(self, subject: Subject, slot: int, below: int, asking: Asking) -> Decision:
        self._fill(subject, slot, 1)
        self._ask.below = below
        self._ask.preventing = asking.preventing
        self._ask.ruled = 2 if asking.mapped else asking.ruled
        self._ask.later = asking.later
        self._object.run("ask")
        assert self._ask.left == 0, "conditions of this event are left for the next"
        assert self._ask.generation, "no policy answered"
        return Decision(self._ask.verdict, self._ask.rule, bool(self._ask.crowded))

    def predicates(self) -> int:
        """Those of the program that the last exec asked about starts."""
        found = self._ask.found
        return found[0] | found[1] << 64 | found[2] << 128

    def time(self, subject: Subject, slot: int = 0) -> float:
        """ns of one decision, the clock's own included."""
        self._fill(subject, slot, 1 if subject.kinds & EXEC else 64)
        self._object.run("ask")
        return float(self._ask.took / self._ask.repeat)

    def _fill(self, subject: Subject, slot: int, repeat: int) -> None:
        ask = self._ask
        ask.slot, ask.repeat, ask.below = slot, repeat, 0
        ask.preventing = ask.later = ask.ruled = 0
        ask.kinds, ask.words, ask.agents = subject.kinds, subject.words, subject.agents
        ask.uncertain = subject.uncertain
        ask.in_project = subject.project is not None
        ask.known = subject.predicates is not None
        for place in range(3):
            ask.predicates[place] = (subject.predicates or 0) >> 64 * place & (1 << 64) - 1
        exec_, opening = bool(subject.kinds & EXEC), bool(subject.kinds & (OPENING | MOUNT))
        ask.lists = 0 if exec_ else 1 if opening else 2
        ask.unread = unread_of(subject)
        ask.args_size = ask.name_len = ask.cwd_len = 0
        self._fill_others(subject)
        if exec_:
            self._fill_exec(subject)
        elif not opening and subject.addr and subject.port:
            ask.sort = _SORTS["address"]
            ctypes.memmove(ask.address, subject.addr + subject.port, 18)
        else:
            ask.sort = _SORTS["name"]
            ask.subject = FILE if opening else UNIX
            ask.symbol = _SYMBOLS[ask.subject]
            self._fill_name(subject.path if opening else subject.unix)

    def _fill_exec(self, subject: Subject) -> None:
        ask = self._ask
        ask.sort = _SORTS["exec"]
        self._fill_name(subject.path)
        cwd = (subject.cwd or b"/")[:-1]
        ctypes.memmove(ask.cwd, cwd, len(cwd))
        ask.cwd_len = len(cwd)
        if subject.args is not None:
            argv = b"argv0\0" + subject.args
            if subject.cut:
                self._cut = Cut(argv)
                ask.args, ask.args_size = self._cut.address, len(argv) + 100
            else:
                self._buffer = ctypes.create_string_buffer(argv, len(argv))
                ask.args, ask.args_size = ctypes.addressof(self._buffer), len(argv)

    def _fill_others(self, subject: Subject) -> None:
        for place in range(2):
            name = subject.others[place][:-1] if place < len(subject.others) else b""
            at = ctypes.addressof(self._ask.others) + place * SHORT
            ctypes.memmove(at, name, len(name))
            self._ask.others_len[place] = len(name)

    def _fill_name(self, name: bytes | None) -> None:
        bare = (name or b"/")[:-1]
        place = 0 if self._ask.sort == _SORTS["exec"] else PATH_MAX - len(bare)
        ctypes.memmove(ctypes.addressof(self._ask.name) + place, bare, len(bare))
        self._ask.name_len = len(bare)

    def close(self) -> None:
        del self._ask
        self._memory.close()
        for image in self._images.values():
            image.close()
        self._object.close()
