"""Any version reads any journal: records of made-up older and newer layouts."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from agentwatch import abi, decoding
from agentwatch.errors import JournalError, RecordError
from agentwatch.events import Event, Open, ProcessKey
from agentwatch.sinks.fieldtable import FieldTable, split
from agentwatch.sinks.frames import Verdict
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

ABI_2 = Path(__file__).parent / "journals" / "abi-2"
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}


def tables(changed: dict[int, dict[str, Any]] | None = None) -> dict[int, dict[str, Any]]:
    return {k: layout.table() for k, layout in abi.LAYOUTS.items()} | (changed or {})


def layout(fields: list[tuple[str, str]], strings: list[str]) -> dict[str, Any]:
    """A table with these fields one after the other."""
    rows, offset = [], 0
    for name, type_ in fields:
        rows.append([name, offset, type_])
        offset += struct.calcsize(CODES[type_]) if type_ in CODES else int(type_[5:])
    return {"size": offset, "fields": rows, "strings": strings}


def build(table: dict[str, Any], kind: int, values: dict[str, Any], tail: bytes) -> memoryview:
    """A record of that layout."""
    record = bytearray(table["size"]) + tail
    for name, offset, type_ in table["fields"]:
        value = values.get(name, len(record) if name == "length" else 0)
        value = kind if name == "kind" else value
        code = CODES.get(type_) or f"{int(type_[5:])}s"
        struct.pack_into("<" + code, record, offset, value if type_ in CODES else b"")
    return memoryview(bytes(record))


HEADER = [(f.name, f.type) for f in abi.HEADER.fields]


def test_records_of_this_version_are_decoded_as_they_are() -> None:
    """With today's own table an event equals what decoding.decode gives."""
    record = memoryview(Records().open("/a"))
    assert FieldTable(tables()).event(record, decoding.plain_name) == decoding.decode(record)


def test_a_newer_layout_is_read_by_names() -> None:
    """Fields, strings and field types that today's version does not know are left out."""
    fields = [*HEADER, ("mood", "s64"), ("digest", "bytes32"), ("open_flags", "u32")]
    fields += [("result", "s32"), ("path_dev", "u32"), ("path_len", "u16"), ("asked_len", "u16")]
    fields += [("label_len", "u16"), ("pad", "bytes6")]
    table = layout(fields, ["path", "label", "asked"])
    values = {"time": 9, "tgid": 7, "start": 5, "result": 4, "path_len": 2, "label_len": 3}
    values |= {"asked_len": 1, "flags": abi.FLAG_READS}
    record = build(table, abi.OPEN, values, b"/axyza")
    event = FieldTable(tables({abi.OPEN: table})).event(record, decoding.plain_name)
    assert isinstance(event, Open)
    assert (event.path, event.asked, event.result, event.reads) == ("/a", "a", 4, True)
    assert (event.time, event.process) == (9, ProcessKey(7, 5))


def test_an_older_layout_gets_defaults() -> None:
    """Fields and strings that it did not have yet are zero and empty."""
    younger = {"unresolved", "rule", "verdict"}
    older = [(name, type_) for name, type_ in HEADER if name not in younger]
    assert len(older) == len(HEADER) - len(younger)
    table = layout([*older, ("path_len", "u16"), ("pad", "bytes2")], ["path"])
    record = build(table, abi.OPEN, {"time": 9, "session_tgid": 7, "path_len": 2}, b"/a")
    event = FieldTable(tables({abi.OPEN: table})).event(record, decoding.plain_name)
    assert isinstance(event, Open)
    assert (event.path, event.asked, event.flags, event.unresolved) == ("/a", "", 0, frozenset())
    assert (event.session.pid, event.rule, event.verdict) == (7, 0, 0)


def test_a_journal_of_ABI_2_is_read_as_it_was_written() -> None:
    """Written by the version before the kernel judged: every kind, and nothing is judged in it."""
    child = ProcessKey(4343, 1_500_000_000)
    make = Records()
    batch = [
        make.exec(
            "/usr/bin/node", ("node", "claude"), parent=ProcessKey(9, 9), asked="/usr/bin/claude"
        ),
        make.fork(child),
        make.exec("/bin/sh", ("sh", "-c", "cat key"), process=child, parent=AGENT),
        make.open("/home/dev/key", process=child, asked="key"),
        make.open("/home/dev/new", created=True),
        make.open("/gone", result=-2),
        make.connect("192.0.2.1"),
        make.connect("2001:db8::1", 53, protocol=17),
        make.connect("/run/docker.sock"),
        make.connect("192.0.2.1", syn=True),
        make.exit(9, child),
    ]
    (report,) = verify(ABI_2)
    assert (report.records, report.problems) == (len(batch), ())
    entries = list(read(ABI_2))
    events = [entry.event for entry in entries if entry.event is not None]
    assert events == [decoding.decode(memoryview(record)) for record in batch]
    (verdict,) = [entry.frame for entry in entries if isinstance(entry.frame, Verdict)]
    assert (verdict.rule, verdict.action, verdict.process) == ("secrets.key", "kill", child)


def test_every_field_of_every_kind_is_read_through_a_foreign_table() -> None:
    """A layout that only has its fields moved gives the same events."""
    make = Records()
    batch = [make.exec("/bin/sh", ("sh", "-c")), make.open("/a"), make.connect("192.0.2.1")]
    batch += [make.fork(ProcessKey(3, 4)), make.exit(9), make.connect("::1", syn=True)]
    for record in batch:
        _, kind, _ = abi.peek(record)
        moved = abi.LAYOUTS[kind].table()
        moved = moved | {"fields": [*moved["fields"], ["extra", moved["size"], "u64"]]}
        moved["size"] += 8
        size = abi.LAYOUTS[kind].size
        longer = bytearray(record[:size] + bytes(8) + record[size:])
        struct.pack_into("<I", longer, 0, len(longer))
        event: Event | None = FieldTable(tables({kind: moved})).event(
            memoryview(bytes(longer)), decoding.plain_name
        )
        assert event == decoding.decode(record)


def test_a_kind_that_only_a_newer_version_knows_is_passed_over() -> None:
    """It is in the table, so it is no damage; without it, it is."""
    record = memoryview(struct.pack("<IHH", 16, 15, 0) + bytes(8))
    assert FieldTable(tables({15: layout(HEADER, [])})).event(record, decoding.plain_name) is None
    with pytest.raises(RecordError, match="unknown kind"):
        FieldTable(tables()).event(record, decoding.plain_name)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"size": 8, "fields": [["a"]], "strings": []},
        {"size": 8, "fields": [["a", 0, "bytesX"]], "strings": []},
        {"size": 8, "fields": 5, "strings": []},
    ],
)
def test_a_table_that_makes_no_sense_is_an_error_of_ours(table: dict[str, Any]) -> None:
    """A damaged header raises JournalError and nothing else."""
    with pytest.raises(JournalError):
        FieldTable(tables({abi.OPEN: table}))


def test_a_short_record_of_a_foreign_layout_is_an_error_of_ours() -> None:
    """Lengths are checked before anything is read."""
    table = layout([*HEADER, ("path_len", "u16"), ("pad", "bytes6")], ["path"])
    record = build(table, abi.OPEN, {"path_len": 900}, b"/a")
    for bad in (record, record[:20]):
        with pytest.raises(RecordError):
            FieldTable(tables({abi.OPEN: table})).event(bad, decoding.plain_name)


def test_a_batch_with_a_wrong_length_is_an_error_of_ours() -> None:
    """Records are split only where their lengths add up."""
    make = Records()
    good = make.open("/a") + make.exit()
    assert len(list(split(memoryview(good)))) == 2
    for bad in (good[:-1], good + b"\0\0\0", bytes(4) + good):
        with pytest.raises(RecordError):
            list(split(memoryview(bad)))
