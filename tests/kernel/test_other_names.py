"""Other names of a file that rules are about change nothing: those an agent makes in namespaces of
its own, and links and layers that lead to the same inode.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Open
from agentwatch.kernel.probes import Probes
from agentwatch.known import File, Found, search
from agentwatch.mounts import Mounts
from agentwatch.policy import compiler, patterns
from agentwatch.policy.subjects import AgentBits
from agentwatch.rules.load import load
from agentwatch.rules.model import Ruleset
from agentwatch.sinks.frames import Verdict
from tests.kernel.launching import Launcher, unwatched
from tests.kernel.law import KILLED, Law
from tests.kernel.recording import Recorder, call, tell, witness
from tests.kernel.test_names import bind, leave_for_own_namespaces, must

pytestmark = pytest.mark.root

NOBODY = 65534
OPEN_TREE, MOVE_MOUNT, PIVOT_ROOT = 428, 429, 155
AT_FDCWD, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 1, 4
PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)

Way = Callable[[Path], str | bytes]
"""What an agent does to get at `denied/key` below a place; where it reads it then."""


@pytest.fixture
def law(probes: Probes, place: Path) -> Iterator[Law]:
    """No rules yet; nothing is in force or known afterwards."""
    yield Law(probes, place)
    probes.set_known(())
    probes.withdraw()


@pytest.fixture
def denied(place: Path) -> Path:
    """`denied/key`, readable by everybody, and room for everybody's own."""
    (place / "denied").mkdir()
    key = place / "denied" / "key"
    key.write_text("the key")
    key.chmod(0o644)
    for name in ("allowed", "own", "bin"):
        (place / name).mkdir()
        (place / name).chmod(0o777)
    (place / "allowed" / "harmless").write_text("harmless")
    return key


def ruleset_of(law: Law) -> Ruleset:
    return load([law.place / "law.yaml"], homes=("/root",), patterns=patterns)


def know(law: Law) -> Found:
    """Has the files that the rules in force name looked for, as the daemon has."""
    found = search(ruleset_of(law), Mounts.read())
    law.probes.set_known(found.files)
    return found


def become_nobody_with_namespaces() -> None:
    """An ordinary user in a user and mount namespace of its own: there it may mount."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    must(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
    leave_for_own_namespaces_as(NOBODY)


def leave_for_own_namespaces_as(user: int) -> None:
    must(_libc.unshare(0x10000000))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {user} 1")
    leave_for_own_namespaces(0x00020000)


def mount(kind: bytes, target: Path, options: str = "") -> None:
    must(_libc.mount(b"none", os.fsencode(target), kind, 0, options.encode() or None))


def by_bind(place: Path) -> str:
    bind(place / "denied", place / "own")
    return f"{place}/own/key"


def by_bind_over_an_allowed_name(place: Path) -> str:
    bind(place / "denied" / "key", place / "allowed" / "harmless")
    return f"{place}/allowed/harmless"


def mount_tree(tree: int, onto: Path) -> None:
    """Mounts what open_tree gave. Raises OSError."""
    name = bytes(onto) + b"\0"
    if call(MOVE_MOUNT, tree, b"\0", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH):
        raise OSError(ctypes.get_errno(), "move_mount")


def by_moved_tree(place: Path) -> str:
    tree = call(OPEN_TREE, AT_FDCWD, bytes(place / "denied") + b"\0", OPEN_TREE_CLONE)
    mount_tree(tree, place / "own")
    return f"{place}/own/key"


def by_tree_that_is_mounted_nowhere(place: Path) -> str:
    tree = call(OPEN_TREE, AT_FDCWD, bytes(place / "denied") + b"\0", OPEN_TREE_CLONE)
    assert tree >= 0
    os.fchdir(tree)
    return "key"


def by_chroot(place: Path) -> str:
    os.chroot(place / "denied")
    return "/key"


def by_pivot(place: Path) -> str:
    bind(place / "denied", place / "own")
    os.chdir(place / "own")
    assert call(PIVOT_ROOT, b".\0", b".\0") == 0
    os.chroot(".")
    return "/key"


def by_own_root(place: Path) -> str:
    return f"/proc/self/root{place}/denied/key"


def by_rename_of_the_view(place: Path) -> str:
    """A tmpfs over the place, with the file below it under a name of choice."""
    tree = call(OPEN_TREE, AT_FDCWD, bytes(place / "denied") + b"\0", OPEN_TREE_CLONE)
    mount(b"tmpfs", place)
    (place / "mine").mkdir()
    mount_tree(tree, place / "mine")
    return f"{place}/mine/key"


def overlaid(place: Path, lower: Path, name: str) -> Path:
    mount(b"tmpfs", place / "own") if not os.path.ismount(place / "own") else None
    for part in ("upper", "work", "merged"):
        (place / "own" / f"{name}-{part}").mkdir()
    own = place / "own" / name
    mount(
        b"overlay",
        Path(f"{own}-merged"),
        f"lowerdir={lower},upperdir={own}-upper,workdir={own}-work,userxattr",
    )
    return Path(f"{own}-merged")


def by_overlay(place: Path) -> str:
    return f"{overlaid(place, place / 'denied', 'one')}/key"


def by_overlay_of_an_overlay(place: Path) -> str:
    return f"{overlaid(place, overlaid(place, place / 'denied', 'one'), 'two')}/key"


WAYS = (
    by_bind,
    by_bind_over_an_allowed_name,
    by_moved_tree,
    by_tree_that_is_mounted_nowhere,
    by_chroot,
    by_pivot,
    by_own_root,
    by_rename_of_the_view,
    by_overlay,
    by_overlay_of_an_overlay,
)


def reading(way: Way, place: Path) -> Callable[[], None]:
    """What a witness does: it goes its way, says so, and tells what it could read."""

    def act() -> None:
        become_nobody_with_namespaces()
        name = way(place)
        tell("there")
        tell(os.pread(os.open(name, os.O_RDONLY), 99, 0).decode())

    return act


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_an_agents_own_leads_to_a_denied_file(
    way: Way, law: Law, place: Path, denied: Path
) -> None:
    """Without the rule each of them works; with it nothing is read."""
    law.rule(("read", f'{{path: "{place}/elsewhere"}}', "kill"))
    assert law.record(reading(way, place)).told == ("there", "the key")
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "kill"))
    assert [file.name for file in know(law).files] == [os.fsencode(denied)]
    seen = law.record(reading(way, place))
    assert (seen.told, seen.status) == (("there",), KILLED)


@pytest.mark.parametrize("before", [True, False])
def test_a_hard_link_to_a_denied_file_is_denied(
    before: bool, law: Law, place: Path, denied: Path
) -> None:
    """Made before the rules are loaded, or after; its record has both names."""
    link = place / "own" / "innocent"
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "kill"))
    if before:
        os.link(denied, link)
        know(law)
    else:
        know(law)
        os.link(denied, link)

    def act() -> None:
        tell(os.pread(os.open(link, os.O_RDONLY), 99, 0).decode())

    seen = law.record(act)
    assert (seen.told, seen.status) == ((), KILLED)
    (event,) = seen.opens
    assert (event.path, event.known, event.view) == (str(link), str(denied), "")


def test_files_that_are_known_are_counted(law: Law) -> None:
    """As the map has them, for the metrics: by whoever put them there, and by who finds them."""
    probes, known = law.probes, law.probes._policies._known

    def counted() -> int:
        assert probes.room()["known_files"][0] == len(set(known.keys(abi.FILE_KEY.size)))
        return probes.room()["known_files"][0]

    for number in (3, 5, 0):
        probes.set_known(File(1, inode, None, b"/some/file") for inode in range(number))
        assert counted() == number


def test_another_file_that_gets_the_number_of_a_known_one_is_not_that(
    law: Law, place: Path, denied: Path
) -> None:
    """The generation of the inode tells them apart, where the file system has one."""
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "kill"))
    (file,) = know(law).files
    assert file.generation is not None
    other = place / "own" / "other"
    other.write_text("other")
    found = os.stat(other)
    dev = os.major(found.st_dev) << 20 | os.minor(found.st_dev)

    def act() -> None:
        tell(os.pread(os.open(other, os.O_RDONLY), 99, 0).decode())

    for generation, told in ((file.generation, ("other",)), (None, ())):
        stale = type(file)(dev, found.st_ino, generation, file.name)
        law.probes.set_known((stale,))
        assert law.record(act).told == told


def test_a_name_that_only_the_task_sees_is_restricted(law: Law, place: Path, denied: Path) -> None:
    """Below a root of its own the file has the name of a rule; the record has both names."""
    jail = place / "own"
    (jail / "etc").mkdir()
    (jail / "etc" / f"secret-{place.name}").write_text("secret")
    name = f"/etc/secret-{place.name}"
    law.rule(("read", f'{{path: "{name}"}}', "kill"))

    def act() -> None:
        os.chroot(jail)
        tell(os.pread(os.open(name, os.O_RDONLY), 99, 0).decode())

    seen = law.record(act)
    assert (seen.told, seen.status) == ((), KILLED)
    event = seen.opened(name)
    assert (event.path, event.view) == (f"{jail}{name}", name)


def test_a_name_of_the_tasks_own_is_no_exception(law: Law, place: Path, denied: Path) -> None:
    """`unless` names a directory, and the agent mounts what is denied there."""
    law.rule(("read", f'{{path: "{place}/**/key"}}', "kill", f'{{path: "{place}/allowed/**"}}'))
    (place / "allowed" / "key").write_text("allowed")

    def honest() -> None:
        tell(os.pread(os.open(place / "allowed" / "key", os.O_RDONLY), 99, 0).decode())

    def act() -> None:
        become_nobody_with_namespaces()
        honest()
        bind(place / "denied", place / "allowed")
        tell("there")
        honest()

    assert law.record(honest).told == ("allowed",)
    seen = law.record(act)
    assert (seen.told, seen.status) == (("allowed", "there"), KILLED)


def test_a_name_of_the_tasks_own_is_not_allowed(probes: Probes, place: Path, denied: Path) -> None:
    """Of what is denied by default, only files that canonically have an allowed name are let be."""
    law = Law(probes, place)
    stub = f"stub-{place.name}"
    (place / "law.yaml").write_text(
        f"schema: agentwatch/v1\nagents: [{{id: {stub}, title: S, exec: ['**/bin/{stub}']}}]\n"
        f"defaults: {{{stub}: {{read: deny}}}}\n"
        f"rules: [{{id: test.allowed, title: A, on: read, match: {{path: '{place}/allowed/**'}},"
        f" action: allow, because: B, tests: []}}]\n"
    )
    compiled = compiler.compile(
        ruleset_of(law),
        mode="enforce",
        without_hook="kill",
        agents=AgentBits(),
        prevents=True,
        generation=1,
        size=probes.policy_room,
    )
    bits = compiled.agents.mask((stub,))
    mine = place / "allowed" / "harmless"

    def act(mounts: bool) -> None:
        if mounts:
            become_nobody_with_namespaces()
            bind(denied, mine)
        tell("there")
        tell(os.pread(os.open(mine, os.O_RDONLY), 99, 0).decode())

    probes.put_in_force(compiled.image)
    try:
        for mounts, told in ((False, ("there", "harmless")), (True, ("there",))):
            with witness(lambda mounts=mounts: act(mounts)) as child:
                session = law.recorder.tag(child)
                probes.mark(session.start, 1, bits, 0)
                assert probes.set_session(session, bits, None)
                child.go()
                child.finish()
                assert child.told == told
    finally:
        probes.withdraw()


def test_namespaces_that_rename_nothing_are_not_seen_as_such(
    law: Law, place: Path, denied: Path
) -> None:
    """In a mount namespace of its own a file's name is the same, and its exceptions hold."""
    law.rule(("read", f'{{path: "{place}/**"}}', "kill", f'{{path: "{place}/allowed/**"}}'))
    know(law)

    def act() -> None:
        become_nobody_with_namespaces()
        tell(os.pread(os.open(place / "allowed" / "harmless", os.O_RDONLY), 99, 0).decode())

    seen = law.record(act)
    assert seen.told == ("harmless",)
    event = seen.opened(str(place / "allowed" / "harmless"))
    assert (event.view, event.known) == ("", "")


def test_files_that_no_rule_names_are_read_in_any_namespace(
    law: Law, place: Path, denied: Path
) -> None:
    """Their records have the name that the task sees beside the canonical one."""
    law.rule(("read", f'{{path: "{place}/denied/**"}}', "kill"))
    know(law)

    def act() -> None:
        become_nobody_with_namespaces()
        bind(place / "allowed", place / "own")
        tell(os.pread(os.open(place / "own" / "harmless", os.O_RDONLY), 99, 0).decode())

    seen = law.record(act)
    assert seen.told == ("harmless",)
    event = seen.opened(f"{place}/own/harmless")
    assert (event.path, event.view) == (f"{place}/allowed/harmless", f"{place}/own/harmless")


@pytest.mark.parametrize("linked", [True, False])
def test_a_denied_program_does_not_run_by_another_name(
    linked: bool, law: Law, programs: Path, place: Path, denied: Path
) -> None:
    """By a hard link made after it was found, or by a bind mount; the record has both names."""
    stub = place / "denied" / "stub"
    stub.write_bytes((programs / "here").read_bytes())
    stub.chmod(0o755)
    other = place / "bin" / "other"
    law.rule(("exec", f'{{path: "{stub}"}}', "kill"))
    know(law)
    if linked:
        os.link(stub, other)
    else:
        other.write_bytes(b"")

    def act() -> None:
        if not linked:
            leave_for_own_namespaces()
            bind(stub, other)
        os.execv(other, [str(other)])

    seen = law.record(act)
    assert (seen.told, seen.status) == ((), KILLED)
    (event,) = (one for one in seen.execs if one.result == 0)
    expected = (str(other), "", str(stub)) if linked else (str(stub), str(other), "")
    assert (event.path, event.view, event.known) == expected


def test_a_change_by_a_descriptor_has_every_name_of_its_file(
    law: Law, place: Path, denied: Path
) -> None:
    """Of a hard link in a root of its own: canonical, as it is seen there, and as it is known."""
    os.link(denied, place / "own" / "innocent")
    law.rule(("read", f'{{path: "{denied}"}}', "kill"))
    know(law)

    def act() -> None:
        held = os.open(place / "own" / "innocent", os.O_WRONLY)
        os.chroot(place / "own")
        os.fchmod(held, 0o640)

    (event,) = law.record(act).changes
    assert (event.op, event.path) == ("chmod", f"{place}/own/innocent")
    assert (event.view, event.known) == ("/innocent", str(denied))


def test_more_mounts_than_are_walked_are_unresolved(
    recorder: Recorder, place: Path, denied: Path
) -> None:
    """Thousands upon each other hide no name: what is not known is treated as the worst."""

    def act() -> None:
        leave_for_own_namespaces()
        for _ in range(2700):
            bind(place / "own", place / "own")
        os.open(place / "own", os.O_RDONLY)

    seen = recorder.record(act)
    event = seen.opened(str(place / "own"))
    assert event.path == str(place / "own")
    assert event.unresolved == frozenset({"path"})


def test_a_run_knows_the_files_that_its_rules_name(agentwatch: Path, place: Path) -> None:
    """It finds them beside the loop; what it killed for and under which names is in its journal."""
    launch = Launcher(agentwatch, place)
    os.link(place / "key", place / "link")
    outcome = launch("sh", "-c", f"while :; do cat {place}/link || exit; sleep 0.1; done")
    assert outcome.code == 128 + KILLED
    (decided,) = outcome.frames(Verdict)
    assert (decided.rule, decided.by, decided.outcome) == ("test.key", "kernel", "killed")
    last = [event for event in outcome.events(Open) if event.path == f"{place}/link"][-1]
    assert last.known == f"{place}/key"
    shown = unwatched(str(agentwatch), "events", "--journal", str(launch.journal))
    assert f"{place}/link  also {place}/key" in shown
    told = unwatched(str(agentwatch), "events", "-o", "json", "--journal", str(launch.journal))
    assert f'"known":"{place}/key"' in told
