"""The journal's writer and reader, on real files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from agentwatch import abi
from agentwatch.errors import JournalError, PermissionDenied
from agentwatch.events import Connect, Exec, Open, ProcessKey
from agentwatch.mounts import Mounts
from agentwatch.sinks import chain, frames
from agentwatch.sinks.frames import (
    EventRef,
    Gap,
    Kill,
    MountsChanged,
    Session,
    Start,
    Stop,
    Verdict,
)
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import Entry, read
from agentwatch.sinks.segments import chains
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

NOBODY = 65534
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: only it can give a directory away"
)


def opened(directory: Path, **options: object) -> Journal:
    """A journal of a made-up host."""
    settings: dict[str, object] = {"boot_id": "boot", "host": "box", "name": "run-a"} | options
    return Journal.open(directory, **settings)  # type: ignore[arg-type]


def write_some(journal: Journal, count: int = 3) -> list[bytes]:
    """`count` opens, each in a batch of its own."""
    make = Records()
    made = [make.open(f"/home/dev/project/file{i}") for i in range(count)]
    for record in made:
        journal.records(record, 1)
        journal.flush()
    return made


def events(directory: Path) -> list[Entry]:
    return [entry for entry in read(directory) if entry.event is not None]


def written_frames(directory: Path) -> list[frames.Frame]:
    return [entry.frame for entry in read(directory) if entry.frame is not None]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Records and typed frames come back with their chain, host, wall time and values."""
    journal = opened(tmp_path / "j")
    journal.write(Start(time=5, command=("claude", "-p"), mode="enforce", user="dev"))
    write_some(journal)
    journal.write(Kill(time=9, process=AGENT, outcome="killed", latency=1_500_000))
    journal.close("done")

    entries = list(read(tmp_path / "j"))
    assert {entry.chain for entry in entries} == {"run-a"}
    assert {entry.host.boot_id for entry in entries} == {"boot"}
    paths = [e.event.path for e in entries if isinstance(e.event, Open)]
    assert paths == [f"/home/dev/project/file{i}" for i in range(3)]
    assert Start(time=5, command=("claude", "-p"), mode="enforce", user="dev") in [
        entry.frame for entry in entries
    ]
    assert any(isinstance(e.frame, Stop) and e.frame.reason == "done" for e in entries)


def test_every_type_of_frame_survives_the_journey(tmp_path: Path) -> None:
    """A frame of every type, with a name that is no UTF-8, decodes to an equal one."""
    odd = os.fsdecode(b"/tmp/\xff\n")
    samples = {
        frames.Start: Start(time=1, command=(odd,)),
        frames.Stop: Stop(time=1, reason=odd),
        frames.Session: Session(time=1, session=AGENT, agent="claude-code", command=(odd,)),
        frames.Verdict: Verdict(time=1, event=EventRef(1, 2, 3), what=odd, tags=("a", "b")),
        frames.MountsChanged: MountsChanged(time=1, rows=()),
        frames.SessionEnd: frames.SessionEnd(time=1, session=AGENT, processes=3, kills=1),
        frames.Holdings: frames.Holdings(time=1, process=AGENT, files=(odd,), connections=("x",)),
        frames.Control: frames.Control(time=1, uid=0, pid=7, verb="tag", text=odd, ok=False),
        frames.Resumed: frames.Resumed(time=1, sequence=9, torn=3, rebooted=True, boot_id="b"),
        frames.Retired: frames.Retired(time=1, chain="run-a", last=4, hash=b"\xff" * 32),
    }
    for kind in frames.TYPES.values():
        frame = samples.get(kind, kind(time=1))
        assert frames.decode(frames.NUMBERS[kind], 1, frames.encode(frame)) == frame


def test_fields_of_a_newer_version_are_ignored_and_missing_ones_have_defaults() -> None:
    """A frame is read by the names of its fields, whatever version wrote it."""
    payload = msgpack.packb({"reason": "over", "colour": "blue"})
    assert frames.decode(frames.STOP, 7, payload) == Stop(time=7, reason="over", status=-1)
    assert frames.decode(99, 7, payload) is None


def test_a_field_of_the_wrong_type_is_an_error_of_ours() -> None:
    """A frame that makes no sense raises JournalError and nothing else."""
    for payload in (msgpack.packb({"reason": 5}), b"\xc1", msgpack.packb([1])):
        with pytest.raises(JournalError, match="does not decode"):
            frames.decode(frames.STOP, 7, payload)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_files_are_0640_in_directories_of_0750_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    """Nobody but the writer and the group reads a journal."""
    before = os.umask(umask)
    try:
        opened(tmp_path / "j").close()
    finally:
        os.umask(before)
    segment = tmp_path / "j" / "run-a" / "00000001.journal"
    assert stat.S_IMODE(segment.stat().st_mode) == 0o640
    assert stat.S_IMODE(segment.parent.stat().st_mode) == 0o750
    assert stat.S_IMODE(segment.parent.parent.stat().st_mode) == 0o750


def test_a_segment_ends_at_its_limit_and_the_chain_goes_on(tmp_path: Path) -> None:
    """Rotation keeps every record, in order, and the chain is intact over all segments."""
    journal = opened(tmp_path / "j", segment_bytes=6000)
    make = Records()
    for i in range(200):
        journal.records(make.open(f"/f{i}"), 1)
    journal.close()
    one = chains(tmp_path / "j")[0]
    assert len(one.segments) > 3
    assert all(path.stat().st_size <= 6000 for _, path in one.segments)
    assert [e.event.path for e in events(tmp_path / "j") if isinstance(e.event, Open)] == [
        f"/f{i}" for i in range(200)
    ]
    report = verify(tmp_path / "j")[0]
    assert (report.intact, report.closed, report.records) == (True, True, 200)


def test_the_head_is_what_verify_finds(tmp_path: Path) -> None:
    """Journal.head names the last frame, as a witness elsewhere would keep it."""
    journal = opened(tmp_path / "j")
    write_some(journal)
    journal.close()
    assert verify(tmp_path / "j", {"run-a": journal.head})[0].intact
    assert verify(tmp_path / "j")[0].head == journal.head


def test_an_old_chain_is_continued(tmp_path: Path) -> None:
    """A second writer of the same name goes on in a new segment of the same chain."""
    first = opened(tmp_path / "j", name="daemon")
    write_some(first)
    first.close()
    second = opened(tmp_path / "j", name="daemon")
    assert second.head.sequence > first.head.sequence
    second.close()
    report = verify(tmp_path / "j")[0]
    assert (report.intact, report.segments) == (True, 2)


def test_a_chain_cut_by_power_loss_is_continued_and_told(tmp_path: Path) -> None:
    """The next writer notes the cut; verify reports it as torn, not as tampering."""
    first = opened(tmp_path / "j", name="daemon")
    write_some(first)
    first.close()
    segment = tmp_path / "j" / "daemon" / "00000001.journal"
    os.truncate(segment, segment.stat().st_size - 10)
    opened(tmp_path / "j", name="daemon").close()
    problems = verify(tmp_path / "j")[0].problems
    assert [problem.what for problem in problems] == ["torn"]


def test_a_kill_is_on_disk_before_write_returns(tmp_path: Path) -> None:
    """Decisions are not buffered: another reader sees them at once, other frames may wait."""
    journal = opened(tmp_path / "j")
    journal.write(frames.Notice(subject="mode", text="x"))
    assert not written_frames(tmp_path / "j")
    journal.write(Verdict(rule="r", action="kill", response="kill", outcome="killed"))
    assert [type(frame) for frame in written_frames(tmp_path / "j")] == [frames.Notice, Verdict]
    journal.close()


def test_records_do_not_wait_longer_than_the_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that comes a tenth of a second after the one that waits takes it along."""
    clock = iter(range(10**12, 10**15, 60_000_000))
    monkeypatch.setattr("agentwatch.sinks.journal.now", lambda: next(clock))
    journal = opened(tmp_path / "j")
    make = Records()
    for _ in range(3):
        journal.records(make.open("/f"), 1)
    assert journal.waiting == 0
    journal.close()


def test_fsync_follows_a_kill_without_waiting_for_the_interval(tmp_path: Path) -> None:
    """With an hour between syncs, a decision is still synced within moments."""
    journal = opened(tmp_path / "j", fsync=3600.0)
    syncer = journal._syncer
    wait_for(lambda: syncer.count >= 1)
    before = syncer.count
    write_some(journal, 1)
    journal.write(Kill(outcome="killed"))
    wait_for(lambda: syncer.count > before)
    journal.close()


def wait_for(holds: object) -> None:
    """Up to five seconds for a condition."""
    end = time.monotonic() + 5
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def file_limit() -> Iterator[object]:
    """Sets how large a file may become: a write past it fails like one on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_is_told_and_nothing_is_lost(tmp_path: Path, file_limit: object) -> None:
    """While the disk takes nothing each flush raises; afterwards everything is there, intact."""
    journal = opened(tmp_path / "j")
    file_limit(journal.bytes + 50)  # type: ignore[operator]
    with pytest.raises(JournalError) as caught:
        write_some(journal)
    assert caught.value.remedy
    assert journal.failures == 1
    make = Records(time=9_000_000_000)
    with pytest.raises(JournalError):
        journal.write(Kill(outcome="killed"))
    journal.records(make.open("/later"), 1)
    file_limit(None)  # type: ignore[operator]
    journal.close()
    paths = [e.event.path for e in events(tmp_path / "j") if isinstance(e.event, Open)]
    assert paths == ["/home/dev/project/file0", "/later"]
    assert any(isinstance(frame, Kill) for frame in written_frames(tmp_path / "j"))
    assert verify(tmp_path / "j")[0].intact


def test_past_the_bound_records_give_way_and_are_counted(
    tmp_path: Path, file_limit: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records go before typed frames, a gap frame says how many, and the chain stays whole."""
    monkeypatch.setattr("agentwatch.sinks.waiting.WAITING_MAX", 30_000)
    journal = opened(tmp_path / "j")
    file_limit(journal.bytes)  # type: ignore[operator]
    make = Records()
    for i in range(400):
        journal.records(make.open(f"/f{i}"), 1)
    with pytest.raises(JournalError):
        journal.write(Kill(outcome="killed"))
    file_limit(None)  # type: ignore[operator]
    journal.close()
    gaps = [frame for frame in written_frames(tmp_path / "j") if isinstance(frame, Gap)]
    kept = len(events(tmp_path / "j"))
    assert 0 < kept < 400
    assert [(g.stage, g.count, g.frames) for g in gaps] == [("journal", 400 - kept, 0)]
    assert any(isinstance(frame, Kill) for frame in written_frames(tmp_path / "j"))
    assert verify(tmp_path / "j")[0].intact


def test_a_batch_that_has_no_room_at_all_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger than everything that may wait: it is lost, and the gap says so."""
    journal = opened(tmp_path / "j")
    monkeypatch.setattr("agentwatch.sinks.waiting.WAITING_MAX", 10)
    journal.records(Records().open("/f"), 1)
    monkeypatch.undo()
    journal.close()
    gaps = [frame for frame in written_frames(tmp_path / "j") if isinstance(frame, Gap)]
    assert [gap.count for gap in gaps] == [1]


def test_a_full_disk_has_a_remedy(tmp_path: Path) -> None:
    """/dev/full answers ENOSPC as a full disk does; the message says what to do."""
    journal = opened(tmp_path / "j", fsync=None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._tape._out)
    os.close(full)
    with pytest.raises(JournalError, match="no room") as caught:
        write_some(journal, 1)
    assert "free some space" in caught.value.remedy
    journal.close()
    assert len(events(tmp_path / "j")) == 1
    assert verify(tmp_path / "j")[0].intact


def test_a_link_in_place_of_a_segment_is_not_followed(tmp_path: Path) -> None:
    """A segment is made, never opened: a planted name is refused and its target untouched."""
    target = tmp_path / "target"
    target.write_text("mine")
    directory = tmp_path / "j" / "run-a"
    directory.mkdir(parents=True, mode=0o750)
    journal = opened(tmp_path / "j", segment_bytes=3000)
    (directory / "00000002.journal").symlink_to(target)
    with pytest.raises(JournalError) as caught:
        write_some(journal, 100)
    assert os.strerror(errno.EEXIST) in caught.value.message
    assert target.read_text() == "mine"
    (directory / "00000002.journal").unlink()
    journal.close()


def test_a_directory_below_one_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Who may rename any directory above the journal can put another journal in its place."""
    (tmp_path / "shared" / "inner").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o777)
    for name in ("inner/j", "inner/new/j", "inner/../inner/j"):
        with pytest.raises(JournalError, match=f"others may write to {tmp_path}/shared\n"):
            opened(tmp_path / "shared" / name)
    (tmp_path / "shared").chmod(0o1777)
    opened(tmp_path / "shared" / "inner" / "j").close()


def test_a_relative_directory_is_checked_like_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directories above the working directory count, too."""
    (tmp_path / "shared" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shared" / "inner")
    opened(Path("j")).close()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(JournalError, match="others may write"):
        opened(Path("j"), name="run-b")


@needs_root
def test_a_directory_of_somebody_else_above_the_journal_is_refused(tmp_path: Path) -> None:
    """Whoever owns /tmp/attack swaps /tmp/attack/j, whoever owns that: the remedy names a place."""
    for inside in ("attack", "attack/j"):
        (tmp_path / inside).mkdir()
        os.chown(tmp_path / inside, NOBODY, NOBODY)
        with pytest.raises(JournalError, match=f"attack belongs to uid {NOBODY}") as caught:
            opened(tmp_path / "attack" / "j")
        assert "/var/log/agentwatch" in caught.value.remedy
    assert os.listdir(tmp_path / "attack" / "j") == []


@needs_root
def test_links_are_followed_only_where_root_or_the_writer_made_them(tmp_path: Path) -> None:
    """A planted link leads nowhere; an administrator's own leads where it says."""
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("link", tmp_path / "elsewhere"), ("near", "link"), ("up", "x/../near")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "x").mkdir()
    opened(tmp_path / "up" / "j").close()
    assert (tmp_path / "elsewhere" / "j" / "run-a").is_dir()
    opened(tmp_path / "link", name="run-b").close()
    assert (tmp_path / "elsewhere" / "run-b").is_dir()
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    for name in ("link", "up/j"):
        with pytest.raises(JournalError, match=f"link belongs to uid {NOBODY}"):
            opened(tmp_path / name, name="run-c")


@needs_root
def test_a_trusted_link_into_a_place_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """What a link leads to is checked like what stands in the path, from / on."""
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(tmp_path / "theirs" / "deep")
    with pytest.raises(JournalError, match="theirs belongs to uid"):
        opened(tmp_path / "link" / "j")


def test_links_that_lead_in_circles_are_an_error(tmp_path: Path) -> None:
    """Not a loop without end."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(JournalError, match="symbolic links"):
        opened(tmp_path / "a" / "j")


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    """With what it is, and no traceback."""
    (tmp_path / "file").touch()
    for place in ("file", "file/j"):
        with pytest.raises(JournalError, match="Not a directory"):
            opened(tmp_path / place)


def test_missing_directories_are_made_for_their_writer_alone(tmp_path: Path) -> None:
    """Whatever the umask: nobody else may write to one of them."""
    before = os.umask(0)
    try:
        opened(tmp_path / "a" / "b" / "j").close()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/j")]
    assert modes == [0o755, 0o755, 0o750]


@needs_root
def test_an_ordinary_person_writes_below_directories_of_their_own(tmp_path: Path) -> None:
    """A home that its own group may write to is fine; one that other people's may is not."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chown(home, NOBODY, NOBODY)
        home.chmod(0o775)
        script = (
            "import sys; from agentwatch.sinks.journal import Journal;"
            "Journal.open(sys.argv[1] + '/aw', name='run-a').close()"
        )
        line = [sys.executable, "-c", script, str(home)]
        person = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "check": True}
        subprocess.run(line, **person)  # type: ignore[call-overload]
        assert verify(home / "aw")[0].problems[0].what == "untrusted"  # to root
        assert_intact = (
            "import sys; from pathlib import Path; from agentwatch.sinks.verify import verify;"
            "assert verify(Path(sys.argv[1]))[0].intact"
        )
        check = [sys.executable, "-c", assert_intact, str(home / "aw")]
        subprocess.run(check, **person)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(home)


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Who can replace the journal's directory can replace the journal."""
    (tmp_path / "j").mkdir()
    (tmp_path / "j").chmod(0o777)
    with pytest.raises(JournalError, match="others may write") as caught:
        opened(tmp_path / "j")
    assert "chmod" in caught.value.remedy
    (tmp_path / "j").chmod(0o1777)
    opened(tmp_path / "j").close()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Root does not write its journal where a user could move it away."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    (tmp_path / "j").mkdir()
    os.chown(tmp_path / "j", 12345, 12345)
    with pytest.raises(JournalError, match="uid 12345"):
        opened(tmp_path / "j")


def test_a_file_in_place_of_the_directory_is_a_clear_error(tmp_path: Path) -> None:
    """No traceback where DIR is a file."""
    (tmp_path / "j").write_text("")
    with pytest.raises(JournalError) as caught:
        opened(tmp_path / "j")
    assert "--journal" in caught.value.remedy


def test_no_journal_and_no_permission_are_different_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 where there is none, 4 where it may not be read."""
    with pytest.raises(JournalError, match="no journal"):
        read(tmp_path / "nothing")
    with pytest.raises(JournalError, match="no journal"):
        read(tmp_path)

    def refuse(path: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionDenied):
        read(tmp_path)


def test_a_verdict_is_attached_to_its_event_from_either_side(tmp_path: Path) -> None:
    """Written before the batch of its event or after it, a verdict is found on the event."""
    journal = opened(tmp_path / "j")
    make = Records()
    first, second = make.open("/a"), make.open("/b")
    journal.write(Verdict(time=1, event=EventRef(1, 0, 1), rule="before", response="kill"))
    journal.records(first + second, 2)
    journal.write(Verdict(time=2, event=EventRef(1, 0, 2), rule="after", response="kill"))
    journal.write(Verdict(time=3, event=EventRef(1, 0, 77), rule="alone", response="kill"))
    journal.close()
    found = {
        e.event.path: [v.rule for v in e.verdicts]
        for e in read(tmp_path / "j")
        if isinstance(e.event, Open)
    }
    assert found == {"/a": ["before"], "/b": ["after"]}
    attached = {
        e.frame.rule: e.attached for e in read(tmp_path / "j") if isinstance(e.frame, Verdict)
    }
    assert attached == {"before": True, "after": True, "alone": False}


def test_numbers_of_a_second_run_are_not_taken_for_those_of_the_first(tmp_path: Path) -> None:
    """Each start counts from 1 again: a verdict belongs to the run it stands in."""
    journal = opened(tmp_path / "j")
    for rule in ("one", "two"):
        journal.write(Start(time=1))
        journal.records(Records().open(f"/{rule}"), 1)
        journal.write(Verdict(time=2, event=EventRef(1, 0, 1), rule=rule, response="kill"))
    journal.close()
    found = [(e.event.path, [v.rule for v in e.verdicts]) for e in events(tmp_path / "j")]  # type: ignore[union-attr]
    assert found == [("/one", ["one"]), ("/two", ["two"])]


def test_events_carry_their_agent_and_the_program_that_ran(tmp_path: Path) -> None:
    """The session's agent is known back to its first record, the image from exec and fork."""
    journal = opened(tmp_path / "j")
    child = ProcessKey(5000, 5)
    make = Records()
    batch = [
        make.exec("/usr/bin/node", ("node", "claude")),
        make.fork(child),
        make.open("/a", process=child),
        make.exec("/usr/bin/git", ("git", "status"), process=child),
        make.open("/b", process=child),
    ]
    journal.records(b"".join(batch), len(batch))
    journal.write(Session(session=AGENT, agent="claude-code"))
    journal.close()
    entries = events(tmp_path / "j")
    assert {entry.agent for entry in entries} == {"claude-code"}
    images = {e.event.path: e.image.exe for e in entries if isinstance(e.event, Open) and e.image}
    assert images == {"/a": "/usr/bin/node", "/b": "/usr/bin/git"}


def test_provisional_sessions_are_shown_only_once_confirmed(tmp_path: Path) -> None:
    """What turned out to be no agent is not shown; what was confirmed is, from the start."""
    journal = opened(tmp_path / "j")
    other = ProcessKey(77, 7)
    mine, theirs = Records(), Records(other, other)
    flag = abi.FLAG_PROVISIONAL
    journal.records(mine.exec("/bin/claude", flags=flag) + theirs.exec("/bin/cat", flags=flag), 2)
    journal.write(frames.AgentAdded(session=AGENT, process=AGENT, agent="claude-code"))
    journal.close()
    assert [e.event.path for e in events(tmp_path / "j") if isinstance(e.event, Exec)] == [
        "/bin/claude"
    ]


def test_chains_are_merged_by_time(tmp_path: Path) -> None:
    """Two writers of one directory are read as one story; each can be read alone."""
    for name, start in (("run-a", 1_000_000), ("run-b", 1_500_000)):
        journal = opened(tmp_path / "j", name=name)
        make = Records(time=start, step=1_000_000)
        for i in range(3):
            journal.records(make.open(f"/{name}{i}"), 1)
        journal.close()
    walls = [entry.wall for entry in read(tmp_path / "j")]
    assert len({e.chain for e in events(tmp_path / "j")}) == 2
    assert walls == sorted(walls)
    assert {entry.chain for entry in read(tmp_path / "j" / "run-b")} == {"run-b"}


def test_names_are_those_of_the_mounts_in_force(tmp_path: Path) -> None:
    """The header's table names a path until a frame with a new one comes."""
    rows = ((7, ((b"", b"/home"),)),)
    journal = opened(tmp_path / "j", mounts=Mounts.from_rows(rows))
    make = Records()
    journal.records(make.open("/dev/x", dev=7), 1)
    journal.write(MountsChanged(rows=((7, ((b"", b"/srv"),)),)))
    journal.records(make.open("/dev/x", dev=7), 1)
    journal.close()
    assert [e.event.path for e in events(tmp_path / "j") if isinstance(e.event, Open)] == [
        "/home/dev/x",
        "/srv/dev/x",
    ]


def test_wall_time_comes_from_the_segments_own_pair_of_clocks(tmp_path: Path) -> None:
    """An event's boot time is shown as the time of day it was."""
    journal = opened(tmp_path / "j")
    journal.records(Records(time=time.clock_gettime_ns(time.CLOCK_BOOTTIME)).open("/f"), 1)
    journal.close()
    assert abs(events(tmp_path / "j")[0].wall - time.time_ns()) < 5_000_000_000


def test_a_large_batch_is_one_frame(tmp_path: Path) -> None:
    """A whole ring drained at once is written and read as it is."""
    make = Records()
    batch = b"".join(make.open(f"/{'d' * 200}/{i}") for i in range(5000))
    journal = opened(tmp_path / "j")
    journal.records(memoryview(batch), 5000)
    journal.close()
    assert len(events(tmp_path / "j")) == 5000


def test_connect_records_are_read(tmp_path: Path) -> None:
    """IPv4, IPv6 and unix addresses come back as text."""
    make = Records()
    batch = make.connect("192.0.2.1") + make.connect("2001:db8::1", 80) + make.connect("@bus")
    journal = opened(tmp_path / "j")
    journal.records(batch, 3)
    journal.close()
    found = [
        (e.event.addr, e.event.unix) for e in events(tmp_path / "j") if isinstance(e.event, Connect)
    ]
    assert found == [("192.0.2.1", ""), ("2001:db8::1", ""), ("", "@bus")]


def test_a_frame_is_plain_msgpack(tmp_path: Path) -> None:
    """Anybody's msgpack reads a segment: [sequence, type, time, payload, hash] after another."""
    journal = opened(tmp_path / "j")
    write_some(journal)
    journal.close()
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
    unpacker.feed((tmp_path / "j" / "run-a" / "00000001.journal").read_bytes())
    found = list(unpacker)
    assert [frame[0] for frame in found] == list(range(1, len(found) + 1))
    assert found[0][1] == frames.HEADER
    assert found[-1][1] == frames.STOP
    assert all(len(frame[4]) == chain.HASH_SIZE for frame in found)
    header = msgpack.unpackb(found[0][3], strict_map_key=False)
    assert header["tables"][abi.OPEN] == abi.LAYOUTS[abi.OPEN].table()
