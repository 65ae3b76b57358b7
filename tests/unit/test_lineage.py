"""Who did it: images in time, agents that only grow, ancestors, and processes nobody announced."""

from __future__ import annotations

import pytest

from agentwatch.events import Exec, Exit, Fork, Open, ProcessKey
from agentwatch.lineage import Image, Lineage, Living

SHELL = Image("/usr/bin/dash", None, ("sh",), "/home/dev", 1000)
FIRST = ProcessKey(100, 1_000)
CHILD = ProcessKey(101, 2_000)


def forked(child: ProcessKey, of: ProcessKey = FIRST, time: int = 10) -> Fork:
    return Fork(time=time, process=of, session=FIRST, child=child)


def executed(path: str, who: ProcessKey = FIRST, time: int = 20) -> Exec:
    return Exec(time=time, process=who, session=FIRST, path=path, argv=(path, "-x"))


def ended(who: ProcessKey = FIRST, time: int = 30) -> Exit:
    return Exit(time=time, process=who, session=FIRST)


def opened(who: ProcessKey = FIRST, time: int = 40) -> Open:
    return Open(time=time, process=who, session=FIRST, path="/x", result=3)


def begun(agents: tuple[str, ...] = (), project: str | None = None) -> Lineage:
    lineage = Lineage()
    lineage.begin(FIRST, project, SHELL, agents)
    return lineage


def exe(lineage: Lineage, event: Open | Exec) -> str:
    image = lineage.actor(event).image
    return image.exe if image else ""


def test_a_call_is_made_by_what_ran_at_its_time() -> None:
    """An open read after the exec that followed it is still the old program's."""
    lineage = begun()
    lineage.exec(executed("/bin/cat", time=20), None)
    assert exe(lineage, opened(time=19)) == "/usr/bin/dash"
    assert exe(lineage, opened(time=20)) == "/bin/cat"


def test_what_ran_before_the_images_that_are_kept_is_not_known() -> None:
    """After many execs an old open is nobody's; one of a time that is kept is somebody's."""
    lineage = begun()
    for number in range(Lineage.IMAGES + 1):
        lineage.exec(executed(f"/bin/{number}", time=100 + number), None)
    assert lineage.actor(opened(time=100)).image is None
    assert exe(lineage, opened(time=101)) == "/bin/1"


def test_an_exec_is_made_by_the_program_that_calls_it() -> None:
    """Asked before the lineage is told, the actor of an exec is the old image."""
    lineage = begun()
    event = executed("/bin/cat")
    assert exe(lineage, event) == "/usr/bin/dash"
    lineage.exec(event, None)
    assert lineage.image(FIRST) == Image("/bin/cat", None, ("/bin/cat", "-x"), "", 0)


def test_a_child_runs_what_its_parent_ran_when_it_forked() -> None:
    """The parent's later exec changes nothing for the child."""
    lineage = begun()
    lineage.fork(forked(CHILD, time=10))
    lineage.exec(executed("/bin/cat", time=20), None)
    assert exe(lineage, opened(CHILD)) == "/usr/bin/dash"
    assert lineage.actor(opened(CHILD)).ancestors[0].exe == "/bin/cat"
    assert lineage.actor(opened(CHILD, time=15)).ancestors[0].exe == "/usr/bin/dash"


def test_the_first_agent_sticks_and_the_set_only_grows() -> None:
    """An agent that starts another adds it; no exec takes one away or changes the order."""
    lineage = begun()
    assert lineage.exec(executed("/bin/claude", time=20), "claude")
    assert lineage.exec(executed("/bin/codex", time=21), "codex")
    assert not lineage.exec(executed("/bin/claude", time=22), "claude")
    assert not lineage.exec(executed("/bin/sh", time=23), None)
    assert lineage.actor(opened()).agents == ("claude", "codex")
    assert lineage.agent(FIRST) == "claude"


def test_a_child_starts_with_its_parents_agents() -> None:
    """What a child becomes is its own: neither parent nor sibling is that agent."""
    lineage = begun(("claude",))
    lineage.fork(forked(CHILD))
    lineage.fork(forked(sibling := ProcessKey(102, 2_001)))
    lineage.exec(executed("/bin/codex", CHILD), "codex")
    assert lineage.actor(opened(CHILD)).agents == ("claude", "codex")
    assert lineage.actor(opened()).agents == ("claude",)
    assert lineage.actor(opened(sibling)).agents == ("claude",)


@pytest.mark.parametrize("named", [True, False], ids=["by --agent", "by a child's exec"])
def test_a_session_is_named_for_its_first_agent_for_good(named: bool) -> None:
    """Also when the process that was it is long gone and forgotten."""
    lineage = begun(("claude",) if named else ())
    lineage.fork(forked(CHILD))
    child = "codex" if named else "claude"
    lineage.exec(executed(f"/bin/{child}", CHILD), child)
    lineage.exit(ended())
    lineage.exit(ended(CHILD, time=31))
    lineage.fork(forked(last := ProcessKey(103, 3), ProcessKey(104, 4), 2 * Lineage.KEPT))
    lineage.exit(ended(last, time=2 * Lineage.KEPT + 1))
    assert lineage.image(FIRST) is None
    assert lineage.agent(FIRST) == "claude"


def test_role_is_agent_until_something_else_is_executed() -> None:
    """A fork of an agent's own process is the agent; what it executes is a child."""
    lineage = begun()
    lineage.exec(executed("/bin/claude"), "claude")
    lineage.fork(forked(CHILD, time=25))
    assert lineage.actor(opened(CHILD)).role == "agent"
    lineage.exec(executed("/bin/cat", CHILD, time=30), None)
    assert lineage.actor(opened(CHILD)).role == "child"


def chain(lineage: Lineage, length: int) -> ProcessKey:
    """A chain of forks, each of which executes /bin/N; the last one."""
    above = FIRST
    for number in range(length):
        child = ProcessKey(1000 + number, number)
        lineage.fork(forked(child, above, time=10 * number + 1))
        lineage.exec(executed(f"/bin/{number}", child, time=10 * number + 2), None)
        above = child
    return above


def test_ancestors_come_nearest_first_and_are_eight_at_most() -> None:
    """ancestor.* is the parent, its parent, and so on."""
    lineage = begun()
    last = chain(lineage, 12)
    ancestors = lineage.actor(opened(last, time=1000)).ancestors
    assert [image.exe for image in ancestors] == [f"/bin/{n}" for n in range(10, 2, -1)]


def test_ancestors_that_have_ended_are_still_ancestors() -> None:
    """A double fork does not wash off who started it."""
    lineage = begun()
    last = chain(lineage, 3)
    lineage.exit(ended(ProcessKey(1001, 1), time=50))
    lineage.exit(ended(ProcessKey(1000, 0), time=51))
    lineage.exit(ended(ProcessKey(9, 9), time=60))
    ancestors = lineage.actor(opened(last, time=3 * Lineage.KEPT)).ancestors
    assert [image.exe for image in ancestors] == ["/bin/1", "/bin/0", "/usr/bin/dash"]


def test_a_chain_of_short_lived_forks_does_not_grow_for_ever() -> None:
    """Each process forks the next and ends: what is kept is bounded by time and by ancestors."""
    lineage = begun()
    above = FIRST
    for number in range(1000):
        child = ProcessKey(1000 + number, number)
        time = number * Lineage.KEPT
        lineage.fork(forked(child, above, time))
        lineage.exit(ended(above, time + 1))
        above = child
    assert len(lineage._processes) < 5
    kept, reached = set(), list(lineage._processes.values())
    while reached:
        process = reached.pop()
        if process.key not in kept:
            kept.add(process.key)
            reached += process.parents
    assert len(kept) < 20


def test_a_reused_pid_is_another_process() -> None:
    """Only pid and start time together are a process."""
    lineage = begun(("claude",))
    lineage.exec(executed("/bin/cat"), None)
    reused = ProcessKey(FIRST.pid, FIRST.start + 1)
    lineage.fork(forked(reused, CHILD))
    assert exe(lineage, opened(reused)) == ""
    assert exe(lineage, opened()) == "/bin/cat"


def test_a_process_ends_once() -> None:
    """Two last threads may both tell: the second is no news. An unknown one is."""
    lineage = begun()
    assert lineage.exit(ended())
    assert not lineage.exit(ended())
    assert lineage.exit(ended(CHILD))


def test_living_and_alive_leave_out_what_has_ended() -> None:
    """By process, and counted by session."""
    lineage = begun()
    lineage.fork(forked(CHILD))
    other = ProcessKey(500, 5)
    lineage.begin(other, None, SHELL, ())
    lineage.exit(ended())
    assert lineage.living() == [Living(CHILD, FIRST), Living(other, other)]
    assert (lineage.alive(FIRST), lineage.alive(other)) == (1, 1)
    lineage.exit(ended(CHILD))
    lineage.exit(ended(CHILD))
    assert lineage.alive(FIRST) == 0


def test_an_end_that_was_not_told_counts_once() -> None:
    """Found by a look at the machine; the exit's record, should it come yet, changes nothing."""
    lineage = begun()
    lineage.gone(FIRST, 20)
    assert not lineage.exit(ended())
    lineage.gone(FIRST, 21)
    assert lineage.alive(FIRST) == 0
    assert lineage.living() == []


def test_a_process_that_joins_has_its_parents_images_and_the_sessions_agents() -> None:
    """It ran before it was tagged: nobody told of its fork."""
    lineage = begun(("claude",))
    lineage.join(CHILD, FIRST, FIRST, SHELL)
    lineage.join(CHILD, FIRST, FIRST, None)  # a second time, it is known
    assert lineage.alive(FIRST) == 2
    assert lineage.parent(CHILD) == FIRST
    actor = lineage.actor(opened(CHILD))
    assert actor.image == SHELL
    assert actor.agents == ("claude",)
    assert len(actor.ancestors) == 1


def test_records_that_come_late_still_find_who_has_ended() -> None:
    """An open is read through the other ring after the exit; ten seconds later it is forgotten."""
    lineage = begun(("claude",))
    lineage.fork(forked(CHILD))
    lineage.exit(ended(CHILD, time=30))
    assert exe(lineage, opened(CHILD)) == "/usr/bin/dash"
    lineage.exit(ended(time=31 + Lineage.KEPT))
    assert lineage.image(CHILD) is None


def test_a_forgotten_session_leaves_nothing() -> None:
    """Its processes, agents and project are gone; another session is untouched."""
    lineage = begun(("claude",), "/home/dev/project")
    lineage.fork(forked(CHILD))
    other = ProcessKey(500, 5)
    lineage.begin(other, "/srv", SHELL, ("codex",))
    lineage.forget(FIRST)
    assert [one.process for one in lineage.living()] == [other]
    assert (lineage.alive(FIRST), lineage.agents(FIRST)) == (0, ())
    assert lineage.agent(FIRST) == ""
    assert lineage.actor(opened()).project is None
    assert lineage.agent(other) == "codex"


def test_an_unknown_process_is_looked_up_once() -> None:
    """Whose fork was lost, is what it runs now; when it is gone, nothing is known."""
    asked: list[ProcessKey] = []

    def look(process: ProcessKey) -> Image | None:
        asked.append(process)
        return SHELL if process == CHILD else None

    lineage = Lineage(look)
    assert exe(lineage, opened(CHILD)) == "/usr/bin/dash"
    assert exe(lineage, opened(CHILD)) == "/usr/bin/dash"
    assert lineage.actor(opened(ProcessKey(7, 7))).image is None
    assert asked == [CHILD, ProcessKey(7, 7)]


def test_a_lost_fork_loosens_nothing() -> None:
    """A process nobody announced is under the rules of every agent of its session."""
    lineage = begun()
    lineage.fork(forked(CHILD))
    lineage.exec(executed("/bin/claude", CHILD), "claude")
    lineage.exec(executed("/bin/codex", CHILD, time=21), "codex")
    assert lineage.actor(opened(ProcessKey(7, 7))).agents == ("claude", "codex")


def test_the_project_belongs_to_the_session() -> None:
    """Every process of it has the same one, fixed when it began."""
    lineage = begun((), "/home/dev/project")
    lineage.fork(forked(CHILD))
    assert lineage.actor(opened(CHILD)).project == "/home/dev/project"


def test_what_a_session_was_started_by_is_among_its_ancestors() -> None:
    """They are of no session, and end nobody's; a child has them too."""
    lineage = Lineage()
    lineage.begin(FIRST, None, None, ("claude",), (SHELL,) * 20)
    assert lineage.actor(opened()).ancestors == (SHELL,) * Lineage.ANCESTORS
    assert lineage.parent(FIRST) is None
    assert lineage.alive(FIRST) == 1
    lineage.fork(forked(CHILD))
    assert lineage.parent(CHILD) == FIRST
    assert SHELL in lineage.actor(opened(CHILD)).ancestors
