"""What the kernel says of an event, when its subjects have been walked: rules, then defaults.

The steps are those of bpf/rules.bpf.c, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentwatch.policy.layout import (
    ALLOW,
    ANY_WORD,
    H_BASE_EXEC,
    H_DEFAULTS,
    H_ROLES_MATCH,
    H_UNREAD_EXEC,
    LAST,
    LOOK,
    OBJECT,
    OP_ANCHOR,
    OP_PRED,
    OP_WORD,
    UNLESS,
)
from agentwatch.policy.subjects import (
    ADDR,
    ARGS,
    CWD,
    EXE,
    EXEC,
    FILE,
    IN_PROJECT,
    KINDS,
    LISTS,
    OF_NONE,
    PORT,
    UNIX,
    WORDS,
    Subject,
)

_PREVENTED = (
    WORDS["family"]["inet"] | WORDS["family"]["inet6"],
    WORDS["proto"]["tcp"] | WORDS["proto"]["udp"],
)
EVERY_SUBJECT = (1 << 7) - 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What the kernel says. verdict: 0 (nothing), KILL, DENY, LOOK. rule: the number of what won in
    Compiled.rules, from 1; 0 for nothing. crowded: more lists were met than there is room for.
    """

    verdict: int = 0
    rule: int = 0
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks. preventing: a hook, before anything happens. later: mask of subjects that it cannot
    know yet, of which the probes ask again. ruled: by rules alone, not by defaults. mapped: by
    those alone that name what is executed.
    """

    preventing: bool = False
    later: int = 0
    ruled: bool = False
    mapped: bool = False


AT_THE_END = Asking()
"""The probes at the end of a call, or once a program is in place."""


@dataclass(slots=True)
class Walked:
    """What the automata found. conditions: a mask; kept: offsets of lists."""

    conditions: int = 0
    kept: list[int] | None = None
    crowded: bool = False


def unread_of(subject: Subject) -> int:
    """The mask of subjects that could not be read."""
    path = EXE if subject.kinds & EXEC else FILE
    values = (
        (path, subject.path),
        (CWD, subject.cwd),
        (ARGS, subject.args),
        (ADDR, subject.addr),
        (PORT, subject.port),
        (UNIX, subject.unix),
    )
    return sum(1 << number for number, value in values if value is None)


class Decider:
    """The second half: rules and, unless by another name, defaults, with what the walk found."""

    def __init__(
        self,
        words: memoryview[int],
        subject: Subject,
        found: Walked,
        unread: int,
        asking: Asking = AT_THE_END,
    ) -> None:
        self.words, self.subject, self.found, self.unread = words, subject, found, unread
        self.asking = asking
        self.uncertain = subject.uncertain | unread | subject.cut << ARGS
        others = subject.agents & ~(1 << OF_NONE)
        self.agents = others or subject.agents
        self.winner = self.verdict = self.look = 0
        self.allowed = dict.fromkeys(KINDS.values(), 0)
        inet, transport = _PREVENTED
        refused = bool(subject.words & inet and subject.words & transport)
        self.prevented = asking.preventing or refused
        known = subject.predicates
        self.certain = known or 0
        self.possible = self._mask(words[H_ROLES_MATCH]) if known is None else known

    def decide(self) -> Decision:
        kinds, words = self.subject.kinds, self.words
        sort = next(place for place, sorts in enumerate(LISTS) if kinds & sorts)
        self._consider_list(words[H_BASE_EXEC + sort], False)
        for offset in self.found.kept or ():
            self._consider_list(offset, True)
        if self.unread:
            self._consider_list(words[H_UNREAD_EXEC + sort], False)
        # What would allow it may be said of what is still to come.
        if not (self.asking.ruled or self.asking.mapped or self.asking.later):
            self._consider_defaults()
        return self._decision()

    def _decision(self) -> Decision:
        crowded = self.found.crowded
        if self.verdict:
            return Decision(self.verdict, self._id(self.winner), crowded)
        if self.look:
            return Decision(LOOK, self._id(self.look), crowded)
        return Decision(crowded=crowded)

    def _id(self, offset: int) -> int:
        return self.words[offset]

    def _mask(self, offset: int) -> int:
        if not offset:
            return 0
        return sum(self.words[offset + place] << 32 * place for place in range(6))

    def _verdict(self, word: int) -> int:
        otherwise = word >> 16 & 0xFF
        return otherwise if otherwise and not self.prevented else word & 0xFF

    def _consider_list(self, offset: int, kept: bool) -> None:
        if not offset:
            return
        words = self.words
        offset += 2 + words[offset + 1]
        offset += 1 + words[offset]
        for rule in words[offset + 1 : offset + 1 + words[offset]]:
            self._consider(rule, kept)

    def _consider(self, rule: int, kept: bool) -> None:
        words = self.words
        verdict = self._verdict(words[rule + 1])
        kinds = words[rule + 1] >> 8 & 0xFF
        agents = words[rule + 2] | words[rule + 3] << 32
        if not kinds & self.subject.kinds or not agents & self.agents:
            return
        if self.asking.mapped and not words[rule + 1] & OBJECT:
            return
        if not self._holds(rule, verdict == ALLOW, kept):
            return
        if verdict == ALLOW:
            for kind in self.allowed:
                if kind & kinds:
                    self.allowed[kind] |= agents
        elif verdict == LOOK:
            if not self.look or rule < self.look:
                self.look = rule
        elif not self.winner or rule < self.winner:
            self.winner, self.verdict = rule, verdict

    def _holds(self, rule: int, loosens: bool, kept: bool) -> bool:
        words = self.words
        exception = True  # whether all ops of the one that is read have held
        for op in words[rule + 5 : rule + 5 + words[rule + 4]]:
            unless = bool(op & UNLESS)
            held = (
                loosens != unless if self._is_later(op) else self._op(op, unless or loosens, kept)
            )
            if not unless:
                if not held:
                    return False
                continue
            exception = exception and held
            if op & LAST:
                if exception:
                    return False
                exception = True
        return True

    def _is_later(self, op: int) -> bool:
        """Whether it asks about what is not known yet: then nothing is denied by it."""
        patterned = op >> 29 not in (OP_WORD, OP_PRED)
        return patterned and bool(self.asking.later >> (op >> 24 & 7) & 1)

    def _op(self, op: int, loosens: bool, kept: bool) -> bool:
        kind, subject, arg = op >> 29, op >> 24 & 7, op & 0xFFFFFF
        if kind == OP_WORD:
            return self._has_word(op & ANY_WORD, loosens)
        if kind == OP_PRED:
            return bool((self.certain if loosens else self.possible) >> arg & 1)
        holds = kept if kind == OP_ANCHOR else bool(self.found.conditions >> arg & 1)
        if loosens:
            return holds and not self.uncertain >> subject & 1
        return holds or bool(self.unread >> subject & 1)

    def _has_word(self, wanted: int, loosens: bool) -> bool:
        return bool(self.subject.words & wanted)

    def _consider_defaults(self) -> None:
        offset = self.words[H_DEFAULTS]
        if not offset:
            return
        allowed = self._allowed()
        for place in range(self.words[offset]):
            default = offset + 1 + 6 * place
            _, word, kind, low, high, weaker = self.words[default : default + 6]
            if not kind & self.subject.kinds:
                continue
            if not (low | high << 32) & self.agents & ~allowed[kind]:
                continue
            verdict = self._verdict(word)
            if verdict == LOOK:
                self.look = self.look or default
            elif not self.winner or self.winner >= weaker:
                self.winner, self.verdict = default, verdict
            return

    def _allowed(self) -> dict[int, int]:
        """By kind: the agents that some allow rule makes a hole for."""
        allowed = dict(self.allowed)
        opened = allowed[KINDS["open"]]
        for name in ("read", "change"):
            allowed[KINDS[name]] |= opened
        others = [kind for kind in KINDS.values() if kind & self.subject.kinds & ~KINDS["open"]]
        if others:
            every = -1
            for kind in others:
                every &= allowed[kind]
            allowed[KINDS["open"]] |= every
        return allowed


class BelowDecider(Decider):
    """What is said of a directory by the rules about what is below it, whatever their kinds: what
    is asked of the names, arguments and ways of opening there may hold, where that restricts.
    """

    def __init__(self, words: memoryview[int], subject: Subject, found: Walked, kinds: int) -> None:
        asked = replace(subject, kinds=kinds)
        super().__init__(words, asked, found, EVERY_SUBJECT)

    def decide(self) -> Decision:
        for offset in self.found.kept or ():
            self._consider_list(offset, True)
        if self.found.crowded:
            for place in range(len(LISTS)):
                self._consider_list(self.words[H_UNREAD_EXEC + place], False)
        return self._decision()

    def _has_word(self, wanted: int, loosens: bool) -> bool:
        if wanted == IN_PROJECT:
            return super()._has_word(wanted, loosens)
        return not loosens
