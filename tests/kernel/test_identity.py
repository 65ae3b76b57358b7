"""Identities, first half: a name with a literal of one begins a provisional session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from agentwatch.events import Event, Exec, Open
from agentwatch.kernel.probes import Probes
from tests.kernel.recording import Gate, Recorder, Witness, witness

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def probes() -> Iterator[Probes]:
    """Probes that look at the names of untagged processes too."""
    loaded = Probes(identify=True)
    yield loaded
    loaded.close()


@pytest.fixture
def literal(probes: Probes, place: Path) -> str:
    """A component that no other program on this machine is named by, and the only literal."""
    name = place.name.replace("agentwatch-test-", "identity-")
    probes.set_literals([name.encode()])
    return name


def install(program: Path, at: Path) -> Path:
    at.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, at)
    return at


def runs(
    program: str | Path, place: Path, gate: Gate, *arguments: str
) -> AbstractContextManager[Witness]:
    """A witness that nobody tags: it opens a file, then becomes the program."""

    def act() -> None:
        os.chdir(place)
        os.close(os.open("/dev/null", os.O_RDONLY))
        os.dup2(gate.fileno(), 0)
        os.execv(program, ["program", *arguments])

    return witness(act)


def events(recorder: Recorder) -> list[Event]:
    return sorted((r.event for r in recorder.quiet()), key=lambda event: event.time)


def asked(found: list[Event]) -> list[str]:
    return [event.asked for event in found if isinstance(event, Open)]


def test_a_name_with_the_literal_begins_a_provisional_session(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """Its first record is the exec; what follows, of its children too, is of that session."""
    program = install(programs / "waits", place / literal / "bin" / "program")
    with runs(program, place, gate) as child:
        child.go()
        gate.open()
        child.finish()
        first, *rest = events(recorder)
    assert isinstance(first, Exec)
    assert (first.path, first.candidate, first.session) == (str(program), True, first.process)
    assert first.process.pid == child.pid
    assert asked(rest) == ["first", "child", "second"]
    assert {event.session for event in rest} == {first.session}
    assert {event.process.pid for event in rest} > {child.pid}
    assert all(event.provisional for event in (first, *rest))


def test_confirming_a_session_makes_what_follows_definite(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """Records before confirm are provisional, those after it are not, the child's included."""
    program = install(programs / "waits", place / literal)
    with runs(program, place, gate) as child:
        child.go()
        child.hear(1)
        before = events(recorder)
        recorder.probes.confirm(before[0].session)
        gate.open()
        child.finish()
        after = events(recorder)
    assert asked(before) == ["first"]
    assert asked(after) == ["child", "second"]
    assert all(event.provisional for event in before)
    assert not any(event.provisional for event in after)


def test_releasing_a_provisional_session_ends_it_for_all(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """The process and what it forks are nobody's again."""
    program = install(programs / "waits", place / literal)
    with runs(program, place, gate) as child:
        child.go()
        child.hear(1)
        before = events(recorder)
        recorder.probes.release(before[0].session)
        gate.open()
        child.finish()
    assert asked(before) == ["first"]
    assert events(recorder) == []


def test_a_released_process_may_become_an_agent_later(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """An exec with a literal begins a session anew, whatever became of the one before."""
    program = install(programs / "waits", place / literal)
    with runs(program, place, gate, "then", str(program)) as child:
        child.go()
        child.hear(1)
        recorder.probes.release(events(recorder)[0].session)
        gate.open()
        child.finish()
        first, *rest = events(recorder)
    assert isinstance(first, Exec)
    assert (first.process.pid, first.provisional) == (child.pid, True)
    assert asked(rest) == ["first", "child", "second"]


@pytest.mark.parametrize("name", ["{}x", "x{}", "{}.d", "{}-2"])
def test_a_name_without_the_literal_is_nobody(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate, name: str
) -> None:
    """A literal is a whole component: one that merely contains it begins nothing."""
    program = install(programs / "waits", place / name.format(literal))
    with runs(program, place, gate) as child:
        child.go()
        gate.open()
        child.finish()
    assert events(recorder) == []


def test_the_literal_counts_in_each_name(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """In the executable, in a link that was asked for, in a script, in its directory."""
    real = install(programs / "waits", place / "real")
    directory = place / literal
    directory.mkdir()
    (directory / "link").symlink_to(real)
    (directory / "script").write_text(f"#!{real}\n")
    (directory / "script").chmod(0o755)
    install(real, directory / "program")
    names: list[tuple[str | Path, Path]] = [
        (directory / "program", place),
        (directory / "link", place),
        (directory / "script", place),
        (f"{literal}/link", place),
        ("./script", directory),
    ]
    for name, cwd in names:
        assert begins(recorder, name, cwd, gate), name


def test_the_literal_counts_in_a_name_without_a_slash(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """A link of that very name, asked for from its directory, to an executable of another."""
    (place / literal).symlink_to(install(programs / "waits", place / "real"))
    assert begins(recorder, literal, place, gate)


def begins(recorder: Recorder, name: str | Path, cwd: Path, gate: Gate) -> bool:
    """Whether a session begins with this exec."""
    with runs(name, cwd, gate) as child:
        child.go()
        gate.open()
        child.finish()
    found = events(recorder)
    return bool(found) and found[0].session.pid == child.pid


def test_literals_are_replaced_not_added(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """After set_literals only the new ones count."""
    old = install(programs / "waits", place / literal)
    new = install(programs / "waits", place / f"new-{literal}")
    assert begins(recorder, old, place, gate)
    recorder.probes.set_literals([new.name.encode()])
    assert not begins(recorder, old, place, gate)
    assert begins(recorder, new, place, gate)
    recorder.probes.set_literals([])
    assert not begins(recorder, new, place, gate)


def test_the_longest_literal_has_63_bytes(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """A literal of 63 bytes is found; a component of 64 or more is never cut to look like one."""
    longest = literal.ljust(63, "x")
    recorder.probes.set_literals([longest.encode()])
    assert begins(recorder, install(programs / "waits", place / longest), place, gate)
    for more in ("y", "yyyy"):
        longer = install(programs / "waits", place / (longest + more))
        assert not begins(recorder, longer, place, gate)


def test_an_agent_within_a_session_keeps_the_session(
    recorder: Recorder, programs: Path, place: Path, literal: str, gate: Gate
) -> None:
    """The first tag sticks: the exec is a candidate, its session the one there was."""
    program = install(programs / "here", place / literal)

    def act() -> None:
        os.execv(program, ["x"])

    seen = recorder.record(act)
    (event,) = seen.execs
    assert (event.candidate, event.provisional, event.session) == (True, False, seen.session)


def test_without_identify_nobody_is_looked_at(programs: Path, place: Path, gate: Gate) -> None:
    """Probes that were not asked to identify leave untagged processes alone."""
    plain = Probes()
    try:
        plain.set_literals([b"waits"])
        assert not begins(Recorder(plain), programs / "waits", place, gate)
    finally:
        plain.close()
