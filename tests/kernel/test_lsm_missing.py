"""A hook that is missing, refused or lost: what rests on it is worth less, and nothing else is."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.kernel import lsm
from agentwatch.kernel import probes as loader
from agentwatch.kernel.probes import Probes
from agentwatch.policy import levels
from agentwatch.rules.model import Condition, Match, Place, Rule
from tests.kernel.held import held
from tests.kernel.law import Law, reads
from tests.kernel.recording import tell
from tests.kernel.test_lsm import failure

pytestmark = pytest.mark.lsm

READS_NOTHING = struct.pack("<BBhi", 0xBF, 0x90, 0, 0)  # r0 = r9, which nobody has set


def spoil(file: Path, *sections: str) -> None:
    """Has programs of an object begin with what no verifier takes. ELF, 64 bits, little-endian."""
    elf = bytearray(file.read_bytes())
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + size * n) for n in range(count)]
    strings = rows[names][4]
    for name, _, _, _, offset, _ in rows:
        found = elf[strings + name : elf.index(b"\0", strings + name)].decode()
        if found in sections:
            elf[offset : offset + 8] = READS_NOTHING
    file.write_bytes(elf)


@contextmanager
def law_of(place: Path) -> Iterator[Law]:
    """Rules in force in probes of its own."""
    probes = Probes()
    try:
        yield Law(probes, place)
    finally:
        probes.close()


def denies(place: Path, kind: str, op: str = "") -> tuple[str, str, str]:
    more = f", op: {op}" if op else ""
    return kind, f'{{path: "{place}/denied"{more}}}', "deny"


def level(kind: str, probes: Probes, op: str = "") -> levels.Level:
    conditions = (Condition("op", (op,)),) * bool(op)
    rule = Rule("r", (kind,), Match(conditions), "deny", Place("", 1, 1), without_hook="kill")
    return levels.level(rule, levels.Host(probes.hooks), engine="")


def test_a_hook_that_this_kernel_lacks_costs_the_rules_that_need_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion is not refused any more, and its level says why; reading and chmod are."""
    there = lsm.programs()
    monkeypatch.setattr(lsm, "programs", lambda: there - {"lsm_path_unlink"})
    denied = place / "denied"
    denied.write_text("x")
    with law_of(place) as law:
        assert law.probes.missing == {"lsm_path_unlink": "this kernel has no such hook"}
        assert level("change", law.probes, "delete").name == "kills-after"
        assert "lacks lsm_path_unlink" in level("change", law.probes, "delete").reason
        assert level("change", law.probes, "chmod").name == "prevents"
        assert level("read", law.probes).name == "prevents"
        law.rule(denies(place, "change", "delete"), denies(place, "change", "chmod"))

        def act() -> None:
            tell([failure(lambda: denied.chmod(0o777)), failure(denied.unlink)])

        assert law.record(act).told == (["EPERM", ""],)
        assert not denied.exists()


def test_a_program_that_the_verifier_refuses_is_left_out_and_its_words_are_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One by one: the others are attached, and refuse what they refuse."""
    spoilt = Path(shutil.copy(loader.OBJECT, tmp_path))
    spoil(spoilt, "lsm/path_rmdir", "lsm/path_chmod")
    monkeypatch.setattr(loader, "OBJECT", spoilt)
    (place / "denied").mkdir()
    with law_of(place) as law:
        assert law.probes.missing.keys() == {"lsm_path_rmdir", "lsm_path_chmod"}
        assert all("R9 !read_ok" in why for why in law.probes.missing.values())
        assert law.probes.hooks == lsm.programs() - law.probes.missing.keys()
        assert set(law.probes.missing) <= set(law.probes.wanted())
        assert not law.probes.attached() & law.probes.missing.keys()
        law.rule(denies(place, "change"))

        def act() -> None:
            tell(failure(lambda: (place / "denied").rename(place / "other")))
            tell(failure(lambda: (place / "denied").rmdir()))

        assert law.record(act).told == ("EPERM", "")


def test_a_link_that_is_lost_is_made_again(place: Path) -> None:
    """Meanwhile who reads is killed at the end of the call; afterwards it is refused again."""
    key = place / "denied"
    key.write_text("secret")
    with law_of(place) as law:
        law.rule(denies(place, "read"))

        def act() -> None:
            tell(reads(key))

        def refused() -> bool:
            seen = law.record(act)
            (one,) = [e for e in seen.opens if e.path == str(key)]
            assert one.verdict in (abi.VERDICT_DENY, abi.VERDICT_KILL)
            return one.refused

        assert refused()
        os.close(held(os.getpid(), "lsm_file_open").link)
        assert "lsm_file_open" not in law.probes.attached()
        assert not refused()
        assert law.probes.attach_again() == {"lsm_file_open"}
        assert law.probes.attach_again() == frozenset()
        assert "lsm_file_open" in law.probes.attached()
        assert refused()
