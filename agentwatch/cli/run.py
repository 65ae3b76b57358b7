"""`agentwatch run -- CMD`: the wiring of one watched command."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click

from agentwatch import command as commands
from agentwatch import processes
from agentwatch import run as running
from agentwatch.admission import admit
from agentwatch.cli import loader_option, report, through_daemon
from agentwatch.cli.live import live_view
from agentwatch.command import itself
from agentwatch.compiling import compile_for
from agentwatch.engine import Engine
from agentwatch.errors import (
    AgentwatchError,
    JournalError,
    KernelError,
    ProgramRefused,
    UsageError,
)
from agentwatch.events import ProcessKey
from agentwatch.kernel import loading as loaders
from agentwatch.kernel.preflight import explain
from agentwatch.kernel.probes import Probes
from agentwatch.lineage import Living
from agentwatch.measure import snapshots
from agentwatch.mounts import Mounts
from agentwatch.project import project_of
from agentwatch.rules.diagnostics import render
from agentwatch.rules.load import default_paths
from agentwatch.rules.model import Ruleset
from agentwatch.sinks import frames, metrics
from agentwatch.sinks.journal import Journal, read_boot_id
from agentwatch.sinks.jsonl import Findings, JsonLines
from agentwatch.sinks.reader import Host as Recorder
from agentwatch.sinks.screen import Screen
from agentwatch.watch import Sink, Watch

JOURNAL = Path("/var/log/agentwatch")


@dataclass(frozen=True, slots=True)
class Options:
    """Of `run`, as both halves need them. "" for what was not said."""

    agent: str
    rules: tuple[str, ...]
    project: str
    mode: str
    journal: str
    jsonl: str
    metrics: str
    loader: str
    command: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether something is asked for that a daemon has its own of."""
        return any((self.rules, self.mode, self.journal, self.jsonl, self.metrics, self.loader))

    def arguments(self) -> list[str]:
        """For the command line of the other half; paths are absolute by then."""
        given = [f"--{n}={v}" for n in _NAMES if (v := getattr(self, n))]
        given += [f"--rules={path}" for path in self.rules]
        return [*given, "--", *self.command]


_MODE = "observe stops nothing.  [default: enforce]"
_JOURNAL = f"Where to write it.  [default: {JOURNAL}]"
_NAMES = ("agent", "project", "mode", "journal", "jsonl", "metrics", "loader")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(
        (
            click.option("--agent", default="", metavar="NAME", help="Whose rules apply to CMD."),
            click.option(
                "--rules", multiple=True, metavar="PATH", help="Rule file or directory; repeatable."
            ),
            click.option("--project", default="", metavar="DIR", help="$project of the rules."),
            click.option("--mode", type=click.Choice(["observe", "enforce"]), help=_MODE),
            click.option("--journal", default="", metavar="DIR", help=_JOURNAL),
            click.option("--jsonl", default="", metavar="FILE", help="Findings as JSON lines."),
            click.option(
                "--metrics", default="", metavar="HOST:PORT", help="Serve Prometheus metrics."
            ),
            loader_option,
            click.argument("command", nargs=-1, required=True, metavar="-- CMD..."),
        )
    ):
        command = decorate(command)
    return command


@click.command(context_settings={"ignore_unknown_options": False})
@_options
def run(**given: Any) -> None:
    """Run CMD as an agent: watch what it executes, opens and connects to, stop it by the rules.

    Exits with CMD's own code. Where a daemon runs, that one watches by its own rules; with --rules,
    --mode, --journal, --jsonl or --metrics, or without a daemon, `run` watches by itself. Then it
    needs root, for its watching half only, and asks sudo for it.
    """
    options = _checked(_given(given))
    if not options.alone and (socket := through_daemon.reachable()):
        who = through_daemon.Agent(options.agent, options.project, options.command)
        sys.exit(through_daemon.run(who, socket))
    if os.geteuid() != 0:
        sys.exit(running.through_sudo(options.command, lambda pid: _other_half(pid, options)))
    person = commands.invoking_person(os.environ)
    command = commands.Command(options.command, person)
    try:
        with ExitStack() as stack:
            watched = _Watched(stack, options, command.pid, person)
            if person.uid == 0:
                watched.tell("CMD runs as root: no SUDO_UID says whose it is")
            command.open()
            code = watched.follow(running.OwnEnding(command))
    except _EndedAtGate as error:
        report(error)
        command.ended(block=True)
        code = commands.exit_code(command.status or 0)
    except BaseException:
        command.abandon()
        raise
    sys.exit(code)


@click.command(hidden=True)
@click.option("--pid", type=int, required=True)
@_options
def watch_for(pid: int, **given: Any) -> None:
    """The watching half of `run`, started through sudo for a CMD that waits at its gate."""
    _tell(running.HERE)
    options = _given(given)
    person = commands.invoking_person(os.environ)
    if not _belongs_to(pid, person.uid):
        raise UsageError(f"process {pid} is not {person.name}'s", "use `agentwatch run`")
    with ExitStack() as stack:
        watched = _Watched(stack, options, pid, person)
        _tell(running.WATCHING)
        ending = running.ToldEnding(sys.stdin.buffer, pid)
        watched.follow(ending)
    if ending.untold:
        click.echo("agentwatch: the half that started CMD is gone: CMD was ended too", err=True)
        sys.exit(1)


def _given(given: dict[str, Any]) -> Options:
    return Options(**given | {name: given[name] or "" for name in ("mode", "loader")})


def _tell(word: bytes) -> None:
    sys.stdout.buffer.write(word)
    sys.stdout.flush()


def _belongs_to(pid: int, uid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid
    except OSError:
        return False


def _other_half(pid: int, options: Options) -> Sequence[str]:
    python = itself()
    if os.environ.get("NO_COLOR"):  # sudo does not pass it on
        python = ("env", "NO_COLOR=1", *python)
    return [*python, "watch-for", f"--pid={pid}", *options.arguments()]


def _checked(options: Options) -> Options:
    """Paths made absolute, and everything refused that can be before anything is started."""
    project = options.project
    if project and not Path(project).is_dir():
        raise UsageError(f"--project {project}: no such directory", "name an existing directory")
    if options.metrics:
        _address(options.metrics)
    _check_command(options.command[0])
    found = project or project_of(Path.cwd(), str(Path.home())) or ""
    return Options(
        options.agent,
        tuple(str(Path(path).resolve()) for path in options.rules),
        str(Path(found).resolve()) if found else "",
        options.mode,
        str(Path(options.journal).resolve()) if options.journal else "",
        str(Path(options.jsonl).resolve()) if options.jsonl else "",
        options.metrics,
        options.loader,
        options.command,
    )


class _EndedAtGate(AgentwatchError):
    """CMD is gone before it could be watched, and never ran."""


class CommandNotFound(AgentwatchError):
    exit_code = commands.NOT_FOUND


class CommandNotExecutable(AgentwatchError):
    exit_code = commands.NOT_EXECUTABLE


def _check_command(name: str) -> None:
    """Refuses what a shell would refuse, with its exit codes."""
    if shutil.which(name):
        return
    if os.path.isdir(name) and "/" in name:
        raise CommandNotExecutable(f"{name} is a directory", "name a program")
    found = shutil.which(name, os.F_OK)
    if found:
        raise CommandNotExecutable(f"{name} may not be executed", f"chmod +x {found}")
    raise CommandNotFound(f"{name}: command not found", "check its name and PATH")


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"--metrics {text}: not HOST:PORT", "for example --metrics 127.0.0.1:9477")
    return host.strip("[]") or "127.0.0.1", int(port)


class _Watched:
    """Everything a watched command needs, each closed by `stack` in reverse."""

    def __init__(
        self, stack: ExitStack, options: Options, pid: int, person: commands.Person
    ) -> None:
        begun = time.monotonic()
        try:
            # The kernel verifies the probes while the rules are compiled.
            loading = loaders.begin(options.loader)
        except ProgramRefused as error:
            raise explain(error) from None
        stack.callback(loading.close)
        host = loaders.expected(loading)
        paths = [Path(path) for path in options.rules] or default_paths()
        admitted = admit(paths, host=host)
        ruleset = admitted.ruleset
        engine = Engine(ruleset, mode=options.mode or "enforce", generation=1)
        compile_for(engine, host, room=loading.sizes.policy)
        compiled = time.monotonic() - begun
        agents = _agents(options.agent, ruleset)
        mounts = Mounts.read()
        journal = Journal.open(
            Path(options.journal or JOURNAL),
            boot_id=read_boot_id(),
            mounts=mounts,
            group=person.own_group,
        )
        self._journal = journal
        stack.callback(self._close_journal)
        try:
            probes = loading.probes()
        except ProgramRefused as error:
            raise explain(error) from None
        stack.callback(probes.close)
        found = loaders.found(host, probes)
        if found != host:
            host = found
            admit(paths, host=host)  # are there rules that insist on it?
            compile_for(engine, host, room=probes.policy_room)
        host = replace(host, lossy=probes.lossy)
        self._screen = Screen(sys.stderr.fileno())
        stack.callback(self._screen.close)
        self._live = live_view(ruleset.agents, self._screen)
        sinks: list[Sink] = [self._live]
        self._findings: JsonLines | None = None
        if options.jsonl:
            findings = Findings(Path(options.jsonl), _recorder())
            stack.callback(findings.close)
            self._findings = JsonLines(findings, self._live.frame)
            sinks.append(self._findings)
        self._watch = Watch(probes, engine, journal, host=host, mounts=mounts, sinks=sinks)
        stack.callback(self._watch.close)
        if options.metrics:
            loaded = time.time()
            take = snapshots(self._watch, lambda: (compiled, loaded))
            server = metrics.serve(*_address(options.metrics), take)
            stack.callback(server.close)
        for warning in admitted.warnings:
            self._screen.write(render(warning) + "\n")
        self._begin(options, pid, person, agents)

    def _begin(
        self, options: Options, pid: int, person: commands.Person, agents: tuple[str, ...]
    ) -> None:
        watch = self._watch
        command = watch.redactor.argv(options.command)
        self._session = _tagged(watch.probes, pid)
        image = processes.image_now(self._session)
        project = options.project or None
        watch.say(
            frames.Start(
                pid=os.getpid(),
                command=command,
                user=person.name,
                mode=watch.engine.mode,
                tier=watch.host.tier,
                rules=len(watch.engine.ruleset.rules),
                generation=watch.engine.generation,
            )
        )
        watch.look_at_hooks()
        watch.sessions.begin(
            self._session,
            how="run",
            agents=agents,
            project=project,
            image=image,
            uid=person.uid,
            command=command,
        )

    def tell(self, text: str) -> None:
        """A line on stderr, which nobody may be reading."""
        self._screen.write(f"agentwatch: {text}\n")

    def follow(self, ending: running.Ending) -> int:
        """Until CMD has ended; then the summary. CMD's exit code.

        Nothing of the session is left running unwatched where that was not CMD's own doing. Raises
        AgentwatchError when watching has failed.
        """
        watch = self._watch
        try:
            code = running.follow(watch, ending, self._session)
            if isinstance(ending, running.ToldEnding) and ending.untold:
                watch.sessions.end()
            left = [self._named(one) for one in running.still_there(watch)]
            missing = self._findings.missing if self._findings else 0
            journal = str(self._journal.directory)
            dropped = self._screen.dropped
            self._live.summary(code, journal, left=left, unwritten=missing, dropped=dropped)
            watch.say(frames.Stop(reason="CMD ended", status=code))
        except BaseException as error:
            self._give_up(error)
        return code

    def _give_up(self, error: BaseException) -> NoReturn:
        """The loop is broken: everything of the session ends before the probes do."""
        self._watch.sessions.end()
        told = error.message if isinstance(error, AgentwatchError) else str(error)
        reason = f"watching failed: {type(error).__name__}: {told}"
        with suppress(Exception):  # it is said on stderr in any case
            self._journal.write(frames.Stop(reason=reason, status=-1))
        raise AgentwatchError(
            f"{reason}; CMD was ended", "agentwatch events, and report it"
        ) from error

    def _named(self, one: Living) -> str:
        image = self._watch.lineage.image(one.process)
        name = (image.script or image.exe) if image else "?"
        return f"{name} (process {one.process.pid}) goes on, unwatched"

    def _close_journal(self) -> None:
        """CMD keeps its exit code where the disk is full: what is missing is said, not thrown."""
        try:
            self._journal.close()
        except JournalError as error:
            report(JournalError(f"the journal's end is missing: {error.message}", error.remedy))


def _tagged(probes: Probes, pid: int) -> ProcessKey:
    """The session of CMD. Raises _EndedAtGate when there is no CMD any more."""
    try:
        return probes.tag(pid)
    except (ProcessLookupError, KernelError):
        there = processes.key_now(pid)
        if there and processes.runs(there):
            raise
        raise _EndedAtGate("CMD was ended by somebody before it was run") from None


def _agents(name: str, ruleset: Ruleset) -> tuple[str, ...]:
    """--agent as the session's agents. Raises UsageError for one that no rule file knows."""
    known = ", ".join(agent.id for agent in ruleset.agents)
    if name and name not in known.split(", "):
        remedy = f"one of {known}" if known else "add --rules with a file that has `agents:`"
        raise UsageError(f"--agent {name}: no identity of that name", remedy)
    return (name,) if name else ()


def _recorder() -> Recorder:
    """This machine and its clocks, for objects that leave it."""
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Recorder(boot_id=read_boot_id(), name=socket.gethostname(), offset=offset)
