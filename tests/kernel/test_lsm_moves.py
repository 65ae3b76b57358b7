"""What is moved, linked or made under BPF LSM opens no way to what is denied: nothing loses a
denied name, and nothing gets one below a directory that comes about.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from agentwatch.policy import compiler
from agentwatch.policy.subjects import AgentBits
from tests.kernel.law import Law
from tests.kernel.recording import Recording, tell, witness
from tests.kernel.test_lsm import failure
from tests.kernel.test_other_names import ruleset_of

pytestmark = [pytest.mark.lsm, pytest.mark.once]

SECRET = "the key"


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


def text(path: Path) -> str:
    """What it holds; the error's name where it cannot be read."""
    try:
        return path.read_text()
    except OSError as error:
        return type(error).__name__


@pytest.mark.parametrize("name", ["run/sock", "run"])
def test_a_denied_socket_is_not_moved_away(law: Law, name: str) -> None:
    """Neither it nor its directory: by its new name it could be connected to."""
    (law.place / "run").mkdir()
    bound = law.place / "run" / "sock"
    law.rule(("connect", f'{{unix: "{bound}"}}', "deny"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bound))
        server.listen()

        def to(path: Path) -> str:
            with socket.socket(socket.AF_UNIX) as made:
                return failure(lambda: made.connect(str(path)))

        def act() -> None:
            tell([to(bound), failure(lambda: os.rename(law.place / name, law.place / "else"))])
            (law.place / "beside").mkdir()
            tell(failure(lambda: os.rename(law.place / "beside", law.place / "besides")))

        assert law.record(act).told == (["EPERM", "EPERM"], "")
    assert bound.exists()


@pytest.mark.parametrize("what", ["file", "program", "directory"])
def test_a_denied_name_is_not_exchanged_for_a_free_one(law: Law, programs: Path, what: str) -> None:
    """Of one file that may not be read or run, which nothing knows by what it is."""
    at = law.place
    (at / "file").write_text(SECRET)
    (at / "program").write_bytes((programs / "canary").read_bytes())
    (at / "directory").mkdir()
    law.rule(
        ("read", f'{{path: ["{at}/file", "{at}/directory"]}}', "deny"),
        ("exec", f'{{path: "{at}/program"}}', "deny"),
    )

    def act() -> None:
        (at / "free").mkdir()
        exchange = ["python3", "-c", EXCHANGE, at / "free", at / what]
        tell(
            [
                failure(lambda: os.rename(at / what, at / "else")),
                what == "directory" or failure(lambda: os.link(at / what, at / "hard")) == "EPERM",
                subprocess.run(exchange, stdout=subprocess.DEVNULL).returncode,
            ]
        )

    assert law.record(act).told == (["EPERM", True, 1],)
    assert not (at / "else").exists()


EXCHANGE = """
import ctypes, os, sys
one, other = map(os.fsencode, sys.argv[1:])
raise SystemExit(ctypes.CDLL(None).renameat2(-100, one, -100, other, 2) != 0)
"""


@pytest.mark.parametrize("over", ["nothing", "empty", "link"])
def test_what_is_moved_into_place_brings_no_denied_name_about(law: Law, over: str) -> None:
    """A directory that was prepared elsewhere, or a link to it, where a change below is denied."""
    at = law.place
    (at / "x" / "user").mkdir(parents=True)
    (at / "x" / "user" / "evil").write_text("evil")
    law.rule(("change", f'{{path: "{at}/systemd/user/**"}}', "deny"))

    def act() -> None:
        if over == "empty":
            os.mkdir(at / "systemd")
        moved = "x"
        if over == "link":
            moved = "link"
            os.symlink(at / "x", at / "link")
        tell(failure(lambda: os.rename(at / moved, at / "systemd")))
        tell(failure(lambda: os.rename(at / "x", at / "y")))

    assert law.record(act).told == ("EPERM", "")
    assert not (at / "systemd" / "user").exists()


def test_no_link_leads_to_denied_names(law: Law) -> None:
    """`ln -s x systemd` where a change below systemd/user is denied; nor a hard link to a link."""
    at = law.place
    (at / "x" / "user").mkdir(parents=True)
    law.rule(("change", f'{{path: "{at}/systemd/user/**"}}', "deny"))

    def act() -> None:
        tell(failure(lambda: os.symlink(at / "x", at / "systemd")))
        tell(failure(lambda: os.symlink(at / "x", at / "other")))
        tell(failure(lambda: os.link(at / "other", at / "systemd", follow_symlinks=False)))

    assert law.record(act).told == ("EPERM", "", "EPERM")
    assert not (at / "systemd").is_symlink()


def test_saving_over_a_file_asks_nothing_of_what_is_below_it(law: Law) -> None:
    """As editors do, git and npm: a file is written beside another, and takes its name."""
    at = law.place
    (at / "src").mkdir()
    law.rule(
        ("change", f'{{path: "{at}/**/.env/**"}}', "deny"),
        ("change", f'{{path: "{at}/config/hooks/**"}}', "deny"),
    )

    def act() -> None:
        told = []
        for name in ("src/main.c", "config", "src/x.lock"):
            (at / "src" / "new").write_text("new")
            told.append(failure(lambda n=name: os.rename(at / "src" / "new", at / n)))
            (at / "src" / "new").write_text("newer")
            told.append(failure(lambda n=name: os.rename(at / "src" / "new", at / n)))
        tell(told)

    assert law.record(act).told == ([""] * 6,)
    assert text(at / "src" / "main.c") == "newer"


def by_default(law: Law, kind: str, act: Callable[[], object]) -> Recording:
    """What a witness does that may use `allowed/**` alone, of a kind."""
    stub = f"stub-{law.place.name}"
    (law.place / "law.yaml").write_text(
        f"schema: agentwatch/v1\nagents: [{{id: {stub}, title: S, exec: ['**/bin/{stub}']}}]\n"
        f"defaults: {{{stub}: {{{kind}: deny}}}}\n"
        f"rules: [{{id: test.allowed, title: A, on: {kind}, match:"
        f" {{path: '{law.place}/allowed/**'}}, action: allow, because: B, tests: []}}]\n"
    )
    law.generation += 1
    compiled = compiler.compile(
        ruleset_of(law),
        mode="enforce",
        without_hook="kill",
        agents=AgentBits(),
        prevents=True,
        lsm=True,
        generation=law.generation,
        size=law.probes.policy_room,
    )
    bits = compiled.agents.mask((stub,))
    law.probes.put_in_force(compiled.image)
    with witness(act) as child:
        session = law.recorder.tag(child)
        law.probes.mark(session.start, law.generation, bits, 0)
        assert law.probes.set_session(session, bits, None)
        child.go()
        child.finish()
        return law.recorder.recording(child)


@pytest.mark.parametrize("kind", ["read", "exec"])
def test_what_is_denied_by_default_is_not_put_where_it_is_allowed(law: Law, kind: str) -> None:
    """By a link, a rename, or with its directory."""
    for name in ("allowed", "own"):
        (law.place / name).mkdir()
    key, allowed = law.place / "own" / "key", law.place / "allowed"
    key.write_text(SECRET)

    def act() -> None:
        tell(
            [
                failure(lambda: os.link(key, allowed / "key")),
                failure(lambda: os.rename(key, allowed / "key")),
                failure(lambda: os.rename(key.parent, allowed / "own")),
            ]
        )

    assert by_default(law, kind, act).told == (["EPERM"] * 3,)
    assert key.exists()


@pytest.mark.parametrize("kind", ["read", "exec"])
def test_a_default_leaves_work_where_it_belongs(law: Law, kind: str) -> None:
    """Names are exchanged among those that are allowed, and among those that are not."""
    for name in ("allowed", "own"):
        (law.place / name / "dir").mkdir(parents=True)
    (law.place / "allowed" / "one").write_text("one")
    (law.place / "own" / "one").write_text("one")

    def act() -> None:
        for name in ("allowed", "own"):
            at = law.place / name
            tell(
                [
                    failure(lambda a=at: os.rename(a / "one", a / "two")),
                    failure(lambda a=at: os.link(a / "two", a / "three")),
                    failure(lambda a=at: os.rename(a / "dir", a / "other")),
                ]
            )

    assert by_default(law, kind, act).told == ([""] * 3, [""] * 3)
