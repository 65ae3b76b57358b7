"""`agentwatch agents`: the sessions that are watched, their processes, and what to do to them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from agentwatch.cli import wants_colour
from agentwatch.cli.asking import ask, made, many, output_option, show_json, socket_option
from agentwatch.cli.events import quiet_pipe
from agentwatch.sinks.escape import shown
from agentwatch.sinks.lines import clock

DEPTH = 24  # levels that are indented; a chain of processes may be as long as it likes


@dataclass(frozen=True, slots=True)
class Process:
    """parent: 0 where that is not in the session. role: agent | child."""

    pid: int = 0
    started_at: int = 0
    parent: int = 0
    exe: str = ""
    command: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """how it began: run | identity | running | tag. state: running | frozen. held, which is how it
    is frozen: "" | cgroup | signal.
    """

    session: str = ""
    pid: int = 0
    agents: tuple[str, ...] = ()
    user: str = ""
    uid: int = -1
    project: str = ""
    began_at: int = 0
    how: str = ""
    state: str = ""
    held: str = ""
    processes: tuple[Process, ...] = field(default=(), metadata={"of": Process})


@dataclass(frozen=True, slots=True)
class Listed:
    """The answer to agents.list."""

    sessions: tuple[Session, ...] = field(default=(), metadata={"of": Session})


@dataclass(frozen=True, slots=True)
class Tagged:
    """The answer to agents.tag."""

    session: str = ""
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to every other changing verb."""

    sessions: tuple[str, ...] = ()
    processes: int = 0
    how: str = ""


@click.group()
def agents() -> None:
    """List the agents that are watched; tag, freeze, thaw and kill them.

    WHICH is a pid, a session's id, or an agent's id, which means all of its sessions.
    """


@agents.command("list")
@socket_option
@output_option
def list_(socket: Path, output: str) -> None:
    """List sessions, each with the tree of its processes.

    Root sees all of them, others their own.
    """
    value = ask(socket, "agents.list")
    if output == "json":
        with quiet_pipe():
            show_json(value)
        return
    found = made(Listed, value).sessions
    with quiet_pipe():
        for session in found:
            _show(session, wants_colour(sys.stdout))
    if not found:
        click.echo("agentwatch: no agent is at work", err=True)


@agents.command()
@click.argument("pid", type=click.IntRange(min=1))
@click.option(
    "--agent", metavar="NAME", default="", help="Whose rules apply; default: by its name."
)
@click.option(
    "--project",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Its project; default: worked out from its working directory.",
)
@socket_option
@output_option
def tag(pid: int, agent: str, project: Path | None, socket: Path, output: str) -> None:
    """Watch the process PID and everything it starts from now on.

    Root may tag any process, others themselves only.
    """
    place = str(project.resolve()) if project else ""
    value = ask(socket, "agents.tag", pid=pid, agent=agent, project=place)
    if output == "json":
        show_json(value)
        return
    done = made(Tagged, value)
    click.echo(shown(f"tagged {pid}: session {done.session}, {many(done.processes, 'process')}"))


@agents.command()
@click.argument("which")
@socket_option
@output_option
def untag(which: str, socket: Path, output: str) -> None:
    """Stop watching: the processes run on, and no rule applies to them any more."""
    _change("untag", "untagged", which, socket, output)


@agents.command()
@click.argument("which")
@socket_option
@output_option
def kill(which: str, socket: Path, output: str) -> None:
    """End every process of a session."""
    _change("kill", "killed", which, socket, output)


@agents.command()
@click.argument("which")
@socket_option
@output_option
def freeze(which: str, socket: Path, output: str) -> None:
    """Stop every process of a session until it is thawed."""
    _change("freeze", "frozen", which, socket, output)


@agents.command()
@click.argument("which")
@socket_option
@output_option
def thaw(which: str, socket: Path, output: str) -> None:
    """Let a frozen session go on."""
    _change("thaw", "thawed", which, socket, output)


def _change(verb: str, what: str, which: str, socket: Path, output: str) -> None:
    value = ask(socket, f"agents.{verb}", which=which)
    if output == "json":
        show_json(value)
        return
    done = made(Done, value)
    how = f" by {done.how}" * bool(done.how and verb == "freeze")
    count = f"{many(len(done.sessions), 'session')}, {many(done.processes, 'process')}"
    click.echo(shown(f"{what}{how}: {count}"))
    for session in done.sessions:
        click.echo(f"  {shown(session)}")


def _show(session: Session, colour: bool) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for number, text in enumerate(lines(session)):
        cut = f"{text[: width - 1]}…" if 0 < width < len(text) and number else text
        fg = "red" if session.state == "frozen" else None
        click.echo(click.style(cut, bold=True, fg=fg) if colour and not number else cut)


def lines(session: Session) -> Iterator[str]:
    """A session: who and since when, its id and project, a line for each process."""
    names = ", ".join(session.agents) or "-"
    frozen = f", frozen by {session.held or 'somebody'}" * (session.state == "frozen")
    user = session.user or str(session.uid)
    began = clock(session.began_at).partition(".")[0]
    count = many(len(session.processes), "process")
    yield shown(f"{names}: {user}, since {began}, {count}{frozen}")
    yield shown(f"  session {session.session}")
    if session.project:
        yield shown(f"  project {session.project}")
    for depth, process in tree(session.processes):
        mark = "*" if process.role == "agent" else " "
        what = shown(process.command or process.exe or "?")
        yield f"  {process.pid:>7} {mark} {'  ' * min(depth, DEPTH)}{what}"


def tree(processes: tuple[Process, ...]) -> Iterator[tuple[int, Process]]:
    """(depth, process), each behind its parent, siblings by pid; every process is there once."""
    known = {process.pid for process in processes}
    children: dict[int, list[Process]] = {}
    for process in sorted(processes, key=lambda one: one.pid, reverse=True):
        parent = process.parent if process.parent in known - {process.pid} else 0
        children.setdefault(parent, []).append(process)
    waiting = [(0, process) for process in children.pop(0, [])]
    while waiting:
        depth, process = waiting.pop()
        yield depth, process
        waiting += [(depth + 1, child) for child in children.pop(process.pid, [])]
    for orphans in children.values():  # of parents that are in a circle, as a snapshot may have it
        yield from ((0, process) for process in reversed(orphans))
