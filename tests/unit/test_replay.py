"""The fakes that ship, used as a user uses them: what would these rules have said?"""

from __future__ import annotations

from pathlib import Path

from agentwatch.admission import decided
from agentwatch.compiling import compile_here
from agentwatch.engine import Engine
from agentwatch.events import Event, Exec, Exit, Fork, ProcessKey
from agentwatch.lineage import Lineage
from agentwatch.policy import patterns
from agentwatch.policy.image import KILL, Image
from agentwatch.policy.levels import Host
from agentwatch.rules.load import load
from agentwatch.sinks.journal import Journal
from agentwatch.testing import AGENT, RecordingSink, Records, ReplaySource, replay_journal

RULES = """\
schema: agentwatch/v1
rules:
  - id: keys
    title: Keys are not for agents
    on: read
    match: {path: "~/.ssh/**", process.exe: "**/cat"}
    action: deny
    severity: high
    because: A key opens other machines.
    tests:
      - hit: {path: /home/dev/.ssh/id_ed25519, process.exe: /usr/bin/cat}
      - miss: {path: /home/dev/notes, process.exe: /usr/bin/cat}
"""
CAT = ProcessKey(4300, 5)


def recorded() -> list[bytes]:
    """An agent starts cat, which reads a note and a key; the agent reads the key itself, too."""
    make = Records()
    return [
        make.exec("/opt/bin/claude", ("claude",)),
        make.fork(CAT),
        make.exec("/usr/bin/cat", ("cat", "notes"), process=CAT, parent=AGENT),
        make.open("/home/dev/notes", process=CAT),
        make.open("/home/dev/.ssh/id_ed25519", process=CAT),
        make.exit(process=CAT),
        make.open("/home/dev/.ssh/id_ed25519"),
    ]


class Judge:
    """Rules at work on events from anywhere: lineage, then the engine and the kernel's tables."""

    def __init__(self, directory: Path) -> None:
        path = directory / "rules.yaml"
        path.write_text(RULES)
        ruleset = load([path], homes=["/home/dev"], patterns=patterns)
        self._engine = Engine(ruleset)
        self._compiled = compile_here(ruleset, Host(), room=1 << 20)
        self._image = Image(self._compiled.image)
        self.killed: list[str] = []
        self._lineage = Lineage()
        self._lineage.begin(AGENT, None, None, ())

    def __call__(self, event: Event) -> tuple[int, str, str] | None:
        """(pid, rule, action) where a rule speaks up."""
        actor = self._lineage.actor(event)
        verdict = self._engine.judge(event, actor)
        in_kernel = decided(self._compiled, self._image, event, actor)
        if in_kernel is not None and in_kernel.verdict == KILL:
            self.killed.append(self._compiled.rules[in_kernel.rule - 1].rule)
        if isinstance(event, Fork):
            self._lineage.fork(event)
        elif isinstance(event, Exec):
            self._lineage.exec(event, None)
        elif isinstance(event, Exit):
            self._lineage.exit(event)
        return (event.process.pid, verdict.rule, verdict.action) if verdict.rule else None


def test_records_made_by_hand_are_judged(tmp_path: Path) -> None:
    """No kernel and no root: records, a source that replays them, the real rules and engine."""
    found = list(filter(None, map(Judge(tmp_path), ReplaySource(recorded()).events())))
    assert found == [(CAT.pid, "keys", "deny")]


def test_a_journal_is_judged_again_by_other_rules(tmp_path: Path) -> None:
    """What was written last week, under today's rules: the same events, the same verdicts."""
    journal = Journal.open(tmp_path / "j")
    for batch, count in ReplaySource(recorded(), batch=3):
        journal.records(batch, count)
    journal.close()
    judge = Judge(tmp_path)
    found = list(filter(None, map(judge, replay_journal(tmp_path / "j"))))
    assert found == [(CAT.pid, "keys", "deny")]
    assert judge.killed == ["keys"]  # by the tables that the kernel would have


def test_a_source_gives_every_record_once_and_in_order() -> None:
    """In batches of the size asked for, as a ring does."""
    records = recorded()
    sink = RecordingSink()
    for batch, count in ReplaySource(records, batch=3):
        sink.records(batch, count)
    assert [count for _, count in sink.batches] == [3, 3, 1]
    assert b"".join(batch for batch, _ in sink.batches) == b"".join(records)
