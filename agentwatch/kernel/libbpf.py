"""A thin binding of the distribution's libbpf.so.1: what the loader calls, typed, nothing else.

Everything libbpf and the kernel's verifier say goes into the error that is raised.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentwatch.errors import KernelError, ProgramRefused

SONAME = "libbpf.so.1"
_ARRAY = 2  # BPF_MAP_TYPE_ARRAY
_LOG_KEPT = 64 * 1024  # bytes of log kept: the verifier's last words are what matters

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get": (c_int, [c_char_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_value_size": (c_int, [c_void_p, c_uint32]),
    "bpf_map__inner_map": (c_void_p, [c_void_p]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__attach_cgroup": (c_void_p, [c_void_p, c_int]),
    "bpf_link__fd": (c_int, [c_void_p]),
    "bpf_link__open": (c_void_p, [c_char_p]),
    "bpf_link__destroy": (c_int, [c_void_p]),
    "bpf_link__disconnect": (None, [c_void_p]),
    "bpf_iter_create": (c_int, [c_int]),
    "bpf_map_create": (c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "bpf_prog_test_run_opts": (c_int, [c_int, c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_raw_tracepoint_open": (c_int, [c_char_p, c_int]),
    "libbpf_num_possible_cpus": (c_int, []),
    "libbpf_set_print": (c_void_p, [c_void_p]),
}
BTF = Path("/sys/kernel/btf/vmlinux")
_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts of bpf/libbpf.h, as far as btf_custom_path."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("unused", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
    )


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info of linux/bpf.h, as far as recursion_misses."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info of linux/bpf.h, as far as map_flags."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """What two maps have in common of which one can stand for the other. type: BPF_MAP_TYPE_*."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class _CgroupLink(ctypes.Structure):
    """struct bpf_link_info of linux/bpf.h, of a program on a cgroup."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("cgroup_id", c_uint64),
        ("attach_type", c_uint32),
        ("pad2", c_uint32),
    )


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _Library:
    """libbpf itself, opened on first use, and the log it writes."""

    def __init__(self) -> None:
        try:
            self.calls = ctypes.CDLL(SONAME, use_errno=True)
        except OSError as error:
            raise KernelError(
                f"{SONAME} cannot be loaded: {error}", "apt install libbpf1"
            ) from None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, arguments
        self.log: list[bytes] = []
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
        self._buffer = ctypes.create_string_buffer(_LOG_KEPT)
        self._print = _PRINT(self._keep)  # libbpf holds a pointer to it
        self.listen(True)

    def listen(self, listening: bool) -> None:
        """Whether what libbpf says is kept: each word of it waits for the interpreter's lock."""
        self.calls.libbpf_set_print(self._print if listening else None)

    def _keep(self, level: int, text: bytes, arguments: int) -> int:
        # An exception here would vanish in ctypes: nothing that can raise.
        if level <= 1:
            self._format(self._buffer, _LOG_KEPT, text, arguments)
            self.log.append(self._buffer.value)
        return 0

    def take_log(self) -> str:
        log, self.log = b"".join(self.log), []
        return log[-_LOG_KEPT:].decode(errors="replace")


_library: _Library | None = None


def _lib() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


def calls() -> Any:
    """The functions of libbpf. Raises KernelError where it is not installed."""
    return _lib().calls


def possible_cpus() -> int:
    """How many values a lookup in a per-CPU map gives."""
    return int(calls().libbpf_num_possible_cpus())


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def shape(fd: int) -> Shape:
    """Of a map that there is. Raises OSError for what is none."""
    info, size = _MapInfo(), c_uint32(ctypes.sizeof(_MapInfo))
    if calls().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)):
        raise _error("map info")
    return Shape(info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


def pin(fd: int, path: Path) -> None:
    """Keeps a map, a program or a link, whoever has it open. Raises OSError."""
    if calls().bpf_obj_pin(fd, os.fsencode(path)):
        raise _error(f"{path}: pin")


def pinned(path: Path) -> int:
    """The descriptor of what is pinned there. Raises OSError."""
    fd = int(calls().bpf_obj_get(os.fsencode(path)))
    if fd < 0:
        raise _error(str(path))
    return fd


class Map:
    """A map of a loaded object, by bytes. Missing keys are None, other failures OSError."""

    def __init__(self, name: str, fd: int, value_size: int, max_entries: int) -> None:
        self.name, self.fd, self.max_entries = name, fd, max_entries
        self._value_size = value_size

    def lookup(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_size)  # its own: a scrape looks up, too
        if calls().bpf_map_lookup_elem(self.fd, key, value):
            if ctypes.get_errno() == errno.ENOENT:
                return None
            raise _error(f"map {self.name}: look-up")
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        if calls().bpf_map_update_elem(self.fd, key, value, 0):
            raise _error(f"map {self.name}: update")

    def delete(self, key: bytes) -> bool:
        """False where there was no such key."""
        if calls().bpf_map_delete_elem(self.fd, key):
            if ctypes.get_errno() == errno.ENOENT:
                return False
            raise _error(f"map {self.name}: delete")
        return True

    def keys(self, key_size: int) -> Iterator[bytes]:
        """Every key; those added or removed meanwhile may or may not be among them."""
        key, following = None, ctypes.create_string_buffer(key_size)
        while not calls().bpf_map_get_next_key(self.fd, key, following):
            key = following.raw
            yield key


class PerCpuMap(Map):
    """One value per possible CPU, each padded to 8 bytes."""

    def __init__(self, name: str, fd: int, value_size: int, max_entries: int) -> None:
        self.size = (value_size + 7) & ~7
        super().__init__(name, fd, self.size * possible_cpus(), max_entries)

    def values(self, key: bytes) -> list[bytes]:
        raw = self.lookup(key) or b""
        return [raw[i : i + self.size] for i in range(0, len(raw), self.size)]


class ArrayMap(Map):
    """A map of one value that belongs to no object."""

    def close(self) -> None:
        os.close(self.fd)


def info_of(name: str, fd: int) -> ProgramInfo:
    """Statistics of a loaded program. run_cnt grows only while kernel.bpf_stats_enabled."""
    info = ProgramInfo()
    size = c_uint32(ctypes.sizeof(info))
    if calls().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)):
        raise _error(f"program {name}: info")
    return info


def attach_raw(name: str, tracepoint: str, fd: int) -> int:
    """Attaches a program to a raw tracepoint, until the descriptor is closed that this returns."""
    attached = int(calls().bpf_raw_tracepoint_open(tracepoint.encode(), fd))
    if attached < 0:
        raise _error(f"the probe {name} cannot be attached to {tracepoint}")
    return attached


class Object:
    """A BPF object: opened, then adjusted, then loaded, then attached; closed at the end."""

    def __init__(self, path: Path) -> None:
        self._lib = _lib()
        self._lib.take_log()
        self._links: dict[str, int] = {}
        self._ids: dict[str, int] = {}  # of their programs
        self._path = path
        self._adjustments: list[Callable[[], None]] = []
        self._open()

    def _open(self) -> None:
        # A type that this kernel does not have would be looked for in its modules as well, by calls
        # that take CAP_SYS_ADMIN; none of ours is a module's, so libbpf is told where to look.
        options = OpenOptions(ctypes.sizeof(OpenOptions), btf_custom_path=os.fsencode(BTF))
        path = os.fsencode(self._path)
        self._object = calls().bpf_object__open_file(path, ctypes.byref(options))
        if not self._object:
            raise self._refused(f"{self._path.name} cannot be opened")
        self.programs = {
            calls().bpf_program__name(program).decode(): program for program in self._walk()
        }

    def _walk(self) -> Iterator[int]:
        program = calls().bpf_object__next_program(self._object, None)
        while program:
            yield program
            program = calls().bpf_object__next_program(self._object, program)

    def _refused(self, what: str) -> ProgramRefused:
        code = ctypes.get_errno()
        log = self._lib.take_log()
        said = next((line for line in reversed(log.splitlines()) if line.strip()), "")
        return ProgramRefused(
            f"{what}: {os.strerror(code)} ({said.strip()})"
            if said
            else f"{what}: {os.strerror(code)}",
            "agentwatch doctor tells what this kernel lacks; the log above has the verifier's words"
            if log
            else "agentwatch doctor tells what this kernel lacks",
            log,
        )

    # Before load; again, should that be tried a second time.

    def _adjust(self, adjustment: Callable[[], None]) -> None:
        adjustment()
        self._adjustments.append(adjustment)

    def resize(self, name: str, max_entries: int) -> None:
        """The room of a map (of a ring: its bytes, a power of two)."""

        def adjustment() -> None:
            if calls().bpf_map__set_max_entries(self._map(name), max_entries):
                raise _error(f"map {name}: max_entries {max_entries}")

        self._adjust(adjustment)

    def resize_inner(self, name: str, value_size: int) -> None:
        """The bytes of a value of the maps that a map of maps holds."""

        def adjustment() -> None:
            inner = calls().bpf_map__inner_map(self._map(name))
            if not inner or calls().bpf_map__set_value_size(inner, value_size):
                raise _error(f"map {name}: inner values of {value_size} bytes")

        self._adjust(adjustment)

    def set_constants(self, name: str, value: bytes) -> None:
        """A section of read-only data. Raises KernelError where that is of another size."""

        def adjustment() -> None:
            size = c_size_t()
            constants = self._map(name)
            place = calls().bpf_map__initial_value(constants, ctypes.byref(size))
            if not place or size.value != len(value):
                raise KernelError(f"the object has {size.value} bytes of constants", "make")
            ctypes.memmove(place, value, len(value))

        self._adjust(adjustment)

    def only(self, names: frozenset[str]) -> None:
        """Leave every other program out."""

        def adjustment() -> None:
            for name, program in self.programs.items():
                calls().bpf_program__set_autoload(program, name in names)

        self._adjust(adjustment)

    def shapes(self) -> dict[str, Shape]:
        """Every map by the name it has in the object, as it is made unless another is reused."""
        lib, found = calls(), {}
        for name in self._map_names():
            one = self._map(name)
            found[name] = Shape(
                lib.bpf_map__type(one),
                lib.bpf_map__key_size(one),
                lib.bpf_map__value_size(one),
                lib.bpf_map__max_entries(one),
                lib.bpf_map__map_flags(one),
            )
        return found

    def _map_names(self) -> Iterator[str]:
        at = calls().bpf_object__next_map(self._object, None)
        while at:
            yield calls().bpf_map__name(at).decode()
            at = calls().bpf_object__next_map(self._object, at)

    def reuse(self, name: str, fd: int) -> None:
        """Takes a map that there is, of the same shape, in place of one of its own."""

        def adjustment() -> None:
            if calls().bpf_map__reuse_fd(self._map(name), fd):
                raise _error(f"map {name}: reuse")

        self._adjust(adjustment)

    def load(self) -> None:
        """Raises ProgramRefused with what libbpf and the verifier say of a second try."""
        self._lib.listen(False)
        try:
            refused = calls().bpf_object__load(self._object)
        finally:
            self._lib.listen(True)
        if refused:
            calls().bpf_object__close(self._object)
            self._open()
            for adjustment in self._adjustments:
                adjustment()
            calls().bpf_object__load(self._object)
            raise self._refused("the kernel refused the probes")

    def _map(self, name: str) -> int:
        found = calls().bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KernelError(f"the object has no map {name}", "make clean && make")
        return int(found)

    def map(self, name: str) -> Map:
        return Map(name, *self._sizes(name))

    def per_cpu_map(self, name: str) -> PerCpuMap:
        return PerCpuMap(name, *self._sizes(name))

    def _sizes(self, name: str) -> tuple[int, int, int]:
        found = self._map(name)
        lib = calls()
        return (
            lib.bpf_map__fd(found),
            lib.bpf_map__value_size(found),
            lib.bpf_map__max_entries(found),
        )

    def array(self, name: str, value_size: int) -> ArrayMap:
        """A map of one value beside those of the object; closed by its owner."""
        fd = calls().bpf_map_create(_ARRAY, name.encode(), 4, value_size, 1, None)
        if fd < 0:
            raise _error(f"map {name}: {value_size} bytes")
        return ArrayMap(name, fd, value_size, 1)

    def memory(self, name: str) -> mmap.mmap:
        """After load: a global-data map as the kernel sees it. Writes take effect at once."""
        fd, size, _ = self._sizes(name)
        pages = -(-size // mmap.PAGESIZE)
        return mmap.mmap(fd, pages * mmap.PAGESIZE, mmap.MAP_SHARED)

    def attach(self, name: str) -> None:
        link = calls().bpf_program__attach(self.programs[name])
        if not link:
            raise self._refused(f"the probe {name} cannot be attached")
        self._linked(name, link)

    def attach_cgroup(self, name: str, cgroup: int) -> None:
        """To a cgroup (the descriptor of its directory), beside what others attach there."""
        link = calls().bpf_program__attach_cgroup(self.programs[name], cgroup)
        if not link:
            raise self._refused(f"the probe {name} cannot be attached to the cgroup")
        self._linked(name, link)

    def _linked(self, name: str, link: int) -> None:
        self._links[name] = link
        self._ids[name] = int(self.info(name).id)

    def cgroup_of(self, name: str) -> int:
        """The id (inode) of the cgroup a program is attached to; 0: to none, or that is gone."""
        info = self._link_of(name)
        return int(info.cgroup_id) if info is not None else 0

    def is_attached(self, name: str) -> bool:
        """Whether the link that was made is there still, and runs this program."""
        return self._link_of(name) is not None

    def _link_of(self, name: str) -> _CgroupLink | None:
        """What the kernel says of a program's link; None where it has none, or another program's.

        Somebody may have put another program into it, or closed what holds it.
        """
        link, info = self._links.get(name), _CgroupLink()
        size = c_uint32(ctypes.sizeof(info))
        if link is None or calls().bpf_obj_get_info_by_fd(
            calls().bpf_link__fd(link), ctypes.byref(info), ctypes.byref(size)
        ):
            return None
        return info if info.prog_id == self._ids.get(name) else None

    def attach_again(self, name: str) -> None:
        """After its link was lost. Raises ProgramRefused."""
        self._give_up(name)
        self.attach(name)

    def take_up(self, name: str, path: Path) -> bool:
        """Goes on with the link that is pinned there, after its descriptor was lost.

        False where that is none of this program's.
        """
        link = calls().bpf_link__open(os.fsencode(path))
        if not link:
            return False
        self._give_up(name)
        self._links[name] = link
        if self.is_attached(name):
            return True
        self.detach(name)
        return False

    def _give_up(self, name: str) -> None:
        """What has the number of a lost link now may be somebody else's: it is not closed."""
        link = self._links.pop(name, None)
        if link:
            calls().bpf_link__disconnect(link)
            calls().bpf_link__destroy(link)

    def program(self, name: str) -> int:
        """The descriptor of a loaded program."""
        return int(calls().bpf_program__fd(self.programs[name]))

    def link(self, name: str) -> int:
        """The descriptor of an attached program's link."""
        return int(calls().bpf_link__fd(self._links[name]))

    def detach(self, name: str) -> None:
        """A second time does nothing."""
        link = self._links.pop(name, None)
        if link:
            calls().bpf_link__destroy(link)

    def run(self, name: str, context: bytes = b"") -> bytes:
        """Runs a program of SEC("syscall") once; its context afterwards."""
        memory = ctypes.create_string_buffer(context, len(context))
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            ctx_in=ctypes.addressof(memory) if context else None,
            ctx_size_in=len(context),
        )
        fd = calls().bpf_program__fd(self.programs[name])
        if calls().bpf_prog_test_run_opts(fd, ctypes.byref(options)):
            raise _error(f"program {name}: run")
        if options.retval:
            raise OSError(errno.EINVAL, f"program {name} returned {options.retval}")
        return memory.raw

    @property
    def attached(self) -> frozenset[str]:
        return frozenset(name for name in list(self._links) if self.is_attached(name))

    def iterate(self, name: str) -> bytes:
        """Runs an attached iterator program over everything it iterates; what it wrote.

        In small pieces: the kernel runs the program again for what does not fit its own buffer.
        """
        fd = calls().bpf_iter_create(calls().bpf_link__fd(self._links[name]))
        if fd < 0:
            raise _error(f"iterator {name}")
        try:
            return b"".join(iter(lambda: os.read(fd, 4096), b""))
        finally:
            os.close(fd)

    def info(self, name: str) -> ProgramInfo:
        """Statistics of a loaded program. run_cnt grows only while kernel.bpf_stats_enabled."""
        return info_of(name, self.program(name))

    def close(self) -> None:
        """Detaches and unloads everything; a second call does nothing."""
        for link in self._links.values():
            calls().bpf_link__destroy(link)
        self._links = {}
        if self._object:
            calls().bpf_object__close(self._object)
            self._object = None
