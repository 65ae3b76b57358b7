"""Matches, exceptions and the events of tests: `field|modifier: values` by the table of fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agentwatch.rules import fields
from agentwatch.rules.diagnostics import Report, did_you_mean, names, quote
from agentwatch.rules.fields import LITERAL, MODIFIERS, TAKES, Field
from agentwatch.rules.homes import TRIAL_PROJECT
from agentwatch.rules.lists import Lists
from agentwatch.rules.model import Condition, Match
from agentwatch.rules.read import Items, Node, Table, Text
from agentwatch.rules.section import as_text, as_texts, is_shown, is_word, wrong
from agentwatch.rules.values import Checker

_SESSION = re.compile(r"[0-9]{1,7}:[0-9]{1,20}")
_NUMBER = re.compile(r"[0-9]{1,10}")
_HOST_NAME = re.compile(r"[^\s/:]+(?<!\.)")
_ABSOLUTE = re.compile(r"(?:\[\d+:\d+\])?/")  # `[0:57]/x`: on a file system init does not have


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads conditions for rules of some kinds."""

    report: Report
    lists: Lists
    checker: Checker

    def match(self, node: Node, kinds: Sequence[str], what: str) -> Match:
        """A mapping of conditions. What is wrong is reported and left out."""
        if not isinstance(node, Table):
            wrong(node, self.report, what, "a mapping of fields to values")
            return Match(())
        found = [self._condition(key, value, kinds) for key, value in node.entries]
        return Match(tuple(condition for condition in found if condition is not None))

    def exceptions(self, node: Node | None, kinds: Sequence[str]) -> tuple[tuple[str, Match], ...]:
        """`unless:` a mapping of names to matches."""
        if node is None:
            return ()
        if not isinstance(node, Table):
            wrong(node, self.report, '"unless"', "a mapping of names to matches")
            return ()
        found = []
        for name, value in node.entries:
            if isinstance(value, Text) and name.value.split("|")[0] in fields.NAMES:
                message = f"an exception has a name: unless: {{some-name: {{{name.value}: …}}}}"
                self.report.error("AW202", name.place, message)
                continue
            is_shown(name, self.report, "the exception's name")
            match = self.match(value, kinds, f"exception {quote(name.value)}")
            if isinstance(value, Table) and not value.entries:
                message = f"exception {quote(name.value)} is empty and would carve out everything"
                self.report.error("AW303", name.place, message)
            found.append((name.value, match))
        return tuple(found)

    def _condition(self, key: Text, node: Node, kinds: Sequence[str]) -> Condition | None:
        name, *words = key.value.split("|")
        field = self.field(key, name, kinds)
        if field is None:
            return None
        modifiers = self._modifiers(key, field, words)
        if modifiers is None:
            return None
        texts = self.lists.expand(as_texts(node, self.report, quote(name)))
        sequence = self._is_sequence(field, node, modifiers)
        if isinstance(node, Items) and not node.items:
            self.report.error("AW303", node.place, f"this can never match: {name} has no values")
        if "all" in modifiers and not modifiers & (LITERAL | {"has", "re"}):
            message = f"|all needs |has, |contains or |re before it: {name}|contains|all"
            self.report.error("AW205", key.place, message)
        if "all" in modifiers and field.type in ("path", "unix") and "re" not in modifiers:
            self._single(texts)
        checked = [self.checker.value(text, field, modifiers) for text in texts]
        values = tuple(value for value in checked if value is not None)
        if sequence:
            return Condition(name, values, modifiers, key.place, sequence=True)
        return Condition(name, tuple(dict.fromkeys(values)), modifiers, key.place)

    def _single(self, texts: Sequence[Text]) -> None:
        """Refuse values that stand for several, of which |all would want every one at once."""
        for text in texts:
            if text.value in ("~", "$own") or text.value.startswith("~/"):
                what = "the agent's files" if text.value == "$own" else "one path in every home"
                message = (
                    f"|all wants every value at once, and {quote(text.value)} stands for {what}; "
                    "write the path out, or leave |all"
                )
                self.report.error("AW205", text.place, message)

    def field(self, key: Text, name: str, kinds: Sequence[str]) -> Field | None:
        """The field that events of all these kinds have, or None when it has been reported."""
        if name not in fields.NAMES:
            known = {f.name for kind in kinds for f in fields.of_kind(kind)} or fields.NAMES
            hint = did_you_mean(name, known)
            self.report.error("AW201", key.place, f"unknown field {quote(name)}.{hint}")
            return None
        found = [fields.lookup(name, kind) for kind in kinds]
        lacking = [kind for kind, field in zip(kinds, found, strict=True) if field is None]
        if lacking:
            having = names(fields.kinds_with(name))
            message = f"{names(lacking)} has no field {quote(name)}; {having} has"
            self.report.error("AW208", key.place, message)
            return None
        # The kind with the most words: what another kind lacks, its events never have.
        return max((f for f in found if f), key=lambda f: len(f.words), default=None)

    def _modifiers(self, key: Text, field: Field, words: list[str]) -> frozenset[str] | None:
        for word in words:
            if word not in MODIFIERS:
                hint = did_you_mean(word, MODIFIERS)
                message = f"unknown modifier {quote('|' + word)}.{hint}"
                self.report.error("AW205", key.place, message)
                return None
            if word not in TAKES[field.type]:
                takes = names(f"|{m}" for m in sorted(TAKES[field.type])) or "no modifier"
                message = f"{field.name} does not take |{word}; it takes {takes}"
                self.report.error("AW205", key.place, message)
                return None
        modifiers = frozenset(words)
        how = modifiers & (LITERAL | {"re"})
        if len(how) > 1:
            message = f"{names(f'|{m}' for m in sorted(how))}: only one of them at a time"
            self.report.error("AW205", key.place, message)
            return None
        return modifiers

    def _is_sequence(self, field: Field, node: Node, modifiers: frozenset[str]) -> bool:
        """In argv patterns a list is exact: its entries are the tokens, not alternatives."""
        exact = field.type == "argv" and isinstance(node, Items)
        return exact and not modifiers & (LITERAL | {"has", "re", "all"})

    def event(self, node: Table, kinds: Sequence[str]) -> tuple[tuple[str, object], ...]:
        """The fields of a test's event: text, a number, or the tokens of an argv as a tuple."""
        found: list[tuple[str, object]] = []
        for key, value in node.entries:
            field = self._event_field(key, kinds)
            if field is None:
                continue
            made = self._event_value(field, value)
            if made is not None:
                found.append((key.value, made))
        return tuple(found)

    def _event_field(self, key: Text, kinds: Sequence[str]) -> Field | None:
        if "|" in key.value:
            message = f"an event has fields without modifiers: write {key.value.split('|')[0]}"
            self.report.error("AW205", key.place, message)
            return None
        field = self.field(key, key.value, kinds)
        if field is not None and field.follows:
            message = f"an event does not say {quote(field.name)}, which follows {field.follows}"
            self.report.error("AW205", key.place, message)
            return None
        return field

    def _event_value(self, field: Field, node: Node) -> object | None:
        what = quote(field.name)
        if field.type == "argv":
            tokens = as_texts(node, self.report, what)
            if isinstance(node, Items):
                return tuple(token.value for token in tokens)
            return tuple(tokens[0].value.split()) if tokens else None
        text = as_text(node, self.report, what)
        if text is None:
            return None
        return self._event_text(field, text)

    def _event_text(self, field: Field, text: Text) -> object | None:
        what = quote(field.name)
        if field.type in ("number", "port"):
            if _NUMBER.fullmatch(text.value):
                return int(text.value)
            self.report.error("AW207", text.place, f"{what} of an event is a number")
            return None
        if field.type == "word":
            ok = is_word(text, field.words, self.report, what)
            return text.value if ok else None
        if field.type not in ("path", "unix", "host", "text"):
            return self.checker.value(text, field, frozenset())
        wrong = self._unlike(field, text.value)
        if wrong:
            self.report.error("AW207", text.place, f"{what} of an event is {wrong}")
        return None if wrong else text.value

    def _unlike(self, field: Field, value: str) -> str:
        """What an event has there instead of this value; "" when the value will do."""
        if field.name == "session":
            return "" if _SESSION.fullmatch(value) else "the pid:start of its first process"
        if field.type == "host":
            return "" if _HOST_NAME.fullmatch(value) else "a name, like www.example.com, or none"
        if field.type == "text":
            return "" if value else "some word"
        if (field.type == "unix" and value.startswith("@")) or _ABSOLUTE.match(value):
            return ""
        if value.startswith("$project"):
            project = value.replace("$project", TRIAL_PROJECT, 1)
            return f"written out: $project is {TRIAL_PROJECT} in tests, so {project}"
        if value.startswith("$"):
            return "one name, written out: variables are for rules"
        return f"absolute, like /home/dev/{value.lstrip('~/')}"
