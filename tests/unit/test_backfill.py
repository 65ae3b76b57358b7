"""Whose the processes are that run already: by parent, by who forked them, by process group."""

from __future__ import annotations

from dataclasses import replace

from agentwatch import abi
from agentwatch.abi import Process
from agentwatch.backfill import plan
from agentwatch.events import ProcessKey


def key(pid: int) -> ProcessKey:
    """A process that started at its pid: who is younger has the higher one."""
    return ProcessKey(pid, pid)


def row(pid: int, parent: int, group: int = 0, terminal: int = 0) -> Process:
    return Process(key(pid), key(parent), None, 0, group=group, terminal=terminal)


INIT, SHELL, AGENT = row(1, 0), row(10, 1, 10, 10), row(20, 10, 20, 10)
MACHINE = (INIT, SHELL, AGENT)


def whose(*rows: Process, agents: tuple[int, ...] = (20,)) -> dict[int, int]:
    found = plan((*MACHINE, *rows), {key(pid): "claude" for pid in agents})
    return {process.pid: session.pid for process, session in found.items()}


def test_descendants_belong_to_the_agent() -> None:
    """Of any generation; its parent and its siblings do not."""
    assert whose(row(21, 20), row(22, 21), row(30, 10)) == {20: 20, 21: 20, 22: 20}


def test_an_agent_started_by_an_agent_is_of_its_session() -> None:
    """The topmost names it."""
    assert whose(row(21, 20), row(22, 21), agents=(20, 22)) == {20: 20, 21: 20, 22: 20}


def test_two_agents_side_by_side_are_two_sessions() -> None:
    """They have only the shell in common."""
    assert whose(row(30, 10), row(31, 30), agents=(20, 30)) == {20: 20, 30: 30, 31: 30}


def test_what_descends_from_a_tagged_process_is_of_that_session() -> None:
    """And the first tag sticks: who has one is in nobody's plan."""
    tagged = replace(row(40, 10), session=key(40), state=abi.SESSION_CONFIRMED)
    assert whose(tagged, row(41, 40), agents=()) == {41: 40}
    assert whose(tagged, row(41, 40), agents=(41,)) == {41: 40}


def test_a_provisional_tag_is_none() -> None:
    """Nobody has said yet that it is an agent's."""
    provisional = replace(row(40, 20), session=key(39), state=abi.SESSION_PROVISIONAL)
    assert whose(provisional) == {20: 20, 40: 20}


def test_an_orphan_is_known_by_who_forked_it() -> None:
    """Its parent is gone, and so is everybody between, but for the name of the first of them."""
    orphan = replace(row(90, 1), first=key(25), first_parent=key(20))
    assert whose(orphan) == {20: 20, 25: 20, 90: 20}


def test_where_somebody_came_from_is_not_adopted() -> None:
    """An agent that a shell has just forked: what else that shell forks stays the shell's."""
    agent = replace(row(50, 10), first=key(10), first_parent=key(1))
    assert whose(agent, agents=(50,)) == {50: 50}


def test_an_orphan_is_known_by_its_group_or_terminal_session() -> None:
    """If an agent leads it: nobody gets into those from outside."""
    orphan = replace(row(90, 1, group=20), first=key(60), first_parent=key(1))
    assert whose(orphan) == {20: 20, 90: 20, 60: 20}
    agent = row(70, 10, 70, 70)
    assert whose(row(91, 1, 91, 70), agent, agents=(70,)) == {70: 70, 91: 70}


def test_a_group_is_known_by_an_agent_that_is_tagged_already() -> None:
    """A second look finds what the first did not see."""
    agent = replace(row(70, 10, 70, 70), session=key(70), state=abi.SESSION_CONFIRMED)
    assert whose(row(91, 1, 70, 70), agent, agents=()) == {91: 70}


def test_the_neighbour_in_a_pipeline_is_nobodys() -> None:
    """`claude | tee log`: the agent leads the group, and tee is the shell's."""
    assert whose(row(21, 10, group=20, terminal=10)) == {20: 20}
