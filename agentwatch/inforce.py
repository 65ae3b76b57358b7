"""The policy in force: the one the kernel decides by, and what it knows of sessions and programs.

A program's predicates are what the rules ask of `process.*`, worked out once for each exec: by the
probes at the exec, and here for whatever ran before its policy was there. Those are the marks.

A policy comes into force by one swap. Before it, execs leave marks for it, too; then everything
that is in the rings is handled, so that all images are known; then those get their marks. A mark
goes with the last process of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from agentwatch.engine import NO_VERDICT, Engine, Verdict, by_unknown
from agentwatch.errors import AgentwatchError, KernelError
from agentwatch.events import Event, ProcessKey
from agentwatch.kernel.probes import Probes
from agentwatch.known import Found
from agentwatch.lineage import Image as Program
from agentwatch.lineage import Lineage
from agentwatch.mounts import Mounts
from agentwatch.policy.image import Image
from agentwatch.policy.subjects import AgentBits
from agentwatch.sinks import frames

KEPT = 4  # policies whose records may still come


class InForce:
    """What the kernel decides by. say: where its frames go.

    known: the files it knows by what they are. problem: why the kernel decides nothing; "" where it
    does. For metrics: failures, how often a policy found no room in the kernel; disagreements, how
    often it has killed or refused what the engine does not object to.
    """

    def __init__(
        self, probes: Probes, lineage: Lineage, say: Callable[[frames.Frame], None]
    ) -> None:
        self._probes, self._lineage, self._say = probes, lineage, say
        self._bits = AgentBits()
        self._engine: Engine | None = None  # the last that was asked for
        self._image: Image | None = None  # the last that was published
        self._engines: dict[int, Engine] = {}  # by generation
        self._several: set[ProcessKey] = set()  # sessions in which an agent became another one
        self._marked: set[int] = set()  # images
        self._full = False  # there is no room for more marks, and that was said
        self._disagreed = 0  # generation whose first disagreement was said
        self.problem = ""
        self.failures = self.disagreements = 0
        self.known = Found()

    def take(self, engine: Engine, drain: Callable[[], None]) -> None:
        """Puts an engine's policy in force. drain: handles all that is in the rings by now, and
        tidies; what it raises is raised: then the policy before stays in force.

        Where the kernel does not take it, the engine decides everything from then on, and says so.
        """
        self.expect(engine)
        compiled = engine.compiled
        if compiled is None and not engine.refused:  # nobody asked for it
            self._image, self.problem = None, ""
            self._probes.withdraw()
            return
        if compiled is None:
            self._withdraw(engine.refused)
            return
        try:
            numbered = engine.generation, engine.bits.names, compiled.rules
            self._probes.keeping.policy(*numbered)
            self._probes.publish(compiled.image)
        except (AgentwatchError, OSError) as error:
            self._refuse(engine, error)
            return
        try:
            drain()
        except BaseException:
            self._probes.unpublish()
            raise
        self._image = Image(compiled.image)
        for program, agents, project in self._lineage.running():
            self._mark(program, agents, project)
        try:
            self._probes.put_in_force(compiled.image)
        except (AgentwatchError, OSError) as error:
            self._refuse(engine, error)
            return
        self.problem = ""
        # Those that execs have left meanwhile are among them.
        self._marked = self._probes.forget_marks(engine.generation)
        # The kernel has it, and so have we while it is in force: not each engine that is kept.
        engine.compiled = replace(compiled, image=b"")
        self._engines[engine.generation] = engine
        while len(self._engines) > KEPT:
            del self._engines[next(iter(self._engines))]

    def expect(self, engine: Engine) -> None:
        """It is to be taken: its bits add to those of the policy in force."""
        self._bits, self._engine = engine.bits, engine

    def _refuse(self, engine: Engine, error: Exception) -> None:
        engine.compiled, engine.refused = None, str(getattr(error, "message", error))
        self._withdraw(engine.refused)

    def _withdraw(self, why: str) -> None:
        self._image = None
        self._probes.withdraw()
        self.problem = f"the kernel decides nothing, the engine kills instead: {why}"
        self.failures += 1
        self._say(frames.Notice(subject="policy", text=self.problem))

    # What the kernel knows.

    def enter(self, session: ProcessKey, agents: Iterable[str], project: str | None) -> None:
        """From here on the kernel judges a session: all that is known of it has been marked."""
        try:
            self._probes.set_session(session, self._bits.mask(agents), project)
        except KernelError as error:
            text = f"the engine alone decides about the session of {session.pid}: {error.message}"
            self._say(frames.Notice(subject="policy", text=text, session=session))

    def mark(self, program: Program | None, agents: tuple[str, ...], project: str | None) -> None:
        """What a process runs that was not seen to begin it."""
        if program is not None and self._image is not None:
            self._mark(program, agents, project)

    def added(self, session: ProcessKey) -> None:
        """A process of a session became another agent, too: its rules apply to what comes of it.

        Until the kernel knows, and because that takes its time, the engine judges the session too.
        """
        self._several.add(session)
        for program, agents, project in self._lineage.running(session):
            self.mark(program, agents, project)
        self._probes.refresh()

    def forget(self, session: ProcessKey) -> None:
        """A session that is over."""
        self._several.discard(session)

    def tidy(self, read: int) -> None:
        """Forgets marks of what nobody runs any more. read: ns; all that was before it is known."""
        if not self._marked:
            return
        running = {program.since for program, _, _ in self._lineage.running()}
        gone = {image for image in self._marked if image < read} - running
        self._probes.unmark(gone)
        self._marked -= gone
        self._full = self._full and not gone

    def mounted(self, mounts: Mounts) -> None:
        """Where file systems are mounted, for canonical names."""
        self._probes.set_mounts(mounts)

    def know(self, found: Found) -> None:
        """The files that the policy's rules name, judged whatever they are called."""
        self._probes.set_known(found.files)
        if found.cut and found.cut != self.known.cut:
            text = f"not all files that rules name were looked for: the search ended {found.cut}"
            self._say(frames.Notice(subject="policy", text=text))
        self.known = found

    def _mark(self, program: Program, agents: tuple[str, ...], project: str | None) -> None:
        assert self._image is not None
        predicates = self._image.predicates_of(program, project)
        assert predicates is not None  # the program is known
        mask = self._bits.mask(agents)
        if self._probes.mark(program.since, self._image.generation, mask, predicates):
            self._marked.add(program.since)
        elif not self._full:
            self._full = True
            text = (
                "the kernel has no room to note what runs: where rules ask who makes a call, "
                "programs that ran before the rules are judged without the exceptions for them"
            )
            self._say(frames.Notice(subject="policy", text=text))

    # What the kernel says.

    @property
    def several(self) -> set[ProcessKey]:
        """Sessions that the engine judges, whatever the kernel says of them."""
        return self._several

    def verdict(self, event: Event) -> Verdict:
        """What the kernel has done about an event; NO_VERDICT where that was nothing."""
        if not event.verdict:
            return NO_VERDICT
        engine = self._engines.get(event.generation)
        if engine is not None:
            return engine.of_kernel(event)
        before = self._probes.keeping.rules.get(event.generation)
        if self._engine is None or before is None:
            return by_unknown(event)
        return self._engine.of_kernel(event, before)  # by a daemon before this one

    def disagrees(self, event: Event, done: Verdict) -> None:
        """By the same policy the engine has nothing against what the kernel has acted on.

        Counted, and said once for each policy.
        """
        self.disagreements += 1
        if self._disagreed == event.generation:
            return
        self._disagreed = event.generation
        text = f"the kernel has acted by {done.rule or 'a default'} where the engine would not"
        self._say(frames.Notice(subject="policy", text=text, session=event.session))
