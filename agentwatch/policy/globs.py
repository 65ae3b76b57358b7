"""Globs, read: what somebody wrote to rows of components, with braces and brackets written out.

patterns.py says what a glob means.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PATH, HOST, ARGV, WORD = "/", ".", "\0", ""
"""What parts the components of a value; a WORD has no parts."""

MAX_CHARACTERS = 4096  # of what somebody wrote; a project's name may make it longer
MAX_ALTERNATIVES = 1024
MAX_EXPANDED = 1 << 20  # characters of all alternatives together
MAX_DEPTH = 16


class PatternError(ValueError):
    """A malformed pattern; the message is for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Atom:
    """One element of a component. kind: text (some characters), any (`?`), many (`*`), set, or a
    parser's mark.

    ranges: of a set, first and last character of each; its text is "!" when it is negated.
    """

    kind: str
    text: str = ""
    ranges: tuple[tuple[str, str], ...] = ()


Component = tuple[Atom, ...]
ANY_COMPONENTS: Component = (Atom("**"),)
# What is wrong with a `**` that stands beside something else.
_HALF = {
    PATH: "`**` stands for whole components: write `*` here, or part it off",
    HOST: "`**` stands for whole labels: write `*` here, or part it off with dots",
    ARGV: "`**` stands for whole tokens: write `*`, any text inside one, or part it off by spaces",
    WORD: "there is no `**` inside one token or word: write `*`, which is any text in it, `/` too",
}
# By what parts components: the characters that mean themselves wherever they stand.
_PLAIN = {cut: re.compile(rf"[^\\\[{{}}?*,\x00{cut or ''}]+") for cut in ("/", ".", " ", None)}
_MARKS = {"{": Atom("{"), ",": Atom(","), "}": Atom("}"), "?": Atom("any"), "*": Atom("many")}


def rows(text: str, separator: str = PATH) -> tuple[tuple[Component, ...], ...]:
    """The alternatives a glob's braces stand for, each a row of components.

    Raises PatternError.
    """
    known = _ROWS.get((text, separator))
    if known is not None:
        return known
    if not text:
        raise PatternError("the pattern is empty")
    atoms = tuple(_atoms(text, separator))
    alternatives, end = _expand(atoms, 0, 0)
    if end < len(atoms):
        raise PatternError("`}` without `{`: write `\\}` for the character")
    found = tuple(_row(alternative, separator) for alternative in alternatives)
    if len(found) * len(text) <= REMEMBERED_CHARACTERS:
        if len(_ROWS) >= REMEMBERED:
            _ROWS.clear()
        _ROWS[text, separator] = found
    return found


# A pattern is read when it is checked, compiled for tests, compiled for the host and looked at for
# literals. Only short ones are remembered: a few kilobytes of braces can stand for a megabyte.
_ROWS: dict[tuple[str, str], tuple[tuple[Component, ...], ...]] = {}
REMEMBERED = 8192
REMEMBERED_CHARACTERS = 4096


def _atoms(text: str, separator: str) -> Iterator[Atom]:
    """The elements of a glob; separators and braces are marks."""
    cut = {ARGV: " ", WORD: None}.get(separator, separator)
    plain = _PLAIN[cut]
    depth = position = 0
    while position < len(text):
        if run := plain.match(text, position):
            yield Atom("text", run[0])
            position = run.end()
            continue
        char = text[position]
        position += 1
        if char == "\0":
            raise PatternError("a NUL character cannot be part of any value")
        if char == "\\":
            if position == len(text):
                raise PatternError("`\\` at the end escapes nothing: write `\\\\` for it")
            yield Atom("text", text[position])
            position += 1
        elif char == "[":
            atom, position = _set(text, position, separator)
            yield atom
        elif char == cut:
            yield Atom("cut")
        elif char in "{}?*" or (char == "," and depth):
            depth += {"{": 1, "}": -1}.get(char, 0)
            yield _MARKS[char]
        else:
            yield Atom("text", char)


def _set(text: str, position: int, separator: str) -> tuple[Atom, int]:
    """The set whose `[` is before position, and where it ends."""
    start = position
    negated = text[position : position + 1] == "!"
    if text[position : position + 1] == "^":
        raise PatternError("`[^` does not negate: write `[!` (or `[\\^` for the character)")
    position += negated
    ranges: list[tuple[str, str]] = []
    while text[position : position + 1] != "]" or not ranges:
        if text[position : position + 2] == "[:":
            raise PatternError("`[:class:]` is not known: write the characters, like `[a-z]`")
        low, position = _member(text, position)
        high = low
        if text[position : position + 1] == "-" and text[position + 1 : position + 2] != "]":
            high, position = _member(text, position + 1)
        if low > high:
            raise PatternError(f"the range `{low}-{high}` in a set runs backwards")
        ranges.append((low, high))
    cut = separator or "\0"
    if not negated and any(low <= cut <= high and low == high for low, high in ranges):
        raise PatternError(f"`[{text[start:position]}]`: no component has a `{cut}` in it")
    return Atom("set", "!" if negated else "", tuple(ranges)), position + 1


def _member(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] == "\\":
        position += 1
    if position >= len(text):
        raise PatternError("`[` is not closed: write `\\[` for the character")
    return text[position], position + 1


def _expand(atoms: Sequence[Atom], position: int, depth: int) -> tuple[list[tuple[Atom, ...]], int]:
    """The alternatives of one level of braces from position, and where the level ends."""
    if depth > MAX_DEPTH:
        raise PatternError(f"braces are nested more than {MAX_DEPTH} deep")
    done: list[tuple[Atom, ...]] = []
    parts: list[list[tuple[Atom, ...]]] = []
    while position < len(atoms) and atoms[position].kind != "}":
        if atoms[position].kind == "{":
            inner, position = _expand(atoms, position + 1, depth + 1)
            if position == len(atoms):
                raise PatternError("`{` is not closed: write `\\{` for the character")
            parts.append(inner)
            position += 1
        elif atoms[position].kind == ",":
            done, parts = done + _product(parts), []
            position += 1
        else:
            end = position
            while end < len(atoms) and atoms[end].kind not in "{,}":
                end += 1
            parts.append([tuple(atoms[position:end])])
            position = end
    done += _product(parts)
    if len(done) > MAX_ALTERNATIVES:
        raise PatternError(f"the braces stand for more than {MAX_ALTERNATIVES} alternatives")
    return done, position


def _product(parts: Sequence[Sequence[tuple[Atom, ...]]]) -> list[tuple[Atom, ...]]:
    """One of each part, in every combination; refused before it is written out if it is absurd."""
    count = math.prod(len(part) for part in parts)
    longest = sum(max(map(_length, part)) for part in parts)
    if count > MAX_ALTERNATIVES:
        raise PatternError(f"the braces stand for more than {MAX_ALTERNATIVES} alternatives")
    if count > 1 and count * longest > MAX_EXPANDED:
        raise PatternError(f"the braces stand for more than {MAX_EXPANDED} characters")
    return [tuple(itertools.chain.from_iterable(row)) for row in itertools.product(*parts)]


def _length(atoms: Sequence[Atom]) -> int:
    return sum(len(atom.text) or 1 for atom in atoms)


def _row(atoms: Sequence[Atom], separator: str) -> tuple[Component, ...]:
    """The components between the cuts; runs of spaces in an argv pattern are one cut."""
    row: list[list[Atom]] = [[]]
    for atom in atoms:
        if atom.kind == "cut":
            row.append([])
        else:
            row[-1].append(atom)
    components = [_component(part, separator) for part in row if part or separator != ARGV]
    return tuple(components)


def _component(atoms: Sequence[Atom], separator: str) -> Component:
    kinds = [atom.kind for atom in atoms]
    if kinds == ["many", "many"]:
        return ANY_COMPONENTS
    if any(pair == ("many", "many") for pair in itertools.pairwise(kinds)):
        raise PatternError(_HALF[separator])
    return tuple(atoms)
