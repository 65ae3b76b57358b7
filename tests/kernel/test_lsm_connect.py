"""Connections under BPF LSM: of every family, before anything is sent."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from agentwatch.kernel import lsm
from agentwatch.kernel.probes import Probes
from tests.kernel.law import Law
from tests.kernel.recording import call, tell
from tests.kernel.test_lsm import failure

pytestmark = pytest.mark.lsm

SENDTO = 44


@pytest.fixture(autouse=True)
def hooks(probes: Probes) -> frozenset[str]:
    """All that a kernel with BPF LSM has are attached; programs of control groups are not."""
    assert probes.hooks >= lsm.HOOKS_NEEDED
    return probes.hooks


def test_a_denied_port_is_refused_by_every_way_to_it(law: Law) -> None:
    """TCP and UDP, IPv4 and mapped, no address at all, datagrams with an address of their own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0)
        law.rule(("connect", f'{{addr: ["127.0.0.1", "::1"], port: {port}}}', "deny"))

        def to(family: int, kind: int, address: str) -> str:
            with socket.socket(family, kind) as made:
                return failure(lambda: made.connect((address, port)))

        def datagram(family: int, address: str) -> str:
            with socket.socket(family, socket.SOCK_DGRAM) as made:
                return failure(lambda: made.sendto(b"x", (address, port)))

        def act() -> None:
            inet, inet6 = socket.AF_INET, socket.AF_INET6
            stream, dgram = socket.SOCK_STREAM, socket.SOCK_DGRAM
            tell([to(inet, stream, a) for a in ("127.0.0.1", "0.0.0.0")])
            tell([to(inet6, stream, a) for a in ("::ffff:127.0.0.1", "::1", "::")])
            tell([to(inet, dgram, "127.0.0.1"), datagram(inet, "127.0.0.1"), datagram(inet6, "::")])
            tell(to(inet, stream, "127.0.0.2"))

        seen = law.record(act)
        assert seen.told == (["EPERM"] * 2, ["EPERM"] * 3, ["EPERM"] * 3, "ECONNREFUSED")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_datagram_to_an_address_of_no_family_is_one_to_ipv4(law: Law) -> None:
    """UDP takes AF_UNSPEC so, where sendto gives it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        port = server.getsockname()[1]
        law.rule(("connect", f'{{addr: "127.0.0.1", port: {port}}}', "deny"))

        def act() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                for to in (port, port ^ 1):
                    address = struct.pack("=H", socket.AF_UNSPEC) + struct.pack("!H", to)
                    address += socket.inet_aton("127.0.0.1") + bytes(8)
                    tell(call(SENDTO, made.fileno(), b"leak", 4, 0, address, len(address)))

        assert law.record(act).told == (-errno.EPERM, 4)
        with pytest.raises(TimeoutError):
            server.recv(1)


def test_a_denied_unix_socket_is_refused_by_its_own_name(law: Law) -> None:
    """Streams and datagrams, by the path it is bound to, through a symbolic link, and abstract."""
    bound, link = law.place / "socket", law.place / "link"
    link.symlink_to(bound)
    abstract = f"agentwatch-{law.place.name}"
    law.rule(("connect", f'{{unix: ["{bound}", "@{abstract}"]}}', "deny"))
    with (
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dgram,
    ):
        stream.bind(str(bound))
        stream.listen()
        named.bind(f"\0{abstract}")
        named.listen()

        def to(address: str, kind: int = socket.SOCK_STREAM) -> str:
            with socket.socket(socket.AF_UNIX, kind) as made:
                return failure(lambda: made.connect(address))

        def act() -> None:
            tell([to(str(bound)), to(str(link)), to(f"\0{abstract}")])

        assert law.record(act).told == (["EPERM"] * 3,)
        bound.unlink()
        dgram.bind(str(bound))
        dgram.settimeout(0)

        def sends() -> None:
            tell(to(str(bound), socket.SOCK_DGRAM))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
                tell(failure(lambda: made.sendto(b"x", str(bound))))

        assert law.record(sends).told == ("EPERM", "EPERM")
        with pytest.raises(BlockingIOError):
            dgram.recv(1)


def test_a_denied_family_is_refused_as_its_socket_is_made(law: Law) -> None:
    """A packet socket sends without connecting: there is none."""
    law.rule(("connect", "{family: packet}", "deny"))

    def act() -> None:
        tell(failure(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()))
        tell(failure(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()))

    assert law.record(act).told == ("EPERM", "")


def test_a_denied_protocol_of_many_ways_to_connect_has_no_socket(law: Law) -> None:
    """SCTP, whichever way it is asked for."""
    law.rule(("connect", "{proto: sctp}", "deny"))
    inet, sctp = socket.AF_INET, socket.IPPROTO_SCTP

    def act() -> None:
        tell(failure(lambda: socket.socket(inet, socket.SOCK_STREAM, sctp).close()))
        tell(failure(lambda: socket.socket(inet, socket.SOCK_SEQPACKET).close()))
        tell(failure(lambda: socket.socket(inet, socket.SOCK_STREAM).close()))

    assert law.record(act).told == ("EPERM", "EPERM", "")


def test_connections_without_a_rule_come_about(law: Law) -> None:
    """A server that no rule is about hears what it is sent."""
    law.rule(("connect", "{port: 1}", "deny"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def act() -> None:
            with socket.create_connection(server.getsockname()) as made:
                made.sendall(b"hello")

        law.record(act)
        there, _ = server.accept()
        with there:
            assert there.recv(5) == b"hello"
