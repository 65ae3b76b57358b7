r"""The globs of the rule language, as RE2 expressions over bytes.

A glob covers a whole value, which is a row of components: of a path between `/`, of a host name
between `.`, of an argv its tokens. Every component is written with its separator *behind* it
(`/usr/bin` is `/usr/bin/`, an argv is `git\0push\0`), so that `**`, zero or more components, is
one expression everywhere: before, between and after others.

    *      any characters of one component, none included, a leading dot included
    **     zero or more whole components: `a/**` covers `a` too, `**/x` covers `x` and `/x`
    ?      one character: a UTF-8 character, or a byte that is part of none
    [ab-z] [!ab-z]   one character of (not of) a set
    {a,b}  either, nested and across separators      \x  x itself

In an argv pattern spaces part the tokens. Values are `str` as `os.fsdecode` makes them: an
undecodable byte is a surrogate escape, hence a character of its own, and newlines are characters
like others. Brackets and braces are written out before anything else is looked at.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import re2

PATH, HOST, ARGV, WORD = "/", ".", "\0", ""
"""What parts the components of a value; a WORD has no parts."""

MAX_CHARACTERS = 4096  # of what somebody wrote; a project's name may make it longer
MAX_ALTERNATIVES = 1024
MAX_EXPANDED = 1 << 20  # characters of all alternatives together
MAX_DEPTH = 16
LITERAL_BYTES = 63
SHORTEST_LITERAL = 3
NEVER = r"[^\x{0}-\x{10FFFF}]"
"""The expression that nothing matches."""

_GENERIC = """
    . .. app apps applications bin build cli cli.js current dist home index.js index.mjs latest
    lib lib64 libexec local main.js node node_modules opt out package packages python python3
    resources root sbin share site-packages snap src tmp usr var venvs versions
    .bin .cache .config .local .npm .venv .venvs _npx
"""
GENERIC = frozenset(_GENERIC.split())
"""Components too common to tell an agent's programs from anybody's."""


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
# By what parts components: the characters that mean themselves wherever they stand.
_PLAIN = {cut: re.compile(rf"[^\\\[{{}}?*,\x00{cut or ''}]+") for cut in ("/", ".", " ", None)}
_MARKS = {"{": Atom("{"), ",": Atom(","), "}": Atom("}"), "?": Atom("any"), "*": Atom("many")}


def check(text: str, separator: str = PATH) -> str | None:
    """What is wrong with a glob, in words for its author, or None."""
    if len(text) > MAX_CHARACTERS:
        return f"the pattern has more than {MAX_CHARACTERS} characters"
    try:
        rows(text, separator)
    except PatternError as error:
        return str(error)
    return None


def check_regex(text: str) -> str | None:
    """What is wrong with an RE2 expression (`|re`), or None."""
    try:
        re2.compile(text, _quiet())
    except re2.error as error:
        said = error.args[0] if error.args else error
        return said.decode() if isinstance(said, bytes) else str(said)
    return None


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
    if len(found) * len(text) <= _REMEMBERED_CHARACTERS:
        _remember(_ROWS, (text, separator), found)
    return found


def _body(text: str, separator: str) -> str:
    """The expression of a glob without modifiers."""
    known = _BODIES.get((text, separator))
    if known is None:
        known = _alternatives(rows(text, separator), separator)
        if len(known) <= _REMEMBERED_CHARACTERS:
            _remember(_BODIES, (text, separator), known)
    return known


_Known = TypeVar("_Known")


def _remember(known: dict[tuple[str, str], _Known], key: tuple[str, str], found: _Known) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = found


# A pattern is read when it is checked, compiled for tests, compiled for the host and looked at for
# literals. Only short ones are remembered: a few kilobytes of braces can stand for a megabyte.
_ROWS: dict[tuple[str, str], tuple[tuple[Component, ...], ...]] = {}
_BODIES: dict[tuple[str, str], str] = {}
_REMEMBERED = 8192
_REMEMBERED_CHARACTERS = 4096


def expression(
    text: str, separator: str, modifiers: Iterable[str] = (), homes: Sequence[str] = ()
) -> str:
    """The RE2 expression of one value of a condition, over what `subject` makes.

    modifiers: startswith | endswith | contains take the text literally; has: some one token of an
    argv; nocase; re: NEVER, for an Index searches for it. homes: what a leading `~` of a path is.
    Raises PatternError.
    """
    words = frozenset(modifiers)
    if "re" in words:
        return NEVER
    part = WORD if "has" in words else separator
    literal = words & {"startswith", "endswith", "contains"}
    if homes and is_at_home(text, separator):
        found = _at_home(text[1:], homes, *literal)
    elif literal:
        found = _literal(text, part, *literal)
    else:
        found = _body(text, part)
    if "has" in words:
        found = f"{_ROW_OF_TOKENS}{found}{_ROW_OF_TOKENS}"
    return f"(?i:{found})" if "nocase" in words else found


def is_at_home(text: str, separator: str) -> bool:
    """Whether a pattern of paths begins with `~`, which is every home."""
    return separator == PATH and (text == "~" or text.startswith("~/"))


def _at_home(rest: str, homes: Sequence[str], how: str = "") -> str:
    """rest: what stands behind the `~`."""
    if how in ("endswith", "contains"):
        return f"(?:{'|'.join(_literal(home + rest, PATH, how) for home in homes)})"
    if how:
        behind = _literal(rest, PATH, how) if rest else "(?s:.*)"
    else:
        behind = _body(rest, PATH) if rest else quote(PATH)
    return f"(?:{'|'.join(map(quote, homes))}){behind}"


def sequence(tokens: Sequence[str], modifiers: Iterable[str] = ()) -> str:
    """The expression of an argv of exactly these tokens, each a glob; `**` is zero or more."""
    found = "".join(_alternatives(rows(token, WORD), WORD) if token else NUL for token in tokens)
    return f"(?i:{found})" if "nocase" in modifiers else found


def literals(
    values: Sequence[str], separator: str, modifiers: Iterable[str] = (), sequence: bool = False
) -> tuple[str, ...]:
    """Texts one of which is in the subject of every value that a pattern covers, in any case.

    values: one pattern, or with `sequence` the tokens of an argv. Empty when there are none of at
    least SHORTEST_LITERAL characters: then nothing can be said from a text that is looked for.
    """
    words = frozenset(modifiers)
    if "re" in words:
        return ()
    part = WORD if "has" in words or sequence else separator
    how = words & {"startswith", "endswith", "contains"}
    end = part or "\0"
    if is_at_home(values[0], separator) and not sequence:
        values = (values[0][1:] or "/",)
    if how:
        pieces = values[0].split(" ") if part == ARGV else [values[0]]
        if "endswith" in how:
            pieces[-1] += end
        found = [max(pieces, key=len)]
    elif sequence:
        telling = [_longest(rows(token, WORD), end) for token in values if token]
        found = max(telling, key=lambda texts: min(map(len, texts)), default=[""])
    else:
        found = _longest(rows(values[0], part), end)
    return tuple(dict.fromkeys(found)) if min(map(len, found)) >= SHORTEST_LITERAL else ()


def _longest(found: Iterable[Sequence[Component]], end: str) -> list[str]:
    """Of each row the longest text that stands in one piece in whatever it covers."""
    return [max(_pieces(row, end), key=len) for row in found]


def _pieces(row: Sequence[Component], end: str) -> Iterator[str]:
    text = ""
    for component in row:
        for atom in component:
            if atom.kind == "text":
                text += atom.text
            else:
                yield text
                text = ""
        text += "" if component == ANY_COMPONENTS else end
    yield text


def subject(value: str | Sequence[str], separator: str) -> bytes:
    """The bytes that expressions are matched with. An argv is a sequence of its tokens."""
    if not isinstance(value, str):
        return "".join(f"{token}\0" for token in value).encode("utf-8", "surrogatepass")
    return (value + (separator or "\0")).encode("utf-8", "surrogatepass")


def matches(text: str, value: str | Sequence[str], separator: str = PATH) -> bool:
    """Whether a glob covers a value. For one-off questions; an Index answers many at once."""
    compiled = re2.compile(expression(text, separator).encode("utf-8", "surrogatepass"), _quiet())
    return compiled.fullmatch(subject(value, separator)) is not None


def literal_component(glob: str) -> tuple[bytes, ...] | None:
    """For each alternative of a path glob the component most telling of it, in UTF-8.

    Every name the glob covers has one of them as a whole component. The last one that is not
    generic is taken; None when an alternative has none of at most LITERAL_BYTES bytes.
    """
    found = [_telling(row) for row in rows(glob)]
    return None if None in found else tuple(dict.fromkeys(name for name in found if name))


def _telling(row: Sequence[Component]) -> bytes | None:
    """The last component of a row that is literal, short enough and not generic."""
    for component in reversed(row):
        text = "".join(atom.text for atom in component)
        name = text.encode("utf-8", "surrogateescape")
        literal = all(atom.kind == "text" for atom in component)
        if literal and text not in GENERIC and 0 < len(name) <= LITERAL_BYTES:
            return name
    return None


def escape(text: str) -> str:
    """A glob that covers exactly this text."""
    return "".join(f"\\{char}" if char in "\\*?[]{}, " else char for char in text)


# Reading ----------------------------------------------------------------------------------------


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
    components = [_component(part) for part in row if part or separator != ARGV]
    return tuple(components)


def _component(atoms: Sequence[Atom]) -> Component:
    kinds = [atom.kind for atom in atoms]
    if kinds == ["many", "many"]:
        return ANY_COMPONENTS
    if any(pair == ("many", "many") for pair in itertools.pairwise(kinds)):
        raise PatternError("`**` stands for whole components: write `*` here, or part it off")
    return tuple(atoms)


# Writing ----------------------------------------------------------------------------------------

NUL = r"\x{0}"
_ROW_OF_TOKENS = f"(?:[^{NUL}]*{NUL})*"


def _alternatives(found: Iterable[Sequence[Component]], separator: str) -> str:
    end = separator or "\0"
    bodies = dict.fromkeys("".join(_component_expression(c, end) for c in row) for row in found)
    return f"(?:{'|'.join(bodies)})"


def _component_expression(component: Component, end: str) -> str:
    if component == ANY_COMPONENTS:
        return f"(?:[^{quote(end)}]*{quote(end)})*"
    return "".join(_atom_expression(atom, end) for atom in component) + quote(end)


def _atom_expression(atom: Atom, separator: str) -> str:
    if atom.kind == "text":
        return quote(atom.text)
    if atom.kind in ("many", "any"):
        return f"[^{quote(separator)}]" + ("*" if atom.kind == "many" else "")
    negated = atom.text == "!"
    ranges = atom.ranges if negated else tuple(_without(separator, atom.ranges))
    members = "".join(f"{quote(low)}-{quote(high)}" for low, high in ranges)
    return f"[^{quote(separator)}{members}]" if negated else f"[{members}]"


def _without(char: str, ranges: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The ranges less one character: a set never matches a separator."""
    for low, high in ranges:
        if not low <= char <= high:
            yield low, high
            continue
        if low < char:
            yield low, chr(ord(char) - 1)
        if char < high:
            yield chr(ord(char) + 1), high


def _literal(text: str, separator: str, how: str) -> str:
    """startswith, endswith or contains. In an argv a space is a space or the end of a token."""
    if not text:
        raise PatternError("an empty text is part of every value")
    gap = f"[{NUL} ]" if separator == ARGV else quote(" ")
    body = "".join(gap if char == " " else quote(char) for char in text)
    cut = quote(separator or "\0")
    rest = f"[^{cut}]*" if separator == WORD else "(?s:.*)"
    before = "" if how == "startswith" else rest
    after = "" if how == "endswith" else rest
    return f"(?:{before}{body}{after}{cut})"


def quote(text: str) -> str:
    """An expression of exactly this text."""
    return _NO_WORD.sub(lambda found: f"\\x{{{ord(found[0]):x}}}", text)


_NO_WORD = re.compile(r"\W")


def _quiet() -> re2.Options:
    """RE2 reports to its caller, not on stderr."""
    options = re2.Options()
    options.log_errors = False
    return options
