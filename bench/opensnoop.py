"""What bcc's own opensnoop does for each open, to compare with: told in Python, one by one.

A program: says "ready" once its probes are attached, and goes on until it is ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PAGES = 64  # of a perf buffer, as opensnoop has
PROBES = r"""
#include <linux/sched.h>
#include <uapi/linux/limits.h>

struct begun { const char *name; int flags; };
struct told { u64 id, time; int result, flags; char comm[TASK_COMM_LEN], name[NAME_MAX]; };

BPF_HASH(asked, u64, struct begun);
BPF_PERF_OUTPUT(opens);

TRACEPOINT_PROBE(syscalls, sys_enter_openat)
{
	u64 id = bpf_get_current_pid_tgid();
	struct begun begun = {.name = args->filename, .flags = args->flags};

	asked.update(&id, &begun);
	return 0;
}

TRACEPOINT_PROBE(syscalls, sys_exit_openat)
{
	u64 id = bpf_get_current_pid_tgid();
	struct begun *begun = asked.lookup(&id);
	struct told told = {};

	if (!begun)
		return 0;
	bpf_get_current_comm(&told.comm, sizeof(told.comm));
	bpf_probe_read_user_str(&told.name, sizeof(told.name), begun->name);
	told.id = id;
	told.time = bpf_ktime_get_ns();
	told.result = args->ret;
	told.flags = begun->flags;
	opens.perf_submit(args, &told, sizeof(told));
	asked.delete(&id);
	return 0;
}
"""


def main() -> None:
    """Prints as opensnoop does, to nowhere."""
    from bcc import BPF

    bpf = BPF(text=PROBES)
    with Path("/dev/null").open("w") as nowhere:

        def told(cpu: int, data: Any, size: int) -> None:
            one = bpf["opens"].event(data)
            name, comm = one.name.decode(errors="replace"), one.comm.decode(errors="replace")
            nowhere.write(f"{one.id >> 32:<6} {comm:<16} {one.result:4} {name}\n")

        bpf["opens"].open_perf_buffer(told, page_cnt=PAGES)
        print("ready", flush=True)
        while True:
            bpf.perf_buffer_poll()


if __name__ == "__main__":
    sys.exit(main())
