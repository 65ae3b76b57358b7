"""`agentwatch run` where a daemon watches: no root, no probes of its own, the same for CMD."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentwatch.events import Exec
from agentwatch.sinks.frames import Session, Verdict
from tests.daemon.running import AS_NOBODY, NOBODY, PATIENCE, Daemon, line_of, reads, until

pytestmark = pytest.mark.root


def running(
    daemon: Daemon, *command: str | Path, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`agentwatch run` of somebody who knows where the daemon is."""
    environment = {**os.environ, "AGENTWATCH_SOCKET": str(daemon.place.socket), "HOME": "/"}
    return subprocess.Popen(
        [*prefix, daemon.place.agentwatch, "run", *options, "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=daemon.place.directory,
    )


def ran(
    daemon: Daemon, *command: str | Path, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    process = running(daemon, *command, options=options, prefix=prefix)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_person_needs_neither_root_nor_sudo(standing: Daemon) -> None:
    """CMD runs as they are, in their directory, and its exit code is the command's."""
    done = ran(standing, "sh", "-c", "id -u; pwd; exit 7", prefix=AS_NOBODY)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{NOBODY}\n{standing.place.directory}\n"
    assert "1 rule, mode enforce" in done.stderr
    assert "exit code 7" in done.stderr
    session = standing.place.awaited(Session)[-1]
    assert (session.uid, session.how, session.agent) == (NOBODY, "tag", "")
    assert session.project == str(standing.place.directory)


def test_everything_from_the_first_exec_on_is_recorded_and_shown(standing: Daemon) -> None:
    """CMD's process tags itself before it executes CMD."""
    done = ran(standing, "sh", "-c", "true; /bin/echo said")
    assert done.stdout == "said\n"
    assert "run       sh -c" in done.stderr
    assert "run       /bin/echo said" in done.stderr
    session = standing.place.awaited(Session)[-1].session.pid
    until(lambda: len(standing.place.events_of(session)) > 4, "its events")
    execs = [e for e in standing.place.events_of(session) if isinstance(e, Exec) and not e.result]
    assert [one.argv[0] for one in execs] == ["sh", "/bin/echo"]


def test_the_daemons_rules_apply_and_are_shown(standing: Daemon) -> None:
    """Who reads the key is killed; the person reads why, and what to do instead."""
    done = ran(standing, "sh", "-c", f"sh -c '{reads(standing.place)}'; exit 0", prefix=AS_NOBODY)
    assert done.returncode == 0
    assert "KILL      read" in done.stderr
    assert "Ask for another key." in done.stderr
    assert standing.place.awaited(Verdict)[-1].rule == "test.key"


def test_a_process_that_outlives_cmd_is_watched_on(standing: Daemon) -> None:
    """It is named at the end, and still in the session."""
    done = ran(standing, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit 0")
    assert "goes on, watched" in done.stderr
    (session,) = standing.sessions
    (left,) = session["processes"]
    assert f"(process {left['pid']})" in done.stderr
    standing.ask("agents.kill", which=str(left["pid"]))
    until(lambda: not standing.sessions, "its end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_cmds(standing: Daemon, number: signal.Signals) -> None:
    """What ends `run` is passed on, and CMD's answer to it is its exit code."""
    script = (
        f"trap 'exit 9' {number.name.removeprefix('SIG')}; echo up; while :; do sleep 0.05; done"
    )
    process = running(standing, "sh", "-c", script)
    assert line_of(process) == "up"
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 9


def test_an_agents_name_is_checked_before_anything_runs(standing: Daemon) -> None:
    """One that no rule file knows is a usage error, and CMD has not been run."""
    file = standing.place["ran"]
    done = ran(standing, "touch", file, options=["--agent", "nobody-has-it"])
    assert done.returncode == 2
    assert "nobody-has-it" in done.stderr
    assert not file.exists()
    done = ran(standing, "touch", file, options=["--agent", "stub"])
    assert done.returncode == 0
    assert standing.place.awaited(Session)[-1].agent == "stub"


def test_inside_an_agent_it_is_refused(standing: Daemon) -> None:
    """What an agent runs is watched already, and begins no session of its own."""
    file = standing.place["inside"]
    line = f"{standing.place.agentwatch} run -- touch {file}; echo $?"
    environment = {**os.environ, "AGENTWATCH_SOCKET": str(standing.place.socket)}
    agent = standing.place.agent(line, env=environment, stderr=subprocess.PIPE)
    out, err = agent.communicate(timeout=PATIENCE)
    assert out == "4\n"
    assert "not for what an agent runs" in err
    assert not file.exists()


def test_options_a_daemon_has_its_own_of_make_it_watch_by_itself(standing: Daemon) -> None:
    """Then it loads probes, and the daemon has no session of it."""
    before = len(standing.place.frames(Session))
    rules, journal = standing.place["rules.yaml"], standing.place["alone"]
    options = [f"--rules={rules}", f"--journal={journal}"]
    done = ran(standing, "true", options=options)
    assert done.returncode == 0, done.stderr
    assert [
        e.frame.how for e in standing.place.entries(journal) if isinstance(e.frame, Session)
    ] == ["run"]
    assert len(standing.place.frames(Session)) == before


def test_cmd_does_not_go_on_unwatched(daemon: Daemon) -> None:
    """When the daemon is gone, so is CMD: nobody would see what it does."""
    process = running(daemon, "sh", "-c", "echo $$; exec sleep 1000")
    pid = int(line_of(process))
    daemon.session(pid)
    daemon.process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "has left CMD unwatched" in err
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
