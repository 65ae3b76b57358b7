"""What must hold on a kernel that the core loader's object does not load on: by bcc, in a guest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.bcc

RELEASE = os.uname().release
OTHERWISE = (
    "test_names.py::test_a_file_many_levels_deep_has_its_whole_name[1500]",  # 192 levels
    "test_changes.py::test_a_task_with_a_root_of_its_own_names_files_below_it",  # no views
    # Before 5.12 no name can be looked up without waiting for a file system,
    "test_changes.py::test_a_symbolic_link_in_a_directory_is_followed",
    "test_changes.py::test_what_a_call_follows_is_followed",
    "test_changes.py::test_dots_behind_a_link_are_those_of_where_it_leads",
    "test_changes.py::test_a_name_by_way_of_proc_is_the_callers",
    "test_mounts.py::test_attributes_of_a_mount_are_a_remount",  # and there is no mount_setattr.
    # What the engine makes of it is no matter of loaders, and each of these compiles anew.
    "test_changes.py::test_who_makes_a_denied_change_is_killed_after_it",
    "test_changes.py::test_a_failed_change_is_nothing_that_rules_are_about",
    "test_changes.py::test_a_mass_deletion_is_stopped",
    "test_changes.py::test_what_a_command_left_to_be_read_is_read",
    "test_mounts.py::test_the_engine_kills_for_a_mount",
)
"""Tests of what is different here, or the same everywhere: see docs/levels.md."""

HIDDEN = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'


def run(*command: str | Path, code: int = 0, **environment: str) -> str:
    """What a command says; an AssertionError with it when it does not end with this code."""
    ended = subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200,
    )  # fmt: skip
    assert ended.returncode == code, f"exit {ended.returncode}\n{ended.stdout[-8000:]}"
    return ended.stdout


def pass_here(repository: Path, *chosen: str | Path) -> None:
    """Runs tests of this tree that need no more than this kernel has."""
    pytest = [repository / ".venv" / "bin" / "pytest", "-p", "no:cacheprovider", "-q", "-x"]
    print(run(*pytest, *chosen))


def test_doctor_chooses_bcc_and_says_why(agentwatch: Path) -> None:
    """BTF alone is not enough; and what is lost for it is said."""
    said = run(agentwatch, "doctor", "--programs")
    assert "bcc, for this kernel lacks bpf_loop and task storage" in said
    assert "decide nothing" in said
    assert "sys_exit" in said


def test_without_btf_and_headers_it_is_said_what_to_install(agentwatch: Path) -> None:
    """By doctor and by run, with the package's own name."""
    hidden = ["unshare", "--mount", "sh", "-c", HIDDEN, "sh"]
    for command in (["doctor"], ["run", "--", "true"]):
        said = run(*hidden, agentwatch, *command, code=1, BCC_KERNEL_SOURCE="/nonexistent")
        assert "this kernel lacks BTF" in said
        assert "headers of this kernel are missing" in said
        assert f"apt install linux-headers-{RELEASE}" in said


def test_rules_list_claims_nothing_of_the_kernel(agentwatch: Path) -> None:
    """Where it decides nothing, no rule prevents and none kills before the effect."""
    listed = json.loads(run(agentwatch, "rules", "list", "-o", "json"))
    assert {one["level"] for one in listed} == {"kills-after", "detects", "none"}


def test_the_probes_tell_what_the_core_loaders_tell(repository: Path) -> None:
    """The same tests of all that is told of opens, changes and mounts, by the same witnesses."""
    names = ("open", "exec", "connect", "changes", "names", "mounts", "compat", "family")
    files = [repository / "tests" / "kernel" / f"test_{name}.py" for name in names]
    left = [f"--deselect=tests/kernel/{test}" for test in OTHERWISE]
    pass_here(repository, "-m", "root", *left, *files)


def test_the_demonstration_passes(repository: Path) -> None:
    """The agent works, and none of its three bad ideas has an effect."""
    said = run(repository / "demo" / "run", "--watched")
    print(said)
    assert "demonstration passed" in said


def test_what_is_told_is_complete(repository: Path) -> None:
    """Every way there is to open, execute, connect and change is journaled as strace sees it."""
    file = repository / "tests" / "completeness" / "test_completeness.py"
    pass_here(repository, "-m", "completeness", "-k", "every_way", file)
