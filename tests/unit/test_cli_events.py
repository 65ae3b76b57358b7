"""`agentwatch events` and `agentwatch journal`, on journals of real records and real streams."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from agentwatch.cli.events import events, moment
from agentwatch.cli.following import HELD_MAX, WAITING, Window
from agentwatch.cli.journal import journal
from agentwatch.control.wire import Missed, Streamed
from agentwatch.errors import (
    AgentwatchError,
    JournalError,
    NotRunningError,
    PermissionDenied,
    UsageError,
)
from agentwatch.events import Open, ProcessKey
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.following import Following
from agentwatch.sinks.frames import (
    RECORDS,
    AgentAdded,
    EventRef,
    Gap,
    Kill,
    Reload,
    Session,
    Start,
    Verdict,
    encode,
)
from agentwatch.sinks.frames import Records as Batch
from agentwatch.sinks.host import this_host
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.lines import line, verdict_text
from agentwatch.testing import AGENT, Records
from tests.unit.played import Played, played, streamed

OTHER = ProcessKey(9000, 9)
KEY = "/home/dev/.ssh/id_ed25519"


@click.group()
def cli() -> None:
    """As the package's own command line collects them."""


cli.add_command(events)
cli.add_command(journal)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two agents' sessions: one was killed for reading a key, one only observed."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    writer = Journal.open(tmp_path / "j", boot_id="boot", host="box", name="run-a")
    writer.write(Start(time=now, command=("claude",), mode="enforce"))
    writer.write(Session(time=now, session=AGENT, agent="claude-code", command=("claude", "-p")))
    make = Records(time=now)
    batch = [
        make.exec("/usr/bin/cat", ("cat", "two words", "x\n\x1b[31m")),
        make.open("/home/dev/project/a", changes=True),
        make.open(KEY),
        make.connect("192.0.2.1", 443, result=-111),
        make.exit(9),
    ]
    writer.records(b"".join(batch), len(batch))
    common = {"time": now, "process": AGENT, "session": AGENT, "agent": "claude-code"}
    writer.write(
        Verdict(
            event=EventRef(1, 0, 2),
            kind="read",
            what=KEY,
            rule="secrets.private-keys",
            action="deny",
            response="kill",
            outcome="killed",
            level="kills-after",
            **common,  # type: ignore[arg-type]
        )
    )
    writer.write(Kill(rule="secrets.private-keys", outcome="killed", latency=1_500_000, **common))  # type: ignore[arg-type]
    second = Records(OTHER, OTHER, time=now, cpu=1)
    writer.records(second.open("/etc/shadow"), 1)
    writer.write(AgentAdded(time=now, session=OTHER, process=OTHER, agent="codex", path="/c"))
    observed = {"rule": "x.shadow", "action": "kill", "outcome": "observed", "kind": "read"}
    writer.write(Verdict(time=now, event=EventRef(1, 1, 1), process=OTHER, **observed))  # type: ignore[arg-type]
    writer.close()
    return tmp_path / "j"


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result


def shown(directory: Path, *arguments: str) -> list[str]:
    return run("events", "--journal", str(directory), *arguments).stdout.splitlines()


def failure(*arguments: str) -> AgentwatchError:
    """The error the command line's own main prints."""
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, AgentwatchError), result.output
    return result.exception


def test_a_verdict_says_that_the_kernel_did_it() -> None:
    """Beside the level; of the engine's nothing is said."""
    verdict = Verdict(rule="k", action="kill", outcome="killed", level="kills", by="kernel")
    assert verdict_text(verdict) == "killed by k (kills, by the kernel)"
    engines = replace(verdict, by="engine", level="kills-after")
    assert verdict_text(engines) == "killed by k (kills-after)"


def test_a_reload_says_which_rules_have_no_place() -> None:
    """As the daemon puts it into the frame."""
    frame = Reload(generation=2, rules=9, message="1 rule stays with the engine")
    told = line(Entry(chain="c", host=this_host(), number=1, wall=1, frame=frame))
    assert told is not None
    assert told.what == "policy 2 in force, 9 rules: 1 rule stays with the engine"


def test_one_line_per_event_with_time_agent_pid_kind_what_and_verdict(directory: Path) -> None:
    """The columns stand below each other."""
    lines = shown(directory)
    line = next(line for line in lines if KEY in line)
    fields = line.split()
    assert fields[2:6] == ["claude-code", "4242", "read", KEY]
    assert line.endswith("killed by secrets.private-keys (kills-after)")
    assert sum(KEY in line for line in lines) == 1
    columns = {one.index("4242") for one in lines if " 4242 " in one}
    assert len(columns) == 1


def test_names_cannot_forge_lines_or_colours(directory: Path) -> None:
    """A newline and an escape code in argv are shown as text."""
    line = next(line for line in shown(directory, "--kind", "exec"))
    assert "'two words'" in line
    assert "x\\n\\x1b[31m" in line


def test_results_are_shown(directory: Path) -> None:
    """A refused connection and a killed process say so."""
    text = "\n".join(shown(directory))
    assert "192.0.2.1:443 tcp  ECONNREFUSED" in text
    assert "status 137" in text
    assert "killed after 1.5 ms" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--kind", "exec"), ["exec"]),
        (("--kind", "read", "--kind", "change"), ["change", "read", "read"]),
        (("--kind", "open"), ["change", "read", "read"]),
        (("--kind", "connect"), ["connect"]),
        (("--pid", "9000"), ["agent", "read"]),
        (("--agent", "codex"), ["agent", "read"]),
        (("--rule", "secrets.*"), ["kill", "read"]),
        (("--rule", "x.shadow"), ["read"]),
        (("--would-deny",), ["read"]),
        (("--until", "2001-01-01"), []),
        (("--since", "1h", "--kind", "exit"), ["exit"]),
        (("--since", "2199-01-01"), []),
    ],
)
def test_a_filter_shows_only_what_was_asked_for(
    directory: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    """Each option narrows, and nothing else passes."""
    assert sorted(line.split()[4] for line in shown(directory, *arguments)) == expected


def test_a_gap_is_shown_whatever_is_asked_for(tmp_path: Path) -> None:
    """What is missing may be what was asked for."""
    writer = Journal.open(tmp_path / "j", boot_id="b", host="h", name="run-a")
    writer.write(Gap(stage="ring", ring=1, count=7))
    writer.close()
    assert "7 records lost (ring, activity ring)" in shown(tmp_path / "j", "--rule", "none")[0]


def test_json_is_ocsf_one_object_per_line(directory: Path) -> None:
    """Activities carry their verdict, and each verdict is a finding as well."""
    found = [json.loads(line) for line in shown(directory, "-o", "json")]
    kinds = [one["class_uid"] for one in found]
    assert {1001, 1007, 4001, 2004, 6002} <= set(kinds)
    key = next(one for one in found if one.get("file", {}).get("path") == KEY)
    assert (key["action"], key["policy"]["uid"]) == ("Denied", "secrets.private-keys")
    assert kinds.count(2004) == 2


def test_export_is_everything(directory: Path) -> None:
    """As many objects as there are events and frames, each with its own uid."""
    found = [
        json.loads(line)
        for line in run("journal", "export", "--journal", str(directory)).stdout.splitlines()
    ]
    assert len(found) == 13
    assert len({one["metadata"]["uid"] for one in found}) == 13


def test_verify_of_a_whole_journal_exits_0(directory: Path) -> None:
    """It prints chain, counts and head."""
    out = run("journal", "verify", "--journal", str(directory)).stdout
    assert "run-a: intact, closed" in out
    assert "6 records" in out
    parsed = json.loads(run("journal", "verify", "--journal", str(directory), "-o", "json").stdout)
    assert parsed["state"] == "intact"
    assert f"head {parsed['head']['sequence']}:{parsed['head']['hash']}" in out
    head = f"run-a:{parsed['head']['sequence']}:{parsed['head']['hash']}"
    run("journal", "verify", "--journal", str(directory), "--head", head)


def test_verify_of_a_damaged_journal_exits_1_and_says_where(directory: Path) -> None:
    """File, byte and frame on stderr, with a remedy, no traceback."""
    segment = directory / "run-a" / "00000001.journal"
    segment.write_bytes(segment.read_bytes().replace(b"/etc/shadow", b"/etc/passwd"))
    result = run("journal", "verify", "--journal", str(directory), code=1)
    assert "NOT INTACT" in result.stdout
    assert f"tampered: {segment} at byte " in result.stderr
    assert "try: " in result.stderr
    result = run("events", "--journal", str(directory), code=1)
    assert "/etc/passwd" in result.stdout
    assert "[not intact]" in result.stdout
    assert "tampered" in result.stderr


def test_a_truncated_journal_is_shown_as_far_as_it_goes(directory: Path) -> None:
    """events prints what can be read, says what cannot, exits 1."""
    segment = directory / "run-a" / "00000001.journal"
    os.truncate(segment, segment.stat().st_size - 20)
    result = run("events", "--journal", str(directory), code=1)
    assert KEY in result.stdout
    assert "torn" in result.stderr
    result = run("journal", "verify", "--journal", str(directory), code=1)
    assert "run-a: torn" in result.stdout


def test_a_head_that_was_reached_and_is_gone_exits_1(directory: Path) -> None:
    """A chain that is known to have been longer is not intact."""
    head = "run-a:999:" + "00" * 32
    result = run("journal", "verify", "--journal", str(directory), "--head", head, code=1)
    assert "missing" in result.stderr
    bad = failure("journal", "verify", "--journal", str(directory), "--head", "5:zz")
    assert (bad.exit_code, type(bad)) == (2, UsageError)


@pytest.mark.parametrize("command", [("events",), ("journal", "verify"), ("journal", "export")])
def test_no_journal_is_a_clear_error(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Exit 1, and --journal is named."""
    error = failure(*command, "--journal", str(tmp_path / "none"))
    assert isinstance(error, JournalError)
    assert error.exit_code == 1
    assert "--journal" in error.remedy


def test_a_journal_that_may_not_be_read_exits_4(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is to be root."""

    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    error = failure("events", "--journal", str(directory))
    assert isinstance(error, PermissionDenied)
    assert (error.exit_code, "root" in error.remedy) == (4, True)


@pytest.mark.parametrize("text", ["yesterday", "5x", "2026-13-01", ""])
def test_a_time_that_is_none_is_a_usage_error(text: str) -> None:
    """The remedy shows both forms."""
    with pytest.raises(UsageError) as caught:
        moment(text, "--since")
    assert "--since 1h" in caught.value.remedy


def test_times_are_ago_or_iso() -> None:
    """Durations count back from now, a date is a time of day here."""
    assert abs(moment("2m", "--since") - (time.time_ns() - 120 * 10**9)) < 10**9  # type: ignore[operator]
    assert moment("1970-01-01T00:00:10+00:00", "--since") == 10 * 10**9
    assert moment(None, "--since") is None


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`agentwatch events | head -1` ends quietly."""
    writer = Journal.open(tmp_path / "j", boot_id="b", host="h", name="run-a")
    make = Records()
    for i in range(5000):
        writer.records(make.open(f"/home/dev/{i}"), 1)
    writer.close()
    code = "from agentwatch.cli.events import events; events()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--journal", str(tmp_path / "j")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("option", ["--rule=typo", "--agent=typo", "--pid=1"])
def test_a_filter_that_nothing_matches_says_so(directory: Path, option: str) -> None:
    """On stderr, and it is no failure: a typing error is not mistaken for a quiet agent."""
    result = run("events", "--journal", str(directory), option)
    assert (result.stdout, result.stderr) == ("", "agentwatch: nothing matches\n")
    assert run("events", "--journal", str(directory), "--pid=4242").stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to take a directory away from a person")
@pytest.mark.parametrize("command", [("events",), ("journal", "verify"), ("journal", "export")])
def test_a_person_who_may_not_read_the_journal_is_told_how(command: tuple[str, ...]) -> None:
    """Exit code 4 and sudo, not a usage error."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        place.chmod(0o700)
        line = [sys.executable, "-m", "agentwatch", *command, f"--journal={place}"]
        result = subprocess.run(
            line, user=65534, group=65534, extra_groups=[], capture_output=True, text=True
        )
        assert result.returncode == 4, result.stderr
        assert f"{place} may not be read by you" in result.stderr
        assert "sudo" in result.stderr
    finally:
        place.rmdir()


def test_a_reason_that_is_the_outcome_is_said_once(tmp_path: Path) -> None:
    """`too late`, not `too late: too late`; another reason stays."""
    writer = Journal.open(tmp_path / "j", boot_id="boot", host="box", name="run-a")
    for reason in ("too late", "it ran as somebody else"):
        writer.write(Kill(process=AGENT, rule="r", outcome="too late", reason=reason))
    writer.close()
    said = [line.split("kill", 1)[1].strip() for line in shown(tmp_path / "j") if " kill " in line]
    assert [" ".join(line.split()) for line in said] == [
        "too late for r",
        "too late: it ran as somebody else for r",
    ]


def test_an_agent_that_is_not_known_is_a_dash(tmp_path: Path) -> None:
    """The journal has no name for it, and the line shows that it is none."""
    writer = Journal.open(tmp_path / "j", boot_id="boot", host="box", name="run-a")
    writer.records(Records().open("/x"), 1)
    writer.close()
    assert next(line for line in shown(tmp_path / "j") if "/x" in line).split()[2] == "-"
    exported = run("events", "--journal", str(tmp_path / "j"), "-o", "json").stdout.splitlines()
    found = [json.loads(line) for line in exported if "/x" in line]
    assert found[0]["unmapped"]["agentwatch"]["agent"] == ""


def test_every_filter_is_listed_by_help() -> None:
    """--help is the reference."""
    text = run("events", "--help").stdout
    for option in ("--since", "--until", "--agent", "--rule", "--kind", "--pid", "--would-deny"):
        assert option in text


# From the daemon.

PATIENCE = 20  # s


@pytest.fixture
def daemon(tmp_path: Path, directory: Path) -> Iterator[Played]:
    """It streams what is in the journal, and ends there."""
    with played(tmp_path / "s") as made:
        header, *said = streamed(directory)
        # The daemon says whose a session is before anything of it.
        made.said, made.end = [header, *sorted(said, key=_is_records)], "stopping"
        yield made


def followed(daemon: Played, *arguments: str) -> Result:
    """What `events -f` showed up to the end of the stream, which it tells as a daemon that went."""
    line = ("events", "-f", "--socket", str(daemon.path), *arguments)
    result = CliRunner().invoke(cli, line)
    assert isinstance(result.exception, NotRunningError), result.output
    return result


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-o", "json"),
        ("--kind", "read"),
        ("--rule", "secrets.*"),
        ("--would-deny",),
        ("--pid", "9000"),
        ("--agent", "claude-code"),
        ("--until", "2001-01-01"),
        ("--since", "2199-01-01"),
    ],
)
def test_what_is_followed_is_shown_as_it_is_read(
    daemon: Played, directory: Path, arguments: tuple[str, ...]
) -> None:
    """The same lines through the same filters: a verdict and its event are one."""

    def alike(text: str) -> list[str]:
        found = text.splitlines()
        if "json" not in arguments:
            return sorted(found)
        # Where it stands in which chain is the journal's to say.
        objects = [json.loads(line) for line in found]
        for one in objects:
            for name in ("chain", "frame"):
                del one["unmapped"]["agentwatch"][name]
            one["metadata"].pop("sequence", None)
            one["metadata"].pop("uid", None)
            one.get("finding_info", {}).pop("uid", None)
        return sorted(json.dumps(one, sort_keys=True) for one in objects)

    read_ = run("events", "--journal", str(directory), *arguments).stdout
    assert alike(followed(daemon, *arguments).stdout) == alike(read_)


def test_the_daemon_is_asked_for_what_is_wanted(daemon: Played) -> None:
    """From now on, or from --since on, as ns since the epoch."""
    followed(daemon)
    followed(daemon, "--since", "1970-01-01T00:00:10+00:00")
    common = {"follow": True, "session": None}
    assert daemon.asked == [
        ("events", common | {"since": None}),
        ("events", common | {"since": 10 * 10**9}),
    ]


def test_why_the_daemon_ended_the_stream_is_said(daemon: Played) -> None:
    """All that came before is shown, and the exit code is that of a daemon that does not run."""
    result = followed(daemon, "--kind", "exec")
    assert "two words" in result.stdout
    assert isinstance(result.exception, NotRunningError)
    assert result.exception.message == "the daemon ended the stream: stopping"
    assert result.exception.exit_code == 3


def test_a_stream_that_breaks_off_is_an_error_after_all_that_came(daemon: Played) -> None:
    """As when the daemon is killed."""
    daemon.end = None

    def breaks() -> None:
        for connection in tuple(daemon.server._connections.values()):
            connection.close()

    with events_process(daemon) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out = process.stdout.readline()
        assert out
        daemon.call(breaks)
        out += process.stdout.read()  # not communicate: it knows nothing of what readline has read
        err = process.stderr.read()
        process.wait(PATIENCE)
    assert process.returncode == 3
    assert "/etc/shadow" in out
    assert "the daemon is gone: the stream broke off" in err


def test_missed_frames_are_said_on_stderr(daemon: Played) -> None:
    """A slow reader knows that it has not seen everything; what did arrive is shown."""
    daemon.said.insert(3, Missed(12))
    result = followed(daemon)
    assert "agentwatch: missed 12 frames, " in result.stderr
    assert KEY in result.stdout


def test_damage_in_a_stream_is_said_and_does_not_end_it(daemon: Played) -> None:
    """A frame that does not decode, and records that do not."""
    records = daemon.said.index(next(f for f in daemon.said if _is_records(f)))
    cut = Records().open("/cut")[:-9]
    broken = Streamed(RECORDS, 0, encode(Batch(count=1, data=cut)))
    daemon.said[records:records] = [Streamed(6, 0, b"\xc1"), broken]
    result = followed(daemon)
    assert "a Verdict frame does not decode" in result.stderr
    assert "agentwatch: left out 1 record that" in result.stderr
    assert KEY in result.stdout


def _is_records(frame: object) -> bool:
    return isinstance(frame, Streamed) and frame.frame == RECORDS


def entries_of(directory: Path) -> tuple[list[Entry], list[Entry]]:
    """(the events of a journal, its verdicts), none attached, as a stream gives them."""
    following = Following()
    found = [
        entry
        for frame in streamed(directory)
        if isinstance(frame, Streamed)
        for entry in following.feed(frame.frame, frame.time, frame.payload)
    ]
    events_ = [entry for entry in found if entry.event is not None]
    return events_, [entry for entry in found if isinstance(entry.frame, Verdict)]


@pytest.mark.parametrize("first", ["verdict", "event"])
def test_a_verdict_and_its_event_meet_whichever_comes_first(directory: Path, first: str) -> None:
    """A kill is told when its process has ended, which is after the event."""
    events_, verdicts = entries_of(directory)
    window = Window()
    for entries in (verdicts, events_) if first == "verdict" else (events_, verdicts):
        window.add(entries, 1.0)
    assert window.release(1.0) == []
    assert window.patience(1.0) == pytest.approx(WAITING)
    found = window.release(1.0 + WAITING + 0.001)
    by_rule = {v.rule: entry.event for entry in found for v in entry.verdicts}
    assert {rule: event.path for rule, event in by_rule.items() if isinstance(event, Open)} == {
        "secrets.private-keys": KEY,
        "x.shadow": "/etc/shadow",
    }
    assert all(entry.attached for entry in found if entry.event is None)
    assert len(found) == len(events_) + len(verdicts)
    assert [entry.wall for entry in found] == sorted(entry.wall for entry in found)
    assert window.patience(2.0) is None


def test_a_verdict_whose_event_does_not_come_is_shown_by_itself(directory: Path) -> None:
    """Its record was lost, or was shown long before."""
    events_, verdicts = entries_of(directory)
    window = Window()
    window.add(events_, 1.0)
    assert len(window.release(2.0)) == len(events_)
    window.add(verdicts, 2.0)
    assert window.release(3.0) == sorted(verdicts, key=lambda entry: entry.wall)


def test_what_is_held_is_bounded(directory: Path) -> None:
    """A backlog that comes in at once is let out from its beginning."""
    events_, _ = entries_of(directory)
    window = Window()
    window.add(events_ * 3000, 1.0)
    assert len(window.release(1.0)) == len(events_) * 3000 - HELD_MAX
    assert len(window.release(1.0, all_of_it=True)) == HELD_MAX


def test_following_a_journal_is_a_usage_error(directory: Path) -> None:
    """The daemon is followed; which journal it writes is its own business."""
    error = failure("events", "-f", "--journal", str(directory))
    assert isinstance(error, UsageError)
    assert "--journal" in error.remedy


def test_following_without_a_daemon_is_an_error(tmp_path: Path) -> None:
    """Exit code 3."""
    error = failure("events", "-f", "--socket", str(tmp_path / "none"))
    assert isinstance(error, NotRunningError)


def events_process(daemon: Played, *arguments: str) -> subprocess.Popen[str]:
    """`agentwatch events -f` as a process of its own."""
    line = [sys.executable, "-m", "agentwatch", "events", "-f", f"--socket={daemon.path}"]
    return subprocess.Popen(
        [*line, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_events_are_shown_as_they_come_and_ctrl_c_is_no_failure(daemon: Played) -> None:
    """A line appears while the stream stays open; then SIGINT ends it with exit code 0."""
    daemon.end, said = None, daemon.said
    daemon.said = said[:1]
    with events_process(daemon, "--kind", "connect") as process:
        assert process.stdout is not None
        daemon.until(lambda: bool(daemon.streams))
        daemon.send(*said[1:])
        assert "192.0.2.1:443" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_reader_that_goes_away_ends_it_though_nothing_happens(daemon: Played) -> None:
    """`agentwatch events -f | head -1` does not wait for another event."""
    daemon.end = None
    with events_process(daemon) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody may enter."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


PERSON = """
import sys
from pathlib import Path
from agentwatch.cli import events, main
sys.argv = ["agentwatch", "events", *sys.argv[2:]]
events.events.params[0].default = Path(PLACE)
main()
"""


def as_person(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`agentwatch events` of somebody for whom `place` is where journals are by default."""
    code = PERSON.replace("PLACE", repr(str(place)))
    return subprocess.run(
        [sys.executable, "-c", code, "events", *arguments],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).resolve().parents[2],
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to keep a journal from a person")
def test_who_may_not_read_the_daemons_journal_asks_the_daemon(
    shared: Path, directory: Path
) -> None:
    """What the daemon tells is shown beside the person's own runs; without a daemon, only those."""
    journals = shared / "journals"
    (journals / "daemon").mkdir(parents=True)
    (journals / "daemon").chmod(0o700)
    with played(shared / "s") as daemon:
        daemon.said, daemon.end = streamed(directory), ""
        line = (f"--socket={daemon.path}", "--since", "1h", "--kind", "open")
        done = as_person(journals, *line)
        assert (done.returncode, done.stderr) == (0, "")
        assert KEY in done.stdout
        (asked,) = (given for verb, given in daemon.asked if verb == "events")
        assert asked["follow"] is False
        assert abs(time.time_ns() - 3600 * 10**9 - asked["since"]) < 60 * 10**9
        own = Journal.open(journals, boot_id="boot", host="box", name="run-b")
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        own.records(Records(time=now).open("/home/nobody/own"), 1)
        own.close()
        (journals / "run-b").chmod(0o755)
        for segment in (journals / "run-b").iterdir():
            segment.chmod(0o644)
        journals.chmod(0o755)
        both = as_person(journals, *line)
        assert both.returncode == 0, both.stderr
        assert "/home/nobody/own" in both.stdout
        assert KEY in both.stdout
    alone = as_person(journals, *line)
    assert alone.returncode == 0, alone.stderr
    assert "/home/nobody/own" in alone.stdout
    assert KEY not in alone.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to keep a journal from a person")
def test_without_daemon_and_readable_journal_a_person_is_told_how(shared: Path) -> None:
    """Exit code 4 and sudo, as with --journal."""
    (shared / "daemon").mkdir()
    (shared / "daemon").chmod(0o700)
    done = as_person(shared, f"--socket={shared / 'none'}")
    assert done.returncode == 4, done.stderr
    assert "may not be read by you" in done.stderr
    assert "sudo" in done.stderr


def test_root_reads_the_journal_and_asks_nobody(daemon: Played, directory: Path) -> None:
    """--journal is read by whoever names it, too."""
    run("events", "--journal", str(directory), "--socket", str(daemon.path))
    assert daemon.asked == []
