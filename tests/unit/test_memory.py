"""What the engine remembers: counts over windows of event time, pauses, what a session wrote."""

from __future__ import annotations

import random

import pytest

from agentwatch.events import ProcessKey
from agentwatch.policy.memory import COUNTED, Memory
from agentwatch.rules.model import Count

SECOND = 1_000_000_000
SESSION, OTHER = ProcessKey(7, 700), ProcessKey(8, 800)


def fires(count: Count, times: list[int], values: list[str] | None = None) -> list[int]:
    """At which of these times a count says it is one too many."""
    memory = Memory()
    found = []
    for number, time in enumerate(times):
        value = values[number] if values else ""
        if memory.counted("r", count, SESSION, SESSION, time, value):
            found.append(time)
    return found


def test_the_one_too_many_fires_once_and_again_after_quiet() -> None:
    """Over 2 in 10 s: the third; then nothing until 10 s without a match have passed."""
    count = Count(over=2, within=10)
    assert fires(count, [1, 2, 3, 4, 5, 6]) == [3]
    assert fires(count, [1, 2, 3, 12, 21, 30]) == [3]  # never quiet for as long as 10
    assert fires(count, [1, 2, 3, 13, 14, 15]) == [3, 15]


def test_what_is_older_than_the_window_is_not_counted() -> None:
    """Exactly `within` later it has left the window."""
    count = Count(over=2, within=10)
    assert fires(count, [1, 5, 11, 15, 21, 25]) == []
    assert fires(count, [1, 5, 10]) == [10]


def test_distinct_values_are_counted_once() -> None:
    """The same file again refreshes it and is not a second one."""
    count = Count(over=2, within=10, distinct="path")
    assert fires(count, [1, 2, 3, 4], ["a", "b", "a", "b"]) == []
    assert fires(count, [1, 2, 3, 4], ["a", "b", "a", "c"]) == [4]
    assert fires(count, [1, 2, 9, 12], ["a", "b", "a", "c"]) == []  # b is too old by then


def test_time_that_runs_back_is_the_last_time() -> None:
    """Records of two processors come a little out of order."""
    assert fires(Count(over=2, within=10), [100, 95, 99]) == [99]


def test_each_session_and_each_process_has_its_own_count() -> None:
    """`by: session` counts all processes together, `by: process` each alone; forgetting ends it."""
    memory = Memory()
    together, alone = Count(1, 10), Count(1, 10, by="process")
    told = [
        memory.counted(name, count, SESSION, ProcessKey(pid, 1), 1, "")
        for pid in (1, 2)
        for name, count in (("t", together), ("a", alone))
    ]
    assert told == [False, False, True, False]
    assert not memory.counted("t", together, OTHER, OTHER, 1, "")
    memory.forget(SESSION)
    memory.forget(SESSION)
    assert not memory.counted("t", together, SESSION, SESSION, 2, "")


def test_a_count_that_was_changed_begins_anew() -> None:
    """A reload with another threshold does not inherit the old one's count."""
    memory = Memory()
    memory.counted("r", Count(1, 10), SESSION, SESSION, 1, "")
    assert not memory.counted("r", Count(1, 20), SESSION, SESSION, 2, "")
    assert memory.counted("r", Count(1, 10), SESSION, SESSION, 3, "")


def test_a_count_agrees_with_counting_by_hand() -> None:
    """Against a plain list of (time, value), over random rows."""
    rng = random.Random(3)
    fired = 0
    for _ in range(300):
        count = Count(rng.randint(1, 4), rng.randint(1, 12), distinct=rng.choice(["", "path"]))
        now, times, values = 0, [], []
        for _ in range(40):
            now += rng.randint(0, 6)
            times.append(now)
            values.append(rng.choice("abcdef"))
        got = fires(count, times, values)
        assert got == by_hand(count, times, values)
        fired += len(got)
    assert fired > 300


def by_hand(count: Count, times: list[int], values: list[str]) -> list[int]:
    found: list[int] = []
    window: list[tuple[int, str]] = []
    last, armed = 0, True
    for now, value in zip(times, values, strict=True):
        if now - last >= count.within:
            armed, window = True, []
        last = now
        if not armed:
            continue
        window = [row for row in window if now - row[0] < count.within] + [(now, value)]
        if (len({v for _, v in window}) if count.distinct else len(window)) > count.over:
            found.append(now)
            armed, window = False, []
    return found


def test_a_fork_storm_does_not_grow_the_memory() -> None:
    """Processes that are counted alone are bounded, and do not push out what counts the session."""
    memory = Memory()
    whole, each = Count(1, SECOND), Count(1, SECOND, by="process")
    memory.counted("whole", whole, SESSION, SESSION, 1, "")
    for pid in range(3 * COUNTED):
        memory.counted("each", each, SESSION, ProcessKey(pid, 1), 2, "")
    assert len(memory._sessions[SESSION].processes) == COUNTED
    assert memory.counted("whole", whole, SESSION, SESSION, 3, "")


@pytest.mark.parametrize(("time", "paused"), [(9, True), (10, False), (11, False)])
def test_a_pause_ends_by_the_time_of_the_event(time: int, paused: bool) -> None:
    """Before its end a rule is paused, at its end it is not; nobody has to end it."""
    memory = Memory()
    memory.pause("r", 10)
    assert memory.paused("r", time) is paused
    assert dict(memory.pauses) == {"r": 10}
    memory.resume("r")
    assert not memory.paused("r", 9)


def test_a_session_knows_what_it_wrote() -> None:
    """Its own files only."""
    memory = Memory()
    memory.wrote(SESSION, "/tmp/a")
    assert memory.has_written(SESSION, "/tmp/a")
    assert not memory.has_written(SESSION, "/tmp/b")
    assert not memory.has_written(OTHER, "/tmp/a")
