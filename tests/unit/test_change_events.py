"""Changes of names and attributes: what a record says, what rules make of it, how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agentwatch import abi, decoding
from agentwatch.engine import NO_VERDICT
from agentwatch.events import Change
from agentwatch.policy.readers import kinds_of
from agentwatch.policy.subjects import CONNECT, EXEC, KINDS, WORDS, AgentBits, subject_of
from agentwatch.rules.model import Count, Default
from agentwatch.sinks import lines, ocsf
from agentwatch.sinks.host import Host
from agentwatch.testing import Records
from tests.unit.small import HERE, KEY, actor, engine, ran, rule

HOST = Host(boot_id="boot", name="box", offset=1_700_000_000_000_000_000)
EPERM, ENOENT = 1, 2


def decoded(*arguments: Any, **options: Any) -> Change:
    event = decoding.decode(Records().change(*arguments, **options))
    assert isinstance(event, Change)
    return event


def changed(op: str, path: str, new_path: str = "", **more: Any) -> Change:
    return Change(time=1, process=KEY, session=KEY, op=op, path=path, new_path=new_path, **more)


# Records.


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("x", "/home/dev/x"),
        ("./a/../x", "/home/dev/x"),
        ("../x/", "/home/x"),
        ("/etc/x", "/home/dev/etc/x"),  # its task's root is that directory
        (".", "/home/dev"),
    ],
)
def test_a_name_begins_where_the_kernel_says(asked: str, path: str) -> None:
    """The kernel's directory and the caller's text, as one name."""
    event = decoded("delete", asked, base="/home/dev")
    assert (event.path, event.asked, event.written) == (path, asked, "")


def test_a_link_that_was_followed_makes_two_names() -> None:
    """path is where it leads, written what the call said."""
    event = decoded("delete", "link/x", base="/srv", found="/srv/real/x")
    assert (event.path, event.written) == ("/srv/real/x", "/srv/link/x")


def test_a_name_has_the_view_of_the_directory_it_begins_in() -> None:
    """Below a root of its own: what the call said, as its process sees it, beside the others."""
    event = decoded("delete", "/link/x", base="/jail", view="/", found="/jail/real/x")
    assert (event.path, event.view, event.written) == ("/jail/real/x", "/link/x", "/jail/link/x")
    assert decoded("delete", "x", base="/srv", view="/srv").others == ()


def test_what_a_hook_refused_has_its_names() -> None:
    """Those that would have been used: nothing happened to them."""
    event = decoded("delete", "/x", flags=abi.FLAG_HOOK, result=-EPERM, base="/srv/x", view="/x")
    assert (event.path, event.view, event.refused) == ("/srv/x", "/x", True)
    assert kinds_of(event) == ()


def test_both_names_of_a_rename_are_there() -> None:
    """And of a symbolic link only its own, with its text."""
    event = decoded("rename", "a", "b", base="/srv")
    assert (event.path, event.new_path) == ("/srv/a", "/srv/b")
    event = decoded("symlink", "a", "../b", base="/srv")
    assert (event.path, event.new_path, event.new_asked) == ("/srv/a", "", "../b")


def test_a_failed_change_has_only_what_was_asked() -> None:
    """No name is made up for what did not happen."""
    event = decoded("rename", "a", "b", result=-ENOENT)
    assert (event.path, event.new_path) == ("", "")
    assert (event.asked, event.new_asked) == ("a", "b")


def test_a_text_that_was_cut_leaves_its_name_unresolved() -> None:
    """Of either name by itself."""
    event = decoded("rename", "a", "b", unresolved=abi.UNRESOLVED_NEW_ASKED)
    assert event.unresolved == {"new_asked", "new_path"}
    event = decoded("delete", "a", unresolved=abi.UNRESOLVED_ASKED)
    assert event.unresolved == {"asked", "path"}


def test_every_operation_has_the_word_that_rules_have() -> None:
    """None is missing on either side."""
    assert set(decoding.OPS.values()) == WORDS["op"].keys() - {"open"}


# Rules.


def test_what_failed_and_what_is_in_no_file_system_is_judged_by_nobody() -> None:
    """Nothing has changed, or nothing that has a name."""
    assert kinds_of(changed("delete", "/x")) == ("change",)
    assert kinds_of(changed("delete", "", result=-ENOENT)) == ()
    assert kinds_of(changed("truncate", "memfd:x", anonymous=True)) == ()


def test_a_rule_finds_a_change_by_the_name_that_was_written_too() -> None:
    """What is restricted by either name is restricted."""
    judge = engine(rule("deny", on="change", op="delete", path="/srv/link/**")).judge
    through = changed("delete", "/srv/real/x", written="/srv/link/x")
    assert judge(through, actor()).action == "deny"
    assert judge(changed("delete", "/srv/real/x"), actor()) is NO_VERDICT
    other = changed("rename", "/a", "/srv/real/x", new_written="/srv/link/x")
    assert engine(rule("deny", on="change", path="/srv/link/**")).judge(other, actor()).action == (
        "deny"
    )


def test_a_default_is_about_where_a_name_leads() -> None:
    """Who is allowed a directory may write its name by way of a link, and nobody more by one."""
    closed = (Default("codex", "change", "deny", HERE),)
    judge = engine(rule("allow", on="change", path="/srv/real/**"), defaults=closed).judge
    assert judge(changed("delete", "/srv/real/x", written="/link/x"), actor()).action == "allow"
    assert judge(changed("delete", "/link/x", written="/srv/real/x"), actor()).action == "deny"


@pytest.mark.parametrize("unread", ["path", "new_path"])
def test_a_name_that_is_not_known_matches_what_restricts(unread: str) -> None:
    """Of the two names the one that is known does not excuse the other."""
    event = changed("rename", "/a", "/b", unresolved=frozenset({unread}))
    assert engine(rule("kill", on="change", path="/secret")).judge(event, actor()).action == "kill"
    holes = rule("allow", on="change", path="/**")
    closed = (Default("codex", "change", "deny", HERE),)
    assert engine(holes, defaults=closed).judge(event, actor()).action == "deny"


def test_many_deletions_are_counted_by_their_names() -> None:
    """Twice the same is one; a failed one is none."""
    many = replace(rule("kill", on="change", op="delete"), count=Count(2, 10**9, "session", "path"))
    judge = engine(many).judge
    names = ["/a", "/a", "/b", "/a"]
    assert [judge(changed("delete", name), actor()).action for name in names] == ["none"] * 4
    assert judge(changed("delete", "", asked="/c", result=-ENOENT), actor()).action == "none"
    assert judge(changed("delete", "/c"), actor()).action == "kill"


def test_a_file_stays_the_agents_work_under_a_new_name() -> None:
    """By rename and by link; what others wrote does not become it by being moved."""
    judge = engine(rule("alert", on="exec", written_by_agent="true"), rule("alert", on="read"))
    wrote = changed("create", "/w")
    judge.memory.wrote(KEY, "/w")
    for event in (
        wrote,
        changed("rename", "/w", "/moved"),
        changed("link", "/moved", "/linked"),
        changed("rename", "/bin/true", "/other"),
    ):
        judge.saw(event)
    found = [judge.judge(ran(p), actor()).action for p in ("/moved", "/linked", "/other")]
    assert found == ["alert", "alert", "none"]


def test_the_automata_are_asked_of_a_change_what_rules_ask() -> None:
    """One kind, the word of its operation, and that it writes."""
    subject = subject_of(changed("rename", "/a", "/b"), actor(), AgentBits(("codex",)))
    assert subject is not None
    assert subject.kinds == KINDS["change"]
    assert not subject.kinds & (EXEC | CONNECT)
    assert subject.words == WORDS["op"]["rename"] | WORDS["access"]["write"]
    assert subject.path == b"/a/"


# Whoever is told.


@pytest.mark.parametrize(
    ("op", "activity"),
    [
        ("create", (1, "Create")),
        ("mkdir", (1, "Create")),
        ("symlink", (1, "Create")),
        ("link", (1, "Create")),
        ("truncate", (3, "Update")),
        ("delete", (4, "Delete")),
        ("rmdir", (4, "Delete")),
        ("rename", (5, "Rename")),
        ("xattr", (6, "Set Attributes")),
        ("chmod", (7, "Set Security")),
        ("chown", (7, "Set Security")),
    ],
)
def test_a_change_is_file_activity_in_OCSF(op: str, activity: tuple[int, str]) -> None:
    """Class 1001, with the activity that the standard has for it and the operation beside it."""
    two = op in ("rename", "link", "symlink")
    event = decoded(op, "/home/dev/a", "/home/dev/b" if two else "", mode=0o640)
    found = json.loads(ocsf.dumps(ocsf.activity(event, HOST)))
    assert (found["class_uid"], found["activity_id"], found["activity_name"]) == (1001, *activity)
    assert found["file"]["path"] == ("/home/dev/b" if op == "link" else "/home/dev/a")
    assert found["unmapped"]["agentwatch"]["op"] == op
    assert found.get("file_result", {}).get("path") == ("/home/dev/b" if op == "rename" else None)


def test_a_change_is_one_escaped_line() -> None:
    """Operation and names; of a failed one what was asked, and the error."""
    assert lines.kind_of(changed("delete", "/x")) == "change"
    assert lines.describe(changed("rename", "/a", "/b")) == "rename /a -> /b"
    assert "\n" not in lines.describe(changed("delete", "/a\nb"))
    failed = decoded("delete", "gone", result=-ENOENT)
    assert lines.describe(failed) == "delete gone  ENOENT"
