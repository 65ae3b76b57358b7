"""What each program costs, by the kernel's statistics: for nobody's process and for an agent's."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agentwatch.kernel.probes import Probes, ProgramStats
from bench.workplace import say
from tests.kernel.law import Law, spawn
from tests.kernel.recording import Witness, witness

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
PASSES = 300
EXECS = 40
RULES = (
    ("[read, change]", '{path: "**/.secret/**"}', "deny"),
    ("exec", '{path: "**/terraform"}', "deny"),
    ("connect", "{addr: 169.254.169.254, port: 80}", "deny"),
    ("connect", '{unix: "**/docker.sock"}', "deny"),
)


def measure() -> None:
    """A table, a row for each program. Needs root."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as made, _statistics():
        place = Path(made).resolve()
        place.chmod(0o755)
        probes = Probes()
        probes.attach_connect(None)
        law = Law(probes, place)
        law.rule(*RULES)
        law.probes.set_mounts(law.recorder.mounts)
        untagged = _spent(law, tagged=False)
        tagged = _spent(law, tagged=True)
        probes.close()
    say("ns of a run, by kernel.bpf_stats_enabled; in brackets how many runs that is of")
    say(f"  {'':30} {'untagged':>18} {'of an agent':>18}")
    for hook in untagged:
        say(f"  {hook:30} {_each(untagged[hook]):>18} {_each(tagged[hook]):>18}")


def _each(spent: ProgramStats) -> str:
    return f"{spent.seconds * 1e9 / spent.runs:,.0f} ({spent.runs:,})" if spent.runs else "-"


@contextmanager
def _statistics() -> Iterator[None]:
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


def _spent(law: Law, tagged: bool) -> dict[str, ProgramStats]:
    """By hook, what a child that works costs."""
    with witness(lambda: _work(law.place)) as child:
        if tagged:
            law.judge(child)
        before = law.probes.stats()
        _run(law, child)
        after = law.probes.stats()
    return {
        hook: ProgramStats(
            now.runs - before[hook].runs,
            now.seconds - before[hook].seconds,
            now.misses - before[hook].misses,
        )
        for hook, now in after.items()
    }


def _run(law: Law, child: Witness) -> None:
    child.go()
    child.finish()
    law.recorder.collect()


def _work(place: Path) -> None:
    """Every kind of call that there is a program for."""
    top = place / "component" / "component" / "component"
    top.mkdir(parents=True, exist_ok=True)
    for _ in range(PASSES):
        for act in (_open, _names, _attributes, _connects):
            act(top)
    for _ in range(EXECS):
        spawn("/bin/true")


def _open(top: Path) -> None:
    for _ in range(4):
        os.close(os.open(top / "file", os.O_CREAT | os.O_RDWR, 0o644))


def _names(top: Path) -> None:
    os.rename(top / "file", top / "other")
    os.link(top / "other", top / "file")
    os.unlink(top / "other")
    os.symlink("file", top / "other")
    os.unlink(top / "other")
    os.mkdir(top / "directory")
    os.rmdir(top / "directory")


def _attributes(top: Path) -> None:
    os.chmod(top / "file", 0o600)
    os.chown(top / "file", 0, 0)
    os.truncate(top / "file", 0)
    _try(lambda: os.setxattr(top / "file", "user.x", b"x"))


def _connects(top: Path) -> None:
    with socket.socket(socket.AF_INET) as tcp:
        _try(lambda: tcp.connect(("127.0.0.1", 9)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        _try(lambda: udp.sendto(b"x", ("127.0.0.1", 9)))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(top / "socket"))
        server.listen(1)
        client.connect(str(top / "socket"))
    os.unlink(top / "socket")


def _try(act: Callable[[], object]) -> None:
    with suppress(OSError):
        act()
