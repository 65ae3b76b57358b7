"""What every test directory shares: who may run which tests, and where built things are.

A test that cannot run here is skipped with what is missing; under --no-skips, as in continuous
integration, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GUEST = Path("/run/vm/nonce")  # only tests/vm/init makes it
IN_GUESTS = ("vm", "lsm", "without_lsm", "bcc", "service")

NEEDS_ROOT = "needs root: make test-root, make test-completeness"
NEEDS_GUEST = "runs in a virtual machine only: make vm"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a skipped test fails the run",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(map(item.get_closest_marker, IN_GUESTS)) and not GUEST.exists():
            item.add_marker(pytest.mark.skip(reason=NEEDS_GUEST))
        elif (any(item.iter_markers("root")) or any(item.iter_markers("completeness"))) and (
            os.geteuid() != 0
        ):
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.stats.get("skipped")
    if session.config.getoption("--no-skips") and skipped and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def agentwatch() -> Path:
    """The command that `make` leaves, for tests that run it as a person would."""
    command = REPOSITORY / ".venv" / "bin" / "agentwatch"
    assert command.exists(), "run make first"
    return command


@pytest.fixture(scope="session")
def bpf_object() -> Path:
    """The compiled and stripped probes."""
    path = REPOSITORY / "agentwatch" / "data" / "agentwatch.bpf.o"
    assert path.exists(), "run make first"
    return path


@pytest.fixture(scope="session")
def promtool() -> Path:
    """promtool: from PATH, else out of Debian's prometheus package, which is not installed."""
    installed = shutil.which("promtool")
    if installed:
        return Path(installed)
    unpack = [REPOSITORY / "packaging" / "apt" / "unpack", "prometheus"]
    unpacked = subprocess.run(unpack, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return Path(unpacked.stdout.strip()) / "usr" / "bin" / "promtool"
