"""Real daemons, each in a place of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.running import Daemon, Place


@contextmanager
def made(agentwatch: Path) -> Iterator[Place]:
    """Where everybody may enter, by its canonical name; nothing of it is left behind."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mount = next(Path(fields[4]) for fields in mounts if "cgroup2" in fields)
    directory = Path(tempfile.mkdtemp(prefix="agentwatch-test-")).resolve()
    directory.chmod(0o755)
    place = Place(agentwatch, directory, mount)
    try:
        yield place
    finally:
        place.close()
        shutil.rmtree(directory)


@pytest.fixture
def place(agentwatch: Path) -> Iterator[Place]:
    """Of one test alone: nothing runs there yet."""
    with made(agentwatch) as place:
        yield place


@pytest.fixture
def own(agentwatch: Path) -> Iterator[Place]:
    """The same, where a module's `place` is a shared one."""
    with made(agentwatch) as place:
        yield place


@pytest.fixture
def daemon(place: Place) -> Daemon:
    """Watching, with one rule: who reads the key is killed."""
    return place.start()


@pytest.fixture(scope="module")
def shared(agentwatch: Path) -> Iterator[Daemon]:
    """The same for all tests of a module that change nothing of it."""
    with made(agentwatch) as place:
        yield place.start()


@pytest.fixture
def standing(shared: Daemon) -> Iterator[Daemon]:
    """The shared one, without sessions at the beginning; what the test started is ended."""
    assert shared.sessions == []
    yield shared
    shared.forget()
