"""Layers of overlays under BPF LSM: what is denied in a directory does not happen to it through a
file system that an agent puts upon it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law
from tests.kernel.recording import tell
from tests.kernel.test_lsm import failure
from tests.kernel.test_lsm_changes import state
from tests.kernel.test_other_names import NOBODY, become_nobody_with_namespaces, know, mount

pytestmark = [pytest.mark.lsm, pytest.mark.once]

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


@pytest.fixture
def top(place: Path) -> Iterator[Path]:
    """A file system of everybody's own, with files in `denied` and in `free`, and room beside."""
    made = place / "top"
    made.mkdir()
    mount(b"tmpfs", made)
    for name in ("denied", "free", "work", "merged", "lower"):
        (made / name).mkdir()
    for name in ("key", "cut", "mode", "away"):
        (made / "denied" / name).write_text("the key")
        (made / "free" / name).write_text("the key")
    (made / "lower" / "beneath").write_text("beneath")
    for path in (made, *made.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    yield made
    _libc.umount2(os.fsencode(made), 2)


@pytest.fixture
def law(probes: Probes, place: Path, top: Path) -> Iterator[Law]:
    """No rules yet; nothing is in force or known afterwards, and then `top` goes."""
    yield Law(probes, place)
    probes.set_known(())
    probes.withdraw()


def change_through(top: Path, upper: str) -> dict[str, str]:
    """What becomes of changes through an overlay whose upper directory that is."""
    become_nobody_with_namespaces()
    merged = top / "merged"
    options = f"lowerdir={top}/lower,upperdir={top}/{upper},workdir={top}/work,userxattr"
    mount(b"overlay", merged, options)
    return {
        "unlink": failure(lambda: os.unlink(merged / "key")),
        "truncate": failure(lambda: os.truncate(merged / "cut", 1)),
        "chmod": failure(lambda: os.chmod(merged / "mode", 0o777)),
        "create": failure(lambda: (merged / "made").write_text("evil")),
        "write": failure(lambda: (merged / "cut").write_text("evil")),
        "mkdir": failure(lambda: os.mkdir(merged / "dir")),
        "symlink": failure(lambda: os.symlink("/evil", merged / "link")),
        "rename": failure(lambda: os.rename(merged / "away", merged / "gone")),
        "link": failure(lambda: os.link(merged / "mode", merged / "hard")),
        "lift": failure(lambda: os.chmod(merged / "beneath", 0o777)),
    }


@pytest.mark.parametrize("known", [True, False])
def test_an_overlay_changes_nothing_in_a_denied_directory(law: Law, top: Path, known: bool) -> None:
    """Its upper one. known: the files in it were found when the rules came into force."""
    law.rule(("change", f'{{path: "{top}/denied/**"}}', "deny"))
    if known:
        know(law)
    before = state(top / "denied")
    (told,) = law.record(lambda: tell(change_through(top, "denied"))).told
    assert state(top / "denied") == before
    assert set(told.values()) == {"EPERM"}


def test_an_overlay_replaces_no_denied_file(law: Law, top: Path) -> None:
    """One name alone is denied: made beside it, and moved over it."""
    law.rule(("change", f'{{path: "{top}/denied/key"}}', "deny"))

    def act() -> None:
        become_nobody_with_namespaces()
        (top / "denied" / "own").write_text("evil")
        options = f"lowerdir={top}/lower,upperdir={top}/denied,workdir={top}/work,userxattr"
        mount(b"overlay", top / "merged", options)
        tell(failure(lambda: os.rename(top / "merged" / "own", top / "merged" / "key")))

    assert law.record(act).told == ("EPERM",)
    assert (top / "denied" / "key").read_text() == "the key"


def test_an_overlay_of_what_is_free_works(law: Law, top: Path) -> None:
    """As containers need it; and each change is told by the name it was asked for by."""
    law.rule(("change", f'{{path: "{top}/denied/**"}}', "deny"))
    seen = law.record(lambda: tell(change_through(top, "free")))
    (told,) = seen.told
    assert set(told.values()) == {""}
    (deleted,) = (one for one in seen.changes if one.op == "delete")
    assert "work" not in deleted.path
    assert not deleted.refused
