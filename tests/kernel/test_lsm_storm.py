"""Under load some kernels skip runs of tracing programs: nothing that is denied rests on those."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from agentwatch import abi
from agentwatch.events import ProcessKey
from agentwatch.kernel import lsm, preemption
from agentwatch.kernel.probes import Probes
from agentwatch.losses import Losses
from agentwatch.sessions import Sessions
from tests.kernel.law import Law
from tests.kernel.recording import Gate, tell, witness

pytestmark = pytest.mark.lsm

SECONDS = 5


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


def misses(probes: Probes) -> dict[str, int]:
    """Runs that were skipped, by hook."""
    return {hook: stats.misses for hook, stats in probes.stats().items()}


@dataclass
class Running:
    """A session, where Losses looks for those there are. frozen: why that was done."""

    key: ProcessKey
    held: str = ""
    frozen: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Running]:
        return iter([self])

    def losses(self) -> Iterator[tuple[Running, int]]:
        return iter(())

    def join(self, one: abi.Process) -> None:
        """Found late: nothing is done about it here."""

    def freeze(self, key: ProcessKey, why: str) -> None:
        self.frozen.append(why)


def ground(place: Path, programs: Path) -> None:
    """What programs/downpour.c expects in its directory."""
    for name in ("key", "kept", "open"):
        (place / name).write_text("secret")
    shutil.copy(programs / "canary", place / "program")


def test_a_storm_changes_no_verdict_and_loses_no_tag(law: Law, programs: Path) -> None:
    """Sixteen threads, the threads they start and the children of their children get EPERM for all
    that is denied; canaries and a listener saw nothing; programs on hooks were never skipped. Runs
    of other probes that were are a loss: counted, told, and acted on.
    """
    ground(law.place, programs)
    running, told = Running(ProcessKey(1, 1)), []
    losses = Losses(law.probes, cast(Sessions, running), told.append, on_loss="freeze")
    before = misses(law.probes)
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        law.rule(
            ("read", f'{{path: "{law.place}/key"}}', "deny"),
            ("exec", f'{{path: "{law.place}/program"}}', "deny"),
            ("change", f'{{path: "{law.place}/kept", op: delete}}', "deny"),
            ("connect", f"{{port: {port}}}", "deny"),
        )

        def act() -> None:
            command = [programs / "downpour", law.place, str(port), str(SECONDS)]
            told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            tell(json.loads(told.stdout))

        (seen,) = law.record(act).told
        with pytest.raises(BlockingIOError):
            server.accept()
    skipped = {hook: now - before[hook] for hook, now in misses(law.probes).items()}
    losses.check()
    print(os.uname().release, seen, {hook: n for hook, n in skipped.items() if n})
    threads = seen["rounds"] + seen["started"]
    assert seen["refused"] == seen["tried"] == 4 * seen["forked"] + 3 * threads
    assert min(seen["forked"], seen["started"]) >= 16
    assert not (law.place / "made").exists()
    assert (law.place / "kept").read_text() == "secret"
    assert not any(skipped[hook] for hook in law.probes.hooks)
    count = losses.counts["recursion"]
    assert count >= sum(skipped.values())
    assert law.probes.lossy or not count
    gaps = [gap for gap in told if gap.stage == "recursion"]
    assert [(gap.count, gap.acted) for gap in gaps] == [(count, "freeze")] * (count > 0)
    assert running.frozen == [f"{count} runs of probes were skipped while it ran"] * (count > 0)


def test_what_may_be_skipped_is_known_before_the_probes_are_loaded(probes: Probes) -> None:
    """`rules list` says (lossy) where the probes themselves would."""
    assert preemption.skips() == probes.lossy


@contextmanager
def unattached(probes: Probes, hook: str) -> Iterator[None]:
    """As if the kernel skipped each run of a probe."""
    probes._object.detach(hook)
    try:
        yield
    finally:
        probes._object.attach(hook)


def test_what_was_known_of_a_program_loosens_nothing_that_follows_it(
    law: Law, gate: Gate, programs: Path
) -> None:
    """An exception for one program is not its successor's where the probe on exec is skipped; the
    exec itself is judged by who makes it, and what follows is known again.
    """
    trusted, other = law.place / "trusted", law.place / "other"
    key, made, wait = law.place / "key", law.place / "made", law.place / "wait"
    for program in (trusted, other):
        shutil.copy("/bin/dash", program)
    key.write_text("secret\n")
    os.mkfifo(wait)
    exempt = f'{{process.exe: "{trusted}"}}'
    law.rule(
        ("read", f'{{path: "{key}"}}', "deny", exempt),
        ("exec", f'{{path: "{programs}/canary"}}', "deny", exempt),
    )
    reads = f"if read x < {key}; then echo 1; else echo 0; fi"
    last = f"{reads}"
    middle = f"{reads}; read x < {wait}; exec {trusted} -c '{last}'"
    first = f'{programs}/canary {made}; echo $?; {reads}; read x < {wait}; exec {other} -c "$1"'
    with witness(lambda: os.execv(trusted, [str(trusted), "-c", first, "x", middle])) as child:
        law.judge(child)
        child.go()
        assert child.hear(2) == (0, 1)
        with unattached(law.probes, "process_exec"):
            wait.write_text("go\n")
            assert child.hear(3) == (0, 1, 0)
        wait.write_text("go\n")
        child.finish()
        assert child.told == (0, 1, 0, 1)
        execs = [event.path for event in law.recorder.recording(child).execs]
    assert str(other) not in execs
    assert execs.count(str(trusted)) == 2
    assert made.exists()
