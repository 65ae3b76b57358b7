"""The import ladder: a module imports only what stands on a lower rung, or its own package.

The table is the architecture in one screen. A new module is added to it, on the rung that says what
it may know about.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "agentwatch"

# From the bottom up. The names on one rung do not know of each other.
LADDER: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("events",),
    ("abi",),
    ("decoding", "mounts", "lineage"),
    ("project",),
    ("rules",),
    ("policy",),
    ("config", "engine", "notify", "processes"),
    ("compiling", "holdings", "known"),
    ("command",),
    ("actions", "control", "freezer", "sinks"),
    ("kernel",),
    ("admission", "aside", "backfill", "enforcement", "holding", "inforce", "testing"),
    ("beginning", "sessions"),
    ("hooks", "losses", "recognition"),
    ("watch",),
    ("measure", "run"),
    ("daemon",),
    ("cli",),
    ("__main__",),
)
RUNG = {name: rung for rung, names in enumerate(LADDER) for name in names}

# What decides must not depend on when or where it decides: no clock and no I/O.
IMPURE = frozenset(
    {"asyncio", "ctypes", "fcntl", "io", "logging", "mmap", "multiprocessing", "pathlib", "pwd"}
    | {"random", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile"}
    | {"threading", "time"}
)
PURE = ("events", "lineage", "policy", "engine")

# The library on the left is called from the packages on the right only, which translate its errors
# and give what it returns a type.
HOMES = {
    "bcc": {"kernel"},
    "ctypes": {"kernel"},
    "mmap": {"kernel"},
    "click": {"cli"},
    "msgpack": {"control", "sinks"},
    "prometheus_client": {"sinks"},
    "psutil": {"holdings", "processes"},
    "ruamel": {"config", "rules", "sinks"},
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Dotted names of what a module imports, wherever in it; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def own(tree: ast.Module) -> set[str]:
    """The modules of agentwatch that a module imports, without the package's name."""
    names = {name.removeprefix("agentwatch.") for name in imported(tree) if name != "agentwatch"}
    return {name for name in names if name in MODULES}


def top(name: str) -> str:
    """The name on the ladder that a module belongs to."""
    return name.split(".")[0]


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_module_imports_only_what_stands_lower(name: str) -> None:
    """Every import of our own goes down the ladder, or stays inside its package."""
    assert top(name) in RUNG, f"{name} is on no rung: add it to LADDER in {Path(__file__).name}"
    for other in own(MODULES[name]):
        if top(other) != top(name):
            assert RUNG[top(other)] < RUNG[top(name)], f"{name} imports {other} above it"


def test_no_modules_import_each_other() -> None:
    """There is an order in which every module can be read after all it imports."""
    graph = {name: own(tree) - {name} for name, tree in MODULES.items() if name}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))
    assert order


def test_every_name_on_the_ladder_exists() -> None:
    """The table describes this package and not a former one."""
    assert set(RUNG) == {top(name) for name in MODULES if name}


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in PURE])
def test_what_decides_reads_no_clock_and_does_no_io(name: str) -> None:
    """Events, lineage, policy and engine are functions of their arguments."""
    impure = {top(other) for other in imported(MODULES[name])} & IMPURE
    assert not impure, f"{name} imports {', '.join(sorted(impure))}"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_called_from_its_home_only(library: str) -> None:
    """Foreign libraries have few homes."""
    users = {name for name, tree in MODULES.items() if library in {top(n) for n in imported(tree)}}
    assert {top(name) for name in users} <= HOMES[library], f"{library} is imported by {users}"
