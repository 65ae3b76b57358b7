"""The journal and the breaker when things go wrong: full disks, lost directories, many kills."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch.sinks.frames import Kill, Notice, Resumed, Session, Verdict
from agentwatch.sinks.verify import verify
from tests.daemon.running import (
    PATIENCE,
    Daemon,
    Place,
    counts,
    cue,
    grows,
    line_of,
    reads,
    rests,
    until,
)

pytestmark = pytest.mark.root

MIB = 1 << 20
ON_TMPFS = 'mount -t tmpfs -o size=8m,mode=755 none "$1" && shift && exec "$@"'


def works(place: Place, opens: int = 4000) -> None:
    """An agent opens that many files, and ends."""
    file = place["n" * 200]  # a record has the name twice
    file.touch()
    agent = place.agent(f"for i in $(seq {opens}); do : < {file}; done")
    assert agent.wait(PATIENCE) == 0


def test_segments_are_rotated_and_the_chain_goes_through(place: Place) -> None:
    """No record is lost where one file ends and the next begins."""
    place.write(journal={"dir": str(place.journal), "segment_bytes": "1MiB"})
    daemon = place.start()
    while daemon.status["journal"]["bytes"] < 3 * MIB:
        works(place)
    assert daemon.status["journal"]["segments"] >= 3
    assert daemon.stop() == 0
    report = place.report()
    assert (report.intact, report.closed, report.segments >= 3) == (True, True, True)
    assert all(file.stat().st_size <= MIB for file in (place.journal / "daemon").glob("*"))


def test_old_segments_go_when_there_are_too_many_bytes(place: Place) -> None:
    """At a start, too, for who restarts it often; and what went is not called missing."""
    keep = {"dir": str(place.journal), "segment_bytes": "1MiB", "keep_bytes": "2MiB"}
    place.write(journal=keep)
    daemon = place.start()
    while daemon.status["journal"]["bytes"] < 5 * MIB:
        works(place)
    assert daemon.stop() == 0
    again = place.start()
    until(lambda: place.report().begins > 1, "retirement")
    assert again.stop() == 0
    assert place.report().intact


@pytest.fixture
def crowded(place: Place) -> Daemon:
    """A daemon whose journal lies on a small disk that nobody else sees."""
    place.journal.mkdir()
    return place.start(
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        ON_TMPFS,
        "sh",
        str(place.journal),
    )


def fill(file: Path) -> None:
    """Takes all the room there is on a file's disk."""
    with file.open("wb", buffering=0) as stream:
        for size in (MIB, 4096):
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))


def test_a_full_disk_stops_no_agent_and_hides_no_decision(crowded: Daemon, place: Place) -> None:
    """Agents go on, a kill is made and is on disk, `status` says what is wrong, and it recovers."""
    disk = Path(f"/proc/{crowded.pid}/root{place.journal}")
    script, file = counts(place)
    agent = place.agent(script)
    session = crowded.session(agent.pid)
    fill(disk / "filler")
    until(lambda: current(crowded), "a problem")
    status = crowded.status
    assert status["journal"]["failures"] > 0
    assert any(str(place.journal) in one for one in status["problems"])
    assert grows(file)
    assert crowded.session(agent.pid)["session"] == session["session"]

    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    until(lambda: decisions(place, disk) == [Verdict, Kill], "a decision on disk")
    assert current(crowded)

    (disk / "filler").unlink()
    until(lambda: not current(crowded), "recovery")
    assert any(one.startswith("the journal failed") for one in crowded.status["problems"])
    before = crowded.status["journal"]["sequence"]
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    until(lambda: decisions(place, disk) == [Verdict, Kill] * 2, "two kills in the journal")
    assert crowded.status["journal"]["sequence"] > before
    (report,) = verify(disk)
    assert (report.intact, report.live) == (True, True)


def current(daemon: Daemon) -> list[str]:
    """What `status` says about a disk that is full now."""
    found = [one for one in daemon.status["problems"] if "No space left" in one]
    return [one for one in found if not one.startswith("the journal failed")]


def decisions(place: Place, directory: Path) -> list[type]:
    """What is on disk, whatever the daemon has in memory."""
    entries = place.entries(directory)
    return [type(one.frame) for one in entries if isinstance(one.frame, Verdict | Kill)]


def test_a_journal_that_is_removed_is_said_and_made_anew(daemon: Daemon, place: Place) -> None:
    """It goes on in a new one, in which `verify` misses what was before."""
    script, file = counts(place)
    agent = place.agent(script)
    daemon.session(agent.pid)
    place.awaited(Session)
    until(lambda: place.report().frames > 0, "a frame in the journal")
    shutil.rmtree(place.journal)
    told: list[str] = []

    def is_told() -> bool:
        told.extend(one for one in daemon.status["problems"] if "removed or moved" in one)
        return bool(told)

    until(is_told, "a problem in status")
    assert "ask who could remove it" in told[0]
    until(lambda: (place.journal / "daemon").is_dir(), "a journal")
    assert grows(file)
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    assert len(place.awaited(Kill)) == 1
    (notice,) = [one for one in place.awaited(Notice) if one.subject == "journal"]
    assert "removed while it was written" in notice.text
    assert daemon.stop() == 0
    report = place.report()
    assert report.closed
    assert {problem.what for problem in report.problems} == {"missing"}


def test_a_removed_journal_is_found_missing_by_the_command(daemon: Daemon, place: Place) -> None:
    """`journal verify` exits 1 and says where to look; it exits 0 for one that is whole."""
    line = [str(place.agentwatch), "journal", "verify", "--journal", str(place.journal)]
    assert subprocess.run(line, capture_output=True, timeout=PATIENCE).returncode == 0
    shutil.rmtree(place.journal)
    until(
        lambda: (place.journal / "daemon").is_dir() and daemon.status["journal"]["failures"],
        "a journal anew, and its failures",
    )
    assert daemon.stop() == 0
    found = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert found.returncode == 1
    assert "missing" in found.stderr


def test_what_an_agent_does_while_the_daemon_is_killed_is_found(place: Place) -> None:
    """All that was in the journal stays readable, how the chain was found is told, no gap is."""
    killed = place.start()
    script, file = counts(place)
    agent = place.agent(script)
    killed.session(agent.pid)
    assert grows(file)
    until(lambda: len(place.events_of(agent.pid)) > 20, "twenty events of it")
    killed.process.kill()
    killed.wait()
    assert grows(file)
    daemon = place.start()
    (resumed,) = place.awaited(Resumed)
    assert not resumed.clean
    again = place.awaited(Session, 2)[-1]
    assert (again.session.pid, again.how) == (agent.pid, "running")
    assert daemon.session(agent.pid)["state"] == "running"
    assert grows(file)
    assert daemon.stop() == 0
    assert place.report().intact


# The breaker. ------------------------------------------------------------------------------------


def test_too_many_kills_freeze_the_session(place: Place) -> None:
    """One more than configured, and all of it rests until somebody thaws or ends it."""
    place.write(breaker={"kills": 2, "within": "10s"})
    daemon = place.start()
    script, file = counts(place)
    storm = f"for i in 1 2 3; do sh -c '{reads(place)}'; done"
    agent = place.agent(f"({script}) & read line; {storm}; read line; {storm}; read line")
    assert grows(file)
    assert daemon.session(agent.pid)["state"] == "running"
    cue(agent)
    until(lambda: daemon.session(agent.pid)["state"] == "frozen", "the freeze")
    assert rests(file)
    assert len(place.awaited(Kill, 3)) == 3
    (notice,) = [one for one in place.awaited(Notice) if one.subject == "freeze"]
    assert notice.session.pid == agent.pid

    daemon.ask("agents.thaw", which="stub")  # and it counts anew
    assert daemon.session(agent.pid)["state"] == "running"
    assert grows(file)
    cue(agent)
    until(lambda: daemon.session(agent.pid)["state"] == "frozen", "the second freeze")
    assert len(place.awaited(Kill, 6)) == 6
    assert daemon.ask("agents.kill", which="stub")["processes"] >= 2
    assert agent.wait(PATIENCE) == -signal.SIGKILL


def test_as_many_kills_as_configured_freeze_nobody(place: Place) -> None:
    """Of two sessions each has a count of its own."""
    place.write(breaker={"kills": 2, "within": "10s"})
    daemon = place.start()
    script = f"for i in 1 2; do sh -c '{reads(place)}'; done; echo done; read line"
    agents = [place.agent(script) for _ in range(2)]
    for agent in agents:
        assert line_of(agent) == "done"
    assert len(place.awaited(Kill, 4)) == 4
    assert {daemon.session(agent.pid)["state"] for agent in agents} == {"running"}
