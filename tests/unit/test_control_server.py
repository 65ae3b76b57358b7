"""The daemon's side: everybody is answered, and nobody can keep it from answering the others."""

from __future__ import annotations

import gc
import os
import random
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from agentwatch.control import wire
from agentwatch.control.client import Client
from agentwatch.control.connection import Connection, Limits
from agentwatch.control.peer import Peer
from agentwatch.control.wire import End, Missed, Reply, Request, Streamed
from agentwatch.errors import PermissionDenied, RuleErrors
from tests.unit.control_loop import Daemon, Process, Raw, running

STATUS = wire.encode_request(Request("status"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path / "s") as daemon:
        yield daemon


def answers(daemon: Daemon) -> bool:
    """Whether a client that has just come gets what it asks for."""
    with Client.connect(daemon.path) as client:
        return client.request("status")["pid"] == os.getpid()


def connections(count: int) -> Limits:
    """Room for so many."""
    return Limits(connections=count, reserved=0, per_uid=count + 1)


# Answers.


def test_one_connection_carries_requests_one_after_the_other(daemon: Daemon) -> None:
    """An error is an answer too, and the next request is answered as if nothing had been."""
    with Raw(daemon.path) as raw:
        assert raw.ask("echo", x="caf\udce9", y=None).value == {"x": "caf\udce9", "y": None}
        refused = raw.ask("refuse").error
        assert refused is not None
        assert (refused.message, refused.remedy) == ("not today", "ask tomorrow")
        assert raw.ask("status").value == {
            "pid": os.getpid(),
            "uid": os.getuid(),
            "gid": os.getgid(),
        }


def test_requests_sent_ahead_are_answered_in_order(daemon: Daemon) -> None:
    """Also when they come in one piece, and the last is followed by the end of what is sent."""
    with Raw(daemon.path) as raw:
        frames = [wire.encode_request(Request("echo", {"n": n})) for n in range(200)]
        raw.send(b"".join(frames))
        raw.socket.shutdown(socket.SHUT_WR)
        assert [raw.reply().value["n"] for _ in frames] == list(range(200))
        assert raw.at_end()


def test_a_request_may_come_a_byte_at_a_time(daemon: Daemon) -> None:
    """Wherever it is cut."""
    with Raw(daemon.path) as raw:
        for at in range(len(STATUS)):
            raw.send(STATUS[at : at + 1])
            daemon.call(lambda: None)
        assert raw.reply().value["pid"] == os.getpid()


def test_a_large_answer_arrives_whole(daemon: Daemon) -> None:
    """Over many turns of the loop, as the client reads."""
    with Raw(daemon.path) as raw:
        assert len(raw.ask("large", size=8 << 20).value["text"]) == 8 << 20


def test_an_answer_may_come_later(daemon: Daemon) -> None:
    """Others are answered meanwhile; what the client sends ahead waits."""
    with Raw(daemon.path) as raw:
        raw.send(wire.encode_request(Request("later")) + STATUS)
        daemon.until(lambda: bool(daemon.pending))
        assert answers(daemon)
        handled = daemon.handled
        daemon.after(3600)
        daemon.call(lambda: daemon.pending[0].reply(Reply({"done": True})))
        assert raw.reply().value == {"done": True}
        assert raw.reply().value["pid"] == os.getpid()
        assert daemon.handled == handled + 1


def test_a_late_answer_to_who_has_gone_is_nothing(daemon: Daemon) -> None:
    """A reply and a stream for a client that did not wait."""
    with Raw(daemon.path) as one, Raw(daemon.path) as other:
        one.send(wire.encode_request(Request("later")))
        other.send(wire.encode_request(Request("later")))
        daemon.until(lambda: len(daemon.pending) == 2)
    daemon.until(lambda: len(daemon.server) == 0)
    daemon.call(lambda: daemon.pending[0].reply(Reply()))
    stream = daemon.call(lambda: daemon.pending[1].stream())
    assert stream.closed
    daemon.call(lambda: stream.send(b"x"))
    daemon.call(lambda: stream.end("x"))


def test_an_answer_is_given_once(daemon: Daemon) -> None:
    """A second one would be taken for the answer to the next request."""
    with Raw(daemon.path) as raw:
        raw.send(wire.encode_request(Request("later")))
        daemon.until(lambda: bool(daemon.pending))
        daemon.call(lambda: daemon.pending[0].reply(Reply()))
        with pytest.raises(RuntimeError, match="no request"):
            daemon.call(lambda: daemon.pending[0].reply(Reply()))


def test_a_bug_in_one_answer_is_told_to_the_daemon_only(daemon: Daemon) -> None:
    """The client learns of which type it was, nothing else; the loop goes on."""
    with Raw(daemon.path) as raw:
        error = raw.ask("bug").error
        assert error is not None
        assert "KeyError" in error.message
        assert "secret" not in str(error)
        assert "secret of somebody else" in daemon.server.failure
        assert raw.ask("status").value


def test_a_bug_behind_an_answer_ends_the_connection(daemon: Daemon) -> None:
    """There is no way left to say it."""
    with Raw(daemon.path) as raw:
        assert raw.ask("broken") == Reply()
        assert raw.at_end()
    assert answers(daemon)


def test_refused_rules_reach_the_client_as_such(daemon: Daemon) -> None:
    """Exit code 1, without remedy: the diagnostics are the answer."""
    with Raw(daemon.path) as raw:
        error = raw.ask("rules.reload").error
        assert error is not None
        assert error.message == str(RuleErrors(()))


# Hostile clients.

BAD = {
    "a length of 0": b"\0\0\0\0",
    "a length of 2^32-1": b"\xff\xff\xff\xff",
    "one byte more than is allowed": wire.HEAD.pack(wire.REQUEST_MAX + 1),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "deep nesting": wire.HEAD.pack(65536) + b"\x91" * 65536,
    "many keys": wire.HEAD.pack(5 + 65531) + b"\xdf\x00\x00\xff\xfb" + b"\xc0" * 65531,
    "another version": wire.HEAD.pack(3) + b"\x81\xa1v",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_garbage_is_told_so_and_cut_off(daemon: Daemon, data: bytes) -> None:
    """One error, then the end; nobody else notices."""
    with Raw(daemon.path) as raw, Raw(daemon.path) as other:
        raw.send(data)
        assert raw.error().remedy
        assert other.ask("status").value
    assert daemon.handled == 1


def test_random_bytes_never_end_the_loop(daemon: Daemon) -> None:
    """1,000 clients send noise or damaged requests, whole or cut; then one is answered."""
    chance = random.Random(3)
    for turn in range(1000):
        with Raw(daemon.path) as raw:
            data = bytearray(chance.randbytes(chance.randrange(64)))
            if turn % 2:
                data = bytearray(STATUS * 2)
                data[chance.randrange(len(data))] = chance.randrange(256)
            raw.send(bytes(data[: chance.randrange(1, 99)]))
            if turn % 3 == 0:
                raw.socket.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    while raw.socket.recv(4096):
                        pass
    assert answers(daemon)
    daemon.until(lambda: len(daemon.server) == 0)


def test_half_a_request_is_cut_off_after_5_s(daemon: Daemon) -> None:
    """From its first byte on, however often another one comes."""
    with Raw(daemon.path) as raw:
        raw.send(STATUS[:3])
        daemon.until(lambda: len(daemon.server) == 1)
        time.sleep(0.05)
        raw.send(STATUS[3:-1])
        daemon.after(4)
        assert len(daemon.server) == 1
        daemon.after(5.1)
        assert "5 s" in raw.error().message
    assert answers(daemon)


def test_who_asks_nothing_is_cut_off_after_a_minute(daemon: Daemon) -> None:
    """Counted from the last answer."""
    with Raw(daemon.path) as raw:
        assert raw.ask("status").value
        daemon.after(59)
        assert len(daemon.server) == 1
        daemon.after(61)
        assert raw.at_end()


def test_who_never_reads_an_answer_is_not_read_either(daemon: Daemon) -> None:
    """As many requests are handled as fit into the sockets, and one answer waits."""
    request = wire.encode_request(Request("large", {"size": 100_000}))
    with Raw(daemon.path) as raw:
        raw.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                raw.socket.send(request)
        daemon.until(lambda: daemon.handled > 0)
        assert answers(daemon)
        queued = daemon.call(lambda: [c.queued for c in daemon.server._connections.values()])
        assert daemon.handled < 20
        assert sum(queued) < 110_000
        daemon.after(59)
        assert len(daemon.server) >= 1
        daemon.after(62)
        daemon.until(lambda: len(daemon.server) == 0)


def test_an_idle_loop_sleeps(daemon: Daemon) -> None:
    """Clients that wait, half-closed subscribers and full ones do not make the poller return."""
    with ExitStack() as stack:
        idle = stack.enter_context(Raw(daemon.path))
        assert idle.ask("status").value
        half = stack.enter_context(Raw(daemon.path))
        assert half.ask("events") == Reply()
        half.socket.shutdown(socket.SHUT_WR)
        full = stack.enter_context(Raw(daemon.path))
        assert full.ask("events") == Reply()
        full.send(STATUS)  # of no use any more
        asks = stack.enter_context(Raw(daemon.path))
        asks.send(wire.encode_request(Request("later")) + STATUS)
        daemon.until(lambda: bool(daemon.pending))
        daemon.send(*[Streamed(1, 1, b"x" * 400_000)] * 20)
        before = daemon.turns
        time.sleep(0.5)
        assert daemon.turns - before < 20
        assert daemon.server.subscribers == 2


def test_a_turn_of_the_loop_is_bounded(daemon: Daemon) -> None:
    """Of 100 requests that are there, one is handled when the poller says so once."""
    with Raw(daemon.path) as raw:
        assert raw.ask("status").value
        (fd,) = daemon.call(lambda: list(daemon.server._connections))

        def turn() -> int:
            raw.send(STATUS * 100)
            before = daemon.handled
            daemon.server.ready(fd, select.EPOLLIN)
            return daemon.handled - before

        assert daemon.call(turn) == 1
        for _ in range(100):
            assert raw.reply().value


# Many of them.


def test_connections_over_the_limit_are_told_and_closed(tmp_path: Path) -> None:
    """The others keep theirs, and a slot that becomes free is given to the next."""
    with running(tmp_path / "s", connections(4)) as daemon, ExitStack() as stack:
        kept = [stack.enter_context(Raw(daemon.path)) for _ in range(4)]
        assert all(raw.ask("status").value for raw in kept)
        for _ in range(50):
            with Raw(daemon.path) as raw:
                assert "4 connections already" in raw.error().message
        kept[0].socket.close()
        daemon.until(lambda: len(daemon.server) == 3)
        assert answers(daemon)


def test_a_crowd_at_the_door_is_let_in_a_few_at_a_time(tmp_path: Path) -> None:
    """One turn takes as many as the limits say."""
    with running(tmp_path / "s", Limits(accepts=3)) as daemon, ExitStack() as stack:

        def crowd() -> list[int]:
            for _ in range(7):
                stack.enter_context(Raw(daemon.path))
            fd = daemon.server._listener.fileno()
            counts = []
            for _ in range(4):
                daemon.server.ready(fd, select.EPOLLIN)
                counts.append(len(daemon.server))
            return counts

        assert daemon.call(crowd) == [3, 6, 7, 7]


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fill: list[int] = []
    try:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with suppress(OSError):
            while True:
                fill.append(os.dup(0))
        for _ in range(count):
            os.close(fill.pop())
        yield
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_it_waits_and_goes_on(daemon: Daemon) -> None:
    """EMFILE at accept does not make the loop spin; who waited is answered when there is one."""
    with ExitStack() as stack:
        kept = stack.enter_context(Raw(daemon.path))
        assert kept.ask("status").value
        waiting = [stack.enter_context(_unconnected()) for _ in range(2)]
        with descriptors_left(0):
            for one in waiting:
                one.connect(str(daemon.path))
                one.send(STATUS)
            before = daemon.turns
            time.sleep(1)
            assert daemon.turns - before < 60
            assert len(daemon.server) == 1
            assert kept.ask("status").value
        for one in waiting:
            one.settimeout(20)
            assert one.recv(4096)


def test_with_one_descriptor_left_who_connects_is_told(daemon: Daemon) -> None:
    """Enough for the connection and not for the proof of who it is: refused, not trusted."""
    with _unconnected() as one:
        with descriptors_left(1):
            one.connect(str(daemon.path))
            one.settimeout(20)
            answer = one.recv(4096)
        error = wire.decode_reply(answer[wire.HEAD.size :]).error
        assert error is not None
        assert "Too many open files" in error.message
        assert daemon.handled == 0


def _unconnected() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def test_descriptors_do_not_leak(daemon: Daemon) -> None:
    """300 clients that were answered, cut off or gone leave none open."""
    assert answers(daemon)
    daemon.until(lambda: len(daemon.server) == 0)
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(300):
        with Raw(daemon.path) as raw:
            if turn % 3:
                raw.send(STATUS if turn % 2 else b"\xff" * 9)
            if turn % 5 == 0:
                raw.reply() if turn % 3 and turn % 2 else None
    daemon.until(lambda: len(daemon.server) == 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_event_of_a_descriptors_former_owner_harms_nobody(daemon: Daemon) -> None:
    """A hang-up that the poller told of the connection that had this number before."""
    with Raw(daemon.path) as raw:
        assert raw.ask("status").value
        (fd,) = daemon.call(lambda: list(daemon.server._connections))
        mask = select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
        daemon.call(lambda: daemon.server.ready(fd, mask))
        assert raw.ask("status").value
    assert 9999 not in daemon.server
    daemon.call(lambda: daemon.server.ready(9999, mask))


# Who is at the other end.

CONNECTS = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.readline()
"""
HANDS_OVER = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(bytes.fromhex(sys.argv[3]))
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"x"], [s.fileno()])
sys.stdin.readline()
"""


def test_a_peer_is_the_process_that_connected(tmp_path: Path) -> None:
    """Its pid and ids, and whether it still runs, are the kernel's."""
    listener = _unconnected()
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    with listener, Process(CONNECTS, tmp_path / "s") as process:
        connected, _ = listener.accept()
        with connected:
            peer = Peer.of(connected)
            assert (peer.pid, peer.uid, peer.gid) == (process.pid, os.getuid(), os.getgid())
            assert peer.alive
            process.tell()
            process.wait()
            assert not peer.alive
            peer.close()
            with pytest.raises(PermissionDenied, match=f"process {process.pid}, .* has ended"):
                Peer.of(connected)


def test_a_peer_is_known_without_the_kernels_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no SO_PEERPIDFD: the option's number is one that no kernel has."""
    monkeypatch.setattr("agentwatch.control.peer.SO_PEERPIDFD", 9999)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer.of(ours)
        assert peer.pid == os.getpid()
        assert peer.alive
        peer.close()


def handed_over(
    daemon: Daemon, stack: ExitStack, *requests: Request
) -> tuple[socket.socket, Process]:
    """A connection that a process made, which sent requests on it and handed it to us."""
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    with theirs:
        sent = b"".join(map(wire.encode_request, requests)).hex()
        process = Process(
            HANDS_OVER, daemon.path, theirs.fileno(), sent, pass_fds=(theirs.fileno(),)
        )
    stack.enter_context(process)
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    connected = stack.enter_context(socket.socket(fileno=fds[0]))
    connected.settimeout(20)
    return connected, process


def test_a_connection_of_a_dead_process_answers_nobody(daemon: Daemon) -> None:
    """Who inherited it, or was handed it, is not who connected."""
    with ExitStack() as stack:
        connected, process = handed_over(daemon, stack, Request("status"))
        assert wire.decode_reply(connected.recv(4096)[4:]).value["pid"] == process.pid
        process.tell()
        process.wait()
        connected.send(STATUS)
        assert connected.recv(1) == b""
        assert daemon.handled == 1


def test_a_late_answer_is_not_for_who_holds_the_connection(daemon: Daemon) -> None:
    """The process that asked has ended since: what it asked for is not told, streams neither."""
    for verb in ("reply", "stream"):
        with ExitStack() as stack:
            connected, process = handed_over(daemon, stack, Request("later"))
            daemon.until(lambda: bool(daemon.pending))
            connection = daemon.pending.pop()

            def end_and_answer(
                verb: str = verb, process: Process = process, connection: Connection = connection
            ) -> None:
                process.tell()
                process.wait()
                if verb == "reply":
                    connection.reply(Reply({"secret": 1}))
                else:
                    assert connection.stream().closed

            daemon.call(end_and_answer)
            assert connected.recv(1) == b""


def test_a_stream_ends_with_the_process_that_asked(daemon: Daemon) -> None:
    """Even though somebody else holds the connection open."""
    with ExitStack() as stack:
        connected, process = handed_over(daemon, stack, Request("events"))
        daemon.until(lambda: daemon.server.subscribers == 1)
        process.tell()
        process.wait()
        daemon.until(lambda: len(daemon.server) == 0)
        assert daemon.streams[0].closed
        connected.recv(4096)
        assert connected.recv(1) == b""


# Streams.


def test_a_stream_is_answered_then_sent_in_order(daemon: Daemon) -> None:
    """Frames, and the reason for the end."""
    with Client.connect(daemon.path) as client:
        stream = client.stream("events", follow=True)
        sent = [Streamed(n % 5, n, bytes([n])) for n in range(100)]
        daemon.send(*sent)
        daemon.call(lambda: daemon.streams[0].end("tagged"))
        assert list(stream) == sent
        assert client.ended == "tagged"
        assert daemon.streams[0].closed
    daemon.until(lambda: len(daemon.server) == 0)


class Reader(threading.Thread):
    """A subscriber that reads everything."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.client = Client.connect(path)
        self.frames: list[int] = []
        self.missed = 0
        self._stream = self.client.stream("events")

    def run(self) -> None:
        for frame in self._stream:
            if isinstance(frame, Missed):
                self.missed += frame.count
            else:
                self.frames.append(frame.time)
        self.client.close()


def test_one_of_50_subscribers_that_does_not_read_harms_nobody(tmp_path: Path) -> None:
    """49 get all of 25 MB in order; the one gets what fits, how much it missed, then what is new.

    What waits for it is no more than its queue.
    """
    limits = Limits(per_uid=64)
    payload = b"x" * 50_000
    with running(tmp_path / "s", limits) as daemon, Client.connect(daemon.path) as slow:
        sluggish = slow.stream("events")
        readers = [Reader(daemon.path) for _ in range(49)]
        for reader in readers:
            reader.start()
        for number in range(500):
            daemon.send(Streamed(1, number, payload))
            waits = daemon.streams[0].connection.queued
            assert waits <= limits.queue
            if number % 50 == 49:  # the others are one process with us: they get their turn
                daemon.until(lambda: all(not s.connection.queued for s in daemon.streams[1:]))
        assert waits > limits.queue - 51_000
        dropped = daemon.streams[0].dropped
        assert 400 < dropped < 500
        daemon.call(lambda: [stream.end("done") for stream in daemon.streams[1:]])
        for reader in readers:
            reader.join(20)
            assert (reader.frames, reader.missed) == (list(range(500)), 0)
            assert reader.client.ended == "done"
        assert [_time(next(sluggish)) for _ in range(500 - dropped)] == list(range(500 - dropped))
        assert next(sluggish) == Missed(dropped)
        daemon.send(Streamed(1, 500, payload))
        assert _time(next(sluggish)) == 500


def _time(frame: Streamed | Missed) -> int:
    assert isinstance(frame, Streamed)
    return frame.time


def test_frames_are_shared_by_all_who_wait_for_them(tmp_path: Path) -> None:
    """50 subscribers that do not read cost one copy of a frame, not 50."""
    with running(tmp_path / "s", Limits(per_uid=64)) as daemon, ExitStack() as stack:
        for _ in range(50):
            assert stack.enter_context(Raw(daemon.path)).ask("events") == Reply()
        data = wire.encode_stream(Streamed(1, 1, b"x" * 1_000_000))
        daemon.call(lambda: [stream.send(data) for stream in daemon.streams])
        waiting = daemon.call(lambda: [stream.connection._out[0].obj for stream in daemon.streams])
        assert all(one is data for one in waiting)


@pytest.mark.parametrize("seed", range(5))
def test_every_frame_is_sent_or_counted_in_its_place(tmp_path: Path, seed: int) -> None:
    """Whatever the sizes and however the client reads: between two frames the hole is told."""
    chance = random.Random(seed)
    with running(tmp_path / "s", Limits(queue=300_000)) as daemon, Raw(daemon.path) as raw:
        raw.ask("events")
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        expected, seen, missed = 0, 0, 0

        def read() -> None:
            nonlocal expected, seen, missed
            match wire.decode_stream(raw.body()):
                case Missed(count):
                    assert count > 0
                    expected += count
                    missed += count
                case Streamed(_, number, _):
                    assert number == expected
                    expected += 1
                    seen += 1

        for number in range(600):
            daemon.send(Streamed(1, number, b"x" * chance.randrange(60_000)))
            if number % 100 < 40 and expected <= number - 40:
                read()
        daemon.call(lambda: daemon.streams[0].send(wire.encode_stream(Streamed(1, 600, b""))))
        dropped = daemon.streams[0].dropped
        while expected < 601:
            read()
        assert seen + missed == 601
        assert missed == dropped > 0


def test_a_frame_larger_than_the_queue_is_missed(tmp_path: Path) -> None:
    """And told at once, as there is room for that."""
    with running(tmp_path / "s", Limits(queue=1000)) as daemon, Raw(daemon.path) as raw:
        raw.ask("events")
        daemon.send(Streamed(1, 1, b"x" * 1000), Streamed(1, 2, b"x"))
        assert wire.decode_stream(raw.body()) == Missed(1)
        assert wire.decode_stream(raw.body()) == Streamed(1, 2, b"x")


def test_the_end_of_a_stream_is_told_behind_what_waits(tmp_path: Path) -> None:
    """What was missed too; then the connection is closed."""
    with running(tmp_path / "s", Limits(queue=600_000)) as daemon, Raw(daemon.path) as raw:
        raw.ask("events")
        daemon.send(*[Streamed(1, 1, b"x" * 100_000)] * 20)
        daemon.call(lambda: daemon.streams[0].end("tagged"))
        got = []
        while not isinstance(frame := wire.decode_stream(raw.body()), End):
            got.append(frame)
        assert isinstance(got[-1], Missed)
        assert len(got) - 1 + got[-1].count == 20
        assert frame == End("tagged")
        assert raw.at_end()


def test_an_ended_stream_nobody_reads_is_cut_off_after_5_s(daemon: Daemon) -> None:
    """Its slot is somebody else's then."""
    with Raw(daemon.path) as raw:
        raw.ask("events")
        daemon.send(*[Streamed(1, 1, b"x" * 100_000)] * 20)
        time.sleep(0.5)  # it has not read for longer than it is given from now on

        def end() -> None:
            daemon.streams[0].end("stop")
            daemon.server.tick(time.monotonic() + 4.9)
            assert len(daemon.server) == 1

        daemon.call(end)
        daemon.after(6)
        assert len(daemon.server) == 0


def test_a_subscriber_may_pause_for_as_long_as_it_wants(daemon: Daemon) -> None:
    """A pager waits for a key all day; its queue is all it costs."""
    with Raw(daemon.path) as raw:
        raw.ask("events")
        daemon.send(*[Streamed(1, 1, b"x" * 100_000)] * 20)
        daemon.after(86400)
        assert daemon.server.subscribers == 1
        one_go = daemon.call(lambda: daemon.streams[0].connection._batch())
        assert sum(map(len, one_go)) == 256 << 10
        for _ in range(20):
            assert wire.decode_stream(raw.body()) == Streamed(1, 1, b"x" * 100_000)


def test_a_subscriber_that_dies_frees_its_slot(daemon: Daemon) -> None:
    """Found while sending, too, in the middle of a round to all."""
    raws = [Raw(daemon.path) for _ in range(5)]
    for raw in raws:
        raw.ask("events")

    def die_and_send() -> None:
        for raw in raws[::2]:
            raw.socket.close()
        data = wire.encode_stream(Streamed(1, 7, b""))
        for stream in daemon.streams:
            stream.send(data)

    daemon.call(die_and_send)
    assert [stream.closed for stream in daemon.streams] == [True, False, True, False, True]
    assert len(daemon.server) == 2
    for raw in raws[1::2]:
        assert wire.decode_stream(raw.body()) == Streamed(1, 7, b"")
        raw.socket.close()


# Its end.


def test_whoever_is_connected_is_told_that_it_stops(tmp_path: Path) -> None:
    """Subscribers get the end, who waits for an answer an error; the socket is gone."""
    daemon = Daemon(tmp_path / "s")
    with Raw(daemon.path) as idle, Raw(daemon.path) as waits, Client.connect(daemon.path) as reads:
        stream = reads.stream("events")
        waits.send(wire.encode_request(Request("later")))
        daemon.until(lambda: bool(daemon.pending))
        assert idle.ask("status").value
        daemon.send(Streamed(1, 1, b""))
        daemon.stop()
        assert list(stream) == [Streamed(1, 1, b"")]
        assert reads.ended == "stopped"
        assert "no answer: stopped" in waits.error().message
        assert idle.at_end()
    assert sorted(os.listdir(tmp_path)) == ["s.lock"]
    assert len(daemon.server) == 0
    assert all(fd not in daemon.server for fd in range(100))
    daemon.server.close("twice")
    daemon.server.tick()
    daemon.pending[0].reply(Reply())


def test_a_server_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    """No descriptor, whoever was connected."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        daemon = Daemon(tmp_path / "s")
        with Raw(daemon.path) as raw:
            raw.ask("events")
            daemon.stop()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
