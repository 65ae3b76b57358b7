"""A person with a home, an agent and a project, for runs with real programs under `agentwatch run`.

The person is called claude, which must not make an agent of everything they do. The home is a new
directory in /home and goes away with the stage.

    home/.local/bin/claude   the stand-in for an agent
    home/project             $project, a git repository
    place/                   journal, listeners' files, effects of stand-ins: outside of the home
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentwatch.sinks.frames import Verdict
from agentwatch.sinks.reader import read
from tests.kernel.launching import ended_after
from tests.packs.story import SEVERE

HERE = Path(__file__).resolve().parent
UID = 61234
PERSON = "claude"
PATIENCE = 60  # s that a run may take
END = "\x1e"  # of a step


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run. steps: the exit code of each, as a shell shows it."""

    out: str
    err: str
    verdicts: tuple[Verdict, ...]

    @property
    def steps(self) -> list[int]:
        lines = self.out.splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("step ")]

    @property
    def fired(self) -> set[str]:
        return {verdict.rule for verdict in self.verdicts}

    @property
    def severe(self) -> list[str]:
        """Findings of severity medium or above."""
        found = [v for v in self.verdicts if v.severity in SEVERE]
        return [f"{v.rule} ({v.severity}, {v.outcome}): {v.kind} {v.what}" for v in found]


@dataclass(slots=True)
class Stage:
    """canary: a random word that is in the person's secrets and nowhere else."""

    home: Path
    place: Path
    agentwatch: Path
    rules: Path
    canary: str
    toolchain: str = ""  # a directory that the runs find as home/toolchain; "" for none

    @property
    def project(self) -> Path:
        return self.home / "project"

    @property
    def effects(self) -> Path:
        return self.place / "effects"

    @property
    def bin(self) -> Path:
        return self.home / ".local" / "bin"

    @property
    def sink(self) -> bytes:
        """Every byte that arrived where stolen ones go."""
        return (self.place / "sink").read_bytes()

    @property
    def metadata(self) -> bytes:
        return (self.place / "metadata").read_bytes()

    @property
    def environment(self) -> dict[str, str]:
        """As sudo leaves it for its caller."""
        kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
        return kept | {
            "HOME": str(self.home),
            "USER": PERSON,
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "SUDO_UID": str(UID),
            "SUDO_GID": str(UID),
            "EFFECTS": str(self.effects),
            "TOOLCHAIN": self.toolchain,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "npm_config_update_notifier": "false",
            "npm_config_fund": "false",
            "npm_config_audit": "false",
        }

    def write(self, path: Path | str, text: str, mode: int = 0o644) -> Path:
        """A file of the person's; a relative name is in their home."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def stand_in(self, program: Path, *names: str) -> None:
        """The program that does harm, in the person's PATH under these names."""
        for name in names:
            shutil.copy(program, self.bin / name)
            (self.bin / name).chmod(0o755)

    def own(self) -> None:
        """Everything in the home becomes the person's."""
        subprocess.run(["chown", "-hR", f"{UID}:{UID}", self.home, self.effects], check=True)

    def __call__(self, *steps: str) -> Run:
        """The agent does these steps under agentwatch with the packs, each in a shell."""
        self.write(".steps", "".join(step + END for step in steps))
        self.own()
        journal = self.place / f"journal-{secrets.token_hex(4)}"
        options = [f"--rules={self.rules}", f"--journal={journal}", f"--project={self.project}"]
        agent = [str(self.bin / "claude"), str(self.home / ".steps")]
        people = [str(self.place / "passwd"), str(self.place / "group"), str(self.place)]
        command = [str(HERE / "inside.sh"), *people, str(self.agentwatch), "run", *options, "--"]
        out, err = self._output([*command, *agent])
        frames = [entry.frame for entry in read(journal)]
        found = tuple(frame for frame in frames if isinstance(frame, Verdict))
        run = Run(out, err, found)
        assert len(run.steps) == len(steps), f"{out}\n{err}"
        return run

    def _output(self, command: Sequence[str]) -> tuple[str, str]:
        """stdout and stderr. What does not end in time is ended, with everything it started."""
        process = subprocess.Popen(
            command,
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        with ended_after(process):
            return process.communicate(timeout=PATIENCE)


@contextmanager
def staged(agentwatch: Path, rules: Path) -> Iterator[Stage]:
    """A new person and their home."""
    home = Path(tempfile.mkdtemp(prefix="claude-", dir="/home")).resolve()
    place = Path(tempfile.mkdtemp(prefix="agentwatch-packs-")).resolve()
    try:
        for directory in (home, place):
            directory.chmod(0o755)
        stage = Stage(home, place, agentwatch, rules, f"canary-{secrets.token_hex(12)}")
        _furnish(stage)
        yield stage
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)


def _furnish(stage: Stage) -> None:
    """Secrets with the canary in them, an agent, a project under git, and who there is."""
    key = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{stage.canary}\n"
    stage.write(".ssh/id_ed25519", key, 0o600)
    stage.write(".aws/credentials", f"[default]\naws_secret_access_key = {stage.canary}\n", 0o600)
    stage.write(".codex/auth.json", f'{{"token": "{stage.canary}"}}\n', 0o600)
    stage.write(".npmrc", f"//registry.invalid/:_authToken={stage.canary}\n", 0o600)
    stage.write(".bashrc", "# the person's\n")
    stage.write(".claude/settings.json", "{}\n")
    stage.write(
        ".gitconfig",
        "[user]\n\tname = A\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n",
    )
    stage.write("project/.env", f"API_KEY={stage.canary}\n")
    stage.write("project/.gitignore", ".env\nnode_modules\nbuild\n")
    stage.write("project/README.md", "A project.\n")
    stage.bin.mkdir(parents=True)
    stage.effects.mkdir()
    shutil.copy(HERE / "programs" / "claude", stage.bin / "claude")
    for name in ("passwd", "group"):
        text = Path(f"/etc/{name}").read_text()
        more = f"{PERSON}:x:{UID}:" + (f"{UID}::{stage.home}:/bin/bash" if name == "passwd" else "")
        (stage.place / name).write_text(f"{text}{more}\n")
    (stage.place / "download").write_text(f"touch {stage.effects}/downloaded\n")
    stage.own()
    git(stage, "init", "-q")
    git(stage, "add", ".")
    git(stage, "commit", "-q", "-m", "A project")


def git(stage: Stage, *arguments: str) -> str:
    """git as the person, in the project, unwatched."""
    return as_person(stage, "git", *arguments)


def as_person(stage: Stage, *command: str) -> str:
    """A command as the person, in the project, unwatched; what it wrote."""
    line: Sequence[str] = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    done = subprocess.run(
        [*line, *command],
        cwd=stage.project,
        env=stage.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout
