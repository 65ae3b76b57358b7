"""`agentwatch run`: one CMD, watched from its first instruction to its end, no daemon needed.

CMD is forked first and held at a gate, as the person who asked for it and with their terminal,
environment and working directory. Probes are loaded and its process is tagged, then the gate opens.
Without root the watching half is started through sudo and the two talk over its standard input and
output: `here` once sudo has started it, `watching` when the gate may open, `ended STATUS` when CMD
has ended. Neither half outlives the other with CMD still running: it would go on unwatched.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from agentwatch import actions, processes
from agentwatch.command import SENT, TYPED, Command, exit_code, invoking_person
from agentwatch.errors import AgentwatchError, PermissionDenied
from agentwatch.events import ProcessKey
from agentwatch.lineage import Living
from agentwatch.sinks import frames
from agentwatch.watch import Watch

SAYS_SO = 2.0  # s after CMD's end in which its exit code should be told
SETTLE = 0.05  # s of quiet after CMD's end before the last look at the rings
UNREAD = 60.0  # s that reading what CMD has left in them may take
HERE, WATCHING = b"here\n", b"watching\n"  # what the watching half says


@contextmanager
def signals(handlers: Mapping[int, Callable[[int, object], None]]) -> Iterator[None]:
    """Has other handlers meanwhile, and is not stopped for writing to the terminal."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    # CMD may have taken the terminal for itself, and that must not stop who watches it. For good:
    # the summary is still to come.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(watch: Watch, ending: Ending, session: ProcessKey) -> int:
    """Turns the loop until `ending` says that CMD has ended; its exit code.

    Interrupts go to CMD, which shares our terminal; where its session was stopped by the breaker
    any of these signals ends it. A stop from the keyboard stops the session with us.
    """
    pausing: list[int] = []

    def received(number: int, frame: object) -> None:
        if watch.enforcement.frozen(session):
            watch.sessions.end(session)
        elif is_for_command(number):
            ending.forward(number)

    def stopped(number: int, frame: object) -> None:
        pausing.append(number)

    with signals({**dict.fromkeys((*TYPED, *SENT), received), signal.SIGTSTP: stopped}):
        with watch.poller() as poller:
            for file in ending.files():
                poller.register(file, select.EPOLLIN)
            while not ending.ended():
                poller.poll(watch.patience)
                watch.step()
                if pausing:
                    _pause(watch, session)
                    pausing.clear()
        if watch.enforcement.frozen(session):  # CMD could not be held: what could is not left
            watch.sessions.end(session)
        _settle(watch)
    return ending.code


def _pause(watch: Watch, session: ProcessKey) -> None:
    """Stops with all of the session, and goes on with it: none of it runs while nobody watches."""
    stopped = {p for p in watch.probes.tagged(session) if processes.is_stopped(p)}
    watch.sessions.holding.hold(session)
    os.kill(os.getpid(), signal.SIGSTOP)
    if not watch.enforcement.frozen(session):
        watch.sessions.holding.let_go(session, stopped)


def is_for_command(number: int) -> bool:
    """Whether a signal that came here is to be passed on to CMD, which has not got it yet."""
    return number in SENT or not _from_keyboard()


def _from_keyboard() -> bool:
    """Whether an interrupt was typed: then the terminal has sent it to CMD as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _settle(watch: Watch) -> None:
    """What CMD did last, and the ends of what was killed, are in the rings or about to be."""
    ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    given_up = time.monotonic() + UNREAD
    while watch.drained < ended and time.monotonic() < given_up:
        watch.step()
    if watch.drained < ended:
        text = "not all that CMD has done was read in time: the journal lacks the last of it"
        watch.say(frames.Notice(subject="loss", text=text))
    quiet = time.monotonic()
    limit = quiet + 2
    while time.monotonic() - quiet < SETTLE and time.monotonic() < limit:
        if watch.step() or watch.enforcement.waiting:
            quiet = time.monotonic()
        time.sleep(min(0.005, watch.patience))
    watch.check()


def still_there(watch: Watch) -> list[Living]:
    """Processes that go on after CMD: nobody watches them any more."""
    return [one for one in watch.lineage.living() if actions.send(one.process, actions.PROBE).ok]


class Ending:
    """How the loop learns that CMD has ended: one of `files` is readable, then `ended`, `code`."""

    code = 0

    def files(self) -> Sequence[int]:
        raise NotImplementedError

    def ended(self) -> bool:
        raise NotImplementedError

    def forward(self, number: int) -> None:
        """A signal that was meant for CMD."""


class OwnEnding(Ending):
    """CMD is our child."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def files(self) -> Sequence[int]:
        return [self._command.fileno()]

    def ended(self) -> bool:
        if not self._command.ended():
            return False
        assert self._command.status is not None
        self.code = exit_code(self._command.status)
        return True

    def forward(self, number: int) -> None:
        self._command.signal(number)


class ToldEnding(Ending):
    """CMD is the child of the half that runs as the person, which tells its exit code by a pipe.

    CMD is that person, too, and can write to the pipe: that it has ended is believed only of the
    kernel. untold: the pipe ended without a word, so the other half is gone and CMD is nobody's.
    """

    def __init__(self, pipe: IO[bytes], pid: int) -> None:
        self._pipe, self._told = pipe, b""
        self._pidfd = os.pidfd_open(pid)
        self._gone = 0.0  # when CMD was seen to have ended
        self.untold = False
        os.set_blocking(pipe.fileno(), False)

    def files(self) -> Sequence[int]:
        return [self._pipe.fileno()] if self._gone else [self._pipe.fileno(), self._pidfd]

    def ended(self) -> bool:
        closed = self._read()
        if not self._gone and select.select([self._pidfd], [], [], 0)[0]:
            self._gone = time.monotonic()
        code = self._code()
        if self._gone:
            waited = time.monotonic() - self._gone > SAYS_SO
            if code is None and not closed and not waited:
                return False
        elif not closed:
            return False
        self.untold = not self._gone or code is None
        self.code = 1 if code is None or self.untold else code
        return True

    def _read(self) -> bool:
        """Takes what was told; whether the pipe has ended."""
        with suppress(BlockingIOError):
            while told := os.read(self._pipe.fileno(), 256):
                self._told = (self._told + told)[-256:]
            return True
        return False

    def _code(self) -> int | None:
        """The last word said, if it is one."""
        words = self._told.decode(errors="replace").split()[-2:]
        said = len(words) == 2 and words[0] == "ended" and re.fullmatch("[0-9]{1,3}", words[1])
        return int(words[1]) if said else None


def through_sudo(argv: Sequence[str], watcher: Callable[[int], Sequence[str]]) -> int:
    """The half without privileges: forks CMD, has the other half started, opens the gate.

    watcher: the command line of the watching half for CMD's pid. The exit code is CMD's own. A
    watching half that ends early takes CMD with it: it would go on unwatched. Raises
    PermissionDenied without a sudo that does as it is asked.
    """
    command = Command(argv, invoking_person(os.environ))
    for number in TYPED:
        signal.signal(number, signal.SIG_IGN)
    try:
        helper = subprocess.Popen(
            ["sudo", "--", *watcher(command.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except OSError as error:
        command.abandon()
        message = f"loading probes needs root, and sudo cannot be run: {error.strerror}"
        raise PermissionDenied(message, "run it as root, or install sudo") from None
    assert helper.stdin is not None
    assert helper.stdout is not None
    if helper.stdout.readline() != HERE:
        command.abandon()
        helper.wait()
        message = "loading probes needs root, and sudo did not give it"
        raise PermissionDenied(message, "run it as somebody who may use sudo, or as root")
    if helper.stdout.readline() != WATCHING:
        died = command.ended()
        command.abandon()
        said = max(helper.wait(), 1)  # it has said why
        return exit_code(command.status or 0) if died else said
    for number in (*TYPED, *SENT):
        signal.signal(number, lambda number, frame: _forwarded(command, number))
    command.open()
    ready, _, _ = select.select([command.fileno(), helper.stdout.fileno()], [], [])
    if command.fileno() not in ready and not command.ended():
        command.abandon()
        raise AgentwatchError("the watching half ended: CMD was ended too", "see its message above")
    command.ended(block=True)
    assert command.status is not None
    code = exit_code(command.status)
    with suppress(BrokenPipeError):
        helper.stdin.write(f"ended {code}\n".encode())
        helper.stdin.close()
    helper.wait()
    return code


def _forwarded(command: Command, number: int) -> None:
    if is_for_command(number):
        command.signal(number)
