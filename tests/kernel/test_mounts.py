"""Every mount is recorded once, whichever call makes it, and every new user namespace."""

from __future__ import annotations

import errno
import os
import signal
import struct
from pathlib import Path

import pytest

from agentwatch.sinks.frames import Verdict
from tests.kernel import mounting
from tests.kernel.launching import PYTHON, Launcher
from tests.kernel.recording import Recorder, call, tell

pytestmark = pytest.mark.root


@pytest.fixture
def points(place: Path) -> dict[str, Path]:
    """Directories to mount on."""
    found = {name: place / name for name in ("source", "first", "second", "third")}
    for path in found.values():
        path.mkdir()
    return found


def test_mount_and_umount_tell_where_and_what(recorder: Recorder, points: dict[str, Path]) -> None:
    """A new file system, a directory, a change of its flags, a move, and its end; in order."""
    source, one, two, three = points.values()

    def act() -> None:
        mounting.alone()
        tell(mounting.tmpfs(one))
        tell(mounting.bind(source, two))
        flags = mounting.REMOUNT | mounting.BIND | mounting.RDONLY
        tell(call(mounting.MOUNT, 0, os.fsencode(two), 0, flags, 0))
        tell(call(mounting.MOUNT, os.fsencode(two), os.fsencode(three), 0, mounting.MOVE, 0))
        tell(mounting.umount(three))

    seen = recorder.record(act)
    assert seen.told == (0,) * 5
    found = seen.mounts[1:]  # the first is of its namespace
    assert (seen.mounts[0].op, seen.mounts[0].path) == ("remount", "/")
    assert [(e.op, e.path, e.source, e.fstype) for e in found] == [
        ("mount", str(one), "none", "tmpfs"),
        ("mount", str(two), str(source), ""),
        ("remount", str(two), "", ""),
        ("move", str(three), str(two), ""),
        ("umount", str(three), "", ""),
    ]
    assert all(not event.unresolved and event.result == 0 for event in found)


def test_the_newer_calls_tell_the_same(recorder: Recorder, points: dict[str, Path]) -> None:
    """What open_tree and fsmount made is mounted by move_mount; what hangs already is moved by it.
    fsconfig changes what is there.
    """
    source, one, two, three = points.values()

    def act() -> None:
        mounting.alone()
        tell(mounting.attach(mounting.tree(source), one))
        tell(mounting.attach(mounting.fresh(), two))
        move = (mounting.AT_FDCWD, os.fsencode(two), mounting.AT_FDCWD, os.fsencode(three), 0)
        tell(call(mounting.MOVE_MOUNT, *move))
        picked = call(mounting.FSPICK, mounting.AT_FDCWD, os.fsencode(three), 0)
        tell(call(mounting.FSCONFIG, picked, mounting.RECONFIGURE, 0, 0, 0))

    seen = recorder.record(act)
    assert seen.told == (0,) * 4
    found = seen.mounts[1:]
    assert [(e.op, e.path) for e in found[:3]] == [
        ("mount", str(one)),
        ("mount", str(two)),
        ("move", str(three)),
    ]
    assert (found[0].source, found[1].fstype) == (str(source), "tmpfs")
    # Of what only it has mounted there is a file system and no name.
    assert (found[3].op, found[3].path[:1]) == ("remount", "[")
    assert len(found) == 4


def test_attributes_of_a_mount_are_a_remount(recorder: Recorder, points: dict[str, Path]) -> None:
    """mount_setattr, which came after the other calls (5.12)."""
    source, one, *_ = points.values()

    def act() -> None:
        mounting.alone()
        mounting.bind(source, one)
        attributes = struct.pack("<QQQQ", 1, 0, 0, 0)  # read-only
        tell(call(mounting.MOUNT_SETATTR, mounting.AT_FDCWD, os.fsencode(one), 0, attributes, 32))

    seen = recorder.record(act)
    assert seen.told == (0,)
    assert [(e.op, e.path) for e in seen.mounts[2:]] == [("remount", str(one))]


def test_each_way_to_a_user_namespace_is_recorded(recorder: Recorder) -> None:
    """unshare, clone and clone3, once each; a fork is none."""

    def act() -> None:
        if os.fork() == 0:
            os._exit(-call(mounting.UNSHARE, mounting.NEWUSER))
        child = call(mounting.CLONE, mounting.NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        arguments = struct.pack("<11Q", mounting.NEWUSER, *(0,) * 3, signal.SIGCHLD, *(0,) * 6)
        other = call(mounting.CLONE3, arguments, len(arguments))
        if other == 0:
            os._exit(0)
        for _ in range(3):
            assert os.wait()[1] == 0
        tell(child > 0 and other > 0)

    seen = recorder.record(act)
    assert seen.told == (True,)
    assert [(e.op, e.path, e.result) for e in seen.mounts] == [("userns", "", 0)] * 3


def test_a_mount_that_failed_says_what_was_asked(recorder: Recorder, place: Path) -> None:
    """No name is made up for what did not happen."""

    def act() -> None:
        mounting.alone()
        tell(mounting.tmpfs(place / "absent"))
        tell(mounting.umount(place))

    seen = recorder.record(act)
    assert seen.told == (-errno.ENOENT, -errno.EINVAL)
    assert [(e.op, e.path, e.asked, e.result) for e in seen.mounts[1:]] == [
        ("mount", "", str(place / "absent"), -errno.ENOENT),
        ("umount", "", str(place), -errno.EINVAL),
    ]


def test_pivot_root_is_a_move_without_a_name(recorder: Recorder, place: Path) -> None:
    """At its end, the directory that its names began in is another one."""

    def act() -> None:
        mounting.alone()
        mounting.tmpfs(place)
        (place / "old").mkdir()
        os.chdir(place)
        tell(call(mounting.PIVOT_ROOT, b".", b"old"))

    seen = recorder.record(act)
    assert seen.told == (0,)
    (*_, event) = seen.mounts
    assert (event.op, event.path, event.asked, event.source) == ("move", "", "old", ".")


LAW = """\
schema: agentwatch/v1
rules:
  - id: test.mount
    title: Something is mounted where it must not be
    on: mount
    match: {{path: "{path}"}}
    action: kill
    because: It is a test.
    tests: []
"""
SCRIPT = """\
import ctypes, sys, time
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 16384 | 1 << 18, None) == 0
for point in sys.argv[1:]:
    assert libc.mount(b"none", point.encode(), b"tmpfs", 0, None) == 0
    print(point, flush=True)
time.sleep(20)
"""


def test_the_engine_kills_for_a_mount(
    agentwatch: Path, place: Path, points: dict[str, Path]
) -> None:
    """Where no hook refuses it: after the mount, with the rule and its level in the record."""
    (place / "mount.yaml").write_text(LAW.format(path=points["second"]))
    launch = Launcher(agentwatch, place, options=[f"--rules={place}/mount.yaml"])
    outcome = launch(PYTHON, "-c", SCRIPT, str(points["first"]), str(points["second"]))
    assert (outcome.code, outcome.out) == (137, f"{points['first']}\n{points['second']}\n")
    (verdict,) = outcome.frames(Verdict)
    assert (verdict.rule, verdict.kind, verdict.level) == ("test.mount", "mount", "kills-after")
    assert (verdict.what, verdict.by) == (f"mount none -> {points['second']}", "engine")
