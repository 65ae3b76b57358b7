"""agentwatch and strace watch the same build, the same installs, and tell the same of them."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from agentwatch.events import Event
from agentwatch.sinks.frames import EventRef, Gap, Session
from agentwatch.sinks.reader import Entry, read
from tests.completeness import registry, strace
from tests.completeness.comparison import KINDS, Comparison, compare

pytestmark = pytest.mark.completeness

HERE = Path(__file__).parent
RULES = """\
schema: agentwatch/v1
rules:
  - id: nothing
    title: A rule that nothing here breaks
    on: exec
    match: {path: /nonexistent}
    action: alert
    severity: low
    because: A watch has rules.
    tests: [{hit: {path: /nonexistent}}]
"""
UNMOUNT = """
for place in /sys/kernel/debug/tracing /sys/kernel/debug /sys/kernel/tracing; do
    while mountpoint -q "$place"; do umount "$place" || exit 1; done
done
[ ! -e /sys/kernel/tracing/events ] || exit 1
exec "$@"
"""
MOUNT = """
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing || exit 1
exec "$@"
"""


@pytest.fixture(scope="session")
def bare_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of Debian's `hello`, as a bare repository to clone from."""
    fetched = subprocess.run(
        [repository / "packaging" / "apt" / "source", "hello"],
        check=True, stdout=subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip
    top = tmp_path_factory.mktemp("hello")
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "gc.auto=0"]
    git = ["git", f"--git-dir={top}", f"--work-tree={fetched.stdout.strip()}", *who]
    for verb in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "sources"]):
        subprocess.run([*git, *verb], check=True, timeout=60)
    subprocess.run(["git", f"--git-dir={top}", "config", "core.bare", "true"], check=True)
    return top


def watched(
    place: Path, agentwatch: Path, script: str, *arguments: str | Path, namespace: str = MOUNT
) -> list[Entry]:
    """Runs a script of this directory under strace under agentwatch; the journal's entries.

    The script's last argument is an empty directory for it to work in.
    """
    for name in ("rules", "scratch"):
        (place / name).mkdir()
    (place / "rules" / "rules.yaml").write_text(RULES)
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", namespace, "sh"]
    command: list[str | Path] = [
        *private,
        agentwatch, "run", "--rules", place / "rules", "--journal", place / "journal", "--",
        "strace", *strace.OPTIONS, "-o", place / "strace",
        HERE / script, *arguments, place / "scratch",
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(place), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        errors="replace", timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]
    reader = read(place / "journal")
    entries = list(reader)
    assert not reader.problems
    return entries


def of_command(entries: Iterable[Entry]) -> list[Event]:
    """Events of CMD's processes: all of the session but those of its first one, strace itself."""
    session = next(e.frame.session for e in entries if isinstance(e.frame, Session))
    events = [entry.event for entry in entries if entry.event is not None]
    assert {event.session for event in events} == {session}
    return [event for event in events if event.process != session]


def holes(entries: Iterable[Entry]) -> int:
    """Sequence numbers that never arrived, counted per ring and CPU."""
    numbers: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.event is not None:
            ref = EventRef.of(entry.event)
            numbers[ref.ring, ref.cpu].append(ref.sequence)
    return sum(max(found) - len(set(found)) for found in numbers.values())


def report(title: str, outcome: Comparison, entries: list[Entry]) -> str:
    gaps = [e.frame for e in entries if isinstance(e.frame, Gap)]
    events = sum(e.event is not None for e in entries)
    lines = [f"\n{title}: {events} events, {outcome.syns} of them first packets of TCP"]
    lines += [f"{outcome.threads} threads with calls, {outcome.rings} rings of io_uring"]
    lines += [outcome.table()]
    lines += [f"loss: {sum(g.count for g in gaps)} in {len(gaps)} gaps, {holes(entries)} holes"]
    lines += [f"  {d.what} {d.kind} of {d.tid}: {d.said:.600}" for d in outcome.differences[:20]]
    return "\n".join(lines)


def agreed(
    title: str, place: Path, entries: list[Entry], capsys: pytest.CaptureFixture[str]
) -> Comparison:
    """Prints how many calls each side has; fails unless both tell the same, without a loss."""
    with (place / "strace").open(encoding="ascii") as lines:
        outcome = compare(strace.calls(lines), of_command(entries))
    said = report(title, outcome, entries)
    with capsys.disabled():
        print(said)
    assert all(outcome.strace[kind] for kind in KINDS), said
    assert not outcome.differences, said
    assert outcome.rings == 0, said
    assert not [e.frame for e in entries if isinstance(e.frame, Gap)], said
    assert holes(entries) == 0, said
    return outcome


@pytest.mark.parametrize("tracefs", ["with tracefs", "without tracefs"])
def test_a_build_is_journaled_as_strace_sees_it(
    tracefs: str,
    tmp_path: Path,
    agentwatch: Path,
    bare_repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every exec, open and connect that strace reports is in the journal, and nothing else is."""
    namespace = MOUNT if tracefs == "with tracefs" else UNMOUNT
    arguments = [bare_repository, HERE / "programs"]
    entries = watched(tmp_path, agentwatch, "work.sh", *arguments, namespace=namespace)
    outcome = agreed(f"build, {tracefs}", tmp_path, entries, capsys)
    assert outcome.strace["open"] > 10_000
    assert outcome.strace["exec"] > 500


def test_every_way_to_call_is_journaled_as_strace_sees_it(
    tmp_path: Path, agentwatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three programs that open, execute and connect as no build does, and the build of those."""
    entries = watched(tmp_path, agentwatch, "ways.sh", HERE / "programs")
    outcome = agreed("every way", tmp_path, entries, capsys)
    assert outcome.strace["failed exec"] > 0


def test_a_pip_install_is_journaled_as_strace_sees_it(
    repository: Path, tmp_path: Path, agentwatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fresh environment, a package and what it needs from an index, and the package at work."""
    wheels = repository / ".cache" / "index"
    registry.fetch_wheels(wheels)
    registry.publish_wheels(wheels, tmp_path / "published")
    with registry.served(tmp_path / "published") as url:
        entries = watched(tmp_path, agentwatch, "pip.sh", url)
    outcome = agreed("pip install", tmp_path, entries, capsys)
    assert outcome.strace["open"] > 1000
    assert outcome.syns > 2 * len(list(wheels.glob("*.whl"))), "a page and a wheel each, and more"


def test_npm_ci_is_journaled_as_strace_sees_it(
    tmp_path: Path, agentwatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages of two levels, one built after its install, and a command of many threads."""
    (tmp_path / "registry").mkdir()
    with registry.served(tmp_path / "registry") as url:
        registry.publish_packages(tmp_path / "registry", url)
        project = registry.locked_project(tmp_path, url)
        entries = watched(tmp_path, agentwatch, "npm.sh", url, project)
    outcome = agreed("npm ci", tmp_path, entries, capsys)
    assert outcome.strace["open"] > 1000
    assert outcome.syns >= 8, "four packages, and the command's two requests twice"
    assert outcome.threads > outcome.strace["exec"], "not only the first threads of programs"
