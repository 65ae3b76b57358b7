"""The preventing tier: what is denied does not happen, and the program is told EPERM."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law, spawn
from tests.kernel.recording import call, tell

pytestmark = pytest.mark.lsm

PT_LOAD, PT_INTERP, PT_TLS = 1, 3, 7  # linux/elf.h


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


def failure(act: Callable[[], object]) -> str:
    """The name of the error it fails with; "" where it does not."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_a_denied_read_is_refused_and_others_are_not(law: Law) -> None:
    """EPERM for reading, in place of a descriptor; the process goes on and may read what it may."""
    key, other = law.place / "key", law.place / "other"
    for path in (key, other):
        path.write_text("secret")
    law.rule(("read", f'{{path: "{key}"}}', "deny"))

    def act() -> None:
        tell([failure(lambda p=path: os.open(p, os.O_RDONLY)) for path in (key, other)])
        tell(failure(lambda: os.close(os.open(key, os.O_WRONLY))))

    seen = law.record(act)
    assert seen.told == (["EPERM", ""], "")
    (refused,) = [e for e in seen.opens if e.refused]
    assert (refused.path, refused.verdict, refused.result) == (str(key), abi.VERDICT_DENY, -1)
    assert len([e for e in seen.opens if e.asked == str(key) or e.path == str(key)]) == 2


def test_another_thread_has_nothing_of_a_file_that_is_denied(law: Law, programs: Path) -> None:
    """A thousand runs of one that reads from whatever descriptor there may be: no byte."""
    key = law.place / "key"
    key.write_text("secret")
    law.rule(("read", f'{{path: "{key}"}}', "deny"))

    def act() -> None:
        command = [programs / "thief", key, "1000"]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        tell(json.loads(told.stdout))

    assert law.record(act).told == ({"runs": 1000, "opened": 0, "stolen": 0},)


def test_races_are_not_won(law: Law, programs: Path) -> None:
    """Five thousand opens through a link that changes, five thousand of exchanged names."""
    for name, text in (("denied", "S"), ("allowed", "P"), ("name", "P")):
        (law.place / name).mkdir()
        (law.place / name / "file").write_text(text)
    (law.place / "link").symlink_to("allowed")
    law.rule(("read", f'{{path: "{law.place}/denied/**"}}', "deny"))

    def act() -> None:
        command = [programs / "races", law.place, "5000"]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        tell(json.loads(told.stdout))

    (seen,) = law.record(act).told
    assert seen["won"] == 0
    assert seen["races"] == 10_000
    assert min(seen["allowed"], seen["refused"]) > 100


def test_who_preempts_a_look_at_a_tag_is_tagged_all_the_same(law: Law, programs: Path) -> None:
    """One thread is stopped in the middle of it, and another one opens and forks on its CPU."""
    for name in ("key", "other"):
        (law.place / name).write_text("secret")
    law.rule(("read", f'{{path: "{law.place}/key"}}', "deny"))

    def act() -> None:
        command = [programs / "preempts", law.place / "key", law.place / "other", "40"]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        tell(json.loads(told.stdout))

    (told,) = law.record(act).told
    print(told)
    assert (told["opened"], told["lost"]) == (0, 0)
    assert told["refused"] <= told["forked"] // 10


def test_a_denied_exec_runs_no_instruction_and_the_shell_goes_on(law: Law, programs: Path) -> None:
    """EPERM from execve; the file it would make first of all is never there."""
    canary, made = programs / "canary", law.place / "made"
    law.rule(("exec", f'{{path: "{canary}"}}', "deny"))

    def act() -> None:
        tell([failure(lambda: os.execv(canary, [str(canary), str(made)])) for _ in range(50)])

    seen = law.record(act)
    assert seen.told == (["EPERM"] * 50,)
    assert not made.exists()
    assert {(e.path, e.refused) for e in seen.execs} == {(str(canary), True)}
    assert len(seen.execs) == 50


def test_an_exec_is_refused_by_its_arguments_where_they_can_be_read(
    law: Law, programs: Path
) -> None:
    """An honest caller has EPERM and goes on; other arguments, and an exception by them, run."""
    canary, made = programs / "canary", law.place / "made"
    law.rule(
        ("exec", f'{{path: "{canary}", args|has: "--evil"}}', "deny", '{args|has: "--but"}'),
    )

    def run(*words: str) -> str:
        return failure(lambda: os.execv(canary, [str(canary), str(made), *words]))

    def act() -> None:
        tell([run("--evil"), run(*["x"] * 900, "--evil")])
        tell([spawn(canary, made, "good"), spawn(canary, made, "--evil", "--but")])
        tell(spawn(canary, made, "x" * 5000, "--evil"))

    seen = law.record(act)
    assert seen.told[0] == ["EPERM", "EPERM"]
    assert seen.told[1:] == ([0, 0], -9)


def test_who_is_to_be_killed_is_refused_as_well(law: Law, programs: Path) -> None:
    """A rule that kills leaves nothing done: the call is refused, and the process ends."""
    canary = programs / "canary"
    law.rule(("exec", f'{{path: "{canary}"}}', "kill"))
    assert law.record(lambda: tell(spawn(canary, law.place / "made"))).told == (-9,)
    assert not (law.place / "made").exists()


def test_mapping_what_may_not_run_is_refused(law: Law, programs: Path) -> None:
    """The loader that is asked to run a denied program cannot map it to be executed."""
    loader = next(Path("/lib64").glob("ld-linux-x86-64.so*"))
    denied = law.place / "denied"
    shutil.copy("/bin/true", denied)
    law.rule(("exec", f'{{path: "{denied}"}}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.execv(denied, [str(denied)])))
        tell(spawn(loader, denied) == 0)
        tell(spawn("/bin/true"))

    assert law.record(act).told == ("EPERM", False, 0)


def test_who_may_execute_nothing_still_maps_libraries(law: Law) -> None:
    """A rule on who executes or where, and not what, is about programs alone."""
    shell, library = law.place / "shell", law.place / "library"
    shutil.copy("/bin/bash", shell)  # whose loader maps libtinfo and libc
    shutil.copy("/bin/true", library)
    law.rule(
        ("exec", f'{{cwd: "{law.place}"}}', "deny"),
        ("exec", f'{{process.exe: "{shell}"}}', "deny"),
    )

    def maps() -> None:
        with library.open("rb") as file:
            flags, prot = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC
            mmap.mmap(file.fileno(), 4096, flags, prot).close()

    def act() -> None:
        tell(spawn(shell, "-c", "/bin/true || exit 3"))
        os.chdir(law.place)
        tell(failure(maps))
        tell(failure(lambda: os.execv("/bin/true", ["true"])))

    assert law.record(act).told == (3, "", "EPERM")


def interpreted_by(program: Path) -> bytes:
    """An ELF file whose interpreter (PT_INTERP) is a statically linked program."""
    data = program.read_bytes()
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [data[at + i * size : at + (i + 1) * size] for i in range(count)]
    storage = [one for one in headers if struct.unpack_from("<I", one) == (PT_TLS,)]
    name = os.fsencode(program) + b"\0"
    base, number = 0x10000000, 2 + len(storage)
    begin = 64 + 56 * number
    total = begin + len(name)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 64, 64, 0, 0, 64, 56, number, 64, 0, 0)
    places = begin, base + begin, base + begin, len(name), len(name)
    interpreter = struct.pack("<IIQQQQQQ", PT_INTERP, 4, *places, 1)
    load = struct.pack("<IIQQQQQQ", PT_LOAD, 5, 0, base, base, total, total, 4096)
    return head + interpreter + load + b"".join(storage) + name


def test_a_denied_program_does_not_run_as_the_interpreter_of_another(
    law: Law, programs: Path
) -> None:
    """A file of the agent's own making that names it; where nothing is denied, it does run."""
    denied, own, made = law.place / "denied", law.place / "own", law.place / "made"
    shutil.copy(programs / "canary", denied)
    own.write_bytes(interpreted_by(denied))
    own.chmod(0o755)
    law.rule(("exec", f'{{path: "{law.place}/none"}}', "deny"))
    law.record(lambda: spawn(own, made))
    assert made.exists()
    made.unlink()
    law.rule(("exec", f'{{path: "{denied}"}}', "deny"))
    assert law.record(lambda: tell(spawn(own, made) != 0)).told == (True,)
    assert not made.exists()


def test_a_denied_loader_goes_on_to_load_programs(law: Law) -> None:
    """A rule on it is about running it by its name."""
    loader = next(Path("/lib64").glob("ld-linux-x86-64.so*"))
    law.rule(("exec", '{path: "**/ld-linux*"}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.execv(loader, [str(loader), "/bin/true"])))
        tell(spawn("/bin/true"))

    assert law.record(act).told == ("EPERM", 0)


def test_what_has_no_place_is_not_refused_with_what_has_one(law: Law) -> None:
    """A rule about one file leaves alone the kernel's own: those of processes and namespaces."""
    law.rule(("read", f'{{path: "{law.place}/key"}}', "deny"))

    def act() -> None:
        tell(
            [
                failure(lambda: os.close(os.pidfd_open(os.getpid()))),
                failure(lambda: os.close(os.open("/proc/self/ns/net", os.O_RDONLY))),
                failure(lambda: os.close(os.open("/proc/self/ns/mnt", os.O_RDONLY))),
                failure(lambda: os.open(f"/proc/self/fd/{os.memfd_create('x')}", os.O_RDWR)),
            ]
        )

    assert law.record(act).told == ([""] * 4,)


def test_a_descriptor_that_is_received_is_judged_as_if_opened(law: Law) -> None:
    """A helper that nobody watches passes a denied file: it does not arrive."""
    key, other = law.place / "key", law.place / "other"
    for path in (key, other):
        path.write_text("secret")
    law.rule(("read", f'{{path: "{key}"}}', "deny"))
    ours, theirs = socket.socketpair()

    def act() -> None:
        told = []
        for _ in range(2):
            _, fds, flags, _ = socket.recv_fds(theirs, 1, 4)
            told.append([len(fds), bool(flags & socket.MSG_CTRUNC)])
        tell(told)

    with ours, theirs:
        for path in (key, other):
            with path.open() as file:
                socket.send_fds(ours, [b"x"], [file.fileno()])
        assert law.record(act).told == ([[0, True], [1, False]],)


def test_rings_can_be_refused(law: Law) -> None:
    """`[io_uring]` is a name that a rule may deny to open."""
    law.rule(("open", '{path: "[[]io_uring]"}', "deny"))
    setup = 425
    params = ctypes.create_string_buffer(120)

    def act() -> None:
        tell(call(setup, 4, params))

    (result,) = law.record(act).told
    assert result in (-errno.EPERM, -errno.ENOSYS)
