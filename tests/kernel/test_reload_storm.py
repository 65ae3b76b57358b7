"""A thousand reloads between two policies while processes start, open and end: each verdict is one
of the policy whose generation the record has, and what both deny never gets through.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.compiling import compile_for
from agentwatch.engine import Engine
from agentwatch.events import Exec, Exit, Fork, Open
from agentwatch.inforce import InForce
from agentwatch.kernel.probes import Probes, Sizes
from agentwatch.lineage import Image as Program
from agentwatch.lineage import Lineage
from agentwatch.mounts import Mounts
from agentwatch.policy.levels import Host
from agentwatch.rules.model import Condition, Match, Place, Rule, Ruleset
from tests.kernel.recording import Record, Recorder

pytestmark = pytest.mark.root

RELOADS = 1000
HERE = Place("storm.yaml", 1, 1)
KILL, LOOK = abi.VERDICT_KILL, abi.VERDICT_LOOK
NAMES = ("neither", "one", "other", "both", "spared")


def policy(directory: Path, program: Path, mine: str, padding: int) -> Ruleset:
    """What `mine` and `both` name is killed or looked at; what `spared` names, unless our program
    opens it, and only our program may be the one that is stopped for `both`.

    padding: rules whose predicates come first, so that the numbers of the two policies differ.
    """

    def at(field: str, *values: object) -> Match:
        return Match((Condition(field, tuple(map(str, values)), frozenset(), HERE),))

    ours = at("process.exe", program).conditions
    rules = [
        Rule(
            f"pad.r{i}",
            ("read",),
            Match(
                at("path", f"/nowhere/{i}").conditions + at("process.exe", f"/pad/{i}").conditions
            ),
            "kill",
            HERE,
        )
        for i in range(padding)
    ]
    for action, kind in (("kill", "kill"), ("alert", "look")):
        files = at("path", directory / f"{kind}-{mine}", directory / f"{kind}-both").conditions
        spared = at("path", directory / f"{kind}-spared")
        rules += [
            Rule(f"{kind}.listed", ("read",), Match(files + ours), action, HERE),
            Rule(f"{kind}.spared", ("read",), spared, action, HERE, unless=(("us", Match(ours)),)),
        ]
    return Ruleset(tuple(rules))


class Storm:
    """Real probes, and what userspace does around a reload."""

    def __init__(self, probes: Probes, policies: tuple[Ruleset, Ruleset]) -> None:
        self.recorder = Recorder(probes)
        self.lineage = Lineage()
        self.force = InForce(probes, self.lineage, lambda frame: None)
        self.force.mounted(Mounts.read())
        self._policies = policies
        self._engine: Engine | None = None
        self.generation = 0
        self.judged: list[Record] = []

    def drain(self) -> None:
        for record in self.recorder.collect():
            event = record.event
            if isinstance(event, Fork):
                self.lineage.fork(event)
            elif isinstance(event, Exec) and event.result == 0:
                self.lineage.exec(event, None)
            elif isinstance(event, Exit):
                self.lineage.exit(event)
            elif isinstance(event, Open) and event.result >= 0:
                self.judged.append(record)

    def reload(self) -> None:
        self.generation += 1
        engine = Engine(self._policies[self.generation % 2], generation=self.generation)
        room = self.recorder.probes.policy_room
        compile_for(engine, Host(), self._engine, room=room)
        assert engine.compiled is not None, engine.refused
        assert all(one.where == "kernel" for one in engine.compiled.lowered.values())
        self.force.take(engine, self.drain)
        assert not self.force.problem
        self._engine = engine


@pytest.fixture
def probes() -> Iterator[Probes]:
    loaded = Probes(sizes=Sizes(policy=1 << 20))
    yield loaded
    loaded.close()


def test_a_thousand_reloads_under_load(probes: Probes, programs: Path, place: Path) -> None:
    """Two storms at work all the while."""
    program = programs / "reloads"
    for name in NAMES:
        (place / f"look-{name}").touch()
        (place / f"kill-{name}").touch()
    policies = policy(place, program, "other", 7), policy(place, program, "one", 2)
    storm = Storm(probes, policies)
    storm.reload()
    running = [_begin(storm, probes, program, place) for _ in range(2)]
    try:
        while storm.generation <= RELOADS:
            storm.reload()
    finally:
        (place / "stop").touch()
        told = [process.communicate(timeout=20)[0] for process in running]
    storm.drain()
    made = sum((Counter(_counts(text, 0)) for text in told), Counter())
    killed = sum((Counter(_counts(text, 1)) for text in told), Counter())
    seen = _verdicts_are_of_their_policy(storm.judged)
    print(f"{made} made, {killed} killed, {seen} records judged by {len(storm.judged)}")
    assert made["both"] > 200
    assert killed["both"] == made["both"], "what both policies deny got through"
    assert killed["neither"] == killed["spared"] == 0
    assert 0 < killed["one"] < made["one"]
    assert 0 < killed["other"] < made["other"]
    assert min(seen[name] for name in NAMES) > 200


def _counts(text: str, place: int) -> dict[str, int]:
    return {name: counts[place] for name, counts in json.loads(text).items()}


def _begin(storm: Storm, probes: Probes, program: Path, place: Path) -> subprocess.Popen[str]:
    """A storm whose session the kernel judges before its program starts."""
    process = subprocess.Popen(
        ["sh", "-c", f"read x; exec {program} {place}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    session = probes.tag(process.pid)
    shell = Program(os.path.realpath("/bin/sh"), None, ("sh",), str(place), since=session.start)
    storm.lineage.begin(session, None, shell, ())
    storm.force.mark(shell, (), None)
    storm.force.enter(session, (), None)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process


def _verdicts_are_of_their_policy(records: list[Record]) -> Counter[str]:
    """How many opens of each file were seen; each as the policy of its generation has it."""
    seen: Counter[str] = Counter()
    for record in records:
        event = record.event
        assert isinstance(event, Open)
        kind, _, name = Path(event.path).name.partition("-")
        if kind not in ("look", "kill") or name not in NAMES:
            continue
        assert event.generation, f"{event} was judged by no policy"
        mine = "one" if event.generation % 2 else "other"
        stops = KILL if kind == "kill" else LOOK
        expected = stops if name in (mine, "both") else 0
        assert event.verdict == expected, f"{event} under generation {event.generation}"
        seen[name] += 1
    return seen
