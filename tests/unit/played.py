"""A daemon as the command line sees it: a real control server that gives prepared answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from agentwatch.cli import COMMANDS
from agentwatch.cli import agentwatch as command_line
from agentwatch.control import wire
from agentwatch.control.connection import Connection
from agentwatch.control.peer import Peer
from agentwatch.control.wire import Streamed, StreamFrame
from agentwatch.errors import AgentwatchError
from agentwatch.sinks import frames, segments
from agentwatch.sinks.verify import Step, examine
from tests.unit.control_loop import Daemon

Answer = Mapping[str, Any] | AgentwatchError


class Played(Daemon):
    """answers: by verb. asked: (verb, arguments) of every request. said: by `events`, at once."""

    def __init__(self, path: Path, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.said: list[StreamFrame] = []
        self.end: str | None = None  # what `events` ends with; None: not at all
        super().__init__(path)

    def _handle(
        self, peer: Peer, request: wire.Request, connection: Connection
    ) -> wire.Reply | None:
        self.asked.append((request.verb, dict(request.args)))
        if request.verb == "events":
            stream = connection.stream()
            self.streams.append(stream)
            for frame in self.said:
                stream.send(wire.encode_stream(frame))
            if self.end is not None:
                stream.end(self.end)
            return None
        answer = self.answers[request.verb]
        if isinstance(answer, AgentwatchError):
            raise answer
        return wire.Reply(answer)


@contextmanager
def played(path: Path, **answers: Answer) -> Iterator[Played]:
    """It listens at `path`; `agents_list` answers to agents.list."""
    daemon = Played(path, {verb.replace("_", "."): one for verb, one in answers.items()})
    try:
        yield daemon
    finally:
        daemon.stop()


def run(*arguments: str, code: int = 0) -> Result:
    """A command of the command line, and what it printed."""
    assert arguments[0] in COMMANDS, "a command that the command line has"
    result = CliRunner().invoke(command_line, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def failure(*arguments: str) -> AgentwatchError:
    """The error that the command line's own main prints, and exits by."""
    result = CliRunner().invoke(command_line, arguments)
    assert isinstance(result.exception, AgentwatchError), result.output
    return result.exception


def streamed(directory: Path) -> list[StreamFrame]:
    """The frames of a journal of one chain, as the daemon streams them."""
    (chain,) = segments.chains(directory)
    steps = [step for step in examine(chain) if isinstance(step, Step)]
    header = Streamed(frames.HEADER, 0, frames.encode(steps[0].header))
    raw = [step.raw for step in steps if step.raw.type != frames.HEADER]
    return [header, *(Streamed(one.type, one.time, bytes(one.payload)) for one in raw)]
