"""What the measurements share: a tree of files, the programs of programs/, and a place for both."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
REPOSITORY = Path(__file__).parent.parent
PATHS = 4096
NOTHING = """\
schema: agentwatch/v1
rules:
  - id: nothing
    title: A rule that nothing here breaks, of a kind that nothing here is
    on: exec
    match: {path: /nonexistent}
    action: alert
    severity: low
    because: A watch has rules.
    tests: [{hit: {path: /nonexistent}}]
"""
KILL = """\
schema: agentwatch/v1
rules:
  - id: canary
    title: Who reads the canary is killed
    on: read
    match: {path: "**/agentwatch-canary"}
    action: kill
    severity: high
    because: It is what the measurement is about.
    tests: [{hit: {path: /agentwatch-canary}}]
"""


@dataclass(frozen=True, slots=True)
class Workplace:
    """A temporary directory. tree: a file that lists PATHS paths of eight components each."""

    top: Path
    tree: Path

    def program(self, name: str) -> str:
        return str(self.top / name)

    @property
    def canary(self) -> Path:
        return self.top / "agentwatch-canary"

    def rules(self, pack: bool, *more: str) -> list[str]:
        """Options for `run`: the shipped pack or a rule that nothing breaks, and more files."""
        given = [str(REPOSITORY / "rules")] if pack else [str(self.top / "nothing.yaml")]
        return [f"--rules={path}" for path in (*given, *(str(self.top / name) for name in more))]


@contextmanager
def workplace() -> Iterator[Workplace]:
    """Made and taken away again."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as made:
        top = Path(made).resolve()
        top.chmod(0o755)
        for source in PROGRAMS.glob("*.c"):
            _compile(source, top)
        (top / "nothing.yaml").write_text(NOTHING)
        (top / "kill.yaml").write_text(KILL)
        (top / "agentwatch-canary").write_text("canary\n")
        yield Workplace(top, _tree(top))


def _compile(source: Path, top: Path) -> None:
    if source.name.endswith(".bpf.c"):
        includes = f"-I/usr/include/{_machine()}-linux-gnu"
        made = top / source.name.replace(".c", ".o")
        command = ["clang", "-O2", "-g", "-target", "bpf", includes, "-c", source, "-o", made]
    else:
        command = ["gcc", "-O2", "-Wall", "-Werror", "-o", top / source.stem, source]
    subprocess.run(command, check=True, timeout=60)


def _machine() -> str:
    return subprocess.run(
        ["uname", "-m"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def _tree(top: Path) -> Path:
    """Eight components: /tmp/agentwatch-bench-x/project/src/lib/module/part/file."""
    depth = len(top.parts) - 1
    middle = [f"component{n}" for n in range(depth, 6)]
    names = []
    for number in range(PATHS):
        directory = top.joinpath(*middle, f"module{number % 64:02}")
        directory.mkdir(parents=True, exist_ok=True)
        name = directory / f"source-file-{number:04}.c"
        name.touch()
        names.append(str(name))
    assert all(name.count("/") == 8 for name in names)
    listed = top / "tree"
    listed.write_text("\n".join(names) + "\n")
    return listed


def say(line: str = "") -> None:
    """A line of the report, at once."""
    print(line)
    sys.stdout.flush()
