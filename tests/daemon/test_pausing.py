"""Pauses that the kernel cannot be told of, or not at once: nobody is told what is not so.

The daemon is the real one; what its compiler does, fail or take its time, a file says.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentwatch.errors import AgentwatchError
from agentwatch.sinks.frames import Notice, Reload
from tests.daemon.running import PATIENCE, Daemon, Place, reads, until
from tests.daemon.test_deciding import known, said

pytestmark = pytest.mark.root

COMPILER = """\
import os, time
from agentwatch.policy import compiler
compile = compiler.compile
def ours(*asked, **more):
    with open({log!r}, "a") as log:
        log.write("compiled\\n")
    while os.path.exists({slow!r}):
        time.sleep(0.02)
    assert not os.path.exists({fault!r}), "a fault"
    return compile(*asked, **more)
compiler.compile = ours
"""


def started(place: Place) -> Daemon:
    """One whose compiler fails while there is a file `fault`, and waits while there is `slow`."""
    files = {name: str(place[name]) for name in ("log", "slow", "fault")}
    place["python"].mkdir()
    place["python/sitecustomize.py"].write_text(COMPILER.format(**files))
    return place.start(env={"PYTHONPATH": str(place["python"])})


@pytest.fixture
def daemon(place: Place) -> Daemon:
    return started(place)


def compiled(place: Place) -> int:
    """How often the compiler was asked."""
    return len(place["log"].read_text().splitlines())


def pauses(place: Place) -> list[str]:
    return [one.text for one in place.frames(Notice) if one.subject == "pause"]


def test_a_pause_that_cannot_be_compiled_is_none(daemon: Daemon, place: Place) -> None:
    """Who asked is told, the rule acts on, and the compiler is asked once."""
    place["fault"].touch()
    before = compiled(place)
    with pytest.raises(AgentwatchError, match=r"test.key is not paused: .*AssertionError") as error:
        daemon.ask("rules.pause", rule="test.key", seconds=600)
    assert error.value.remedy
    assert daemon.status["paused"] == {}
    assert said(daemon, f"cat {place['key']}; echo over") == "over\n"
    place.agent("sleep 2.5").wait(PATIENCE)  # two looks at what is paused, and more
    assert compiled(place) == before + 1
    (told,) = place.awaited(Reload)
    assert (told.pause, told.ok, told.generation) == (True, False, 1)
    assert "a fault" in told.message
    assert daemon.status["reload_error"] == ""
    until(lambda: len(pauses(place)) == 2, "a notice")
    assert pauses(place)[1].startswith("test.key is not paused")
    place["fault"].unlink()
    daemon.ask("rules.pause", rule="test.key", seconds=600)
    assert said(daemon, f"cat {place['key']}") == "the key\n"


def test_a_rule_that_acts_again_does_so_without_the_kernel(daemon: Daemon, place: Place) -> None:
    """The engine has it back, and who asked is told that it is the engine alone."""
    daemon.ask("rules.pause", rule="test.key", seconds=600)
    place["fault"].touch()
    with pytest.raises(AgentwatchError, match="acts again, but by the engine alone"):
        daemon.ask("rules.pause", rule="test.key", seconds=0)
    assert known(daemon, reads(place)).wait(PATIENCE) == -signal.SIGKILL


def test_a_pause_whose_end_cannot_be_compiled_ends(daemon: Daemon, place: Place) -> None:
    """It is tried once, not at each look."""
    daemon.ask("rules.pause", rule="test.key", seconds=2)
    place["fault"].touch()
    before = compiled(place)
    until(lambda: compiled(place) == before + 1, "the end of the pause")
    place.agent("sleep 3.5").wait(PATIENCE)
    assert compiled(place) == before + 1
    assert known(daemon, reads(place)).wait(PATIENCE) == -signal.SIGKILL
    assert pauses(place)[1] == "test.key acts again: its pause is over"


def test_pauses_are_in_the_journal_with_their_generations(daemon: Daemon, place: Place) -> None:
    """Each policy that comes into force is named there; one for a pause is no reload."""
    daemon.ask("rules.pause", rule="test.key", seconds=2)
    until(lambda: daemon.status["generation"] == 3, "the rule is back")
    told = place.awaited(Reload, 2)
    assert [(one.generation, one.ok, one.pause, one.message) for one in told] == [
        (2, True, True, "test.key is paused"),
        (3, True, True, "test.key acts again"),
    ]
    assert pauses(place)[1] == "test.key acts again: its pause is over"


def test_a_pause_during_a_reload_is_told_when_the_kernel_has_it(
    daemon: Daemon, place: Place
) -> None:
    """Not before, and it is not lost with the policy that the reload replaces."""
    place["slow"].touch()
    with ThreadPoolExecutor(2) as pool:
        before = compiled(place)
        reloading = pool.submit(daemon.reload)
        until(lambda: compiled(place) == before + 1, "a reload")
        pausing = pool.submit(daemon.ask, "rules.pause", rule="test.key", seconds=600)
        until(lambda: "test.key" in daemon.status["paused"], "a pause")
        place.agent("sleep 1.5").wait(PATIENCE)
        assert not pausing.done()
        place["slow"].unlink()
        assert reloading.result(PATIENCE)["generation"] == 2
        assert pausing.result(PATIENCE)["rule"] == "test.key"
    assert said(daemon, f"cat {place['key']}") == "the key\n"
    assert daemon.status["policy"]["kernel"] is True


def test_a_daemon_starts_with_a_compiler_that_fails(place: Place) -> None:
    """The engine decides on everything, and `status` says why."""
    place["fault"].touch()
    daemon = started(place)
    assert daemon.status["policy"]["kernel"] is False
    assert any("AssertionError" in one for one in daemon.status["problems"])
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
