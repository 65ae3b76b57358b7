"""An agent that keeps trying what its rules deny, and whether all of it is accounted for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentwatch.events import Connect, Event, Exec, Open
from agentwatch.sinks.frames import Gap
from agentwatch.sinks.reader import Entry
from tests.daemon.running import PATIENCE, Daemon, Place, cue, line_of, size, until

TRYING = Path(__file__).with_name("trying.py")
ROUNDS = 60  # of the load, before and after what happens to the daemon
RULES = """\
schema: agentwatch/v1
agents:
  - {{id: stub, title: A stub, exec: ["**/bin/stub-{unique}"]}}
rules:
  - id: test.key
    on: read
    match: {{path: "{place}/key"}}
    action: deny
    because: It is the key.
    tests: [{{hit: {{path: "{place}/key"}}}}]
  - id: test.canary
    on: exec
    match: {{path: "{place}/canary"}}
    action: deny
    because: It is the canary.
    tests: [{{hit: {{path: "{place}/canary"}}}}]
  - id: test.port
    on: connect
    match: {{proto: tcp, port: {port}}}
    action: deny
    because: It is the port.
    tests: [{{hit: {{proto: tcp, addr: 127.0.0.1, port: {port}}}}}]
"""


@dataclass
class Load:
    """An agent that keeps trying what is denied."""

    place: Place
    port: int
    process: subprocess.Popen[str]

    def rounds(self, count: int = ROUNDS) -> None:
        """Waits for so many more."""
        tried = self.place["tried"]
        before = size(tried)
        until(lambda: size(tried) >= before + count, f"{count} rounds of the load")

    def ended(self) -> dict[str, int]:
        """Has it end; how often it has tried, by kind. Nothing was let through."""
        self.place["stop"].touch()
        tries = tried(line_of(self.process))
        assert self.process.wait(PATIENCE) == 0
        return tries


def tried(line: str) -> dict[str, int]:
    """What trying.py says at its end: how often it has tried, by kind. Nothing was let through."""
    told = json.loads(line)
    assert told["through"] == {"open": 0, "exec": 0, "connect": 0}
    tries: dict[str, int] = told["tries"]
    return tries


def lay_down(place: Place, port: int) -> None:
    """Rules on an open, an exec and a connect, and what they are about."""
    place.write(breaker={"kills": 1000000, "within": "1ms"})
    place["rules.yaml"].write_text(
        RULES.format(unique=place.unique, place=place.directory, port=port)
    )
    shutil.copy("/bin/true", place["canary"])


def load(place: Place, port: int, daemon: Daemon, rounds: int = ROUNDS, pause: float = 0.0) -> Load:
    """It runs, and is a session of the daemon's, and judged by the kernel."""
    line = f"read line; exec {sys.executable} {TRYING} {place.directory} {port} {pause}"
    started = Load(place, port, place.agent(line))
    daemon.session(started.process.pid)  # before that moment nobody has promised anything
    cue(started.process)
    started.rounds(rounds)
    return started


def denied(event: Event, directory: Path, port: int) -> str:
    """open | exec | connect: what of the load it is the record of; "" for nothing."""
    if isinstance(event, Open) and event.path == str(directory / "key"):
        return "open"
    if isinstance(event, Exec) and "canary" in (event.path + event.asked):
        return "exec"
    if isinstance(event, Connect) and event.port == port and event.result == -1:
        return "connect"
    return ""


def account(
    entries: Iterable[Entry], directory: Path, port: int, tries: dict[str, int], of: int = 0
) -> int:
    """Every try has its record, or is among what gaps count; what these count.

    of: the pid of the session that tried; 0 for whoever, where nobody else does.
    """
    seen: dict[str, set[tuple[int, int]]] = {"open": set(), "exec": set(), "connect": set()}
    lost = 0
    for entry in entries:
        event = entry.event
        kind = denied(event, directory, port) if event is not None else ""
        if event is not None and kind and of in (0, event.session.pid):
            seen[kind].add((event.process.pid, event.process.start))
        if isinstance(entry.frame, Gap):
            lost += entry.frame.count
    missing = {kind: tries[kind] - len(seen[kind]) for kind in tries}
    assert all(count >= 0 for count in missing.values()), (missing, lost)
    assert sum(missing.values()) <= lost, (missing, lost)
    return lost


def accounted(place: Place, port: int, tries: dict[str, int]) -> None:
    """The same of a place's journal, whose chain is whole."""
    account(place.entries(), place.directory, port, tries)
    assert place.report().intact


def kill(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.wait()
