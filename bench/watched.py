"""`agentwatch run` as a measurement needs it: its CPU, its memory, its metrics, its journal."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentwatch.sinks import frames, segments
from agentwatch.sinks.verify import Problem, examine
from bench.workplace import REPOSITORY, Workplace

AGENTWATCH = REPOSITORY / ".venv" / "bin" / "agentwatch"
_TICK = os.sysconf("SC_CLK_TCK")
_METRIC = re.compile(r'^agentwatch_(\w+?)(?:\{\w+="([^"]*)"\})? (\S+)$', re.M)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a journal holds. lost: by its gap frames; holes: sequence numbers that never arrived."""

    records: int
    lost: int
    holes: int
    kills: tuple[frames.Kill, ...]
    problems: int


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. rss and pss as the kernel counts them; ring: of rss, the rings' mappings."""

    rss: float
    pss: float
    ring: float


class Watched:
    """`agentwatch run OPTIONS -- COMMAND`, begun on construction; `end` waits for it."""

    def __init__(self, place: Workplace, options: list[str], command: list[str]) -> None:
        self.port = free_port()
        self.journal = Path(place.top / f"journal-{time.monotonic_ns()}")
        given = [*options, f"--journal={self.journal}", f"--metrics=127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(
            [AGENTWATCH, "run", *given, "--", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=place.top,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, timeout: float = 300) -> str:
        """What COMMAND wrote to its standard output. Raises CalledProcessError unless it was 0."""
        output, error = self._process.communicate(timeout=timeout)
        if self._process.returncode:
            raise subprocess.CalledProcessError(
                self._process.returncode, "agentwatch run", output, error
            )
        return output

    def stop(self) -> None:
        """Has COMMAND end early: agentwatch passes the signal on."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.CalledProcessError):
            self.end()

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for_metrics(self) -> None:
        """Until it serves: COMMAND has begun then."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            with suppress(OSError):
                self.metrics()
                return
            time.sleep(0.05)
        raise TimeoutError("agentwatch run did not begin to serve metrics")

    def metrics(self) -> dict[tuple[str, str], float]:
        """(name without prefix, value of its one label or "") -> number."""
        return metrics_at(self.port)

    def cpu(self) -> float:
        """Seconds of CPU it used so far, COMMAND's not among them."""
        return cpu_of(self.pid)

    def memory(self) -> Memory:
        return memory_of(self.pid)


def metrics_at(port: int) -> dict[tuple[str, str], float]:
    """(name without prefix, value of its one label or "") -> number; of further labels, nothing."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return {(name, label): float(number) for name, label, number in _METRIC.findall(text)}


def cpu_of(pid: int) -> float:
    """Seconds of CPU a process used so far, its children's not among them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def memory_of(pid: int) -> Memory:
    ring = rss = pss = 0.0
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.M):
        found = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", block, re.M))
        rss += int(found.get("Rss", 0)) / 1024
        pss += int(found.get("Pss", 0)) / 1024
        if "bpf" in block.partition("\n")[0]:
            ring += int(found.get("Rss", 0)) / 1024
    return Memory(rss, pss, ring)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def kept(journal: Path) -> Kept:
    """Reads every frame of a journal, and of its records who was the how-manieth."""
    numbers: defaultdict[tuple[bool, int], list[int]] = defaultdict(list)
    records = lost = problems = 0
    kills = []
    for one in segments.chains(journal):
        for item in examine(one, False):
            if isinstance(item, Problem):
                problems += 1
                continue
            frame = frames.decode(item.raw.type, item.raw.time, item.raw.payload)
            if isinstance(frame, frames.Records):
                records += frame.count
                _number(frame.data, numbers)
            elif isinstance(frame, frames.Gap):
                lost += frame.count
            elif isinstance(frame, frames.Kill):
                kills.append(frame)
    holes = sum(max(found) - len(set(found)) for found in numbers.values())
    return Kept(records, lost, holes, tuple(kills), problems)


_WHO = struct.Struct("<IHH8xQI").unpack_from


def _number(data: bytes, numbers: defaultdict[tuple[bool, int], list[int]]) -> None:
    offset = 0
    while offset < len(data):
        length, kind, _, sequence, cpu = _WHO(data, offset)
        numbers[kind <= 3, cpu].append(sequence)
        offset += length
