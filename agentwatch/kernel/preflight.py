"""What this kernel and this machine can do: found by looking, never by a version number."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.errors import AgentwatchError, KernelError, ProgramRefused
from agentwatch.kernel import libbpf

BTF = Path("/sys/kernel/btf/vmlinux")
LSM = Path("/sys/kernel/security/lsm")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
TRACEFS = Path("/sys/kernel/tracing/events")
BPFFS = Path("/sys/fs/bpf")
MODULES = Path("/lib/modules")
KHEADERS = Path("/sys/kernel/kheaders.tar.xz")
_PROC_PID_INIT_INO = 0xEFFFFFFC  # linux/proc_ns.h: the initial PID namespace
_CAPABILITIES = {39: "CAP_BPF", 38: "CAP_PERFMON", 5: "CAP_KILL", 19: "CAP_SYS_PTRACE"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `doctor`. needed: without it agentwatch cannot watch at all."""

    name: str
    ok: bool
    says: str
    remedy: str = ""
    needed: bool = False


def checks() -> list[Check]:
    """Everything `doctor` looks at, in the order it is shown."""
    return [check() for check in _CHECKS]


def _kernel() -> Check:
    machine = platform.machine()
    return Check(
        "kernel",
        machine == "x86_64",
        f"{platform.release()} {machine}",
        "the probes read x86-64 registers: other machines are not supported yet",
        needed=True,
    )


def _btf() -> Check:
    if BTF.exists():
        return Check("btf", True, f"{BTF} ({BTF.stat().st_size // 1024} KiB)")
    return Check(
        "btf",
        False,
        f"{BTF} is missing: it takes the bcc loader, whose probes decide nothing",
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    )


_CORE_NEEDS = {"bpf_loop": b"bpf_loop", "task storage": b"bpf_task_storage_get"}


def core_lacks() -> tuple[str, ...]:
    """What the core loader needs and this kernel has not; its types name its functions."""
    try:
        types = BTF.read_bytes()
    except OSError:
        return ("BTF",)
    return tuple(name for name, had in _CORE_NEEDS.items() if b"\0" + had + b"\0" not in types)


def bcc_lacks() -> KernelError | None:
    """What the bcc loader needs and this machine has not; None for nothing."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return KernelError(
            "python3-bpfcc is not installed, or not seen from here",
            "apt install python3-bpfcc; a virtual environment sees it with --system-site-packages",
        )
    if not (Path(found.origin).parent / "libbcc.py").exists():
        return KernelError(
            f"{found.origin} is not the BPF compiler collection: the package called bcc on PyPI is "
            "an unrelated lattice library",
            "pip uninstall bcc; apt install python3-bpfcc",
        )
    release = platform.release()
    given = os.environ.get("BCC_KERNEL_SOURCE")
    place = Path(given) if given else MODULES / release
    if KHEADERS.exists() or any((place / name).is_dir() for name in ("include", "build/include")):
        return None
    return KernelError(
        f"the headers of this kernel are missing: {place} has none",
        f"apt install linux-headers-{release}",
    )


def loader() -> str:
    """The one for this kernel: core | bcc."""
    return "bcc" if core_lacks() else "core"


def _loader() -> Check:
    lacks = core_lacks()
    if not lacks:
        return Check("loader", True, "core", needed=True)
    says = f"bcc, for this kernel lacks {' and '.join(lacks)}"
    lacking = bcc_lacks()
    if lacking is None:
        return Check("loader", True, f"{says}: rules kill after", needed=True)
    return Check("loader", False, f"{says}; {lacking.message}", lacking.remedy, needed=True)


def _capabilities() -> Check:
    held = int(_status("CapEff"), 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not held & (1 << bit)]
    if not missing:
        return Check("capabilities", True, ", ".join(_CAPABILITIES.values()), needed=True)
    remedy = "run it as root, or with sudo"
    return Check("capabilities", False, f"missing {', '.join(missing)}", remedy, True)


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    return "0"


def _pid_namespace() -> Check:
    initial = os.stat("/proc/self/ns/pid").st_ino == _PROC_PID_INIT_INO
    return Check(
        "pid namespace",
        initial,
        "the initial one" if initial else "not the initial one: pids here are not the kernel's",
        "run agentwatch on the host, not in a container",
        needed=True,
    )


def _library() -> Check:
    try:
        version = libbpf.calls().libbpf_version_string
        version.restype = ctypes.c_char_p
        return Check("libbpf", True, f"{libbpf.SONAME} {version().decode()}", needed=True)
    except AgentwatchError as error:
        return Check("libbpf", False, error.message, error.remedy, True)


def _lsm() -> Check:
    try:
        active = LSM.read_text().strip()
    except OSError:
        return Check(
            "lsm list",
            False,
            f"{LSM} cannot be read",
            "mount -t securityfs securityfs /sys/kernel/security (as root)",
        )
    if "bpf" in active.split(","):
        return Check("lsm list", True, active)
    return Check(
        "lsm list",
        False,
        f"no bpf in {active}: nothing can be denied before it happens, rules kill instead",
        f"boot with lsm={active},bpf (on Debian: GRUB_CMDLINE_LINUX in /etc/default/grub)",
    )


def _lockdown() -> Check:
    """What kernels without it, and a root that cannot see it, have is "none"."""
    level = "none"
    with suppress(OSError, IndexError):
        level = LOCKDOWN.read_text().split("[")[1].split("]")[0]
    if level != "confidentiality":
        return Check("lockdown", True, level, needed=True)
    says = "confidentiality: the kernel lets nobody read its memory, and no probe can be loaded"
    return Check(
        "lockdown", False, says, "boot with lockdown=integrity, or without lockdown=", True
    )


def _cgroup() -> Check:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] == "cgroup2":
            return Check("cgroup2", True, fields[4])
    return Check(
        "cgroup2", False, "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup (as root)"
    )


def _directory(name: str, path: Path, kind: str, mount: str, without: str) -> Check:
    mounted = any(
        fields[fields.index("-") + 1] == kind
        for fields in (
            line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
    )
    if mounted:
        return Check(name, True, str(path))
    return Check(name, False, f"not mounted: {without}", f"mount -t {kind} {mount} (as root)")


def _tracefs() -> Check:
    where, without = TRACEFS.parent, "nothing here needs it yet"
    return _directory("tracefs", where, "tracefs", f"tracefs {where}", without)


def _bpffs() -> Check:
    without = "what a daemon enforces ends with it, however it ends"
    return _directory("bpffs", BPFFS, "bpf", f"bpf {BPFFS}", without)


_CHECKS: tuple[Callable[[], Check], ...] = (
    _kernel,
    _btf,
    _loader,
    _capabilities,
    _pid_namespace,
    _library,
    _lsm,
    _lockdown,
    _cgroup,
    _tracefs,
    _bpffs,
)


def explain(error: ProgramRefused) -> ProgramRefused:
    """The same refusal with the likeliest reason in front, where a check finds one."""
    broken = next((check for check in checks() if check.needed and not check.ok), None)
    if broken is None:
        return error
    message = f"{error.message}; {broken.name}: {broken.says}"
    return ProgramRefused(message, broken.remedy, error.log)
