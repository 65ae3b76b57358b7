"""Real probes, one set for each module, and the programs they watch."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law
from tests.kernel.recording import Gate, Recorder

SOURCES = Path(__file__).parent / "programs"
FLAGS = {
    # Freestanding: gcc always makes 32-bit code, but 32-bit libraries are a package of their own.
    "compat": [
        "-m32",
        "-nostdlib",
        "-ffreestanding",
        "-fno-pic",
        "-no-pie",
        "-fno-stack-protector",
    ],
}


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A directory that everybody may enter, with each program of programs/ built: statically, so
    that it opens nothing of its own accord.
    """
    with tempfile.TemporaryDirectory(prefix="agentwatch-programs-") as made:
        directory = Path(made).resolve()
        directory.chmod(0o755)
        for source in sorted(SOURCES.glob("*.c")):
            flags = ["-O1", "-Wall", "-Werror", "-static", *FLAGS.get(source.stem, ["-pthread"])]
            output = directory / source.stem
            subprocess.run(["gcc", *flags, "-o", output, source], check=True, timeout=60)
        yield directory


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that everybody may enter, by its canonical name."""
    directory = Path(tempfile.mkdtemp(prefix="agentwatch-test-")).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def probes() -> Iterator[Probes]:
    """Loaded and attached."""
    loaded = Probes()
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
