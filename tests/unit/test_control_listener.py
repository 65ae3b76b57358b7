"""Where the daemon listens: one daemon, one socket, and a place that nobody else can take."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

from agentwatch.control.client import Client
from agentwatch.control.listener import Listener
from agentwatch.errors import AgentwatchError, NotRunningError, UsageError
from tests.unit.control_loop import Process, Raw, running

REPOSITORY = Path(__file__).resolve().parents[2]
LISTENS = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], *sys.argv[3:]]
from agentwatch.control.listener import Listener
listener = Listener(Path(sys.argv[2]), 8)
print("listening", flush=True)
sys.stdin.readline()
"""


@contextmanager
def listener(path: Path) -> Iterator[Listener]:
    made = Listener(path, 8)
    try:
        yield made
    finally:
        made.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def other_daemon(path: Path) -> Process:
    """A process of its own that listens at the path."""
    process = Process(LISTENS, REPOSITORY, path, Path(msgpack.__file__).parents[1])
    assert process.said() == "listening"
    return process


def refused(path: Path) -> AgentwatchError:
    """The error; nothing stays open behind it."""
    before = descriptors()
    with pytest.raises(AgentwatchError) as caught:
        Listener(path, 8)
    assert descriptors() == before
    assert caught.value.remedy
    return caught.value


def test_everybody_may_connect_and_nobody_else_may_lock(tmp_path: Path) -> None:
    """Whatever the umask: directories 0755, the socket 0666, the lock 0600."""
    before = os.umask(0o077)
    try:
        with listener(tmp_path / "a" / "b" / "s"):
            assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755
            assert mode(tmp_path / "a" / "b" / "s") == 0o666
            assert mode(tmp_path / "a" / "b" / "s.lock") == 0o600
    finally:
        os.umask(before)


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """By the first one's pid, and the first goes on."""
    with running(tmp_path / "s") as daemon:
        error = refused(tmp_path / "s")
        assert error.message == f"a daemon runs already (pid {os.getpid()})"
        assert error.exit_code == 1
        with Raw(daemon.path) as raw:
            assert raw.ask("status").value


def test_a_second_daemon_is_refused_across_processes(tmp_path: Path) -> None:
    """Even where somebody has removed the socket."""
    with other_daemon(tmp_path / "s") as process:
        os.unlink(tmp_path / "s")
        assert f"(pid {process.pid})" in refused(tmp_path / "s").message
        assert not (tmp_path / "s").exists()


def test_a_lock_that_anybody_could_hold_is_closed_to_them(tmp_path: Path) -> None:
    """Its file may have been made by hand."""
    (tmp_path / "s.lock").touch()
    (tmp_path / "s.lock").chmod(0o666)
    with listener(tmp_path / "s"):
        assert mode(tmp_path / "s.lock") == 0o600


def test_a_lock_that_says_nothing_is_a_lock(tmp_path: Path) -> None:
    """The pid is for the message only."""
    with other_daemon(tmp_path / "s"):
        (tmp_path / "s.lock").write_bytes(b"\xff\x1b[31m")
        assert refused(tmp_path / "s").message == "a daemon runs already"


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    """It is there and nobody listens; the next daemon takes its place."""
    with other_daemon(tmp_path / "s") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "s").is_socket()
    with pytest.raises(NotRunningError):
        Client.connect(tmp_path / "s")
    with running(tmp_path / "s") as daemon, Raw(daemon.path) as raw:
        assert raw.ask("status").value


def test_a_daemon_can_be_followed_by_the_next(tmp_path: Path) -> None:
    """It removes its socket and leaves the lock's file, and no descriptor."""
    before = descriptors()
    for _ in range(3):
        with listener(tmp_path / "s"):
            assert (tmp_path / "s").is_socket()
        assert sorted(os.listdir(tmp_path)) == ["s.lock"]
    assert descriptors() == before


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    """A file, a directory, a symbolic link: refused, and still there."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "dir", "link"):
        assert "is there and is no socket" in refused(tmp_path / name).message
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "dir").is_dir()
    assert (tmp_path / "link").is_symlink()


def test_a_directory_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """Sticky or not: there they could make the lock's file before us."""
    for bits in (0o777, 0o1777, 0o775):
        tmp_path.chmod(bits)
        assert "others may write to" in refused(tmp_path / "s").message
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def test_a_directory_above_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """They could put another in its place; a sticky one protects what is in it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a").chmod(0o777)
    assert str(tmp_path / "a") in refused(tmp_path / "a" / "b" / "s").message
    (tmp_path / "a").chmod(0o1777)
    with listener(tmp_path / "a" / "b" / "s"):
        pass


def test_what_a_link_leads_to_is_what_is_checked(tmp_path: Path) -> None:
    """/var/run is a link to /run, and fine; one to an open directory is not."""
    (tmp_path / "real").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "bad").symlink_to("open")
    with listener(tmp_path / "link" / "s") as made:
        assert made.path == tmp_path / "real" / "s"
    assert str(tmp_path / "open") in refused(tmp_path / "bad" / "s").message


def test_a_file_in_the_way_of_the_directory_is_refused(tmp_path: Path) -> None:
    """With its name."""
    (tmp_path / "f").write_text("")
    assert f"{tmp_path}/f is no directory" in refused(tmp_path / "f" / "s").message


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """What it leads to is not overwritten."""
    (tmp_path / "precious").write_text("text")
    (tmp_path / "s.lock").symlink_to("precious")
    assert "s.lock" in refused(tmp_path / "s").message
    assert (tmp_path / "precious").read_text() == "text"


def test_a_path_too_long_for_a_socket_is_a_usage_error(tmp_path: Path) -> None:
    """107 bytes are the kernel's limit."""
    error = refused(tmp_path / ("x" * 100))
    assert isinstance(error, UsageError)
    assert "107 bytes" in error.message


def test_the_socket_does_not_block_and_is_not_inherited(tmp_path: Path) -> None:
    """A client that goes between poll and accept must not stop the loop."""
    with listener(tmp_path / "s") as made:
        assert not made.socket.getblocking()
        assert not made.socket.get_inheritable()
        with pytest.raises(BlockingIOError):
            made.socket.accept()
        assert isinstance(made.socket, socket.socket)
