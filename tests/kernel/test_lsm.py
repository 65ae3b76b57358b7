"""The preventing tier: what is denied does not happen, and the program is told EPERM."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law
from tests.kernel.recording import tell

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
