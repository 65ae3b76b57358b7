"""What the commands of `agentwatch rules` share: reading rule files, and refusing bad ones."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from agentwatch import admission
from agentwatch.admission import Admitted
from agentwatch.cli import wants_colour
from agentwatch.compiling import compile_here
from agentwatch.errors import AgentwatchError, Diagnostic, RuleErrors
from agentwatch.events import Event
from agentwatch.kernel import lsm, preemption, preflight
from agentwatch.kernel.policies import cgroup_root
from agentwatch.kernel.probes import Sizes
from agentwatch.lineage import Actor
from agentwatch.policy import levels, patterns
from agentwatch.policy.answering import Answer, answer
from agentwatch.policy.compiler import Compiled
from agentwatch.policy.image import KILL, LOOK, Image
from agentwatch.rules.diagnostics import render
from agentwatch.rules.load import Loaded, default_paths, packs, read_rules
from agentwatch.rules.model import MODES, Rule, Ruleset

BEHIND = "with the shipped packs as background"

paths_argument = click.argument(
    "paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path)
)
output_option = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
mode_option = click.option("--mode", type=click.Choice(MODES), default="enforce")


def admit(paths: tuple[Path, ...]) -> Admitted:
    """The rules of these files, the packs behind them if they name what only those define; or the
    installed ones. Raises RuleErrors.
    """
    background = (packs(),) if paths else ()
    return admission.admit(paths or default_paths(), host=host_here(), background=background)


def admitted(paths: tuple[Path, ...], output: str) -> Admitted:
    """See admit; exits where they are refused."""
    try:
        found = admit(paths)
    except RuleErrors as error:
        refuse(error, output)
    if found.background:
        click.echo(f"agentwatch: {BEHIND}: {near(str(packs()))}", err=True)
    return found


def read(paths: tuple[Path, ...], output: str) -> Loaded:
    """The files as `admit` reads them, neither tested nor weighed; exits where they are refused."""
    try:
        found = read_rules(paths or default_paths(), patterns, (packs(),) if paths else ())
    except RuleErrors as error:
        refuse(error, output)
    if found.background:
        click.echo(f"agentwatch: {BEHIND}: {near(str(packs()))}", err=True)
    return found


def refuse(error: RuleErrors, output: str) -> NoReturn:
    """Says on stderr what is wrong in the files, as text or as JSON, and exits."""
    found = [one for one in error.diagnostics if one.severity == "error"]
    if output == "json":
        click.echo(as_json([dataclasses.asdict(one) for one in found]), err=True)
        sys.exit(error.exit_code)
    for one in found:
        click.echo(coloured(one, err=True), err=True)
    click.echo(f"agentwatch: {error.message}", err=True)
    sys.exit(error.exit_code)


def host_here() -> levels.Host:
    """What this host's kernel can do: what nothing can be known of without root, it cannot."""
    if preflight.loader() == "bcc":
        return levels.Host(loader="bcc")
    return levels.Host(lsm.programs(), cgroup=cgroup_root() is not None)


def say_untried(output: str) -> None:
    """That this host may prevent more than is said, where that could not be tried."""
    if output == "text" and os.geteuid() != 0 and lsm.listed():
        text = "what BPF LSM refuses here is known to root only: sudo agentwatch rules list"
        click.echo(f"agentwatch: {text}", err=True)


class Worth:
    """What rules are worth on this host, compiled as the kernel would have them.

    compiled: None where that was not possible; then the engine decides on them all.
    """

    def __init__(self, ruleset: Ruleset, mode: str = "enforce") -> None:
        host = host_here()
        self._host = replace(host, lossy=host.decides and preemption.skips())
        self._mode = mode
        self.compiled: Compiled | None = None
        self._why = ""
        try:
            self.compiled = compile_here(ruleset, self._host, mode, room=Sizes().policy)
        except AgentwatchError as error:
            self._why = f"The rules could not be compiled for the kernel ({error.message})."
            if not self._host.decides:
                self._why = f"{levels.BCC[0].upper()}{levels.BCC[1:]}."

    def level(self, rule: Rule) -> levels.Level:
        return levels.level(rule, self._host, self._mode, engine=self.engine(rule.id))

    def kernel(self, event: Event, actor: Actor) -> Answer | None:
        """What the kernel does about an event; None for nothing."""
        if self.compiled is None:
            return None
        found = answer(self.compiled, Image(self.compiled.image), event, actor, self._host)
        return found if found is not None and found.decision.verdict else None

    def words(self, found: Answer) -> str:
        """The same for a person."""
        assert self.compiled is not None
        verdict = found.decision.verdict
        if verdict == LOOK:
            return "it has the engine decide"
        who = self.rule(found)
        if not found.refused:
            return f"it kills, by {who}"
        does = "it refuses it with EPERM" + " and kills" * (verdict == KILL)
        if found.unread is not None and verdict != KILL:
            else_ = {KILL: "kills", LOOK: "has the engine decide"}.get(found.unread.verdict)
            does += f", or {else_} where the caller's arguments cannot be read" * bool(else_)
        return f"{does}, by {who}"

    def rule(self, found: Answer) -> str:
        """The id of the rule that says so; of a default, in words."""
        assert self.compiled is not None
        rule = self.compiled.rules[found.decision.rule - 1]
        return rule.rule or f"the default of {rule.agent} for {rule.kind}"

    def engine(self, rule: str) -> str:
        """Why the engine decides on a rule, a sentence; "" where the kernel does.

        Also of what is no rule of these: a default.
        """
        if self.compiled is None:
            return self._why
        lowered = self.compiled.lowered.get(rule)
        return lowered.reason if lowered and lowered.where == "engine" else ""


def coloured(found: Diagnostic, err: bool = False) -> str:
    """A finding as text, its severity in colour on a terminal."""
    text = render(found)
    if not wants_colour(sys.stderr if err else sys.stdout):
        return text
    word = f"{found.severity}[{found.code}]"
    colour = "red" if found.severity == "error" else "yellow"
    return text.replace(word, click.style(word, fg=colour, bold=True), 1)


def near(path: str) -> str:
    """A file's name as short as it can be said from here."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is elsewhere, or this directory is gone
        return path


def count(number: int, noun: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def as_json(value: Any) -> str:
    """For programs: ASCII, indented."""
    return json.dumps(value, indent=2, ensure_ascii=True)
