"""Every change of names and attributes is recorded once: what was asked, and what that comes to."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Change
from agentwatch.kernel.links import Links
from agentwatch.sinks.frames import Kill, Verdict
from tests.kernel.launching import PYTHON, Launcher
from tests.kernel.recording import Recorder, call, tell, witness

pytestmark = pytest.mark.root

AT_FDCWD, AT_REMOVEDIR, AT_EMPTY_PATH, AT_NOFOLLOW = -100, 0x200, 0x1000, 0x100
KEEP = (1 << 32) - 1  # of chown: as it was

CALLS: tuple[tuple[int, tuple[object, ...], str, str, str], ...] = (
    # number, arguments (D: a descriptor of the directory, F: of the file), op, path, new path
    (133, (b"node", stat.S_IFREG | 0o600, 0), "create", "node", ""),
    (259, ("D", b"node2", stat.S_IFIFO | 0o600, 0), "create", "node2", ""),
    (83, (b"made", 0o700), "mkdir", "made", ""),
    (258, ("D", b"made2", 0o700), "mkdir", "made2", ""),
    (84, (b"made",), "rmdir", "made", ""),
    (263, ("D", b"made2", AT_REMOVEDIR), "rmdir", "made2", ""),
    (86, (b"file", b"hard"), "link", "file", "hard"),
    (265, ("D", b"file", "D", b"hard2", 0), "link", "file", "hard2"),
    (88, (b"its text", b"soft"), "symlink", "soft", ""),
    (266, (b"its text", "D", b"soft2"), "symlink", "soft2", ""),
    (82, (b"hard", b"moved"), "rename", "hard", "moved"),
    (264, ("D", b"moved", AT_FDCWD, b"moved2"), "rename", "moved", "moved2"),
    (316, (AT_FDCWD, b"moved2", "D", b"moved3", 1), "rename", "moved2", "moved3"),
    (76, (b"file", 5), "truncate", "file", ""),
    (77, ("F", 3), "truncate", "file", ""),
    (90, (b"file", 0o640), "chmod", "file", ""),
    (91, ("F", 0o600), "chmod", "file", ""),
    (268, ("D", b"file", 0o644), "chmod", "file", ""),
    (92, (b"file", KEEP, KEEP), "chown", "file", ""),
    (93, ("F", KEEP, KEEP), "chown", "file", ""),
    (94, (b"soft", KEEP, KEEP), "chown", "soft", ""),
    (260, ("D", b"file", KEEP, KEEP, 0), "chown", "file", ""),
    (260, ("F", b"", KEEP, KEEP, AT_EMPTY_PATH), "chown", "file", ""),
    (188, (b"file", b"trusted.aw", b"x", 1, 0), "xattr", "file", ""),
    (189, (b"file", b"trusted.aw", b"x", 1, 0), "xattr", "file", ""),
    (190, ("F", b"trusted.aw", b"x", 1, 0), "xattr", "file", ""),
    (199, ("F", b"trusted.aw"), "xattr", "file", ""),
    (197, (b"file", b"trusted.aw"), "xattr", "file", ""),
    (198, (b"file", b"trusted.aw"), "xattr", "file", ""),
    (87, (b"moved3",), "delete", "moved3", ""),
    (263, ("D", b"hard2", 0), "delete", "hard2", ""),
)


def test_each_call_is_recorded_once_with_op_names_and_result(
    recorder: Recorder, place: Path
) -> None:
    """All 31 calls, in order, none missing and none invented."""
    (place / "file").write_bytes(b"content")

    def act() -> None:
        os.chdir(place)
        held = {"D": os.open(".", os.O_PATH), "F": os.open("file", os.O_RDWR)}
        for number, arguments, *_ in CALLS:
            known = [held[a] if isinstance(a, str) else a for a in arguments]
            tell(call(number, *known))

    seen = recorder.record(act)
    found = seen.changes
    assert [event.op for event in found] == [op for _, _, op, *_ in CALLS]
    # A file system need not have extended attributes of that kind.
    assert [event.result for event in found] == list(seen.told)
    assert [r for r, (_, _, op, *_) in zip(seen.told, CALLS, strict=True) if op != "xattr"] == [
        0 for _, _, op, *_ in CALLS if op != "xattr"
    ]
    for event, (number, _, _, path, new_path) in zip(found, CALLS, strict=True):
        done = event.result == 0
        assert event.path == (str(place / path) if done else ""), (number, event)
        assert event.new_path == (str(place / new_path) if new_path and done else ""), event
        assert not event.unresolved
    assert [event.mode & 0o777 for event in found if event.op in ("mkdir", "chmod")] == [
        0o700, 0o700, 0o640, 0o600, 0o644,
    ]  # fmt: skip
    assert {event.new_asked for event in found if event.op == "symlink"} == {"its text"}


def test_newer_calls_are_recorded_where_the_kernel_has_them(
    recorder: Recorder, place: Path
) -> None:
    """fchmodat2, setxattrat and removexattrat, or their ENOSYS."""
    (place / "file").write_bytes(b"")

    def act() -> None:
        held = os.open(place, os.O_PATH)
        for number, arguments in (
            (452, (held, b"file", 0o600, AT_NOFOLLOW)),
            (463, (held, b"file", 0, b"trusted.aw", b"", 0)),
            (466, (held, b"file", 0, b"trusted.aw")),
        ):
            tell(call(number, *arguments))

    seen = recorder.record(act)
    found = seen.changes
    assert [(event.op, event.asked) for event in found] == [
        ("chmod", "file"),
        ("xattr", "file"),
        ("xattr", "file"),
    ]
    assert [event.result for event in found] == list(seen.told)


def test_failed_calls_are_recorded_with_their_error_and_what_was_asked(
    recorder: Recorder, place: Path
) -> None:
    """No name is made up for what did not happen."""

    def act() -> None:
        os.chdir(place)
        for number, *arguments in (
            (87, b"absent"),
            (84, b"absent"),
            (82, b"absent", b"other"),
            (83, os.fsencode(place), 0o700),
            (91, 999, 0o600),
        ):
            tell(call(number, *arguments))

    seen = recorder.record(act)
    found = seen.changes
    assert [event.result for event in found] == list(seen.told)
    assert [event.result for event in found] == [-errno.ENOENT] * 3 + [-errno.EEXIST, -errno.EBADF]
    assert [event.asked for event in found] == ["absent"] * 3 + [str(place), ""]
    assert {(event.path, event.new_path) for event in found} == {("", "")}


NAMES: dict[str, Callable[[Path], str]] = {
    "relative": lambda place: "dir/x",
    "absolute": lambda place: f"{place}/dir/x",
    "by dots": lambda place: f"{place}/dir/../dir/./x",
    "slashes": lambda place: f"{place}//dir///x",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_comes_to_the_same_however_it_is_written(
    recorder: Recorder, place: Path, name: str
) -> None:
    """Relative ones begin in the working directory; dots are taken out."""
    (place / "dir").mkdir()
    (place / "dir" / "x").write_bytes(b"")

    def act() -> None:
        os.chdir(place)
        os.unlink(NAMES[name](place))

    (event,) = recorder.record(act).changes
    assert (event.op, event.path, event.written) == ("delete", str(place / "dir" / "x"), "")
    assert not (place / "dir" / "x").exists()


def test_a_task_with_a_root_of_its_own_names_files_below_it(
    recorder: Recorder, place: Path
) -> None:
    """chroot changes what / is, and not what the record says."""
    (place / "x").write_bytes(b"")

    def act() -> None:
        os.chroot(place)
        os.unlink("/x")

    (event,) = recorder.record(act).changes
    assert (event.path, event.view) == (str(place / "x"), "/x")


def test_a_name_that_cannot_be_read_or_is_too_long_is_unresolved(
    recorder: Recorder, place: Path
) -> None:
    """Neither can be of a call that has changed anything."""

    def act() -> None:
        tell(call(87, 1))
        tell(call(87, b"x" * 5000))

    seen = recorder.record(act)
    unread, long = seen.changes
    assert seen.told == (-errno.EFAULT, -errno.ENAMETOOLONG)
    assert (unread.asked, unread.unresolved) == ("", {"asked"})
    assert (len(long.asked), long.unresolved) == (4096, {"asked"})


def test_deep_directories_have_their_whole_names(recorder: Recorder, place: Path) -> None:
    """Both names of a rename in a directory of some thousand bytes."""
    deep = "/".join(["d" * 200] * 12)
    os.makedirs(place / deep)

    def act() -> None:
        os.chdir(place / deep)
        os.close(os.open("a", os.O_CREAT | os.O_WRONLY))
        os.rename("a", "b")

    (event,) = recorder.record(act).changes
    assert (event.path, event.new_path) == (f"{place}/{deep}/a", f"{place}/{deep}/b")


def test_an_anonymous_file_is_recorded_as_one(recorder: Recorder) -> None:
    """ftruncate of a memfd, which programs do all the time, is about no file of anybody's."""

    def act() -> None:
        os.ftruncate(os.memfd_create("scratch"), 10)

    (event,) = recorder.record(act).changes
    assert (event.op, event.path, event.anonymous) == ("truncate", "memfd:scratch", True)


def test_the_32_bit_entry_is_recorded_too(recorder: Recorder, programs: Path, place: Path) -> None:
    """Each change that the 32-bit programs make, with the numbers of that entry."""
    for program in ("compat", "int80"):
        inside = place / program
        inside.mkdir()

        def act(program: str = program, inside: Path = inside) -> None:
            os.chdir(inside)
            os.execv(programs / program, [program, "1"])

        seen = recorder.record(act)
        told = [one for one in seen.told if one["call"] in TOLD_32]
        found = [r for r in seen.records if isinstance(r.event, Change)]
        assert [one["call"] for one in told] == list(TOLD_32)
        assert [r.event.op for r in found] == list(TOLD_32.values())
        assert [r.event.result for r in found] == [one["result"] for one in told] == [0] * 6
        assert {r.event.path for r in found} <= {str(inside / n) for n in ("dir", "one", "moved")}
        assert all(r.flags & abi.FLAG_COMPAT for r in found)


TOLD_32 = {
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "rename": "rename",
    "chmod": "chmod",
    "truncate": "truncate",
    "unlinkat": "delete",
}

# Symbolic links: looked up when the record is read.


def test_a_symbolic_link_in_a_directory_is_followed(recorder: Recorder, place: Path) -> None:
    """path is where the name leads, written what it says; the last component is not followed."""
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    (place / "real" / "x").symlink_to("nowhere")

    def act() -> None:
        os.chdir(place)
        os.unlink("link/x")

    (event,) = recorder.record(act).changes
    assert (event.path, event.written) == (str(place / "real/x"), str(place / "link/x"))


def test_what_a_call_follows_is_followed(recorder: Recorder, place: Path) -> None:
    """chmod by a symbolic link is of what it points to."""
    (place / "x").write_bytes(b"")
    (place / "link").symlink_to("x")
    (event,) = recorder.record(lambda: os.chmod(place / "link", 0o600)).changes
    assert (event.path, event.written) == (str(place / "x"), str(place / "link"))


def test_dots_behind_a_link_are_those_of_where_it_leads(recorder: Recorder, place: Path) -> None:
    """link/.. is the parent of the directory that the link leads to."""
    (place / "far" / "away").mkdir(parents=True)
    (place / "far" / "x").write_bytes(b"")
    (place / "link").symlink_to("far/away")
    (event,) = recorder.record(lambda: os.unlink(place / "link" / ".." / "x")).changes
    assert (event.path, event.written) == (str(place / "far/x"), str(place / "x"))


def test_a_name_by_way_of_proc_is_the_callers(recorder: Recorder, place: Path) -> None:
    """/proc/self is whose call it was, not who reads the record, as long as that is there."""
    (place / "x").write_bytes(b"")

    def act() -> None:
        os.chdir(place)
        os.rename("/proc/self/cwd/x", f"/proc/thread-self/root{place}/y")
        tell(1)
        signal.pause()

    with witness(act) as child:
        session = recorder.tag(child)
        child.go()
        child.hear(1)
        found = [record.event for record in recorder.quiet()]
    (event,) = (e for e in found if isinstance(e, Change) and e.session == session)
    assert (event.path, event.new_path) == (str(place / "x"), str(place / "y"))
    assert event.written == "/proc/self/cwd/x"


def test_looking_names_up_waits_for_no_file_system(place: Path) -> None:
    """What the kernel's cache of names does not have is left as it was written."""
    made = abi.pack(
        abi.CHANGE,
        {"flags": abi.FLAG_BASE, "op": abi.OP_DELETE},
        {"path": b"", "asked": os.fsencode(place / "never" / "looked" / "at")},
    )
    links = Links(lambda dev, path: "/")
    assert bytes(links.looked_up(memoryview(made))) == made


# What a rule on them is worth: the level's claim, under `agentwatch run`.

RULES = """\
schema: agentwatch/v1
rules:
  - id: test.no-delete
    title: Stays
    on: change
    match: {{op: [delete, rename], path: "{place}/kept/**"}}
    action: deny
    because: It is kept.
    tests: [{{hit: {{path: "{place}/kept/x", op: delete}}}}]
  - id: test.many
    title: Many
    on: change
    match: {{op: delete, path: "{place}/many/**"}}
    count: {{over: 50, within: 10s, by: session, distinct: path}}
    action: kill
    because: They are many.
    tests: [{{hit: {{path: "{place}/many/x", op: delete}}}}]
"""


@pytest.fixture
def launch(agentwatch: Path, place: Path) -> Launcher:
    """Runs a command under rules about changes."""
    (place / "more.yaml").write_text(RULES.format(place=place))
    return Launcher(agentwatch, place, options=[f"--rules={place}/more.yaml"])


ACTS = {
    "delete": "os.unlink('{place}/kept/x')",
    "by a link": "os.unlink('{place}/link/x')",
    "rename out": "os.rename('{place}/kept/x', '{place}/out')",
    "rename in": "os.rename('{place}/new', '{place}/kept/x')",
    "relative": "os.chdir('{place}/kept'); os.unlink('x')",
}


@pytest.mark.parametrize("act", ACTS)
def test_who_makes_a_denied_change_is_killed_after_it(launch: Launcher, act: str) -> None:
    """The file is gone, and then so is the program: kills-after, by the engine, and no more."""
    place = launch.place
    (place / "kept").mkdir()
    (place / "kept" / "x").write_text("old")
    (place / "new").write_text("new")
    (place / "link").symlink_to("kept")
    script = f"import os, time; {ACTS[act].format(place=place)}; time.sleep(10); print('lived')"
    outcome = launch(PYTHON, "-c", script)
    assert (outcome.code, outcome.out) == (137, "")
    kept = place / "kept" / "x"
    assert kept.read_text() == "new" if act == "rename in" else not kept.exists()
    (verdict,) = outcome.frames(Verdict)
    assert (verdict.rule, verdict.level, verdict.by) == ("test.no-delete", "kills-after", "engine")
    assert verdict.what.startswith("rename" if "rename" in act else "delete")
    (kill,) = outcome.frames(Kill)
    assert kill.outcome == "killed"


def test_a_failed_change_is_nothing_that_rules_are_about(launch: Launcher) -> None:
    """What is not there cannot be deleted; the journal has it all the same."""
    name = launch.place / "kept" / "x"
    outcome = launch("sh", "-c", f"{PYTHON} -c \"import os; os.unlink('{name}')\" 2>&1; echo lived")
    assert outcome.out.endswith("lived\n")
    assert outcome.frames(Verdict) == []
    assert [(e.op, e.asked, e.result) for e in outcome.events(Change)] == [
        ("delete", str(name), -errno.ENOENT)
    ]


def test_a_mass_deletion_is_stopped(launch: Launcher) -> None:
    """A count of different files deleted fires a moment after the one too many."""
    many = launch.place / "many"
    many.mkdir()
    for number in range(60):
        (many / str(number)).write_text("")
    script = f"import os, time\nfor n in range(60): os.unlink(f'{many}/{{n}}'); time.sleep(0.01)"
    outcome = launch(PYTHON, "-c", script)
    assert outcome.code == 137
    assert {verdict.rule for verdict in outcome.frames(Verdict)} == {"test.many"}
    assert 0 < len(list(many.iterdir())) < 10


def test_what_a_command_left_to_be_read_is_read(launch: Launcher) -> None:
    """All of 20,000 deletions, each of which the engine judges, are in the journal at the end."""
    many = launch.place / "left"
    many.mkdir()
    for number in range(20_000):
        (many / str(number)).touch()
    outcome = launch("rm", "-rf", str(many))
    assert outcome.code == 0
    found = [event for event in outcome.events(Change) if event.result == 0]
    assert len({event.path for event in found if event.op == "delete"}) == 20_000
    assert [event.path for event in found if event.op == "rmdir"] == [str(many)]
