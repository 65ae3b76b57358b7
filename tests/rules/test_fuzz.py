"""The loader with files nobody would write: it says what is wrong, and never anything else."""

from __future__ import annotations

import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import admission
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError, Diagnostic, RuleErrors
from agentwatch.policy import patterns
from agentwatch.rules import read as reading
from agentwatch.rules.diagnostics import CODES, Report, render
from agentwatch.rules.load import read_rules
from tests.fuzz.lines import RULE, made

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis: pip install -e '.[dev]'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SETTINGS = settings(deadline=10_000, max_examples=300, derandomize=True, database=None)


@pytest.fixture(scope="module")
def file() -> Iterator[Path]:
    """One file for thousands of examples."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "r.yaml"


def findings(path: Path, content: bytes) -> tuple[Diagnostic, ...]:
    """What is said about a file; that it is let in makes an engine of it."""
    path.write_bytes(content)
    try:
        admitted = admission.admit([path], homes=("/root", "/home/dev"))
    except RuleErrors as error:
        return error.diagnostics
    Engine(admitted.ruleset)
    return admitted.warnings


def well_said(found: tuple[Diagnostic, ...], content: bytes) -> None:
    """Every finding has a code, a place in the file, and one line that steers no terminal."""
    lines = content.count(b"\n") + content.count(b"\r") + 1
    for one in found:
        assert one.code in CODES
        assert 0 <= one.line <= lines + 1
        assert "\n" not in one.message
        shown = render(one).replace("\n", "").replace("\t", "")
        assert shown.isprintable(), ascii(shown)


@given(st.data())
@SETTINGS
def test_files_of_the_languages_own_pieces(file: Path, data: st.DataObject) -> None:
    """Nearly right rules are answered with findings, whatever is odd about them."""
    text = made(lambda below: data.draw(st.integers(0, max(below - 1, 0))))
    content = text.encode("utf-8", "surrogatepass")
    well_said(findings(file, content), content)


@given(st.one_of(st.binary(max_size=400), st.text(max_size=400).map(lambda t: t.encode())))
@SETTINGS
def test_files_of_anything(file: Path, content: bytes) -> None:
    """Bytes and text that have nothing to do with rules."""
    well_said(findings(file, content), content)


@given(st.text(max_size=60), st.sampled_from(["/", ".", "\0", ""]))
@SETTINGS
def test_a_glob_that_is_checked_compiles(text: str, separator: str) -> None:
    """What loading lets through never fails later, in the engine."""
    if patterns.check(text, separator) is None:
        patterns.matches(text, ("x",) if separator == "\0" else "/x", separator)
        patterns.literals([text], separator)


@given(st.text("ab/*?{},[]!\\~.", min_size=1, max_size=12), st.text("ab/.", max_size=8))
@settings(SETTINGS, max_examples=1000)
def test_literals_leave_no_match_out(glob: str, value: str) -> None:
    """A glob that covers a value has one of its literals in it."""
    if patterns.check(glob) is None and patterns.matches(glob, "/" + value):
        told = patterns.literals([glob], "/")
        assert not told or any(text in "/" + value + "/" for text in told)


def test_libyaml_and_python_read_the_same() -> None:
    """Where both accept a file they make the same tree of it, places included."""
    if not reading.HAS_LIBYAML:
        pytest.skip("libyaml: pip install ruamel.yaml.clib")
    rng = random.Random(5)
    compared = 0
    for _ in range(600):
        text = made(rng.randrange).encode("utf-8", "replace").decode()
        trees = [_tree(text, pure) for pure in (True, False)]
        if None not in trees and not reading._READ_DIFFERENTLY.search(text):
            assert trees[0] == trees[1], text
            compared += 1
    assert compared > 50


def _tree(text: str, pure: bool) -> object:
    report = Report()
    try:
        tree = reading._Reader("r", reading._events(text, pure), report).document()
    except (reading._Refused, reading.YAMLError):
        return None
    return (tree, report.all)


HOSTILE = {
    "laughs": "schema: agentwatch/v1\nlists:\n  a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"  b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9)
    ),
    "long line": RULE + "# " + "x" * (1 << 20) + "\n",
    "long value": RULE.replace("because: b", f"because: {'x' * (1 << 20)}"),
    "long key": RULE.replace("because: b", f"{'x' * (1 << 20)}: b"),
    "long glob": RULE.replace("/y", "/" + "y" * (1 << 20)),
    "deep flow": "schema: " + "[" * 100_000,
    "deep block": "\n".join(" " * i + "- -" for i in range(1000)),
    "deep mapping": "".join(" " * i + "a:\n" for i in range(2000)),
    "many rules": RULE.split("rules:\n")[0] + "rules:\n" + "  - {id: a}\n" * 5_000,
    "many values": "schema: agentwatch/v1\nlists: {a: [" + "x, " * 50_000 + "x]}\n",
    "braces": RULE.replace("$project/**", "{a,b}" * 500),
    "nested braces": RULE.replace("$project/**", "{" * 2000),
    "digits": RULE.replace("hit: {path: /x", "hit: {process.uid: " + "9" * 100_000),
    "quotes": "schema: '" + "''" * 50_000,
    "unknown keys": "{" + ", ".join(f"k{i}: v" for i in range(10_000)) + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_made_to_hurt_is_refused_within_bounds(name: str, file: Path) -> None:
    """No traceback, and memory in proportion to the file."""
    content = HOSTILE[name].encode()
    tracemalloc.start()
    try:
        well_said(findings(file, content), content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (256 << 20), f"{peak >> 20} MiB for a file of {len(content) >> 10} KiB"


def test_lists_in_lists_do_not_multiply(file: Path) -> None:
    """A few lines could stand for more values than there is memory."""
    rows = "".join(f"  b{i}: [{', '.join([f'$b{i - 1}' if i else 'x'] * 9)}]\n" for i in range(20))
    findings(file, ("schema: agentwatch/v1\nlists:\n" + rows).encode())


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "directory"])
def test_what_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    """Without being opened, which could block or act."""
    path = tmp_path / "r.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
        (path / "inner.yaml").mkdir()
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    with pytest.raises(AgentwatchError):
        read_rules([path], patterns)
