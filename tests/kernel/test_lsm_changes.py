"""Changes of names and attributes under BPF LSM: denied, they leave everything as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law
from tests.kernel.recording import tell
from tests.kernel.test_lsm import failure

pytestmark = pytest.mark.lsm

Change = Callable[[Path], object]
"""Changes something about `one` in a directory."""


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


def state(place: Path) -> list[tuple[str, int, int, int, str]]:
    """Everything about what a directory holds that a change could change."""
    found = []
    for path in sorted(place.rglob("*")):
        info = path.lstat()
        text = path.read_text() if stat.S_ISREG(info.st_mode) else ""
        found.append((path.name, info.st_mode, info.st_uid, info.st_nlink, text))
    return found


CHANGES: dict[str, Change] = {
    "create": lambda at: os.close(os.open(at / "new-denied", os.O_CREAT | os.O_WRONLY)),
    "mknod": lambda at: os.mknod(at / "fifo-denied", stat.S_IFIFO | 0o600),
    "truncate": lambda at: os.truncate(at / "one-denied", 0),
    "open-truncate": lambda at: os.close(os.open(at / "one-denied", os.O_TRUNC | os.O_WRONLY)),
    "rename-away": lambda at: os.rename(at / "one-denied", at / "elsewhere"),
    "rename-to": lambda at: os.rename(at / "other", at / "new-denied"),
    "rename-over": lambda at: os.rename(at / "other", at / "one-denied"),
    "link-of": lambda at: os.link(at / "one-denied", at / "elsewhere"),
    "link-to": lambda at: os.link(at / "other", at / "new-denied"),
    "symlink": lambda at: os.symlink("other", at / "new-denied"),
    "delete": lambda at: os.unlink(at / "one-denied"),
    "chmod": lambda at: os.chmod(at / "one-denied", 0o777),
    "chown": lambda at: os.chown(at / "one-denied", 1, 1),
    "mkdir": lambda at: os.mkdir(at / "new-denied"),
    "rmdir": lambda at: os.rmdir(at / "dir-denied"),
}


def test_a_denied_change_changes_nothing(law: Law) -> None:
    """Each of them ends with EPERM, and the directory is as it was, names and contents."""
    (law.place / "one-denied").write_text("one")
    (law.place / "other").write_text("other")
    (law.place / "dir-denied").mkdir()
    law.rule(("change", f'{{path: "{law.place}/*-denied"}}', "deny"))
    before = state(law.place)

    def act() -> None:
        tell({name: failure(lambda c=change: c(law.place)) for name, change in CHANGES.items()})

    seen = law.record(act)
    assert seen.told == (dict.fromkeys(CHANGES, "EPERM"),)
    assert state(law.place) == before


def test_changes_that_no_rule_denies_go_on(law: Law) -> None:
    """The same calls on names beside the denied ones."""
    law.rule(("change", f'{{path: "{law.place}/beyond/**"}}', "deny"))

    def act() -> None:
        told = {}
        for name, change in CHANGES.items():
            for old in law.place.iterdir():
                old.rmdir() if old.is_dir() and not old.is_symlink() else old.unlink()
            (law.place / "one-denied").write_text("one")
            (law.place / "other").write_text("other")
            (law.place / "dir-denied").mkdir()
            told[name] = failure(lambda c=change: c(law.place))
        tell(told)

    assert law.record(act).told == (dict.fromkeys(CHANGES, ""),)


def test_an_operation_is_denied_and_no_other(law: Law) -> None:
    """`op: delete` refuses unlink alone; the file may be written, renamed and opened."""
    path = law.place / "kept"
    path.write_text("x")
    law.rule(("change", f'{{path: "{path}", op: delete}}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.unlink(path)))
        tell(failure(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))))
        tell(failure(lambda: os.chmod(path, 0o600)))

    assert law.record(act).told == ("EPERM", "", "")
    assert path.exists()


def test_what_is_denied_is_not_moved_away(law: Law) -> None:
    """A directory below which reading is denied, and the file itself, keep their names; so a file
    that nobody may read is not read under another one. What is beside them may be moved.
    """
    secret, beside = law.place / "a" / "secret", law.place / "beside"
    secret.mkdir(parents=True)
    beside.mkdir()
    (secret / "key").write_text("secret")
    law.rule(("read", f'{{path: "{secret}/**"}}', "deny"))
    moves = {
        "parent": (law.place / "a", law.place / "b"),
        "directory": (secret, law.place / "b"),
        "file": (secret / "key", law.place / "key"),
        "beside": (beside, law.place / "besides"),
    }

    def act() -> None:
        tell(
            {
                name: failure(lambda o=old, n=new: os.rename(o, n))
                for name, (old, new) in moves.items()
            }
        )
        tell(failure(lambda: os.link(secret / "key", law.place / "hard")))

    seen = law.record(act)
    assert seen.told == (
        {"parent": "EPERM", "directory": "EPERM", "file": "EPERM", "beside": ""},
        "EPERM",
    )
    assert (secret / "key").read_text() == "secret"


def test_a_program_that_is_denied_is_not_moved_away(law: Law, programs: Path) -> None:
    """A rule on exec alone keeps the directory of its programs where it is."""
    tools = law.place / "tools"
    tools.mkdir()
    (tools / "tool").write_bytes((programs / "canary").read_bytes())
    law.rule(("exec", f'{{path: "{tools}/**"}}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.rename(tools, law.place / "other")))

    assert law.record(act).told == ("EPERM",)
    assert tools.exists()
