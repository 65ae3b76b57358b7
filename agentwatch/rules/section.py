"""Reading a mapping whose keys are known: types, words and missing keys, each at its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agentwatch.rules.diagnostics import Report, did_you_mean, names, quote
from agentwatch.rules.model import Place
from agentwatch.rules.read import Items, Node, Table, Text

NULL_TILDE = (
    '~ alone is nothing (null) in YAML; in a rule write "~/**" for every home directory, '
    "elsewhere the whole path"
)


class Section:
    """A mapping read key by key. what: it is, for messages. later: keys not supported yet."""

    def __init__(
        self,
        table: Table,
        report: Report,
        what: str,
        known: Sequence[str],
        later: Mapping[str, str] | None = None,
    ) -> None:
        self.table = table
        self.report = report
        self.what = what
        for key, _ in table.entries:
            if later and key.value in later:
                message = f"{quote(key.value)} is not supported yet: {later[key.value]}"
                report.error("AW206", key.place, message)
            elif key.value not in known:
                hint = did_you_mean(key.value, known)
                report.error("AW201", key.place, f"{what} has no key {quote(key.value)}.{hint}")

    @property
    def place(self) -> Place:
        return self.table.place

    def get(self, key: str) -> Node | None:
        return self.table.get(key)

    def missing(self, key: str, hint: str = "") -> None:
        self.report.error("AW203", self.place, f"{self.what} needs {quote(key)}{hint}")

    def text(self, key: str, required: str = "", lines: bool = False) -> str:
        """The text of a key, "" without one. required: what to write where one must be. lines: it
        may have several.
        """
        node = self.get(key)
        if node is None:
            if required:
                self.missing(key, f": {required}")
            return ""
        text = as_text(node, self.report, quote(key))
        shown = text is not None and is_shown(text, self.report, quote(key), lines)
        return text.value.strip() if text and shown else ""

    def word(self, key: str, words: Sequence[str], default: str | None = None) -> str:
        """One of `words`; the default without the key. No default: the key may not be missing."""
        node = self.get(key)
        if node is None:
            if default is None:
                self.missing(key, f": {names(words)}")
            return default or ""
        text = as_text(node, self.report, quote(key))
        if text is None:
            return default or ""
        return text.value if is_word(text, words, self.report, quote(key)) else default or ""

    def texts(self, key: str) -> tuple[Text, ...]:
        """The texts of a key: one, or a list of them."""
        node = self.get(key)
        return () if node is None else as_texts(node, self.report, quote(key))

    def table_of(self, key: str) -> Table | None:
        """The mapping of a key, None without it."""
        node = self.get(key)
        if node is None or isinstance(node, Table):
            return node
        wrong(node, self.report, quote(key), "a mapping")
        return None


def is_shown(text: Text, report: Report, what: str, lines: bool = False) -> bool:
    """Whether text for people is one paragraph (lines: or more) that steers no terminal; reported
    if not.
    """
    value = text.value.strip()
    found = _STEERING.search(value.replace("\n", " ") if lines else value)
    if found is None:
        return True
    if found[0] == "\n":
        message = f"{what} has more than one line; fold it into one with >-"
    else:
        message = f"{what} has the control character U+{ord(found[0]):04X} in it; remove it"
    report.error("AW207", text.place, message)
    return False


# Controls, separators of lines and paragraphs, and what turns the direction of writing around.
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_word(text: Text, words: Sequence[str], report: Report, what: str) -> bool:
    """Whether it is one of the words; reported if not."""
    if text.value in words:
        return True
    hint = did_you_mean(text.value, words) if len(words) > 1 else ""
    message = f"{what} cannot be {quote(text.value)}; it is {names(words)}.{hint}"
    report.error("AW204", text.place, message)
    return False


def as_text(node: Node, report: Report, what: str) -> Text | None:
    """The node as text, reported if it is none."""
    if isinstance(node, Text) and not node.null:
        return node
    wrong(node, report, what, "text")
    return None


def as_texts(node: Node, report: Report, what: str) -> tuple[Text, ...]:
    """The node as texts: one, or those of a list; what is none is reported."""
    nodes = node.items if isinstance(node, Items) else (node,)
    found = [as_text(item, report, what) for item in nodes]
    return tuple(text for text in found if text is not None)


def wrong(node: Node, report: Report, what: str, wanted: str) -> None:
    """Report a node of the wrong type, in words that name the likely cause."""
    if isinstance(node, Text) and node.null:
        if node.value == "~":
            report.error("AW105", node.place, NULL_TILDE)
        else:
            report.error("AW202", node.place, f"{what} is empty; it must be {wanted}")
    elif isinstance(node, Table) and node.entries and wanted == "text" and _is_braces(node):
        inner = ",".join(key.value for key, _ in node.entries)
        message = f'{{{inner}}} is a mapping in YAML; put it in quotes: "{{{inner}}}"'
        report.error("AW105", node.place, message)
    else:
        kind = {Text: "text", Items: "a list", Table: "a mapping"}[type(node)]
        report.error("AW202", node.place, f"{what} must be {wanted}, not {kind}")


def _is_braces(table: Table) -> bool:
    """`{a,b}` reads as a mapping of a and b to nothing."""
    return all(isinstance(value, Text) and not value.value for _, value in table.entries)
