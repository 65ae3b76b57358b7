"""The package where systemd runs: installed, at work, killed, exchanged, and gone again.

The tests are one story, in order: each begins where the one before has left the machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwatch import abi
from agentwatch.sinks.reader import read
from tests.daemon.denied import TRYING, account, tried
from tests.daemon.running import size

pytestmark = pytest.mark.service

PACKAGES = Path(__file__).resolve().parents[2] / ".cache" / "vm" / "packages"
PATIENCE = 240  # s that anything may take: the machine is emulated
HEAD = r"daemon:\d+:[0-9a-f]{64}"
STUB = Path("/srv/bin/stub-service")
LOAD = Path("/srv/load")
PORT = 4471  # where nobody is let
LOCAL = Path("/etc/agentwatch/rules.d/local.yaml")
CONFIG = Path("/etc/agentwatch/agentwatch.yaml")
RULES = """\
schema: agentwatch/v1
agents:
  - {id: stub-service, title: A stub, exec: ["**/bin/stub-service"]}
rules:
  - id: service.secret
    on: read
    match: {path: /srv/load/key}
    action: deny
    severity: high
    because: It is the secret of this test.
    tests: [{hit: {path: /srv/load/key}}]
  - id: service.canary
    on: exec
    match: {path: /srv/load/canary}
    action: deny
    because: It is the canary of this test.
    tests: [{hit: {path: /srv/load/canary}}]
  - id: service.port
    on: connect
    match: {proto: tcp, port: 4471}
    action: deny
    because: It is the port of this test.
    tests: [{hit: {proto: tcp, addr: 127.0.0.1, port: 4471}}]
"""
PROMETHEUS = """\
global: {scrape_interval: 5s, evaluation_interval: 5s}
rule_files: [/usr/share/agentwatch/prometheus/agentwatch.rules.yml]
scrape_configs:
  - job_name: agentwatch
    static_configs: [{targets: ["127.0.0.1:9477"]}]
"""


def said(*command: str | Path, code: int | None = 0) -> str:
    """What a command says on both streams; it must end as `code` says, None: somehow."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_PAGER": ""}
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * PATIENCE,
        env=environment,
    )
    if code is not None and ran.returncode != code:
        raise AssertionError(f"{command}: {ran.returncode}\n{ran.stdout}\n{logged()}")
    return ran.stdout


def logged() -> str:
    """The service's own log."""
    line = ("journalctl", "-u", "agentwatch", "-o", "short-monotonic", "-n", "60", "--no-pager")
    return said(*line, code=None)


def until(claim: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What the claim comes to, once that is true; with the service's log where it does not."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = claim()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {patience} s\n{logged()}")


def shown(name: str) -> str:
    """A property of the service."""
    return said("systemctl", "show", "agentwatch", "--value", "-p", name).strip()


def apt(*arguments: str | Path) -> str:
    return said("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", *arguments)


def package(version: str) -> Path:
    return PACKAGES / f"agentwatch_{version}_amd64.deb"


def ours() -> str:
    """The version of this tree."""
    (found,) = set(PACKAGES.glob("agentwatch_*")) - {package("0.0.9"), package("9.0.0")}
    return found.name.split("_")[1]


def others() -> list[Path]:
    """What the package needs and the machine lacks."""
    every = sorted(PACKAGES.glob("*.deb"))
    return [one for one in every if not one.name.startswith("agentwatch_")]


def status() -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(said("agentwatch", "status", "-o", "json"))
    return answer


def reads_secret() -> str:
    """What an agent gets of the secret."""
    return said(STUB, f"cat {LOAD}/key; true", code=None)


def denied() -> bool:
    return "the secret" not in reads_secret()


class Agent:
    """A stub that tries what is denied again and again: an open, an exec, a connect each second."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [STUB, f"read line; exec /usr/bin/python3 {TRYING} {LOAD} {PORT} 1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: self.session, "the agent is found")  # what it does before is the engine's
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def rounds(self, count: int = 3) -> None:
        """Waits for so many more, each of which tries everything."""
        before = size(LOAD / "tried")
        until(lambda: size(LOAD / "tried") >= before + count, f"{count} rounds of the load")

    def ended(self) -> dict[str, int]:
        """Has it end; how often it has tried, by kind. Nothing was let through."""
        (LOAD / "stop").touch()
        said, _ = self.process.communicate(timeout=PATIENCE)
        return tried(said)

    @property
    def session(self) -> str:
        listed = json.loads(said("agentwatch", "agents", "list", "-o", "json"))
        found = [one["session"] for one in listed["sessions"] if one["pid"] == self.process.pid]
        return found[0] if found else ""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """Begun once the rules are enforced; there is somebody who would answer where it connects."""
    with socket.create_server(("127.0.0.1", PORT), backlog=64):
        found = Agent()
        yield found
        found.process.kill()
        found.process.wait()


def test_the_package_installs_and_observes() -> None:
    """It starts by itself, stops nothing, and is what the unit says; times are printed."""
    STUB.parent.mkdir(parents=True)
    STUB.write_text('#!/bin/sh\neval "$*"\n')
    STUB.chmod(0o755)
    LOAD.mkdir()
    (LOAD / "key").write_text("the secret\n")
    shutil.copy("/bin/true", LOAD / "canary")
    began = time.monotonic()
    apt("install", package(ours()), *others())
    until(lambda: shown("ActiveState") == "active", "active")
    installed = time.monotonic() - began
    assert shown("UnitFileState") == "enabled"
    found = status()
    assert (found["version"], found["mode"]) == (ours(), "observe")
    assert found["tier"] == "lsm"
    assert not denied()
    began = time.monotonic()
    LOCAL.write_text(RULES)
    CONFIG.write_text(CONFIG.read_text().replace("mode: observe", "mode: enforce"))
    said("systemctl", "reload", "agentwatch")
    assert status()["mode"] == "enforce"
    until(denied, "enforcing")
    enforcing = time.monotonic() - began
    # From here on without the packs: emulated, they take a minute of each start.
    CONFIG.write_text(CONFIG.read_text().replace("#rules: default", f"rules: [{LOCAL.parent}]"))
    said("systemctl", "reload", "agentwatch")
    print(
        f"apt install to watching {installed:.1f} s, then to enforcing {enforcing:.1f} s (emulated)"
    )


def test_it_runs_with_no_more_than_the_unit_gives() -> None:
    """systemd's own judgement of what was installed, and the capabilities of the process."""
    exposed = said("systemd-analyze", "security", "--no-pager", "agentwatch.service")
    level = re.search(r"exposure level for agentwatch.service: ([\d.]+)", exposed)
    assert level is not None
    assert float(level[1]) <= 3.5
    process = Path(f"/proc/{shown('MainPID')}/status").read_text()
    (held,) = re.findall(r"CapEff:\s(\w+)", process)
    assert int(held, 16) & (1 << 21) == 0  # CAP_SYS_ADMIN
    assert status()["problems"] == []


def test_an_agent_is_denied_and_told_why(agent: Agent) -> None:
    """The rule's level holds; `events` and journald have it by rule, and the head is anchored."""
    agent.rounds()
    assert "service.secret" in said("agentwatch", "events", "--rule", "service.secret")
    lines = until(
        lambda: said("journalctl", "-o", "json", "AGENTWATCH_RULE=service.secret", "--no-pager"),
        "journald",
    )
    entry = json.loads(lines.splitlines()[0])
    assert entry["_SYSTEMD_UNIT"] == "agentwatch.service"
    assert (entry["AGENTWATCH_ACTION"], entry["PRIORITY"]) == ("deny", "3")
    log = ("journalctl", "-u", "agentwatch", "-o", "cat", "--no-pager")
    heads = until(lambda: re.findall(HEAD, said(*log)), "the head")
    assert "intact" in said("agentwatch", "journal", "verify", "--head", heads[0])


def test_prometheus_scrapes_it(agent: Agent) -> None:
    """A real one, of Debian: PromQL answers what the daemon says of itself; no alert is firing."""
    rules = "/usr/share/agentwatch/prometheus/agentwatch.rules.yml"
    said(PACKAGES / "promtool", "check", "rules", rules)
    config = Path("/srv/prometheus.yml")
    config.write_text(PROMETHEUS)
    line = [
        PACKAGES / "prometheus",
        f"--config.file={config}",
        "--storage.tsdb.path=/srv/prometheus",
    ]
    said("systemd-run", "--unit=prometheus", *line, "--web.listen-address=127.0.0.1:9090")

    def asked(query: str) -> float:
        where = f"http://127.0.0.1:9090/api/v1/query?query={urllib.parse.quote(query)}"
        try:
            with urllib.request.urlopen(where, timeout=60) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return -1
        return float(result[0]["value"][1]) if result else 0

    until(lambda: asked('up{job="agentwatch"}') == 1, "up")
    until(lambda: asked("agentwatch_enforcing") == 1, "enforcing")
    decisions = 'sum(agentwatch_decisions_total{rule="service.secret"})'
    before = asked(decisions)
    until(
        lambda: asked(decisions) > before >= 0,
        "more",
    )
    assert asked('agentwatch_sessions{agent="stub-service",state="running"}') >= 1
    assert asked("sum(agentwatch_events_lost_total)") == 0
    assert asked("agentwatch_hook_attached == 0") == 0
    assert asked('count(agentwatch_journal_head_info{chain="daemon"})') == 1


def test_a_killed_service_is_back_with_its_sessions(agent: Agent) -> None:
    """kill -9: systemd restarts it, and the agent is in the session it was in. Meanwhile the kernel
    goes on denying.
    """
    pid, session = shown("MainPID"), agent.session
    began = time.monotonic()
    said("systemctl", "kill", "-s", "KILL", "--kill-who=main", "agentwatch")
    agent.rounds(1)
    until(lambda: shown("MainPID") not in ("0", pid) and shown("ActiveState") == "active", "back")
    print(f"kill -9 to watching again: {time.monotonic() - began:.1f} s (emulated)")
    assert until(lambda: agent.session, "the session") == session
    until(denied, "enforcing again")


def test_a_restart_is_nobodys_chance(agent: Agent) -> None:
    """`systemctl restart`: what is denied stays denied, as the package's on_exit says."""
    pid, session = shown("MainPID"), agent.session
    began = time.monotonic()
    said("systemctl", "restart", "agentwatch")
    print(f"systemctl restart: {time.monotonic() - began:.1f} s (emulated)")
    assert shown("MainPID") not in ("0", pid)
    assert until(lambda: agent.session, "the session") == session
    log = said("journalctl", "-u", "agentwatch", "-o", "cat", "--no-pager")
    assert "the kernel goes on by the policy it has, and nobody listens" in log
    agent.rounds(1)


def test_a_service_that_hangs_is_killed_by_its_watchdog(agent: Agent) -> None:
    """SIGSTOP: nobody feeds the watchdog, systemd ends it and starts another."""
    pid = shown("MainPID")
    os.kill(int(pid), signal.SIGSTOP)
    until(lambda: shown("MainPID") not in ("0", pid) and shown("ActiveState") == "active", "back")
    assert "atchdog timeout" in said("journalctl", "-u", "agentwatch", "--no-pager")
    until(lambda: agent.session, "the session")


def test_a_broken_file_is_refused_and_said(agent: Agent) -> None:
    """`systemctl reload` fails, the old rules stay in force; mended, it works."""
    LOCAL.write_text(RULES.replace("action: deny", "action: dney"))
    said("systemctl", "reload", "agentwatch", code=1)
    agent.rounds(1)  # what a new agent does in its first moment is the engine's
    assert status()["reload_error"]
    errors = said("journalctl", "-u", "agentwatch", "-p", "err", "-n", "20", "--no-pager")
    assert "local.yaml:8:13: error[AW" in errors
    LOCAL.write_text(RULES)
    said("systemctl", "reload", "agentwatch")
    assert not status()["reload_error"]


def test_a_clock_that_jumps_changes_nothing(agent: Agent) -> None:
    """Forty days ahead and back: nothing of the journal is old, what is denied stays denied."""
    before = sorted(Path("/var/log/agentwatch/daemon").glob("*.journal"))
    pid = shown("MainPID")
    for days in ("+40 days", "-40 days"):
        said("date", "--set", days)
        agent.rounds(2)
        assert (shown("MainPID"), shown("ActiveState")) == (pid, "active")
        assert status()["problems"] == []
    assert sorted(Path("/var/log/agentwatch/daemon").glob("*.journal"))[: len(before)] == before
    said("agentwatch", "journal", "verify")


@pytest.mark.parametrize("version", ["9.0.0", "0.0.9"], ids=["upgrade", "downgrade"])
def test_another_build_takes_over(agent: Agent, version: str) -> None:
    """Rules, mode, journal and sessions are those of before; the chain goes on."""
    session, config = agent.session, CONFIG.read_text()
    said("dpkg", "--install", "--force-confold", package(version))
    until(lambda: shown("ActiveState") == "active", "active")
    found = status()
    assert (found["version"], found["mode"]) == (version, "enforce")
    assert (CONFIG.read_text(), LOCAL.read_text()) == (config, RULES)
    assert until(lambda: agent.session, "the session") == session
    agent.rounds()
    said("agentwatch", "journal", "verify")


def test_nothing_was_let_through_and_all_is_accounted_for(agent: Agent) -> None:
    """Of all that was tried through deaths, restarts, reloads and other versions."""
    tries = agent.ended()
    until(lambda: not agent.session, "the end of the session")
    lost = account(read(Path("/var/log/agentwatch")), LOAD, PORT, tries, agent.process.pid)
    print(f"denied things tried: {tries}, let through: 0, uncounted: 0, lost and told: {lost}")
    assert set(said("ls", "/sys/fs/bpf/agentwatch").split()) == {f"v{abi.ABI}"}


def test_removed_it_leaves_local_rules_and_the_journal(agent: Agent) -> None:
    """Nothing runs, nothing is left in the kernel; what people wrote and what was seen stays."""
    apt("remove", "agentwatch")
    assert said("systemctl", "is-active", "agentwatch", code=None).strip() != "active"
    assert not denied()
    assert LOCAL.exists()
    assert CONFIG.exists()
    assert list(Path("/var/log/agentwatch/daemon").glob("*.journal"))
    assert not Path("/usr/lib/agentwatch").exists()
    assert not list(Path("/sys/fs/bpf/agentwatch").glob("v*"))


def test_installed_again_it_goes_on() -> None:
    """With the rules and the mode it had, in the same chain."""
    said("dpkg", "--install", package(ours()))
    until(lambda: shown("ActiveState") == "active", "active")
    assert status()["mode"] == "enforce"
    until(denied, "enforcing")
    said("agentwatch", "journal", "verify")


def test_purged_nothing_is_left() -> None:
    """No file, no unit, no process."""
    said("dpkg", "--purge", "agentwatch")
    ours = ("/etc/agentwatch", "/var/log/agentwatch", "/run/agentwatch", "/usr/lib/agentwatch")
    for place in (*ours, "/usr/share/agentwatch", "/lib/systemd/system/agentwatch.service"):
        assert not Path(place).exists(), place
    assert shown("LoadState") == "not-found"
    left = said("dpkg-query", "-W", "-f", "${db:Status-Status}", "agentwatch", code=None)
    assert not left.startswith("config")
