"""How fast rules load, and how many events a second the engine judges in one thread.

    python bench/engine.py [--more N] [RULES...]     without RULES, the packs that ship

--more: as many rules beside them, of five shapes, each with two tests. Times are of the processor,
so that others on the machine matter less. Every round runs every workload once, in an order that
turns; the medians of all rounds are printed. `repeated again` is the same workload as `repeated`:
what these two differ by is noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from agentwatch import admission
from agentwatch.engine import Engine
from agentwatch.events import Connect, Event, Exec, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy import patterns
from agentwatch.rules.homes import at_home
from agentwatch.rules.load import default_paths, read_rules
from agentwatch.rules.read import HAS_LIBYAML

ROUNDS = 9
EVENTS = 20_000
TARGET = 20_000  # judged events a second
HOMES = ("/root", "/home/dev")
KEY = ProcessKey(4242, 1)


def opens(paths: Sequence[str]) -> list[Event]:
    """As many opens as there are events, over these paths, every fourth for writing."""
    return [
        Open(
            time=i,
            process=KEY,
            session=KEY,
            path=paths[i % len(paths)],
            result=3,
            reads=i % 4 != 0,
            changes=i % 4 == 0,
        )
        for i in range(EVENTS)
    ]


def workloads(fresh: int) -> dict[str, list[Event]]:
    """Events by workload. fresh: makes the new paths new, whatever ran before."""
    project = "/home/dev/project"
    repeated = [
        f"{project}/src/lib{i % 61}/module/deep/part{i % 13}/file{i}.py" for i in range(4096)
    ]
    new = [f"{project}/src/run{fresh}/module/deep/part{i % 13}/file{i}.py" for i in range(EVENTS)]
    commands: list[Event] = [
        Exec(
            time=i,
            process=KEY,
            session=KEY,
            path="/usr/bin/gcc-12",
            asked="/usr/bin/gcc",
            argv=("gcc", "-O2", "-Wall", "-c", f"src/run{fresh}/file{i}.c", "-o", f"file{i}.o"),
            argc=7,
            cwd=project,
        )
        for i in range(EVENTS)
    ]
    connects: list[Event] = [
        Connect(
            time=i,
            process=KEY,
            session=KEY,
            family=2,
            addr=f"192.0.2.{i % 256}",
            port=443,
            protocol="tcp",
            syn=True,
        )
        for i in range(EVENTS)
    ]
    return {
        "repeated paths": opens(repeated),
        "repeated again": opens(repeated),
        "new paths": opens(new),
        "new commands": commands,
        "connects": connects,
    }


def measure(engine: Engine, events: Sequence[Event], actor: Actor) -> float:
    """Seconds for one event."""
    judge = engine.judge
    start = time.thread_time()
    for event in events:
        judge(event, actor)
    return (time.thread_time() - start) / len(events)


# match, an event it hits, an event it misses; {i} is the rule's number
SHAPES = (
    (
        "[read, change]",
        '{{path: ["~/.tool{i}/**", "**/.secret{i}/key*"]}}',
        "{{path: /home/dev/.tool{i}/x}}",
        "{{path: /home/dev/.tools/x}}",
    ),
    (
        "exec",
        '{{path: "**/prog{i}", args|has|all: [push, "--force{i}"]}}',
        '{{path: /usr/bin/prog{i}, args: [push, "--force{i}"]}}',
        "{{path: /usr/bin/prog{i}, args: [push]}}",
    ),
    (
        "connect",
        "{{addr: 10.1.{part}.7, port: {port}}}",
        "{{addr: 10.1.{part}.7, port: {port}}}",
        "{{addr: 192.0.2.1, port: 443}}",
    ),
    (
        "read",
        '{{path: "**/*.ext{i}"}}',
        "{{path: /srv/data/a.ext{i}}}",
        "{{path: /srv/data/a.ext}}",
    ),
    (
        "exec",
        '{{path: "**/{{{{curl,wget}}}}", args|has: "*host{i}.example.org*"}}',
        '{{path: /usr/bin/curl, args: ["https://host{i}.example.org/"]}}',
        '{{path: /usr/bin/curl, args: ["https://example.org/"]}}',
    ),
)


def more_rules(count: int) -> str:
    """A file of as many rules."""
    text = "schema: agentwatch/v1\nrules:\n"
    for i in range(count):
        numbers = {"i": i, "part": i % 250, "port": 1000 + i % 60_000}
        on, *shapes = SHAPES[i % len(SHAPES)]
        match, hit, miss = (
            shape.format(**numbers).replace("{{", "{").replace("}}", "}") for shape in shapes
        )
        text += (
            f"  - id: more.r{i}\n    title: One more rule, number {i}\n    on: {on}\n"
            f"    match: {match}\n    action: deny\n    severity: high\n"
            f"    because: Nobody may use number {i}.\n    tags: [attack.t1552.001]\n"
            f"    tests:\n      - hit: {hit}\n      - miss: {miss}\n"
        )
    return text


def loaded(paths: Sequence[Path]) -> Engine:
    """An engine of these rules, as a daemon makes it; says what it took."""
    began = time.thread_time()
    read = read_rules(paths, patterns)
    known = time.thread_time()
    tests = len(admission.run_trials(read))
    tried = time.thread_time()
    engine = Engine(at_home(read.ruleset, HOMES))
    ready = time.thread_time()
    how = "libyaml" if HAS_LIBYAML else "Python alone (pip install ruamel.yaml.clib)"
    print(
        f"{len(read.ruleset.rules)} rules, read with {how} in {(known - began) * 1e3:.0f} ms, "
        f"{tests} tests in {(tried - known) * 1e3:.0f} ms, compiled in "
        f"{(ready - tried) * 1e3:.0f} ms: {(ready - began) * 1e3:.0f} ms"
    )
    return engine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--more", type=int, default=0)
    parser.add_argument("rules", nargs="*", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        more = Path(directory) / "more.yaml"
        more.write_text(more_rules(given.more))
        engine = loaded([*(given.rules or default_paths()), *([more] if given.more else [])])
    ruleset = engine.ruleset
    image = Image("/usr/bin/node", "/usr/lib/cli.js", ("node", "cli.js"), "/home/dev/project", 1000)
    parents = (Image("/usr/bin/bash", None, ("bash",), "/home/dev", 1000),) * 3
    agents = tuple(agent.id for agent in ruleset.agents[:1])
    actor = Actor(KEY, KEY, agents, image, parents, "/home/dev/project")
    found: dict[str, list[float]] = {name: [] for name in workloads(0)}
    for number in range(ROUNDS):
        work = workloads(number)
        names = list(work)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(measure(engine, work[name], actor))
    slow = 0
    for name, seconds in found.items():
        median = statistics.median(seconds)
        slow += 1 / median < TARGET
        cost = f"{median * 1e6:6.2f} us/event {1 / median:9,.0f} events/s"
        print(f"{name:16} {cost}  from {min(seconds) * 1e6:.2f} to {max(seconds) * 1e6:.2f} us")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
