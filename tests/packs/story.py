"""A session as a sequence of events, judged by the packs: no root, no kernel, no process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agentwatch.engine import Engine, Verdict, names_of
from agentwatch.events import Connect, Event, Exec, Fork, Open, ProcessKey
from agentwatch.lineage import Image, Lineage
from agentwatch.rules.homes import TRIAL_PROJECT

_SESSIONS = itertools.count(100)  # each story has its own: the engine counts by session
HOME = "/home/dev"
SHELL = "/usr/bin/bash"
NODE = "/usr/bin/node"
NPM = "/usr/bin/npm"
CLAUDE = f"{HOME}/.local/bin/claude"
SEVERE = ("medium", "high", "critical")


@dataclass(frozen=True, slots=True)
class Found:
    """A finding: every rule that matched, and the severity and action of the one that won."""

    rules: tuple[str, ...]
    severity: str
    action: str
    what: str


class Story:
    """What a session does, step by step. Each step is made by the process that is at work.

    agent: the name its program is started by; "" for a session of no agent.
    """

    def __init__(self, engine: Engine, agent: str = CLAUDE) -> None:
        self._engine, self._lineage = engine, Lineage()
        number = next(_SESSIONS)
        self._session = ProcessKey(number, number)
        self._clock, self._pids = 1_000_000, 1_000
        self._work = [self._session]
        self.found: list[Found] = []
        here = Image("/usr/bin/python3.11", None, ("python3", "gate"), TRIAL_PROJECT, 1000)
        self._lineage.begin(self._session, TRIAL_PROJECT, here, ())
        if agent:
            self._exec(agent, ("claude",), "tty")

    @contextmanager
    def run(self, path: str, *args: str, stdin: str = "null", asked: str = "") -> Iterator[None]:
        """A child that runs a program; what is inside the `with` is done by it."""
        self._pids += 1
        child = ProcessKey(self._pids, self._tick())
        self._lineage.fork(
            Fork(time=self._clock, process=self._work[-1], session=self._session, child=child)
        )
        self._work.append(child)
        self._exec(path, (os.path.basename(asked or path), *args), stdin, asked)
        yield
        self._work.pop()

    def do(self, path: str, *args: str, stdin: str = "null", asked: str = "") -> None:
        """A child that runs a program and ends."""
        with self.run(path, *args, stdin=stdin, asked=asked):
            pass

    def sh(self, line: str, *programs: tuple[str, ...]) -> None:
        """`bash -c LINE`, and the programs that it starts, with pipes for their input."""
        with self.run(SHELL, "-c", line):
            for path, *args in programs:
                self.do(path, *args, stdin="pipe")

    def read(self, path: str) -> None:
        self._open(path, changes=False)

    def write(self, path: str) -> None:
        self._open(path, changes=True)

    def connect(self, addr: str, port: int = 443, unix: str = "") -> None:
        family = 1 if unix else 10 if ":" in addr else 2
        self._judge(
            Connect(
                time=self._tick(),
                process=self._work[-1],
                session=self._session,
                family=family,
                addr=addr,
                port=port,
                protocol="unix" if unix else "tcp",
                unix=unix,
                syn=not unix,
                from_socket=True,
            )
        )

    def _open(self, path: str, changes: bool) -> None:
        event = Open(
            time=self._tick(),
            process=self._work[-1],
            session=self._session,
            path=path,
            asked=path,
            flags=os.O_WRONLY | os.O_CREAT if changes else os.O_RDONLY,
            result=3,
            reads=not changes,
            changes=changes,
            created=changes,
        )
        self._judge(event)

    def _exec(self, path: str, argv: tuple[str, ...], stdin: str, asked: str = "") -> None:
        event = Exec(
            time=self._tick(),
            process=self._work[-1],
            session=self._session,
            path=path,
            asked=asked or path,
            argv=argv,
            argc=len(argv),
            stdin=stdin,
            cwd=TRIAL_PROJECT,
            uid=1000,
        )
        self._judge(event)
        self._lineage.exec(event, self._engine.identify(names_of(event)))

    def _judge(self, event: Event) -> None:
        verdict: Verdict = self._engine.judge(event, self._lineage.actor(event))
        if verdict.rule:
            rules = tuple(dict.fromkeys(hit.rule for hit in verdict.matches))
            self.found.append(Found(rules, verdict.severity, verdict.action, _what(event)))

    def _tick(self) -> int:
        self._clock += 1_000_000
        return self._clock

    @property
    def fired(self) -> set[str]:
        """Every rule that matched something."""
        return {rule for found in self.found for rule in found.rules}

    @property
    def severe(self) -> list[Found]:
        """Findings of severity medium or above."""
        return [found for found in self.found if found.severity in SEVERE]


def _what(event: Event) -> str:
    if isinstance(event, Exec):
        return f"exec {event.path} {' '.join(event.argv[1:])}"
    if isinstance(event, Open):
        return f"{'change' if event.changes else 'read'} {event.path}"
    return f"connect {event.where}" if isinstance(event, Connect) else type(event).__name__
