"""Under BPF LSM other names lead to nothing that is denied: not those an agent makes in namespaces
of its own, and not links and layers of the same inode.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch.events import Change, Connect
from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law, spawn
from tests.kernel.recording import Recording, tell, witness
from tests.kernel.test_lsm import failure
from tests.kernel.test_names import bind, leave_for_own_namespaces
from tests.kernel.test_other_names import WAYS, Way, become_nobody_with_namespaces, denied, know

__all__ = ["denied"]  # a fixture
pytestmark = [pytest.mark.lsm, pytest.mark.once]

SECRET = "the key"


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


@pytest.fixture
def law(probes: Probes, place: Path) -> Iterator[Law]:
    """No rules yet; nothing is in force or known afterwards."""
    yield Law(probes, place)
    probes.set_known(())
    probes.withdraw()


def read(name: str | bytes | Path) -> list[str]:
    """The error of opening a file, and what could be read of it."""
    found = ""

    def act() -> None:
        nonlocal found
        found = os.pread(os.open(name, os.O_RDONLY), 99, 0).decode()

    return [failure(act), found]


def reading(way: Way, place: Path) -> Callable[[], None]:
    """What a witness does: it goes its way, tells what it could read, and that it lives."""

    def act() -> None:
        become_nobody_with_namespaces()
        found = ["EPERM", ""]
        with suppress(PermissionError):  # of the way itself
            found = read(way(place))
        tell(found)
        tell("alive")

    return act


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_an_agents_own_leads_to_a_denied_file(
    way: Way, law: Law, place: Path, denied: Path
) -> None:
    """Without the rule each of them works; with it each is EPERM, no byte, and the agent lives."""
    law.rule(("read", f'{{path: "{place}/elsewhere"}}', "deny"))
    assert law.record(reading(way, place)).told == (["", SECRET], "alive")
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "deny"))
    know(law)
    seen = law.record(reading(way, place))
    assert seen.told == (["EPERM", ""], "alive")
    assert any(str(denied) in (e.path, e.view, e.known) for e in seen.opens if e.refused) or any(
        denied.is_relative_to(e.source) for e in seen.mounts if e.refused
    )


@pytest.mark.parametrize("before", [True, False])
def test_a_hard_link_to_a_denied_file_is_denied(
    before: bool, law: Law, place: Path, denied: Path
) -> None:
    """Made before the rules are loaded, or after by somebody else; the record has both names."""
    link = place / "own" / "innocent"
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "deny"))
    if before:
        os.link(denied, link)
        know(law)
    else:
        know(law)
        os.link(denied, link)

    def act() -> None:
        tell(read(link))
        tell(failure(lambda: os.rename(link, place / "own" / "renamed")))
        tell(failure(lambda: os.link(link, place / "own" / "linked")))

    seen = law.record(act)
    assert seen.told == (["EPERM", ""], "EPERM", "EPERM")
    (event,) = (e for e in seen.opens if e.refused)
    assert (event.path, event.known, event.view) == (str(link), str(denied), "")


def test_a_name_that_only_the_task_sees_is_denied(law: Law, place: Path, denied: Path) -> None:
    """Below a root of its own the file has the name of a rule; the record has both names."""
    jail, name = place / "own", f"/etc/secret-{place.name}"
    (jail / "etc").mkdir()
    Path(f"{jail}{name}").write_text("secret")
    law.rule(("read", f'{{path: "{name}"}}', "deny"))

    def act() -> None:
        os.chroot(jail)
        tell(read(name))

    seen = law.record(act)
    assert seen.told == (["EPERM", ""],)
    (event,) = (e for e in seen.opens if e.refused)
    assert (event.path, event.view) == (f"{jail}{name}", name)


def test_a_name_of_the_tasks_own_is_no_exception(law: Law, place: Path, denied: Path) -> None:
    """`unless` names a directory, and the agent mounts what is denied there."""
    law.rule(("read", f'{{path: "{place}/**/key"}}', "deny", f'{{path: "{place}/allowed/**"}}'))
    (place / "allowed" / "key").write_text("allowed")

    def act() -> None:
        become_nobody_with_namespaces()
        tell(read(place / "allowed" / "key"))
        bind(place / "denied", place / "allowed")
        tell(read(place / "allowed" / "key"))

    assert law.record(act).told == (["", "allowed"], ["EPERM", ""])


@pytest.mark.parametrize("linked", [True, False])
def test_a_denied_program_does_not_run_by_another_name(
    linked: bool, law: Law, programs: Path, place: Path, denied: Path
) -> None:
    """By a hard link made after it was found, or by a bind mount; the record has both names."""
    stub, other, made = place / "denied" / "stub", place / "bin" / "other", place / "made"
    stub.write_bytes((programs / "canary").read_bytes())
    stub.chmod(0o755)
    law.rule(("exec", f'{{path: "{stub}"}}', "deny"))
    know(law)
    if linked:
        os.link(stub, other)
    else:
        other.write_bytes(b"")

    def act() -> None:
        if not linked:
            leave_for_own_namespaces()
            bind(stub, other)
        tell(failure(lambda: os.execv(other, [str(other), str(made)])))
        tell(spawn("/bin/true"))

    seen = law.record(act)
    assert seen.told == ("EPERM", 0)
    assert not made.exists()
    (event,) = (e for e in seen.execs if e.refused)
    expected = (str(other), "", str(stub)) if linked else (str(stub), str(other), "")
    assert (event.path, event.view, event.known) == expected


def refused_changes(seen: Recording) -> list[tuple[str, str, str, str]]:
    found = [record.event for record in seen.records]
    return [(e.op, e.path, e.view, e.known) for e in found if isinstance(e, Change) and e.refused]


def test_a_change_is_denied_by_the_name_that_the_task_sees(
    law: Law, place: Path, denied: Path
) -> None:
    """Of what is there and of what is to be made; and what is moved takes nothing denied along."""
    jail, kept = place / "own", f"kept-{place.name}"
    (jail / kept).mkdir()
    (jail / kept / "old").write_text("old")
    law.rule(("change", f'{{path: "/{kept}/**"}}', "deny"))

    def act() -> None:
        os.chroot(jail)
        tell(
            [
                failure(lambda: os.unlink(f"/{kept}/old")),
                failure(lambda: os.truncate(f"/{kept}/old", 0)),
                failure(lambda: os.chmod(f"/{kept}/old", 0o777)),
                failure(lambda: os.close(os.open(f"/{kept}/new", os.O_CREAT | os.O_WRONLY))),
                failure(lambda: os.rename(f"/{kept}/old", "/out")),
                failure(lambda: os.rename(f"/{kept}", "/moved")),
            ]
        )
        tell([failure(lambda: os.mkdir("/beside")), failure(lambda: os.rmdir("/beside"))])

    seen = law.record(act)
    assert seen.told == (["EPERM"] * 6, ["", ""])
    assert [path.name for path in (jail / kept).iterdir()] == ["old"]
    assert (jail / kept / "old").read_text() == "old"
    old, new = f"/{kept}/old", f"/{kept}/new"
    assert refused_changes(seen) == [
        ("delete", f"{jail}{old}", old, ""),
        ("truncate", f"{jail}{old}", old, ""),
        ("chmod", f"{jail}{old}", old, ""),
        ("create", f"{jail}{new}", new, ""),
        ("rename", f"{jail}{old}", old, ""),
        ("rename", f"{jail}/{kept}", f"/{kept}", ""),
    ]


def test_a_change_by_a_hard_link_is_one_of_the_denied_file(
    law: Law, place: Path, denied: Path
) -> None:
    """Its text, its mode and its names; a file beside it may be changed."""
    link, beside = place / "own" / "innocent", place / "own" / "beside"
    beside.write_text("beside")
    os.link(denied, link)
    law.rule(("change", f'{{path: "{denied}"}}', "deny"))
    know(law)

    def change(path: Path) -> list[str]:
        return [
            failure(lambda: os.close(os.open(path, os.O_WRONLY))),
            failure(lambda: os.truncate(path, 1)),
            failure(lambda: os.chmod(path, 0o640)),
            failure(lambda: os.unlink(path)),
        ]

    def act() -> None:
        tell(change(link))
        tell(change(beside))

    seen = law.record(act)
    assert seen.told == (["EPERM"] * 4, [""] * 4)
    assert (denied.read_text(), denied.stat().st_mode & 0o777) == (SECRET, 0o644)
    assert refused_changes(seen) == [
        (op, str(link), "", str(denied)) for op in ("truncate", "chmod", "delete")
    ]


def test_a_file_without_a_name_may_be_changed(law: Law, place: Path) -> None:
    """ftruncate of a memfd is about no file that a rule could name."""
    law.rule(("change", f'{{path: "{place}/**"}}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.ftruncate(os.memfd_create("scratch"), 10)))

    assert law.record(act).told == ("",)


def test_a_socket_is_denied_by_the_name_that_the_task_sees(
    law: Law, place: Path, denied: Path
) -> None:
    """Bound below a root of its own; the record has both names."""
    jail, name = place / "own", f"/sock-{place.name}"
    law.rule(("connect", f'{{unix: "{name}"}}', "deny"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{jail}{name}")
        server.listen()

        def act() -> None:
            os.chroot(jail)
            tell(failure(lambda: socket.socket(socket.AF_UNIX).connect(name)))

        with witness(act) as child:
            law.judge(child)
            child.go()
            child.finish()
            seen = law.recorder.recording(child)
    assert seen.told == ("EPERM",)
    found = [record.event for record in seen.records]
    (event,) = (e for e in found if isinstance(e, Connect) and e.refused)
    assert (event.unix, event.view) == (f"{jail}{name}", name)
