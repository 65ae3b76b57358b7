"""With BPF LSM an agent is told what it must not, and whoever watches it; a lost hook is said."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from agentwatch.kernel import preemption
from agentwatch.sinks.frames import Notice, Verdict
from tests.daemon.running import Daemon, Place, cue, line_of, until
from tests.daemon.test_metrics import free_port, scrape
from tests.daemon.test_run_through_daemon import ran
from tests.kernel.held import detach, held

pytestmark = pytest.mark.lsm

ASKS = """\
cat {key} 2>&1; echo "cat ended with $?"
n=0; said=; while [ $n -lt 20 ]; do
    n=$((n + 1)); said=$({agentwatch} why 2>&1)
    case $said in *test.key*) break;; esac
done
echo "$said"
{agentwatch} why 1; echo "another's ended with $?"
{agentwatch} status; echo "status ended with $?"
"""


@pytest.fixture
def place(place: Place) -> Place:
    """With a rule that denies."""
    place.rules = {"key": "deny"}
    place.write()
    return place


def test_a_denied_agent_lives_on_and_asks_why(place: Place) -> None:
    """EPERM for cat; the shell goes on, and is told rule, reason and what to do instead; of its own
    session alone. The person sees it as it happens.
    """
    daemon = place.start()
    script = ASKS.format(key=place["key"], agentwatch=place.agentwatch)
    done = ran(daemon, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"cat: {place['key']}: Operation not permitted", "cat ended with 1"]
    for words in (
        f"read  {place['key']}",
        "  denied by test.key (prevents, by the kernel, medium): The key",
        "  because  It is the key.",
        "  instead  Ask for another key.",
    ):
        assert any(line.endswith(words) for line in lines), f"{words!r} in\n{done.stdout}"
    assert "another's ended with 4" in lines
    assert "status ended with 4" in lines
    assert "DENIED    read" in done.stderr
    assert "test.key · prevents, by the kernel · medium" in done.stderr
    assert "instead: Ask for another key." in done.stderr
    (verdict,) = place.frames(Verdict)
    assert (verdict.action, verdict.outcome, verdict.level) == ("deny", "denied", "prevents")
    assert verdict.by == "kernel"


def reading(place: Place, daemon: Daemon) -> str:
    """What becomes of one who reads the key in an agent's session."""
    agent = place.agent(f"read go; cat {place['key']} 2>&1; echo ended $?; read line")
    daemon.session(agent.pid)  # from here on the kernel judges it
    cue(agent)
    said = [line_of(agent)]
    while not said[-1].startswith("ended"):
        said.append(line_of(agent))
    return "\n".join(said)


def lose(place: Place, daemon: Daemon, *fds: int) -> None:
    """The daemon closes these."""
    place["loses"].write_text(" ".join(map(str, fds)))
    os.kill(daemon.pid, signal.SIGUSR1)


def told(place: Place, words: str) -> bool:
    return any(words in one.text for one in place.frames(Notice) if one.subject == "hooks")


def test_a_hook_that_is_lost_is_attached_again_or_missed_aloud(place: Place) -> None:
    """Its link closed, it is attached again; its program too, and the level falls in status,
    metrics and journal, while who reads is killed.
    """
    port = free_port()
    place.write(metrics=f"127.0.0.1:{port}")
    wrapper = Path(__file__).with_name("losing.py")
    env = {"LOSES": str(place["loses"]), "AGENTWATCH_PINS": str(place["pins"])}  # nothing is pinned
    daemon = place.start(sys.executable, str(wrapper), env=env)
    assert daemon.status["rules"]["levels"] == {"prevents": 1}
    assert "Operation not permitted\nended 1" in reading(place, daemon)
    found = held(daemon.pid, "lsm_file_open")
    with pytest.raises(OSError, match="not supported"):
        detach(found.id)  # nobody can without the daemon's own descriptor
    lose(place, daemon, found.link)
    until(lambda: told(place, "attached again: lsm_file_open"), "a notice")
    assert "Operation not permitted\nended 1" in reading(place, daemon)
    assert daemon.status["hooks"]["lsm_file_open"]
    found = held(daemon.pid, "lsm_file_open")
    lose(place, daemon, found.link, found.program)
    until(lambda: told(place, "lsm_file_open: it was detached"), "a notice")
    until(lambda: told(place, "1 rule is worth less without: test.key"), "a notice")
    status = daemon.status
    fallen = "kills (lossy)" if preemption.skips() else "kills"
    assert status["rules"]["levels"] == {fallen: 1}
    assert not status["hooks"]["lsm_file_open"]
    assert any("lsm_file_open: it was detached" in one for one in status["problems"])
    assert 'agentwatch_hook_attached{hook="lsm_file_open"} 0.0' in scrape(port)
    assert f'agentwatch_rules_loaded{{level="{fallen}"}} 1.0' in scrape(port)
    assert reading(place, daemon).endswith("ended 137")
