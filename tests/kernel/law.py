"""Rules in force in real probes, and the children that are judged by them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agentwatch.kernel.probes import Probes
from agentwatch.mounts import Mounts
from agentwatch.policy import compiler, patterns
from agentwatch.policy.subjects import OF_NONE, AgentBits
from agentwatch.rules.load import load
from tests.kernel.recording import Recorder, Recording, Witness, witness

NONE = 1 << OF_NONE  # the agents of a session of none
KILLED = signal.SIGKILL

RULE = """\
  - id: test.rule-{number}
    title: A rule
    on: {on}
    match: {match}
    {unless}
    action: {action}
    because: It is a test.
    tests: []
"""


class Law:
    """Rules in force in real probes."""

    def __init__(self, probes: Probes, place: Path) -> None:
        self.probes, self.place = probes, place
        self.generation = 0
        self.recorder = Recorder(probes)
        self.recorder.collect()
        probes.set_mounts(Mounts.read())

    def image(self, *rules: tuple[str, str, str] | tuple[str, str, str, str]) -> bytes:
        """Of rules, each (on, match, action) and perhaps an exception."""
        self.generation += 1
        text = "schema: agentwatch/v1\nrules:\n"
        for number, (on, match, action, *unless) in enumerate(rules):
            carved = f"unless: {{carved: {unless[0]}}}" if unless else ""
            text += RULE.format(number=number, on=on, match=match, action=action, unless=carved)
        file = self.place / "law.yaml"
        file.write_text(text)
        ruleset = load([file], homes=("/root",), patterns=patterns)
        compiled = compiler.compile(
            ruleset,
            mode="enforce",
            without_hook="kill",
            agents=AgentBits(),
            prevents=True,
            lsm=bool(self.probes.hooks),
            generation=self.generation,
            size=self.probes.policy_room,
        )
        assert all(lowered.where == "kernel" for lowered in compiled.lowered.values())
        return compiled.image

    def rule(self, *rules: tuple[str, str, str] | tuple[str, str, str, str]) -> None:
        """Puts them in force, in place of what was."""
        self.probes.put_in_force(self.image(*rules))

    def judge(self, child: Witness, project: str | None = None) -> None:
        """Tags a witness that nobody knows anything of; the kernel judges it from here on."""
        session = self.recorder.tag(child)
        self.probes.mark(session.start, self.generation, NONE, 0)
        assert self.probes.set_session(session, NONE, project)

    def record(self, act: Callable[[], object], project: str | None = None) -> Recording:
        """What one witness did under the law."""
        with witness(act) as child:
            self.judge(child, project)
            child.go()
            child.finish()
            return self.recorder.recording(child)


def code_of(pid: int) -> int:
    """How a child ended: its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spawn(*command: str | bytes | Path) -> int:
    """Runs a command to its end, whatever it writes; its exit code."""
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.execv(command[0], [os.fsencode(word) for word in command])
        os._exit(126)
    return code_of(pid)


def reads(path: str | bytes | Path) -> int:
    """Opens a file in a child and reads from it; how that child ended."""
    pid = os.fork()
    if pid == 0:
        os.read(os.open(path, os.O_RDONLY), 1)
        os._exit(0)
    return code_of(pid)
