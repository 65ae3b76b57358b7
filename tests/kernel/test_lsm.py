"""The preventing tier: what is denied does not happen, and the program is told EPERM."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
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
