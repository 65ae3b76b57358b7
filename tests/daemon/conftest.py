"""Real daemons, each in a place of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import Daemon, Place


@pytest.fixture
def place(agentwatch: Path) -> Iterator[Place]:
    """Where everybody may enter, by its canonical name; nothing of it is left behind."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mount = next(Path(fields[4]) for fields in mounts if "cgroup2" in fields)
    directory = Path(tempfile.mkdtemp(prefix="agentwatch-test-")).resolve()
    directory.chmod(0o755)
    made = Place(agentwatch, directory, mount)
    yield made
    made.close()
    shutil.rmtree(directory)


@pytest.fixture
def daemon(place: Place) -> Daemon:
    """Watching, with one rule: who reads the key is killed."""
    return place.start()
