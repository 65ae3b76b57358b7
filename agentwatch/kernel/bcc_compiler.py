"""What bcc does: bpf/bcc.c, compiled for this kernel and loaded, in a process of its own.

A compiler takes its time and 150 MB, says what it has to say on stderr, and may end the process it
is in. None of that is for whoever watches, who starts this as
`python -m agentwatch.kernel.bcc_compiler SOCKET FLAG...` and gets from the socket one descriptor
for each of PROGRAMS and MAPS, in that order; or none, and COMPILING or what program was refused.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

HOOKS: Mapping[str, str] = MappingProxyType(
    {
        "process_fork": "sched_process_fork",
        "process_exit": "sched_process_exit",
        "process_exec": "sched_process_exec",
        "tcp_syn": "inet_sock_set_state",
        "sys_exit": "sys_exit",
    }
)
"""By program: its raw tracepoint."""

GOING_ON = (
    "on_open",
    "on_connect",
    "on_change",
    "on_rename",
    "exec_cwd",
    "exec_rest",
    "on_mount",
    "on_source",
)
"""Programs that go on where one of those ends, in the order of their numbers in bpf/bcc.c."""

PROGRAMS = (*HOOKS, *GOING_ON)
RINGS = ("lifecycle", "activity")
MAPS = (*RINGS, "mirror", "sessions", "literals", "counters", "control", "told", "on")
COMPILING = "compiling"
_SHIPPED = Path(__file__).parent.parent / "data" / "bpf"
_OWN = Path(__file__).parent.parent.parent / "bpf"


def sources() -> Path:
    """The directory of bcc.c: of an installed agentwatch, else of the source tree."""
    return _SHIPPED if _SHIPPED.is_dir() else _OWN


def _rename_lock() -> str:
    """Where the kernel keeps it, in hexadecimal; 0 where it does not say."""
    symbols = Path("/proc/kallsyms").read_bytes()
    found = re.search(rb"^([0-9a-f]+) \w rename_lock$", symbols, re.MULTILINE)
    return f"0x{found[1].decode()}" if found else "0"


def _loaded(flags: Sequence[str]) -> tuple[str, list[int]]:
    """What is to be answered. bcc closes its descriptors when its objects go: these are copies."""
    from bcc import BPF  # only here: it takes a second, and need not be there
    from bcc.libbcc import lib

    place = sources()
    given = ["-I", str(place), "-fno-jump-tables", f"-DRENAME_LOCK={_rename_lock()}", *flags]
    try:
        bpf = BPF(text=(place / "bcc.c").read_bytes(), cflags=given)
    except Exception as error:  # it raises nothing narrower
        sys.stderr.write(f"{error}\n")
        return COMPILING, []
    found = []
    for name in PROGRAMS:
        try:
            found.append(os.dup(bpf.load_func(name, BPF.RAW_TRACEPOINT).fd))
        except Exception as error:
            sys.stderr.write(f"{error}\n")
            return name, []
    # Not bpf[name]: that guesses what a value is made of, and ends the process where it cannot.
    found += [os.dup(lib.bpf_table_fd(bpf.module, name.encode())) for name in MAPS]
    return "", found


def main(arguments: Sequence[str]) -> None:
    """Answers once. arguments: the number of the socket, flags for the compiler."""
    with socket.socket(fileno=int(arguments[0])) as asking:
        said, descriptors = _loaded(arguments[1:])
        socket.send_fds(asking, [said.encode() or b"loaded"], descriptors)


if __name__ == "__main__":
    main(sys.argv[1:])
