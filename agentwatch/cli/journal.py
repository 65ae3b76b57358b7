"""`agentwatch journal`: is it intact, and all of it as OCSF."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from agentwatch.cli.events import journal_option, print_entries, quiet_pipe, report
from agentwatch.errors import UsageError
from agentwatch.sinks import cursor, ocsf
from agentwatch.sinks.chain import HASH_SIZE, Head
from agentwatch.sinks.escape import shown, utf8
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import ChainReport
from agentwatch.sinks.verify import verify as verify_directory


@click.group()
def journal() -> None:
    """Check and export the journal."""


@journal.command()
@journal_option
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="CHAIN:SEQUENCE:HASH",
    help="Where a chain is known to have stood (metric journal_head_info): proves a cut end.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def verify(directory: Path, heads: tuple[str, ...], output: str) -> None:
    """Check the hash chain of every writer; exit 0 when all are intact, else 1."""
    reports = verify_directory(directory, dict(map(_head, heads)))
    with quiet_pipe():
        for report in reports:
            click.echo(json.dumps(_plain(report)) if output == "json" else _text(report))
    for report in reports:
        for problem in report.problems:
            click.echo(f"agentwatch: {shown(str(problem))}", err=True)
    if not all(report.intact for report in reports):
        click.echo(f"  try: {_remedy(reports)}", err=True)
        click.get_current_context().exit(1)


@journal.command()
@journal_option
@click.option(
    "--cursor",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Print only what has come since the last time; FILE remembers when that was.",
)
def export(directory: Path, file: Path | None) -> None:
    """Print everything as OCSF, one object per line.

    With --cursor everything is printed at least once, however often this is interrupted.
    """
    if file is None:
        print_entries(read(directory), lambda _: True, "json", colour=False)
        return
    before, entries = cursor.load(file), read(directory)
    for entry in entries:
        if entry.number > before.get(entry.chain, 0):
            for made in ocsf.objects(entry):
                click.echo(ocsf.dumps(made))
    sys.stdout.flush()  # where that fails, all of it is printed again the next time
    cursor.store(file, {chain: last for chain, (_, last) in entries.spans.items()})
    _say_missed(before, entries.spans)
    report(entries)


def _say_missed(before: Mapping[str, int], spans: Mapping[str, tuple[int, int]]) -> None:
    """Frames that the journal's own limits removed before somebody came for them."""
    for chain, (first, _) in spans.items():
        missed = first - 1 - before.get(chain, 0)
        if missed > 0 and before:
            text = f"{missed} frames of {chain} were retired before they were exported"
            click.echo(f"agentwatch: {text}: keep more, or come more often", err=True)


def _head(text: str) -> tuple[str, Head]:
    try:
        chain, sequence, hash_ = text.rsplit(":", 2)
        head = Head(int(sequence), bytes.fromhex(hash_))
    except ValueError:
        head, chain = Head(0, b""), ""
    if len(head.hash) != HASH_SIZE or not chain:
        remedy = "write it as the metric agentwatch_journal_head_info gives it"
        raise UsageError(f"--head {text!r} is not CHAIN:SEQUENCE:HASH", remedy)
    return chain, head


def _state(report: ChainReport) -> str:
    if report.intact:
        return "intact"
    return "torn" if all(p.what == "torn" for p in report.problems) else "NOT INTACT"


def _ending(report: ChainReport) -> str:
    if report.closed:
        return "closed"
    if report.live:
        return "being written"
    return "not closed cleanly: its writer died, or frames at its end are gone"


def _text(report: ChainReport) -> str:
    begins = f"  begins with segment {report.begins}: those before were retired by its writer\n"
    head = f"{report.head.sequence}:{report.head.hash.hex()}"
    return (
        f"{shown(report.chain)}: {_state(report)}, {_ending(report)}\n"
        f"  {report.segments} segments, {report.frames} frames, {report.records} records, "
        f"{report.bytes} bytes\n"
        f"{begins if report.begins > 1 else ''}"
        f"  head {head}"
    )


def _plain(report: ChainReport) -> dict[str, object]:
    return {
        "chain": utf8(report.chain),
        "state": _state(report).lower(),
        "closed": report.closed,
        "live": report.live,
        "segments": report.segments,
        "begins": report.begins,
        "frames": report.frames,
        "records": report.records,
        "bytes": report.bytes,
        "head": {"sequence": report.head.sequence, "hash": report.head.hash.hex()},
        "problems": [
            {
                "what": problem.what,
                "file": utf8(str(problem.file)),
                "offset": problem.offset,
                "frame": problem.frame,
                "message": problem.message,
            }
            for problem in report.problems
        ],
    }


def _remedy(reports: tuple[ChainReport, ...]) -> str:
    if any(problem.what == "tampered" for report in reports for problem in report.problems):
        return "keep a copy of the journal as it is, and ask who could write to it as root"
    if any(problem.what == "missing" for report in reports for problem in report.problems):
        return "look for the missing part in a backup, and ask who could remove it as root"
    if any(problem.what == "untrusted" for report in reports for problem in report.problems):
        return "compare it with a head kept elsewhere (--head); trust it no more than its owner"
    return "nothing to repair: everything before the cut can be read with agentwatch events"
