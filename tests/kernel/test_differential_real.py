"""Real operations under generated rules: what the kernel wrote into each record is what the Python
walker says of the event.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch.events import Connect, Exec, Open
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Actor
from agentwatch.lineage import Image as Program
from agentwatch.mounts import Mounts
from agentwatch.policy.image import Image
from agentwatch.policy.subjects import OF_NONE, AgentBits, subject_of
from agentwatch.rules.model import Condition, Match, Rule, Ruleset
from tests.kernel.recording import Recorder, witness
from tests.rules.generating import HERE, PROJECT, Generator, packs
from tests.rules.judging import compiled_of
from tests.rules.reference_matcher import path_covers

pytestmark = pytest.mark.root

OPENS, EXECS, CONNECTS = 300, 60, 60
NETWORKS = ("127.0.0.0/9", "127.1.2.0/24", "127.9.9.9", "0.0.0.0/0", "::1/128", "::/0")
PORTS = ("53", "1000-2000", "65535", "1-1023")


def made_rules(generator: Generator, place: Path) -> Ruleset:
    """Rules that only have the engine look, so that one process can do everything."""
    rng = generator.rng
    rules = []
    for number in range(40):
        kinds = rng.choice((("read",), ("change",), ("open",), ("exec",), ("connect",)))
        if kinds == ("exec",):
            conditions = [generator.condition("args")]
        elif kinds == ("connect",):
            field = rng.choice(("addr", "port"))
            values = rng.sample(NETWORKS if field == "addr" else PORTS, 1)
            modifiers = frozenset({"cidr"}) if field == "addr" else frozenset()
            conditions = [Condition(field, tuple(values), modifiers, HERE)]
        else:
            conditions = [Condition("path", (telling_glob(generator),), frozenset(), HERE)]
        match = Match(tuple(conditions))
        rules.append(Rule(f"r{number:02}", kinds, match, "alert", HERE))
    return Ruleset(tuple(rules), homes=(str(place),))


def telling_glob(generator: Generator) -> str:
    """One that does not cover just any name."""
    while True:
        begins = generator.rng.choice(("~/", "$project/", "**/", "$project/**/"))
        glob = begins + generator.path_glob(False).removeprefix("~").lstrip("/*")
        if not path_covers(glob.replace("$project", ""), frozenset(), b"/usr/lib/zq.so", ("",)):
            return glob


def made_file(place: Path, name: bytes) -> bytes | None:
    """A file below the place, by a canonical name; None where there cannot be one."""
    top = os.fsencode(place)
    inside = name.replace(PROJECT.encode(), top)
    inside = inside[len(top) :] if inside.startswith(top) else inside
    parts = [one[:200] for one in inside.split(b"/") if one not in (b"", b".", b"..")]
    path = b"/".join((top, *parts))
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
        return path
    return None


def execute(args: Sequence[bytes]) -> None:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        os.execv("/bin/true", [b"true", *args])
    os.waitpid(pid, 0)


def connect(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one, suppress(OSError):
        one.connect((address, port))


def test_real_operations_are_judged_as_python_judges_their_events(
    probes: Probes, place: Path
) -> None:
    """Hundreds of opens, programs and connects, with names made from the rules' own patterns."""
    generator = Generator(random.Random(11), packs())
    rng, ruleset = generator.rng, made_rules(Generator(random.Random(12), packs()), place)
    compiled = compiled_of(ruleset, probes.policy_room)
    image = Image(compiled.image)

    def covered(kinds: set[str]) -> list[object]:
        rule = rng.choice([r for r in ruleset.rules if kinds & set(r.on)])
        return [generator.covered(one, ruleset) for one in rule.match.conditions]

    names = [covered({"read", "change", "open"})[0] for _ in range(2 * OPENS)]
    told = [name for name in names if isinstance(name, bytes)]
    told = [generator.spoiled(name) if rng.random() < 0.4 else name for name in told]
    files = [file for name in told if (file := made_file(place, name))]
    argvs = [
        tuple(t for t in one if b"\0" not in t)
        for one in (covered({"exec"})[0] for _ in range(EXECS))
        if isinstance(one, tuple)
    ]
    flags = [rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)) for _ in files]
    peers = [
        (rng.choice(("127.0.0.1", "127.1.2.3", "127.9.9.9", "127.200.0.1", "::1")), port)
        for port in (rng.choice((53, 1000, 1500, 2001, 65535)) for _ in range(CONNECTS))
    ]

    def act() -> None:
        for path, how in zip(files, flags, strict=True):
            with suppress(OSError):
                os.close(os.open(path, how))
        for argv in argvs:
            execute(argv)
        for peer in peers:
            connect(*peer)

    recorder = Recorder(probes)
    recorder.collect()
    probes.set_mounts(Mounts.read())
    probes.put_in_force(compiled.image)
    try:
        with witness(act) as child:
            session = recorder.tag(child)
            probes.mark(session.start, 1, 1 << OF_NONE, 0)
            assert probes.set_session(session, 1 << OF_NONE, str(place))
            child.go()
            child.finish()
            recording = recorder.recording(child)
    finally:
        probes.withdraw()
    program = Program("/usr/bin/python3", None, ("python3",), "/")
    judged: Counter[str] = Counter()
    looked: Counter[str] = Counter()
    for record in recording.records:
        event = record.event
        if not isinstance(event, Open | Exec | Connect):
            continue
        actor = Actor(event.process, session, (), program, (), str(place))
        subject = subject_of(event, actor, AgentBits(), 0)
        if subject is None:
            assert not event.verdict, event
            continue
        assert event.generation == 1, event
        found = image.decide(subject)
        assert (event.verdict, event.rule) == (found.verdict, found.rule), f"{event}\n{subject}"
        judged[type(event).__name__] += 1
        looked[type(event).__name__] += bool(event.verdict)
    print(f"{judged} judged, {looked} of them looked at")
    assert judged["Open"] >= OPENS
    assert judged["Exec"] >= 0.8 * EXECS
    assert judged["Connect"] >= 0.8 * CONNECTS
    assert 0.3 * judged["Open"] <= looked["Open"] <= 0.9 * judged["Open"]
    assert looked["Exec"] >= 10
    assert looked["Connect"] >= 10
