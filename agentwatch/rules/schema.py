"""The JSON Schema of rule files, for editors that complete and check while somebody types.

Made from the same tables as validation. It is the looser of the two: what fields a kind has, what
a glob is and whether tests pass is said by `rules check`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from agentwatch.rules import fields
from agentwatch.rules.fields import FIELDS, NAMES, TAKES, Field
from agentwatch.rules.model import (
    ACTIONS,
    COUNTED_BY,
    KINDS,
    MODES,
    SCOPES,
    SEVERITIES,
    WITHOUT_HOOK,
)
from agentwatch.rules.parse import (
    AGENT_KEYS,
    COUNT_KEYS,
    FILE_KEYS,
    OVERRIDE_KEYS,
    RULE_KEYS,
    SCHEMA,
    TEST_KEYS,
)

Schema: TypeAlias = dict[str, Any]
FILE = "agentwatch-v1.json"
"""The name it has in docs/schema/."""

_ID = "^[a-z0-9][a-z0-9._-]*$"


def schema() -> Schema:
    """The whole schema, JSON Schema draft 7 (which editors know best)."""
    found = _mapping(_FILE, FILE_KEYS, ("schema",))
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "agentwatch rules",
        "description": "Rules for AI agents: what they may not do, and what happens if they do.",
    }
    definitions = {
        "match": _match(),
        "event": _event(),
        "texts": _some({"type": ["string", "number", "boolean"]}),
        "kinds": _some({"enum": list(KINDS)}),
    }
    return head | found | {"definitions": definitions}


def _mapping(described: Schema, keys: tuple[str, ...], required: tuple[str, ...] = ()) -> Schema:
    """An object of these keys and no others. Raises KeyError for one that is not described."""
    found: Schema = {
        "type": "object",
        "properties": {key: described[key] for key in keys},
        "additionalProperties": False,
    }
    return found | ({"required": list(required)} if required else {})


def _named(value: Schema, about: str) -> Schema:
    return {
        "type": "object",
        "description": about,
        "additionalProperties": value,
        "propertyNames": {"pattern": _ID},
    }


def _some(one: Schema) -> Schema:
    """One, or a list of them."""
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _text(about: str) -> Schema:
    return {"type": "string", "description": about}


def _word(words: tuple[str, ...], about: str) -> Schema:
    return {"enum": list(words), "description": about}


def _list(one: Schema, about: str) -> Schema:
    return {"type": "array", "items": one, "description": about}


def _of(name: str, about: str) -> Schema:
    return {"allOf": [{"$ref": f"#/definitions/{name}"}], "description": about}


def _about(field: Field) -> str:
    kinds = "every kind" if field.kinds == KINDS else ", ".join(field.kinds)
    return f"{kinds}: {fields.about_probed(field)}"


def _fields() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """By name: its type, the words it may have, and what it is, for all kinds together."""
    found: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for field in FIELDS:
        _, words, about = found.get(field.name, ("", (), ""))
        every = tuple(dict.fromkeys((*words, *field.words)))
        found[field.name] = (field.type, every, f"{about}; {_about(field)}".removeprefix("; "))
    return found


def _value(kind: str, words: tuple[str, ...]) -> Schema:
    if words:
        return {"enum": list(words)}
    if kind == "flag":
        return {"enum": [True, False, "true", "false"]}
    return {"type": ["integer", "string"] if kind in ("number", "port") else ["string", "number"]}


def _match() -> Schema:
    properties = {
        name: _some(_variable(_value(kind, words))) | {"description": about}
        for name, (kind, words, about) in _fields().items()
    }
    patterns = {
        rf"^{name.replace('.', '[.]')}([|]({'|'.join(sorted(TAKES[kind]))}))+$": {
            "$ref": "#/definitions/texts"
        }
        for name, (kind, _, _) in _fields().items()
        if TAKES[kind]
    }
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }


def _variable(value: Schema) -> Schema:
    """The value, or a list that stands for values."""
    return {"anyOf": [value, {"type": "string", "pattern": "^[$]"}]} if "enum" in value else value


def _event() -> Schema:
    properties = {}
    given = {field.name for field in FIELDS if not field.follows}
    for name, (kind, words, about) in _fields().items():
        if name not in given:
            continue
        value = {"$ref": "#/definitions/texts"} if kind == "argv" else _value(kind, words)
        properties[name] = {"allOf": [value], "description": about}
    return {
        "type": "object",
        "description": "An event by its fields; those left out match nothing.",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
    }


_UNLESS = _named(
    {"$ref": "#/definitions/match"}, "Exceptions by name; any that holds lets the event pass."
) | {"propertyNames": {"not": {"enum": list(NAMES)}}}
_ENABLED = {"type": "boolean", "description": "Whether it is in force; true if not said."}
_MODE = _word(MODES, "This rule's own mode, whatever that of the others is.")
_HOOK = _word(WITHOUT_HOOK, "What a deny does where it cannot be prevented.")
_SEVERITY = _word(SEVERITIES, "medium if not said.")
_ACTION = _word(ACTIONS, "What happens; the strictest rule that matches wins.")

_TEST = {
    "hit": _of("event", "This rule alone matches it."),
    "miss": _of("event", "This rule alone does not match it."),
    "event": _of("event", "What all rules and defaults together say of it is `verdict`."),
    "verdict": _word(("none", *ACTIONS), "What is expected of `event`."),
    "on": _of("kinds", "For these kinds of its rule only."),
}
_COUNT = {
    "over": {"type": "integer", "minimum": 1, "description": "It acts on the one after these."},
    "within": _text("A time: 500ms, 10s, 5m, 1h.") | {"pattern": "^[1-9][0-9]*(ms|s|m|h)$"},
    "by": _word(COUNTED_BY, "What has a count of its own; session if not said."),
    "distinct": _word(NAMES, "A field: each of its values is counted once."),
}
_AGENT = {
    "id": _text("a-z, 0-9, dots, dashes, underscores.") | {"pattern": _ID},
    "title": _text("Its name, for people."),
    "exec": _of("texts", "Globs of the names it is started by."),
    "own": _of("texts", "Globs of its own state: `$own`."),
}
_RULE = {
    "id": _text("a-z, 0-9, dots, dashes, underscores.") | {"pattern": _ID},
    "title": _text("What it is about, in a few words."),
    "on": _of("kinds", "The kinds of event it judges."),
    "agents": _of("texts", "Ids of the agents it is for; all if not said."),
    "match": _of("match", "Conditions, all of which must hold."),
    "unless": _UNLESS,
    "count": _mapping(_COUNT, COUNT_KEYS, ("over", "within"))
    | {"description": "It acts when it matched too often, on the one too many."},
    "action": _ACTION,
    "scope": _word(SCOPES, "What a kill ends; process if not said."),
    "without_hook": _HOOK,
    "mode": _MODE,
    "enabled": _ENABLED,
    "severity": _SEVERITY,
    "because": _text("One sentence for the person who meets it."),
    "instead": _text("What to do instead."),
    "false_positives": _text("When it is right to do it all the same."),
    "tags": _of("texts", "attack.t1552.001 and the like."),
    "tests": _list(_mapping(_TEST, TEST_KEYS), "Events, and whether it matches them."),
}
_DEFAULTS = {kind: _word(("alert", "deny", "kill"), fields.ABOUT_KINDS[kind]) for kind in KINDS}
_FILE: Schema = {
    "schema": {"const": SCHEMA},
    "lists": _named({"$ref": "#/definitions/texts"}, "Values by name: `$name` stands for them."),
    "agents": _list(_mapping(_AGENT, AGENT_KEYS, ("id", "exec")), "What is an agent."),
    "defaults": _named(
        _mapping(_DEFAULTS, KINDS),
        "By agent (`all`: every one) and kind: what happens to all that no rule allows.",
    ),
    "rules": _list(
        _mapping(_RULE, RULE_KEYS, ("id", "on", "action", "because")), "What agents may not do."
    ),
    "overrides": _named(
        _mapping({key: _RULE[key] for key in OVERRIDE_KEYS}, OVERRIDE_KEYS),
        "By rule: what this host has otherwise. Local files only.",
    ),
}
