"""The policy in force: what the kernel is given, in which order, and what its records say."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agentwatch import abi
from agentwatch.compiling import compile_for
from agentwatch.engine import NO_VERDICT, Engine
from agentwatch.errors import KernelError
from agentwatch.events import Connect, Event, Exec, Exit, Fork, Open, ProcessKey
from agentwatch.inforce import KEPT, InForce
from agentwatch.kernel.probes import Sizes
from agentwatch.lineage import Image, Lineage
from agentwatch.policy import compiler, levels
from agentwatch.policy.levels import Host
from agentwatch.rules.model import Agent, Condition, Default, Match, Place, Rule, Ruleset
from agentwatch.sinks import frames

HERE = Place("r.yaml", 1, 1)
SESSION = ProcessKey(7, 7)
SHELL = Image("/bin/sh", None, ("sh",), "/", 0, since=7)


def rule(name: str, on: tuple[str, ...], action: str = "deny", **fields: str) -> Rule:
    match = Match(tuple(Condition(field, (value,)) for field, value in fields.items()))
    return Rule(name, on, match, action, HERE, because=f"{name}!", instead="Ask.", severity="high")


RULES = Ruleset(
    rules=(
        rule("a.key", ("read",), path="/k"),
        rule("a.both", ("read", "change"), path="/b"),
        rule("a.run", ("exec",), "kill", path="/x"),
        rule("a.net", ("connect",), addr="192.0.2.1"),
        replace(rule("a.all", ("exec",), "kill", path="/s"), scope="session"),
    ),
    agents=(
        Agent("one", "One", ("**/bin/one",), (), HERE),
        Agent("two", "Two", ("**/bin/two",), (), HERE),
    ),
    defaults=(Default("one", "change", "deny", HERE),),
)


def engine(generation: int = 1, before: Engine | None = None, mode: str = "enforce") -> Engine:
    made = Engine(RULES, generation=generation, mode=mode)
    compile_for(made, Host(cgroup=True), before, room=Sizes().policy)
    assert made.compiled is not None
    return made


class Kernel:
    """In the place of the probes: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.full = False
        self.room = 1 << 16  # marks
        self.marks: dict[int, int] = {}  # generations, by image
        self.keeping = SimpleNamespace(rules={}, policy=lambda *numbered: None)

    def mark(self, image: int, generation: int, agents: int, predicates: int) -> bool:
        self.told.append(("mark", image, generation, agents, predicates))
        if image in self.marks or len(self.marks) < self.room:
            self.marks[image] = generation
        return image in self.marks

    def unmark(self, images: Iterable[int]) -> None:
        for image in images:
            del self.marks[image]

    def forget_marks(self, generation: int) -> set[int]:
        self.told.append(("forget_marks", generation))
        self.marks = {i: of for i, of in self.marks.items() if of >= generation}
        return set(self.marks)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*args: object) -> None:
            if name == "publish" and self.full:
                raise KernelError("no room for the policy", "make it smaller")
            self.told.append((name, *args))

        return tell

    def names(self) -> list[object]:
        return [one[0] for one in self.told]


class Standing:
    """An InForce with a kernel that notes, and what it says."""

    def __init__(self) -> None:
        self.kernel, self.lineage = Kernel(), Lineage()
        self.said: list[frames.Frame] = []
        self.force = InForce(self.kernel, self.lineage, self.said.append)  # type: ignore[arg-type]

    def take(self, taken: Engine) -> None:
        self.force.take(taken, lambda: self.kernel.told.append(("drain",)))


def number(of: Engine, name: str, kind: str = "") -> int:
    """The number of a rule, or of a default, in the compiled policy."""
    assert of.compiled is not None
    rows = enumerate(of.compiled.rules, 1)
    return next(n for n, one in rows if (one.rule, one.kind) == (name, kind))


def opened(judge: Engine, name: str, *, changes: bool = False, verdict: int = 1) -> Open:
    return Open(
        time=1, process=SESSION, session=SESSION, path="/k", result=3, reads=True, changes=changes,
        generation=judge.generation, rule=number(judge, name), verdict=verdict,
    )  # fmt: skip


def test_a_policy_comes_into_force_by_one_swap_behind_its_marks() -> None:
    """Published, drained, marked, swapped; marks of the one before go last."""
    place = Standing()
    place.take(engine())
    place.lineage.begin(SESSION, "/p", SHELL, ("one",))
    place.kernel.told.clear()
    second = engine(2)
    place.take(second)
    names = place.kernel.names()
    assert names == ["publish", "drain", "mark", "put_in_force", "forget_marks"]
    (_, since, generation, agents, _) = place.kernel.told[2]
    assert (since, agents, generation) == (7, 1 << second.bits.bit("one"), 2)


def test_a_session_is_judged_once_all_of_it_is_marked() -> None:
    """Its agents are named last; a session of none has the bit for that."""
    place = Standing()
    place.take(engine())
    place.kernel.told.clear()
    place.force.mark(SHELL, ("one",), "/p")
    place.force.enter(SESSION, ("one",), "/p")
    place.force.enter(SESSION, (), None)
    assert place.kernel.names() == ["mark", "set_session", "set_session"]
    assert place.kernel.told[2] == ("set_session", SESSION, 1 << 63, None)


def test_bits_of_agents_stay_what_they_are() -> None:
    """Sessions that began by an older policy are still whose they were."""
    first = engine()
    fewer = Ruleset(agents=(RULES.agents[1],))
    second = Engine(fewer, generation=2)
    compile_for(second, Host(), first, room=Sizes().policy)
    assert second.bits.bit("two") == first.bits.bit("two")
    assert second.bits.bit("one") == first.bits.bit("one")


def test_a_kernel_without_room_is_loud_and_the_engine_goes_on() -> None:
    """Said in the journal, counted, and the levels fall to the engine's."""
    place, one = Standing(), engine()
    assert one.level(RULES.rules[0], Host()).name == "kills"
    place.kernel.full = True
    place.take(one)
    assert place.kernel.names() == ["withdraw"]
    assert "no room for the policy" in place.force.problem
    (said,) = place.said
    assert isinstance(said, frames.Notice)
    assert (said.subject, said.text) == ("policy", place.force.problem)
    assert place.force.failures == 1
    assert one.level(RULES.rules[0], Host()).name == "kills-after"
    place.kernel.full = False
    place.take(engine(2))
    assert place.force.problem == ""


def test_a_second_agent_in_a_session_is_marked_and_the_engine_looks_too() -> None:
    """What the kernel does not know yet is not let through meanwhile."""
    place = Standing()
    place.take(engine())
    place.lineage.begin(SESSION, None, SHELL, ("one",))
    place.kernel.told.clear()
    place.force.added(SESSION)
    assert SESSION in place.force.several
    assert place.kernel.names() == ["mark", "refresh"]
    place.force.forget(SESSION)
    assert SESSION not in place.force.several


@pytest.mark.parametrize(
    ("name", "changes", "level"),
    [("a.key", False, "kills"), ("a.both", False, "kills"), ("a.both", True, "kills-after")],
)
def test_a_kill_of_the_kernel_is_told_in_the_rules_words(
    name: str, changes: bool, level: str
) -> None:
    """Action, reasons, severity; the level is what this event was worth."""
    judge = engine()
    found = judge.of_kernel(opened(judge, name, changes=changes))
    assert (found.rule, found.action, found.response, found.done) == (name, "deny", "kill", True)
    assert (found.because, found.instead, found.severity) == (f"{name}!", "Ask.", "high")
    assert (found.level, found.mode, found.default) == (level, "enforce", False)


def test_a_default_of_the_kernel_is_told_as_the_engine_tells_it() -> None:
    """Without a rule, with whose default it was."""
    judge = engine()
    place = number(judge, "", "change")
    event = replace(opened(judge, "a.key", changes=True), rule=place)
    found = judge.of_kernel(event)
    assert (found.rule, found.default, found.action) == (None, True, "deny")
    assert (found.level, found.response) == ("kills-after", "kill")
    assert "one" in found.because


@pytest.mark.parametrize(
    ("verdict", "result", "response", "level"),
    [
        (abi.VERDICT_DENY, -errno.EPERM, "deny", "prevents"),
        (abi.VERDICT_KILL, -errno.EPERM, "kill", "prevents"),
        (abi.VERDICT_KILL, 0, "kill", "kills-after"),
    ],
)
def test_a_connection_is_prevented_where_its_call_failed(
    verdict: int, result: int, response: str, level: str
) -> None:
    """EPERM before anything was sent, with SIGKILL where the rule kills."""
    judge = engine()
    event = Connect(
        time=1, process=SESSION, session=SESSION, family=2, addr="192.0.2.1", port=1, result=result,
        generation=1, rule=number(judge, "a.net"), verdict=verdict,
    )  # fmt: skip
    found = judge.of_kernel(event)
    assert (found.response, found.level, found.rule) == (response, level, "a.net")


def test_what_could_not_be_denied_is_the_engines() -> None:
    """A connection outside the cgroup: the verdict is known, and nothing was done."""
    judge = engine()
    event = Connect(
        time=1, process=SESSION, session=SESSION, family=2, addr="192.0.2.1", port=1, syn=True,
        protocol="tcp", generation=1, rule=number(judge, "a.net"), verdict=abi.VERDICT_DENY,
    )  # fmt: skip
    assert judge.of_kernel(event) is NO_VERDICT


def test_a_rule_that_ends_the_session_says_so() -> None:
    """The kernel kills one process; the rest is the engine's."""
    judge = engine()
    event = Exec(
        time=1, process=SESSION, session=SESSION, path="/s", generation=1,
        rule=number(judge, "a.all"), verdict=abi.VERDICT_KILL,
    )  # fmt: skip
    assert judge.of_kernel(event).scope == "session"


def test_records_of_an_older_policy_are_told_by_it() -> None:
    """Rule 1 of one policy is not rule 1 of the next; of what is older the rule is not known."""
    place, first = Standing(), engine()
    place.take(first)
    event = opened(first, "a.key")
    for generation in range(2, KEPT + 1):
        place.take(engine(generation))
        assert place.force.verdict(event).rule == "a.key"
    place.take(engine(KEPT + 1))
    found = place.force.verdict(event)
    assert (found.done, found.response, found.rule) == (True, "kill", "unknown")
    assert (found.action, found.level, found.mode) == ("kill", "kills", "enforce")
    for nothing in (replace(event, verdict=0), replace(event, verdict=abi.VERDICT_LOOK)):
        assert place.force.verdict(nothing) is NO_VERDICT
        assert place.force.verdict(replace(nothing, generation=KEPT)) is NO_VERDICT


def test_a_refusal_by_an_older_policy_is_told_too() -> None:
    """What was refused is no kill, and one that was not refused is the engine's."""
    place, first = Standing(), engine()
    event = Connect(
        time=1, process=SESSION, session=SESSION, family=2, addr="192.0.2.1", port=1,
        result=-errno.EPERM, generation=9, rule=number(first, "a.net"), verdict=abi.VERDICT_DENY,
    )  # fmt: skip
    found = place.force.verdict(event)
    assert (found.done, found.response, found.level) == (True, "deny", "prevents")
    assert place.force.verdict(replace(event, result=0)) is NO_VERDICT


def test_a_disagreement_is_counted_and_said_once_for_a_policy() -> None:
    """By which rule the kernel has acted, and in whose session."""
    place, judge = Standing(), engine()
    place.take(judge)
    event = opened(judge, "a.key")
    for _ in range(3):
        place.force.disagrees(event, place.force.verdict(event))
    assert place.force.disagreements == 3
    (said,) = place.said
    assert isinstance(said, frames.Notice)
    assert (said.subject, said.session) == ("policy", SESSION)
    assert "a.key" in said.text


def test_a_mark_goes_with_the_last_process_of_its_image() -> None:
    """Not with the one that made it, nor before all that happened by then is known."""
    place = Standing()
    place.take(engine())
    place.lineage.begin(SESSION, "/p", SHELL, ("one",))
    place.force.mark(SHELL, ("one",), "/p")
    child = ProcessKey(8, 9)
    place.lineage.fork(Fork(time=9, process=SESSION, session=SESSION, child=child))
    place.lineage.exit(Exit(time=10, process=SESSION, session=SESSION))
    place.force.tidy(20)
    assert set(place.kernel.marks) == {SHELL.since}
    place.lineage.exit(Exit(time=11, process=child, session=SESSION))
    place.force.tidy(SHELL.since)
    assert set(place.kernel.marks) == {SHELL.since}
    for _ in range(2):  # once is enough
        place.force.tidy(20)
        assert place.kernel.marks == {}


def test_marks_that_execs_left_before_the_swap_go_as_well() -> None:
    """The kernel made them; nobody runs them any more."""
    place = Standing()
    place.lineage.begin(SESSION, "/p", SHELL, ("one",))
    place.force.take(engine(), lambda: place.kernel.marks.update({12: 1}))
    assert set(place.kernel.marks) == {SHELL.since, 12}
    place.force.tidy(20)
    assert set(place.kernel.marks) == {SHELL.since}


def test_a_reload_finds_room_for_marks_of_what_runs() -> None:
    """However many were marked for the policy before: they are gone, and so are their marks."""
    place = Standing()
    place.kernel.room = 8
    place.take(engine())
    for image in range(100, 108):
        place.force.mark(replace(SHELL, since=image), ("one",), None)
    place.lineage.begin(SESSION, None, SHELL, ("one",))
    place.force.take(engine(2), lambda: place.force.tidy(200))
    assert place.kernel.marks == {SHELL.since: 2}
    assert place.said == []


def test_a_mark_without_room_is_said_once() -> None:
    """Until there was room again."""
    place = Standing()
    place.kernel.room = 1
    place.take(engine())
    place.lineage.begin(SESSION, None, SHELL, ("one",))
    for image in (100, 101, 102):
        place.force.mark(replace(SHELL, since=image), ("one",), None)
    (said,) = place.said
    assert isinstance(said, frames.Notice)
    assert (said.subject, "no room" in said.text) == ("policy", True)
    place.force.tidy(200)
    for image in (103, 104):
        place.force.mark(replace(SHELL, since=image), ("one",), None)
    assert len(place.said) == 2


def test_what_fails_before_the_swap_is_not_taken_for_the_kernels() -> None:
    """It is raised; the policy before decides on, and execs leave no marks for the other one."""
    place, first = Standing(), engine()
    place.take(first)
    place.kernel.told.clear()

    def drain() -> None:
        raise OSError(errno.ENOSPC, "no space left")

    second = engine(2)
    with pytest.raises(OSError, match="no space left"):
        place.force.take(second, drain)
    assert place.kernel.names() == ["publish", "unpublish"]
    assert (place.force.problem, place.force.failures, second.refused) == ("", 0, "")
    place.force.mark(SHELL, ("one",), None)
    assert place.kernel.marks == {SHELL.since: 1}


def test_what_begins_before_the_swap_is_marked_for_the_policy_in_force() -> None:
    """It is judged by that one until then, and by the next one from then on."""
    place = Standing()
    place.take(engine())

    def drain() -> None:
        place.lineage.begin(SESSION, None, SHELL, ("one",))
        place.force.mark(SHELL, ("one",), None)
        assert place.kernel.marks == {SHELL.since: 1}

    place.force.take(engine(2), drain)
    assert place.kernel.marks == {SHELL.since: 2}


def test_no_engine_keeps_the_image_of_its_policy() -> None:
    """Megabytes each, of up to four; what its records mean is kept."""
    place, judge = Standing(), engine()
    event = opened(judge, "a.key")
    place.take(judge)
    assert judge.compiled is not None
    assert (judge.compiled.image, judge.compiled.bytes > 0) == (b"", True)
    assert place.force.verdict(event).rule == "a.key"


@pytest.mark.parametrize("fault", [AssertionError, RecursionError, MemoryError, KeyError])
def test_a_fault_of_the_compiler_leaves_the_engine_to_decide(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    """Whatever it is; with the reason."""

    def fails(*asked: object, **more: object) -> None:
        raise fault("a fault")

    monkeypatch.setattr(compiler, "compile", fails)
    judge, place = Engine(RULES, generation=1), Standing()
    compile_for(judge, Host(), room=Sizes().policy)
    assert judge.compiled is None
    assert f"{fault.__name__}('a fault')" in judge.refused
    place.take(judge)
    assert judge.refused in place.force.problem


def test_the_level_of_every_rule_is_what_the_compiler_said() -> None:
    """The engine's are those that it decides, with the reason."""
    judge = engine()
    assert judge.why_engine("a.key") == ""
    assert Engine(RULES).why_engine("a.key") == levels.NO_POLICY
    found = {one.id: judge.level(one, Host(cgroup=True)).name for one in RULES.rules}
    assert found == {
        "a.key": "kills",
        "a.both": "kills-after",
        "a.run": "kills",
        "a.net": "prevents",
        "a.all": "kills",
    }


def test_a_policy_is_made_for_the_room_there_is() -> None:
    """What has no place in it is the engine's; the kernel does not refuse all of it."""
    many = Ruleset(tuple(rule(f"a.r{n}", ("read",), path=f"/a/{n}/{n * n}/x") for n in range(500)))
    sizes = {}
    for room in (1 << 16, 1 << 20):
        judge = Engine(many, generation=1)
        compile_for(judge, Host(), room=room)
        assert judge.compiled is not None
        sizes[room] = len(judge.compiled.image)
        assert sizes[room] <= room
    assert sizes[1 << 20] > 1 << 16  # by itself it takes more


def test_other_events_have_no_verdict_of_the_kernel() -> None:
    """A record without one is nothing to be told."""
    event = Event(time=1, process=SESSION, session=SESSION)
    assert engine().of_kernel(event) is NO_VERDICT


def test_a_session_whose_project_the_kernel_cannot_hold_is_the_engines_and_said() -> None:
    """With the reason, and with the session it is about."""
    place = Standing()
    place.take(engine())

    def set_session(*told: object) -> bool:
        raise KernelError("the kernel has no room for the project: it is long", "shorten it")

    place.kernel.set_session = set_session  # type: ignore[attr-defined]
    place.force.enter(SESSION, ("one",), "/p" * 600)
    (said,) = place.said
    assert isinstance(said, frames.Notice)
    assert (said.subject, said.session) == ("policy", SESSION)
    assert "the engine alone decides" in said.text
    assert "it is long" in said.text
