r"""The globs of the rule language, as RE2 expressions over bytes.

A glob covers a whole value, which is a row of components: of a path between `/`, of a host name
between `.`, of an argv its tokens. Every component is written with its separator *behind* it
(`/usr/bin` is `/usr/bin/`, an argv is `git\0push\0`), so that `**`, zero or more components, is
one expression everywhere: before, between and after others.

    *      any characters of one component, none included, a leading dot included
    **     zero or more whole components: `a/**` covers `a` too, `**/x` covers `x` and `/x`
    ?      one character: a byte that is not 0x80 to 0xBF and all such bytes behind it; where a
           component begins, such a byte begins one, too
    [ab-z] [!ab-z]   one character of (not of) a set
    {a,b}  either, nested and across separators      \x  x itself

In an argv pattern spaces part the tokens. Values are `str` as `os.fsdecode` makes them: an
undecodable byte is a surrogate escape, hence a character of its own, and newlines are characters
like others. Brackets and braces are written out before anything else is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import re2

from agentwatch.policy.globs import (
    ANY_COMPONENTS,
    ARGV,
    HOST,
    MAX_CHARACTERS,
    PATH,
    REMEMBERED,
    REMEMBERED_CHARACTERS,
    WORD,
    Atom,
    Component,
    PatternError,
    rows,
)

__all__ = (
    "ARGV",
    "HOST",
    "NEVER",
    "PATH",
    "WORD",
    "PatternError",
    "check",
    "check_regex",
    "escape",
    "expression",
    "is_at_home",
    "literal_component",
    "literals",
    "matches",
    "quote",
    "sequence",
    "subject",
)

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


def _body(text: str, separator: str) -> str:
    """The expression of a glob without modifiers."""
    known = _BODIES.get((text, separator))
    if known is None:
        known = _alternatives(rows(text, separator), separator)
        if len(known) <= REMEMBERED_CHARACTERS:
            if len(_BODIES) >= REMEMBERED:
                _BODIES.clear()
            _BODIES[text, separator] = known
    return known


# Short ones of those made before, for the same reason as rows are remembered.
_BODIES: dict[tuple[str, str], str] = {}


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


NUL = r"\x{0}"
_ROW_OF_TOKENS = f"(?:[^{NUL}]*{NUL})*"


def _alternatives(found: Iterable[Sequence[Component]], separator: str) -> str:
    end = separator or "\0"
    bodies = dict.fromkeys("".join(_component_expression(c, end) for c in row) for row in found)
    return f"(?:{'|'.join(bodies)})"


def _component_expression(component: Component, end: str) -> str:
    if component == ANY_COMPONENTS:
        return f"(?:[^{quote(end)}]*{quote(end)})*"
    atoms = list(component)
    found = ""
    if len(atoms) > 1 and atoms[0].kind == "many" and counts(atoms[1]):
        # The character behind a `*` that takes nothing begins the component.
        behind = "".join(_atom_expression(atom, end, False) for atom in atoms[:2])
        found = f"(?:{behind}|{_atom_expression(atoms[1], end, True)})"
        del atoms[:2]
    found += "".join(
        _atom_expression(atom, end, not found and place == 0) for place, atom in enumerate(atoms)
    )
    return found + quote(end)


def counts(atom: Atom) -> bool:
    """Whether an atom is one character, whatever its length in bytes."""
    return atom.kind == "any" or (atom.kind == "set" and atom.text == "!")


def _atom_expression(atom: Atom, separator: str, first: bool) -> str:
    """first: it stands where the component begins."""
    if atom.kind == "text":
        return quote(atom.text)
    if atom.kind == "many":
        return f"[^{quote(separator)}]*"
    negated = counts(atom)
    ranges = atom.ranges if negated else tuple(_without(separator, atom.ranges))
    members = "".join(f"{quote(low)}-{quote(high)}" for low, high in ranges)
    if not negated:
        return f"[{members}]"
    return f"[^{quote(separator)}{members}{'' if first else _CONTINUED}][{_CONTINUED}]*"


# The stray bytes 0x80 to 0xBF, as os.fsdecode has them.
_CONTINUED = r"\x{dc80}-\x{dcbf}"


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
