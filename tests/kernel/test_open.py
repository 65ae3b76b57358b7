"""Every way to open a file is recorded once: what was asked, what was opened, what came of it."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.kernel.recording import Recorder, call, handle_of, tell

pytestmark = pytest.mark.root

OPEN, CREAT, OPENAT, OPEN_BY_HANDLE_AT, OPENAT2 = 2, 85, 257, 304, 437
AT_FDCWD = -100
RESOLVE_NO_SYMLINKS = 4
NEITHER = 3  # an access mode that allows neither reading nor writing (open(2))


def tell_opened(fd: int) -> None:
    """What a call gave, and what the kernel calls the file behind it."""
    tell([fd, os.readlink(f"/proc/self/fd/{fd}") if fd >= 0 else ""])


def test_each_call_is_recorded_once_with_name_flags_and_result(
    recorder: Recorder, place: Path
) -> None:
    """open, openat, openat2 and creat, in order, none missing and none invented."""
    file = os.fsencode(place / "file")

    def act() -> None:
        tell_opened(call(CREAT, file, 0o600))
        tell_opened(call(OPEN, file, os.O_RDONLY | os.O_CLOEXEC))
        tell_opened(call(OPENAT, AT_FDCWD, file, os.O_WRONLY | os.O_APPEND))
        how = struct.pack("QQQ", os.O_RDWR | os.O_NOFOLLOW, 0, RESOLVE_NO_SYMLINKS)
        tell_opened(call(OPENAT2, AT_FDCWD, file, how, len(how)))

    seen = recorder.record(act)
    assert [[event.result, event.path] for event in seen.opens] == list(seen.told)
    assert [event.asked for event in seen.opens] == [os.fsdecode(file)] * 4
    assert [event.flags for event in seen.opens] == [
        os.O_CREAT | os.O_WRONLY | os.O_TRUNC,
        os.O_RDONLY | os.O_CLOEXEC,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_NOFOLLOW,
    ]
    assert not any(event.unresolved for event in seen.opens)


def test_open_by_handle_is_recorded_under_the_files_name(recorder: Recorder, place: Path) -> None:
    """open_by_handle_at names no path; the record has the canonical one all the same."""
    (place / "file").write_bytes(b"")

    def act() -> None:
        mount = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        handle = handle_of(mount, b"file")
        tell_opened(call(OPEN_BY_HANDLE_AT, mount, handle, os.O_RDONLY))

    seen = recorder.record(act)
    event = seen.opens[-1]
    assert [event.result, event.path] == seen.told[0]
    assert event.path == str(place / "file")
    assert (event.asked, event.unresolved) == ("", frozenset())


ACCESS = [
    # what is opened, with what flags, and what that does: reads, changes, created
    ("there", os.O_RDONLY, (True, False, False)),
    ("there", os.O_WRONLY, (False, True, False)),
    ("there", os.O_RDWR, (True, True, False)),
    ("there", os.O_WRONLY | os.O_APPEND, (False, True, False)),
    ("there", os.O_RDONLY | os.O_TRUNC, (True, True, False)),
    ("there", os.O_RDONLY | os.O_CREAT, (True, False, False)),
    ("there", os.O_PATH, (False, False, False)),
    ("there", os.O_PATH | os.O_RDWR | os.O_TRUNC, (False, False, False)),
    ("there", NEITHER, (False, False, False)),
    ("new1", os.O_RDONLY | os.O_CREAT, (True, True, True)),
    ("new2", os.O_WRONLY | os.O_CREAT | os.O_EXCL, (False, True, True)),
]


def test_access_is_what_the_kernel_granted(recorder: Recorder, place: Path) -> None:
    """reads, changes and created follow the file that was opened, not the flags alone."""
    (place / "there").write_bytes(b"x")

    def act() -> None:
        for name, flags, _ in ACCESS:
            os.close(os.open(place / name, flags))

    seen = recorder.record(act)
    found = [(event.reads, event.changes, event.created) for event in seen.opens]
    assert found == [does for _, _, does in ACCESS]


def test_O_PATH_and_its_reopening_are_two_opens_of_one_file(
    recorder: Recorder, place: Path
) -> None:
    """An O_PATH descriptor reads nothing; opening it again by /proc/self/fd does."""
    (place / "file").write_bytes(b"")

    def act() -> None:
        held = os.open(place / "file", os.O_PATH)
        os.open(f"/proc/self/fd/{held}", os.O_RDONLY)

    pinned, reopened = recorder.record(act).opens
    assert pinned.path == reopened.path == str(place / "file")
    assert (pinned.reads, reopened.reads) == (False, True)
    assert reopened.asked == f"/proc/self/fd/{pinned.result}"


def test_a_directory_is_recorded_as_one(recorder: Recorder, place: Path) -> None:
    """directory is set for directories and not for files."""

    def act() -> None:
        os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.open("/dev/null", os.O_RDONLY)

    directory, device = recorder.record(act).opens
    assert (directory.directory, device.directory) == (True, False)
    assert (directory.path, device.path) == (str(place), "/dev/null")


def test_a_file_without_a_name_any_more_is_deleted(recorder: Recorder, place: Path) -> None:
    """deleted is set, and the suffix the kernel shows in /proc is no part of the path."""

    def act() -> None:
        held = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        os.unlink(place / "file")
        os.open(f"/proc/self/fd/{held}", os.O_RDONLY)

    created, reopened = recorder.record(act).opens
    assert (created.deleted, reopened.deleted) == (False, True)
    assert reopened.path == str(place / "file")


def test_a_temporary_file_without_a_name_is_deleted_from_the_start(
    recorder: Recorder, place: Path
) -> None:
    """O_TMPFILE gives a file that changes are made to, below the directory that was asked for."""

    def act() -> None:
        os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)

    (event,) = recorder.record(act).opens
    assert event.path.startswith(f"{place}/#")
    assert (event.changes, event.deleted, event.directory) == (True, True, False)


def test_failed_opens_are_recorded_with_their_error(recorder: Recorder, place: Path) -> None:
    """result is -errno and path is empty, whatever stood in the way."""
    (place / "file").write_bytes(b"")
    (place / "loop").symlink_to("loop")
    (place / "link").symlink_to("file")
    calls = [
        ("absent", os.O_RDONLY, errno.ENOENT),
        ("file/below", os.O_RDONLY, errno.ENOTDIR),
        (".", os.O_WRONLY, errno.EISDIR),
        ("loop", os.O_RDONLY, errno.ELOOP),
        ("link", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, errno.EEXIST),
        ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("x" * 256, os.O_RDONLY, errno.ENAMETOOLONG),
    ]

    def act() -> None:
        os.chdir(place)
        for name, flags, _ in calls:
            tell(call(OPENAT, AT_FDCWD, name.encode(), flags))

    seen = recorder.record(act)
    assert list(seen.told) == [-error for _, _, error in calls]
    assert [event.result for event in seen.opens] == list(seen.told)
    assert [event.asked for event in seen.opens] == [name for name, _, _ in calls]
    assert {(event.path, event.reads, event.changes) for event in seen.opens} == {
        ("", False, False)
    }


def test_permission_and_descriptor_errors_are_recorded(recorder: Recorder, place: Path) -> None:
    """EACCES for a user who may not, EBADF for a directory descriptor that is none."""
    secret = place / "secret"
    secret.write_bytes(b"")
    secret.chmod(0o600)

    def act() -> None:
        os.setresuid(65534, 65534, 65534)
        tell(call(OPEN, os.fsencode(secret), os.O_RDONLY))
        tell(call(OPENAT, 999, b"file", os.O_RDONLY))

    seen = recorder.record(act)
    assert list(seen.told) == [-errno.EACCES, -errno.EBADF]
    assert [(event.result, event.asked) for event in seen.opens] == [
        (-errno.EACCES, str(secret)),
        (-errno.EBADF, "file"),
    ]


def test_a_name_that_cannot_be_read_is_unresolved(recorder: Recorder) -> None:
    """A pointer to nowhere: the call is recorded with its result, and asked is marked."""

    def act() -> None:
        tell(call(OPEN, 8, os.O_RDONLY))

    seen = recorder.record(act)
    (event,) = seen.opens
    assert event.result == seen.told[0] == -errno.EFAULT
    assert event.unresolved == frozenset({"asked"})


def test_a_name_longer_than_a_path_may_be_is_unresolved(recorder: Recorder) -> None:
    """What was asked is cut, and says so; one byte less is the longest that is whole."""
    longest = b"/." * 2047 + b"/"

    def act() -> None:
        for name in (longest, longest + b"."):
            tell(call(OPEN, name, os.O_RDONLY))

    seen = recorder.record(act)
    fits, cut = seen.opens
    assert [fits.result, cut.result] == list(seen.told)
    assert cut.result == -errno.ENAMETOOLONG
    assert (fits.path, fits.asked, fits.unresolved) == ("/", longest.decode(), frozenset())
    assert cut.unresolved == frozenset({"asked"})


def test_opens_of_every_thread_are_recorded_as_its_own(recorder: Recorder, place: Path) -> None:
    """tid tells the threads of a process apart; the process is one."""
    names = [f"thread{n}" for n in range(4)]

    def act() -> None:
        def one(name: str) -> None:
            os.close(os.open(place / name, os.O_WRONLY | os.O_CREAT))
            tell([str(place / name), threading.get_native_id()])

        threads = [threading.Thread(target=one, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seen = recorder.record(act)
    assert sorted([event.path, event.tid] for event in seen.opens) == sorted(seen.told)
    assert {event.process for event in seen.opens} == {seen.session}
    assert len({event.tid for event in seen.opens}) == len(names)
    assert seen.forks == []


def test_an_event_says_whose_it_is_and_when(recorder: Recorder) -> None:
    """Session, process, thread, start and time are the kernel's own."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def act() -> None:
        tell(os.getpid())
        os.open("/dev/null", os.O_RDONLY)

    seen = recorder.record(act)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    (event,) = seen.opens
    assert event.process == event.session == seen.session
    assert event.process.pid == event.tid == seen.told[0]
    assert before < event.time < after
    assert event.process.start < event.time
    assert (event.generation, event.provisional) == (0, False)
