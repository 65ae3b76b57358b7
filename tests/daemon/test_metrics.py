"""A daemon's metrics, as Prometheus reads them."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from agentwatch.sinks.families import FAMILIES
from tests.daemon.running import Place, until

pytestmark = pytest.mark.root


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def test_every_family_is_on_the_page_and_promtool_finds_nothing_to_say(
    promtool: Path, place: Place
) -> None:
    """With an agent at work whose command was killed, and after a reload."""
    port = free_port()
    place.write(metrics=f"127.0.0.1:{port}")
    daemon = place.start()
    agent = place.agent(f"read line; cat {place['key']}; sleep 30")
    daemon.session(agent.pid)  # from here on the kernel judges it
    assert agent.stdin is not None
    agent.stdin.write("\n")
    agent.stdin.flush()
    daemon.reload()
    for line in (
        'agentwatch_decisions_total{action="kill",level="kills",rule="test.key"} 1.0',
        'agentwatch_sessions{agent="stub",state="running"} 1.0',
        'agentwatch_sessions_begun_total{agent="stub"} 1.0',
        'agentwatch_reloads_total{outcome="ok"} 1.0',
        "agentwatch_last_reload_successful 1.0",
        "agentwatch_policy_generation 2.0",
        "agentwatch_enforcing 1.0",
        "agentwatch_policy_in_kernel 1.0",
        'agentwatch_rules_loaded{level="kills"} 1.0',
    ):
        until(lambda line=line: line in scrape(port).splitlines(), line)
    text = scrape(port)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")} == {
        one.full_name for one in FAMILIES
    }
    turns = next(line for line in text.splitlines() if "loop_turn_seconds_count" in line)
    assert float(turns.split()[1]) > 0
    command = [promtool, "check", "metrics"]
    found = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_a_refused_reload_is_seen(place: Place) -> None:
    """The operator is told that what is on disk is not what is in force."""
    port = free_port()
    place.write(metrics=f"127.0.0.1:{port}")
    daemon = place.start()
    place["rules.yaml"].write_text("nonsense: [")
    with daemon.client() as client, pytest.raises(Exception, match="rule"):
        client.request("rules.reload")
    lines = scrape(port).splitlines()
    assert 'agentwatch_reloads_total{outcome="refused"} 1.0' in lines
    assert "agentwatch_last_reload_successful 0.0" in lines


def test_who_asks_the_daemon_is_counted(place: Place) -> None:
    """Connections, and of them those that follow events."""
    port = free_port()
    place.write(metrics=f"127.0.0.1:{port}")
    daemon = place.start()
    with daemon.client() as follower, daemon.client() as other:
        follower.stream("events", follow=True)
        other.request("status")
        lines = scrape(port).splitlines()
    assert "agentwatch_control_connections 2.0" in lines
    assert "agentwatch_control_subscribers 1.0" in lines
    assert "agentwatch_control_dropped_frames_total 0.0" in lines
