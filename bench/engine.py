"""How many events a second the engine judges in one thread, with the packs that ship.

    python bench/engine.py [RULES...]

Every round runs every workload once, in an order that turns; the medians of all rounds are
printed. `repeated again` is the same workload as `repeated`: what these two differ by is noise.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agentwatch.engine import Engine
from agentwatch.events import Connect, Event, Exec, Open, ProcessKey
from agentwatch.lineage import Actor, Image
from agentwatch.policy import patterns
from agentwatch.rules.load import default_paths, load

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
    start = time.perf_counter()
    for event in events:
        judge(event, actor)
    return (time.perf_counter() - start) / len(events)


def main() -> int:
    paths = [Path(name) for name in sys.argv[1:]] or default_paths()
    began = time.perf_counter()
    ruleset = load(paths, homes=HOMES, patterns=patterns)
    loaded = time.perf_counter()
    engine = Engine(ruleset)
    ready = time.perf_counter()
    print(
        f"{len(ruleset.rules)} rules: read in {(loaded - began) * 1e3:.0f} ms, "
        f"compiled in {(ready - loaded) * 1e3:.0f} ms"
    )
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
