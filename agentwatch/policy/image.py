"""The image of a policy, asked in Python as the kernel asks it: walked, then decided.

See layout.py for its bytes and deciding.py for the second half.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

from agentwatch.errors import AgentwatchError
from agentwatch.lineage import Actor
from agentwatch.lineage import Image as Program
from agentwatch.policy.deciding import (
    AT_THE_END,
    EVERY_SUBJECT,
    Asking,
    BelowDecider,
    Decider,
    Decision,
    Walked,
    unread_of,
)
from agentwatch.policy.layout import (
    ABI,
    ADDRESSES,
    ARGV_ANCHORED,
    ARGV_FLOATING,
    DEFAULT,
    DENY,
    H_ABI,
    H_GENERATION,
    H_MAGIC,
    H_ROLES_MATCH,
    H_SETS,
    H_UNREAD_ARGS,
    H_UNREAD_CWD,
    H_UNREAD_EXE,
    KILL,
    LOOK,
    LOW,
    MAGIC,
    MAX_KEPT,
    PATH_ANCHORED,
    PATH_BEGUN,
    PATH_FLOATING,
    PORTS,
    PROJECT,
    REACH,
    ROW,
    ROW_BITS,
    SETS,
    SMALLEST,
    STICKY,
    SYMBOL,
    USUAL,
    VIRTUAL,
)
from agentwatch.policy.readers import FOREIGN
from agentwatch.policy.subjects import (
    ADDR,
    ARGS,
    CONNECT,
    CWD,
    EXE,
    EXEC,
    FILE,
    KINDS,
    MOUNT,
    OPENING,
    PORT,
    UNIX,
    Subject,
    args_subject,
    path_subject,
)

TAKEN = EXEC | OPENING | CONNECT
"""The kinds of what a directory takes along when it goes elsewhere."""
MADE = KINDS["change"]
"""... and of what comes about where it goes to."""
ITSELF = 64
"""Beside kinds: it is no directory."""

__all__ = ("DENY", "KILL", "LOOK", "Decision", "Image")


class Image:
    """An image, ready to decide. Raises AgentwatchError for bytes that are none of this ABI."""

    def __init__(self, blob: bytes) -> None:
        if sys.byteorder != "little" or len(blob) < SMALLEST or len(blob) & (len(blob) - 1):
            raise AgentwatchError("this is no image of a policy", "compile it again")
        self._blob = blob
        self._words = memoryview(blob).cast("I")
        if (self._words[H_MAGIC], self._words[H_ABI]) != (MAGIC, ABI):
            raise AgentwatchError("this image is of another version", "compile it again")
        self._cells = memoryview(blob).cast("Q")
        self._sets = tuple(
            tuple(self._words[H_SETS + 4 * number : H_SETS + 4 * number + 4])
            for number in range(len(SETS))
        )

    @property
    def generation(self) -> int:
        return self._words[H_GENERATION]

    def decide(self, subject: Subject, asking: Asking = AT_THE_END) -> Decision:
        """The verdict on an event, in the kernel's own steps: by each of its names the rules, by
        the canonical one the defaults. The stricter one stands.
        """
        found = self._decide(subject, asking)
        if subject.path is None:
            return found
        for name in subject.others:
            if found.verdict == KILL:
                break
            other = self._decide(subject.by_name(name), replace(asking, ruled=True))
            stricter = other.verdict and (not found.verdict or other.verdict < found.verdict)
            crowded = found.crowded or other.crowded
            found = replace(other if stricter else found, crowded=crowded)
        return found

    def _decide(self, subject: Subject, asking: Asking) -> Decision:
        unread = unread_of(subject)
        found = self._walk(subject, asking.later)
        if found.crowded:
            unread = EVERY_SUBJECT
        return Decider(self._words, subject, found, unread, asking).decide()

    def decide_directory(self, subject: Subject, kinds: int = TAKEN) -> Decision:
        """The strictest of the rules of these kinds that are about what is below the directory
        `subject.path`, as far as its name tells: those that may match it and do not allow it.
        With ITSELF, of what is no directory.
        """
        found = Walked(kept=[])
        reach = not kinds & ITSELF
        value = subject.path
        if value:
            # The root directory's name is its separator.
            self._walk_below(value if value != b"//" else b"/", subject.project, found, reach)
        else:
            found.crowded = value is None
        return BelowDecider(self._words, subject, found, kinds & ~ITSELF).decide()

    def _walk_below(self, value: bytes, project: bytes | None, found: Walked, reach: bool) -> None:
        keep = self._keeper(found)
        for number in (PATH_ANCHORED, PATH_FLOATING, PATH_BEGUN):
            state = self._walk_set(number, value, REACH, keep, False)
            if reach:
                self._reaches(state, number, keep)
        if project is None:
            return
        if value.startswith(project + b"/"):
            state = self._walk_set(PROJECT, value[len(project) :], REACH, keep, False)
            if reach:
                self._reaches(state, PROJECT, keep)
        elif reach and project.startswith(value):
            self._reaches(self._sets[PROJECT][1], PROJECT, keep)

    def predicates(
        self,
        exe: bytes | None,
        cwd: bytes | None,
        args: bytes | None,
        *,
        uncertain: int = 0,
        project: bytes | None = None,
        cut: bool = False,
        others: Iterable[bytes] = (),
    ) -> int:
        """The predicates of a program, by its name and working directory (with `/` behind) and its
        arguments; None: unread. uncertain: subjects that loosen nothing. cut: as of a Subject.
        others: its other names, which loosen nothing either.
        """
        uncertain |= cut << ARGS
        mask = 0
        if exe is not None:
            roles = self._predicates_at(self._words[H_ROLES_MATCH])
            for name in others:
                mask |= self._predicates_of(self._asked(EXE, name, project, False)) & roles
        for subject, value, header in (
            (EXE, exe, H_UNREAD_EXE),
            (CWD, cwd, H_UNREAD_CWD),
            (ARGS, args, H_UNREAD_ARGS),
        ):
            roles = self._predicates_at(self._words[header])
            if value is None:
                mask |= roles
                continue
            if not value and subject != ARGS:  # no name is a value that no pattern fits
                continue
            found = self._predicates_of(self._asked(subject, value, project, cut))
            mask |= found & roles if uncertain >> subject & 1 else found
        return mask

    def predicates_of(self, program: Program | None, project: str | None) -> int | None:
        """The same, of an image as the lineage knows it; None where that is not known."""
        if program is None:
            return None
        names = (program.exe, program.cwd)
        exe, cwd = (path_subject(name) if name else None for name in names)
        foreign = (
            subject
            for subject, name in zip((EXE, CWD), names, strict=True)
            if name.startswith(FOREIGN)
        )
        return self.predicates(
            exe,
            cwd,
            args_subject(program.args),
            uncertain=sum(1 << subject for subject in foreign),
            others=map(path_subject, program.others),
            project=None if project is None else project.encode("utf-8", "surrogateescape"),
        )

    def predicates_for(self, actor: Actor) -> int | None:
        """Those of the image that makes a call."""
        return self.predicates_of(actor.image, actor.project)

    def _predicates_at(self, offset: int) -> int:
        if not offset:
            return 0
        return sum(self._words[offset + place] << 32 * place for place in range(6))

    def _predicates_of(self, found: Walked) -> int:
        mask = 0
        for offset in found.kept or ():
            place = offset + 2 + self._words[offset + 1]
            for one in range(self._words[place]):
                mask |= 1 << self._words[place + 1 + one]
        return mask

    def _asked(self, subject: int, value: bytes, project: bytes | None, cut: bool) -> Walked:
        found = Walked(kept=[])
        self._walk_one(subject, value, project, self._keeper(found, limit=1 << 30), cut)
        return found

    def _walk(self, subject: Subject, later: int) -> Walked:
        found = Walked(kept=[])
        keep = self._keeper(found)
        if subject.kinds & EXEC:
            asked: tuple[tuple[int, bytes | None], ...] = (
                (ARGS, subject.args),
                (EXE, subject.path),
                (CWD, subject.cwd),
            )
        elif subject.kinds & (OPENING | MOUNT):
            asked = ((FILE, subject.path),)
        else:
            asked = ((ADDR, subject.addr), (PORT, subject.port), (UNIX, subject.unix))
        for number, value in asked:
            if later >> number & 1:
                continue
            if value is not None and (value or number == ARGS):
                self._walk_one(number, value, subject.project, keep, subject.cut)
        return found

    def _keeper(self, found: Walked, limit: int = MAX_KEPT) -> Callable[[int], None]:
        words = self._words

        def keep(offset: int) -> None:
            seen = words[offset]
            if seen:
                if found.conditions >> seen & 1:
                    return
                found.conditions |= 1 << seen
            assert found.kept is not None
            if len(found.kept) >= limit:
                found.crowded = True
                return
            for place in range(words[offset + 1]):
                found.conditions |= 1 << words[offset + 2 + place]
            found.kept.append(offset)

        return keep

    def _walk_one(
        self,
        subject: int,
        value: bytes,
        project: bytes | None,
        keep: Callable[[int], None],
        cut: bool,
    ) -> None:
        symbol = SYMBOL[subject]
        if subject in (ADDR, PORT):
            numbers: tuple[int, ...] = (ADDRESSES if subject == ADDR else PORTS,)
        elif subject == ARGS:
            numbers = (ARGV_ANCHORED, ARGV_FLOATING)
        else:
            numbers = (PATH_ANCHORED, PATH_FLOATING, PATH_BEGUN)
            if project is not None and value.startswith(project + b"/"):
                self._walk_set(PROJECT, value[len(project) :], symbol, keep)
        ends = not cut or subject != ARGS
        for number in numbers:
            state = self._walk_set(number, value, symbol, keep, ends)
            if not ends:
                self._reaches(state, number, keep)

    def _walk_set(
        self, number: int, value: bytes, symbol: int, keep: Callable[[int], None], ends: bool = True
    ) -> int:
        """The state behind a value. ends: and what it accepts there."""
        table, state, defaults, dead = self._sets[number]
        if not table:
            return state
        cells = self._cells
        classes = self._blob[table : table + 256]
        if state & STICKY:
            self._accepts(state, symbol + 1, keep)
        for byte in value:
            place = VIRTUAL + classes[byte]
            cell = cells[(state & ROW) + place]
            if cell >> 32 != state:
                cell = cells[defaults + (state >> ROW_BITS & USUAL) * DEFAULT + place]
            state = cell & LOW
            if state & STICKY:
                self._accepts(state, symbol + 1, keep)
            elif state == dead:
                return state
        if ends:
            self._accepts(state, symbol, keep)
        return state

    def _reaches(self, state: int, number: int, keep: Callable[[int], None]) -> None:
        """Keeps the list of what is reachable from a state."""
        table, _, defaults, _ = self._sets[number]
        if not table:
            return
        cell = self._cells[(state & ROW) + REACH]
        if cell >> 32 != state:
            cell = self._cells[defaults + (state >> ROW_BITS & USUAL) * DEFAULT + REACH]
        if cell & LOW:
            keep(cell & LOW)

    def _accepts(self, state: int, symbol: int, keep: Callable[[int], None]) -> None:
        cell = self._cells[(state & ROW) + symbol]
        if cell >> 32 == state:
            keep(cell & LOW)
