"""The control socket and several people: one of them can keep nobody else out.

Every process and every socket is these tests' own; the uids are nobody's.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from agentwatch.control import wire
from agentwatch.control.client import Client
from agentwatch.control.connection import Limits
from agentwatch.control.listener import Listener
from agentwatch.errors import AgentwatchError, PermissionDenied
from tests.unit.control_loop import Daemon, Process, Raw, running

pytestmark = pytest.mark.root

GREEDY, OTHER, MANY = 54321, 54322, range(54400, 54416)

# Connects as a uid as often as told, in a few processes of its own, without ever closing; then says
# how many it holds, and of how many it has not been turned away.
CROWD = """
import os, resource, select, socket, sys
path, uid, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
held = []
for _ in range(count):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(path)
print("connected", len(held), flush=True)
sys.stdin.readline()
kept = 0
for one in held:
    one.setblocking(False)
    try:
        one.recv(1)
    except BlockingIOError:
        kept += 1
print("kept", kept, flush=True)
sys.stdin.readline()
"""

# Asks for the status as a uid, once per line.
ASKS = """
import os, socket, sys
path, uid, question = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
for line in sys.stdin:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)  # waits for its turn, which it would not with a timeout
        one.settimeout(20)
        try:
            one.send(question)
        except OSError:
            pass
        print(one.recv(65536).hex(), flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="aw-control-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def asking(stack: ExitStack, path: Path, uid: int) -> Process:
    question = wire.encode_request(wire.Request("status")).hex()
    return stack.enter_context(Process(ASKS, path, uid, question))


def answer(process: Process) -> dict[str, object]:
    """What it is answered. Raises the error."""
    process.tell()
    reply = wire.decode_reply(bytes.fromhex(process.said())[wire.HEAD.size :])
    if reply.error is not None:
        raise reply.error
    return dict(reply.value)


def test_10_000_connections_of_one_keep_nobody_else_out(place: Path) -> None:
    """While they come and once they are there: root and another person are answered, each time.

    The one holds its 32, and is told so beyond them.
    """
    with running(place / "s") as daemon, ExitStack() as stack:
        other, same = asking(stack, daemon.path, OTHER), asking(stack, daemon.path, GREEDY)
        assert answer(same)["uid"] == GREEDY
        crowd = [stack.enter_context(Process(CROWD, daemon.path, GREEDY, 2500)) for _ in range(4)]
        for _ in range(20):
            assert answer(other)["uid"] == OTHER
            with Client.connect(daemon.path) as client:
                assert client.request("status")["uid"] == 0
        assert [one.said() for one in crowd] == ["connected 2500"] * 4
        assert answer(other)["uid"] == OTHER
        daemon.until(lambda: len(daemon.server) == 32)
        with pytest.raises(AgentwatchError, match=f"uid {GREEDY} has 32 connections"):
            answer(same)
        for one in crowd:
            one.tell()
        assert sum(int(one.said().split()[1]) for one in crowd) == 32
        for one in crowd:
            one.tell()
            one.wait()
        daemon.until(lambda: len(daemon.server) == 0)
        assert answer(same)["uid"] == GREEDY


def test_many_together_leave_slots_for_root(place: Path) -> None:
    """16 uids take all there are for people; root's are not among them, but are not endless."""
    limits = Limits(connections=64, reserved=8, per_uid=16)
    with running(place / "s", limits) as daemon, ExitStack() as stack:
        crowd = [stack.enter_context(Process(CROWD, daemon.path, uid, 16)) for uid in MANY]
        assert [one.said() for one in crowd] == ["connected 16"] * len(MANY)
        daemon.until(lambda: len(daemon.server) == 56)
        with pytest.raises(AgentwatchError, match="the daemon has 56 connections already"):
            answer(asking(stack, daemon.path, OTHER))
        roots = [stack.enter_context(Raw(daemon.path)) for _ in range(8)]
        assert all(raw.ask("status").value["uid"] == 0 for raw in roots)
        with Raw(daemon.path) as raw:
            assert "64 connections already" in raw.error().message


def test_what_root_holds_is_not_taken_from_others(place: Path) -> None:
    """50 subscribers of root's are more than is reserved, and do not count against people's own."""
    with running(place / "s") as daemon, ExitStack() as stack:
        for _ in range(50):
            assert stack.enter_context(Raw(daemon.path)).ask("events").error is None
        assert answer(asking(stack, daemon.path, OTHER))["uid"] == OTHER


LOCKS = """
import os, sys
os.setgroups([])
os.setresuid(54321, 54321, 54321)
print(os.path.exists(sys.argv[1]), end=" ")
try:
    os.open(sys.argv[1], os.O_RDONLY)
except OSError as error:
    print(type(error).__name__)
"""


def test_a_person_cannot_hold_the_lock(place: Path) -> None:
    """Who can open its file can lock it, and no daemon would start any more."""
    daemon = Daemon(place / "s")
    daemon.stop()
    with Process(LOCKS, place / "s.lock") as process:
        assert process.said() == "True PermissionError"
    with running(place / "s") as again, Raw(again.path) as raw:
        assert raw.ask("status").value


@pytest.mark.parametrize("above", [False, True], ids=["itself", "above"])
def test_a_directory_of_somebody_else_is_refused(place: Path, above: bool) -> None:
    """They could put a socket of their own there."""
    (place / "a" / "b").mkdir(parents=True)
    owned = place / "a" if above else place / "a" / "b"
    os.chown(owned, GREEDY, GREEDY)
    with pytest.raises(AgentwatchError, match=f"{owned} belongs to uid {GREEDY}"):
        Listener(place / "a" / "b" / "s", 8)


def test_who_may_not_connect_is_told_so(place: Path) -> None:
    """Exit code 4, and not that no daemon runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "s"))
        listener.listen()
        (place / "s").chmod(0o600)
        os.seteuid(GREEDY)
        try:
            with pytest.raises(PermissionDenied, match="not permitted to connect") as caught:
                Client.connect(place / "s")
        finally:
            os.seteuid(0)
    assert caught.value.exit_code == 4


# Listens in a PID namespace of its own, where whoever connects from outside has no number.
INSIDE = """
import ctypes, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], *sys.argv[3:]]
import socket
from agentwatch.control.peer import Credentials, Peer
from agentwatch.errors import PermissionDenied

assert ctypes.CDLL(None, use_errno=True).unshare(0x20000000) == 0
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
child = os.fork()
if child:
    print("listening", flush=True)
    os.waitpid(child, 0)
    sys.exit()
connected, _ = listener.accept()
try:
    Peer.of(connected)
    print("taken for somebody")
except PermissionDenied as error:
    print(Credentials.of(connected).pid, error.message, flush=True)
"""


def test_a_peer_without_a_number_here_is_refused(place: Path) -> None:
    """Its pid would be 0, which names nobody, or the whole group."""
    repository = Path(__file__).resolve().parents[2]
    packages = Path(msgpack.__file__).parents[1]
    with Process(INSIDE, repository, place / "s", packages) as process:
        assert process.said() == "listening"
        with Raw(place / "s"):
            assert process.said() == "0 the process that connected is not visible from here"
        process.wait()
