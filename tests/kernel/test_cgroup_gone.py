"""A cgroup below which connections are refused may be removed, and be made anew by its old name."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentwatch.kernel.libbpf import Object, calls
from agentwatch.kernel.policies import CONNECT_HOOKS, Policies, cgroup_root
from agentwatch.kernel.probes import OBJECT, Probes
from tests.kernel.law import Law
from tests.kernel.recording import tell

pytestmark = pytest.mark.root

INET4_CONNECT = 10  # BPF_CGROUP_INET4_CONNECT


@pytest.fixture
def slice_(place: Path) -> Iterator[Path]:
    """A cgroup of the test's own."""
    root = cgroup_root()
    assert root is not None
    made = root / place.name
    made.mkdir()
    yield made
    remove(made)


@contextmanager
def taken(cgroup: Path) -> Iterator[None]:
    """Somebody else's program is there that suffers no other beside it."""
    bpf = Object(OBJECT)
    Policies.prepare(bpf, 1 << 16)
    bpf.only(frozenset({"connect4"}))
    bpf.load()
    opened = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    fd = calls().bpf_program__fd(bpf.programs["connect4"])
    try:
        assert calls().bpf_prog_attach(fd, opened, INET4_CONNECT, 0) == 0
        yield
        assert calls().bpf_prog_detach2(fd, opened, INET4_CONNECT) == 0
    finally:
        os.close(opened)
        bpf.close()


def remove(cgroup: Path) -> None:
    """Once nobody is in it, for ended processes leave a moment later."""
    for _ in range(100):
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)


def test_the_programs_follow_a_cgroup_that_is_made_anew(
    probes: Probes, place: Path, slice_: Path
) -> None:
    """Gone with the directory, and known to be; attached again, they refuse as before."""
    law = Law(probes, place)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        address = sink.getsockname()
        law.rule(("connect", f"{{port: {address[1]}, proto: udp}}", "deny"))

        def sends() -> None:
            (slice_ / "cgroup.procs").write_text(str(os.getpid()))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                try:
                    tell(client.sendto(b"x", address))
                except OSError as error:
                    tell(error.errno)

        assert not probes.refused_below(slice_)
        assert probes.attach_connect(slice_)
        assert probes.refused_below(slice_)
        assert law.record(sends).told == (errno.EPERM,)
        remove(slice_)
        assert not probes.refused_below(slice_)
        assert not probes.attach_connect(slice_)
        assert not probes.attached() & set(CONNECT_HOOKS)
        slice_.mkdir()
        assert not probes.refused_below(slice_)
        assert probes.attach_connect(slice_)
        assert probes.refused_below(slice_)
        assert probes.attached() >= set(CONNECT_HOOKS)
        assert law.record(sends).told == (errno.EPERM,)
    probes.withdraw()


def test_hooks_on_a_removed_cgroup_are_not_called_attached(probes: Probes, slice_: Path) -> None:
    """The link is there still, and does nothing: nobody is to be told that it does."""
    assert probes.attach_connect(slice_)
    remove(slice_)
    deadline = time.monotonic() + 10
    while probes.attached() & set(CONNECT_HOOKS):  # the kernel lets go of it aside
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not probes.refused_below(slice_)


def test_a_cgroup_that_another_program_has_for_itself_refuses_ours(
    probes: Probes, slice_: Path
) -> None:
    """Then none of the four is there, and all of them once it is free."""
    with taken(slice_):
        assert not probes.attach_connect(slice_)
        assert not probes.attached() & set(CONNECT_HOOKS)
        assert not probes.refused_below(slice_)
    assert probes.attach_connect(slice_)
    assert probes.attached() >= set(CONNECT_HOOKS)
