"""A real `agentwatch daemon` in a place of its own, and the agents it watches.

A daemon sees every process of the machine. What it may act on is in its rules: identities here are
names that only the test's own programs have, and all that a test starts lives in a cgroup of its
own, which is killed at the end.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from agentwatch.control.client import Client
from agentwatch.errors import UsageError
from agentwatch.events import NO_PROCESS, Event
from agentwatch.sinks.frames import Frame
from agentwatch.sinks.reader import Entry, read
from agentwatch.sinks.verify import ChainReport, verify
from tests.conftest import GUEST
from tests.kernel.launching import eventually

NOBODY = 65534
PATIENCE = 240 if GUEST.exists() else 60  # s that anything may take
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

OneFrame = TypeVar("OneFrame", bound=Frame)
OneEvent = TypeVar("OneEvent", bound=Event)

RULES = """\
schema: agentwatch/v1
agents:
{agents}rules:
{rules}"""
AGENT = """\
  - {{id: {name}, title: A {name}, exec: ["**/bin/{name}-{unique}"]}}
"""
RULE = """\
  - id: test.{name}
    title: The {name}
    on: read
    match: {{path: "{place}/{name}"}}
    action: {action}
    because: It is the {name}.
    instead: Ask for another {name}.
    tests: [{{hit: {{path: "{place}/{name}"}}}}]
"""


def until(claim: Callable[[], object], what: str) -> None:
    """Waits for something to come true; fails where it does not."""
    assert eventually(claim, PATIENCE), f"{what}: not within {PATIENCE} s"


def taken(fd: int, size: int, what: str) -> bytes:
    """What there is to read, at most `size` bytes, once there is some; none at the end."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    assert waiting.poll(PATIENCE * 1000), f"{what}: not within {PATIENCE} s"
    return os.read(fd, size)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it writes, without its end; "" where it ends without one."""
    assert process.stdout is not None
    line, what = b"", f"a line of {process.args!r}"
    while byte := taken(process.stdout.fileno(), 1, what):  # the next line is left where it is
        if byte == b"\n":
            break
        line += byte
    return line.decode()


def cue(process: subprocess.Popen[str]) -> None:
    """Writes the line that it waits for."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


class Supervisor:
    """The other end of NOTIFY_SOCKET: what the daemon tells systemd, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fsencode(path))
        self._socket.setblocking(False)
        self._told: list[str] = []

    @property
    def told(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self._told.append(self._socket.recv(4096).decode())
        return self._told

    def count(self, word: str) -> int:
        """Messages with this line in them."""
        return sum(word in message.split("\n") for message in self.told)

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


class Place:
    """Where one test's daemons, agents, rules and journal are."""

    def __init__(self, agentwatch: Path, directory: Path, mount: Path) -> None:
        self.agentwatch, self.directory, self.unique = agentwatch, directory, directory.name
        self.cgroup = mount / self.unique
        self.cgroup.mkdir()
        (directory / "bin").mkdir()
        for name in ("key", "other"):
            (directory / name).write_text(f"the {name}\n")
        self.identities = ["stub"]
        self.rules = {"key": "kill"}
        self.settings: dict[str, Any] = {
            "mode": "enforce",
            "rules": [str(directory / "rules.yaml")],
            "socket": str(self.socket),
            "journal": {"dir": str(self.journal)},
            "metrics": "off",
            "cgroup": str(self.cgroup),
        }
        self.supervisor = Supervisor(directory / "notify")
        self._agents: list[subprocess.Popen[str]] = []
        self._daemons: list[Daemon] = []
        self.write()

    def __getitem__(self, name: str) -> Path:
        return self.directory / name

    @property
    def socket(self) -> Path:
        return self.directory / "control.sock"

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    @property
    def pins(self) -> Path:
        """Where what outlives its daemons is; bpffs takes no dot."""
        return Path("/sys/fs/bpf") / self.unique

    @property
    def config(self) -> Path:
        return self.directory / "agentwatch.yaml"

    def write(self, **settings: Any) -> None:
        """The configuration and the rules as they are to be from now on. None: without that key."""
        self.settings |= settings
        lines = [f"{k}: {json.dumps(v)}\n" for k, v in self.settings.items() if v is not None]
        self.config.write_text("".join(lines))
        rules = "".join(
            RULE.format(name=name, action=action, place=self.directory)
            for name, action in self.rules.items()
        )
        agents = "".join(AGENT.format(name=one, unique=self.unique) for one in self.identities)
        self["rules.yaml"].write_text(RULES.format(agents=agents, rules=rules))

    # Daemons.

    def start(
        self, *prefix: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> Daemon:
        """A daemon with the configuration as it is; waits until it is ready, unless not `check`."""
        ready = self.supervisor.count("READY=1")
        daemon = Daemon(self, prefix, env or {})
        self._daemons.append(daemon)
        if check:
            until(lambda: self.supervisor.count("READY=1") > ready or daemon.gone, "READY")
            assert not daemon.gone, daemon.err
        return daemon

    @property
    def latest(self) -> Daemon:
        """That was started last."""
        return self._daemons[-1]

    # Agents, and others.

    def program(self, name: str) -> Path:
        """A shell script of that name which does what its arguments say."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text('#!/bin/sh\neval "$*"\n')
            path.chmod(0o755)
        return path

    @property
    def stub(self) -> Path:
        """The agent."""
        return self.program(f"bin/stub-{self.unique}")

    def agent(self, script: str, name: str = "stub", **more: Any) -> subprocess.Popen[str]:
        """Starts an agent with a shell script to do. more: as `process` takes them."""
        return self.process(self.program(f"bin/{name}-{self.unique}"), script, **more)

    def process(self, *command: str | Path, uid: int = 0, **more: Any) -> subprocess.Popen[str]:
        """Starts a command that nobody has tagged, in the test's cgroup."""
        enters = f'echo $$ > "{self.cgroup}/cgroup.procs" && exec "$@"'
        prefix = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups") if uid else ()
        line = ["/bin/sh", "-c", enters, "sh", *prefix, *map(str, command)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started = subprocess.Popen(line, text=True, **(pipes | more))
        self._agents.append(started)
        return started

    def pids(self) -> list[int]:
        """Every process that the test has started and that is still there, zombies too."""
        found = []
        for path, _, _ in os.walk(self.cgroup):
            with suppress(OSError):
                found += (Path(path) / "cgroup.procs").read_text().split()
        return list(map(int, found))

    # The journal.

    def entries(self, directory: Path | None = None) -> list[Entry]:
        return list(read(directory or self.journal))

    def frames(self, kind: type[OneFrame]) -> list[OneFrame]:
        return [e.frame for e in self.entries() if isinstance(e.frame, kind)]

    def awaited(self, kind: type[OneFrame], count: int = 1) -> list[OneFrame]:
        """The same, once there are so many: the daemon writes some of them only twice a second."""
        until(lambda: len(self.frames(kind)) >= count, f"{count} {kind.__name__}")
        return self.frames(kind)

    def of_session(self, kind: type[OneFrame], pid: int, count: int = 1) -> list[OneFrame]:
        """Frames about the session of this pid, once there are so many."""

        def found() -> list[OneFrame]:
            return [f for f in self.frames(kind) if getattr(f, "session", NO_PROCESS).pid == pid]

        until(lambda: len(found()) >= count, f"{count} {kind.__name__} of {pid}")
        return found()

    def events(self, kind: type[OneEvent]) -> list[OneEvent]:
        return [e.event for e in self.entries() if isinstance(e.event, kind)]

    def events_of(self, session: int) -> list[Event]:
        """Everything that was recorded of the session of this pid."""
        events = [e.event for e in self.entries() if e.event is not None]
        return [event for event in events if event.session.pid == session]

    def report(self) -> ChainReport:
        """What `journal verify` finds in the daemon's chain."""
        (report,) = verify(self.journal)
        return report

    def end_agents(self) -> None:
        """And everybody else whom the test has started."""
        (self.cgroup / "cgroup.kill").write_text("1")
        for agent in self._agents:
            agent.wait(PATIENCE)
            for stream in (agent.stdin, agent.stdout, agent.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        self._agents.clear()
        until(lambda: not self.pids(), "the end of all processes")

    def close(self) -> None:
        """Ends all of it, and leaves nothing."""
        for daemon in self._daemons:
            daemon.end()
        self.end_agents()
        for path, _, _ in os.walk(self.cgroup, topdown=False):
            until(partial(_removed, Path(path)), f"the end of {path}")
        self.supervisor.close()
        shutil.rmtree(self.pins, ignore_errors=True)


def _removed(cgroup: Path) -> bool:
    with suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


class Daemon:
    """One process of `agentwatch daemon`."""

    def __init__(self, place: Place, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        self.place = place
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NOTIFY_", "WATCHDOG_"))}
        self._said = place["said"].open("w+")
        self.process = subprocess.Popen(
            [*prefix, str(place.agentwatch), "daemon", "--config", str(place.config)],
            env={
                **kept,
                "NOTIFY_SOCKET": str(place.supervisor.path),
                "AGENTWATCH_PINS": str(place.pins),
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def gone(self) -> bool:
        return self.process.poll() is not None

    @property
    def err(self) -> str:
        """All it wrote."""
        return self.place["said"].read_text()

    def client(self) -> Client:
        return Client.connect(self.place.socket)

    def ask(self, verb: str, /, **args: Any) -> dict[str, Any]:
        """The value, as root. Raises the error of the reply."""
        with self.client() as client:
            return client.request(verb, **args)

    @property
    def status(self) -> dict[str, Any]:
        return self.ask("status")

    @property
    def sessions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("agents.list")["sessions"]
        return found

    def session(self, pid: int) -> dict[str, Any]:
        """The session that began with this process, once it is there."""
        until(lambda: any(one["pid"] == pid for one in self.sessions), f"a session of {pid}")
        return next(one for one in self.sessions if one["pid"] == pid)

    def tree(self, pid: int, size: int) -> dict[int, dict[str, Any]]:
        """The processes of a session by pid, once there are `size` of them."""
        until(lambda: len(self.session(pid)["processes"]) == size, f"{size} processes")
        return {one["pid"]: one for one in self.session(pid)["processes"]}

    def reload(self) -> dict[str, Any]:
        return self.ask("rules.reload")

    def forget(self) -> None:
        """Has all sessions end, and all who were started."""
        for one in self.sessions:
            with suppress(UsageError):  # it has ended meanwhile
                self.ask("agents.untag", which=one["session"])
        self.place.end_agents()

    def stop(self) -> int:
        """As systemd does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        if not self.gone:
            self.process.kill()
            self.wait()
        self._said.close()


# What agents do. ----------------------------------------------------------------


def reads(place: Place, name: str = "key") -> str:
    """A shell script that reads a file and then goes nowhere, in one process."""
    return f"exec 3< {place[name]}; exec sleep 1000"


def counts(place: Place, name: str = "count") -> tuple[str, Path]:
    """A shell script that appends a byte to a file for ever, and the file."""
    file = place[name]
    return f"while :; do printf . >> {file}; sleep 0.005; done", file


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def grows(file: Path) -> bool:
    before = size(file)
    return eventually(lambda: size(file) > before, PATIENCE)


def rests(file: Path) -> bool:
    """Whether nothing is added for as long as it takes to add many."""
    before = size(file)
    time.sleep(0.15)
    return size(file) == before
