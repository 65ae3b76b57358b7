"""The bcc loader on any kernel, with headers that need not be its own.

Only what reads nothing of the kernel's own structs: what does is tested in a guest, by
tests/vm/test_bcc.py, on a kernel that this loader is for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.errors import ProgramRefused
from agentwatch.events import ProcessKey
from agentwatch.kernel.bcc_probes import BccLoading, BccProbes
from agentwatch.kernel.probes import HOOKS, Sizes

pytestmark = pytest.mark.root

SMALL = Sizes(activity=1 << 20, lifecycle=1 << 18)
PATIENCE = 20.0  # s that a record may take


@pytest.fixture(scope="module")
def headers(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Debian's for its own kernel, which need not be the one that runs."""
    names = [rf"linux-headers-6\.1\.0-[0-9]+-{kind}" for kind in ("amd64", "common")]
    unpack = [repository / "packaging" / "apt" / "unpack", *names]
    unpacked = subprocess.run(unpack, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    sources = Path(unpacked.stdout.strip()) / "usr" / "src"
    place = tmp_path_factory.mktemp("headers")
    leave = shutil.ignore_patterns("scripts", "tools")  # links that both have
    for kind in ("common", "amd64"):  # of this one, what is generated
        source = next(sources.glob(f"*-{kind}"))
        shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=leave)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCC_KERNEL_SOURCE", str(place))
        yield place


@pytest.fixture(scope="module")
def bcc(headers: Path) -> Iterator[BccProbes]:
    """Loaded and attached."""
    probes = BccProbes(loading=BccLoading(SMALL))
    yield probes
    probes.close()


def tag(probes: BccProbes, pid: int) -> ProcessKey:
    """As `adopt` does, for whoever cannot ask this kernel when the process began."""
    key = ProcessKey(pid, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    probes.begin(key)
    session = probes.session(key)
    assert session is not None
    probes._mirror.update(pid.to_bytes(4, "little"), abi.tag(key, session.since, key))
    return key


def test_every_program_is_taken_by_the_verifier(bcc: BccProbes) -> None:
    """And attached, each to its tracepoint."""
    assert bcc.attached() == set(HOOKS)
    assert set(bcc.stats()) == set(HOOKS)


def test_calls_of_a_tagged_process_are_told_as_they_were_asked(bcc: BccProbes, place: Path) -> None:
    """In order, with result, session and thread; those of nobody are not."""
    names = [place / f"{number}" for number in range(300)]
    reads = "read; for i in $(seq 0 299); do : < $1/$i; done 2> /dev/null"
    with subprocess.Popen(["bash", "-c", reads, "bash", place], stdin=subprocess.PIPE) as shell:
        session = tag(bcc, shell.pid)
        shell.communicate(b"go\n", timeout=PATIENCE)
    records = [bytes(record) for record in bcc.activity.records()]
    bcc.activity.release()
    unpacked = [abi.unpack(record) for record in records if abi.peek(record)[1] == abi.OPEN]
    found = [values for values, strings in unpacked if Path(os.fsdecode(strings["asked"])) in names]
    asked = [strings["asked"] for _, strings in unpacked]
    assert [os.fsencode(name) for name in names] == [
        a for a in asked if Path(os.fsdecode(a)) in names
    ]
    assert {values["result"] for values in found} == {-2}
    assert {abi.session_of(record) for record in records} == {session}
    assert {values["tgid"] for values in found} == {shell.pid}
    bcc.release(session)


def test_nothing_is_lost_without_being_counted(bcc: BccProbes, place: Path) -> None:
    """A ring that nobody reads fills up: what it did not take is counted, and of the session."""
    reads = "read; for i in $(seq 0 20000); do : < $1/$i; done 2> /dev/null"
    before = bcc.counters()
    with subprocess.Popen(["bash", "-c", reads, "bash", place], stdin=subprocess.PIPE) as shell:
        session = tag(bcc, shell.pid)
        shell.communicate(b"go\n", timeout=PATIENCE)
    kept = sum(abi.peek(record)[1] == abi.OPEN for record in bcc.activity.records())
    bcc.activity.release()
    now, told = bcc.counters(), bcc.session(session)
    lost = now.lost[abi.OPEN] - before.lost[abi.OPEN]
    assert told is not None
    assert (kept, lost) == (now.emitted[abi.OPEN] - before.emitted[abi.OPEN], told.lost)
    assert lost > 0
    assert kept + lost > 20000
    bcc.release(session)


def test_a_failed_compile_is_told_in_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first error in the message, all of them before it."""
    (tmp_path / "include").mkdir()
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    loading = BccLoading(SMALL)
    with pytest.raises(
        ProgramRefused, match="bcc cannot compile the probes for this kernel"
    ) as told:
        loading.loaded()
    loading.close()
    assert "file not found" in told.value.message
    assert "#include" in told.value.log


def test_headers_of_another_agentwatch_are_refused(
    headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records would be read as what they are not."""
    monkeypatch.setattr(abi, "ABI", abi.ABI + 1)
    loading = BccLoading(SMALL)
    with pytest.raises(ProgramRefused, match="the headers of another one"):
        loading.loaded()
    loading.close()
