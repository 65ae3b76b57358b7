"""Probes that do not fit are refused with the reason, and loaded ones leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.errors import AgentwatchError, KernelError, PermissionDenied, ProgramRefused
from agentwatch.kernel import probes as loader
from agentwatch.kernel.probes import HOOKS, Probes, Sizes
from tests.kernel.recording import Recorder, tell, witness

pytestmark = pytest.mark.root

BROKEN = """
SEC("tp_btf/sched_process_fork")
int BPF_PROG(reads_what_it_may_not, struct task_struct *parent, struct task_struct *child)
{
	return *(volatile int *)(long)child->pid;
}
"""


@pytest.fixture
def sources(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of bpf/ that may be spoilt; `build` puts it in the place of the real object."""
    shutil.copytree(repository / "bpf", tmp_path / "bpf")
    shutil.copy(repository / "Makefile", tmp_path)
    monkeypatch.setattr(loader, "OBJECT", tmp_path / "agentwatch" / "data" / "agentwatch.bpf.o")
    return tmp_path / "bpf"


def build(sources: Path) -> None:
    """By the same Makefile, so with the same flags; the packages it needs are there."""
    make = ["make", "--silent", "--old-file=packages", "agentwatch/data/agentwatch.bpf.o"]
    subprocess.run(make, cwd=sources.parent, check=True, stdout=subprocess.DEVNULL, timeout=120)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_probes_of_another_ABI_are_refused(sources: Path) -> None:
    """Records that would be read wrongly are never read: both numbers are in the message."""
    edit(sources / "agentwatch.h", f"#define AW_ABI {abi.ABI}\n", "#define AW_ABI 4711\n")
    build(sources)
    with pytest.raises(KernelError, match=f"ABI 4711, this agentwatch {abi.ABI}"):
        Probes()


def test_a_program_the_verifier_refuses_is_told_with_its_log(sources: Path) -> None:
    """ProgramRefused says which program and why, and carries the verifier's own words."""
    with (sources / "agentwatch.bpf.c").open("a") as file:
        file.write(BROKEN)
    build(sources)
    with pytest.raises(ProgramRefused) as refused:
        Probes()
    error = refused.value
    assert "reads_what_it_may_not" in error.log
    assert "invalid mem access 'scalar'" in error.log
    assert "doctor" in error.remedy
    assert len(str(error).splitlines()) == 2, str(error)


def test_a_hook_the_kernel_does_not_have_is_told(sources: Path) -> None:
    """A tracepoint of another kernel is a refusal with a name, not a crash."""
    edit(sources / "lifecycle.bpf.c", "tp_btf/sched_process_exit", "tp_btf/no_such_event")
    build(sources)
    with pytest.raises(ProgramRefused) as refused:
        Probes()
    assert "no_such_event" in refused.value.log


def test_an_object_that_was_not_built_is_told(sources: Path) -> None:
    """The remedy is to build it."""
    with pytest.raises(KernelError) as refused:
        Probes()
    assert refused.value.remedy == "make"


def test_an_object_that_is_none_is_told(sources: Path) -> None:
    """A file that is no object is refused with what libbpf says of it."""
    loader.OBJECT.parent.mkdir(parents=True)
    loader.OBJECT.write_bytes(b"not an object")
    with pytest.raises(ProgramRefused, match=loader.OBJECT.name):
        Probes()


def test_without_root_nothing_is_loaded() -> None:
    """PermissionDenied, and its exit code, before anything is tried."""

    def act() -> None:
        os.setresuid(65534, 65534, 65534)
        try:
            Probes()
        except AgentwatchError as error:
            tell([type(error).__name__, error.exit_code])

    with witness(act) as child:
        child.go()
        child.finish()
        assert child.told == ([PermissionDenied.__name__, 4],)


def descriptors() -> list[str]:
    """The numbers that are open here; the listing's own is the last."""
    return sorted(os.listdir("/proc/self/fd"))


def test_closing_leaves_nothing_open_and_nothing_attached() -> None:
    """No descriptor is left, a second close does nothing, and the next set works."""
    Probes(sizes=Sizes(activity=4096, lifecycle=4096)).close()
    before = descriptors()
    for _ in range(3):
        loaded = Probes(sizes=Sizes(activity=4096, lifecycle=4096))
        assert loaded.attached() == frozenset(HOOKS)
        loaded.close()
        loaded.close()
    assert descriptors() == before


def test_two_sets_of_probes_do_not_see_each_others_sessions() -> None:
    """Each has maps of its own: a process tagged by one is nobody to the other."""
    one, other = Probes(), Probes()
    try:
        quiet = Recorder(other)
        seen = Recorder(one).record(lambda: os.close(os.open("/dev/null", os.O_RDONLY)))
        assert len(seen.opens) == 1
        assert quiet.quiet() == []
    finally:
        one.close()
        other.close()
