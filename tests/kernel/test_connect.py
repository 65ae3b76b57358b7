"""Every connect is recorded with whom it reached; TCP is told by the kernel's own socket."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.events import Connect, error_name
from tests.kernel.recording import Recorder, call, tell

pytestmark = pytest.mark.root

CONNECT = 42
MSG_FASTOPEN = 0x20000000
TCP = socket.SOCK_STREAM
UDP = socket.SOCK_DGRAM

Address = tuple[str, int]


@pytest.fixture
def listener() -> Iterator[Address]:
    """A TCP port of 127.0.0.1 that accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def listener6() -> Iterator[Address]:
    """A TCP port of ::1 that accepts, and not for IPv4."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        yield server.getsockname()[:2]


@pytest.fixture
def nobody() -> Iterator[Address]:
    """A TCP port of 127.0.0.1 that is taken, so that nobody else listens there, and refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


def reached(event: Connect) -> tuple[str, int, str, int, bool]:
    return (event.addr, event.port, event.protocol, event.result, event.from_socket)


def test_a_TCP_connection_is_one_connect_and_one_syn(recorder: Recorder, listener: Address) -> None:
    """Address, port and protocol from the kernel's socket in both; the result in the connect."""
    host, port = listener

    def act() -> None:
        with socket.socket() as client:
            tell(client.connect_ex(listener))

    seen = recorder.record(act)
    (connect,), (syn,) = seen.connects, seen.syns
    assert seen.told == (0,)
    assert reached(connect) == reached(syn) == (host, port, "tcp", 0, True)
    assert connect.family == syn.family == socket.AF_INET
    assert (connect.unix, connect.unresolved) == ("", frozenset())
    assert syn.time < connect.time
    assert syn.process == connect.process == seen.session


def test_a_TCP_connection_over_IPv6(recorder: Recorder, listener6: Address) -> None:
    """All 16 bytes of the address."""

    def act() -> None:
        with socket.socket(socket.AF_INET6) as client:
            client.connect(listener6)

    seen = recorder.record(act)
    (connect,), (syn,) = seen.connects, seen.syns
    assert reached(connect) == reached(syn) == ("::1", listener6[1], "tcp", 0, True)
    assert connect.family == syn.family == socket.AF_INET6


def test_an_IPv4_address_in_IPv6_clothes_is_recorded_as_asked(
    recorder: Recorder, listener: Address
) -> None:
    """A mapped address reaches the IPv4 port, and its records carry the mapped form."""
    mapped = "::ffff:" + listener[0]

    def act() -> None:
        with socket.socket(socket.AF_INET6) as client:
            client.connect((mapped, listener[1]))

    seen = recorder.record(act)
    (connect,), (syn,) = seen.connects, seen.syns
    assert reached(connect) == reached(syn) == (mapped, listener[1], "tcp", 0, True)


def test_the_any_address_is_recorded_as_where_it_leads(
    recorder: Recorder, listener: Address
) -> None:
    """0.0.0.0 reaches this host, and the kernel's socket says so."""

    def act() -> None:
        with socket.socket() as client:
            client.connect(("0.0.0.0", listener[1]))

    seen = recorder.record(act)
    (connect,), (syn,) = seen.connects, seen.syns
    assert connect.addr == syn.addr == "127.0.0.1"


def test_a_refused_connection_is_a_syn_and_a_failed_connect(
    recorder: Recorder, nobody: Address
) -> None:
    """The first packet went out; the connect has -errno and the address as asked."""

    def act() -> None:
        with socket.socket() as client:
            tell(client.connect_ex(nobody))

    seen = recorder.record(act)
    (connect,), (syn,) = seen.connects, seen.syns
    assert seen.told == (errno.ECONNREFUSED,)
    assert reached(connect) == (*nobody, "tcp", -errno.ECONNREFUSED, False)
    assert reached(syn) == (*nobody, "tcp", 0, True)


def test_a_connect_that_does_not_wait_is_in_progress(recorder: Recorder, listener: Address) -> None:
    """EINPROGRESS counts as begun: its address comes from the kernel's socket."""

    def act() -> None:
        with socket.socket() as client:
            client.setblocking(False)
            tell(client.connect_ex(listener))

    seen = recorder.record(act)
    (connect,) = seen.connects
    assert seen.told == (errno.EINPROGRESS,)
    assert reached(connect) == (*listener, "tcp", -errno.EINPROGRESS, True)
    assert len(seen.syns) == 1


def sockaddr(host: str, port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def test_connects_of_what_is_no_socket_are_recorded(recorder: Recorder) -> None:
    """EBADF, ENOTSOCK, EINVAL and EFAULT each with what the caller gave, and never a syn."""
    address = sockaddr("192.0.2.1", 4321)

    def act() -> None:
        tell(call(CONNECT, 999, address, len(address)))
        tell(call(CONNECT, 1, address, len(address)))
        with socket.socket() as client:
            tell(call(CONNECT, client.fileno(), address, 1))
            tell(call(CONNECT, client.fileno(), 8, 16))

    seen = recorder.record(act)
    assert list(seen.told) == [-errno.EBADF, -errno.ENOTSOCK, -errno.EINVAL, -errno.EFAULT]
    assert [event.result for event in seen.connects] == list(seen.told)
    assert [event.addr for event in seen.connects] == ["192.0.2.1", "192.0.2.1", "", ""]
    assert [event.unresolved for event in seen.connects] == [
        frozenset(),
        frozenset(),
        frozenset({"address"}),
        frozenset({"address"}),
    ]
    assert seen.syns == []


def test_a_connected_UDP_socket_and_its_next_address(recorder: Recorder) -> None:
    """connect of a UDP socket is recorded each time, from the kernel's socket; there is no syn."""
    first, second = ("127.0.0.1", 5353), ("127.0.0.2", 53)

    def act() -> None:
        with socket.socket(socket.AF_INET, UDP) as client:
            client.connect(first)
            client.connect(second)

    seen = recorder.record(act)
    assert [reached(event) for event in seen.connects] == [
        (*first, "udp", 0, True),
        (*second, "udp", 0, True),
    ]
    assert seen.syns == []


def test_undoing_a_connection_reaches_nobody(recorder: Recorder) -> None:
    """AF_UNSPEC has no address; the record says the family that was asked for."""

    def act() -> None:
        with socket.socket(socket.AF_INET, UDP) as client:
            client.connect(("127.0.0.1", 9))
            tell(call(CONNECT, client.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16))

    seen = recorder.record(act)
    undone = seen.connects[-1]
    assert seen.told == (0,)
    assert (undone.family, undone.addr, undone.port, undone.result) == (0, "", 0, 0)


def test_a_TCP_Fast_Open_without_connect_is_a_syn(recorder: Recorder, listener: Address) -> None:
    """sendto with MSG_FASTOPEN connects: no connect call, one syn with the address."""

    def act() -> None:
        with socket.socket() as client:
            tell(client.sendto(b"hello", MSG_FASTOPEN, listener))

    seen = recorder.record(act)
    assert seen.told == (5,)
    assert seen.connects == []
    (syn,) = seen.syns
    assert reached(syn) == (*listener, "tcp", 0, True)


def test_many_TCP_connections_are_told_apart(recorder: Recorder, listener: Address) -> None:
    """One connect and one syn for each, none lost and none twice."""

    def act() -> None:
        for _ in range(20):
            with socket.socket() as client:
                client.connect(listener)

    seen = recorder.record(act)
    assert (len(seen.connects), len(seen.syns)) == (20, 20)


def test_accepting_is_not_connecting(recorder: Recorder) -> None:
    """Connections that others make to an agent are none of its own."""

    def act() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5)
            with socket.socket() as client:
                client.connect(server.getsockname())
                server.accept()[0].close()

    seen = recorder.record(act)
    assert (len(seen.connects), len(seen.syns)) == (1, 1)


# Unix sockets.


@pytest.fixture
def unix(place: Path) -> Iterator[Path]:
    """A listening unix socket below the place."""
    path = place / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        yield path


def test_a_unix_socket_is_named_by_its_file(recorder: Recorder, unix: Path) -> None:
    """The canonical path of the file the peer is bound to."""

    def act() -> None:
        socket.socket(socket.AF_UNIX).connect(os.fspath(unix))

    (event,) = recorder.record(act).connects
    assert (event.unix, event.result, event.from_socket) == (str(unix), 0, True)
    assert (event.family, event.protocol, event.addr, event.port) == (1, "unix", "", 0)


def test_a_unix_socket_by_another_name_is_named_by_its_file(recorder: Recorder, unix: Path) -> None:
    """A relative name and a symbolic link lead to the same socket."""
    (unix.parent / "link").symlink_to(unix)

    def act() -> None:
        os.chdir(unix.parent)
        for name in ("socket", "link", f"../{unix.parent.name}/socket"):
            socket.socket(socket.AF_UNIX).connect(name)

    seen = recorder.record(act)
    assert [event.unix for event in seen.connects] == [str(unix)] * 3


def test_a_unix_datagram_socket_is_named_by_its_file(recorder: Recorder, place: Path) -> None:
    """Connected datagram sockets too."""
    path = os.fspath(place / "datagrams")

    def act() -> None:
        socket.socket(socket.AF_UNIX, UDP).connect(path)

    with socket.socket(socket.AF_UNIX, UDP) as server:
        server.bind(path)
        (event,) = recorder.record(act).connects
    assert (event.unix, event.from_socket) == (path, True)


@pytest.mark.parametrize("name", [b"agentwatch-test", b"with\0nul", b"\xff\n", b"x" * 107])
def test_an_abstract_socket_is_named_with_an_at(recorder: Recorder, name: bytes) -> None:
    """All bytes of an abstract name, NULs and the longest included."""
    full = b"\0" + name if len(name) > 100 else b"\0%d-" % os.getpid() + name

    def act() -> None:
        socket.socket(socket.AF_UNIX).connect(full)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(full)
        server.listen()
        (event,) = recorder.record(act).connects
    assert os.fsencode(event.unix) == b"@" + full[1:]
    assert event.result == 0


def test_a_unix_socket_that_is_not_there_is_named_as_asked(recorder: Recorder, place: Path) -> None:
    """A failed connect has the name that was asked for, NUL-terminated or not."""
    names = [os.fsencode(place / "absent"), b"/" + b"y" * 107]

    def act() -> None:
        for name in names:
            address = struct.pack("=H", socket.AF_UNIX) + name
            tell(call(CONNECT, socket.socket(socket.AF_UNIX).detach(), address, len(address)))

    seen = recorder.record(act)
    assert list(seen.told) == [-errno.ENOENT] * 2
    assert [event.result for event in seen.connects] == list(seen.told)
    assert [os.fsencode(event.unix) for event in seen.connects] == names
    assert not any(event.from_socket for event in seen.connects)


def test_other_families_are_recorded_by_their_number(recorder: Recorder) -> None:
    """A netlink socket connects to the kernel: no address in text, but a record."""

    def act() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as client:
            client.connect((0, 0))

    (event,) = recorder.record(act).connects
    assert (event.family, event.addr, event.result) == (socket.AF_NETLINK, "", 0)


def test_an_interrupted_connect_is_recorded_with_its_syn(recorder: Recorder) -> None:
    """Nobody answers and a signal ends the wait: the packet was told before, the end as it was."""

    def act() -> None:
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.siginterrupt(signal.SIGALRM, True)
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)  # room for one that nobody accepts
            first.connect(full.getsockname())
            address = sockaddr(*full.getsockname())
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            tell(call(CONNECT, second.fileno(), address, len(address)))

    seen = recorder.record(act)
    assert seen.told == (-errno.EINTR,)
    assert error_name(seen.connects[-1].result) == "ERESTARTSYS"
    assert [event.addr for event in seen.syns] == ["127.0.0.1"] * 2


@pytest.mark.parametrize("family", ["udp", "unix"])
def test_rewriting_the_family_during_the_call_hides_nobody(
    recorder: Recorder, programs: Path, place: Path, family: str
) -> None:
    """A sibling thread that flips it wins no record that says something else was reached."""
    path = place / "listening"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(256)
        argument = "udp" if family == "udp" else str(path)

        def act() -> None:
            os.execv(programs / "rewrites", ["rewrites", argument])

        for _ in range(30):  # on a busy machine the two threads may never meet
            seen = recorder.record(act)
            told = int(seen.told[0])
            if told:
                break
    assert told > 0
    if family == "udp":
        reached = [e for e in seen.connects if (e.addr, e.port) == ("127.0.0.9", 9)]
    else:
        reached = [e for e in seen.connects if e.unix == str(path)]
    assert sum(event.result == 0 and event.from_socket for event in reached) == told
