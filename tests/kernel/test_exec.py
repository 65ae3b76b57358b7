"""An exec is recorded as the new program finds it: what runs, how it was asked for, what it got."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.events import Exec
from tests.kernel.recording import Recorder, Recording, call, tell

pytestmark = pytest.mark.root

EXECVEAT = 322
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
ARGV_MAX = 4096


def vector(*words: bytes) -> ctypes.Array[ctypes.c_char_p]:
    """An argv or an environment."""
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def only_exec(seen: Recording) -> Exec:
    (event,) = seen.execs
    return event


def test_an_exec_is_recorded_as_the_program_finds_itself(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """Executable, argv, argc, working directory, user and parent agree with the program's own."""
    argv = ["my name", "", "--flag=value", "last one"]

    def act() -> None:
        os.chdir(place)
        os.execv(programs / "here", argv)

    seen = recorder.record(act)
    event, (told,) = only_exec(seen), seen.told
    assert (event.path, event.cwd) == (told["exe"], told["cwd"])
    assert event.argv == (*argv,)
    assert (event.argc, event.argv_cut) == (told["argc"], False)
    assert (event.uid, event.process.pid) == (told["uid"], told["pid"])
    assert event.parent.pid == told["parent"] == os.getpid()
    assert event.asked == str(programs / "here")
    assert (event.script, event.result, event.unresolved) == (None, 0, frozenset())
    assert (event.anonymous, event.deleted, event.candidate) == (False, False, False)
    assert [end.status for end in seen.exits] == [0]


def test_the_parent_of_an_exec_is_the_process_that_forked_it(
    recorder: Recorder, programs: Path
) -> None:
    """parent is a process key: the pid, and the very start time its own records carry."""

    def act() -> None:
        if os.fork() == 0:
            os.execv(programs / "here", ["here"])
        os.wait()

    seen = recorder.record(act)
    event = only_exec(seen)
    assert event.parent == seen.session
    assert seen.forks[0].child == event.process


def test_an_executable_has_its_canonical_name(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """Through a symbolic link and a relative name: path is resolved, asked is as given."""
    (place / "link").symlink_to(programs / "here")

    def act() -> None:
        os.chdir(place)
        os.execv("./../" + place.name + "/link", ["here"])

    event = only_exec(recorder.record(act))
    assert event.path == str(programs / "here")
    assert event.asked == f"./../{place.name}/link"


def test_a_script_is_named_beside_its_interpreter(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """A shebang: path is the interpreter, script the file, argv what the interpreter gets."""
    (place / "script").write_text(f"#!{programs}/here -x\n")
    (place / "script").chmod(0o755)

    def act() -> None:
        os.chdir(place)
        os.execv("./script", ["ignored", "argument"])

    seen = recorder.record(act)
    event = only_exec(seen)
    assert event.path == str(programs / "here") == seen.told[0]["exe"]
    assert event.script == str(place / "script")
    assert event.argv == (f"{programs}/here", "-x", "./script", "argument")
    assert event.argc == seen.told[0]["argc"] == 4


def test_a_script_of_a_script_is_the_one_that_was_asked_for(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """In a chain of shebangs path is what runs in the end, script where it began."""
    (place / "inner").write_text(f"#!{programs}/here inner\n")
    (place / "outer").write_text(f"#!{place}/inner outer\n")
    for name in ("inner", "outer"):
        (place / name).chmod(0o755)

    def act() -> None:
        os.execv(place / "outer", ["x"])

    event = only_exec(recorder.record(act))
    assert (event.path, event.script) == (str(programs / "here"), str(place / "outer"))
    assert event.argv[1:] == ("inner", str(place / "inner"), "outer", str(place / "outer"))


def argv_of(size: int) -> list[str]:
    """Arguments that take this many bytes with their NULs."""
    whole, rest = divmod(size, 100)
    return ["a" * 99] * whole + ["z" * (rest - 1)] * (rest > 0)


@pytest.mark.parametrize(
    ("size", "cut"),
    [(ARGV_MAX - 1, False), (ARGV_MAX, False), (ARGV_MAX + 1, True), (102400, True)],
)
def test_argv_is_whole_up_to_4_KiB_and_says_when_it_is_cut(
    recorder: Recorder, programs: Path, size: int, cut: bool
) -> None:
    """Over the limit the beginning is kept and argv_cut is set; argc counts them all."""
    argv = argv_of(size)

    def act() -> None:
        os.execv(programs / "here", argv)

    seen = recorder.record(act)
    event = only_exec(seen)
    assert seen.told[0]["bytes"] == size
    assert (event.argv_cut, event.argc) == (cut, len(argv))
    assert "\0".join(event.argv) == ("\0".join(argv) + "\0")[:ARGV_MAX].removesuffix("\0")
    assert not event.unresolved


def test_an_argument_of_any_bytes_comes_back(recorder: Recorder, programs: Path) -> None:
    """Newlines and invalid UTF-8 in argv survive."""
    argv = [b"here", b"two\nlines", b"\xff\xfe", b""]

    def act() -> None:
        os.execv(programs / "here", argv)

    event = only_exec(recorder.record(act))
    assert [os.fsencode(argument) for argument in event.argv] == argv


def terminal() -> None:
    os.dup2(os.openpty()[1], 0)


def pipe() -> None:
    os.dup2(os.pipe()[0], 0)


def socket_() -> None:
    os.dup2(socket.socketpair()[0].detach(), 0)


def regular_file() -> None:
    os.dup2(os.open("/etc/passwd", os.O_RDONLY), 0)


def device() -> None:
    os.dup2(os.open("/dev/zero", os.O_RDONLY), 0)


def null() -> None:
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)


def closed() -> None:
    os.close(0)


@pytest.mark.parametrize(
    ("arrange", "kind"),
    [
        (terminal, "tty"),
        (pipe, "pipe"),
        (socket_, "socket"),
        (regular_file, "file"),
        (device, "file"),
        (null, "null"),
        (closed, "null"),
    ],
)
def test_stdin_is_known_by_kind(
    recorder: Recorder, programs: Path, arrange: Callable[[], None], kind: str
) -> None:
    """What the new program has for standard input: what feeds an interpreter without a file."""

    def act() -> None:
        arrange()
        os.execv(programs / "here", ["here"])

    assert only_exec(recorder.record(act)).stdin == kind


def test_the_real_user_is_recorded(recorder: Recorder, programs: Path) -> None:
    """uid is the real one at the time of the exec."""

    def act() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.execv(programs / "here", ["here"])

    seen = recorder.record(act)
    assert only_exec(seen).uid == seen.told[0]["uid"] == 65534


def test_execveat_of_a_descriptor_is_named(recorder: Recorder, programs: Path) -> None:
    """AT_EMPTY_PATH: no name is given, and the executable is known all the same."""

    def act() -> None:
        held = os.open(programs / "here", os.O_RDONLY)
        tell(held)
        call(EXECVEAT, held, b"", vector(b"here"), vector(), AT_EMPTY_PATH)

    seen = recorder.record(act)
    event = only_exec(seen)
    assert event.path == str(programs / "here")
    assert event.asked == f"/dev/fd/{seen.told[0]}"


def test_execveat_below_a_directory_is_named(recorder: Recorder, programs: Path) -> None:
    """A name relative to a descriptor is resolved."""

    def act() -> None:
        directory = os.open(programs, os.O_PATH)
        call(EXECVEAT, directory, b"here", vector(b"here"), vector(), 0)

    assert only_exec(recorder.record(act)).path == str(programs / "here")


def test_a_program_in_memory_is_anonymous(recorder: Recorder, programs: Path) -> None:
    """A memfd has no place in any file system: it keeps the name its maker gave it."""
    binary = (programs / "here").read_bytes()

    def act() -> None:
        held = os.memfd_create("payload", os.MFD_CLOEXEC)
        os.write(held, binary)
        os.execve(held, ["here"], {})

    seen = recorder.record(act)
    event = only_exec(seen)
    assert (event.path, event.anonymous) == ("memfd:payload", True)
    assert seen.told[0]["exe"] == "/memfd:payload (deleted)"


def test_a_deleted_executable_is_known_as_what_it_was(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """Run from a descriptor after its name was removed: deleted, under the name it had."""
    copy = place / "copy"
    copy.write_bytes((programs / "here").read_bytes())
    copy.chmod(0o755)

    def act() -> None:
        held = os.open(copy, os.O_RDONLY)
        os.unlink(copy)
        os.execve(held, ["here"], {})

    seen = recorder.record(act)
    event = only_exec(seen)
    assert (event.path, event.deleted, event.anonymous) == (str(copy), True, False)
    assert seen.told[0]["exe"] == f"{copy} (deleted)"


def test_an_exec_from_another_thread_keeps_process_and_tag(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """The thread takes its leader's place: one process, one exec, and what follows is recorded."""

    def act() -> None:
        os.chdir(place)
        os.execv(programs / "leader", ["leader", "execs"])

    seen = recorder.record(act)
    first, second = seen.execs
    assert [told["did"] for told in seen.told] == ["execs", "after"]
    assert first.process == second.process == seen.session
    assert second.argv == ("leader", "after")
    assert seen.opened("after").process == seen.session
    assert [(event.process, event.code) for event in seen.exits] == [(seen.session, 8)]


def test_failed_execs_are_recorded_with_their_error(recorder: Recorder, place: Path) -> None:
    """Only what was asked is known, and the process goes on as what it was."""
    (place / "text").write_text("no program\n")
    (place / "text").chmod(0o755)
    (place / "plain").write_text("")
    calls = [("absent", errno.ENOENT), ("plain", errno.EACCES), ("text", errno.ENOEXEC)]

    def act() -> None:
        for name, _ in calls:
            try:
                os.execv(place / name, ["x"])
            except OSError as error:
                tell(error.errno)

    seen = recorder.record(act)
    assert list(seen.told) == [error for _, error in calls]
    assert [(event.asked, event.result) for event in seen.execs] == [
        (str(place / name), -error) for name, error in calls
    ]
    assert {(event.path, event.cwd, event.argv) for event in seen.execs} == {("", "", ())}


def test_names_that_leave_no_room_are_unresolved_each_by_name(
    recorder: Recorder, programs: Path, place: Path
) -> None:
    """A path and a name asked for of nearly 4 KiB: what then does not fit is marked."""
    long = "n" * 255
    target = place
    levels = (3700 - len(str(place))) // 256
    for _ in range(levels):
        target /= long
    asked_padding = "/." * 1990

    # Asked for through a descriptor: the path itself would be too long with such a beginning.
    def act() -> None:
        os.chdir(place)
        for _ in range(levels):
            os.mkdir(long)
            os.chdir(long)
        copy = os.open("p", os.O_WRONLY | os.O_CREAT, 0o755)
        os.write(copy, (programs / "here").read_bytes())
        os.close(copy)
        os.dup2(os.open("p", os.O_PATH), 9)
        os.chdir(place)
        os.execv(asked_padding + "/proc/self/fd/9", ["here", "argument"])

    event = only_exec(recorder.record(act))
    assert event.path == str(target / "p")
    assert event.asked == asked_padding + "/proc/self/fd/9"
    assert event.unresolved == frozenset({"cwd", "argv"})


def test_a_signal_is_told_apart_from_an_exit_code(recorder: Recorder, programs: Path) -> None:
    """The exit record's status is the one that wait gives."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    seen = recorder.record(act)
    assert [event.status for event in seen.exits] == [seen.status] == [signal.SIGTERM]
