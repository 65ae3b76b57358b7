"""Journals somebody made up, every frame of them rightly chained: what is sound is still read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgpack
import pytest
from click.testing import CliRunner, Result

from agentwatch import abi
from agentwatch.cli.events import events
from agentwatch.cli.journal import journal
from agentwatch.events import Exit, Open
from agentwatch.sinks import chain, frames, segments
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from agentwatch.testing import AGENT, Records

Payload = dict[str, Any]
Change = Callable[[Payload], None]
VERDICT = frames.NUMBERS[frames.Verdict]
START = frames.NUMBERS[frames.Start]
MOUNTS = frames.NUMBERS[frames.MountsChanged]
EXIT, OPEN = abi.LAYOUTS[abi.EXIT].table(), abi.LAYOUTS[abi.OPEN].table()


@click.group()
def cli() -> None:
    """As the package's own command line collects them."""


cli.add_command(events)
cli.add_command(journal)


def forged(directory: Path, *inside: tuple[int, bytes], header: Change | None = None) -> Path:
    """A journal of one chain: its header changed, these frames (type, payload), a sound open."""
    writer = Journal.open(directory / "j", boot_id="boot", host="box", name="run-a")
    writer.records(Records().open("/sound"), 1)
    writer.close()
    path = directory / "j" / "run-a" / "00000001.journal"
    found = [f for f in chain.walk(memoryview(path.read_bytes())) if isinstance(f, chain.RawFrame)]
    parts = [(frame.type, bytes(frame.payload)) for frame in found]
    if header is not None:
        values = msgpack.unpackb(parts[0][1], strict_map_key=False)
        header(values)
        parts[0] = (parts[0][0], msgpack.packb(values))
    head, written = chain.ROOT, b""
    for sequence, (type_, payload) in enumerate([parts[0], *inside, *parts[1:]], 1):
        moment = 2_000_000_000 + sequence
        frame, head = chain.encode(sequence, type_, moment, payload, head)
        written += frame
    path.write_bytes(written)
    return directory / "j"


def packed(**values: object) -> bytes:
    return msgpack.packb(values)  # type: ignore[no-any-return]


def run(directory: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, [*arguments, "--journal", str(directory)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_damage_is_told_and_the_rest_read(directory: Path) -> None:
    reader = read(directory)
    paths = [entry.event.path for entry in reader if isinstance(entry.event, Open)]
    assert "/sound" in paths
    assert {problem.what for problem in reader.problems} == {"tampered"}
    for output in ("text", "json"):
        result = run(directory, "events", "-o", output)
        assert (result.exit_code, "/sound" in result.stdout) == (1, True)
    assert run(directory, "journal", "verify").exit_code in (0, 1)


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


def named(name: str, value: bytes) -> bytes:
    return b"\x81" + msgpack.packb(name) + value


FRAMES = [
    (VERDICT, packed(process=[["x"], {}])),
    (VERDICT, packed(process=["4242", "1"])),
    (VERDICT, packed(session=[1])),
    (VERDICT, packed(event=[[], [], []])),
    (VERDICT, packed(tags=[1, None])),
    (VERDICT, packed(rule=5)),
    (VERDICT, packed(rule=msgpack.Timestamp(1, 2))),
    (VERDICT, packed(rule=msgpack.ExtType(7, b"x"))),
    (VERDICT, b"\x81\x91\x01\x02"),
    (VERDICT, named("rule", b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
    (VERDICT, named("tags", deep(400))),
    (VERDICT, named("rule", deep(400))),
    (VERDICT, named("tags", deep(100_000))),
    (VERDICT, named("rule", b"\xdb\xff\xff\xff\xff")),
    (VERDICT, named("tags", b"\xdd\xff\xff\xff\xff")),
    (VERDICT, b""),
    (VERDICT, b"\xc1"),
    (VERDICT, packed()[:0] + msgpack.packb([1])),
    (START, packed(command=["ok", 5])),
    (START, packed(command="sh")),
    (START, packed(command=[["sh"]])),
    (frames.NUMBERS[frames.Session], packed(session=[{}, 1], agent="x")),
    (frames.RECORDS, packed(count="1", data=b"")),
    (frames.RECORDS, packed(count=1, data="text")),
    (frames.RECORDS, packed(count=1, data=b"\x00" * 40)),
    (frames.RECORDS, packed(count=1, data=b"\xff" * 40)),
    (frames.RECORDS, packed(count=1, data=b"abc")),
    (MOUNTS, packed(rows=[["/", "x"]])),
    (MOUNTS, packed(rows=[[5, [["root", "/mnt"]]]])),
    (MOUNTS, packed(rows=[[[1], [[b"", b"/"]]]])),
    (MOUNTS, packed(rows=[[5, 5]])),
    (MOUNTS, packed(rows=[5])),
    (MOUNTS, packed(rows=[[0, [[b""]]]])),
]


@pytest.mark.parametrize("frame", FRAMES, ids=[f"{t}-{p[:24].hex()}-{len(p)}" for t, p in FRAMES])
def test_a_frame_of_wrong_types_is_one_problem(tmp_path: Path, frame: tuple[int, bytes]) -> None:
    """Every command says so, shows everything else, and prints no traceback."""
    assert_damage_is_told_and_the_rest_read(forged(tmp_path, frame))


def table(**changed: object) -> Payload:
    return {**OPEN, **changed}


def field(index: int, *row: object) -> Payload:
    rows = [list(one) for one in OPEN["fields"]]
    rows[index] = list(row)
    return table(fields=rows)


TABLES: list[object] = [
    "text",
    5,
    None,
    [],
    {},
    table(size="64"),
    table(size=-1),
    table(size=1 << 40),
    table(size=None),
    table(fields=5),
    table(fields=[5]),
    table(fields=[[]]),
    table(strings=5),
    table(strings=[5]),
    table(strings=[["path"]]),
    field(0, ["length"], 0, "u32"),
    field(0, 5, 0, "u32"),
    field(0, "length", "0", "u32"),
    field(0, "length", -4, "u32"),
    field(0, "length", 0, 5),
    field(0, "length", 0, "bytes"),
    field(0, "length", 0, "bytes-4"),
    field(0, "length", 0, "bytes99999999999999999999"),
    field(13, OPEN["fields"][13][0], OPEN["fields"][13][1], "bytes4"),
    field(-2, OPEN["fields"][-2][0], OPEN["fields"][-2][1], "bytes2"),
    field(-5, OPEN["fields"][-5][0], OPEN["fields"][-5][1], "u64"),
]


@pytest.mark.parametrize("made_up", TABLES, ids=[str(n) for n in range(len(TABLES))])
def test_a_field_table_that_is_none_is_told(tmp_path: Path, made_up: object) -> None:
    """A hostile layout raises nothing that a command lets through."""

    def change(header: Payload) -> None:
        header["tables"][abi.OPEN] = made_up

    directory = forged(tmp_path, header=change)
    reader = read(directory)
    list(reader)
    assert {problem.what for problem in reader.problems} == {"tampered"}
    for arguments in (("events",), ("events", "-o", "json"), ("journal", "export")):
        assert run(directory, *arguments).exit_code == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(tables=[1]),
        lambda header: header.update(tables={"x": {}, 4: 5}),
        lambda header: header.update(mounts=[["0", "1"]]),
        lambda header: header.update(mounts=[[0, [["", "/mnt"]]]]),
        lambda header: header.update(wall=1 << 63, boottime="x"),
        lambda header: header.update(segment="1"),
        lambda header: header.update(host=b"x"),
    ],
)
def test_a_header_of_wrong_types_is_told(tmp_path: Path, change: Change) -> None:
    """The records behind it are read as far as they can be without it."""
    assert_damage_is_told_and_the_rest_read(forged(tmp_path, header=change))


@pytest.mark.parametrize("wall", [-(1 << 63), (1 << 64) - 1])
def test_a_clock_at_the_end_of_its_numbers_is_shown(tmp_path: Path, wall: int) -> None:
    """A time is whatever its writer says; a line is printed all the same."""
    directory = forged(tmp_path, header=lambda header: header.update(wall=wall))
    assert "/sound" in run(directory, "events").stdout


@pytest.mark.parametrize(
    ("status", "code"),
    [(0x0100, 1), (0xFF00, 255), (9, 137), (0x8B, 139), (0x137F, 255), (0x7F, 255), (-1, 255)],
)
def test_every_status_has_a_code(status: int, code: int) -> None:
    """Those of wait(2) as a shell shows them; stopped and made-up ones are 255."""
    assert Exit(time=1, process=AGENT, session=AGENT, status=status).code == code


@pytest.mark.parametrize("status", [0x137F, 0x7F, -1])
def test_a_made_up_exit_is_shown(tmp_path: Path, status: int) -> None:
    """Text and JSON both."""
    data = Records().exit(status)
    directory = forged(tmp_path, (frames.RECORDS, packed(count=1, data=data)))
    assert "status 255" in run(directory, "events").stdout
    assert '"exit_code":255' in run(directory, "events", "-o", "json").stdout


def test_no_string_of_a_frame_reaches_the_terminal_raw(tmp_path: Path) -> None:
    """Escape codes in any field of any frame are shown as text."""
    evil = "\x1b]0;x\x07\n\u202e"
    made = []
    for number, kind in frames.TYPES.items():
        if number in (frames.HEADER, frames.RECORDS):
            continue
        values = {}
        for name in kind.__dataclass_fields__:
            default = getattr(kind(), name)
            if isinstance(default, str):
                values[name] = evil
            elif name in ("command", "tags", "files", "connections"):
                values[name] = [evil]
        made.append((number, packed(**values)))
    text = run(forged(tmp_path, *made), "events").stdout
    assert "\\x1b" in text
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert len(text.splitlines()) == len(made) + 2 - 1  # all, the sound ones, no MountsChanged


def segment_of(directory: Path, number: int = 2) -> Path:
    return directory / "run-a" / f"{number:08d}.journal"


def assert_only_the_second_segment_is_refused(directory: Path, message: str) -> None:
    begin = time.monotonic()
    reader = read(directory)
    paths = [entry.event.path for entry in reader if isinstance(entry.event, Open)]
    assert paths == ["/sound"]
    told = [(problem.what, problem.message) for problem in reader.problems]
    assert len(told) == 1
    assert told[0][0] == "unreadable"
    assert message in told[0][1]
    assert [p.what for p in verify(directory)[0].problems] == ["unreadable"]
    assert time.monotonic() - begin < 5


def test_a_fifo_among_the_segments_is_not_waited_for(tmp_path: Path) -> None:
    """Opening one blocks until somebody writes, which nobody does."""
    directory = forged(tmp_path)
    os.mkfifo(segment_of(directory))
    assert_only_the_second_segment_is_refused(directory, "is no file")


@pytest.mark.parametrize("target", ["/dev/zero", "00000001.journal"])
def test_a_link_among_the_segments_is_not_followed(tmp_path: Path, target: str) -> None:
    """Neither to a device without end nor to anything else."""
    directory = forged(tmp_path)
    segment_of(directory).symlink_to(target)
    assert_only_the_second_segment_is_refused(directory, "is a symbolic link")


def test_a_segment_that_claims_forty_gigabytes_is_read_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole in a file costs nothing to make: neither memory nor time may follow its size."""
    monkeypatch.setattr(segments, "SEGMENT_MAX", 32 << 20)
    directory = forged(tmp_path)
    os.truncate(segment_of(directory, 1), 40 << 30)
    begin = time.monotonic()
    reader = read(directory)
    assert "/sound" in [e.event.path for e in reader if isinstance(e.event, Open)]
    assert "tampered" in {p.what for p in reader.problems}
    assert "more than a segment can have" in run(directory, "journal", "verify").output
    assert time.monotonic() - begin < 10


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only it can give a directory away")
def test_a_chain_of_somebody_else_is_told(tmp_path: Path) -> None:
    """Its owner could have written all of it, rightly chained."""
    directory = forged(tmp_path)
    os.chown(directory / "run-a", 65534, 65534)
    assert [p.what for p in verify(directory)[0].problems] == ["untrusted"]
    result = run(directory, "journal", "verify")
    assert (result.exit_code, "belongs to uid 65534" in result.output) == (1, True)
    result = run(directory, "events")
    assert (result.exit_code, "/sound" in result.stdout) == (1, True)


def test_a_chain_that_others_may_write_to_is_told(tmp_path: Path) -> None:
    """Whoever may write to the directory may have swapped its files."""
    directory = forged(tmp_path)
    (directory / "run-a").chmod(0o770)
    assert [p.what for p in verify(directory)[0].problems] == ["untrusted"]
