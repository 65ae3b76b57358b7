"""A real rsyslogd carries findings to another host, by the configuration that ships."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentwatch.events import ProcessKey
from agentwatch.sinks.frames import Verdict
from agentwatch.sinks.host import this_host
from agentwatch.sinks.jsonl import Findings
from tests.kernel.launching import eventually

pytestmark = pytest.mark.root

PATIENCE = 60


class Collector:
    """The other host: keeps each line it is sent."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lines: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(connected,), daemon=True).start()

    def _read(self, connected: socket.socket) -> None:
        with connected, connected.makefile() as file:
            self.lines.extend(line for line in file if line.strip())

    @property
    def rules(self) -> list[str]:
        """Of the findings, in the order they came."""
        return [json.loads(line)["finding_info"]["analytic"]["uid"] for line in self.lines]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="session")
def unpacked(repository: Path) -> Path:
    """Debian's rsyslog, not installed."""
    packages = ["rsyslog", "libestr0", "libfastjson4"]
    line = [repository / "packaging" / "apt" / "unpack", *packages]
    said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return Path(said.stdout.strip())


@contextmanager
def rsyslogd(unpacked: Path, config: Path, directory: Path) -> Iterator[None]:
    """One that runs until it is told to end, as it is at a restart."""
    libraries = unpacked / "usr" / "lib" / "x86_64-linux-gnu"
    command = [unpacked / "usr/sbin/rsyslogd", "-n", "-f", config, "-i", directory / "pid"]
    command += ["-M", libraries / "rsyslog"]
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    with (directory / "said").open("a") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            yield
        finally:
            running.terminate()
            running.wait(PATIENCE)


def found(rule: str) -> Verdict:
    agent = ProcessKey(4242, 7)
    return Verdict(
        process=agent, session=agent, agent="stub", rule=rule, action="deny", outcome="killed",
        response="kill", level="kills", severity="high", kind="read", what="/home/dev/a\nb",
    )  # fmt: skip


def test_each_finding_arrives_once(
    repository: Path, unpacked: Path, collector: Collector, tmp_path: Path
) -> None:
    """Through a rotation, and through a restart of rsyslogd during which findings come."""
    shipped = (repository / "packaging" / "shippers" / "rsyslog-agentwatch.conf").read_text()
    path = tmp_path / "findings.jsonl"
    adapted = shipped.replace("/var/log/agentwatch/findings.jsonl", str(path))
    adapted = adapted.replace("logs.example.com", "127.0.0.1").replace("6514", str(collector.port))
    config = tmp_path / "rsyslog.conf"
    config.write_text(f'global(workDirectory="{tmp_path}")\n{adapted}')
    findings, expected = Findings(path, this_host()), []

    def find(*rules: str) -> None:
        for rule in rules:
            findings.write(found(rule))
            expected.append(rule)

    def arrives() -> None:
        assert eventually(lambda: len(collector.lines) >= len(expected), PATIENCE), (
            tmp_path / "said"
        ).read_text()

    with rsyslogd(unpacked, config, tmp_path):
        find("r.1", "r.2")
        arrives()
        path.rename(tmp_path / "findings.jsonl.1")  # as logrotate does
        find("r.3", "r.4")
        arrives()
    find("r.5")
    with rsyslogd(unpacked, config, tmp_path):
        find("r.6")
        arrives()
    findings.close()
    assert collector.rules == expected
