"""Events, verdicts and frames as OCSF objects, from real records."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from agentwatch import decoding
from agentwatch.errors import JournalError
from agentwatch.events import NO_PROCESS, ProcessKey
from agentwatch.lineage import Image
from agentwatch.sinks import ocsf
from agentwatch.sinks.escape import shown, utf8
from agentwatch.sinks.frames import (
    TYPES,
    EventRef,
    Gap,
    Kill,
    Notice,
    Start,
    Verdict,
)
from agentwatch.sinks.frames import (
    Records as RecordsFrame,
)
from agentwatch.sinks.host import Host, now
from agentwatch.sinks.jsonl import Findings
from agentwatch.testing import AGENT, Records

HOST = Host(boot_id="boot", name="box", offset=1_700_000_000_000_000_000)
ECONNREFUSED, EINPROGRESS, ENOENT = 111, 115, 2


def verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "time": 3_000_000_000,
        "event": EventRef(1, 0, 1),
        "process": AGENT,
        "session": AGENT,
        "agent": "claude-code",
        "kind": "read",
        "what": "/home/dev/.ssh/id_ed25519",
        "rule": "secrets.private-keys",
        "title": "Private keys",
        "action": "deny",
        "response": "kill",
        "outcome": "killed",
        "level": "kills-after",
        "severity": "high",
        "because": "Keys are not for agents.",
        "instead": "Use an agent socket.",
    }
    return Verdict(**(values | changes))


def activity(record: bytes, **options: Any) -> dict[str, Any]:
    """The object, as it is after its way through JSON."""
    found: dict[str, Any] = json.loads(
        ocsf.dumps(ocsf.activity(decoding.decode(record), HOST, **options))
    )
    return found


def finding(frame: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ocsf.dumps(ocsf.from_frame(frame, HOST, number=7)))
    return found


def classes(found: dict[str, Any]) -> tuple[int, int, str]:
    return found["class_uid"], found["activity_id"], found["activity_name"]


def test_every_object_has_what_ocsf_requires() -> None:
    """Class, category, type, severity, time, metadata and device, consistent with each other."""
    make = Records()
    records = [make.exec("/bin/ls", ("ls",)), make.fork(ProcessKey(9, 9)), make.exit()]
    records += [make.open("/a"), make.connect("192.0.2.1")]
    found = [activity(record, agent="codex") for record in records]
    found += [finding(kind(time=5)) for kind in TYPES.values() if kind is not RecordsFrame]
    for one in found:
        assert one["type_uid"] == one["class_uid"] * 100 + one["activity_id"]
        assert one["type_name"] == f"{one['class_name']}: {one['activity_name']}"
        assert one["metadata"]["version"] == "1.8.0"
        assert one["metadata"]["product"]["name"] == "agentwatch"
        assert one["metadata"]["uid"]
        assert one["device"]["hostname"] == "box"
        assert one["severity_id"] in range(1, 6)
        assert isinstance(one["time"], int)
        assert "_extra" not in one
    for one in found[:5]:
        assert one["actor"]["process"]["uid"] == "boot:4242:1000000000"
        assert one["unmapped"]["agentwatch"]["agent"] == "codex"
        assert one["unmapped"]["agentwatch"]["session"] == "boot:4242:1000000000"


def test_an_exec_is_a_launch() -> None:
    """1007 Launch: the new program is the process, the one before it the actor."""
    record = Records().exec("/usr/bin/git", ("git", "push"), parent=ProcessKey(7, 8))
    found = activity(record, image=Image("/bin/sh", None, ("sh", "-c", "x"), "/", 1000))
    assert classes(found) == (1007, 1, "Launch")
    assert found["process"]["cmd_line"] == "git push"
    assert found["process"]["file"] == {"name": "git", "path": "/usr/bin/git", "type_id": 1}
    assert found["process"]["parent_process"]["uid"] == "boot:7:8"
    assert found["process"]["user"] == {"uid": "1000"}
    assert found["actor"]["process"]["file"]["path"] == "/bin/sh"
    assert found["unmapped"]["agentwatch"]["argv"] == ["git", "push"]
    assert found["launch_type"] == "Exec"


def test_an_exit_is_a_termination_with_its_code() -> None:
    """1007 Terminate: a signal is shown as a shell shows it."""
    found = activity(Records().exit(status=9))
    assert classes(found) == (1007, 2, "Terminate")
    assert found["exit_code"] == 137


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "Open"), ({"changes": True}, "Update"), ({"created": True}, "Create")],
)
def test_an_open_says_what_it_was_for(options: dict[str, bool], expected: str) -> None:
    """1001: reading is Open, writing Update, making a file Create."""
    found = activity(Records().open("/home/dev/a.txt", **options))
    assert (found["class_uid"], found["activity_name"]) == (1001, expected)
    assert found["file"]["path"] == "/home/dev/a.txt"


def test_a_failed_open_names_the_file_asked_for_and_the_error() -> None:
    """Failure, with the kernel's word for it."""
    found = activity(Records().open("/x", asked="x", result=-ENOENT))
    assert found["file"]["path"] == "x"
    assert (found["status_id"], found["status_detail"]) == (2, "ENOENT")


@pytest.mark.parametrize(
    ("result", "expected"),
    [(0, "Open"), (-EINPROGRESS, "Open"), (-ECONNREFUSED, "Refuse"), (-ENOENT, "Fail")],
)
def test_a_connect_says_how_it_ended(result: int, expected: str) -> None:
    """4001: one that is still under way is no failure."""
    found = activity(Records().connect("2001:db8::1", 443, result=result))
    assert (found["class_uid"], found["activity_name"]) == (4001, expected)
    assert found["dst_endpoint"] == {"ip": "2001:db8::1", "port": 443}
    assert found["connection_info"]["protocol_name"] == "tcp"
    assert found["connection_info"]["protocol_ver_id"] == 6
    assert (found["status_id"] == 1) == (expected == "Open")


def test_a_unix_socket_is_a_named_endpoint() -> None:
    """Paths and abstract names have no address."""
    assert activity(Records().connect("@bus"))["dst_endpoint"] == {"name": "@bus"}


def test_times_are_ms_and_ns() -> None:
    """`time` in ms for everybody, exact ns beside it."""
    found = activity(Records(time=5_000_000, step=1).open("/a"))
    assert found["time"] == 1_700_000_000_005
    assert found["unmapped"]["agentwatch"]["time_ns"] == 1_700_000_000_005_000_001


def test_sequence_and_uid_let_a_reader_find_gaps_and_duplicates() -> None:
    """sequence counts per ring and CPU; uid is the same in every export, and nobody else's."""
    make = Records(cpu=3)
    one, two = make.open("/a"), make.open("/a")
    assert [activity(r)["metadata"]["sequence"] for r in (one, two)] == [1, 2]
    assert activity(one)["unmapped"]["agentwatch"]["cpu"] == 3
    assert activity(one)["unmapped"]["agentwatch"]["ring"] == "activity"
    assert activity(one)["metadata"]["uid"] == activity(one)["metadata"]["uid"]
    assert activity(one)["metadata"]["uid"] != activity(two)["metadata"]["uid"]


@pytest.mark.parametrize(
    ("changes", "action", "disposition"),
    [
        ({}, "Denied", "Blocked"),
        ({"outcome": "denied"}, "Denied", "Blocked"),
        ({"outcome": "too late"}, "Observed", "Error"),
        ({"outcome": "failed"}, "Observed", "Error"),
        ({"outcome": "observed"}, "Observed", "Detected"),
        ({"outcome": "alerted", "action": "alert"}, "Observed", "Alert"),
        ({"outcome": "", "action": "allow"}, "Allowed", "Allowed"),
    ],
)
def test_a_verdict_is_told_by_the_security_control_profile(
    changes: dict[str, str], action: str, disposition: str
) -> None:
    """Denied only where something was stopped; a kill that came too late was not."""
    one = verdict(**changes)
    for found in (activity(Records().open("/k"), verdicts=(one,)), finding(one)):
        assert "security_control" in found["metadata"]["profiles"]
        assert (found["action"], found["disposition"]) == (action, disposition)
        assert found["action_id"] == {"Allowed": 1, "Denied": 2, "Observed": 3}[action]
        assert found["policy"]["uid"] == "secrets.private-keys"
        assert found["severity"] == "High"


def test_the_strongest_of_several_verdicts_is_the_disposition() -> None:
    """All of them are listed."""
    both = (verdict(rule="a", action="alert", outcome="alerted"), verdict(rule="b"))
    found = activity(Records().open("/k"), verdicts=both)
    assert found["policy"]["uid"] == "b"
    assert [v["rule"] for v in found["unmapped"]["agentwatch"]["verdicts"]] == ["a", "b"]


def test_a_kill_is_a_detection_finding() -> None:
    """2004, complete without the event: who, what, which rule, why, what instead."""
    found = finding(verdict())
    assert classes(found) == (2004, 1, "Create")
    assert found["finding_info"]["title"] == "Private keys"
    assert found["finding_info"]["desc"] == "Keys are not for agents."
    assert found["remediation"]["desc"] == "Use an agent socket."
    extra = found["unmapped"]["agentwatch"]
    assert (extra["rule"], extra["level"], extra["agent"]) == (
        "secrets.private-keys",
        "kills-after",
        "claude-code",
    )
    assert extra["event"] == {"ring": 1, "cpu": 0, "sequence": 1}


def test_losses_and_failed_kills_are_findings() -> None:
    """Trouble of agentwatch itself reaches whoever reads the findings."""
    for frame in (Gap(time=1, stage="ring", count=5), Kill(time=1, outcome="too late")):
        assert finding(frame)["class_uid"] == 2004
    assert finding(Kill(time=1, outcome="killed"))["class_uid"] == 0
    assert finding(Start(time=1))["class_uid"] == 6002


def test_json_is_valid_utf8_whatever_a_name_holds() -> None:
    r"""Bytes that are no UTF-8 become \xNN; newlines and escape codes never leave a line."""
    name = os.fsdecode(b"/tmp/\xff\n\x1b[31m\xc3\xa9")
    line = ocsf.dumps(ocsf.activity(decoding.decode(Records().open(name)), HOST))
    assert line.encode("utf-8")
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["file"]["path"] == "/tmp/\\xff\n\x1b[31mé"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é name", "plain é name"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
        ("back\\slash", "back\\\\slash"),
        ("\udcff", "\\xff"),
        ("\u2028", "\\u2028"),
        ("\x7f\x9b", "\\x7f\\x9b"),
    ],
)
def test_text_for_a_terminal_cannot_forge_anything(text: str, expected: str) -> None:
    """Control, direction and undecodable characters are shown as escapes."""
    assert shown(text) == expected
    assert shown(text).isprintable()
    assert utf8(text).encode()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_findings_are_appended_one_to_a_line(tmp_path: Path) -> None:
    """Only findings are written, and what stood there stays."""
    path = tmp_path / "findings.jsonl"
    for _ in range(2):
        findings = Findings(path, HOST)
        assert findings.write(verdict(what="a\nb"))
        assert findings.write(Gap(time=1, stage="ring", count=3))
        assert not findings.write(verdict(action="allow"))
        assert not findings.write(Notice(subject="mode", text="x"))
        assert not findings.write(Kill(outcome="killed"))
        findings.close()
    assert [one["class_uid"] for one in lines(path)] == [2004] * 4
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_finding_without_a_time_is_of_this_moment(tmp_path: Path) -> None:
    """Frames may leave their time to the sinks; on this host it is the time of day."""
    findings = Findings(tmp_path / "f")
    findings.write(Gap(stage="ring", count=1))
    findings.write(Gap(time=now(), stage="ring", count=1))
    findings.close()
    assert all(abs(one["time"] / 1000 - time.time()) < 5 for one in lines(tmp_path / "f"))


def test_a_rotated_findings_file_is_opened_anew(tmp_path: Path) -> None:
    """A shipper may move the file away at any time."""
    path = tmp_path / "findings.jsonl"
    findings = Findings(path, HOST)
    findings.write(verdict())
    path.rename(tmp_path / "old")
    findings.write(verdict())
    findings.close()
    assert (len(lines(path)), len(lines(tmp_path / "old"))) == (1, 1)


def test_a_findings_file_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    """A missing directory, a directory and a pipe each get a remedy."""
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path / "no" / "f", tmp_path, tmp_path / "pipe"):
        with pytest.raises(JournalError) as caught:
            Findings(bad, HOST)
        assert caught.value.remedy


def test_a_finding_that_finds_no_room_is_told(tmp_path: Path) -> None:
    """A full disk raises an error that says so."""
    findings = Findings(tmp_path / "f", HOST)
    own = findings._fd
    findings._fd = os.open("/dev/full", os.O_WRONLY)
    full = os.fstat(findings._fd)
    findings._moved = lambda: full.st_ino < 0  # type: ignore[method-assign]
    with pytest.raises(JournalError, match="no room"):
        findings.write(verdict())
    os.close(own)
    findings.close()


def test_no_process_is_shown_as_none() -> None:
    """A frame about nobody names nobody."""
    extra = finding(Notice(time=1, subject="mode", text="enforce"))["unmapped"]["agentwatch"]
    assert extra["session"] is None
    assert NO_PROCESS.pid == 0
