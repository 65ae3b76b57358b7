"""Rule files to a ruleset: all files make one, in any order, or all their errors are raised.

What needs the engine (tests inside rules) or the host (levels) is checked by agentwatch.admission,
which is what programs call; this module knows the language only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import agentwatch
from agentwatch.errors import Diagnostic, RuleErrors
from agentwatch.rules import meaning
from agentwatch.rules.conditions import Reader
from agentwatch.rules.diagnostics import Report, TooMany, did_you_mean, quote
from agentwatch.rules.homes import at_home
from agentwatch.rules.lists import RESERVED, Lists
from agentwatch.rules.model import ACTIONS, Agent, Default, Place, Rule, Ruleset
from agentwatch.rules.parse import FILE_KEYS, SCHEMA, Parser, check_id
from agentwatch.rules.read import Items, Node, Table, Text, read
from agentwatch.rules.section import Section, wrong
from agentwatch.rules.values import Checker, Patterns

LOCAL = Path("/etc/agentwatch/rules.d")
VENDOR = Path("/usr/share/agentwatch/rules")
SUFFIXES = (".yaml", ".yml")

_BEGINS = f'begin it with two lines, "schema: {SCHEMA}" and "rules:"'

Named = TypeVar("Named", Agent, Rule)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load. ruleset: with `~` still in it (homes.at_home writes it out). written: the rules as
    their own files have them, before overrides, which is what their tests are about; none of the
    files of the background. background: those files, where they were needed.
    """

    ruleset: Ruleset
    written: tuple[Rule, ...]
    report: Report
    background: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return self.report.warnings


def load(paths: Sequence[Path], *, homes: Sequence[str], patterns: Patterns) -> Ruleset:
    """The ruleset of these files and directories, `~` being each of the homes.

    patterns: what checks globs, agentwatch.policy.patterns. Raises RuleErrors with all of what is
    wrong in all files.
    """
    return at_home(read_rules(paths, patterns).ruleset, homes)


def shipped() -> Path:
    """The packs that ship: inside the wheel, or beside the package in a source tree."""
    package = Path(agentwatch.__file__).resolve().parent
    inside = package / "data" / "rules"
    return inside if inside.is_dir() else package.parent / "rules"


def default_paths() -> tuple[Path, ...]:
    """The installed rules, vendor's and local; else the packs that ship."""
    installed = tuple(path for path in (VENDOR, LOCAL) if _holds_rules(path))
    return installed or (shipped(),)


def packs() -> Path:
    """Where the rules are that come with agentwatch: installed, else those that ship."""
    return VENDOR if _holds_rules(VENDOR) else shipped()


def _holds_rules(directory: Path) -> bool:
    """Whether rules are to be read there; an unreadable directory is, and the load will say so."""
    try:
        return any(name.endswith(SUFFIXES) for name in os.listdir(directory))
    except PermissionError:
        return True
    except OSError:
        return False


def read_rules(
    paths: Sequence[Path], patterns: Patterns, background: Sequence[Path] = ()
) -> Loaded:
    """Reads and validates. Raises RuleErrors with every finding, warnings included.

    background: files and directories to read as well, if the paths name what they do not define.
    """
    report = Report()
    try:
        loaded = _read_rules(paths, patterns, report)
        files = _others(background, loaded.ruleset.files) if _lacks(loaded) else ()
        if files:
            report = Report()
            whole = (*_files(paths, report), *files)
            loaded = _with_background(_read_rules(whole, patterns, report), files)
    except TooMany:
        raise RuleErrors(report.all) from None
    if report.errors_found:
        raise RuleErrors(report.all)
    return loaded


def _lacks(loaded: Loaded) -> bool:
    """Whether the files name agents, rules or lists of others, or ask for agents and have none."""
    if any(one.code == "AW302" for one in loaded.report.errors):
        return True
    asked = {c.field for rule in loaded.written for c in rule.match.conditions}
    return "starts_agent" in asked and not loaded.ruleset.agents


def _others(background: Sequence[Path], named: Sequence[str]) -> tuple[Path, ...]:
    """The files of the background that were not named already."""
    known = {Path(file).resolve() for file in named}
    return tuple(f for f in _files(background, Report()) if f.resolve() not in known)


def _with_background(loaded: Loaded, files: Sequence[Path]) -> Loaded:
    behind = tuple(map(str, files))
    written = tuple(rule for rule in loaded.written if rule.place.file not in behind)
    return replace(loaded, written=written, background=behind)


def _read_rules(paths: Sequence[Path], patterns: Patterns, report: Report) -> Loaded:
    """The load, of which nothing is to be used if errors were found. Raises TooMany."""
    files = _files(paths, report)
    documents = tuple((file, _read(file, report)) for file in files)
    sections = tuple(
        _Document(file, Section(node, report, "a rule file", FILE_KEYS))
        for file, node in documents
        if isinstance(node, Table)
    )
    for _, node in documents:
        if node is not None and not isinstance(node, Table):
            kind = "a list" if isinstance(node, Items) else "text"
            message = (
                f"a rule file must be a mapping ({', '.join(FILE_KEYS)}), not {kind}: {_BEGINS}"
            )
            report.error("AW202", node.place, message)
    return _Loader(report, sections, patterns).load(tuple(map(str, files)))


def _read(file: Path, report: Report) -> Node | None:
    """The document in a file; one that says nothing is said."""
    before = report.errors_found
    node = read(file, report)
    said = {key.value for key, _ in node.entries} if isinstance(node, Table) else {""}
    if report.errors_found == before and (node is None or said <= {"schema"}):
        what = "is empty" if not node else "says nothing but its schema"
        place = node.place if node else Place(str(file), 0, 0)
        report.warning("AW504", place, f"the file {what}: no rule of it can be in force")
    return node


def _files(paths: Sequence[Path], report: Report) -> tuple[Path, ...]:
    """The files, those of directories by name; each once."""
    found: dict[Path, None] = {}
    for path in paths:
        whole = Place(str(path), 0, 0)
        try:
            inside = sorted(path / name for name in os.listdir(path) if name.endswith(SUFFIXES))
        except NotADirectoryError:
            found.setdefault(path)
            continue
        except OSError as error:
            message = f"cannot read it: {error.strerror}. Check the path and its permissions."
            report.error("AW101", whole, message)
            continue
        if not inside:
            message = "the directory holds no rule files (*.yaml); give another one, or files"
            report.error("AW101", whole, message)
        found |= dict.fromkeys(inside)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Document:
    """One file. Its section is made once, for making it reports unknown keys."""

    file: Path
    section: Section

    @property
    def ships(self) -> bool:
        return any(self.file.is_relative_to(place) for place in (VENDOR, shipped()))


class _Loader:
    """Puts the sections of all files together: lists first, then agents, then what names them."""

    def __init__(self, report: Report, documents: Sequence[_Document], patterns: Patterns) -> None:
        self.report = report
        self.documents = documents
        self.list_nodes = self._lists()
        self.agents = frozenset(self._agent_ids())
        self.elsewhere = "" if any(document.ships for document in documents) else _elsewhere()
        lists = Lists(self.list_nodes, report)
        self.lists = lists
        checker = Checker(report, patterns, self.agents, self.elsewhere)
        self.parser = Parser(report, Reader(report, lists, checker))

    def load(self, files: tuple[str, ...]) -> Loaded:
        for document in self.documents:
            self._schema(document.section)
        lists = {name: tuple(t.value for t in self.lists.of(name)) for name in self.list_nodes}
        parsed = (self.parser.agent(node) for node in self._items("agents"))
        agents = self._unique("agent", (a for a in parsed if a is not None))
        rules_read = (self.parser.rule(node) for node in self._items("rules"))
        written = self._unique("rule", (r for r in rules_read if r is not None))
        overridden = self._overridden(written)
        rules = tuple(rule for rule in overridden if rule.enabled)
        disabled = tuple(rule for rule in overridden if not rule.enabled)
        defaults = _strictest(d for t in self._tables("defaults") for d in self.parser.defaults(t))
        meaning.check_holes(rules, defaults, self.report)
        ruleset = Ruleset(rules, agents, defaults, lists, files, disabled)
        return Loaded(ruleset, written, self.report)

    def _schema(self, section: Section) -> None:
        if section.get("schema") is None:
            section.missing("schema", f": {_BEGINS}")
        else:
            section.word("schema", (SCHEMA,))

    def _tables(self, key: str) -> list[Table]:
        found = [document.section.table_of(key) for document in self.documents]
        return [table for table in found if table is not None]

    def _items(self, key: str) -> list[Node]:
        found: list[Node] = []
        for document in self.documents:
            node = document.section.get(key)
            if isinstance(node, Items):
                found += node.items
            elif node is not None:
                wrong(node, self.report, quote(key), "a list")
        return found

    def _lists(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        places: dict[str, Place] = {}
        for table in self._tables("lists"):
            for name, node in table.entries:
                check_id(name, self.report)
                if name.value in RESERVED:
                    message = f"${name.value} is given by agentwatch; choose another name"
                    self.report.error("AW301", name.place, message)
                elif name.value in places:
                    self._again("list", name.value, name.place, places[name.value])
                else:
                    found[name.value], places[name.value] = node, name.place
        return found

    def _agent_ids(self) -> Iterable[str]:
        for document in self.documents:
            node = document.section.get("agents")
            for item in node.items if isinstance(node, Items) else ():
                identifier = item.get("id") if isinstance(item, Table) else None
                if isinstance(identifier, Text):
                    yield identifier.value

    def _unique(self, what: str, found: Iterable[Named]) -> tuple[Named, ...]:
        """Those with an id of their own; the others are reported."""
        known: dict[str, Named] = {}
        for one in found:
            if one.id in known:
                self._again(what, one.id, one.place, known[one.id].place)
            known.setdefault(one.id, one)
        return tuple(known.values())

    def _again(self, what: str, name: str, place: Place, first: Place) -> None:
        message = f"the {what} {quote(name)} is already defined in {first.file}, line {first.line}"
        self.report.error("AW301", place, message)

    def _overridden(self, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        known = {rule.id: rule for rule in rules}
        seen: dict[str, Place] = {}
        for document in self.documents:
            table = document.section.table_of("overrides")
            if table is not None and document.ships:
                message = "overrides are for local files; change the rule itself"
                self.report.error("AW309", table.place, message)
            for identifier, node in table.entries if table is not None else ():
                self._override(identifier, node, known, seen)
        return tuple(known.values())

    def _override(
        self, identifier: Text, node: Node, known: dict[str, Rule], seen: dict[str, Place]
    ) -> None:
        name = identifier.value
        if name in seen:
            self._again("override of", name, identifier.place, seen[name])
            return
        seen[name] = identifier.place
        rule = known.get(name)
        if rule is None:
            hint = did_you_mean(name, known) + self.elsewhere
            self.report.error("AW302", identifier.place, f"there is no rule {quote(name)}.{hint}")
            return
        known[name] = self.parser.override(rule, identifier, node)


def _elsewhere() -> str:
    """What to do about a name that nobody defines, in files none of which ships."""
    return f" What ships with agentwatch is known when its files are named too: {packs()}"


def _strictest(defaults: Iterable[Default]) -> tuple[Default, ...]:
    """For each agent and kind the strictest default of all files."""
    found: dict[tuple[str, str], Default] = {}
    for default in defaults:
        known = found.setdefault((default.agent, default.kind), default)
        if ACTIONS.index(default.action) > ACTIONS.index(known.action):
            found[default.agent, default.kind] = default
    return tuple(found.values())
