"""The preventing tier: the programs on LSM hooks, and whether this kernel has them at all.

A kernel may list `bpf` among its security modules and still refuse such programs, and one hook may
be missing where the others are there: both are found by trying.
"""

from __future__ import annotations

import ctypes
import os
import re
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path

from agentwatch.kernel import libbpf

LIST = Path("/sys/kernel/security/lsm")
HOOKS = (
    "lsm_task_alloc",
    "lsm_bprm_check_security",
    "lsm_bprm_committed_creds",
    "lsm_mmap_file",
    "lsm_file_mprotect",
    "lsm_file_open",
    "lsm_file_receive",
    "lsm_inode_init_security_anon",
    "lsm_path_mknod",
    "lsm_path_unlink",
    "lsm_path_mkdir",
    "lsm_path_rmdir",
    "lsm_path_symlink",
    "lsm_path_rename",
    "lsm_path_link",
    "lsm_path_truncate",
    "lsm_file_truncate",
    "lsm_path_chmod",
    "lsm_path_chown",
    "lsm_inode_setxattr",
    "lsm_inode_removexattr",
    "lsm_inode_set_acl",
    "lsm_inode_remove_acl",
    "lsm_inode_create",
    "lsm_inode_mknod",
    "lsm_inode_mkdir",
    "lsm_inode_rmdir",
    "lsm_inode_unlink",
    "lsm_inode_symlink",
    "lsm_inode_link",
    "lsm_inode_rename",
    "lsm_inode_setattr",
    "lsm_socket_connect",
    "lsm_socket_sendmsg",
    "lsm_unix_stream_connect",
    "lsm_unix_may_send",
    "lsm_socket_create",
    "lsm_sb_mount",
    "lsm_move_mount",
    "lsm_sb_pivotroot",
    "lsm_sb_remount",
    "lsm_sb_umount",
    "lsm_userns_create",
)
"""Programs, each of the hook behind its prefix."""

NEWER = frozenset({"lsm_file_truncate", "lsm_inode_set_acl", "lsm_inode_remove_acl"})
"""Of what older kernels ask by another hook: nothing is missing without them."""

HOOKS_NEEDED = frozenset(HOOKS) - NEWER
"""What a kernel with BPF LSM has."""

_LSM_PROGRAM, _LSM_MAC = 29, 27  # linux/bpf.h: BPF_PROG_TYPE_LSM, BPF_LSM_MAC
_BTF_KIND_FUNC = 12  # linux/btf.h
_ALLOWS = bytes.fromhex("b7000000000000009500000000000000")  # return 0
_FAILED = re.compile(r"prog '(\w+)': failed to load")


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf, as far as attach_btf_id."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
    )


def listed() -> bool:
    """Whether BPF is among the security modules that were booted. False where that is not told."""
    try:
        return "bpf" in LIST.read_text().strip().split(",")
    except OSError:
        return False


def programs() -> frozenset[str]:
    """Those of HOOKS that this kernel has a hook for, if it takes such programs at all (root).

    It is tried: one that allows everything is loaded and attached for a moment.
    """
    if not listed() or os.geteuid() != 0:
        return frozenset()
    calls = libbpf.calls()
    calls.btf__load_vmlinux_btf.restype = c_void_p
    calls.btf__find_by_name_kind.argtypes = [c_void_p, c_char_p, c_uint32]
    calls.btf__free.argtypes = [c_void_p]
    types = calls.btf__load_vmlinux_btf()
    if not types:
        return frozenset()
    found = {
        name: int(calls.btf__find_by_name_kind(types, _function(name), _BTF_KIND_FUNC))
        for name in HOOKS
    }
    calls.btf__free(types)
    there = frozenset(name for name, number in found.items() if number > 0)
    return there if there and _attaches(found[min(there)]) else frozenset()


def _function(program: str) -> bytes:
    """The kernel's function that stands for the hook of a program."""
    return b"bpf_" + program.encode()


def _attaches(function: int) -> bool:
    """Whether a program on a function of the kernel's types can be loaded and attached."""
    program = _loaded(function)
    if program < 0:
        return False
    attached = libbpf.calls().bpf_raw_tracepoint_open(None, program)
    os.close(program)
    if attached < 0:
        return False
    os.close(attached)
    return True


def _loaded(function: int) -> int:
    """The descriptor of a program that allows everything, for a function of the kernel's types."""
    load = libbpf.calls().bpf_prog_load
    load.argtypes = [c_int, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p]
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), expected_attach_type=_LSM_MAC, attach_btf_id=function
    )
    count = len(_ALLOWS) // 8
    return int(load(_LSM_PROGRAM, b"trial", b"GPL", _ALLOWS, count, ctypes.byref(options)))


def refused(log: str) -> frozenset[str]:
    """The programs of HOOKS that a load failed for, by what libbpf said of it."""
    return frozenset(_FAILED.findall(log)) & frozenset(HOOKS)


def reason(log: str) -> str:
    """What the verifier objected to, in its own words: the last line before its numbers."""
    lines = [line.strip() for line in log.splitlines()]
    for place, line in enumerate(lines):
        if line.startswith("processed ") and place:
            return lines[place - 1]
    return next((line for line in reversed(lines) if line), "it does not say why")
