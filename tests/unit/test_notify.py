"""sd_notify: what a supervisor receives, on a socket as it has one."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, str]]:
    """A datagram socket, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@agentwatch-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        yield listener, name


def test_each_state_is_one_datagram(supervisor: tuple[socket.socket, str]) -> None:
    """As sd_notify(3) spells them."""
    listener, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.ready("3 agents")
    assert notifier.ready()
    assert notifier.status("reading rules")
    assert notifier.watchdog()
    assert notifier.stopping("SIGTERM")
    assert [listener.recv(4096) for _ in range(5)] == [
        b"READY=1\nSTATUS=3 agents",
        b"READY=1",
        b"STATUS=reading rules",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=SIGTERM",
    ]


def test_reloading_says_when(supervisor: tuple[socket.socket, str]) -> None:
    """systemd compares the time, in microseconds of the monotonic clock, with its own."""
    listener, name = supervisor
    before = time.monotonic_ns() // 1000
    assert Notifier({"NOTIFY_SOCKET": name}).reloading()
    state, stamp = listener.recv(4096).decode().split("\n")
    assert state == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_is_one_line_and_short(supervisor: tuple[socket.socket, str]) -> None:
    """A name with a newline in it makes no assignment of its own, and no message is too long."""
    listener, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.status("a\nREADY=1\tb\udcff")
    notifier.ready("é" * 5000)
    assert listener.recv(4096) == b"STATUS=a READY=1 b?"
    cut = listener.recv(65536)
    assert cut.decode() == "READY=1\nSTATUS=" + "é" * 1024


def test_an_empty_status_is_not_sent(supervisor: tuple[socket.socket, str]) -> None:
    """There is nothing to say."""
    listener, name = supervisor
    assert not Notifier({"NOTIFY_SOCKET": name}).status(" \n")
    with pytest.raises(BlockingIOError):
        listener.recv(4096)


@pytest.mark.parametrize(
    "name",
    ["", "/proc/none/notify", "vsock:2:1", "/" + "x" * 200, "@" + "x" * 200, "@"],
    ids=["absent", "gone", "vsock", "long", "long abstract", "no name"],
)
def test_a_supervisor_that_is_not_there_is_no_error(name: str) -> None:
    """Nothing is raised by any call; each says that nothing was sent."""
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    sent = (notifier.ready("x"), notifier.reloading(), notifier.stopping(), notifier.watchdog())
    assert not any(sent)
    assert not notifier.status("x")


def test_a_supervisor_that_does_not_read_does_not_stop_us(
    supervisor: tuple[socket.socket, str],
) -> None:
    """Its queue fills up; status and watchdog are dropped at once, a state after a while."""
    _, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert any(not notifier.watchdog() for _ in range(100_000))
    assert not notifier.status("x")
    assert not notifier.ready()


def test_a_state_waits_for_room(supervisor: tuple[socket.socket, str]) -> None:
    """READY is not lost to a queue that is full for a moment."""
    listener, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    while notifier.watchdog():
        pass
    child = os.fork()
    if child == 0:  # the supervisor wakes up a little later
        time.sleep(0.1)
        listener.recv(4096)
        os._exit(0)
    assert notifier.ready()
    os.waitpid(child, 0)


def test_descriptors_are_not_kept(supervisor: tuple[socket.socket, str]) -> None:
    """A daemon that says WATCHDOG=1 for a year has as many as before."""
    listener, name = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": name})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        notifier.watchdog()
        listener.recv(4096)
    assert len(os.listdir("/proc/self/fd")) == before


PID = os.getpid()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 4000}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
    ],
    ids=["none", "all", "us", "another", "zero", "negative", "word", "endless", "no pid"],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_must(
    environment: dict[str, str], seconds: float | None
) -> None:
    """Half of WATCHDOG_USEC, if it is meant for this process."""
    assert Notifier(environment).watchdog_interval() == seconds


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument, what systemd set."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert Notifier().watchdog_interval() == 1.0
