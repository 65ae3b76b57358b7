"""What a rule is worth where LSM hooks refuse, and where one of them is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentwatch.kernel.lsm import HOOKS
from agentwatch.policy.levels import Host, insists, is_hooked, level, prevents, refusal
from agentwatch.rules.model import Condition, Match
from tests.unit.test_levels import rule

LSM = Host(frozenset(HOOKS), cgroup=True)
KERNEL = ""  # why the engine decides: it does not


def without(*hooks: str) -> Host:
    return replace(LSM, lsm=LSM.lsm - set(hooks))


@pytest.mark.parametrize("kind", ["exec", "read", "open", "change", "connect"])
def test_every_kind_is_prevented_where_all_hooks_are(kind: str) -> None:
    """By the kernel alone, and with the signal where the rule kills; never lossy."""
    lossy = replace(LSM, lossy=True)
    denied = level(rule("deny", (kind,)), lossy, engine=KERNEL)
    assert (denied.name, denied.lossy) == ("prevents", False)
    assert "EPERM" in denied.reason
    assert "kills" not in denied.reason
    killed = level(rule("kill", (kind,)), lossy, engine=KERNEL)
    assert killed.name == "prevents"
    assert killed.reason.endswith("and kills the process.")
    assert level(rule("deny", (kind,)), LSM).name == "kills-after"  # the engine decides


@pytest.mark.parametrize(
    ("kind", "op", "needs"),
    [
        ("exec", "", "lsm_bprm_check_security"),
        ("exec", "", "lsm_mmap_file"),
        ("read", "", "lsm_file_open"),
        ("open", "", "lsm_file_receive"),
        ("connect", "", "lsm_unix_stream_connect"),
        ("change", "delete", "lsm_path_unlink"),
        ("change", "create", "lsm_path_mknod"),
        ("change", "xattr", "lsm_inode_removexattr"),
        ("change", "", "lsm_path_rmdir"),
    ],
)
def test_a_missing_hook_costs_the_rules_that_need_it(kind: str, op: str, needs: str) -> None:
    """Their reason names it; rules of other kinds keep their level."""
    one = rule("deny", (kind,), **({"op": op} if op else {}))
    assert level(one, without(needs), engine=KERNEL).name in ("kills", "kills-after")
    assert f"this kernel lacks {needs}" in level(one, without(needs), engine=KERNEL).reason
    other = {"read": "exec"}.get(kind, "read")
    spared = rule("deny", (other,) if needs.startswith("lsm_file") else ("read",))
    if kind not in ("read", "open"):
        assert level(spared, without(needs), engine=KERNEL).name == "prevents"


def test_what_newer_kernels_ask_by_another_hook_is_not_missed() -> None:
    """A truncation and an access list are refused without the hooks of their own."""
    older = without("lsm_file_truncate", "lsm_inode_set_acl", "lsm_inode_remove_acl")
    for op in ("truncate", "xattr"):
        assert level(rule("deny", ("change",), op=op), older, engine=KERNEL).name == "prevents"


def test_nothing_is_prevented_where_children_have_no_tag_at_once() -> None:
    """Of whatever kind: a tag that a tracing program gives may come late, or not at all."""
    for kind in ("exec", "read", "open", "change", "connect", "mount"):
        one = rule("deny", (kind,), "refuse")
        for hook in ("lsm_task_alloc", "lsm_bprm_committed_creds"):
            assert level(one, without(hook), engine=KERNEL).name != "prevents"
            assert hook in (refusal(one, without(hook), engine="") or "")


def test_a_lost_hook_of_a_newer_kernel_costs_the_rules_that_need_it() -> None:
    """There nobody else is asked about ftruncate and access lists."""
    for op, hook in (("truncate", "lsm_file_truncate"), ("xattr", "lsm_inode_set_acl")):
        lost = replace(without(hook), lost=frozenset({hook}))
        found = level(rule("deny", ("change",), op=op), lost, engine=KERNEL)
        assert found.name == "kills-after"
        assert hook in found.reason
        assert level(rule("deny", ("change",), op="delete"), lost, engine=KERNEL).name == "prevents"


def test_a_rule_on_rings_needs_the_hook_that_is_asked_about_them() -> None:
    """A rule on files does not."""
    host = without("lsm_inode_init_security_anon")
    rings = rule("deny", ("open",), path="[[]io_uring]")
    assert level(rings, LSM, engine=KERNEL).name == "prevents"
    assert level(rings, host, engine=KERNEL).name == "kills-after"
    assert level(rule("deny", ("open",), path="/k/**"), host, engine=KERNEL).name == "prevents"


@pytest.mark.parametrize("field", ["args", "argv"])
def test_arguments_are_refused_where_they_can_be_read_and_killed_for_else(field: str) -> None:
    """So the level stays `kills`, and the reason says both."""
    one = rule("deny", ("exec",), **{field: "--force"})
    found = level(one, LSM, engine=KERNEL)
    assert found.name == "kills"
    assert "EPERM" in found.reason
    assert "else it kills the process before the new program runs" in found.reason
    assert "EPERM" not in level(replace(one, action="kill"), LSM, engine=KERNEL).reason
    assert "EPERM" not in level(one, Host(), engine=KERNEL).reason
    carved = replace(rule("deny", ("exec",)), unless=(("x", Match((Condition(field, ("y",)),))),))
    assert level(carved, LSM, engine=KERNEL).name == "kills"


@pytest.mark.parametrize("kind", ["exec", "read", "open", "change", "connect"])
def test_refuse_is_satisfied_where_hooks_are(kind: str) -> None:
    """Unless the engine decides on the rule; then that is what the message says."""
    one = rule("deny", (kind,), "refuse")
    assert insists(one, LSM, "kill")
    assert prevents(one, LSM, KERNEL)
    assert refusal(one, LSM, engine=KERNEL) is None
    assert "by RE2" in (refusal(one, LSM, engine="It asks by RE2.") or "")
    assert not insists(rule("deny", (kind,)), LSM, "kill")
    assert insists(replace(one, without_hook=""), LSM, "refuse")


def test_refuse_names_what_is_missing() -> None:
    """The hook, or that arguments are known too late; nothing where there is no such tier."""
    one = rule("deny", ("change",), "refuse", op="delete")
    assert "lacks lsm_path_unlink" in (refusal(one, without("lsm_path_unlink"), engine="") or "")
    by_args = rule("deny", ("exec",), "refuse", args="--force")
    assert "arguments" in (refusal(by_args, LSM, engine=KERNEL) or "")
    assert not insists(by_args, LSM, "kill")
    plain = refusal(one, Host(), engine=KERNEL) or ""
    assert "change cannot be prevented here: write" in plain


def test_who_is_asked_about_an_event_is_a_matter_of_its_own_hooks() -> None:
    """A rename of path_rename, an opening for both kinds of file_open."""
    assert is_hooked(LSM, ("change",), "rename")
    assert not is_hooked(without("lsm_path_rename"), ("change",), "rename")
    assert is_hooked(without("lsm_path_rename"), ("open", "read", "change"))
    assert not is_hooked(without("lsm_file_open"), ("open", "read"))
    assert not is_hooked(LSM, ())
