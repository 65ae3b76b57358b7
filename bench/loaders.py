"""Both loaders side by side: how long until the probes are attached, and what memory that takes.

Where the kernel takes bcc's alone, also what open+close costs there, and beside what bcc's own
opensnoop does: else `open` has that.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from agentwatch.kernel import preflight
from bench import opening
from bench.workplace import Workplace, say

ROUNDS = 7
OPENING = 5
MEASURED = """
import json, resource, sys, time
began = time.monotonic()
from agentwatch.kernel import loading
try:
    probes = loading.begin(sys.argv[1]).probes()
except Exception as error:
    sys.exit(str(error))
seconds = time.monotonic() - began
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
rings = sum(ring.size for ring in (probes.activity, probes.lifecycle)) / 1024
child = resource.getrusage(resource.RUSAGE_CHILDREN)
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "seconds": seconds,
    "cpu": own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime,
    "stays": int(status["VmRSS"].split()[0]) / 1024,
    "peak": max(own.ru_maxrss, child.ru_maxrss) / 1024,
}))
"""


def measure(place: Workplace) -> None:
    """Alternating; a loader that cannot load here says why."""
    found: dict[str, list[dict[str, float]]] = {"core": [], "bcc": []}
    for _ in range(ROUNDS):
        for loader, times in found.items():
            command = [sys.executable, "-c", MEASURED, loader]
            made = subprocess.run(command, check=False, capture_output=True, text=True)
            if made.returncode == 0:
                times.append(json.loads(made.stdout))
            elif not times:
                say(f"  {loader}: {made.stderr.strip().splitlines()[-1]}")
    say(f"loaders: from nothing to attached, medians of {ROUNDS}; rings not yet read")
    for loader, times in found.items():
        for name, unit in (
            ("seconds", "s"),
            ("cpu", "s of CPU"),
            ("stays", "MiB"),
            ("peak", "MiB"),
        ):
            if times:
                median = statistics.median(one[name] for one in times)
                say(f"  {loader:6} {name:8} {median:8.2f} {unit}")
    if preflight.loader() == "bcc":
        compared = (opening.UNTRACED, opening.AGAIN, opening.TAGGED, opening.OPENSNOOP)
        opening.measure(place, compared, OPENING)
