"""Mounts and user namespaces: what a record says, what rules make of it, how it is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentwatch import abi, decoding
from agentwatch.engine import NO_VERDICT
from agentwatch.events import Mount
from agentwatch.policy import compiler, levels
from agentwatch.policy.image import Image
from agentwatch.policy.layout import DENY, LOOK
from agentwatch.policy.readers import kinds_of
from agentwatch.policy.subjects import KINDS, WORDS, AgentBits, subject_of
from agentwatch.rules.model import Default, Rule, Ruleset
from agentwatch.sinks import lines, ocsf
from agentwatch.sinks.host import Host
from agentwatch.testing import Records
from tests.unit.small import HERE, actor, engine, mounted, opened, rule

HOST = Host(boot_id="boot", name="box", offset=1_700_000_000_000_000_000)
LSM = levels.Host(
    levels._OF_TASKS
    | frozenset(
        {
            "lsm_sb_mount",
            "lsm_move_mount",
            "lsm_sb_pivotroot",
            "lsm_sb_remount",
            "lsm_sb_umount",
            "lsm_userns_create",
        }
    )
)
EPERM = 1


def decoded(*arguments: Any, **options: Any) -> Mount:
    event = decoding.decode(Records().mount(*arguments, **options))
    assert isinstance(event, Mount)
    return event


# Records.


def test_a_mount_is_decoded_with_its_names() -> None:
    """The mount point from its base and text, the source and type as they were given."""
    event = decoded("mount", "/mnt/../srv", "/dev/sdb1", "ext4")
    assert (event.op, event.path, event.asked) == ("mount", "/srv", "/mnt/../srv")
    assert (event.source, event.fstype, event.result) == ("/dev/sdb1", "ext4", 0)


def test_a_link_that_was_followed_makes_two_names() -> None:
    """path is where it leads, written what the call said; rules judge it under both."""
    event = decoded("umount", "/srv/link", found="/srv/real")
    assert (event.path, event.written) == ("/srv/real", "/srv/link")
    for path in ("/srv/real", "/srv/link"):
        assert engine(rule("deny", "mount", path=path)).judge(event, actor()).action == "deny"


def test_a_user_namespace_has_no_path() -> None:
    """Nothing but its operation is known of it, and that is no reading that failed."""
    event = decoded("userns", "")
    assert (event.path, event.source, event.unresolved) == ("", "", frozenset())


def test_a_mount_that_failed_is_judged_by_nobody() -> None:
    """Only what was asked is known."""
    event = decoded("mount", "/mnt", result=-EPERM)
    assert (event.path, event.asked, kinds_of(event)) == ("", "/mnt", ())
    assert kinds_of(decoded("mount", "/mnt")) == ("mount",)


def test_a_hook_tells_the_kernels_names_of_what_it_refused() -> None:
    """Mount point and source by their places; no text is joined to them."""
    names = {"path": b"/mnt", "source": b"/home/dev/.ssh", "source_asked": b"x"}
    values = {"op": abi.OP_MOUNT, "result": -EPERM, "path_dev": 1, "source_dev": 1}
    record = abi.pack(abi.MOUNT, values | {"flags": abi.FLAG_HOOK}, names)
    event = decoding.decode(record)
    assert isinstance(event, Mount)
    assert (event.refused, event.path, event.source) == (True, "/mnt", "/home/dev/.ssh")


@pytest.mark.parametrize(
    ("bit", "unread"),
    [
        (abi.UNRESOLVED_ASKED, {"asked", "path"}),
        (abi.UNRESOLVED_PATH, {"path"}),
        (abi.UNRESOLVED_NEW_ASKED, {"source"}),
    ],
)
def test_what_could_not_be_read_restricts(bit: int, unread: set[str]) -> None:
    """A deny on the field that is not known matches, an exception on it does not."""
    event = decoded("mount", "/x", "tmpfs", "tmpfs", unresolved=bit)
    assert event.unresolved == unread
    field = "path" if "path" in unread else "source"
    closed = engine(rule("deny", "mount", **{field: "/somewhere/else"}))
    assert closed.judge(event, actor()).action == "deny"


# Rules.


@pytest.mark.parametrize("op", ["mount", "move", "remount", "umount", "userns"])
def test_an_operation_is_told_from_the_others(op: str) -> None:
    """`op` selects one; without it all of them are meant."""
    path = "" if op == "userns" else "/mnt"
    only, every = engine(rule("deny", "mount", op=op)), engine(rule("deny", "mount"))
    for other in ("mount", "move", "remount", "umount", "userns"):
        event = mounted(other, path if other == op else "/mnt")
        assert (only.judge(event, actor()).action == "deny") == (other == op)
        assert every.judge(event, actor()).action == "deny"


def test_a_rule_on_paths_is_not_about_user_namespaces() -> None:
    """They have none, which is a value."""
    judge = engine(rule("deny", "mount", path="/**")).judge
    assert judge(mounted("userns", ""), actor()) == NO_VERDICT
    assert judge(mounted(), actor()).action == "deny"


def test_source_and_type_are_conditions_of_their_own() -> None:
    """A directory has no type, a tmpfs no source that a path would match."""
    judge = engine(rule("deny", "mount", source="/home/**"), rule("kill", "mount", fstype="fuse*"))
    assert judge.judge(mounted(source="/home/dev/.ssh"), actor()).action == "deny"
    assert judge.judge(mounted(source="x", fstype="fuse.sshfs"), actor()).action == "kill"
    assert judge.judge(mounted(source="tmpfs", fstype="tmpfs"), actor()) == NO_VERDICT


def test_a_source_loosens_nothing() -> None:
    """It is text that the caller chose."""
    closed = (Default("codex", "mount", "deny", HERE),)
    holes = engine(rule("allow", "mount", source="/home/dev/**"), defaults=closed)
    assert holes.judge(mounted(source="/home/dev/x"), actor()).action == "deny"
    allows = engine(rule("allow", "mount", path="/mnt"), defaults=closed)
    assert allows.judge(mounted(), actor()).action in ("none", "allow")
    assert allows.judge(mounted(path="/etc"), actor()).because == (
        "No rule allows codex to mount there."
    )


# The kernel's policy.


def test_the_kernel_decides_by_path_and_operation() -> None:
    """With LSM a deny is a deny there; opens of the same name are another kind."""
    rules = Ruleset((rule("deny", "mount", path="/x/**", op=("mount", "move")),))
    found = compiler.compile(
        rules, mode="enforce", without_hook="kill", agents=AgentBits(), prevents=True, lsm=True,
        generation=1,
    )  # fmt: skip
    image = Image(found.image)
    for event, denied in (
        (mounted(path="/x/y"), True),
        (mounted("move", "/x/y"), True),
        (mounted("umount", "/x/y"), False),
        (mounted(path="/y"), False),
        (opened("/x/y"), False),
    ):
        subject = subject_of(event, actor(), found.agents)
        assert subject is not None
        assert bool(image.decide(subject).rule) == denied, event
    assert found.lowered["deny.mount"].where == "kernel"


def test_source_is_left_to_the_engine() -> None:
    """The kernel picks the mounts that the rest of the rule is about."""
    rules = Ruleset((rule("deny", "mount", path="/x/**", source="/home/**"),))
    found = compiler.compile(
        rules, mode="enforce", without_hook="kill", agents=AgentBits(), prevents=True, lsm=True,
        generation=1,
    )  # fmt: skip
    assert found.lowered["deny.mount"].where == "engine"
    subject = subject_of(mounted(path="/x/y"), actor(), found.agents)
    assert subject is not None
    assert Image(found.image).decide(subject).verdict == LOOK != DENY


def test_words_and_kinds_are_those_of_the_probes(repository: Any) -> None:
    """bpf/scratch.bpf.c has the same bits."""
    text = (repository / "bpf" / "scratch.bpf.c").read_text()
    assert f"#define AW_MOUNT {KINDS['mount']}\n" in text
    for op in ("mount", "move", "remount", "umount", "userns"):
        assert f"#define AW_WORD_{op.upper()} 0x{WORDS['op'][op]:06x}\n" in text


# Levels.


def level(rule_: Rule, host: levels.Host = LSM, engine: str = "") -> levels.Level:
    return levels.level(rule_, host, engine=engine)


@pytest.mark.parametrize("op", ["mount", "move", "remount", "umount", "userns"])
def test_a_deny_prevents_where_its_hooks_are(op: str) -> None:
    """Those of its operation alone, and of tags; without them the engine kills after."""
    one = rule("deny", "mount", op=op)
    assert level(one).name == "prevents"
    assert ("mount_setattr" in level(one).reason) == (op == "remount")
    assert level(one, levels.Host()).name == "kills-after"
    for hook in LSM.lsm:
        needed = hook in levels._OF_MOUNT[op] | levels._OF_TASKS
        there = levels.Host(LSM.lsm - {hook})
        assert (level(one, there).name == "kills-after") == needed
        assert (hook in level(one, there).reason) == needed


def test_what_the_engine_decides_comes_after() -> None:
    """A condition on the source is one."""
    assert level(rule("deny", "mount", source="/x"), engine="Why.").name == "kills-after"


# How it is shown.


def test_a_mount_is_one_line() -> None:
    """Operation, what, where; the error of what failed."""
    assert lines.kind_of(mounted()) == "mount"
    assert lines.describe(mounted(source="tmpfs")) == "mount tmpfs -> /mnt"
    assert lines.describe(mounted("umount")) == "umount /mnt"
    assert lines.describe(mounted("userns", "")) == "userns"
    failed = mounted(path="", asked="/mnt", source="x", result=-EPERM)
    assert lines.describe(failed) == "mount x -> /mnt  EPERM"


@pytest.mark.parametrize(
    ("op", "activity", "name"),
    [
        ("mount", 12, "Mount"),
        ("move", 12, "Mount"),
        ("umount", 13, "Unmount"),
        ("remount", 99, "remount"),
        ("userns", 99, "userns"),
    ],
)
def test_a_mount_is_file_activity(op: str, activity: int, name: str) -> None:
    """OCSF 1001 with Mount or Unmount; what has no activity of its own is Other by its name."""
    event = mounted(op, "" if op == "userns" else "/mnt", source="/dev/sdb1", fstype="ext4")
    shaped = ocsf.activity(event, HOST)
    assert (shaped["class_uid"], shaped["activity_id"]) == (1001, activity)
    assert shaped["activity_name"] == name
    said = shaped["unmapped"]["agentwatch"]
    assert (said["op"], said["source"], said["fstype"]) == (op, "/dev/sdb1", "ext4")
    json.dumps(shaped)
