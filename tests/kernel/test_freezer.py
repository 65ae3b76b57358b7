"""Sessions frozen by the kernel: nothing in them runs, and all go back to where they came from.

Every process and every cgroup is these tests' own, below one directory each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch import processes
from agentwatch.errors import KernelError
from agentwatch.events import ProcessKey
from agentwatch.freezer import Freezer, Frozen, Leftover
from tests.proc import state

pytestmark = pytest.mark.root

SESSION = "boot-of-test:1:2"
PATIENCE = 10  # s

# Each says something for as long as it runs: appends a byte to the file named by its argument.
COUNTS = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
while True:
    os.write(fd, b".")
    time.sleep(0.002)
"""
THREADS = """
import os, sys, threading, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def count():
    while True:
        os.write(fd, b".")
        time.sleep(0.005)
for _ in range(8):
    threading.Thread(target=count).start()
"""
# Three that fork all the time: children that end at once, that stay for a moment, that go on.
STORM = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def forks(goes_on):
    while True:
        os.write(fd, b".")
        if os.fork() == 0:
            time.sleep(0.01)
            if goes_on:
                continue
            os._exit(0)
        if goes_on:
            os._exit(0)
        time.sleep(0.002)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
for goes_on in (False, True):
    if os.fork() == 0:
        forks(goes_on)
forks(False)
"""


class Place:
    """A cgroup of the test's own, with a hierarchy below it; ends all that is in it."""

    def __init__(self, mount: Path, directory: Path) -> None:
        self.mount = mount
        self.directory = directory
        self.top = mount / f"agentwatch-test-{os.getpid()}-{time.monotonic_ns()}"
        self.top.mkdir()
        self._started: list[subprocess.Popen[bytes]] = []

    def cgroup(self, name: str) -> Path:
        made = self.top / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def start(self, cgroup: Path, program: str) -> Path:
        """Runs a program in a cgroup; the file it says something in, once it has."""
        said = self.directory / f"said-{len(self._started)}"
        self.run(cgroup, sys.executable, "-c", program, str(said))
        until(lambda: size(said) > 2)
        return said

    def run(self, cgroup: Path, *command: str) -> int:
        """Starts a command in a cgroup; its pid."""
        enters = f'echo $$ > "{cgroup}/cgroup.procs" && exec "$@"'
        line = ["/bin/sh", "-c", enters, "sh", *command]
        self._started.append(subprocess.Popen(line, stdout=subprocess.DEVNULL))
        return self._started[-1].pid

    def find(self) -> set[ProcessKey]:
        """All that run in any of its cgroups, frozen or not."""
        return {processes.key_now(pid) or ProcessKey(pid, 0) for pid in pids(self.top)}

    def close(self) -> None:
        (self.top / "cgroup.kill").write_text("1")
        for process in self._started:
            process.kill()
            process.wait(PATIENCE)
        until(lambda: not pids(self.top))
        for path, _, _ in os.walk(self.top, topdown=False):
            with suppress(OSError):
                Path(path).rmdir()
        assert not self.top.exists()


def pids(cgroup: Path) -> list[int]:
    """Of all processes in a cgroup and below it. A program may remove one of them meanwhile."""
    found = []
    for path, _, _ in os.walk(cgroup):
        with suppress(OSError):
            found += [int(pid) for pid in (Path(path) / "cgroup.procs").read_text().split()]
    return found


def cgroup_of(pid: int, mount: Path) -> Path:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return mount / next(line[3:] for line in lines if line.startswith("0::")).lstrip("/")


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def rests(said: Path) -> bool:
    """Whether nothing is added for as long as it takes to add a hundred."""
    before = size(said)
    time.sleep(0.2)
    return size(said) == before


def runs_on(said: Path) -> bool:
    before = size(said)
    until(lambda: size(said) > before)
    return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Empty."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mount = next(Path(fields[4]) for fields in mounts if "cgroup2" in fields)
    made = Place(mount, tmp_path)
    yield made
    made.close()


@pytest.fixture
def freezer(place: Place) -> Freezer:
    """Its cgroups are made in the test's own."""
    found = Freezer.open(place.top)
    assert found is not None
    return found


def test_nothing_runs_while_it_is_frozen_and_all_goes_on_after(
    place: Place, freezer: Freezer
) -> None:
    """Every thread of a process stands still; thawed, it goes on where it was, in its cgroup."""
    home = place.cgroup("home")
    said = place.start(home, THREADS)
    before = pids(home)
    assert freezer.freeze(SESSION, place.find) == Frozen("cgroup", 1)
    assert rests(said)
    assert pids(home) == []
    assert freezer.thaw(SESSION) == 1
    assert runs_on(said)
    assert pids(home) == before
    assert [path for path in place.top.iterdir() if path.is_dir()] == [home]


def test_no_signal_but_a_kill_lets_a_frozen_process_run(place: Place, freezer: Freezer) -> None:
    """SIGCONT from whoever has the same uid changes nothing; SIGKILL ends it."""
    home = place.cgroup("home")
    said = place.start(home, COUNTS)
    pid = pids(home)[0]
    freezer.freeze(SESSION, place.find)
    for _ in range(20):
        os.kill(pid, signal.SIGCONT)
    assert rests(said)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not pids(place.top))
    assert freezer.thaw(SESSION) == 0
    assert [path for path in place.top.iterdir() if path.is_dir()] == [home]


def test_each_process_goes_back_into_the_cgroup_it_came_from(
    place: Place, freezer: Freezer
) -> None:
    """Also out of nested ones, one of which is the parent of another."""
    homes = [place.cgroup(name) for name in ("a", "a/b/c", "d")]
    for home in homes:
        place.start(home, COUNTS)
    before = {home: cgroup_pids(home) for home in homes}
    assert freezer.freeze(SESSION, place.find).processes == 3
    assert not any(map(cgroup_pids, homes))
    assert freezer.thaw(SESSION) == 3
    assert {home: cgroup_pids(home) for home in homes} == before


def cgroup_pids(cgroup: Path) -> list[int]:
    """Of one cgroup alone."""
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def test_who_comes_from_a_cgroup_that_is_gone_goes_to_the_nearest_that_takes_it(
    place: Place, freezer: Freezer
) -> None:
    """systemd removes a scope that is empty; its process is not lost with it."""
    outer, inner = place.cgroup("outer"), place.cgroup("outer/middle/inner")
    said = place.start(inner, COUNTS)
    pid = cgroup_pids(inner)[0]
    freezer.freeze(SESSION, place.find)
    inner.rmdir()
    inner.parent.rmdir()
    assert freezer.thaw(SESSION) == 1
    assert cgroup_of(pid, place.mount) == outer
    assert runs_on(said)


def test_a_fork_storm_is_frozen_as_a_whole(place: Place, freezer: Freezer) -> None:
    """Children born while their parents are moved are inside too; thawed, it storms on."""
    home = place.cgroup("home")
    said = place.start(home, STORM)
    for _ in range(5):
        frozen = freezer.freeze(SESSION, place.find)
        assert [state(pid) for pid in cgroup_pids(home)] == []
        assert frozen.processes >= 3
        assert rests(said)
        assert freezer.thaw(SESSION) >= 3
        assert runs_on(said)
    assert {path for path in place.top.iterdir() if path.is_dir()} == {home}


VFORKS = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.write(fd, b"...")
if libc.vfork() == 0:
    time.sleep(600)
    os._exit(0)
"""


def test_the_parent_of_a_vfork_that_has_not_ended_is_frozen(place: Place, freezer: Freezer) -> None:
    """It waits in the kernel and cannot be interrupted; its child runs, and is frozen with it."""
    home = place.cgroup("home")
    place.start(home, VFORKS)
    until(lambda: len(cgroup_pids(home)) == 2)
    parent = min(cgroup_pids(home))
    until(lambda: state(parent) == "D")  # as the parent of a vfork does
    assert freezer.freeze(SESSION, place.find).processes == 2
    assert cgroup_pids(home) == []
    assert freezer.thaw(SESSION) == 2
    assert len(cgroup_pids(home)) == 2


LEADERLESS = """
import ctypes, os, sys, threading, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def count():
    while True:
        os.write(fd, b".")
        time.sleep(0.002)
threading.Thread(target=count).start()
ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_process_whose_first_thread_has_ended_is_frozen_and_comes_back(
    place: Place, freezer: Freezer
) -> None:
    """What ps calls a zombie runs on in its other threads."""
    home = place.cgroup("home")
    said = place.start(home, LEADERLESS)
    pid = cgroup_pids(home)[0]
    until(lambda: state(pid) == "Z")
    key = processes.key_now(pid)
    assert key is not None
    assert freezer.freeze(SESSION, lambda: [key]).processes == 1
    assert rests(said)
    assert freezer.freeze(SESSION, lambda: [key]).processes == 1
    assert freezer.thaw(SESSION) == 1
    assert runs_on(said)
    tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)]
    assert {cgroup_of(tid, place.mount) for tid in tasks} == {home}


def test_a_stopped_process_is_frozen_and_stays_stopped(place: Place, freezer: Freezer) -> None:
    """A session that was first stopped by signals and then frozen."""
    home = place.cgroup("home")
    said = place.start(home, COUNTS)
    pid = cgroup_pids(home)[0]
    os.kill(pid, signal.SIGSTOP)
    assert freezer.freeze(SESSION, place.find).processes == 1
    assert freezer.thaw(SESSION) == 1
    assert rests(said)
    os.kill(pid, signal.SIGCONT)
    assert runs_on(said)


def test_freezing_again_takes_in_who_is_new(place: Place, freezer: Freezer) -> None:
    """And leaves those inside as they are."""
    home = place.cgroup("home")
    said = [place.start(home, COUNTS)]
    assert freezer.freeze(SESSION, place.find).processes == 1
    said.append(place.start(home, COUNTS))
    assert freezer.freeze(SESSION, place.find).processes == 2
    assert all(map(rests, said))
    assert freezer.thaw(SESSION) == 2
    assert all(map(runs_on, said))


def test_sessions_are_frozen_one_by_one(place: Place, freezer: Freezer) -> None:
    """Thawing one leaves the other frozen, and names that lead elsewhere lead nowhere."""
    homes = [place.cgroup("a"), place.cgroup("b")]
    said = [place.start(home, COUNTS) for home in homes]
    keys = [processes.key_now(cgroup_pids(home)[0]) for home in homes]
    names = ["../../x", "cgroup.procs"]
    for name, key in zip(names, keys, strict=True):
        assert key is not None
        found = key
        freezer.freeze(name, lambda found=found: [found])  # type: ignore[misc]
    assert freezer.thaw(names[0]) == 1
    assert runs_on(said[0])
    assert rests(said[1])
    assert freezer.thaw(names[1]) == 1
    assert [path for path in place.top.iterdir() if path.is_dir() and path not in homes] == []


def test_who_has_another_start_is_left_alone(place: Place, freezer: Freezer) -> None:
    """A reused pid is somebody else."""
    home = place.cgroup("home")
    said = place.start(home, COUNTS)
    key = processes.key_now(cgroup_pids(home)[0])
    assert key is not None
    stale = ProcessKey(key.pid, key.start - processes.TICK)
    assert freezer.freeze(SESSION, lambda: [stale]) == Frozen("cgroup", 0)
    assert runs_on(said)
    freezer.thaw(SESSION)


def test_whoever_freezes_is_not_frozen(place: Place, freezer: Freezer) -> None:
    """A daemon that was started by an agent must be able to thaw it."""
    own = processes.key_now(os.getpid())
    assert own is not None
    assert freezer.freeze(SESSION, lambda: [own]) == Frozen("cgroup", 0)
    assert freezer.thaw(SESSION) == 0


def test_a_session_that_cannot_be_gathered_is_let_go(place: Place, freezer: Freezer) -> None:
    """Processes that appear without end: an error in bounded time, and all run on as before."""
    home = place.cgroup("home")
    said = place.start(home, COUNTS)

    def ever_more() -> set[ProcessKey]:
        place.run(home, "sleep", "60")
        time.sleep(0.05)
        return place.find()

    began = time.monotonic()
    with pytest.raises(KernelError, match="cannot be frozen: it"):
        freezer.freeze(SESSION, ever_more)
    assert time.monotonic() - began < 5
    assert runs_on(said)
    assert {cgroup_of(pid, place.mount) for pid in pids(place.top)} == {home}


def test_a_cgroup_that_is_not_to_be_made_is_an_error(place: Place) -> None:
    """A hierarchy with a limit on cgroups: nothing of the session is left frozen or moved."""
    home = place.cgroup("home")
    said = place.start(home, COUNTS)
    freezer = Freezer.open(place.top)
    assert freezer is not None
    (place.top / "cgroup.max.depth").write_text("2")
    with pytest.raises(KernelError, match="cannot be frozen"):
        freezer.freeze(SESSION, place.find)
    assert runs_on(said)
    assert [path for path in place.top.iterdir() if path.is_dir()] == [home]


def test_a_frozen_session_is_killed_as_a_whole(place: Place, freezer: Freezer) -> None:
    """All of a storm at once, and nothing of its cgroups is left."""
    home = place.cgroup("home")
    place.start(home, STORM)
    frozen = freezer.freeze(SESSION, place.find)
    assert freezer.killed(SESSION) == frozen.processes
    assert pids(place.top) == []
    assert [path for path in place.top.iterdir() if path.is_dir()] == [home]
    assert freezer.killed(SESSION) is None


DAEMON = """
import os, sys, time
from pathlib import Path
from agentwatch import processes
from agentwatch.freezer import Freezer
key = processes.key_now(int(sys.argv[2]))
Freezer.open(Path(sys.argv[1])).freeze(sys.argv[3], lambda: [key])
print("frozen", flush=True)
time.sleep(600)
"""


def test_what_a_killed_daemon_left_frozen_is_put_back_by_the_next(
    place: Place, freezer: Freezer, repository: Path
) -> None:
    """It stays frozen until then, and goes back into its own cgroup: that was not forgotten."""
    home = place.cgroup("deep/home")
    said = place.start(home, COUNTS)
    pid = cgroup_pids(home)[0]
    line = [sys.executable, "-c", DAEMON, str(place.top), str(pid), SESSION]
    with subprocess.Popen(line, stdout=subprocess.PIPE, cwd=repository) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"frozen\n"
        assert freezer.recover(lambda pids: None) == (), "its daemon lives"
        assert rests(said)
        daemon.kill()
    assert rests(said)
    assert freezer.recover(lambda pids: None) == (Leftover(SESSION, (pid,)),)
    assert runs_on(said)
    assert cgroup_of(pid, place.mount) == home
    assert freezer.recover(lambda pids: None) == ()
    assert [path.name for path in place.top.iterdir() if path.is_dir()] == ["deep"]


def test_recovery_touches_nobody_elses_cgroups(place: Place, freezer: Freezer) -> None:
    """Names that only look like ours, and what is frozen by this daemon, stay as they are."""
    other = place.cgroup("agentwatch-frozen-by-somebody/session-x")
    said = [place.start(other, COUNTS), place.start(place.cgroup("home"), COUNTS)]
    own = processes.key_now(cgroup_pids(place.top / "home")[0])
    assert own is not None
    freezer.freeze(SESSION, lambda: [own])
    assert freezer.recover(lambda pids: None) == ()
    assert runs_on(said[0])
    assert rests(said[1])
    assert freezer.thaw(SESSION) == 1


def test_this_host_has_a_freezer(place: Place) -> None:
    """Found by itself, and finding it leaves nothing behind."""
    before = set(place.mount.iterdir())
    assert Freezer.open() is not None
    made = {path for path in set(place.mount.iterdir()) - before if str(os.getpid()) in path.name}
    assert made == set()
