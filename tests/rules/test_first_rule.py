"""docs/first-rule.md: what it says to type works, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

FENCE = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = "/home/dev/infra"  # where the page's person works
JOURNAL = "/var/log/agentwatch"
ENDED = 137  # exit code of a command that was killed


@dataclass(frozen=True, slots=True)
class Step:
    """A command of the page and what it prints, or (`command` empty) a file to be written."""

    command: str
    text: str
    file: str = ""
    root: bool = False


def steps(page: str) -> list[Step]:
    """All of them, in the order of the page."""
    found: list[Step] = []
    for kind, words, body in FENCE.findall(page):
        if kind == "yaml" and words.strip():
            found.append(Step("", body, file=words.strip()))
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Step(command, output, root="root" in words))
    return found


@pytest.fixture(scope="module")
def page(repository: Path) -> list[Step]:
    return steps((repository / "docs/first-rule.md").read_text(encoding="utf-8"))


def played(command: str, directory: Path, agentwatch: Path) -> subprocess.CompletedProcess[str]:
    """The command by a shell in `directory`, both of its outputs in one."""
    environment = {**os.environ, "PATH": f"{agentwatch.parent}:{os.environ['PATH']}"}
    environment |= {"AGENTWATCH_SOCKET": str(directory / "nobody.sock"), "COLUMNS": "120"}
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def without_root(page: list[Step], directory: Path, agentwatch: Path) -> list[tuple[Step, str]]:
    """Each step that needs no root, done, with what its command printed."""
    done: list[tuple[Step, str]] = []
    for step in page:
        if step.file:
            (directory / step.file).write_text(step.text, encoding="utf-8")
        elif not step.root:
            done.append((step, played(step.command, directory, agentwatch).stdout))
    return done


def test_the_page_prints_what_agentwatch_prints(
    page: list[Step], tmp_path: Path, agentwatch: Path
) -> None:
    """Every command that needs no root, to the letter."""
    for step, printed in without_root(page, tmp_path, agentwatch):
        assert printed == step.text, step.command


def test_the_page_goes_all_the_way(page: list[Step]) -> None:
    """From an empty file to enforcing, one mistake included."""
    commands = [step.command for step in page]
    for words in (
        *("rules new", "rules check", "rules test", "rules list", "rules explain"),
        *("--mode observe", "--would-deny"),
    ):
        assert any(words in command for command in commands), words
    assert any("error[AW" in step.text for step in page)
    assert any(step.command.startswith("agentwatch run --rules tfstate.yaml --") for step in page)


def test_the_rule_of_the_page_is_in_the_form_that_new_prints(
    page: list[Step], tmp_path: Path, agentwatch: Path
) -> None:
    """Who edits the file that `rules new` wrote has these keys before them."""
    template = played("agentwatch rules new acme.tfstate --on read", tmp_path, agentwatch).stdout
    rule = next(step.text for step in page if step.file)
    keys = re.compile(r"^ *(?:# *|- )?([a-z_]+):", re.MULTILINE)
    assert set(keys.findall(rule)) - {"terraform", "hit", "miss"} <= set(keys.findall(template))


def lines(text: str, directory: Path) -> list[str]:
    """Without numbers, spacing and places, which differ from run to run."""
    text = text.replace(str(directory / "journal"), JOURNAL).replace(str(directory), SHOWN)
    return [re.sub(r"\s+", " ", re.sub(r"\d+", "N", line)).strip() for line in text.splitlines()]


@pytest.mark.root
def test_the_steps_with_root_print_what_the_page_says(
    page: list[Step], tmp_path: Path, agentwatch: Path
) -> None:
    """Observed, found again by --would-deny, then killed: every line of the page is printed."""
    without_root(page, tmp_path, agentwatch)
    (tmp_path / "journal").mkdir(mode=0o755)
    for step in page:
        if step.root:
            journal = rf"agentwatch \1 --journal {tmp_path}/journal "
            command = re.sub(r"agentwatch (run|events) ", journal, step.command)
            done = played(command, tmp_path, agentwatch)
            missing = set(lines(step.text, tmp_path)) - set(lines(done.stdout, tmp_path))
            assert not missing, (step.command, done.stdout)
            ends = "run" in step.command and "observe" not in step.command
            assert done.returncode == (ENDED if ends else 0)
