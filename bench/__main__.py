"""The numbers of docs/numbers.md, measured again on this machine. Needs root.

python -m bench                                        all of it, three quarters of an hour
python -m bench open|rate|judge|kill|start|loaders|engine   one of them
python -m bench policy                                 compiling it; the kernel's verdict
python -m bench hooks|hostile                          each program's time; what is denied
python -m bench daemon [--seconds N]                   a daemon's start; idle for N seconds
python -m bench churn [--minutes N]                    agents that come and go
python -m bench soak [--minutes N]                     20 minutes of work, under a Prometheus
python -m bench follow [--seconds N]                   many who follow events
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from bench import (
    churn,
    daemon,
    daemon_following,
    daemon_idling,
    hooks,
    hostile,
    killing,
    loaders,
    opening,
    pacing,
    policy,
    soak,
    starting,
)
from bench.workplace import REPOSITORY, Workplace, say, workplace


def engine(place: Workplace) -> None:
    """The engine by itself, without a kernel."""
    subprocess.run([sys.executable, REPOSITORY / "bench" / "engine.py"], check=False)


Part = Callable[[Workplace, argparse.Namespace], None]
PARTS: dict[str, Part] = {
    "open": lambda place, _: opening.measure(place),
    "rate": lambda place, _: pacing.measure(place, 101_000, 30, pack=False),
    "judge": lambda place, _: pacing.measure(place, 20_200, 20, pack=True),
    "kill": lambda place, _: killing.measure(place),
    "start": lambda place, _: starting.measure(place),
    "loaders": lambda place, _: loaders.measure(place),
    "engine": lambda place, _: engine(place),
    "policy": lambda place, _: policy.measure(),
    "hooks": lambda place, _: hooks.measure(),
    "hostile": lambda place, _: hostile.measure(),
    "daemon": lambda _, how: daemon.measure(how.seconds or daemon_idling.SECONDS),
    "churn": lambda _, how: churn.measure(how.minutes or churn.MINUTES),
    "soak": lambda _, how: soak.measure(how.minutes or soak.MINUTES),
    "follow": lambda place, how: daemon_following.measure(
        place, how.seconds or daemon_following.SECONDS
    ),
}
PLACELESS = frozenset({"policy", "hooks", "hostile", "soak"})
"""Those that need no workplace, which takes a compiler and, emulated, minutes."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", usage=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seconds", type=int)
    how = parser.parse_args(arguments)
    if os.geteuid() != 0 or not set(how.parts) <= set(PARTS):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    stats = Path("/proc/sys/kernel/bpf_stats_enabled").read_text().strip()
    load = os.getloadavg()[0]
    say(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.2f} before we began")
    if stats != "0":
        say("kernel.bpf_stats_enabled is on: every run of a probe costs more than it need")
    names = how.parts or list(PARTS)
    nowhere = Workplace(Path(), Path())
    with nullcontext(nowhere) if PLACELESS.issuperset(names) else workplace() as place:
        for name in names:
            say()
            PARTS[name](place, how)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
