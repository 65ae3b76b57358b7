"""Mounts and user namespaces under BPF LSM: denied, nothing is mounted and no namespace is made."""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel import mounting
from tests.kernel.law import Law
from tests.kernel.recording import call, tell
from tests.kernel.test_lsm import failure

pytestmark = [pytest.mark.lsm, pytest.mark.once]

DENIED = -errno.EPERM
Act = Callable[[Path, Path], int]
"""Mounts from one directory on another; what it returned."""


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


@pytest.fixture
def points(law: Law) -> tuple[Path, Path]:
    """A directory with something in it, and one to mount on."""
    source, point = law.place / "source", law.place / "point"
    for made in (source, point):
        made.mkdir()
    (source / "x").write_text("x")
    return source, point


def moved(source: Path, point: Path) -> int:
    """From where it hangs already, by mount(2)."""
    assert mounting.bind(source, source) == 0
    return call(mounting.MOUNT, os.fsencode(source), os.fsencode(point), 0, mounting.MOVE, 0)


def moved_mount(source: Path, point: Path) -> int:
    """The same, by move_mount."""
    assert mounting.bind(source, source) == 0
    names = (mounting.AT_FDCWD, os.fsencode(source), mounting.AT_FDCWD, os.fsencode(point), 0)
    return call(mounting.MOVE_MOUNT, *names)


ACTS: dict[str, Act] = {
    "tmpfs": lambda source, point: mounting.tmpfs(point),
    "bind": mounting.bind,
    "move": moved,
    "open_tree": lambda source, point: mounting.attach(mounting.tree(source), point),
    "fsmount": lambda source, point: mounting.attach(mounting.fresh(), point),
    "move_mount": moved_mount,
}


@pytest.mark.parametrize("name", ACTS)
def test_a_denied_mount_mounts_nothing(law: Law, points: tuple[Path, Path], name: str) -> None:
    """EPERM, the process's own table of mounts is as it was, and the record says so."""
    source, point = points
    law.rule(("mount", f'{{path: "{point}"}}', "deny"))

    def act() -> None:
        mounting.alone()
        tell(ACTS[name](source, point))
        tell(mounting.points().count(str(point)))
        tell(sorted(os.listdir(point)))

    seen = law.record(act)
    assert seen.told == (DENIED, 0, [])
    (event,) = [e for e in seen.mounts if e.refused]
    assert (event.path, event.verdict) == (str(point), abi.VERDICT_DENY)
    assert event.op == ("move" if "move" in name else "mount")
    if name in ("open_tree", "move_mount", "bind"):
        assert event.source == str(source)
    if name in ("tmpfs", "fsmount"):
        assert event.fstype == "tmpfs"


@pytest.mark.parametrize("name", ACTS)
def test_mounts_that_no_rule_denies_go_on(law: Law, points: tuple[Path, Path], name: str) -> None:
    """The same beside a denied place: told once, as judged, by the kernel's names."""
    source, point = points
    law.rule(("mount", f'{{path: "{law.place}/elsewhere/**"}}', "deny"))

    def act() -> None:
        mounting.alone()
        tell(ACTS[name](source, point))
        tell(mounting.points().count(str(point)))
        tell(mounting.umount(point))

    seen = law.record(act)
    assert seen.told == (0, 1, 0)
    (event,) = [e for e in seen.mounts if e.path == str(point) and e.op != "umount"]
    assert (event.generation, event.verdict, event.refused) == (law.generation, 0, False)
    (gone,) = [e for e in seen.mounts if e.op == "umount"]
    assert gone.path == str(point)


def test_changing_and_ending_a_mount_are_denied_by_their_operation(
    law: Law, points: tuple[Path, Path]
) -> None:
    """remount by mount(2) and by fsconfig, umount; mounting there goes on."""
    _, point = points
    law.rule(("mount", "{op: [remount, umount]}", "deny"))

    def act() -> None:
        assert call(mounting.UNSHARE, mounting.NEWNS) == 0
        tell(mounting.tmpfs(point))
        flags = mounting.REMOUNT | mounting.RDONLY
        tell(call(mounting.MOUNT, 0, os.fsencode(point), 0, flags, 0))
        tell(call(mounting.MOUNT, 0, os.fsencode(point), 0, flags | mounting.BIND, 0))
        tell(call(mounting.MOUNT, 0, os.fsencode(point), 0, mounting.PRIVATE, 0))
        picked = call(mounting.FSPICK, mounting.AT_FDCWD, os.fsencode(point), 0)
        tell(call(mounting.FSCONFIG, picked, mounting.RECONFIGURE, 0, 0, 0))
        tell(mounting.umount(point))
        (point / "writable").write_text("")
        tell(mounting.points().count(str(point)))

    try:
        assert law.record(act).told == (0, DENIED, DENIED, DENIED, DENIED, DENIED, 1)
    finally:
        mounting.umount(point)  # it spread where mounts are shared


def test_mount_setattr_is_told_of_where_nobody_is_asked(
    law: Law, points: tuple[Path, Path]
) -> None:
    """No hook is: it is recorded, not judged yet, and so left to the engine."""
    _, point = points
    law.rule(("mount", '{op: remount, path: "/**"}', "deny"))

    def act() -> None:
        assert call(mounting.UNSHARE, mounting.NEWUSER | mounting.NEWNS) == 0
        tell(mounting.tmpfs(point))
        attributes = struct.pack("<QQQQ", 1, 0, 0, 0)
        where = (mounting.AT_FDCWD, os.fsencode(point), 0)
        tell(call(mounting.MOUNT_SETATTR, *where, attributes, 32))

    seen = law.record(act)
    assert seen.told == (0, 0)
    (event,) = [e for e in seen.mounts if e.op == "remount"]
    assert (event.path, event.generation, event.result) == (str(point), 0, 0)


def test_a_root_is_not_pivoted_where_that_is_denied(law: Law, points: tuple[Path, Path]) -> None:
    """By the place that the old one would go to; / is what it was."""
    _, point = points
    law.rule(("mount", "{op: move}", "deny"))

    def act() -> None:
        mounting.alone()
        assert mounting.tmpfs(point) == 0
        (point / "old").mkdir()
        os.chdir(point)
        before = os.stat("/")
        tell(call(mounting.PIVOT_ROOT, b".", b"old"))
        tell(os.path.samestat(before, os.stat("/")))

    seen = law.record(act)
    assert seen.told == (DENIED, True)
    (event,) = [e for e in seen.mounts if e.refused]
    assert (event.op, event.path.endswith("/old")) == ("move", True)


def test_a_denied_user_namespace_is_not_made(law: Law) -> None:
    """unshare, clone and clone3 end with EPERM, the namespace is the old one, and nobody is born;
    a fork is none.
    """
    law.rule(("mount", "{op: userns}", "deny"))

    def act() -> None:
        before = os.readlink("/proc/self/ns/user")
        tell(call(mounting.UNSHARE, mounting.NEWUSER))
        flags = mounting.NEWUSER | signal.SIGCHLD
        tell(call(mounting.CLONE, flags, 0, 0, 0, 0))
        arguments = struct.pack("<11Q", mounting.NEWUSER, *(0,) * 3, signal.SIGCHLD, *(0,) * 6)
        tell(call(mounting.CLONE3, arguments, len(arguments)))
        tell(os.readlink("/proc/self/ns/user") == before)
        if os.fork() == 0:
            os._exit(0)
        tell(os.wait()[1])

    seen = law.record(act)
    assert seen.told == (DENIED, DENIED, DENIED, True, 0)
    assert [(e.op, e.path, e.refused) for e in seen.mounts] == [("userns", "", True)] * 3
    assert len(seen.forks) == 1


def test_user_namespaces_that_nobody_denies_are_told_once_each(law: Law) -> None:
    """A rule on paths is not about them; who is in one may mount."""
    law.rule(("mount", f'{{path: "{law.place}/denied"}}', "deny"))
    place, denied = law.place / "place", law.place / "denied"
    place.mkdir()
    denied.mkdir()

    def act() -> None:
        if os.fork() == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            tell(call(mounting.UNSHARE, mounting.NEWUSER | mounting.NEWNS))
            tell(mounting.tmpfs(place))
            tell(mounting.tmpfs(denied))
            os._exit(0)
        os.wait()

    law.place.chmod(0o755)
    seen = law.record(act)
    assert seen.told == (0, 0, DENIED)
    assert [e.op for e in seen.mounts] == ["userns", "mount", "mount"]
    assert [e.generation for e in seen.mounts] == [law.generation] * 3


def test_a_directory_above_what_is_denied_is_not_mounted_elsewhere(
    law: Law, points: tuple[Path, Path]
) -> None:
    """By move_mount, of a copy and of what hangs already, by the rule on reading; mount(2) has it
    as text alone, and there the file keeps its name and is not read.
    """
    source, point = points
    secret = source / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    law.rule(("read", f'{{path: "{secret}/**"}}', "deny"))

    def act() -> None:
        mounting.alone()
        tell(mounting.attach(mounting.tree(source), point))
        tell(mounting.attach(mounting.tree(secret), point))
        tell(moved_mount(source, point))
        tell(mounting.points().count(str(point)))
        tell(mounting.bind(source, point))
        tell(failure(lambda: (point / "secret" / "key").read_text()))
        tell((point / "x").read_text())

    seen = law.record(act)
    assert seen.told == (DENIED, DENIED, DENIED, 0, 0, "EPERM", "x")
    refused = [e for e in seen.mounts if e.refused]
    assert [e.source for e in refused] == [str(source), str(secret), str(source)]
    assert {e.rule for e in refused} == {1}


def test_a_directory_beside_what_is_denied_is_mounted(law: Law, points: tuple[Path, Path]) -> None:
    """The rule is about what is below its own directory."""
    source, point = points
    law.rule(("read", f'{{path: "{law.place}/secret/**"}}', "deny"))

    def act() -> None:
        mounting.alone()
        tell(mounting.attach(mounting.tree(source), point))
        tell((point / "x").read_text())

    assert law.record(act).told == (0, "x")


def test_a_kill_ends_who_mounts_and_nothing_is_mounted(law: Law, points: tuple[Path, Path]) -> None:
    """The call is refused as well."""
    source, point = points
    law.rule(("mount", f'{{path: "{point}"}}', "kill"))

    def act() -> None:
        if os.fork() == 0:
            mounting.bind(source, point)
            os._exit(0)
        tell(os.wait()[1])
        tell(mounting.points().count(str(point)))

    seen = law.record(act)
    assert seen.told == (signal.SIGKILL, 0)
    (event,) = seen.mounts
    assert (event.refused, event.verdict) == (True, abi.VERDICT_KILL)
