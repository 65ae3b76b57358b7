"""One ruleset, asked in every way there is: the reference, the engine's RE2, the policy's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from agentwatch.events import Exec, Open
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.compiler import compile as compile_policy
from agentwatch.policy.image import Decision, Image
from agentwatch.policy.layout import LARGEST
from agentwatch.policy.lowering import Facts, Policy, Shared
from agentwatch.policy.readers import kinds_of, views
from agentwatch.policy.subjects import AgentBits, Subject, subject_of
from agentwatch.rules.model import Ruleset
from tests.rules.comparing import MODE, WITHOUT_HOOK, Comparison, Expected
from tests.rules.generating import AGENTS, Case
from tests.rules.reachable import CutExec

BITS = AgentBits(AGENTS)


@dataclass(slots=True)
class Tally:
    """What was compared. stopped: ended by the image."""

    pairs: int = 0
    derived: int = 0
    matching: int = 0
    stopped: int = 0
    crowded: int = 0
    in_kernel: int = 0
    rules: int = 0


def compiled_of(ruleset: Ruleset, size: int = LARGEST, lsm: bool = False) -> Compiled:
    return compile_policy(
        ruleset,
        mode=MODE,
        without_hook=WITHOUT_HOOK,
        agents=BITS,
        prevents=True,
        lsm=lsm,
        generation=1,
        size=size,
    )


class Judges:
    """One ruleset, asked all three ways. size: bytes of the image, at most."""

    def __init__(self, ruleset: Ruleset, size: int = LARGEST) -> None:
        self.ruleset = ruleset
        self.compiled = compiled_of(ruleset, size)
        self.image = Image(self.compiled.image)
        lowered = self.compiled.lowered.items()
        self.lowered = frozenset(name for name, found in lowered if found.where == "kernel")
        self.comparison = Comparison(ruleset, self.lowered)
        self._shared = Shared(ruleset, Facts(lambda event: None, lambda event: False))
        self._policies: dict[tuple[str, str | None], Policy] = {}

    def check(self, case: Case, tally: Tally) -> None:
        """Raises AssertionError with everything that is needed to see it again."""
        event, actor = case.event, case.actor
        expected = self.comparison.expected(event, actor)
        tally.pairs += 1
        tally.derived += case.derived
        tally.matching += bool(expected.hits)
        engine = self._engine(case)
        assert engine == expected.hits, self._shown(case, sorted(engine ^ expected.hits))
        subject = self.subject(case)
        if subject is None:
            return
        found = self.image.decide(subject)
        if found.crowded:
            tally.crowded += 1
            return
        tally.stopped += found.verdict in (1, 2)
        self._compare(case, expected, found)

    def check_cut(self, case: Case, begins: bytes) -> Subject:
        """The same of an exec whose argv could be read no further than that. Returns what the image
        was asked.
        """
        event = case.event
        assert isinstance(event, Exec)
        values = {one.name: getattr(event, one.name) for one in fields(event)}
        cut = CutExec(**values, begins=begins)
        expected = self.comparison.expected(cut, case.actor)
        subject = self.subject(case)
        assert subject is not None
        asked = replace(subject, args=begins, cut=True)
        self._compare(Case(cut, case.actor, True), expected, self.image.decide(asked))
        return asked

    def check_below(self, case: Case, name: str) -> Subject:
        """The rules about what is below a directory. Returns what the image was asked."""
        event = Open(time=1, process=case.event.process, session=case.event.session, path=name)
        named = Case(event, case.actor, True)
        subject = self.subject(named)
        assert subject is not None
        expected = self.comparison.below(event, case.actor)
        self._compare(named, expected, self.image.decide_directory(subject))
        return subject

    def _compare(self, case: Case, expected: Expected, found: Decision) -> None:
        if found.crowded:
            return
        rule = self.compiled.rules[found.rule - 1].rule if found.rule else ""
        wrong = expected.wrong(found.verdict, rule)
        assert not wrong, self._said(case, expected, wrong)

    def subject(self, case: Case) -> Subject | None:
        """The event as the image is asked about it."""
        predicates = self.image.predicates_for(case.actor)
        return subject_of(case.event, case.actor, self.compiled.agents, predicates)

    def _engine(self, case: Case) -> frozenset[str]:
        kinds = kinds_of(case.event)
        hits: set[str] = set()
        for agent in case.actor.agents or ("",):
            key = agent, case.actor.project
            if key not in self._policies:
                self._policies[key] = Policy(self._shared, *key)
            for view in views(case.event) if kinds else ():
                found = self._policies[key].hits(kinds, view, case.actor)
                hits |= {rule.id for rule in found}
        return frozenset(hits)

    def _said(self, case: Case, expected: Expected, wrong: str) -> str:
        shown = self._shown(case, sorted(expected.hits))
        return f"{wrong}\n{shown}\nin the kernel: {sorted(self.lowered)}"

    def _shown(self, case: Case, ids: Sequence[str]) -> str:
        rules = [
            (rule.id, rule.on, rule.action, rule.agents, rule.match, rule.unless)
            for rule in self.ruleset.rules
            if rule.id in ids or rule.action == "allow" or len(self.ruleset.rules) < 4
        ]
        lines = "\n".join(map(repr, rules))
        rest = f"homes {self.ruleset.homes} defaults {self.ruleset.defaults}"
        return f"{case.event}\n{case.actor}\n{ids}\n{lines}\n{rest}"
