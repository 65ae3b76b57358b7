"""Who asks a daemon: root, a person, what an agent runs; and what subscribers are sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agentwatch.abi import peek
from agentwatch.control.client import Client
from agentwatch.control.wire import Missed, Streamed
from agentwatch.decoding import decode
from agentwatch.errors import AgentwatchError
from agentwatch.events import Event, Open, ProcessKey
from agentwatch.sinks import frames
from agentwatch.sinks.frames import Frame
from tests.daemon.running import Place, line_of, taken, until

ASKER = Path(__file__).with_name("asking.py")

OneFrame = TypeVar("OneFrame", bound=Frame)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: a value, or the name of the error with its message and remedy."""

    value: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


def answer_to(client: Client, verb: str, args: Mapping[str, Any]) -> Answer:
    """One request over a connection; what the daemon refuses is an answer too."""
    try:
        if verb == "events":
            client.stream(verb, **args)
            return Answer()
        return Answer(client.request(verb, **args))
    except AgentwatchError as error:
        return Answer({}, type(error).__name__, error.message, error.remedy)


class Asker:
    """A process of its own that asks what the test tells it to, over one connection each time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(self._line())

    def _line(self) -> str:
        return line_of(self._process)

    def __call__(self, verb: str, /, **args: Any) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, args]) + "\n")
        self._process.stdin.flush()
        return Answer(*json.loads(self._line()))


def asker(place: Place, *, uid: int = 0, tagged: bool = False) -> Asker:
    """Somebody: root or nobody, untagged or run by the agent."""
    line = asking(place)
    if tagged:
        return Asker(place.agent(" ".join(line), uid=uid))
    return Asker(place.process(*line, uid=uid))


def asking(place: Place) -> list[str]:
    """The command line of a program that asks."""
    return [sys.executable, "-I", str(ASKER), str(place.socket)]


@dataclass
class Subscriber:
    """What somebody is sent of `events`, decoded as it arrives."""

    client: Client
    frames: list[Frame] = field(default_factory=list)
    missed: int = 0  # frames, as the daemon counts them
    _events: list[Event] = field(default_factory=list)
    _decoded: int = 0

    @classmethod
    def of(cls, client: Client, **args: Any) -> Subscriber:
        client.stream("events", **{"follow": True, **args})
        return cls(client)

    def all(self) -> list[Frame]:
        """Everything up to the end of the stream."""
        until(lambda: self.ended, "the end of the stream")
        return self.frames

    @property
    def ended(self) -> bool:
        """Whether the end of the stream has come."""
        self.look()
        return self.client.ended is not None

    def look(self) -> None:
        """Takes what is there by now."""
        for one in self.client.arrived() if self.client.ended is None else ():
            if isinstance(one, Missed):
                self.missed += one.count
            elif isinstance(one, Streamed):
                frame = frames.decode(one.frame, one.time, one.payload)
                assert frame is not None
                self.frames.append(frame)

    def of_kind(self, kind: type[OneFrame]) -> list[OneFrame]:
        self.look()
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def events(self) -> list[Event]:
        """Every record of every batch."""
        self.look()
        for batch in self.frames[self._decoded :]:
            data = memoryview(batch.data if isinstance(batch, frames.Records) else b"")
            while data:
                length, _, _ = peek(data)
                self._events.append(decode(data[:length]))
                data = data[length:]
        self._decoded = len(self.frames)
        return self._events

    def opened(self, path: Path) -> list[ProcessKey]:
        """The sessions in which a file was opened."""
        name = str(path)
        return [e.session for e in self.events if isinstance(e, Open) and e.asked == name]

    def seen(self, name: str) -> int:
        """How often a file was opened."""
        return len(self.opened(Path(name)))


@contextmanager
def forked(act: Callable[[], Any], uid: int = 0) -> Iterator[Callable[[], Any]]:
    """A child of the test's that does `act` as somebody; call what is given for what it returned.

    It is a process that nobody has tagged, for as long as `act` takes.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os.write(writing, json.dumps(act()).encode())
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(99)
    os.close(writing)

    def result() -> Any:
        what = "what a child of the test's returns"
        return json.loads(b"".join(iter(lambda: taken(reading, 65536, what), b"")))

    try:
        yield result
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
