"""The command line's side: whatever is wrong with the daemon is said, and nothing hangs."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgpack
import pytest

from agentwatch.control import wire
from agentwatch.control.client import Client
from agentwatch.control.connection import Limits
from agentwatch.control.wire import End, Missed, Reply, Streamed
from agentwatch.errors import AgentwatchError, NotRunningError, UsageError
from tests.unit.control_loop import Daemon, Process, Raw, running

REPOSITORY = Path(__file__).resolve().parents[2]
OK = wire.encode_reply(Reply())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path / "s") as daemon:
        yield daemon


@contextmanager
def listening(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Path]:
    """Something else than a daemon, which does as it likes with its one connection."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        connected, _ = listener.accept()
        with connected:
            serve(connected)

    thread = threading.Thread(target=run)
    thread.start()
    yield path
    thread.join(20)
    listener.close()


# No daemon.


def test_where_nothing_is_no_daemon_runs(tmp_path: Path) -> None:
    """Exit code 3, and how to start one."""
    for path in (tmp_path / "none", tmp_path / "none" / "s"):
        with pytest.raises(NotRunningError, match="no daemon listens at") as caught:
            Client.connect(path)
        assert caught.value.exit_code == 3
        assert "agentwatch daemon" in caught.value.remedy


def test_a_socket_nobody_listens_on_is_no_daemon(tmp_path: Path) -> None:
    """What a killed daemon leaves."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with pytest.raises(NotRunningError, match="no daemon listens at"):
        Client.connect(tmp_path / "s")


def test_a_path_too_long_for_a_socket_is_a_usage_error() -> None:
    """Not that the daemon does not run."""
    with pytest.raises(UsageError, match="too long"):
        Client.connect(Path("/" + "x" * 200))


def test_a_daemon_that_takes_no_connections_is_given_up(tmp_path: Path) -> None:
    """Its backlog is full and stays so; the wait is as long as asked for."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        stack.enter_context(Client.connect(tmp_path / "s", timeout=0.2))
        with pytest.raises(AgentwatchError, match="takes no connections"):
            Client.connect(tmp_path / "s", timeout=0.2)


# Requests.


def test_answers_and_errors_are_the_daemons(daemon: Daemon) -> None:
    """A value, an error with its remedy, a value again; then the connection is closed."""
    with Client.connect(daemon.path) as client:
        assert client.request("echo", which="1", none=None) == {"which": "1", "none": None}
        with pytest.raises(AgentwatchError, match="not today") as caught:
            client.request("refuse")
        assert caught.value.remedy == "ask tomorrow"
        assert len(client.request("large", size=5_000_000)["text"]) == 5_000_000
    daemon.until(lambda: len(daemon.server) == 0)


def test_an_answer_that_does_not_come_is_given_up(daemon: Daemon) -> None:
    """And the connection with it: the answer to this might be taken for one to the next."""
    with Client.connect(daemon.path) as client:
        with pytest.raises(AgentwatchError, match=r"did not answer later within 0\.2 s"):
            client.request("later", timeout=0.2)
        with pytest.raises(UsageError, match="not for requests"):
            client.request("status")


def test_a_request_nobody_reads_is_given_up(tmp_path: Path) -> None:
    """Also while it is being sent, and when a byte comes now and then."""
    stop = threading.Event()

    def drip(connected: socket.socket) -> None:
        for byte in OK[:-1] * 99:
            if stop.wait(0.05):
                return
            connected.send(bytes([byte]))

    with listening(tmp_path / "s", drip) as path, Client.connect(path) as client:
        began = time.monotonic()
        with pytest.raises(AgentwatchError, match="did not answer"):
            client.request("status", timeout=0.3)
        assert time.monotonic() - began < 10
        stop.set()


def test_who_is_turned_away_learns_why(tmp_path: Path) -> None:
    """Also when the daemon has closed before the request was sent."""
    with running(tmp_path / "s", Limits(connections=1, reserved=0, per_uid=2)) as daemon:
        kept = Raw(daemon.path)
        assert kept.ask("status").value
        for _ in range(50):
            with (
                Client.connect(daemon.path) as client,
                pytest.raises(AgentwatchError, match="connections already"),
            ):
                client.request("status")
        kept.socket.close()


GARBAGE = {
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing in it": b"\0\0\0\0",
    "too long": b"\xff\xff\xff\xff",
    "no map": wire.HEAD.pack(1) + b"\xc0",
    "a stream frame": wire.encode_stream(Missed(1)),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_daemon_is_told_so(tmp_path: Path, data: bytes) -> None:
    """Something else listens there."""
    with (
        listening(tmp_path / "s", lambda connected: connected.sendall(data)) as path,
        Client.connect(path) as client,
        pytest.raises(AgentwatchError, match="control"),
    ):
        client.request("status")


@pytest.mark.parametrize("data", [b"", OK[:2], OK[:-1]], ids=len)
def test_a_daemon_that_goes_is_not_running(tmp_path: Path, data: bytes) -> None:
    """Whatever it had said by then."""
    with (
        listening(tmp_path / "s", lambda connected: connected.sendall(data)) as path,
        Client.connect(path) as client,
        pytest.raises(NotRunningError, match="the daemon is gone"),
    ):
        client.request("status")


def test_a_daemon_of_another_version_is_told_to_restart(tmp_path: Path) -> None:
    """With both versions."""
    raw = msgpack.packb({"v": 2, "ok": False, "code": 9, "text": "of a later time"})
    data = wire.HEAD.pack(len(raw)) + raw
    with (
        listening(tmp_path / "s", lambda connected: connected.sendall(data)) as path,
        Client.connect(path) as client,
        pytest.raises(AgentwatchError, match=r"speaks version 2 .* version 1") as caught,
    ):
        client.request("status")
    assert "restart the daemon" in caught.value.remedy


# Streams.


def test_a_stream_that_is_refused_raises_at_once(daemon: Daemon) -> None:
    """Before anything is asked of the iterator; the connection is as good as before."""
    with Client.connect(daemon.path) as client:
        with pytest.raises(AgentwatchError, match="not today"):
            client.stream("refuse")
        assert client.request("status")


def test_nothing_can_be_asked_behind_a_stream(daemon: Daemon) -> None:
    """It is the last thing a connection is used for."""
    with Client.connect(daemon.path) as client:
        client.stream("events")
        with pytest.raises(UsageError, match="not for requests"):
            client.request("status")


@pytest.mark.parametrize("tail", [b"", b"\0\0", wire.encode_stream(Missed(1))[:-1]], ids=len)
def test_a_stream_that_breaks_off_is_no_end(tmp_path: Path, tail: bytes) -> None:
    """What came before it is handed out first."""
    data = OK + wire.encode_stream(Streamed(1, 2, b"x")) + tail
    with (
        listening(tmp_path / "s", lambda connected: connected.sendall(data)) as path,
        Client.connect(path) as client,
    ):
        stream = client.stream("events")
        assert next(stream) == Streamed(1, 2, b"x")
        with pytest.raises(NotRunningError, match="the daemon is gone"):
            next(stream)
        assert client.ended is None


def test_a_stream_can_be_selected_on(daemon: Daemon) -> None:
    """What came together with the answer is not forgotten, and nothing makes it wait."""
    with Client.connect(daemon.path) as client:
        client.stream("events")
        assert client.arrived() == []
        assert select.select([client], [], [], 0) == ([], [], [])
        sent = [Streamed(1, n, b"x" * 100_000) for n in range(30)]
        daemon.send(*sent)
        got: list[wire.StreamFrame] = []
        while len(got) < 30:
            assert select.select([client], [], [], 20)[0]
            got += client.arrived()
        assert got == sent
        daemon.call(lambda: daemon.streams[0].end("stop"))
        assert select.select([client], [], [], 20)[0]
        assert client.arrived() == [End("stop")]
        assert client.ended == "stop"
        assert client.arrived() == []


def test_frames_that_came_with_the_answer_are_not_waited_for(tmp_path: Path) -> None:
    """They are no longer in the socket, so fileno() would not tell of them."""
    data = OK + wire.encode_stream(Missed(3)) + wire.encode_stream(End("x"))
    with (
        listening(tmp_path / "s", lambda connected: connected.sendall(data)) as path,
        Client.connect(path) as client,
    ):
        client.stream("events")
        assert client.arrived() == [Missed(3), End("x")]


SIGPIPE = """
import select, signal, socket, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], *sys.argv[3:]]
from agentwatch.control import wire
from agentwatch.control.client import Client
from agentwatch.control.server import Server
from agentwatch.errors import AgentwatchError

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
path, poller, streams = Path(sys.argv[2]), select.epoll(), []
server = Server(path, lambda peer, request, connection: streams.append(connection.stream()), poller)
with socket.socket(socket.AF_UNIX) as subscriber:
    subscriber.connect(str(path))
    subscriber.send(wire.encode_request(wire.Request("events")))
    while not streams:
        for fd, mask in poller.poll():
            server.ready(fd, mask)
streams[0].send(wire.encode_stream(wire.Missed(1)))
print(streams[0].closed, flush=True)
server.close("")

with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(path))
    listener.listen()
    client = Client.connect(path)
    listener.accept()[0].close()
try:
    client.request("status")
except AgentwatchError as error:
    print(type(error).__name__, flush=True)
"""


def test_nobody_dies_of_who_has_gone(tmp_path: Path) -> None:
    """Neither side, where SIGPIPE ends a process as it does by default."""
    packages = Path(msgpack.__file__).parents[1]
    with Process(SIGPIPE, REPOSITORY, tmp_path / "s", packages) as process:
        assert process.said() == "True"
        assert process.said() == "NotRunningError"
        assert process.wait() == 0 != -signal.SIGPIPE
