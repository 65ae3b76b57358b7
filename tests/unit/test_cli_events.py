"""`agentwatch events` and `agentwatch journal`, on journals of real records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from agentwatch.cli.events import events, moment
from agentwatch.cli.journal import journal
from agentwatch.errors import AgentwatchError, JournalError, PermissionDenied, UsageError
from agentwatch.events import ProcessKey
from agentwatch.sinks.frames import AgentAdded, EventRef, Gap, Kill, Session, Start, Verdict
from agentwatch.sinks.journal import Journal
from agentwatch.testing import AGENT, Records

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
