"""The sections of rule files: agents, defaults, rules, overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from agentwatch.rules import fields, meaning
from agentwatch.rules.conditions import Reader
from agentwatch.rules.diagnostics import Report, quote
from agentwatch.rules.model import (
    ACTIONS,
    ALL,
    COUNTED_BY,
    KINDS,
    MODES,
    SCOPES,
    SEVERITIES,
    WITHOUT_HOOK,
    Agent,
    Count,
    Default,
    Match,
    Rule,
    Trial,
)
from agentwatch.rules.read import Items, Node, Table, Text
from agentwatch.rules.section import Section, as_text, is_shown, is_word, wrong

SCHEMA = "agentwatch/v1"
FILE_KEYS = ("schema", "lists", "agents", "defaults", "rules", "overrides")
RULE_KEYS = (
    "id", "title", "on", "agents", "match", "unless", "count", "action", "scope", "without_hook",
    "mode", "enabled", "severity", "because", "instead", "false_positives", "tags", "tests",
)  # fmt: skip
OVERRIDE_KEYS = ("enabled", "action", "unless", "mode", "without_hook", "severity")
COUNT_KEYS = ("over", "within", "by", "distinct")
TEST_KEYS = ("hit", "miss", "event", "verdict", "on")
AGENT_KEYS = ("id", "title", "exec", "own")
MOST_COUNTED = 100_000
LONGEST_COUNT = 86_400  # seconds
_UNITS = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}
_DURATION = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h)")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")


def check_id(text: Text, report: Report) -> str:
    """An id of a rule, agent or list."""
    if not _ID.fullmatch(text.value):
        message = f"{quote(text.value)} is no id; use a-z, 0-9, dots, dashes and underscores"
        report.error("AW207", text.place, message)
    return text.value


@dataclass(frozen=True, slots=True)
class Parser:
    """Reads sections once all lists and the ids of all agents are known."""

    report: Report
    reader: Reader

    def agent(self, node: Node) -> Agent | None:
        """One entry of `agents:`."""
        if not isinstance(node, Table):
            wrong(node, self.report, "an agent", "a mapping")
            return None
        section = Section(node, self.report, "an agent", AGENT_KEYS)
        if section.get("exec") is None:
            section.missing("exec", ": globs of the names it is started by")
        text = self._identifier(section)
        if text is None:
            return None
        if text.value == ALL:
            message = '"all" stands for every agent in "defaults"; choose another id'
            self.report.error("AW301", text.place, message)
        return Agent(
            id=check_id(text, self.report),
            title=section.text("title"),
            exec=self._globs(section, "exec"),
            own=self._globs(section, "own"),
            place=text.place,
        )

    def _identifier(self, section: Section) -> Text | None:
        """The text of `id:`, None when there is none to speak of the section by."""
        node = section.get("id")
        if node is None:
            section.missing("id")
            return None
        return as_text(node, self.report, '"id"')

    def _globs(self, section: Section, key: str) -> tuple[str, ...]:
        texts = self.reader.lists.expand(section.texts(key))
        found = []
        for text in texts:
            if text.value.startswith("$"):
                message = f"{quote(text.value)} cannot be part of an agent, which it depends on"
                self.report.error("AW207", text.place, message)
            elif (value := self.reader.checker.path(text)) is not None:
                self._identity(text, key)
                found.append(value)
        return tuple(found)

    def _identity(self, text: Text, key: str) -> None:
        if key != "exec":
            return
        patterns = self.reader.checker.patterns
        literals = patterns.literal_component(text.value)
        if literals is None:
            message = (
                f"{quote(text.value)} has no component the kernel could look for: write out one "
                'that is the agent\'s own, like "**/bin/claude"'
            )
            self.report.error("AW306", text.place, message)
            return
        # Whatever the glob covers has one of the literals for a component: few names have.
        for name in PROTECTED:
            parts = name.encode().split(b"/")
            if not set(parts).isdisjoint(literals) and patterns.matches(text.value, name):
                message = f"{quote(text.value)} covers {name}, which is no agent"
                self.report.error("AW305", text.place, message)
                return

    def defaults(self, table: Table) -> list[Default]:
        """`defaults:` agent, or ALL -> kind -> action."""
        found = []
        for agent, node in table.entries:
            if agent.value != ALL:
                self.reader.checker.knows(agent)
            if not isinstance(node, Table):
                wrong(
                    node, self.report, f"the default of {quote(agent.value)}", "a mapping of kinds"
                )
                continue
            for kind, value in node.entries:
                action = as_text(value, self.report, f"the default of {quote(kind.value)}")
                if (
                    self.kind(kind)
                    and action is not None
                    and is_word(action, ("alert", "deny", "kill"), self.report, "a default")
                ):
                    found.append(Default(agent.value, kind.value, action.value, kind.place))
        return found

    def kind(self, text: Text) -> bool:
        """Whether it is a kind there are rules for; reported if not."""
        if text.value in fields.LATER_KINDS:
            message = f"the kind {quote(text.value)} is not supported yet: nothing reports it"
            self.report.error("AW206", text.place, message)
            return False
        return is_word(text, KINDS, self.report, "a kind")

    def rule(self, node: Node) -> Rule | None:
        """One entry of `rules:`; None when it has no id to speak of it by."""
        if not isinstance(node, Table):
            wrong(node, self.report, "a rule", "a mapping")
            return None
        section = Section(node, self.report, "a rule", RULE_KEYS)
        text = self._identifier(section)
        if text is None:
            return None
        before = self.report.errors_found
        kinds = self._kinds(section)
        match = section.get("match")
        rule = replace(
            self._settings(section, text, kinds),
            match=Match(()) if match is None else self.reader.match(match, kinds, '"match"'),
            unless=self.reader.exceptions(section.get("unless"), kinds),
            count=self._count(section, kinds),
            trials=tuple(self._trials(section, kinds)),
        )
        return self._weighed(rule, before)

    def _weighed(self, rule: Rule, errors_before: int) -> Rule:
        """The rule, looked at as a whole unless parts of it were left out as wrong."""
        if self.report.errors_found == errors_before:
            meaning.check_rule(rule, self.report)
        return rule

    def _kinds(self, section: Section) -> tuple[str, ...]:
        if section.get("on") is None:
            section.missing("on", f": {', '.join(KINDS)}")
        return tuple(dict.fromkeys(t.value for t in section.texts("on") if self.kind(t)))

    def _settings(self, section: Section, identifier: Text, kinds: tuple[str, ...]) -> Rule:
        agents = section.texts("agents")
        for agent in agents:
            if agent.value == ALL:
                message = 'there is no agent "all": a rule without "agents" is for all of them'
                self.report.error("AW302", agent.place, message)
            else:
                self.reader.checker.knows(agent)
        if (
            section.get("agents") is not None
            and isinstance(section.get("agents"), Items)
            and not agents
        ):
            self.report.error(
                "AW303", identifier.place, "this can never match: agents has no values"
            )
        return Rule(
            id=check_id(identifier, self.report),
            on=kinds,
            match=Match(()),
            action=section.word("action", ACTIONS),
            place=identifier.place,
            title=section.text("title"),
            agents=tuple(agent.value for agent in agents),
            without_hook=section.word("without_hook", WITHOUT_HOOK, ""),
            mode=section.word("mode", MODES, ""),
            scope=section.word("scope", SCOPES, "process"),
            enabled=section.word("enabled", ("true", "false"), "true") == "true",
            severity=section.word("severity", SEVERITIES, "medium"),
            because=section.text("because", "one sentence for the person who meets it"),
            instead=section.text("instead"),
            false_positives=section.text("false_positives", lines=True),
            tags=tuple(t.value for t in section.texts("tags") if is_shown(t, self.report, "a tag")),
        )

    def _trials(self, section: Section, kinds: tuple[str, ...]) -> list[Trial]:
        node = section.get("tests")
        if node is None:
            return []
        if not isinstance(node, Items):
            wrong(node, self.report, '"tests"', "a list")
            return []
        found = [self._trial(item, kinds) for item in node.items]
        return [trial for trial in found if trial is not None]

    def _trial(self, node: Node, kinds: tuple[str, ...]) -> Trial | None:
        if not isinstance(node, Table):
            return self.unfinished(node, "write hit: or miss: and the fields of an event")
        section = Section(node, self.report, "a test", TEST_KEYS)
        expects = [key for key in ("hit", "miss", "event") if section.get(key) is not None]
        if len(expects) != 1:
            return self.unfinished(node, "it has one of hit:, miss: or event: with verdict:")
        (expect,) = expects
        if (expect == "event") != (section.get("verdict") is not None):
            return self.unfinished(node, "verdict: says what is expected of the event: beside it")
        event = section.get(expect)
        if not isinstance(event, Table) or not event.entries:
            return self.unfinished(event or node, f"{expect}: needs the fields of an event")
        on = tuple(text.value for text in section.texts("on") if self.kind(text))
        verdict = ""
        if expect == "event":
            verdict = section.word("verdict", ("none", *ACTIONS))
            expect = "verdict"
        values = self.reader.event(event, on or kinds)
        return Trial(expect, values, node.place, on, verdict)

    def unfinished(self, node: Node, hint: str) -> Trial | None:
        self.report.error("AW402", node.place, f"this test is not finished: {hint}")
        return None

    def _count(self, section: Section, kinds: tuple[str, ...]) -> Count | None:
        """`count:`, None without it or when it has been reported."""
        table = section.table_of("count")
        if table is None:
            return None
        inner = Section(table, self.report, "count", COUNT_KEYS)
        over = self._over(inner)
        within = self._within(inner)
        by = inner.word("by", COUNTED_BY, "session")
        distinct = self._distinct(inner, kinds)
        return Count(over, within, by, distinct) if over and within else None

    def _distinct(self, section: Section, kinds: tuple[str, ...]) -> str:
        """The field whose values are counted, "" for every match."""
        node = section.get("distinct")
        text = None if node is None else as_text(node, self.report, '"distinct"')
        field = None if text is None else self.reader.field(text, text.value, kinds)
        if text is None or field is None:
            return ""
        if field.type in ("flag", "agent"):
            message = f"{field.name} has too few values to count; name another field, or none"
            self.report.error("AW207", text.place, message)
        return field.name

    def _over(self, section: Section) -> int:
        node = section.get("over")
        if node is None:
            section.missing("over", ": how many may match before the rule acts")
            return 0
        text = as_text(node, self.report, '"over"')
        if text is None:
            return 0
        if re.fullmatch(r"[1-9][0-9]{0,6}", text.value) and int(text.value) <= MOST_COUNTED:
            return int(text.value)
        message = f'"over" is a number from 1 to {MOST_COUNTED}, not {quote(text.value)}'
        self.report.error("AW207", text.place, message)
        return 0

    def _within(self, section: Section) -> int:
        """ns, 0 when it has been reported."""
        node = section.get("within")
        if node is None:
            section.missing("within", ": a time like 10s or 5m")
            return 0
        text = as_text(node, self.report, '"within"')
        if text is None:
            return 0
        found = _DURATION.fullmatch(text.value)
        nanoseconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if 0 < nanoseconds <= LONGEST_COUNT * _UNITS["s"]:
            return nanoseconds
        message = f'"within" is a time like 500ms, 10s or 5m, up to 24h, not {quote(text.value)}'
        self.report.error("AW207", text.place, message)
        return 0

    def override(self, rule: Rule, identifier: Text, node: Node) -> Rule:
        """The rule as a local file changes it."""
        if not isinstance(node, Table):
            wrong(node, self.report, f"the override of {quote(rule.id)}", "a mapping")
            return rule
        before = self.report.errors_found
        section = Section(node, self.report, "an override", OVERRIDE_KEYS)
        as_it_is = "true" if rule.enabled else "false"
        changed = replace(
            rule,
            enabled=section.word("enabled", ("true", "false"), as_it_is) == "true",
            mode=section.word("mode", MODES, rule.mode),
            action=section.word("action", ACTIONS, rule.action),
            unless=rule.unless + self.reader.exceptions(section.get("unless"), rule.on),
            without_hook=section.word("without_hook", WITHOUT_HOOK, rule.without_hook),
            severity=section.word("severity", SEVERITIES, rule.severity),
            overridden=identifier.place,
        )
        return self._weighed(changed, before)


def _protected() -> tuple[str, ...]:
    shells = ("sh", "bash", "dash", "zsh", "fish", "ksh", "mksh", "tcsh", "csh", "busybox")
    places = ("/bin", "/usr/bin", "/usr/local/bin")
    return (
        *(f"{place}/{shell}" for place in places for shell in shells),
        *("/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"),
        *("/usr/bin/systemd", "/bin/systemd"),
        *("/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/libexec/openssh/sshd-session"),
        *(f"{place}/agentwatch" for place in ("/usr/bin", "/usr/local/bin", "/opt/agentwatch/bin")),
    )


PROTECTED = _protected()
"""Programs that no identity may cover: shells, PID 1 and the user manager, sshd, agentwatch."""
