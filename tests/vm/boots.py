#!/usr/bin/python3
"""`make vm`: boots kernels, two at a time, runs their tests inside, and says how each boot ended.

KERNEL, PREEMPT, LSM and INIT in the environment ask for one boot; without KERNEL it is every one
of the table. Arguments are pytest's. Each line of a guest has the name of its boot in front.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.completeness import registry
from tests.kernel import building
from tests.tiers import Outcome, summarise, watch, write

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MARKED = re.compile(r"\bmark\.(?:vm|lsm|without_lsm|bcc|service)\b")
AT_ONCE = 2  # each takes two threads of the machine and 3 GB
BCC = frozenset({"5.10"})  # kernels that have neither bpf_loop nor task storage
NOTHING_SELECTED = 5  # pytest's exit status


@dataclass(frozen=True)
class Boot:
    """A start of a kernel. preempt, lsm: of its command line, "" for what tests/vm/boot gives.

    again: another boot of the table runs what need not run twice on this kernel. seconds: it may
    take. init: systemd as process 1, for what is about the service.
    """

    kernel: str
    preempt: str = ""
    lsm: str = ""
    again: bool = False
    seconds: int = 2400
    init: str = ""

    @property
    def bcc(self) -> bool:
        """Whether the kernel is too old for the core loader."""
        return self.kernel in BCC

    @property
    def bpf(self) -> bool:
        """Whether the kernel has BPF LSM."""
        return not self.lsm or "bpf" in self.lsm.split(",")

    @property
    def name(self) -> str:
        """As tests/vm/boot says it: "7.2-full"."""
        without = "" if self.bpf else "without-bpf"
        return "-".join(part for part in (self.kernel, self.preempt, without, self.init) if part)

    @property
    def marks(self) -> str:
        """The tests that run in it, for pytest's -m."""
        if self.bcc:
            return "bcc"
        if self.init:
            return "service"
        chosen = "(vm or lsm)" if self.bpf else "without_lsm"
        return f"{chosen} and not once" if self.again else chosen


# The longest first, so that the last two end at about the same time.
BOOTS = (
    Boot("5.10"),
    Boot("6.1", again=True, init="systemd", seconds=2700),
    Boot("7.2"),
    Boot("6.12"),
    Boot("6.1"),
    Boot("7.2", preempt="full", again=True),
    Boot("6.12", preempt="full", again=True),
    Boot("6.1", preempt="full", again=True),
    Boot("6.12", lsm="lockdown,capability,landlock,yama"),
)


def command(boot: Boot, options: list[str]) -> str:
    """What the guest's shell runs: pytest on the files that have a mark of ours, and no others."""
    files = [
        str(path.relative_to(REPOSITORY))
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if MARKED.search(path.read_text())
    ]
    pytest = [".venv/bin/pytest", "-p", "no:cacheprovider", "-m", boot.marks]
    return shlex.join([*pytest, *options, *files])


def run(boot: Boot, options: list[str], prefix: str) -> Outcome:
    """Boot it, pass its lines on as they come, count its tests."""
    settings = {"PREEMPT": boot.preempt, "LSM": boot.lsm, "INIT": boot.init}
    if boot.init:
        subprocess.run([REPOSITORY / "tests" / "vm" / "packages"], check=True)
    return watch(
        boot.name,
        [str(REPOSITORY / "tests" / "vm" / "boot"), boot.kernel, command(boot, options)],
        lambda line: write(prefix + line),
        cwd=REPOSITORY,
        env={"TIMEOUT": str(boot.seconds)} | os.environ | settings,
    )


def run_all(boots: tuple[Boot, ...], options: list[str]) -> int:
    """Run them and summarise; 1 when any failed. A test asked for by name need not be in each."""
    started = time.monotonic()
    width = max(len(boot.name) for boot in boots)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda boot: run(boot, options, f"{boot.name:{width}} | "), boots))
    ran = [each for each in outcomes if not ("-k" in options and each.code == NOTHING_SELECTED)]
    return summarise(ran or outcomes, "boot", time.monotonic() - started)


def asked(settings: Mapping[str, str]) -> tuple[Boot, ...]:
    """The boots of this run."""
    names = ("KERNEL", "PREEMPT", "LSM", "INIT")
    kernel, preempt, lsm, init = (settings.get(name, "") for name in names)
    if kernel:
        seconds = max((b.seconds for b in BOOTS if b.kernel == kernel), default=2400)
        return (Boot(kernel, preempt, lsm, seconds=seconds, init=init),)
    if preempt or lsm or init:
        sys.exit("PREEMPT, LSM and INIT go with KERNEL; without it, make vm boots all there are")
    return BOOTS


def fetch() -> None:
    """What the completeness tests take from the network, of which a guest has none."""
    source = REPOSITORY / "packaging" / "apt" / "source"
    subprocess.run([source, "hello"], check=True, stdout=subprocess.DEVNULL)
    registry.fetch_wheels(REPOSITORY / ".cache" / "index")


def main(options: list[str]) -> int:
    """Run what is asked for; 1 when any failed. One boot alone has only pytest's closing line."""
    boots = asked(os.environ)
    building.BUILT.mkdir(parents=True, exist_ok=True)
    building.build(building.BUILT)
    if any(boot.bcc for boot in boots):
        fetch()
    if len(boots) == 1:
        return int(run(boots[0], options, "").code != 0)
    return run_all(boots, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
