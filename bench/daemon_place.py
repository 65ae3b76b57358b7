"""`agentwatch daemon` as a measurement needs it, in a place of its own.

A daemon sees every process of the machine. What it takes for agents here are programs whose names
nobody else has, and all that a measurement starts lives in a cgroup of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML

from agentwatch.control.client import Client
from agentwatch.events import Exec
from agentwatch.sinks.reader import read
from bench.watched import AGENTWATCH, Memory, cpu_of, free_port, memory_of, metrics_at
from bench.workplace import REPOSITORY

PATIENCE = 30.0  # s
KNOCK = 0.01  # s between two programs like an agent's, while a daemon starts
_AGENTS = ("claude", "codex", "gemini")  # the first three of rules/identities.yaml
_PROGRAM = re.compile(rf"/bin/({'|'.join(_AGENTS)})\b")
MARK = "AGENTWATCH_BENCH"  # in the environment of all that an agent of ours runs
RULE = """\
schema: agentwatch/v1
rules:
  - id: nothing
    title: A rule on what is opened that nothing here breaks
    on: read
    match: {path: /nonexistent}
    action: alert
    severity: low
    because: A daemon has rules.
    tests: [{hit: {path: /nonexistent}}]
"""


class Place:
    """Where a daemon, its agents, its rules and its journal are."""

    def __init__(self, directory: Path, mount: Path) -> None:
        self.top, self.unique = directory, directory.name
        self.cgroup = mount / self.unique
        self.cgroup.mkdir()
        self.journal = directory / "journal"
        self.socket = directory / "control.sock"
        (directory / "bin").mkdir()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(os.fsencode(directory / "notify"))
        self._started: list[subprocess.Popen[bytes]] = []

    def rules(self, pack: bool) -> Path:
        """One rule, or the shipped packs; identities are programs that only we have."""
        made = self.top / ("pack" if pack else "one")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        if pack:
            for path in (REPOSITORY / "rules").glob("*.yaml"):
                (made / path.name).write_text(_PROGRAM.sub(self._ours, path.read_text()))
        else:
            (made / "rules.yaml").write_text(RULE)
        identities = YAML(typ="safe").load((REPOSITORY / "rules" / "identities.yaml").read_text())
        for number, agent in enumerate(identities["agents"]):
            agent["exec"] = [
                f"**/bin/{self._name(number, part)}" for part in range(len(agent["exec"]))
            ]
        (made / "identities.yaml").write_text(json.dumps(identities))
        return made

    def _ours(self, program: re.Match[str]) -> str:
        """In place of an agent's program in the tests of a rule."""
        return f"/bin/{self._name(_AGENTS.index(program[1]))}"

    def _name(self, number: int, part: int = 0) -> str:
        return f"stub-{self.unique}-{number}-{part}"

    def stub(self, number: int = 0) -> Path:
        """The program of the so-manieth agent: does what its arguments say."""
        path = self.top / "bin" / self._name(number)
        if not path.exists():
            path.write_text('#!/bin/sh\neval "$*"\n')
            path.chmod(0o755)
        return path

    def agent(self, script: str, number: int = 0) -> subprocess.Popen[bytes]:
        """Starts one, marked, in our cgroup."""
        enters = f'echo 0 > "{self.cgroup}/cgroup.procs"; {MARK}={self.unique} exec "$@"'
        started = subprocess.Popen(
            ["/bin/sh", "-c", enters, "sh", self.stub(number), script],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._started.append(started)
        return started

    @property
    def _knocker(self) -> Path:
        return self.top / "bin" / self._name(0, 1)  # another name of the first agent

    def knock(self) -> None:
        """Runs an agent that ends at once."""
        path = self._knocker
        if not path.exists():
            shutil.copy("/bin/true", path)
        os.waitpid(os.posix_spawn(path, [path.name], os.environ), 0)

    def knocked(self) -> int:
        """ns of boottime of the first of those that a journal has; 0 for none."""
        for entry in read(self.journal):
            if isinstance(entry.event, Exec) and entry.event.path == str(self._knocker):
                return entry.event.time
        return 0

    def kill(self, pid: int) -> None:
        """One that `agent` started and that was not reaped; nothing where it has ended."""
        for one in self._started:
            if one.pid == pid:
                one.kill()

    def is_ours(self, pid: int) -> bool:
        """Whether a process is in our cgroup, or gone."""
        try:
            return f"/{self.unique}" in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return True

    def reap(self) -> None:
        """Those that have ended."""
        self._started = [one for one in self._started if one.poll() is None]

    def marked(self) -> dict[int, int]:
        """What runs with our mark: pid -> ns of boottime at which it began."""
        wanted, found = f"{MARK}={self.unique}".encode(), {}
        for name in os.listdir("/proc"):
            with suppress(OSError, ValueError, IndexError):
                pid = int(name)
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    found[pid] = int(fields[19]) * 10**9 // os.sysconf("SC_CLK_TCK")
        return found

    def wait_for_ready(self, daemon: subprocess.Popen[bytes], knocking: bool = False) -> int:
        """Until it says READY: ns of boottime then. knocking: meanwhile, `knock`."""
        self._notify.settimeout(KNOCK if knocking else 0.5)
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            with suppress(TimeoutError):
                told = self._notify.recv(4096)
                if b"READY=1" in told.split(b"\n"):
                    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            if knocking:
                self.knock()
            if daemon.poll() is not None:
                break
        raise RuntimeError((self.top / "said").read_text() or "the daemon does not become ready")

    def quiet(self) -> None:
        """Ends all that was started here."""
        (self.cgroup / "cgroup.kill").write_text("1")
        limit = time.monotonic() + PATIENCE
        while (self.cgroup / "cgroup.procs").read_text() and time.monotonic() < limit:
            self.reap()
            time.sleep(0.02)

    def forget(self) -> None:
        """The journal of the daemons so far."""
        shutil.rmtree(self.journal, ignore_errors=True)

    def close(self) -> None:
        self.quiet()
        for path, _, _ in os.walk(self.cgroup, topdown=False):
            os.rmdir(path)
        self._notify.close()


class Daemon:
    """One that runs: begun and ready on construction. began, ready: ns of boottime.

    knocking: agents come by while it starts. journal: settings of it.
    """

    def __init__(
        self,
        place: Place,
        rules: Path,
        wrapper: Sequence[str] = (),
        knocking: bool = False,
        journal: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.place, self.port = place, free_port()
        self.pins = Path("/sys/fs/bpf/agentwatch-bench")
        settings: dict[str, Any] = {
            "mode": "enforce",
            "rules": [str(rules)],
            "socket": str(place.socket),
            "journal": {"dir": str(place.journal), **journal},
            "metrics": f"127.0.0.1:{self.port}",
            "cgroup": str(place.cgroup),
        }
        config = place.top / "agentwatch.yaml"
        config.write_text(json.dumps(settings))
        self._said = (place.top / "said").open("wb")
        self.began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.process = subprocess.Popen(
            [*wrapper, AGENTWATCH, "daemon", "--config", config],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(place.top / "notify"),
                "AGENTWATCH_PINS": str(self.pins),
            },
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said,
        )  # fmt: skip
        self.ready = place.wait_for_ready(self.process, knocking)

    def client(self) -> Client:
        return Client.connect(self.place.socket)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.request("status")
        return found

    def sessions(self) -> list[dict[str, Any]]:
        with self.client() as client:
            found: list[dict[str, Any]] = client.request("agents.list")["sessions"]
        return found

    def metrics(self) -> dict[tuple[str, str], float]:
        return metrics_at(self.port)

    def cpu(self) -> float:
        return cpu_of(self.process.pid)

    def memory(self) -> Memory:
        return memory_of(self.process.pid)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._said.close()


@contextmanager
def place() -> Iterator[Place]:
    """Made and taken away again, with all that runs in it."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mount = next(Path(fields[4]) for fields in mounts if "cgroup2" in fields)
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as made:
        directory = Path(made).resolve()
        directory.chmod(0o755)
        here = Place(directory, mount)
        try:
            yield here
        finally:
            here.close()


@contextmanager
def daemon(here: Place, rules: Path) -> Iterator[Daemon]:
    running = Daemon(here, rules)
    try:
        yield running
    finally:
        running.stop()


def turns(metrics: dict[tuple[str, str], float]) -> str:
    """The loop's turns in one line: how many there were, and how many took how long."""
    buckets = sorted(
        (float(bound), int(count))
        for (name, bound), count in metrics.items()
        if name == "loop_turn_seconds_bucket"
    )
    parts = [f"{buckets[-1][1]:,} turns"]
    for (low, below), (high, upto) in pairwise(buckets):
        if low >= 0.01 and upto > below:
            parts.append(f"{upto - below:,} of {low * 1e3:g} to {high * 1e3:g} ms")
    return ", ".join(parts)
