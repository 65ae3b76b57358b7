"""`agentwatch bugreport`: what whoever helps needs to know, in one file, and no secret.

No event, command line, path of an agent's, rule or journal is in it, and of the environment and of
home directories nothing: what the host is, what agentwatch says of itself, and its service's log.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import click

from agentwatch import __version__, command
from agentwatch.cli.asking import ask, socket_option
from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.sinks.redact import Redactor

PATIENCE = 20.0  # s for anything that is asked
LOG_LINES = 500
KERNEL = ("BPF", "LSM", "BTF", "FTRACE_SYSCALLS", "CGROUP", "PREEMPT", "IO_URING", "LOCK_DOWN")
BOOTED = ("lsm=", "security=", "lockdown=", "preempt=", "cgroup", "systemd.unified", "apparmor=")
SETTINGS = (
    "kernel/unprivileged_bpf_disabled",
    "kernel/bpf_stats_enabled",
    "kernel/io_uring_disabled",
    "kernel/kptr_restrict",
    "kernel/yama/ptrace_scope",
    "kernel/pid_max",
    "net/core/bpf_jit_enable",
)
LIBRARIES = ("click", "google-re2", "msgpack", "prometheus-client", "psutil", "ruamel.yaml")
UNSAID = ("rules", "config", "journal", "paused", "problems")
"""Of the status: names of rules and of files are the operator's business."""


@click.command()
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.  [default: agentwatch-bugreport-TIME.tar.gz here]",
)
@socket_option
def bugreport(path: Path | None, socket: Path) -> None:
    """Collect what whoever helps needs to know: this host, doctor, status, versions, the log.

    Look at it before you send it: it is a tar.gz of text files, with no events, no rules and no
    command lines in it.
    """
    name = time.strftime("agentwatch-bugreport-%Y%m%dT%H%M%SZ", time.gmtime())
    path = path or Path(f"{name}.tar.gz")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise UsageError(message, "name another one with --to") from None
    with os.fdopen(fd, "wb") as file, tarfile.open(mode="w:gz", fileobj=file) as archive:
        for title, text in _parts(socket):
            data = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{name}/{title}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    click.echo(path)


def _parts(socket: Path) -> Iterator[tuple[str, str]]:
    """Names and texts; what fails says why in its place."""
    parts: tuple[tuple[str, Callable[[], str]], ...] = (
        ("versions.txt", _versions),
        ("doctor.json", lambda: _said([*command.itself(), "doctor", "-o", "json"])),
        ("status.json", lambda: _status(socket)),
        ("kernel.txt", _kernel),
        ("mounts.txt", _mounts),
        ("service.txt", lambda: _said(["systemctl", "--no-pager", "show", "agentwatch.service"])),
        ("log.txt", _log),
    )
    for name, make in parts:
        try:
            yield name, make()
        except (OSError, AgentwatchError, ValueError) as error:
            yield name, f"not to be had: {error}\n"


def _said(line: list[str]) -> str:
    """What a command says, its errors included."""
    try:
        ran = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{line[0]} did not answer within {PATIENCE:.0f} s\n"
    return ran.stdout.decode("utf-8", "replace")


def _versions() -> str:
    lines = [f"agentwatch {__version__}", f"python {sys.version}", f"machine {platform.machine()}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name}: brought along, or not there")
    try:
        lines += Path("/etc/os-release").read_text().splitlines()
    except OSError:
        lines.append("no /etc/os-release")
    return "\n".join(lines) + "\n"


def _status(socket: Path) -> str:
    """Numbers and states."""
    answer = ask(socket, "status")
    for name in UNSAID:
        value = answer.pop(name, None)
        if isinstance(value, dict):
            answer[name] = {k: v for k, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, list | tuple):
            answer[name] = len(value)
    return json.dumps(answer, indent=2, default=str) + "\n"


def _kernel() -> str:
    release = os.uname()
    lines = [f"{release.sysname} {release.release} {release.version}"]
    words = Path("/proc/cmdline").read_text().split()
    lines.append("booted with: " + " ".join(word for word in words if word.startswith(BOOTED)))
    try:
        lines.append(f"lsm: {Path('/sys/kernel/security/lsm').read_text().strip()}")
    except OSError as error:
        lines.append(f"lsm: {error.strerror}")
    for name in SETTINGS:
        try:
            lines.append(f"{name} = {(Path('/proc/sys') / name).read_text().strip()}")
        except OSError:
            continue
    return "\n".join([*lines, *_config(release.release)]) + "\n"


def _config(release: str) -> list[str]:
    """The lines of the kernel's configuration that are about what we use."""
    for path in (Path(f"/boot/config-{release}"), Path("/proc/config.gz")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        lines = text.decode("utf-8", "replace").splitlines()
        return [line for line in lines if any(word in line for word in KERNEL)]
    return ["no configuration of this kernel in /boot or /proc"]


def _mounts() -> str:
    """Of the file systems that we use."""
    wanted = ("cgroup", "bpf", "tracefs", "securityfs")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return "\n".join(one for one in lines if one.split(" - ")[1].startswith(wanted)) + "\n"


def _log() -> str:
    """The service's own lines; findings, which name what agents did, are left out."""
    line = ["journalctl", "--no-pager", "-u", "agentwatch.service", "-n", str(LOG_LINES)]
    said = _said([*line, "-o", "json", "--output-fields=MESSAGE,AGENTWATCH_FRAME"])
    redactor, kept = Redactor.load(), []
    for text in said.splitlines():
        try:
            entry = json.loads(text)
        except ValueError:
            kept.append(text)
            continue
        if entry.get("AGENTWATCH_FRAME") not in ("verdict", "kill"):
            words = str(entry.get("MESSAGE", "")).split(" ")
            at = int(entry.get("__REALTIME_TIMESTAMP", 0)) // 1_000_000
            clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
            kept.append(f"{clock} {' '.join(redactor.argv(tuple(words), False))}")
    return "\n".join(kept) + "\n"
