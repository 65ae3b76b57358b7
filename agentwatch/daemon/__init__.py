"""The daemon: every agent on the machine, all the time. The only place that wires its parts.

One loop turns on one epoll: the rings, the control socket, a finished reload, signals. Metrics are
served by threads that only read.
"""

from __future__ import annotations

import dataclasses
import gc
import grp
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentwatch.actions import Breaker
from agentwatch.admission import try_out
from agentwatch.beginning import Begun
from agentwatch.compiling import left_out
from agentwatch.config import Config
from agentwatch.control import wire
from agentwatch.control.connection import Connection
from agentwatch.control.peer import Peer
from agentwatch.control.server import Server, Stream
from agentwatch.daemon.audit import Audit
from agentwatch.daemon.denials import Denials
from agentwatch.daemon.feed import Feed
from agentwatch.daemon.history import History
from agentwatch.daemon.policy import Loaded, Reloading, Result, compiled
from agentwatch.daemon.remembered import Remembered
from agentwatch.daemon.signals import Signals
from agentwatch.daemon.status import Policy, Status
from agentwatch.daemon.succession import Succession
from agentwatch.daemon.upkeep import Upkeep
from agentwatch.daemon.verbs import Verbs
from agentwatch.engine import Engine
from agentwatch.errors import AgentwatchError, RuleErrors
from agentwatch.freezer import Freezer
from agentwatch.kernel import heap
from agentwatch.measure import Desk, Tally, snapshots
from agentwatch.mounts import Mounts
from agentwatch.notify import Notifier
from agentwatch.policy.subjects import AgentBits
from agentwatch.sinks import frames, metrics
from agentwatch.sinks.host import read_boot_id, this_host
from agentwatch.sinks.journal import Journal
from agentwatch.sinks.journald import Journald
from agentwatch.sinks.jsonl import Findings, JsonLines
from agentwatch.sinks.textfile import TextFile
from agentwatch.watch import Watch

TIDY = 60.0  # s between two looks at what of the journal is to be kept
ANCHOR = 600.0  # s between two times that journald is told where the chain stands
FIRST_ANCHOR = 5.0  # s after the start
REVOKE = 1.0  # s between two looks at who may not read events any more
SWITCH = 0.001  # s that a reload's thread may keep the interpreter from the loop
RULES_NAMED = 8  # of those that are gone
STOPPING = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """Everything there is, each closed by `stack` in reverse. Raises AgentwatchError.

    begun: how far it is; its probes are whoever loaded them's to close. tell: where a line goes
    for whoever looks at the daemon's own terminal. journald: where there is no such terminal.
    """

    def __init__(
        self,
        stack: ExitStack,
        begun: Begun,
        notifier: Notifier,
        tell: Callable[[str | AgentwatchError], None] = lambda text: None,
        journald: Journald | None = None,
    ) -> None:
        config, probes = begun.config, begun.probes
        self.config, self._notifier, self._host = config, notifier, begun.host
        self._refusing = begun.host.cgroup  # connections, from the start
        self._untried = not begun.tested
        self._stop = ""
        self._tell, self._journald = (journald.tell if journald else tell), journald
        self._group = grp.getgrnam(config.group).gr_gid if config.group else None
        self._refused: AgentwatchError | None = None
        _raise_limits()
        sys.setswitchinterval(SWITCH)
        self._poller = stack.enter_context(select.epoll())
        self._server = Server(config.socket, self._answer, self._poller)
        stack.callback(self._server.close, "the daemon is stopping")
        self._reloading = Reloading(self._host, probes.policy_room)
        stack.callback(self._reloading.close)
        self._upkeep = Upkeep(
            self._reloading,
            self._now,
            self._notifier.reloading,
            self._pause_over,
            self._rules_gone,
        )
        self._upkeep.took(config)
        loaded = compiled(
            begun.config,
            begun.admitted,
            begun.seconds,
            self._host,
            probes.policy_room,
            agents=AgentBits(probes.keeping.agents),
            generation=probes.keeping.generation,
        )
        mounts = Mounts.read()
        self._journal = _journal(config, mounts, self._group)
        stack.callback(self._close_journal)
        self._denials, self._tally = Denials(), Tally()
        self._freezer = Freezer.open(config.cgroup)
        self._watch = Watch(
            probes,
            loaded.engine,
            self._journal,
            host=self._host,
            mounts=mounts,
            sinks=[self._denials],
            breaker=Breaker(config.breaker.kills, config.breaker.within),
            freezer=self._freezer,
            on_loss=config.on_loss,
            threaded=True,
            identities=None if config.agents is None else frozenset(config.agents),
        )
        self._watch.told = False  # no sink here shows events
        stack.callback(self._watch.close)
        self._feed = Feed(self._journal, self._watch.sessions)
        self._findings: Findings | None = None
        self._lines: JsonLines | None = None
        stack.callback(self._close_findings)
        now = time.time_ns()
        self._policy = Policy(loaded, now, now)
        self._history = History(self._journal.directory, self._poller)
        stack.callback(self._history.close)
        self._remembered = Remembered(config.socket, read_boot_id())
        self._forgetful = False
        self._succession = Succession(self._watch, self._say)
        self._sought = 0  # of losses.execs, those after which agents were looked for
        self._audit = Audit(self._watch.say)
        self._verbs = Verbs(
            self._watch,
            self._audit,
            self._feed,
            self._denials,
            self._history,
            this_host(),
            Status(self._watch, self._server, self._policy, this_host()),
            self._ask_reload,
            self._upkeep.pause,
            self._group,
        )
        self._apply(loaded, self._findings_of(config))
        self._serve_metrics(stack)
        self._revoked = self._fed = time.monotonic()
        self._tidied = -TIDY  # at once: a daemon may not live for long
        self._anchored = time.monotonic() - ANCHOR + FIRST_ANCHOR

    # The loop.

    def run(self) -> None:
        """Watches until it is told to stop."""
        with self._signals() as wake:
            self._poller.register(wake, select.EPOLLIN)
            self._poller.register(self._reloading.fileno(), select.EPOLLIN)
            self._watch.register(self._poller)
            self._begin()
            # Agents are watched from here on; whether the rules pass their own tests is known soon.
            if self._untried:
                self._watch.aside.do(self._try_rules, self._tried)
            else:
                self._tried(None)
            while not self._stop:
                self._turn(wake)
            self._notifier.stopping(self._stop)
            self._end()
        if self._refused is not None:
            raise self._refused

    def _turn(self, wake: int) -> None:
        ready = self._poller.poll(self._watch.patience, 64)
        begun = time.monotonic()
        for fd, mask in ready:
            if fd in self._server:
                self._server.ready(fd, mask)
            elif fd in self._history:
                self._history.ready(fd)
            elif fd == wake:
                self._received(wake)
            elif fd == self._reloading.fileno():
                self._take_reload()
        self._watch.step()
        self._server.tick()
        self._history.tick()
        now = time.monotonic()
        if self._feed.stale or now - self._revoked >= REVOKE:
            self._revoked = now
            self._audit.tick()
            self._remember()
            self._feed.revoke(self._refusal)
            self._history.revoke(self._refusal)
            self._keep_connections()
            self._seek()
            self._reloading.host = self._watch.host
            self._upkeep.tick()
        if now - self._tidied >= TIDY:
            self._tidied = now
            self._watch.written(self._journal.tidy)
        if self._journald is not None and now - self._anchored >= ANCHOR:
            self._anchored = now
            self._journald.anchor(self._journal.directory.name, self._journal.head)
        interval = self._notifier.watchdog_interval()
        if interval is not None and now - self._fed >= interval:
            self._fed = now
            self._notifier.watchdog()
        self._watch.turns.observe(time.monotonic() - begun)

    def _begin(self) -> None:
        engine = self._watch.engine
        self._watch.say(
            frames.Start(
                pid=os.getpid(),
                command=("agentwatch", "daemon"),
                user="root",
                mode=engine.mode,
                tier=self._host.tier,
                rules=len(engine.ruleset.rules),
                generation=engine.generation,
            )
        )
        self._watch.look_at_hooks()
        if left := left_out(engine.compiled):
            self._watch.say(frames.Notice(subject="policy", text=left))
        frozen, remembered = self._left_frozen(), self._remembered.read()
        self._succession.begin(remembered)
        self._watch.recognition.resume(remembered)
        self._watch.recognition.search()
        self._freeze_again(frozen)
        self._watch.step()
        self._succession.end()
        gc.freeze()  # as _keep, which would walk it all: a start leaves little to be collected
        gc.enable()

    def _try_rules(self) -> AgentwatchError | None:
        try:
            try_out(self._policy.loaded.admitted)
        except AgentwatchError as error:
            return error
        except Exception as error:  # somebody waits to hear that we are ready
            return AgentwatchError(f"the rules could not be tested: {error!r}", "report it")
        return None

    def _tried(self, refused: AgentwatchError | None) -> None:
        """The daemon is ready; rules whose tests fail are not what it was to be started with."""
        heap.give_back()
        if refused is None:
            self._notifier.ready(self._headline())
            self._tell(f"watching: {self._headline()}; `agentwatch status` tells more")
        else:
            self._refused, self._stop = refused, refused.message
            self._succession.keep = False  # nothing of it was in force before us

    def _left_frozen(self) -> set[int]:
        """Processes that a daemon which is gone had frozen: stopped by signal now."""
        if self._freezer is None:
            return set()
        return {pid for left in self._freezer.recover(_stop) for pid in left.pids}

    def _say(self, subject: str, text: str) -> None:
        """In the journal and on the daemon's terminal."""
        self._tell(text)
        self._watch.say(frames.Notice(subject=subject, text=text))

    def _freeze_again(self, pids: set[int]) -> None:
        """What was frozen does not go on because somebody starts the daemon anew."""
        watch = self._watch
        left = [one for one in watch.probes.census() if one.process.pid in pids]
        for one in left:
            if one.session is None:
                watch.recognition.search({one.process: ""})
        sessions = {o.session for o in watch.probes.census() if o.session and o.process.pid in pids}
        for session in sessions:
            watch.sessions.freeze(session, "a daemon before this one had frozen it", again=True)

    def _remember(self) -> None:
        try:
            self._remembered.write(self._watch.sessions.left())
        except OSError as error:
            text = f"sessions are not kept for the next daemon: {error.strerror}"
            if not self._forgetful:
                self._watch.say(frames.Notice(subject="failure", text=text))
            self._forgetful = True

    def _end(self) -> None:
        """What is watched goes on unwatched, and the journal says so."""
        self._watch.catch_up(1.0)
        kept = self._succession.leave(self.config.on_exit)
        for session in self._watch.sessions:
            text = f"the daemon stops: from here on {kept or 'it is not watched'}"
            self._watch.say(frames.Notice(subject="release", text=text, session=session.key))
        self._remember()
        pids = ", ".join(str(one.key.pid) for one in self._watch.sessions)
        left = f"; the sessions of {pids} go on unwatched" if pids and not kept else ""
        going = f"; {kept}: `agentwatch release` ends that" if kept else left
        self._tell(f"stopped: {self._stop}{going}")
        self._watch.say(frames.Stop(reason=self._stop))
        if self._journald is not None:
            self._watch.written(self._journal.flush)
            self._journald.anchor(self._journal.directory.name, self._journal.head)

    def _headline(self) -> str:
        counts = (len(self._watch.engine.ruleset.rules), len(self._watch.sessions))
        rules, sessions = (
            f"{count} {noun}{'s' * (count != 1)}"
            for count, noun in zip(counts, ("rule", "session"), strict=True)
        )
        left = left_out(self._watch.engine.compiled)
        return f"{rules}, mode {self._watch.engine.mode}, {sessions}" + f"; {left}" * bool(left)

    # Signals.

    def _signals(self) -> Signals:
        return Signals((*STOPPING, signal.SIGHUP))

    def _received(self, wake: int) -> None:
        with suppress(BlockingIOError):
            for number in os.read(wake, 64):
                if number in STOPPING:
                    self._stop = f"{signal.Signals(number).name} was received"
                elif number == signal.SIGHUP:
                    self._notifier.reloading()
                    self._upkeep.read()

    # Requests.

    def _answer(
        self, peer: Peer, request: wire.Request, connection: Connection
    ) -> wire.Reply | None:
        return self._verbs.answer(peer, request, connection)

    def _refusal(self, stream: Stream) -> str:
        """Why a subscriber may not read on: it, too, may have become an agent's."""
        tagged = self._watch.probes.session_of(stream.connection.peer.pidfd)
        return "what an agent runs may not read this" if tagged is not None else ""

    def _ask_reload(self, connection: Connection) -> None:
        def tell(result: Result) -> None:
            if isinstance(result, AgentwatchError):
                connection.reply(wire.Reply(error=result))
            else:
                connection.reply(wire.Reply(self._reload_value(result)))

        self._upkeep.read(tell)

    def _reload_value(self, loaded: Loaded) -> Mapping[str, Any]:
        return {
            "generation": loaded.engine.generation,
            "rules": len(loaded.engine.ruleset.rules),
            "seconds": loaded.seconds,
            "warnings": [dataclasses.asdict(one) for one in loaded.warnings],
            "restart": list(self._policy.restart),
        }

    # Policy.

    def _keep_connections(self) -> None:
        """The cgroup below which connections are refused may go, and be made anew."""
        probes, config = self._watch.probes, self.config
        if not self._refusing or probes.refused_below(config.cgroup):
            return
        before, there = self._watch.host, probes.attach_connect(config.cgroup)
        if not there and not before.cgroup:
            return
        what = "was made anew, or programs were detached from it"
        text = f"{config.cgroup or 'the cgroup2 hierarchy'} {what}: connections are refused"
        if not there:
            text = f"{config.cgroup or 'the cgroup2 hierarchy'} is gone: no connection is refused"
        self._tell(text)
        self._watch.say(frames.Notice(subject="policy", text=text))
        self._reloading.host = replace(before, cgroup=there)
        self._watch.take_host(self._reloading.host)
        if there and not before.cgroup:  # what was compiled meanwhile refuses nothing
            self._upkeep.read()

    def _seek(self) -> None:
        """An agent whose exec the kernel showed to no probe runs already."""
        if self._watch.losses.execs != self._sought:
            self._sought = self._watch.losses.execs
            self._search()

    def _search(self) -> None:
        try:
            self._watch.recognition.search()
        except AgentwatchError as error:  # the rules are in force all the same
            text = f"agents that run already were not looked for: {error.message}"
            self._watch.say(frames.Notice(subject="failure", text=text))

    def _now(self) -> tuple[Config, Loaded, Engine]:
        return self.config, self._policy.loaded, self._watch.engine

    def _take_reload(self) -> None:
        taken = self._reloading.take()
        if taken is None:
            return
        result = taken.result
        failed = self._pauses_failed if taken.pause else self._reload_failed
        if isinstance(result, AgentwatchError):
            failed(result)
        else:
            try:
                if taken.pause:
                    self._repaused(result)
                else:
                    self._reloaded(result)
            except (AgentwatchError, OSError) as error:
                message = str(getattr(error, "message", error))
                result = AgentwatchError(message, "the policy before it stays in force")
                failed(result)
        for tell in taken.waiting:
            tell(result)
        if taken.more:
            self._upkeep.read()
        self._upkeep.keep_pauses()
        self._notifier.ready(self._headline())

    def _repaused(self, loaded: Loaded) -> None:
        """Puts the same rules in force, some of them paused. Raises AgentwatchError, OSError."""
        engine, before = loaded.engine, self._watch.engine
        self._watch.take(engine)
        self._policy.loaded = loaded
        changes = [f"{rule} is paused" for rule in sorted(engine.paused - before.paused)]
        changes += [f"{rule} acts again" for rule in sorted(before.paused - engine.paused)]
        self._watch.say(
            frames.Reload(
                generation=engine.generation,
                rules=len(engine.ruleset.rules),
                message=", ".join(changes),
                pause=True,
            )
        )

    def _rules_gone(self, rules: Sequence[str]) -> None:
        more = len(rules) - RULES_NAMED
        named = ", ".join(rules[:RULES_NAMED]) + (f" and {more} more" if more > 0 else "")
        text = f"the files changed, and nobody asked for it: in none of them any more: {named}"
        self._tell(text)
        self._watch.say(frames.Notice(subject="policy", text=text))

    def _pause_over(self, rule: str) -> None:
        text = f"{rule} acts again: its pause is over"
        self._watch.say(frames.Notice(subject="pause", text=text))

    def _pauses_failed(self, error: AgentwatchError) -> None:
        """The kernel keeps the policy it has: what is paused there acts, but by the engine."""
        self._say_refused(error, error.message, pause=True)

    def _say_refused(self, error: AgentwatchError, message: str, pause: bool = False) -> None:
        """What was in force stays so."""
        self._tell(error)
        engine = self._watch.engine
        self._watch.say(
            frames.Reload(
                generation=engine.generation,
                rules=len(engine.ruleset.rules),
                ok=False,
                message=message,
                pause=pause,
            )
        )

    def _reload_failed(self, error: AgentwatchError) -> None:
        first = (
            error.diagnostics[0] if isinstance(error, RuleErrors) and error.diagnostics else None
        )
        where = f": {first.file}:{first.line}:{first.column}: {first.message}" if first else ""
        self._policy.error = f"{error.message}{where}"
        self._say_refused(error, self._policy.error)

    def _reloaded(self, loaded: Loaded) -> None:
        """Puts a policy in force. Raises AgentwatchError, OSError: then nothing has changed."""
        changed = self.config.reload(loaded.config)
        findings = self._findings_of(changed.config)
        try:
            self._watch.take(loaded.engine)
        except BaseException:
            if findings is not None and findings is not self._findings:
                findings.close()
            raise
        identities = _identities(self._policy.loaded)
        self.config, self._policy.restart = changed.config, changed.restart
        self._policy.loaded = replace(loaded, config=changed.config)
        self._policy.error, self._policy.since = "", time.time_ns()
        self._apply(self._policy.loaded, findings)
        self._upkeep.took(self.config)
        _keep()
        engine = loaded.engine
        self._watch.say(
            frames.Reload(
                generation=engine.generation,
                rules=len(engine.ruleset.rules),
                message=left_out(engine.compiled),
            )
        )
        self._tell(f"reloaded: {self._headline()}")
        if _identities(self._policy.loaded) != identities:
            self._search()

    def _findings_of(self, config: Config) -> Findings | None:
        """Where findings go by a configuration: the file that is open, or another one."""
        if self._findings is not None and config.jsonl == self._findings.path:
            return self._findings
        return Findings(config.jsonl, this_host(), self._group) if config.jsonl else None

    def _apply(self, loaded: Loaded, findings: Findings | None) -> None:
        """What of the configuration is not the engine's."""
        config, watch = self.config, self._watch
        known = [agent.id for agent in loaded.engine.ruleset.agents]
        watch.quiet_agents = frozenset(
            agent for agent in (*known, "") if config.audit.of(agent) == "findings"
        )
        watch.recognition.identities = None if config.agents is None else frozenset(config.agents)
        watch.losses.on_loss = config.on_loss
        watch.enforcement.breaker.adjust(config.breaker.kills, config.breaker.within)
        if findings is not self._findings:
            self._close_findings()
            self._findings = findings
            self._lines = JsonLines(findings, watch.say) if findings else None
        told = [sink for sink in (self._lines, self._journald) if sink is not None]
        watch.sinks = (self._denials, self._tally, self._feed, *told)

    def _serve_metrics(self, stack: ExitStack) -> None:
        if self.config.metrics is None:
            return
        take = snapshots(
            self._watch,
            lambda: (self._policy.loaded.seconds, self._policy.since / 1e9),
            self._tally,
            self._desk,
        )
        where = self.config.metrics
        if isinstance(where, Path):
            stack.callback(TextFile(where, lambda: metrics.page(take())).close)
        else:
            stack.callback(metrics.serve(where.host, where.port, take).close)

    def _desk(self) -> Desk:
        server = self._server
        accepted = not self._policy.error
        lost = {
            "jsonl": self._lines.missing if self._lines else 0,
            "journald": self._journald.dropped if self._journald else 0,
        }
        return Desk(len(server), server.subscribers, self._feed.dropped, accepted, lost)

    # Ends.

    def _close_journal(self) -> None:
        with suppress(AgentwatchError):
            self._journal.close(self._stop or "the daemon failed")

    def _close_findings(self) -> None:
        if self._findings is not None:
            self._findings.close()


def _stop(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def _keep() -> None:
    """Has no later collection walk what is in force: with many rules that holds the loop up."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    heap.give_back()


def _raise_limits() -> None:
    """Two descriptors for each client: as many as are to be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _identities(loaded: Loaded) -> object:
    """What decides which processes are agents."""
    return loaded.engine.ruleset.agents, loaded.config.agents


def _journal(config: Config, mounts: Mounts, group: int | None) -> Journal:
    keep = config.journal
    return Journal.open(
        Path(keep.dir),
        name="daemon",
        boot_id=read_boot_id(),
        mounts=mounts,
        group=group,
        segment_bytes=keep.segment_bytes,
        fsync=keep.fsync,
        keep_bytes=keep.keep_bytes,
        keep_seconds=keep.keep_days * 86400.0,
        keep_others=True,
    )
