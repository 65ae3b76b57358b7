"""The answers to what is asked over the control socket."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

from agentwatch import __version__, processes
from agentwatch.control import wire
from agentwatch.control.peer import Peer
from agentwatch.control.server import Connection
from agentwatch.daemon.access import CHANGING, check
from agentwatch.daemon.audit import Audit
from agentwatch.daemon.denials import Denials
from agentwatch.daemon.feed import Feed, View
from agentwatch.daemon.history import History
from agentwatch.daemon.status import Status
from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.events import ProcessKey
from agentwatch.sessions import Session
from agentwatch.sinks import frames
from agentwatch.sinks.host import Host
from agentwatch.watch import Watch

LISTED = 1024  # processes of a session
COMMAND_MAX = 1024  # characters of a command line
Answer = wire.Reply | None


class Verbs:
    """Answers requests. reload: begins one, answers later. paused: tells once the kernel knows,
    or why it does not. readers: a group whose members are shown what root is shown.
    """

    def __init__(
        self,
        watch: Watch,
        audit: Audit,
        feed: Feed,
        denials: Denials,
        history: History,
        host: Host,
        status: Status,
        reload: Callable[[Connection], None],
        paused: Callable[[Callable[[AgentwatchError | None], None]], None],
        readers: int | None = None,
    ) -> None:
        self._watch, self._feed, self._denials, self._host = watch, feed, denials, host
        self._audit, self._history, self._readers = audit, history, readers
        self._status, self._reload, self._paused = status, reload, paused
        self._verbs: dict[str, Callable[[Peer, wire.Request, Connection], Answer]] = {
            "status": self._say_status,
            "agents.list": self._list,
            "agents.tag": self._tag,
            "agents.untag": self._untag,
            "agents.kill": self._kill,
            "agents.freeze": self._freeze,
            "agents.thaw": self._thaw,
            "rules.reload": self._say_reload,
            "rules.pause": self._pause,
            "why": self._why,
            "events": self._events,
        }

    def answer(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        """Checks who asks, then does it. Raises AgentwatchError: that is the answer then."""
        verb = self._verbs.get(request.verb)
        if verb is None:
            known = ", ".join(sorted(self._verbs))
            raise UsageError(f"the daemon knows no {request.verb!r}", f"one of {known}")
        session = self._watch.probes.session_of(peer.pidfd)
        pid = request.args.get("pid")
        itself = pid == peer.pid if request.verb == "agents.tag" else pid in (None, peer.pid)
        changing = request.verb in CHANGING
        try:
            check(request.verb, peer.uid, itself, session)
            found = verb(peer, request, connection)
        except AgentwatchError as error:
            if changing:
                self._audit.record(peer, request, error.message)
            raise
        if changing:
            self._audit.record(peer, request)
        return found

    # Sessions.

    def _sees_as(self, peer: Peer) -> int:
        """The uid whose eyes the peer sees with: 0 sees everything."""
        return 0 if self._readers in peer.groups else peer.uid

    def _visible(self, peer: Peer) -> list[Session]:
        """Those whose business it is to the peer."""
        uid = self._sees_as(peer)
        return [one for one in self._watch.sessions if uid in (0, one.told.uid)]

    def _named(self, which: str) -> list[Session]:
        """By pid, session id, or agent. Raises UsageError for nothing of that name."""
        sessions = list(self._watch.sessions)
        if which.isdigit():
            pid = int(which)
            tagged = {one.process.pid: one.session for one in self._watch.probes.census()}
            found = [one for one in sessions if one.key == tagged.get(pid)]
        else:
            found = [
                one
                for one in sessions
                if which == self._id(one.key) or which in self._watch.lineage.agents(one.key)
            ]
        if not found:
            remedy = "agentwatch agents list has the sessions there are"
            raise UsageError(f"no session of an agent is called {which}", remedy)
        return found

    def _id(self, session: ProcessKey) -> str:
        return session.id(self._host.boot_id)

    def _key(self, text: str) -> ProcessKey:
        """A session by its id, be it over. Raises UsageError for what is none."""
        found = re.fullmatch(r"[0-9a-f-]*:(\d{1,10}):(\d{1,20})", text)
        if found is None:
            raise UsageError(f"{text} is no session's id", "BOOT-ID:PID:START-TIME")
        return ProcessKey(int(found[1]), int(found[2]))

    def _done(self, sessions: list[Session], count: int, how: str = "") -> wire.Reply:
        ids = [self._id(one.key) for one in sessions]
        return wire.Reply({"sessions": ids, "processes": count, "how": how})

    def _say_status(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        return wire.Reply({"version": __version__, **self._status.of(self._visible(peer))})

    def _list(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        visible = {one.key: one for one in self._visible(peer)}
        members: dict[ProcessKey, list[ProcessKey]] = {key: [] for key in visible}
        for one in self._watch.probes.census():
            if one.session in members:
                members[one.session].append(one.process)
        sessions = [self._session(one, members[key]) for key, one in visible.items()]
        return wire.Reply({"sessions": sessions})

    def _session(self, one: Session, members: list[ProcessKey]) -> dict[str, Any]:
        return {
            "session": self._id(one.key),
            "pid": one.key.pid,
            "agents": list(self._watch.lineage.agents(one.key)),
            "user": one.told.user,
            "uid": one.told.uid,
            "project": one.told.project,
            "how": one.told.how,
            "began_at": self._host.wall(one.told.began),
            "state": "frozen" if one.held else "running",
            "held": one.held,
            "processes": [self._process(process, members) for process in members[:LISTED]],
            "more": max(len(members) - LISTED, 0),
        }

    def _process(self, process: ProcessKey, members: list[ProcessKey]) -> dict[str, Any]:
        lineage = self._watch.lineage
        image = lineage.image(process) or processes.image_now(process)
        parent = lineage.parent(process)
        argv = self._watch.redactor.argv(image.argv, False) if image else ()
        return {
            "pid": process.pid,
            "started_at": self._host.wall(process.start),
            "parent": parent.pid if parent is not None and parent in members else 0,
            "exe": (image.script or image.exe) if image else "",
            "command": " ".join(argv)[:COMMAND_MAX],
            "role": "agent" if image and image.identity else "child",
        }

    def _tag(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        pid = request.argument("pid", int)
        agent = request.optional("agent", str) or ""
        project = request.optional("project", str) or ""
        known = [one.id for one in self._watch.engine.ruleset.agents]
        if agent and agent not in known:
            remedy = f"one of {', '.join(known)}" if known else "load rules that have `agents:`"
            raise UsageError(f"no identity is called {agent}", remedy)
        self._check_pid(pid)
        if project and not project.startswith("/"):
            raise UsageError(f"the project {project} is no whole path", "write it from / on")
        found = {one.process.pid: one.process for one in self._watch.probes.census()}.get(pid)
        # Only now: a peer that has ended since is not who has its pid by now.
        if pid == peer.pid and not peer.alive:
            found = None
        begun = self._watch.recognition.search({found: agent}, project) if found else []
        if not begun:
            session = next(
                (o.session for o in self._watch.probes.census() if o.process.pid == pid), None
            )
            why = f"belongs to session {self._id(session)}" if session else "is not there"
            raise AgentwatchError(f"process {pid} {why}", "agentwatch agents list")
        count = self._watch.lineage.alive(begun[0].key)
        return wire.Reply({"session": self._id(begun[0].key), "processes": count})

    def _check_pid(self, pid: int) -> None:
        """Raises UsageError for what is never an agent."""
        remedy = "name the process of an agent"
        if pid <= 1:
            raise UsageError(f"process {pid} is not tagged: all others come from it", remedy)
        if pid == os.getpid():
            raise UsageError(f"process {pid} is the daemon itself", remedy)
        if processes.is_kernel_thread(pid):
            raise UsageError(f"process {pid} is a kernel thread", remedy)

    def _untag(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        found = self._named(request.argument("which", str))
        count = self._count(found)
        self._each(
            found, self._watch.sessions.thaw, lambda _: self._untagged(found, count), connection
        )
        return None

    def _untagged(self, found: list[Session], count: int) -> wire.Reply:
        for one in found:
            if one.key in self._watch.sessions:
                self._watch.forget(one)
        return self._done(found, count)

    def _kill(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        found = self._named(request.argument("which", str))
        end = self._watch.sessions.end
        self._each(found, end, lambda counts: self._done(found, sum(counts)), connection)
        return None

    def _freeze(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        found = self._named(request.argument("which", str))

        def freeze(key: ProcessKey, then: Callable[[Any], object]) -> None:
            self._watch.sessions.freeze(key, f"uid {peer.uid} asked", then=then)

        self._each(found, freeze, lambda hows: self._held(found, hows), connection)
        return None

    def _thaw(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        found = self._named(request.argument("which", str))

        def thaw(key: ProcessKey, then: Callable[[Any], object]) -> None:
            self._watch.sessions.thaw(key, then=then)
            self._watch.enforcement.forget(key)  # the breaker counts anew

        self._each(found, thaw, lambda hows: self._held(found, hows), connection)
        return None

    def _held(self, found: list[Session], hows: list[str]) -> wire.Reply:
        return self._done(found, self._count(found), "+".join(sorted({how for how in hows if how})))

    def _each(
        self,
        found: list[Session],
        do: Callable[..., object],
        answer: Callable[[list[Any]], wire.Reply],
        connection: Connection,
    ) -> None:
        """Does something to each session, beside the loop; answers when all of it is done."""
        results: list[Any] = []

        def then(result: Any) -> None:
            results.append(result)
            if len(results) == len(found):
                connection.reply(answer(results))

        for one in found:
            do(one.key, then=then)

    def _count(self, sessions: list[Session]) -> int:
        return sum(len(self._watch.probes.tagged(one.key)) for one in sessions)

    # Rules.

    def _say_reload(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        self._reload(connection)
        return None

    def _pause(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        rule, seconds = request.argument("rule", str), request.argument("seconds", int)
        engine = self._watch.engine
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        until, before = now + seconds * 10**9, engine.memory.pauses.get(rule)
        try:
            if seconds > 0:
                engine.pause(rule, until)
            else:
                engine.resume(rule)
        except ValueError:
            raise UsageError(f"no rule is called {rule}", "agentwatch rules list") from None
        text = f"{rule} is paused for {seconds} s" if seconds > 0 else f"{rule} acts again"
        self._watch.say(frames.Notice(subject="pause", text=f"{text}, by uid {peer.uid}"))
        value = {"rule": rule, "until_at": self._host.wall(until) if seconds > 0 else 0}

        def tell(error: AgentwatchError | None) -> None:
            if error is not None:
                error = self._unpaused(rule, until if seconds > 0 else 0, before, error)
            connection.reply(wire.Reply(value) if error is None else wire.Reply(error=error))

        self._paused(tell)
        return None

    def _unpaused(
        self, rule: str, until: int, before: int | None, error: AgentwatchError
    ) -> AgentwatchError:
        """What is told where the kernel is not: it would act on, so the rule is not paused.

        until: as asked, 0: it was to act again, which the engine sees to. before: as it was.
        """
        memory = self._watch.engine.memory
        if not until:
            text = f"{rule} acts again, but by the engine alone"
        else:
            text = f"{rule} is not paused"
            if memory.pauses.get(rule) == until:
                memory.resume(rule)
                if before is not None:
                    memory.pause(rule, before)
        told = AgentwatchError(f"{text}: {error.message}", error.remedy)
        self._watch.say(frames.Notice(subject="pause", text=told.message))
        return told

    # What happened.

    def _why(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        session = self._asked(peer, request.optional("pid", int))
        denials = self._denials.of(session) if session else ()
        value = {
            "session": self._id(session) if session else "",
            "agent": next((one.agent for one in reversed(denials)), ""),
            "denials": [self._denial(one) for one in denials],
        }
        return wire.Reply(value)

    def _asked(self, peer: Peer, pid: int | None) -> ProcessKey | None:
        """The session that a peer asks about: its own, that of a pid, or the latest denied one."""
        own = self._watch.probes.session_of(peer.pidfd)
        if own is not None:
            return own
        if pid is None:
            mine = [one for one in self._denials.latest if self._may_see(peer, one)]
            return mine[0] if mine else None
        tagged = {one.process.pid: one.session for one in self._watch.probes.census()}
        session = tagged.get(pid) or self._denials.session_of(pid)
        if session is None or not self._may_see(peer, session):
            remedy = "agentwatch agents list has the sessions there are"
            raise UsageError(f"process {pid} is no agent's, or not one of yours", remedy)
        return session

    def _may_see(self, peer: Peer, session: ProcessKey) -> bool:
        return self._sees_as(peer) in (0, self._denials.uid(session))

    def _denial(self, verdict: frames.Verdict) -> dict[str, Any]:
        names = ("rule", "title", "severity", "action", "outcome", "level", "by", "kind", "what")
        value: dict[str, Any] = {name: getattr(verdict, name) for name in names}
        value |= {"because": verdict.because, "instead": verdict.instead}
        return {"at": self._host.wall(verdict.time), "pid": verdict.process.pid, **value}

    def _events(self, peer: Peer, request: wire.Request, connection: Connection) -> Answer:
        asked = request.optional("session", str)
        session = self._key(asked) if asked else None
        if request.args.get("follow", True) is False:
            self._history.check(peer.uid)
            since = request.optional("since", int) or 0
            eyes = self._sees_as(peer)
            self._history.begin(connection.stream(), peer.uid, since, session, eyes)
            return None
        if session is not None and session not in [one.key for one in self._visible(peer)]:
            remedy = "agentwatch agents list has the sessions there are"
            raise UsageError(f"no session of yours is called {asked}", remedy)
        self._feed.subscribe(connection.stream(), View(self._sees_as(peer), session))
        return None
