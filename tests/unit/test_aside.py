"""Work beside the loop: in order, and what follows it in the loop alone."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator

import pytest

from agentwatch.aside import Aside


@pytest.fixture
def aside() -> Iterator[Aside]:
    made = Aside(threaded=True)
    yield made
    made.close()


def turn(aside: Aside, done: list[object], count: int) -> None:
    deadline = time.monotonic() + 5
    while len(done) < count:
        assert time.monotonic() < deadline
        select.select([aside], [], [], 1)
        aside.turn()


def test_work_is_done_elsewhere_and_told_here(aside: Aside) -> None:
    """In the order it was given."""
    done: list[object] = []
    here = threading.get_ident()
    for number in range(3):
        aside.do(
            lambda number=number: (number, threading.get_ident()),  # type: ignore[misc]
            lambda result: done.append((*result, threading.get_ident())),
        )
    turn(aside, done, 3)
    assert [one[0] for one in done] == [0, 1, 2]  # type: ignore[index]
    assert {one[1] != here for one in done} == {True}  # type: ignore[index]
    assert {one[2] for one in done} == {here}  # type: ignore[index]


def test_the_loop_is_not_kept_waiting(aside: Aside) -> None:
    """Giving work returns at once, however long it takes."""
    gate = threading.Event()
    done: list[object] = []
    aside.do(gate.wait, done.append)
    aside.turn()
    assert done == []
    gate.set()
    turn(aside, done, 1)
    assert done == [True]


def test_what_goes_wrong_is_raised_in_the_loop(aside: Aside) -> None:
    """It is not lost in a thread, and what follows is done all the same."""

    def fails() -> None:
        raise ValueError("not this")

    done: list[object] = []
    aside.do(fails, done.append)
    aside.do(lambda: 1, done.append)
    assert select.select([aside], [], [], 5)[0]
    with pytest.raises(ValueError, match="not this"):
        aside.turn()
    turn(aside, done, 1)
    assert done == [1]


def test_without_a_thread_all_of_it_is_done_at_once() -> None:
    """As a run has it, where somebody waits for the result."""
    aside = Aside(threaded=False)
    done: list[object] = []
    aside.do(lambda: 7, done.append)
    assert done == [7]
    aside.close()
