"""The policy compiler: a ruleset as the image which the kernel decides by.

    conditions  patterns of all rules, each distinct row of alternatives once
    automata    one for each kind of subject, anchored and floating apart
    programs    what is left of each rule: tests of bits, in order of strictness
    lists       by accepting state: conditions that hold there, predicates, rules to consider

The same ruleset makes the same bytes. What has no room, or no bytes to say it, is the engine's: by
name, with a reason, and still selected here, so that the engine sees only what it has to judge.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from agentwatch.errors import AgentwatchError
from agentwatch.policy.automaton import Dfa, Ends, build
from agentwatch.policy.blob import Blob
from agentwatch.policy.layout import ADDRESSES as ADDRESS_SET
from agentwatch.policy.layout import (
    ALLOW,
    ARGV_ANCHORED,
    ARGV_FLOATING,
    DEFAULT,
    H_BASE_EXEC,
    H_DEFAULTS,
    H_PREDICATES,
    H_ROLES_MATCH,
    H_UNREAD_ARGS,
    H_UNREAD_CWD,
    H_UNREAD_EXE,
    H_UNREAD_EXEC,
    LARGEST,
    LOOK,
    MAX_DEFAULTS,
    OBJECT,
    PATH_ANCHORED,
    PATH_BEGUN,
    PATH_FLOATING,
    SETS,
    VIRTUAL,
)
from agentwatch.policy.layout import PORTS as PORT_SET
from agentwatch.policy.layout import PROJECT as PROJECT_SET
from agentwatch.policy.marks import Marks
from agentwatch.policy.numbering import CROWDED, Numbers
from agentwatch.policy.programs import (
    Alternatives,
    Lowerer,
    Program,
)
from agentwatch.policy.ranking import Host, Ranked, strictness_of
from agentwatch.policy.subjects import (
    ARGS,
    CONNECT,
    CWD,
    EVERY_AGENT,
    EXE,
    KINDS,
    LISTS,
    AgentBits,
)
from agentwatch.policy.table import strictness
from agentwatch.rules.model import ALL, Rule, Ruleset

_ORDER = (
    ADDRESS_SET,
    PORT_SET,
    PROJECT_SET,
    PATH_ANCHORED,
    ARGV_ANCHORED,
    PATH_FLOATING,
    PATH_BEGUN,
    ARGV_FLOATING,
)
_ENDS = {
    PATH_ANCHORED: Ends.PART_WAY,
    PATH_FLOATING: Ends.PART_WAY,
    PATH_BEGUN: Ends.PART_WAY,
    PROJECT_SET: Ends.DIRECTORY,
    ARGV_ANCHORED: Ends.ANYWHERE,
    ARGV_FLOATING: Ends.ANYWHERE,
}
_SPARE = 256 << 10  # bytes of an image that are kept for rules and lists, at least
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Decided:
    """What can win. rule: its id; "" for a default. kind, agent: of a default."""

    rule: str
    action: str
    kind: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Lowered:
    """Who decides a rule. where: kernel | engine. reason: why the engine, in a sentence.
    prefiltered: the kernel selects the events that the engine has to judge. squeezed: with fewer
    rules beside it, it would be the kernel's.
    """

    where: str
    reason: str = ""
    prefiltered: bool = False
    squeezed: bool = False


@dataclass(frozen=True, slots=True)
class SetStats:
    """One automaton. bytes: of its cells. seconds: it took, by the clock that was given."""

    name: str
    states: int
    classes: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy for the kernel. rules: what the numbers of its rules stand for, from 1."""

    image: bytes
    generation: int
    rules: tuple[Decided, ...]
    lowered: Mapping[str, Lowered]
    agents: AgentBits
    sets: tuple[SetStats, ...]
    bytes: int
    seconds: float


def compile(  # noqa: A001 - it is called as compiler.compile
    ruleset: Ruleset,
    *,
    mode: str,
    without_hook: str,
    agents: AgentBits,
    prevents: bool,
    generation: int,
    lsm: bool = False,
    size: int = LARGEST,
    paused: Collection[str] = frozenset(),
    clock: Callable[[], float] = lambda: 0.0,
) -> Compiled:
    """The image of a ruleset, at most `size` bytes of it.

    mode, without_hook: as for the engine. agents: the bits there are; those of the ruleset's agents
    are added. prevents: programs are attached that refuse connections; lsm: that refuse anything.
    paused: rules that the
    engine alone decides, for it knows until when.

    Raises AgentwatchError for rules that do not fit, however little their patterns are given.
    """
    begun = clock()
    names = [a.id for a in ruleset.agents]
    names += [n for rule in ruleset.rules for n in rule.agents]
    names += [d.agent for d in ruleset.defaults if d.agent != ALL]
    agents = agents.extended(names)
    host = Host(mode, without_hook, prevents, lsm)
    for attempt in range(_ATTEMPTS):
        room = max(size - _SPARE, size // 2) >> 2 * attempt
        compilation = _Compilation(ruleset, agents, host, frozenset(paused), clock)
        with _uncollected():
            image, sets = compilation.image(generation, room // 8)
        if len(image) <= size:
            break
    else:
        raise AgentwatchError(
            f"{len(ruleset.rules)} rules need more room than the kernel has for a policy",
            "leave rules out, or name several values in one rule",
        )
    return Compiled(
        image,
        generation,
        compilation.decided,
        compilation.lowered(),
        agents,
        sets,
        len(image),
        clock() - begun,
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Hundreds of thousands of objects are made, none of which refers back to itself: looking for
    those that do would take a fifth of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Compilation:
    """One ruleset on its way to one image."""

    def __init__(
        self,
        ruleset: Ruleset,
        agents: AgentBits,
        host: Host,
        paused: frozenset[str],
        clock: Callable[[], float],
    ) -> None:
        self._ruleset, self._agents, self._host = ruleset, agents, host
        self._paused, self._clock = paused, clock
        self._alternatives = Alternatives(ruleset.homes)
        self._rules = sorted(ruleset.rules, key=strictness)
        self._defaults = [d for d in ruleset.defaults if d.kind in KINDS]
        self.decided = (
            *(Decided(rule.id, rule.action) for rule in self._rules),
            *(Decided("", d.action, d.kind, d.agent) for d in self._defaults),
        )
        self._ids = {rule.id: number for number, rule in enumerate(self._rules, 1)}
        self._reasons: dict[str, str] = {}
        self._selected: set[str] = set()

    def image(self, generation: int, entries: int) -> tuple[bytes, tuple[SetStats, ...]]:
        """entries: how many cells the automata may have."""
        programs = self._programs()
        marks = Marks(programs, self._alternatives)
        dfas, seconds, refused = self._built(marks, entries)
        if refused:
            for mark in refused:
                for alternative in marks.members[mark]:
                    self._alternatives.refuse(alternative, _TOO_MUCH)
            programs = self._programs()
        ranked, numbers = self._ranked(programs)
        blob = Blob(generation)
        rules = self._write_rules(blob, ranked)
        self._write_defaults(blob, ranked, rules)
        self._write_lists(blob, ranked, rules)
        self._write_predicates(blob, numbers)
        accepted = marks.accepted(ranked, rules, numbers)
        cells = blob.put_sets(dfas, accepted, len(numbers.conditions))
        stats = tuple(
            SetStats(
                SETS[number],
                len(dfas[number].rows),
                dfas[number].width - VIRTUAL,
                8 * cells[number],
                seconds[number],
            )
            for number in sorted(dfas)
        )
        return blob.finish(), stats

    def lowered(self) -> dict[str, Lowered]:
        """Who decides each rule, after the image was made."""
        found: dict[str, Lowered] = {}
        for rule in self._ruleset.rules:
            reason = self._reasons.get(rule.id, "")
            if not any(kind in KINDS for kind in rule.on):
                reason = "There is no probe for what it is about."
            found[rule.id] = (
                Lowered("engine", reason, rule.id in self._selected, reason.endswith(_SQUEEZED))
                if reason
                else Lowered("kernel")
            )
        return found

    def _programs(self) -> list[Program]:
        lowerer = Lowerer(self._ruleset, self._agents, self._alternatives)
        closed = {default.kind for default in self._defaults}
        found: list[Program] = []
        for rule in self._rules:
            if rule.action == "allow" and not _matters(rule, closed):
                continue
            for program in lowerer.programs(rule):
                if rule.id in self._paused:
                    program = replace(program, reason="It is paused.")
                found.append(program)
        return found

    def _built(
        self, marks: Marks, entries: int
    ) -> tuple[dict[int, Dfa], dict[int, float], dict[int, str]]:
        dfas: dict[int, Dfa] = {}
        seconds: dict[int, float] = {}
        refused: dict[int, str] = {}
        for number in _ORDER:
            patterns = marks.patterns.get(number)
            if not patterns:
                continue
            begun = self._clock()
            floating = number in (PATH_FLOATING, PATH_BEGUN, ARGV_FLOATING)
            defaults = min(MAX_DEFAULTS, 1 + entries // 4 // DEFAULT)
            ends = _ENDS.get(number, Ends.NOWHERE)
            dfas[number], without = build(patterns, floating, entries // 2, defaults, ends)
            entries -= dfas[number].entries + DEFAULT * len(dfas[number].defaults)
            refused |= without
            seconds[number] = self._clock() - begun
        return dfas, seconds, refused

    def _ranked(self, programs: Sequence[Program]) -> tuple[list[Ranked], Numbers]:
        """The programs with their verdicts, the strictest first."""
        numbers = Numbers(programs)
        found: list[Ranked] = []
        self._reasons.clear()
        self._selected.clear()
        for program in programs:
            rule = program.rule
            loosens = rule.action == "allow"
            numbered = numbers.of(program, loosens)
            reason = numbered.program.reason
            answer = self._host.answer(rule.action, bool(program.kinds & CONNECT), rule)
            if reason:
                self._reasons.setdefault(rule.id, reason)
                self._selected.add(rule.id)
                if loosens:
                    # What it may allow the engine judges instead of the default.
                    found.append(Ranked(LOOK, 0, numbers.of(program, False)))
                else:
                    answer = LOOK, 0
            found.append(Ranked(*answer, numbered))
        return sorted(found, key=lambda one: one.place), numbers

    def _write_rules(self, blob: Blob, ranked: Sequence[Ranked]) -> list[int]:
        offsets = []
        for one in ranked:
            program, ops = one.numbered.program, one.numbered.ops
            head = one.verdict | program.kinds << 8 | one.otherwise << 16
            words = [
                self._ids[program.rule.id],
                head | program.names_object * OBJECT,
                *_halves(program.agents),
                len(ops),
                *ops,
            ]
            offsets.append(blob.put(words))
        return offsets

    def _write_defaults(self, blob: Blob, ranked: Sequence[Ranked], rules: Sequence[int]) -> None:
        rows = []
        for number, default in enumerate(self._defaults, len(self._rules) + 1):
            verdict, otherwise = self._host.answer(default.action, default.kind == "connect", None)
            mask = EVERY_AGENT
            if default.agent != ALL:
                mask = self._agents.mask((default.agent,))
                if self._agents.is_shared(default.agent):
                    verdict, otherwise = LOOK, 0
            rank = strictness_of(verdict, otherwise, default.action)
            weaker = (
                offset for one, offset in zip(ranked, rules, strict=True) if one.strictness > rank
            )
            word = verdict | otherwise << 16
            behind = next(weaker, _NOWHERE)
            row = [number, word, KINDS[default.kind], *_halves(mask), behind]
            rows.append((rank, number, row))
        if rows:
            blob.words[H_DEFAULTS] = blob.put(
                [len(rows), *(word for _, _, row in sorted(rows) for word in row)]
            )

    def _write_lists(self, blob: Blob, ranked: Sequence[Ranked], rules: Sequence[int]) -> None:
        for place, sort in enumerate(LISTS):
            of_sort = [
                (one, offset)
                for one, offset in zip(ranked, rules, strict=True)
                if one.numbered.program.kinds & sort
            ]
            base = _distinct(row for row in of_sort if row[0].numbered.anchor is None)
            unread = _distinct(row for row in of_sort if row[0].verdict != ALLOW)
            blob.words[H_BASE_EXEC + place] = blob.put_list(base)
            blob.words[H_UNREAD_EXEC + place] = blob.put_list(unread)

    def _write_predicates(self, blob: Blob, numbers: Numbers) -> None:
        possible = {
            bit: subject for (subject, _, certain), bit in numbers.predicates.items() if not certain
        }
        blob.words[H_PREDICATES] = len(numbers.predicates)
        # Even an empty one: of what is uncertain, none but these is taken.
        blob.words[H_ROLES_MATCH] = blob.put_mask(possible, always=True)
        for header, subject in ((H_UNREAD_EXE, EXE), (H_UNREAD_CWD, CWD), (H_UNREAD_ARGS, ARGS)):
            blob.words[header] = blob.put_mask(b for b, s in possible.items() if s == subject)


_NOWHERE = 0xFFFFFFFF
_TOO_MUCH = "its wildcards, with those of other rules, would take too long to compile"
_SQUEEZED = (f"{_TOO_MUCH}.", CROWDED)


def _halves(mask: int) -> tuple[int, int]:
    return mask & 0xFFFFFFFF, mask >> 32


def _distinct(rows: Iterable[tuple[Ranked, int]]) -> list[int]:
    """Their offsets, but for programs that only look where another one looks already.

    So what found no room for its patterns costs each event one program, however much that is.
    """
    kept: list[int] = []
    looks: set[tuple[object, ...]] = set()
    for one, offset in rows:
        program = one.numbered.program
        asked = (program.kinds, program.agents, *one.numbered.ops)
        if one.verdict != LOOK or asked not in looks:
            kept.append(offset)
        if one.verdict == LOOK:
            looks.add(asked)
    return kept


def _matters(rule: Rule, closed: Collection[str]) -> bool:
    """Whether some default is on what an allow rule is on."""
    kinds = set(rule.on)
    if "open" in kinds:
        kinds |= {"read", "change"}
    elif kinds & {"read", "change"}:
        kinds.add("open")
    return not kinds.isdisjoint(closed)
