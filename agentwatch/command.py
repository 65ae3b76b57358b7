"""A command that is about to be run: whose it is, and the gate it waits at until it is watched."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from agentwatch import processes
from agentwatch.errors import UsageError

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as a shell has them
_ITSELF = "import sys; sys.path.insert(0, {!r}); from agentwatch.cli import main; main()"
TYPED = (signal.SIGINT, signal.SIGQUIT)  # reach CMD by themselves when they come from a keyboard
SENT = (signal.SIGTERM, signal.SIGHUP)


def itself() -> tuple[str, ...]:
    """What starts this very agentwatch, wherever it is installed; arguments are added.

    -I: nothing from a working directory or from anybody's home is imported.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return (sys.executable, "-I", "-c", _ITSELF.format(home))


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
    asked = environment.get("SUDO_UID", "") if uid == 0 else ""
    try:
        wanted = int(asked) if asked else uid
        entry = pwd.getpwuid(wanted)
    except (ValueError, KeyError, OverflowError):
        if asked:
            remedy = "unset it, or let sudo set it"
            raise UsageError(f"SUDO_UID is {asked}, and there is no such user", remedy) from None
        return Person(uid, os.getgid(), str(uid), "/", "/bin/sh", False)
    return Person(wanted, entry.pw_gid, entry.pw_name, entry.pw_dir, entry.pw_shell, wanted != uid)


_ASK, _GO = b"?", b"!"  # what is said through the gate

_Mask = Set[int | signal.Signals]


class Command:
    """CMD, forked and held at a gate: `open` lets it exec, `abandon` ends it unrun.

    before: what CMD's process does as the person, when `ask` says so; what it returns is told.
    """

    def __init__(
        self, argv: Sequence[str], person: Person, before: Callable[[], bytes] | None = None
    ) -> None:
        gate_read, gate_write = os.pipe()
        answer_read, answer_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # No handler of ours may run in the child: it would raise what only the parent catches.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*TYPED, *SENT))
        self.pid = os.fork()
        if self.pid == 0:
            os.close(gate_write)
            os.close(answer_read)
            _become(argv, person, gate_read, mask, before, answer_write)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(gate_read)
        os.close(answer_write)
        self._gate, self._answer = gate_write, answer_read
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def fileno(self) -> int:
        """Readable once CMD has ended."""
        return self._pidfd

    def ask(self) -> bytes:
        """Has CMD's process do `before`; what that returned, b"" where it has ended instead."""
        with suppress(BrokenPipeError):
            os.write(self._gate, _ASK)
        told = b""
        while piece := os.read(self._answer, 65536):
            told += piece
        return told

    def open(self) -> None:
        """Lets CMD begin; nothing where it has ended at its gate."""
        with suppress(BrokenPipeError):
            os.write(self._gate, _GO)
        os.close(self._gate)

    def signal(self, number: int) -> None:
        """Sends CMD a signal; nothing where it has ended."""
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)

    def abandon(self) -> None:
        """Ends CMD before or while it runs, and of what it started whatever is still below it."""
        below = processes.below(self.pid) if self.status is None else []
        self.signal(signal.SIGKILL)
        processes.end(below)
        self.ended(block=True)

    def ended(self, block: bool = False) -> bool:
        """Whether CMD has ended; its wait status is in `status` then."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None


def _become(
    argv: Sequence[str],
    person: Person,
    gate: int,
    mask: _Mask,
    before: Callable[[], bytes] | None,
    answer: int,
) -> NoReturn:
    """The child: waits at the gate, becomes the person, then CMD. Never returns."""
    try:
        _restore_signals(mask)
        word = os.read(gate, 1)
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
        if word == _ASK and before is not None:
            told = before()
            while told:
                told = told[os.write(answer, told) :]
            os.close(answer)
            word = os.read(gate, 1)
        if word != _GO:
            os._exit(NOT_EXECUTABLE)
        os.close(gate)
        os.execvpe(argv[0], list(argv), environment)
    except FileNotFoundError:
        if os.path.exists(argv[0]):  # then it is what its first line names that is not there
            _refuse(f"agentwatch: {argv[0]}: its interpreter was not found", NOT_EXECUTABLE)
        _refuse(f"agentwatch: {argv[0]}: command not found", NOT_FOUND)
    except OSError as error:
        _refuse(f"agentwatch: {argv[0]}: {error.strerror}", NOT_EXECUTABLE)
    finally:
        os._exit(NOT_EXECUTABLE)


def _restore_signals(mask: _Mask) -> None:
    """As they were before this interpreter began: what was ignored stays ignored."""
    for number in TYPED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python itself
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _refuse(message: str, code: int) -> NoReturn:
    os.write(2, message.encode("utf-8", "surrogateescape") + b"\n")
    os._exit(code)


def exit_code(status: int) -> int:
    """A wait status as a shell's exit code: 128 + the signal that ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
