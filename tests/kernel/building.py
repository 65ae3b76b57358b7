"""The programs of programs/, built: here, or on the host of a virtual machine before it starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "programs"
# Filled by `make vm`: an emulated machine takes over a minute for what the host does in seconds.
BUILT = Path(__file__).parent.parent.parent / ".cache" / "vm" / "programs"
FLAGS = {
    # Freestanding: gcc always makes 32-bit code, but 32-bit libraries are a package of their own.
    "compat": [
        "-m32",
        "-nostdlib",
        "-ffreestanding",
        "-fno-pic",
        "-no-pie",
        "-fno-stack-protector",
    ],
}


def build(directory: Path) -> None:
    """Leave each program in directory: statically linked, so that it opens nothing of its own
    accord. What BUILT has that is newer than all sources is taken from there.
    """
    changed = max(path.stat().st_mtime for path in SOURCES.iterdir())
    for source in sorted(SOURCES.glob("*.c")):
        built = BUILT / source.stem
        output = directory / source.stem
        if not (built.exists() and built.stat().st_mtime > changed):
            flags = ["-O1", "-Wall", "-Werror", "-static", *FLAGS.get(source.stem, ["-pthread"])]
            subprocess.run(["gcc", *flags, "-o", output, source], check=True, timeout=60)
        elif built != output:
            shutil.copy(built, output)
