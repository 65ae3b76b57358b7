"""Which loader a kernel gets, and what is said where there is none for it."""

from __future__ import annotations

import platform
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from agentwatch.errors import KernelError, PermissionDenied
from agentwatch.kernel import loading, preflight
from agentwatch.policy.levels import Host

TYPES = b"\0bpf_loop\0bpf_task_storage_get\0"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One that lacks nothing: BTF, bcc, headers; below a directory."""
    (tmp_path / "vmlinux").write_bytes(TYPES)
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "libbcc.py").touch()
    (tmp_path / "headers" / "include").mkdir(parents=True)
    module = ModuleSpec("bcc", None, origin=str(tmp_path / "bcc" / "__init__.py"))
    monkeypatch.setattr(preflight, "BTF", tmp_path / "vmlinux")
    monkeypatch.setattr(preflight, "KHEADERS", tmp_path / "kheaders")
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: module)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path / "headers"))
    return tmp_path


@pytest.mark.parametrize(
    ("types", "lacks"),
    [
        (TYPES, ()),
        (b"\0bpf_loop\0", ("task storage",)),
        (b"\0bpf_loop_more\0bpf_task_storage_get_recur\0", ("bpf_loop", "task storage")),
        (None, ("BTF",)),
    ],
)
def test_the_loader_goes_by_what_the_kernel_has(
    machine: Path, types: bytes | None, lacks: tuple[str, ...]
) -> None:
    """Not by its version, and not by BTF alone: that is there before the helpers are."""
    if types is None:
        (machine / "vmlinux").unlink()
    else:
        (machine / "vmlinux").write_bytes(types)
    assert preflight.core_lacks() == lacks
    assert preflight.loader() == ("bcc" if lacks else "core")


def test_with_bcc_and_headers_nothing_is_lacking(machine: Path) -> None:
    """Headers are a tree of their own, or what the kernel carries with it."""
    assert preflight.bcc_lacks() is None
    (machine / "headers" / "include").rmdir()
    (machine / "kheaders").touch()
    assert preflight.bcc_lacks() is None


def test_missing_headers_are_named_as_a_package(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the kernel which runs."""
    (machine / "headers" / "include").rmdir()
    lacking = preflight.bcc_lacks()
    assert lacking is not None
    assert str(machine / "headers") in lacking.message
    assert lacking.remedy == f"apt install linux-headers-{platform.release()}"
    monkeypatch.delenv("BCC_KERNEL_SOURCE")
    monkeypatch.setattr(preflight, "MODULES", machine)
    (machine / platform.release() / "build" / "include").mkdir(parents=True)
    assert preflight.bcc_lacks() is None


def test_a_missing_bcc_is_named_as_a_package(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the distribution."""
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    lacking = preflight.bcc_lacks()
    assert lacking is not None
    assert "python3-bpfcc is not installed" in lacking.message
    assert lacking.remedy.startswith("apt install python3-bpfcc")


def test_the_other_package_called_bcc_is_told_from_it(machine: Path) -> None:
    """By its file: it has nothing to do with BPF."""
    (machine / "bcc" / "libbcc.py").unlink()
    lacking = preflight.bcc_lacks()
    assert lacking is not None
    assert str(machine / "bcc" / "__init__.py") in lacking.message
    assert "unrelated lattice library" in lacking.message
    assert lacking.remedy == "pip uninstall bcc; apt install python3-bpfcc"


@pytest.mark.parametrize("missing", ["", "bcc", "headers"])
def test_doctor_says_which_loader_and_what_it_lacks(
    machine: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """A kernel without BTF is no problem where bcc has what it needs."""
    (machine / "vmlinux").unlink()
    if missing == "bcc":
        (machine / "bcc" / "libbcc.py").unlink()
    elif missing:
        (machine / "headers" / "include").rmdir()
    found = {check.name: check for check in preflight.checks()}
    assert not found["btf"].needed
    assert found["loader"].ok == (not missing)
    assert found["loader"].needed
    assert "bcc, for this kernel lacks BTF" in found["loader"].says
    assert ("apt install" in found["loader"].remedy) == bool(missing)


def test_nothing_of_the_kernel_is_promised_with_bcc() -> None:
    """Its probes take no policy."""
    assert Host().decides
    assert not Host(loader="bcc").decides


def test_what_leaves_bcc_is_said_before_what_bcc_lacks(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads that headers are missing is to know what they are for."""
    monkeypatch.setattr("agentwatch.kernel.bcc_probes.need_root", lambda: None)
    (machine / "vmlinux").unlink()
    (machine / "headers" / "include").rmdir()
    with pytest.raises(KernelError) as told:
        loading.begin()
    why = "this kernel lacks BTF, which leaves the bcc loader, and the headers"
    assert told.value.message.startswith(why)
    with pytest.raises(KernelError) as told:
        loading.begin("bcc")
    assert told.value.message.startswith("the headers of this kernel are missing")


def test_loading_with_bcc_needs_root(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As loading with core does."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied):
        loading.begin("bcc")
