"""`agentwatch run`: one CMD, watched from its first instruction to its end, no daemon needed.

CMD is forked first and held at a gate, as the person who asked for it and with their terminal,
environment and working directory. Probes are loaded and its process is tagged, then the gate opens.
Without root the watching half is started through sudo and the two talk over its standard input and
output: `watching` when the gate may open, `ended STATUS` when CMD has ended.
"""

from __future__ import annotations

import grp
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from agentwatch import actions
from agentwatch.errors import AgentwatchError, PermissionDenied, UsageError
from agentwatch.events import ProcessKey
from agentwatch.watch import Watch

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as a shell has them
SETTLE = 0.05  # s of quiet after CMD's end before the last look at the rings
SHARED_PLACES = frozenset({"/", "/tmp", "/var/tmp"})


@dataclass(frozen=True, slots=True)
class Person:
    """Whom CMD runs as. changes: whether that is somebody else than this process."""

    uid: int
    gid: int
    name: str
    home: str
    shell: str
    changes: bool

    @property
    def own_group(self) -> int | None:
        """Their group, where it is theirs alone by Debian's convention: it has their name."""
        try:
            private = self.uid and grp.getgrgid(self.gid).gr_name == self.name
        except KeyError:
            return None
        return self.gid if private else None


def invoking_person(environment: Mapping[str, str]) -> Person:
    """Who asked: under sudo, the one who typed it. Raises UsageError for a uid nobody has."""
    uid = os.getuid()
    wanted = int(environment.get("SUDO_UID", uid)) if uid == 0 else uid
    try:
        entry = pwd.getpwuid(wanted)
    except KeyError:
        if wanted != uid:
            raise UsageError(f"SUDO_UID is {wanted}, and there is no such user") from None
        return Person(uid, os.getgid(), str(uid), "/", "/bin/sh", False)
    return Person(wanted, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell, wanted != uid)


def project_of(cwd: Path, home: str) -> str | None:
    """$project: the git top above the working directory, else that directory itself.

    None where that would be a place everything is in: /, a home directory, a shared scratch one.
    """
    top = next((d for d in (cwd, *cwd.parents) if (d / ".git").exists()), cwd)
    homes = {home, *(entry.pw_dir for entry in pwd.getpwall())}
    return None if str(top) in SHARED_PLACES | homes else str(top)


class Command:
    """CMD, forked and held at a gate: `open` lets it exec, `abandon` ends it unrun."""

    def __init__(self, argv: Sequence[str], person: Person) -> None:
        gate_read, gate_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(gate_write)
            _become(argv, person, gate_read)
        os.close(gate_read)
        self._gate = gate_write
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def fileno(self) -> int:
        """Readable once CMD has ended."""
        return self._pidfd

    def open(self) -> None:
        os.write(self._gate, b"!")
        os.close(self._gate)

    def abandon(self) -> None:
        """Ends CMD before or while it runs."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.ended(block=True)

    def ended(self, block: bool = False) -> bool:
        """Whether CMD has ended; its wait status is in `status` then."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None


def _become(argv: Sequence[str], person: Person, gate: int) -> NoReturn:
    """The child: waits at the gate, becomes the person, then CMD. Never returns."""
    try:
        if not os.read(gate, 1):
            os._exit(NOT_EXECUTABLE)
        os.close(gate)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        environment = dict(os.environ)
        if person.changes:
            os.initgroups(person.name, person.gid)
            os.setgid(person.gid)
            os.setuid(person.uid)
            environment |= {
                "HOME": person.home,
                "USER": person.name,
                "LOGNAME": person.name,
                "SHELL": person.shell,
            }
        os.execvpe(argv[0], list(argv), environment)
    except FileNotFoundError:
        _refuse(f"agentwatch: {argv[0]}: command not found", NOT_FOUND)
    except OSError as error:
        _refuse(f"agentwatch: {argv[0]}: {error.strerror}", NOT_EXECUTABLE)
    os._exit(NOT_EXECUTABLE)


def _refuse(message: str, code: int) -> NoReturn:
    os.write(2, message.encode("utf-8", "surrogateescape") + b"\n")
    os._exit(code)


def exit_code(status: int) -> int:
    """A wait status as a shell's exit code: 128 + the signal that ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def follow(watch: Watch, ending: Ending, session: ProcessKey) -> int:
    """Turns the loop until `ending` says that CMD has ended; its exit code.

    Interrupts go to CMD, which shares our terminal; where its session was stopped by the breaker
    an interrupt ends it.
    """

    def interrupted(number: int, frame: object) -> None:
        if watch.enforcement.frozen(session):
            actions.end(watch.lineage.alive(session))

    before = {n: signal.signal(n, interrupted) for n in (signal.SIGINT, signal.SIGQUIT)}
    before[signal.SIGTERM] = signal.signal(
        signal.SIGTERM, lambda number, frame: ending.forward(number)
    )
    try:
        with watch.poller() as poller:
            poller.register(ending.fileno(), select.EPOLLIN)
            while not ending.ended():
                poller.poll(watch.patience)
                watch.step()
        _settle(watch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ending.code


def _settle(watch: Watch) -> None:
    """What CMD did last, and the ends of what was killed, are in the rings or about to be."""
    quiet = time.monotonic()
    limit = quiet + 2
    while time.monotonic() - quiet < SETTLE and time.monotonic() < limit:
        if watch.step() or watch.enforcement.waiting:
            quiet = time.monotonic()
        time.sleep(0.005)
    watch.check()


def still_there(watch: Watch) -> int:
    """Processes of the session that go on after CMD: nobody watches them any more."""
    return sum(actions.send(p, actions.PROBE).ok for p in watch.lineage.alive())


class Ending:
    """How the loop learns that CMD has ended: readable file number, then `ended` and `code`."""

    code = 0

    def fileno(self) -> int:
        raise NotImplementedError

    def ended(self) -> bool:
        raise NotImplementedError

    def forward(self, number: int) -> None:
        """A signal that was meant for CMD."""


class OwnEnding(Ending):
    """CMD is our child."""

    def __init__(self, command: Command) -> None:
        self._command = command

    def fileno(self) -> int:
        return self._command.fileno()

    def ended(self) -> bool:
        if not self._command.ended():
            return False
        assert self._command.status is not None
        self.code = exit_code(self._command.status)
        return True

    def forward(self, number: int) -> None:
        os.kill(self._command.pid, number)


class ToldEnding(Ending):
    """CMD is the child of the half that runs as the person, who tells over a pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def ended(self) -> bool:
        try:
            told = os.read(self._pipe.fileno(), 256)
        except BlockingIOError:
            return False
        words = told.decode(errors="replace").split()
        self.code = int(words[1]) if len(words) == 2 and words[0] == "ended" else 1
        return True


def through_sudo(argv: Sequence[str], watcher: Callable[[int], Sequence[str]]) -> int:
    """The half without privileges: forks CMD, has the other half started, opens the gate.

    watcher: the command line of the watching half for CMD's pid. The exit code is CMD's own. A
    watching half that ends early takes CMD with it: it would go on unwatched.
    """
    command = Command(argv, invoking_person(os.environ))
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        helper = subprocess.Popen(
            ["sudo", "--", *watcher(command.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except FileNotFoundError:
        command.abandon()
        raise PermissionDenied(
            "loading probes needs root, and there is no sudo", "run it as root"
        ) from None
    assert helper.stdin is not None
    assert helper.stdout is not None
    if helper.stdout.readline() != b"watching\n":
        command.abandon()
        return helper.wait() or 1
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
