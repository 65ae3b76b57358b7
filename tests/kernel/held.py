"""What of BPF a process holds: the descriptors of a program and of its link, by their numbers."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.kernel.libbpf import ProgramInfo, calls


@dataclass(frozen=True, slots=True)
class Held:
    """Descriptors of another process. id: of the link."""

    program: int
    link: int
    id: int


def held(pid: int, name: str) -> Held:
    """Of the program of a name, as far as the kernel keeps it: 15 characters. Needs root.

    Where it was loaded more than once, of the last.
    """
    programs, links = {}, {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        lines: list[str] = []
        with suppress(FileNotFoundError):  # it was there for a moment
            lines = path.read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        if "prog_id" in told and _name(int(told["prog_id"])) == name[:15]:
            which = links if "link_id" in told else programs
            which[int(told["prog_id"])] = int(path.name), int(told.get("link_id", 0))
    last = max(links)
    return Held(programs[last][0], *links[last])


def detach(link: int) -> None:
    """BPF_LINK_DETACH of a link by its id. Raises OSError."""
    fd = calls().bpf_link_get_fd_by_id(link)
    try:
        if fd < 0 or calls().bpf_link_detach(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        if fd >= 0:
            os.close(fd)


def _name(program: int) -> str:
    info, fd = ProgramInfo(), calls().bpf_prog_get_fd_by_id(program)
    size = ctypes.c_uint32(ctypes.sizeof(info))
    assert not calls().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
    os.close(fd)
    return bytes(info.name).decode()
