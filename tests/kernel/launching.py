"""`agentwatch run` as a person starts it, and what came of it: screen, journal, findings."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agentwatch.events import Event
from agentwatch.sinks.frames import Frame
from agentwatch.sinks.reader import Entry, read
from tests.proc import below

NOBODY = 65534
PATIENCE = 20  # s that a run may take
PYTHON = "/usr/bin/python3"

OneFrame = TypeVar("OneFrame", bound=Frame)
OneEvent = TypeVar("OneEvent", bound=Event)

# Each rule is about files that only these tests have; {place} is where they are.
RULES = """\
schema: agentwatch/v1
agents:
  - {{id: stub-one, title: One, exec: ["**/bin/stub-one-{unique}"]}}
  - {{id: stub-two, title: Two, exec: ["**/bin/stub-two-{unique}"]}}
rules:
  - id: test.key
    title: The key
    on: read
    match: {{path: "{place}/key"}}
    action: kill
    because: It is the key.
    tests: [{{hit: {{path: "{place}/key"}}}}]
  - id: test.watched
    title: The watched file
    on: read
    match: {{path: "{place}/watched"}}
    action: alert
    because: Somebody looked.
    tests: [{{hit: {{path: "{place}/watched"}}}}]
  - id: test.only-one
    title: Of one
    on: read
    agents: [stub-one]
    match: {{path: "{place}/one"}}
    action: kill
    because: Not for one.
    tests: [{{hit: {{path: "{place}/one"}}}}]
  - id: test.only-two
    title: Of two
    on: read
    agents: [stub-two]
    match: {{path: "{place}/two"}}
    action: kill
    because: Not for two.
    tests: [{{hit: {{path: "{place}/two"}}}}]
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. code: as a shell shows it. out, err: what CMD and agentwatch wrote."""

    code: int
    out: str
    err: str
    journal: Path

    @property
    def entries(self) -> list[Entry]:
        return list(read(self.journal))

    def frames(self, kind: type[OneFrame]) -> list[OneFrame]:
        return [e.frame for e in self.entries if isinstance(e.frame, kind)]

    def events(self, kind: type[OneEvent]) -> list[OneEvent]:
        return [e.event for e in self.entries if isinstance(e.event, kind)]


@dataclass
class Launcher:
    """Runs commands under agentwatch in one place of their own."""

    agentwatch: Path
    place: Path
    options: Sequence[str] = ()
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        for name in ("key", "watched", "one", "two"):
            (self.place / name).write_text(f"the {name}\n")
            (self.place / name).chmod(0o644)
        os.mkfifo(self.place / "never")  # nobody writes: opening it to read waits for ever
        (self.place / "never").chmod(0o666)
        (self.place / "bin").mkdir()
        self.unique = self.place.name
        text = RULES.format(place=self.place, unique=self.unique)
        (self.place / "rules.yaml").write_text(text)

    @property
    def journal(self) -> Path:
        return self.place / "journal"

    @property
    def jsonl(self) -> Path:
        return self.place / "findings.jsonl"

    @property
    def hold(self) -> str:
        """For a shell: reads the key and then goes nowhere, in one process."""
        return f"exec 3< {self.place}/key; : < {self.place}/never"

    def stub(self, number: str) -> Path:
        """A program under an agent's name: a shell script that does what its arguments say."""
        path = self.place / "bin" / f"stub-{number}-{self.unique}"
        path.write_text('#!/bin/sh\neval "$*"\n')
        path.chmod(0o755)
        return path

    def findings(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.jsonl.read_text().splitlines()]

    def line(self, *command: str, options: Sequence[str] = ()) -> list[str]:
        """The whole command line. options: further ones, the last of two equal ones counts."""
        given = [f"--rules={self.place}/rules.yaml", f"--journal={self.journal}"]
        given += [*self.options, *options]
        return [*self.prefix, str(self.agentwatch), "run", *given, "--", *command]

    def start(
        self, *command: str, options: Sequence[str] = (), **more: Any
    ) -> subprocess.Popen[str]:
        environment = more.pop("env", self.environment)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        line = self.line(*command, options=options)
        return subprocess.Popen(line, env=environment, text=True, **(pipes | more))

    def __call__(
        self, *command: str, options: Sequence[str] = (), given: str | None = None, **more: Any
    ) -> Outcome:
        """Runs it to its end. given: what CMD reads from its standard input."""
        if given is not None:
            more["stdin"] = subprocess.PIPE
        return self.finish(self.start(*command, options=options, **more), given)

    def finish(self, process: subprocess.Popen[str], given: str | None = None) -> Outcome:
        try:
            out, err = process.communicate(given, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            end(process.pid)
            out, err = process.communicate()
            raise AssertionError(f"it did not end; it said:\n{out}\n{err}") from None
        code = process.returncode
        return Outcome(code if code >= 0 else 128 - code, out, err, self.journal)

    def typed(self, line: Sequence[str], keys: Callable[[str], bytes]) -> tuple[int, str]:
        """Runs a whole command line on a terminal of its own; exit code and what was shown.

        keys: given all that was shown so far, what to type now.
        """
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvpe(line[0], list(line), dict(self.environment))
        screen, deadline = "", time.monotonic() + PATIENCE
        with suppress(OSError):  # EIO: the last one has closed it
            while time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.02)[0]:
                    screen += os.read(terminal, 65536).decode(errors="replace")
                if typed := keys(screen):
                    os.write(terminal, typed)
        os.close(terminal)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen


def python(code: str) -> tuple[str, ...]:
    """A command line for a short program."""
    return PYTHON, "-I", "-c", code


def unwatched(*command: str, **more: Any) -> str:
    """What a command writes when agentwatch does not start it."""
    more = {"stdin": subprocess.DEVNULL} | more
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def eventually(claim: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def end(pid: int) -> None:
    """Kills a process of ours and everything below it."""
    for one in [*(child for child, _ in below(pid)), pid]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


@contextmanager
def ended_after(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is not left behind by a test that fails."""
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process.pid)
            process.communicate()
