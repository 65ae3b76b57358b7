"""What `make vm` boots, and with which tests."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.vm.boots import BCC, BOOTS, REPOSITORY, Boot, asked, command


def test_every_kernel_boots_with_its_own_preemption_and_with_full() -> None:
    """A row of tests/vm/kernels that nothing boots would prove nothing."""
    rows = (REPOSITORY / "tests" / "vm" / "kernels").read_text().splitlines()
    kernels = {row.split()[0] for row in rows if not row.startswith("#")}
    wanted = {(kernel, preempt) for kernel in kernels - BCC for preempt in ("", "full")}
    wanted |= {(kernel, "") for kernel in BCC}  # which cannot be told at boot how to preempt
    assert {(boot.kernel, boot.preempt) for boot in BOOTS if boot.bpf} == wanted
    assert any(not boot.bpf for boot in BOOTS)


def test_what_runs_once_runs_on_one_boot_of_each_kernel() -> None:
    """Neither twice nor never."""
    full = Counter(boot.kernel for boot in BOOTS if boot.bpf and not boot.again)
    assert full == dict.fromkeys({boot.kernel for boot in BOOTS}, 1)


@pytest.mark.parametrize(
    ("boot", "name", "marks"),
    [
        (Boot("6.1"), "6.1", "(vm or lsm)"),
        (Boot("7.2", "full", again=True), "7.2-full", "(vm or lsm) and not once"),
        (Boot("5.10"), "5.10", "bcc"),
        (Boot("6.12", lsm="yama,bpf"), "6.12", "(vm or lsm)"),
        (Boot("6.12", lsm="lockdown,yama"), "6.12-without-bpf", "without_lsm"),
    ],
)
def test_a_boot_runs_the_tests_of_its_kind(boot: Boot, name: str, marks: str) -> None:
    """Those that need BPF LSM where it is, those that need a kernel without it where it is not."""
    assert (boot.name, boot.marks) == (name, marks)


def test_the_guest_reads_only_the_files_with_tests_for_it() -> None:
    """Collecting all of tests/ would take an emulated machine a minute."""
    line = command(Boot("6.1"), ["-k", "a or b"])
    assert "-k 'a or b'" in line
    assert "tests/vm/test_guest.py" in line
    assert "tests/rules/" not in line


def test_a_kernel_asks_for_one_boot_and_settings_go_with_a_kernel() -> None:
    """`make vm` is all of them."""
    assert asked({"KERNEL": "6.12", "PREEMPT": "full"}) == (Boot("6.12", "full"),)
    assert asked({"KERNEL": "5.10"}) == (Boot("5.10", seconds=2400),)
    assert asked({"KERNEL": ""}) == BOOTS
    with pytest.raises(SystemExit, match="go with KERNEL"):
        asked({"PREEMPT": "full"})
