"""Real probes, one set for each module, and the programs they watch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from agentwatch.kernel import loading, preflight
from agentwatch.kernel.probes import Probes
from tests.kernel.building import build
from tests.kernel.law import Law
from tests.kernel.recording import Gate, Recorder


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A directory that everybody may enter, with each program of programs/ built."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-programs-") as made:
        directory = Path(made).resolve()
        directory.chmod(0o755)
        build(directory)
        yield directory


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that everybody may enter, by its canonical name."""
    directory = Path(tempfile.mkdtemp(prefix="agentwatch-test-")).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _how_long(fixture_name: str, config: pytest.Config) -> Literal["session", "module"]:
    """One load for all modules where it takes an emulated machine a tenth of its boot."""
    slow = "lsm" in config.getoption("-m") or preflight.loader() == "bcc"
    return "session" if slow else "module"


@pytest.fixture(scope=_how_long)
def probes() -> Iterator[Probes]:
    """Loaded and attached, by the loader for this kernel."""
    loaded = loading.begin().probes()
    yield loaded
    loaded.close()


@pytest.fixture
def recorder(probes: Probes) -> Recorder:
    """Of these probes; nothing that was recorded before is left in the rings."""
    recorder = Recorder(probes)
    recorder.collect()
    return Recorder(probes)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Closed."""
    made = Gate()
    yield made
    made.close()


@pytest.fixture
def law(probes: Probes, place: Path) -> Iterator[Law]:
    """No rules yet; withdrawn afterwards."""
    yield Law(probes, place)
    probes.withdraw()
