#!/usr/bin/python3
"""The table of docs/levels.md that says what the packs are worth on which kernel: `make levels`.

Each row comes from a boot of that kernel, the last one from the kernel that this runs on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from agentwatch.kernel import lsm, preflight  # noqa: E402  # the path comes first
from agentwatch.policy.levels import LEVELS  # noqa: E402
from tests.vm.boots import AT_ONCE, BOOTS, Boot  # noqa: E402

DOCUMENT = REPOSITORY / "docs" / "levels.md"
SUITES = {
    "bullseye-security": "Debian 11",
    "bookworm": "Debian 12",
    "trixie": "Debian 13",
    "sid": "Debian unstable",
}
OTHER = "other"
HEAD = "| kernel | distribution | BPF LSM | " + " | ".join(f"`{level}`" for level in LEVELS) + " |"
RULE = "|---" * (3 + len(LEVELS)) + "|"


def row(agentwatch: Path) -> str:
    """The line of this kernel, as it is found now (root)."""
    kernel = ".".join(os.uname().release.split(".")[:2])
    listed = subprocess.run(
        [agentwatch, "rules", "list", "-o", "json", REPOSITORY / "rules"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    found = Counter(rule["level"].split()[0] for rule in json.loads(listed.stdout))
    known = (line.split() for line in (REPOSITORY / "tests/vm/kernels").read_text().splitlines())
    suite = next((SUITES[one[1]] for one in known if one[:1] == [kernel]), OTHER)
    module = "yes" if lsm.programs() else "no"
    if preflight.loader() == "bcc":
        module = "not used"
    counts = " | ".join(str(found[level]) for level in LEVELS)
    return f"| {kernel} | {suite} | {module} | {counts} |"


def booted(boot: Boot) -> str:
    """The row of a boot. Raises RuntimeError where it gives none."""
    command = ".venv/bin/python tests/vm/levels.py --row"
    boots = [str(REPOSITORY / "tests" / "vm" / "boot"), boot.kernel, command]
    settings = {"TIMEOUT": "900"} | os.environ | {"PREEMPT": boot.preempt, "LSM": boot.lsm}
    done = subprocess.run(boots, cwd=REPOSITORY, env=settings, capture_output=True, text=True)
    rows = re.findall(r"^\| .* \|$", done.stdout, re.MULTILINE)
    if done.returncode or len(rows) != 1:
        raise RuntimeError(f"{boot.name} gave no row:\n{done.stdout}{done.stderr}")
    print(rows[0], flush=True)
    return str(rows[0])


def write(rows: list[str]) -> None:
    """In place of the table that is there."""
    before, _, rest = DOCUMENT.read_text().partition(HEAD + "\n")
    after = rest.split("\n\n", 1)[1]
    DOCUMENT.write_text("\n".join([before + HEAD, RULE, *rows]) + "\n\n" + after)


def main(options: list[str]) -> None:
    """With --row only this kernel's, on stdout."""
    here = row(REPOSITORY / ".venv" / "bin" / "agentwatch")
    print(here, flush=True)
    if options == ["--row"]:
        return
    boots = sorted((one for one in BOOTS if not one.again), key=lambda one: (not one.bpf, one.name))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(booted, boots))
    write(rows + [here] * (here not in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
