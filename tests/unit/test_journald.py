"""What systemd's journal receives, on a socket as it has one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.errors import AgentwatchError, ConfigErrors, Diagnostic
from agentwatch.events import ProcessKey
from agentwatch.sinks import frames, journald
from agentwatch.sinks.chain import Head
from agentwatch.sinks.journald import BURST, Journald

SESSION = ProcessKey(4242, 7)
VERDICT = frames.Verdict(
    process=ProcessKey(4300, 8),
    session=SESSION,
    agent="stub",
    kind="read",
    what="/home/dev/\n.ssh/id_rsa",
    rule="secrets.keys",
    action="deny",
    response="kill",
    outcome="killed",
    level="kills",
    severity="high",
    because="It is a key.",
)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The other end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as found:
        found.bind(str(tmp_path / "journal"))
        yield found


@pytest.fixture
def journal(listener: socket.socket, tmp_path: Path) -> Iterator[Journald]:
    """Ours."""
    made = Journald("boot", tmp_path / "journal")
    yield made
    made.close()


def received(listener: socket.socket) -> dict[str, str]:
    """The fields of the next message: NAME, a newline, the length of the value, the value."""
    data, found = listener.recv(1 << 20), {}
    while data:
        name, data = data.split(b"\n", 1)
        (size,) = struct.unpack_from("<Q", data)
        found[name.decode()] = data[8 : 8 + size].decode()
        assert data[8 + size : 9 + size] == b"\n"
        data = data[9 + size :]
    return found


def test_a_finding_has_fields_to_search_by(journal: Journald, listener: socket.socket) -> None:
    """`journalctl AGENTWATCH_RULE=...` finds it; a newline in a name makes no field of its own."""
    journal.frame(VERDICT)
    found = received(listener)
    assert found["MESSAGE"] == "/home/dev/\\n.ssh/id_rsa killed by secrets.keys (kills)"
    assert found["AGENTWATCH_WHAT"] == "/home/dev/\n.ssh/id_rsa"
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == ("3", "agentwatch")
    assert found["AGENTWATCH_RULE"] == "secrets.keys"
    assert found["AGENTWATCH_SESSION"] == "boot:4242:7"
    assert found["AGENTWATCH_PID"] == "4300"
    named = {name.removeprefix("AGENTWATCH_").lower(): value for name, value in found.items()}
    for name in ("frame", "action", "outcome", "level", "severity", "kind", "agent", "because"):
        assert named[name] == ("verdict" if name == "frame" else getattr(VERDICT, name))


def test_what_is_no_finding_is_not_said(journal: Journald, listener: socket.socket) -> None:
    """Allowed things and sessions are in the journal of our own."""
    journal.frame(frames.Verdict(action="allow"))
    journal.frame(frames.Session(session=SESSION, agent="stub"))
    journal.frame(frames.Notice(subject="pause", text="x is paused"))
    assert received(listener)["MESSAGE"] == "pause: x is paused"
    with pytest.raises(BlockingIOError):
        listener.recv(1)


def test_losses_and_refused_reloads_are_errors(journal: Journald, listener: socket.socket) -> None:
    """They are what an operator looks for first: journalctl -p err."""
    journal.frame(frames.Gap(stage="ring", count=3))
    journal.frame(frames.Reload(ok=False, message="1 error"))
    journal.frame(frames.Reload(generation=2))
    gap, refused, taken = (received(listener) for _ in range(3))
    assert (gap["PRIORITY"], gap["AGENTWATCH_STAGE"]) == ("3", "ring")
    assert (refused["PRIORITY"], taken["PRIORITY"]) == ("3", "5")


def test_an_error_comes_with_every_diagnostic(journal: Journald, listener: socket.socket) -> None:
    """Where it is, in journald's own fields for that."""
    journal.tell("watching")
    assert received(listener)["MESSAGE"] == "watching"
    journal.tell(AgentwatchError("it failed", "mend it"))
    assert received(listener)["MESSAGE"] == "it failed; try: mend it"
    found = Diagnostic("/etc/a.yaml", 3, 9, "error", "AW201", "unknown key")
    journal.tell(ConfigErrors((found,)))
    assert received(listener)["MESSAGE"] == "1 error in the configuration"
    one = received(listener)
    assert one["MESSAGE"] == "/etc/a.yaml:3:9: error[AW201]: unknown key"
    assert (one["CODE_FILE"], one["CODE_LINE"]) == ("/etc/a.yaml", "3")


def test_the_head_can_be_given_to_verify(journal: Journald, listener: socket.socket) -> None:
    """AGENTWATCH_HEAD is what `journal verify --head` takes."""
    journal.anchor("daemon", Head(17, bytes(32)))
    assert received(listener)["AGENTWATCH_HEAD"] == "daemon:17:" + "00" * 32


def test_a_flood_is_cut_and_counted(
    journal: Journald, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody fills the system's log through us, and nothing is left out silently."""
    now = 100.0
    monkeypatch.setattr(journald.time, "monotonic", lambda: now)
    taken = []
    for _ in range(BURST + 30):
        journal.frame(VERDICT)
        try:
            taken.append(received(listener))
        except BlockingIOError:
            continue
    assert (len(taken), journal.dropped) == (BURST, 30)
    now += 1
    journal.frame(VERDICT)
    assert received(listener)["MESSAGE"].startswith("30 messages more than")
    assert received(listener)["AGENTWATCH_RULE"] == "secrets.keys"


def test_nobody_there_is_no_reason_to_fail(tmp_path: Path) -> None:
    """A system log that is restarted just then loses a line."""
    alone = Journald("boot", tmp_path / "nobody")
    alone.frame(VERDICT)
    alone.close()
    assert alone.dropped == 1


def test_a_terminal_is_no_journal() -> None:
    """Only the stream that systemd gave us counts, and not the variable alone."""
    ours = os.fstat(2)
    assert journald.here("boot", "") is None
    assert journald.here("boot", f"{ours.st_dev}:{ours.st_ino + 1}") is None
