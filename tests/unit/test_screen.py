"""A screen never waits for whoever reads it, and never fails with them."""

from __future__ import annotations

import fcntl
import os
import termios
import time
from pathlib import Path

import pytest

from agentwatch.sinks.screen import ROOM, Screen


def written(fd: int) -> bytes:
    """What can be read now."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_what_is_written_comes_out_in_order() -> None:
    """And close waits for it."""
    read, write = os.pipe()
    screen = Screen(write)
    for number in range(500):
        screen.write(f"{number}\n")
    screen.close()
    assert written(read).split() == [b"%d" % number for number in range(500)]
    assert screen.dropped == 0


def test_a_full_pipe_is_not_waited_for() -> None:
    """Blocks wait in a queue with an end; what finds no room is counted by its lines."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, bytes(4096))
        except BlockingIOError:
            break
    screen, begun = Screen(write), time.monotonic()
    for _ in range(ROOM + 100):
        screen.write("a\nb\n")
    screen.close()
    assert time.monotonic() - begun < 2
    assert 2 * 99 <= screen.dropped <= 2 * 100
    os.close(read)


def test_a_terminal_that_is_stopped_is_not_waited_for() -> None:
    """tcflow(TCOOFF) of whoever shares it holds the text back, and nobody else."""
    leader, follower = os.openpty()
    screen = Screen(follower)
    assert screen.isatty()
    termios.tcflow(follower, termios.TCOOFF)
    begun = time.monotonic()
    screen.write("held back\n")
    screen.flush()
    screen.close()
    assert time.monotonic() - begun < 2
    assert written(leader) == b""
    termios.tcflow(follower, termios.TCOON)


def test_a_reader_that_has_gone_is_no_error() -> None:
    """What nobody reads is counted."""
    read, write = os.pipe()
    screen = Screen(write)
    os.close(read)
    screen.write("one\ntwo\n")
    screen.close()
    assert screen.dropped == 2


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_flags_of_a_descriptor_that_is_shared_do_not_count(kind: str) -> None:
    """CMD may make its own not to be waited for: ours is another one."""
    read, write = os.pipe() if kind == "pipe" else os.openpty()
    screen = Screen(write)
    assert screen.fileno() != write
    fcntl.fcntl(write, fcntl.F_SETFL, os.O_NONBLOCK)
    assert os.get_blocking(screen.fileno())
    screen.close()
    os.close(read)


def test_a_file_is_written_behind_what_others_write_to_it(tmp_path: Path) -> None:
    """It is the same description, with one position for all."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    screen = Screen(fd)
    screen.write("ours\n")
    screen.flush()
    os.write(fd, b"theirs\n")
    screen.write("ours\udcff\n")
    screen.close()
    assert path.read_bytes() == b"ours\ntheirs\nours\\udcff\n"
