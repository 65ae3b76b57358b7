"""The numbers of docs/numbers.md, measured again on this machine. Needs root.

python -m bench                                        all of it, five minutes
python -m bench open|rate|judge|kill|start|engine      one of them
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import killing, opening, pacing, starting
from bench.workplace import REPOSITORY, Workplace, say, workplace


def engine(place: Workplace) -> None:
    """The engine by itself, without a kernel."""
    subprocess.run([sys.executable, REPOSITORY / "bench" / "engine.py"], check=False)


PARTS: dict[str, Callable[[Workplace], None]] = {
    "open": opening.measure,
    "rate": lambda place: pacing.measure(place, 101_000, 30, pack=False),
    "judge": lambda place: pacing.measure(place, 20_200, 20, pack=True),
    "kill": killing.measure,
    "start": starting.measure,
    "engine": engine,
}


def main(wanted: list[str]) -> int:
    if os.geteuid() != 0 or not set(wanted) <= set(PARTS):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    stats = Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip()
    load = os.getloadavg()[0]
    say(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.2f} before we began")
    if stats != "0":
        say("kernel.bpf_stats_enabled is on: every run of a probe costs more than it need")
    with workplace() as place:
        for name in wanted or PARTS:
            say()
            PARTS[name](place)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
