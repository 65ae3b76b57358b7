"""What the journal costs its caller: raw records at the rate of a busy agent, then read again.

    python3 bench/journal.py [--seconds 10] [--rate 100000] [--directory DIR]

Paced: batches of 20 ms at RATE records/s, as the loop drains them; CPU is of the whole process, the
sync thread included. Unpaced: as fast as it goes. The A/A control is the same paced loop that
builds each batch and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from agentwatch.sinks.frames import Kill
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.reader import read
from agentwatch.sinks.redact import Redactor
from agentwatch.sinks.verify import verify
from agentwatch.testing import RecordingSink, Records

PERIOD = 0.02


def batch_of(count: int) -> bytes:
    """`count` opens of the size that a build makes, about 200 bytes each."""
    make = Records()
    names = (f"/home/dev/project/build/{'d' * 20}/{'e' * 20}/source{i}.c" for i in range(count))
    return b"".join(make.open(name, asked=name) for name in names)


def paced(sink: Journal | RecordingSink, batch: bytes, count: int, seconds: float) -> float:
    """CPU seconds per second of a loop that writes one batch each PERIOD."""
    cpu, begin = time.process_time(), time.monotonic()
    for turn in range(int(seconds / PERIOD)):
        sink.records(batch, count)
        sink.flush()
        if isinstance(sink, RecordingSink):
            sink.batches.clear()
        time.sleep(max(0.0, begin + (turn + 1) * PERIOD - time.monotonic()))
    return (time.process_time() - cpu) / (time.monotonic() - begin)


def decisions(journal: Journal, count: int = 200) -> list[float]:
    """Milliseconds that each of `count` kill frames holds the caller up."""
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        journal.write(Kill(outcome="killed"))
        took.append((time.perf_counter() - begin) * 1e3)
    return sorted(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=100_000)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        run(Path(scratch), options.rate, options.seconds)


def run(directory: Path, rate: int, seconds: float) -> None:
    count = int(rate * PERIOD)
    batch = batch_of(count)
    print(f"batch: {count} records, {len(batch) / count:.0f} bytes each")
    for turn in range(2):
        idle = paced(RecordingSink(), batch, count, seconds / 2)
        journal = Journal.open(directory / f"paced{turn}", boot_id="", host="")
        used = paced(journal, batch, count, seconds / 2)
        journal.close()
        print(f"paced at {rate}/s: {used:.1%} of a CPU; nothing written: {idle:.1%}")
    journal = Journal.open(directory / "fast", boot_id="", host="")
    begin, cpu, turns = time.monotonic(), time.process_time(), 250
    for _ in range(turns):
        journal.records(batch, count)
    journal.flush()
    took, used = time.monotonic() - begin, time.process_time() - cpu
    each = used / turns / count * 1e6
    megabytes = turns * len(batch) / took / 1e6
    print(f"unpaced: {turns * count / took:,.0f}/s, {megabytes:.0f} MB/s, {each:.2f} us CPU each")
    took_by = decisions(journal)
    print(f"a kill frame: median {took_by[100]:.3f} ms, worst {took_by[-1]:.3f} ms")
    journal.close()
    begin = time.monotonic()
    report = verify(directory / "fast")[0]
    took = time.monotonic() - begin
    print(f"verify: {report.bytes / took / 1e6:.0f} MB/s, intact: {report.intact}")
    begin = time.monotonic()
    total = sum(1 for _ in read(directory / "paced0"))
    print(f"read: {total / (time.monotonic() - begin):,.0f} events/s")
    redaction()


def redaction() -> None:
    redactor, make = Redactor.load(), Records()
    for what, argv in (
        ("plain", ("git", "commit", "-m", "a message of some length for a change")),
        ("4 KiB", ("node", *(f"--option{i}=value{i}" for i in range(200)))),
        ("secret", ("curl", "-u", "bob:hunter2", "https://example.org")),
    ):
        raw, turns = make.exec("/bin/x", argv), 2000
        begin = time.perf_counter()
        for _ in range(turns):
            redactor.record(raw)
        print(f"redact {what}: {(time.perf_counter() - begin) / turns * 1e6:.1f} us")


if __name__ == "__main__":
    main()
