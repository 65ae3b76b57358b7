"""`run` where a daemon watches: CMD's process tags itself, and here is shown what is told of it."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch import command as commands
from agentwatch import run as running
from agentwatch.cli.asking import DEFAULT_SOCKET, ask
from agentwatch.cli.live import live_view
from agentwatch.control.client import Client
from agentwatch.control.wire import Missed, Streamed
from agentwatch.engine import NO_VERDICT
from agentwatch.errors import AgentwatchError, JournalError, NotRunningError, PermissionDenied
from agentwatch.lineage import Actor
from agentwatch.sinks import frames
from agentwatch.sinks.following import Following
from agentwatch.sinks.screen import Screen

QUIET = 0.3  # s without a word after CMD's end: there will be none
LATEST = 3.0  # s after CMD's end


@dataclass(frozen=True, slots=True)
class Agent:
    """What is to be run, and as whom. project: a whole path, "" for none."""

    name: str
    project: str
    command: tuple[str, ...]


def reachable() -> Path | None:
    """The socket of a daemon that answers; None where there is none."""
    socket = Path(os.environ.get("AGENTWATCH_SOCKET") or DEFAULT_SOCKET)
    try:
        ask(socket, "status")
    except NotRunningError:
        return None
    except AgentwatchError:  # it is there, and will say for itself what is wrong
        return socket
    return socket


def run(agent: Agent, socket: Path) -> int:
    """CMD's exit code. Raises AgentwatchError: CMD has not been run then, or was ended."""
    person = commands.invoking_person(os.environ)
    command = commands.Command(agent.command, person, lambda: _tag(agent, socket))
    try:
        session = _session(command.ask())
        with Client.connect(socket) as client:
            client.stream("events", follow=True, since=None, session=session)
            screen = Screen(sys.stderr.fileno())
            try:
                return _Shown(command, client, screen, socket, session).follow()
            finally:
                screen.close()
    except BaseException:
        command.abandon()
        raise


def _tag(agent: Agent, socket: Path) -> bytes:
    """In CMD's own process: nobody but it may ask for itself."""
    try:
        found = ask(socket, "agents.tag", pid=os.getpid(), agent=agent.name, project=agent.project)
        answer = {"session": found["session"]}
    except AgentwatchError as error:
        answer = {"message": error.message, "remedy": error.remedy, "code": error.exit_code}
    return json.dumps(answer).encode()


def _session(answer: bytes) -> str:
    """What CMD's process was told. Raises AgentwatchError when it was refused."""
    if not answer:
        raise AgentwatchError("CMD was ended by somebody before it was run", "run it again")
    told = json.loads(answer)
    if "session" in told:
        return str(told["session"])
    kind = PermissionDenied if told["code"] == PermissionDenied.exit_code else AgentwatchError
    error = kind(told["message"], told["remedy"])
    error.exit_code = told["code"]
    raise error


class _Shown:
    """A command that the daemon watches, as a person sees it."""

    def __init__(
        self,
        command: commands.Command,
        client: Client,
        screen: Screen,
        socket: Path,
        session: str,
    ) -> None:
        self._command, self._client, self._screen = command, client, screen
        self._socket, self._id = socket, session
        self._live = live_view((), screen)
        self._following = Following()
        self._ended = False

    def follow(self) -> int:
        """Until CMD has ended and all of it is shown; CMD's exit code."""
        status = ask(self._socket, "status")
        rules = int(status["rules"]["loaded"])
        head = frames.Start(rules=rules, mode=str(status["mode"]))
        self._live.frame(head)
        numbers: list[int] = [*commands.TYPED, *commands.SENT]
        with running.signals(dict.fromkeys(numbers, self._received)):
            self._command.open()
            while not self._command.ended():
                self._wait([self._command.fileno(), self._client.fileno()], None)
                self._show()
            self._last_words()
        assert self._command.status is not None
        code = commands.exit_code(self._command.status)
        directory = str(status["journal"]["directory"])
        left = self._left()
        self._live.summary(code, directory, left=left, unwritten=0, dropped=self._screen.dropped)
        return code

    def _received(self, number: int, frame: object) -> None:
        if running.is_for_command(number):
            self._command.signal(number)

    def _wait(self, files: Sequence[int], seconds: float | None) -> bool:
        return bool(select.select(files, [], [], seconds)[0])

    def _show(self) -> bool:
        """What has arrived; whether there was anything. Raises AgentwatchError without a daemon."""
        if not self._wait([self._client.fileno()], 0):
            return False
        try:
            arrived = self._client.arrived()
        except NotRunningError:
            arrived = []
            self._gone("it is not there any more")
        for frame in arrived:
            if isinstance(frame, Missed):
                text = f"{frame.count} frames were not shown: they came too fast"
                self._live.frame(frames.Notice(subject="screen", text=text))
            elif isinstance(frame, Streamed):
                self._feed(frame)
        if self._client.ended is not None:
            self._gone(self._client.ended)
        return bool(arrived)

    def _gone(self, why: str) -> None:
        """Nobody watches CMD any more: then it does not go on."""
        if not self._command.ended():
            message = f"the daemon has left CMD unwatched ({why}): CMD was ended"
            raise AgentwatchError(message, "start the daemon, then run it again")

    def _feed(self, frame: Streamed) -> None:
        with suppress(JournalError):  # what does not decode is told by `events`
            for entry in self._following.feed(frame.frame, frame.time, frame.payload):
                if entry.event is not None:
                    actor = Actor(entry.event.process, entry.event.session, ())
                    self._live.event(entry.event, actor, NO_VERDICT)
                elif entry.frame is not None:
                    self._ended |= isinstance(entry.frame, frames.SessionEnd)
                    self._live.frame(entry.frame)

    def _last_words(self) -> None:
        """What CMD did last is told a moment later."""
        begun = heard = time.monotonic()
        while not self._ended and (now := time.monotonic()) < begun + LATEST:
            if self._client.ended is not None or now - heard > QUIET:
                break
            if self._wait([self._client.fileno()], 0.05) and self._show():
                heard = now

    def _left(self) -> list[str]:
        """Processes that outlive CMD: the daemon goes on watching them."""
        if self._ended:
            return []
        with suppress(AgentwatchError):
            for one in ask(self._socket, "agents.list")["sessions"]:
                if one["session"] == self._id:
                    return [
                        f"{process['exe']} (process {process['pid']}) goes on, watched"
                        for process in one["processes"]
                    ]
        return []
