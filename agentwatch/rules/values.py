"""Values of conditions: each type's own check."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from agentwatch.rules.diagnostics import Report, did_you_mean, quote
from agentwatch.rules.fields import LITERAL, Field
from agentwatch.rules.lists import variable
from agentwatch.rules.read import Text
from agentwatch.rules.section import is_word

_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Patterns(Protocol):
    """What loading needs to know of globs; agentwatch.policy.patterns is one."""

    def check(self, text: str, separator: str = "/") -> str | None:
        """What is wrong with a glob, or None."""

    def check_regex(self, text: str) -> str | None:
        """What is wrong with an RE2 expression, or None."""

    def matches(self, text: str, value: str, separator: str = "/") -> bool:
        """Whether a glob covers a value."""

    def literal_component(self, glob: str) -> tuple[bytes, ...] | None:
        """What the kernel looks for to find the names a glob covers, or None."""


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks values for the type of their field, and writes them as they are matched.

    elsewhere: what else to say about an agent that nobody defines.
    """

    report: Report
    patterns: Patterns
    agents: Collection[str]
    elsewhere: str = ""

    def value(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        """The value as the engine wants it, or None when it has been reported."""
        if "re" in modifiers:
            return self._said(text, self.patterns.check_regex(text.value))
        if field.type in ("path", "unix"):
            return self.path(text, field, modifiers)
        if field.type == "argv":
            return self._argv(text, modifiers)
        return getattr(self, f"_{field.type}")(text, field, modifiers)  # type: ignore[no-any-return]

    def path(
        self, text: Text, field: Field | None = None, modifiers: frozenset[str] = frozenset()
    ) -> str | None:
        """A glob of paths, or with a literal modifier a part of one."""
        value = text.value
        if modifiers & LITERAL:
            wrong = "an empty text is part of every value" if not value else None
            if "startswith" in modifiers and not value.startswith(("/", "~/", "$project", "@")):
                return self._never(text, f"no path begins with {quote(value)}")
            return self._said(text, wrong)
        if field is not None and field.type == "unix" and value.startswith("@"):
            return self._said(text, self.patterns.check(value))
        shape = path_shape(value)
        if shape:
            self.report.error("AW307", text.place, shape)
            return None
        if variable(value) == "project":
            value = value.replace("$project", "/project", 1)
        elif value == "$own":
            return value
        if self._said(text, self.patterns.check(value)) is None:
            return None
        return self._names_something(text)

    def _names_something(self, text: Text) -> str | None:
        parts = text.value.split("/")
        if text.value != "/" and ("" in parts[1:] or not {".", ".."}.isdisjoint(parts)):
            return self._never(
                text, 'names have no ".", ".." or "//" in them once links are resolved'
            )
        return text.value

    def _never(self, text: Text, why: str) -> str | None:
        self.report.error("AW303", text.place, f"this can never match: {why}")
        return None

    def _said(self, text: Text, message: str | None) -> str | None:
        if message is None:
            return text.value
        self.report.error("AW207", text.place, message)
        return None

    def _argv(self, text: Text, modifiers: frozenset[str]) -> str | None:
        if modifiers & LITERAL:
            wrong = None if text.value else "an empty text is part of every value"
            return self._said(text, wrong)
        return self._said(text, self.patterns.check(text.value, "" if "has" in modifiers else "\0"))

    def _host(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        if modifiers & LITERAL:
            return self._said(text, None if text.value else "an empty text is part of every value")
        value = text.value
        if "/" in value:
            message = f"{quote(value)} is no name of a host; write it without scheme and path"
            return self._said(text, message)
        if _ADDRESS.fullmatch(value) or ":" in value:
            hint = f"{quote(value)} is no name: addresses are asked with addr, ports with port"
            return self._said(text, hint)
        if value.endswith(".") or value.startswith(".") or ".." in value:
            return self._never(text, 'names are without a dot at either end, and without ".."')
        return self._said(text, self.patterns.check(value, "."))

    def _text(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        if modifiers & LITERAL:
            return self._said(text, None if text.value else "an empty text is part of every value")
        return self._said(text, self.patterns.check(text.value, ""))

    def _word(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        ok = is_word(text, field.words, self.report, quote(field.name))
        return text.value if ok else None

    def _flag(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        ok = is_word(text, ("true", "false"), self.report, quote(field.name))
        return text.value if ok else None

    def _agent(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        return text.value if self.knows(text) else None

    def knows(self, agent: Text) -> bool:
        """Whether some file defines the agent; reported if not."""
        return known_agent(agent, self.agents, self.report, self.elsewhere)

    def _number(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        if self._octal(text):
            return None
        wrong = (
            None if re.fullmatch(r"\d{1,10}", text.value) else f"{quote(text.value)} is no number"
        )
        return self._said(text, wrong)

    def _port(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        if self._octal(text):
            return None
        found = _PORT.fullmatch(text.value)
        if found is None:
            return self._said(text, f'{quote(text.value)} is no port; write 443 or "8000-8999"')
        low, high = int(found[1]), int(found[2] or found[1])
        if not 0 < low <= high <= 65535:
            return self._never(text, "ports are 1 to 65535, the lower end of a range first")
        return text.value

    def _octal(self, text: Text) -> bool:
        """A number with zeros in front, which some YAML readers take for octal."""
        if not re.fullmatch(r"0\d+", text.value):
            return False
        plain = text.value.lstrip("0") or "0"
        message = f"{text.value} is octal to some YAML readers and decimal to others; write {plain}"
        self.report.error("AW105", text.place, message)
        return True

    def _address(self, text: Text, field: Field, modifiers: frozenset[str]) -> str | None:
        try:
            if "cidr" in modifiers:
                return str(ipaddress.ip_network(text.value))
            return str(ipaddress.ip_address(text.value))
        except ValueError as error:
            if "cidr" not in modifiers and re.search(r"[/*?\[]", text.value):
                hint = (
                    f'{quote(text.value)} is no address; write networks as addr|cidr: "10.0.0.0/8"'
                )
                return self._said(text, hint)
            return self._said(text, f"{quote(text.value)} is no address or network: {error}")


def known_agent(text: Text, agents: Collection[str], report: Report, elsewhere: str = "") -> bool:
    """Whether some file defines the agent; reported if not, with what else there is to say."""
    if text.value in agents:
        return True
    hint = did_you_mean(text.value, agents) + elsewhere
    report.error("AW302", text.place, f"there is no agent {quote(text.value)}.{hint}")
    return False


def path_shape(value: str) -> str:
    """What is wrong with how a path glob is written, with what to write instead; or ""."""
    if value.startswith("~") and value != "~" and not value.startswith("~/"):
        return f"{quote(value)}: only ~/ is known, for every home; write the user's home itself"
    if value.endswith("/") and value != "/":
        return "{} matches nothing, for no name ends in a slash; write {}".format(
            quote(value), quote(value.removesuffix("**/") + "**")
        )
    if value.startswith(("/", "~", "**", "$", "{", "[")) or not value:
        return ""
    inner = value.removeprefix("./")
    return f"{quote(value)} matches nothing, for names are absolute; write {quote('**/' + inner)}"
