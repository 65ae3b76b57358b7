"""A file has one canonical name, whatever name, mount, namespace or root it is opened through."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.recording import Recorder, call, handle_of, tell, witness

pytestmark = pytest.mark.root

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
OPEN_BY_HANDLE_AT = 304
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def must(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def leave_for_own_namespaces(kinds: int = CLONE_NEWUSER | CLONE_NEWNS) -> None:
    """A user and a mount namespace, as any user may make them where the host lets them."""
    must(_libc.unshare(kinds))
    must(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


def bind(source: Path, target: Path) -> None:
    must(_libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None))


@pytest.fixture
def file(place: Path) -> Path:
    """`directory/file` below the place, not empty."""
    (place / "directory").mkdir()
    found = place / "directory" / "file"
    found.write_bytes(b"content")
    return found


def test_other_names_of_a_file_give_its_canonical_one(recorder: Recorder, file: Path) -> None:
    """Symbolic links, `..`, descriptors and relative names change what was asked, not the path."""
    place = file.parent.parent
    (place / "link").symlink_to("directory/file")
    (place / "linked").symlink_to(place / "directory")
    asked = [
        str(file),
        str(place / "link"),
        str(place / "linked" / "file"),
        f"{place}/directory/../directory/./file",
        f"/proc/self/root{file}",
        "/proc/self/cwd/link",
        "directory/file",
        "link",
        "./linked/../directory/file",
    ]

    def act() -> None:
        os.chdir(place)
        for name in asked:
            os.close(os.open(name, os.O_RDONLY))

    seen = recorder.record(act)
    assert [event.asked for event in seen.opens] == asked
    assert {event.path for event in seen.opens} == {str(file)}


def test_a_name_relative_to_a_descriptor_is_resolved(recorder: Recorder, file: Path) -> None:
    """openat below an open directory, and a descriptor opened again by /proc and /dev."""

    def act() -> None:
        directory = os.open(file.parent, os.O_PATH)
        held = os.open("file", os.O_RDONLY, dir_fd=directory)
        os.open(f"/proc/self/fd/{held}", os.O_RDONLY)
        os.open(f"/dev/fd/{held}", os.O_RDONLY)
        os.open(f"/proc/self/fd/{directory}/file", os.O_RDONLY)

    parent, *opened = recorder.record(act).opens
    assert parent.path == str(file.parent)
    assert opened[0].asked == "file"
    assert [event.path for event in opened] == [str(file)] * 4


def test_a_hard_link_is_recorded_under_the_name_it_was_opened_by(
    recorder: Recorder, file: Path
) -> None:
    """Two names of one inode are two names: neither is more canonical than the other."""
    os.link(file, file.parent / "other")

    def act() -> None:
        os.open(file.parent / "other", os.O_RDONLY)

    (event,) = recorder.record(act).opens
    assert event.path == str(file.parent / "other")


def test_a_renamed_file_has_its_new_name(recorder: Recorder, file: Path) -> None:
    """The name is the one the file has when it is opened, its directories' names included."""
    place = file.parent.parent

    def act() -> None:
        os.rename(file, file.parent / "moved")
        os.rename(file.parent, place / "elsewhere")
        os.open(place / "elsewhere" / "moved", os.O_RDONLY)

    (event,) = recorder.record(act).opens
    assert event.path == str(place / "elsewhere" / "moved")


def test_a_bind_mount_in_a_namespace_of_its_own_renames_nothing(
    recorder: Recorder, file: Path
) -> None:
    """What an agent mounts elsewhere in its own view keeps its canonical name."""
    view = file.parent.parent / "view"
    view.mkdir()

    def act() -> None:
        leave_for_own_namespaces()
        bind(file.parent, view)
        os.open(view / "file", os.O_RDONLY)
        os.chdir(view)
        os.open("file", os.O_RDONLY)

    seen = recorder.record(act)
    assert [event.asked for event in seen.opens] == [str(view / "file"), "file"]
    assert [event.path for event in seen.opens] == [str(file)] * 2


def test_a_bind_mount_of_the_file_itself_renames_nothing(recorder: Recorder, file: Path) -> None:
    """A single file mounted over another is opened under its own name."""
    other = file.parent / "harmless"
    other.write_bytes(b"")

    def act() -> None:
        leave_for_own_namespaces()
        bind(file, other)
        tell(os.pread(os.open(other, os.O_RDONLY), 99, 0).decode())

    seen = recorder.record(act)
    assert seen.told == ("content",)
    assert seen.opened(str(other)).path == str(file)


def test_a_chroot_renames_nothing(recorder: Recorder, file: Path) -> None:
    """Below a root of its own the agent's `/file` is still the file it is."""

    def act() -> None:
        leave_for_own_namespaces()
        os.chroot(file.parent)
        os.chdir("/")
        os.open("/file", os.O_RDONLY)

    (event,) = recorder.record(act).opens
    assert (event.asked, event.path) == ("/file", str(file))


def test_a_file_system_of_its_own_is_named_by_its_device(recorder: Recorder, file: Path) -> None:
    """A tmpfs that only the agent has mounted hides no place: its device stands in front."""
    target = file.parent

    def act() -> None:
        leave_for_own_namespaces(CLONE_NEWNS)  # nobody could make files there as no user
        must(_libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, None))
        number = os.stat(target).st_dev
        tell(f"[{os.major(number)}:{os.minor(number)}]")
        os.mkdir(target / "in")
        os.open(target / "in", os.O_RDONLY)

    seen = recorder.record(act)
    (event,) = seen.opens
    assert event.path == f"{seen.told[0]}/in"


def test_a_file_of_another_file_system_is_named_below_its_mount(recorder: Recorder) -> None:
    """/proc and /dev are walked to their own roots and named by where they are mounted."""
    asked = ["/proc/self/status", "/dev/null", "/proc", "/proc/self/environ", "/"]

    def act() -> None:
        for name in asked:
            os.open(name, os.O_RDONLY)

    seen = recorder.record(act)
    pid = seen.session.pid
    assert [event.path for event in seen.opens] == [
        f"/proc/{pid}/status",
        "/dev/null",
        "/proc",
        f"/proc/{pid}/environ",
        "/",
    ]


STRANGE = [
    b"new\nline",
    b"escape\x1b[2J",
    b"quote\"'",
    b"bad\xff\xfe\xc3",
    b" ",
    b"tab\t",
    b"\xe2\x82\xac",
]


def test_names_of_any_bytes_come_back_byte_for_byte(recorder: Recorder, place: Path) -> None:
    """Newline, escape codes, quotes and invalid UTF-8, in what was asked and in the path."""
    names = [os.fsencode(place) + b"/" + name for name in STRANGE]

    def act() -> None:
        for name in names:
            os.open(name, os.O_WRONLY | os.O_CREAT)

    opens = recorder.record(act).opens
    assert [os.fsencode(event.path) for event in opens] == names
    assert [os.fsencode(event.asked) for event in opens] == names


def descend(levels: int, name: str) -> None:
    """Makes and enters that many directories, each in the one before."""
    for _ in range(levels):
        os.mkdir(name)
        os.chdir(name)


def ascend_and_remove(levels: int, name: str) -> None:
    """Takes `descend` back: shutil.rmtree would have to name what is below."""
    for _ in range(levels):
        os.chdir("..")
        os.rmdir(name)


@pytest.mark.parametrize("levels", [20, 64, 120, 1500])
def test_a_file_many_levels_deep_has_its_whole_name(
    recorder: Recorder, place: Path, levels: int
) -> None:
    """Depth alone loses nothing: over a hundred levels, over a thousand."""

    def act() -> None:
        os.chdir(place)
        descend(levels, "d")
        os.open("file", os.O_WRONLY | os.O_CREAT)
        os.unlink("file")
        ascend_and_remove(levels, "d")

    (event,) = recorder.record(act).opens
    assert event.path == str(place) + "/d" * levels + "/file"
    assert not event.unresolved


LONG = "n" * 255


@pytest.mark.parametrize("length", [4094, 4095, 4096])
def test_a_path_up_to_4096_bytes_is_whole(recorder: Recorder, place: Path, length: int) -> None:
    """The longest name that can be asked for has 4,095 bytes; one more is still read."""
    levels = (length - len(str(place)) - 2) // 256
    last = "x" * (length - len(str(place)) - 256 * levels - 1)

    def act() -> None:
        os.chdir(place)
        descend(levels, LONG)
        os.open(last, os.O_WRONLY | os.O_CREAT)
        if length < 4096:
            os.open(str(place) + f"/{LONG}" * levels + f"/{last}", os.O_RDONLY)
        os.unlink(last)
        ascend_and_remove(levels, LONG)

    opens = recorder.record(act).opens
    expected = str(place) + f"/{LONG}" * levels + f"/{last}"
    assert len(expected) == length
    assert {event.path for event in opens} == {expected}
    assert "path" not in set().union(*(event.unresolved for event in opens))
    if length < 4096:  # what was asked has no room beside such a path
        assert opens[1].unresolved == frozenset({"asked"})
        assert expected.startswith(opens[1].asked)


def test_a_path_over_4096_bytes_is_unresolved_and_keeps_its_end(
    recorder: Recorder, place: Path
) -> None:
    """What is past the limit is never passed off as the whole name."""
    levels = 20

    def act() -> None:
        os.chdir(place)
        descend(levels, LONG)
        os.open("file", os.O_WRONLY | os.O_CREAT)
        os.unlink("file")
        ascend_and_remove(levels, LONG)

    (event,) = recorder.record(act).opens
    assert event.unresolved == frozenset({"path"})
    assert event.path.endswith(f"/{LONG}/file")


def test_a_working_directory_that_is_gone_still_names_what_it_was(
    recorder: Recorder, place: Path
) -> None:
    """A removed directory opened through /proc is deleted, not unresolved."""

    def act() -> None:
        os.mkdir(place / "gone")
        os.chdir(place / "gone")
        os.rmdir(place / "gone")
        os.open("/proc/self/cwd", os.O_RDONLY)

    (event,) = recorder.record(act).opens
    assert (event.path, event.deleted) == (str(place / "gone"), True)
    assert event.directory


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of the test's own, whose cached names can be dropped without the host's."""
    group = MEMORY_CGROUPS / f"agentwatch-test-{os.getpid()}"
    if not (MEMORY_CGROUPS / "memory.force_empty").exists():
        pytest.skip(f"needs the memory controller of cgroup v1 at {MEMORY_CGROUPS}")
    group.mkdir()
    yield group
    group.rmdir()


def test_a_handle_of_a_file_nobody_looked_up_is_unresolved(
    recorder: Recorder, place: Path, memory_group: Path
) -> None:
    """Such a file hangs nowhere yet, and the kernel calls it `/`: that is no path of it."""

    def creates() -> None:
        (memory_group / "cgroup.procs").write_text("0")
        with open(place / "file", "w") as made:
            os.fsync(made.fileno())

    with witness(creates) as child:
        child.go()
        child.finish()
    directory = os.open(place, os.O_RDONLY)
    handle = handle_of(directory, b"file")
    (memory_group / "memory.force_empty").write_text("0")

    def act() -> None:
        opened = call(OPEN_BY_HANDLE_AT, directory, handle, os.O_RDONLY)
        tell(os.readlink(f"/proc/self/fd/{opened}"))

    seen = recorder.record(act)
    os.close(directory)
    assert seen.told == ("/",), "the file's name is still cached: this proves nothing"
    (event,) = seen.opens
    assert event.unresolved == frozenset({"path"})
    assert event.reads


def test_what_has_no_place_keeps_the_kernels_name_for_it(recorder: Recorder) -> None:
    """A memfd opened again has the name it was given; a pipe has none. Both are resolved."""

    def act() -> None:
        memory, (pipe, _) = os.memfd_create("scratch"), os.pipe()
        for held in (memory, pipe):
            os.open(f"/proc/self/fd/{held}", os.O_RDONLY)

    opens = recorder.record(act).opens
    assert [(event.path, event.unresolved) for event in opens] == [
        ("memfd:scratch", frozenset()),
        ("", frozenset()),
    ]
