"""What `doctor` finds: by looking, one line each, and a remedy with every problem."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentwatch.cli.doctor import doctor
from agentwatch.errors import KernelError, ProgramRefused
from agentwatch.kernel import libbpf, preflight

NAMES = ["kernel", "btf", "loader", "capabilities", "pid namespace", "libbpf", "lsm list"]
NAMES += ["lockdown", "cgroup2", "tracefs", "bpffs"]


def check(name: str) -> preflight.Check:
    return next(found for found in preflight.checks() if found.name == name)


def test_everything_is_looked_at_and_every_problem_has_a_remedy() -> None:
    """On this machine, whatever it has."""
    found = preflight.checks()
    assert [one.name for one in found] == NAMES
    assert all(one.says for one in found)
    assert all(one.remedy for one in found if not one.ok)
    assert "\n" not in "".join(one.says + one.remedy for one in found)


def test_missing_btf_is_said_with_the_kernels_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without, it takes the other loader."""
    monkeypatch.setattr(preflight, "BTF", tmp_path / "vmlinux")
    found = check("btf")
    assert (found.ok, found.needed) == (False, False)
    assert "CONFIG_DEBUG_INFO_BTF=y" in found.remedy
    (tmp_path / "vmlinux").write_bytes(bytes(4096))
    assert check("btf").ok


@pytest.mark.parametrize(
    ("active", "ok"),
    [("lockdown,capability,bpf\n", True), ("lockdown,yama", False), ("capability,bpfdoor", False)],
)
def test_the_lsm_list_names_the_boot_parameter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, active: str, ok: bool
) -> None:
    """Without bpf in it rules kill instead of preventing: not needed, but said exactly."""
    (tmp_path / "lsm").write_text(active)
    monkeypatch.setattr(preflight, "LSM", tmp_path / "lsm")
    found = check("lsm list")
    assert (found.ok, found.needed) == (ok, False)
    assert ok or f"lsm={active.strip()},bpf" in found.remedy


@pytest.mark.parametrize(
    ("said", "ok"),
    [
        ("[none] integrity confidentiality\n", True),
        ("none [integrity] confidentiality\n", True),
        ("none integrity [confidentiality]\n", False),
        (None, True),
    ],
)
def test_a_kernel_that_lets_nobody_read_its_memory_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str | None, ok: bool
) -> None:
    """Lockdown's second level refuses every probe; its first does not."""
    if said is not None:
        (tmp_path / "lockdown").write_text(said)
    monkeypatch.setattr(preflight, "LOCKDOWN", tmp_path / "lockdown")
    found = check("lockdown")
    assert (found.ok, found.needed) == (ok, True)
    assert ok or "boot with lockdown=integrity" in found.remedy


def test_an_lsm_list_that_cannot_be_read_is_mounted_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """securityfs is not mounted everywhere."""
    monkeypatch.setattr(preflight, "LSM", tmp_path / "none")
    assert "mount -t securityfs" in check("lsm list").remedy


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (0, "CAP_BPF, CAP_PERFMON, CAP_KILL, CAP_SYS_PTRACE"),
        (1 << 39 | 1 << 5 | 1 << 19, "CAP_PERFMON"),
    ],
)
def test_missing_capabilities_are_named(
    monkeypatch: pytest.MonkeyPatch, held: int, missing: str
) -> None:
    """All of them in one line."""
    monkeypatch.setattr(preflight, "_status", lambda name: f"{held:016x}")
    found = check("capabilities")
    assert (found.ok, found.says) == (False, f"missing {missing}")
    assert "sudo" in found.remedy


def test_held_capabilities_are_those_of_this_process() -> None:
    """As /proc says, bit by bit."""
    held = int(preflight._status("CapEff"), 16)
    wanted = sum(1 << bit for bit in preflight._CAPABILITIES)
    assert check("capabilities").ok == (held & wanted == wanted)


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """libbpf is the distribution's."""
    monkeypatch.setattr(libbpf, "_library", None)
    monkeypatch.setattr(libbpf, "SONAME", "libnot-there.so.1")
    found = check("libbpf")
    assert (found.ok, found.remedy) == (False, "apt install libbpf1")


def test_a_refusal_is_explained_by_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The likeliest reason and its remedy in front; the kernel's own log is kept."""
    everything = [preflight.Check("btf", False, "gone", "boot another", needed=True)]
    monkeypatch.setattr(preflight, "checks", lambda: everything)
    found = preflight.explain(ProgramRefused("refused", "look", "the log"))
    assert (found.message, found.remedy, found.log) == (
        "refused; btf: gone",
        "boot another",
        "the log",
    )


def test_a_refusal_nobody_can_explain_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only nice to have is no reason."""
    monkeypatch.setattr(preflight, "checks", lambda: [preflight.Check("lsm list", False, "x", "y")])
    error = ProgramRefused("refused", "look", "the log")
    assert preflight.explain(error) is error


@pytest.mark.parametrize(
    ("needed", "ok", "code", "word"),
    [(True, True, 0, "ok"), (False, False, 0, "without"), (True, False, 1, "MISSING")],
)
def test_doctor_fails_only_for_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, needed: bool, ok: bool, code: int, word: str
) -> None:
    """One line each, the remedy under it; the same as JSON."""
    found = preflight.Check("thing", ok, "says this", "do that", needed)
    monkeypatch.setattr(preflight, "checks", lambda: [found])
    result = CliRunner().invoke(doctor)
    assert result.exit_code == code
    assert result.output.split()[:4] == [word, "thing", "says", "this"]
    assert ("try: do that" in result.output) == (not ok)
    parsed = json.loads(CliRunner().invoke(doctor, ["-o", "json"]).output)
    assert parsed == [
        {"name": "thing", "ok": ok, "says": "says this", "remedy": "do that", "needed": needed}
    ]


def test_programs_that_cannot_be_loaded_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """--programs says what refused them; the error does not escape."""

    def refuse() -> None:
        raise KernelError("no room", "make some")

    monkeypatch.setattr(preflight, "checks", list)
    monkeypatch.setattr("agentwatch.kernel.loading.begin", refuse)
    result = CliRunner().invoke(doctor, ["--programs"])
    assert result.exit_code == 1
    assert "MISSING  programs       no room" in result.output
    assert "try: make some" in result.output


def test_this_kernel_is_named_as_it_names_itself() -> None:
    """For bug reports."""
    assert os.uname().release in check("kernel").says
