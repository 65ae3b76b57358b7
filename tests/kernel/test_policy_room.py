"""What the kernel has no room for is never let through: the engine is asked, or it is refused."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.errors import KernelError
from agentwatch.events import ProcessKey
from agentwatch.kernel.libbpf import possible_cpus
from agentwatch.kernel.probes import Probes
from agentwatch.mounts import Mounts
from tests.kernel.law import KILLED, NONE, Law, reads
from tests.kernel.recording import Recording, tell, witness
from tests.kernel.test_policy import attempts, untouched

pytestmark = pytest.mark.root


@pytest.fixture
def law(probes: Probes, place: Path) -> Iterator[Law]:
    """No rules yet; afterwards the probes know the host's mounts again, and no rules."""
    yield Law(probes, place)
    probes.withdraw()
    probes.set_mounts(Mounts.read())


def answers(seen: Recording, path: Path) -> set[tuple[int, int]]:
    """(generation, verdict) of every open of a file, whatever is written in front of its name."""
    return {(e.generation, e.verdict) for e in seen.opens if e.path.endswith(str(path))}


# mounts


def test_on_a_file_system_that_is_not_known_the_engine_looks(law: Law) -> None:
    """A rule that begins with `/` cannot be decided by the kernel there, and is not dropped; one
    about the name that the task has for the file can.
    """
    key = law.place / "key"
    key.write_text("x")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))
    assert law.record(lambda: tell(reads(key))).told == (-KILLED,)
    law.probes.set_mounts(Mounts({}))
    assert law.record(lambda: tell(reads(key))).told == (-KILLED,)
    law.rule(("read", f'{{path: "{law.place}/elsewhere"}}', "kill"))
    seen = law.record(lambda: tell(reads(key)))
    assert answers(seen, key) == {(law.generation, abi.VERDICT_LOOK)}


def test_file_systems_without_room_are_counted_and_looked_at(law: Law) -> None:
    """One more than the table has room for: refused, counted, and the engine's to judge."""
    key = law.place / "key"
    key.write_text("x")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))
    here = os.stat(key).st_dev
    full = dict.fromkeys(range(1 << 31, (1 << 31) + 4096), ((b"", b"/elsewhere"),))
    law.probes.set_mounts(Mounts(full))
    before = law.probes.no_room()["mount"]
    number = os.major(here) << 20 | os.minor(here)
    law.probes.set_mounts(Mounts({**full, number: ((b"", b""),)}))
    assert law.probes.no_room()["mount"] == before + 1
    seen = law.record(lambda: tell(reads(key)))
    assert answers(seen, key) == {(law.generation, abi.VERDICT_LOOK)}


# projects


def refused(law: Law, key: Path, project: str) -> Recording:
    """What a session did whose project was refused by the kernel."""
    with witness(lambda: tell(reads(key))) as child:
        session = law.recorder.tag(child)
        law.probes.mark(session.start, law.generation, NONE, 0)
        before = law.probes.no_room()["project"]
        with pytest.raises(KernelError, match="no room for the project"):
            law.probes.set_session(session, NONE, project)
        assert law.probes.no_room()["project"] == before + 1
        child.go()
        child.finish()
        return law.recorder.recording(child)


@pytest.mark.parametrize("action", ["kill", "allow"])
def test_a_session_whose_project_is_too_long_is_the_engines(law: Law, action: str) -> None:
    """Neither does a rule on its project vanish, nor what its project lets it do."""
    deep = law.place / "/".join(["d" * 240] * 5)
    deep.mkdir(parents=True)
    key = deep / "key"
    key.write_text("x")
    rules = {
        "kill": ("read", '{path: "$project/key"}', "kill"),
        "allow": ("read", '{path: "/**/key"}', "kill", '{path: "$project/**"}'),
    }
    law.rule(rules[action])
    os.chdir(deep)
    try:
        seen = refused(law, key, str(deep))
    finally:
        os.chdir("/")
    assert seen.told == (0,)
    assert answers(seen, key) == {(0, 0)}


@contextmanager
def filled(probes: Probes) -> Iterator[None]:
    """The table of projects is, with sessions that nobody has."""
    projects = probes._object.map("projects")
    value = abi.project(b"/somewhere")
    assert value is not None
    keys = [
        abi.session_key(ProcessKey(1, (1 << 63) + number)) for number in range(projects.max_entries)
    ]
    added = []
    try:
        for key in keys:
            try:
                projects.update(key, value)
            except OSError:  # those that real sessions have
                break
            added.append(key)
        yield
    finally:
        for key in added:
            projects.delete(key)


def test_a_session_whose_project_found_no_room_is_the_engines(law: Law) -> None:
    """As long as the table is full; one that begins later is the kernel's again."""
    key = law.place / "key"
    key.write_text("x")
    law.rule(("read", '{path: "$project/key"}', "kill"))
    with filled(law.probes):
        seen = refused(law, key, str(law.place))
    assert seen.told == (0,)
    assert answers(seen, key) == {(0, 0)}
    assert law.record(lambda: tell(reads(key)), str(law.place)).told == (-KILLED,)


# connections


@contextmanager
def no_piece_left(probes: Probes) -> Iterator[None]:
    """Somebody else is judging on every CPU, as often as there is memory for."""
    pieces = probes._object.per_cpu_map("pieces")
    for number in range(pieces.max_entries):
        empty = bytearray(pieces.size * possible_cpus())
        for cpu in range(possible_cpus()):
            empty[cpu * pieces.size] = 1
        pieces.update(number.to_bytes(4, "little"), bytes(empty))
    try:
        yield
    finally:
        for number in range(pieces.max_entries):
            pieces.update(number.to_bytes(4, "little"), bytes(pieces.size * possible_cpus()))


def test_a_connection_that_cannot_be_judged_is_refused(law: Law) -> None:
    """And counted. Of a session that nobody judges, and without a policy, it comes about."""
    assert law.probes.attach_connect()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = server.getsockname()
        law.rule(("connect", "{addr: 192.0.2.1}", "deny"))
        before = law.probes.no_room()["judging"]
        with no_piece_left(law.probes):
            assert law.record(lambda: tell(attempts(address))).told == (errno.EPERM,)
            assert untouched(server)
            assert law.probes.no_room()["judging"] == before + 1
            assert law.recorder.record(lambda: tell(attempts(address))).told == (0,)
            law.probes.withdraw()
            assert law.record(lambda: tell(attempts(address))).told == (0,)
        assert law.probes.no_room()["judging"] == before + 1
        law.rule(("connect", "{addr: 192.0.2.1}", "deny"))
        assert law.record(lambda: tell(attempts(address))).told == (0,)
