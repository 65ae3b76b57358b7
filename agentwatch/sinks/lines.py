"""One line of text per entry: time, agent, pid, kind, what, verdict; all of it is escaped."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime

from agentwatch.events import Change, Connect, Event, Exec, Exit, Fork, Mount, Open, error_name
from agentwatch.sinks.escape import shown
from agentwatch.sinks.frames import NUMBERS as TYPE_NUMBERS
from agentwatch.sinks.frames import (
    RINGS,
    AgentAdded,
    Control,
    Frame,
    Gap,
    Holdings,
    Kill,
    Notice,
    Reload,
    Resumed,
    Retired,
    Session,
    SessionEnd,
    Start,
    Stop,
    Verdict,
    type_name,
)
from agentwatch.sinks.reader import Entry

WHAT_WIDTH = 60
AGENT_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Line:
    """The columns of a line. weight: plain | notice | alert | stop, for colour."""

    time: str
    agent: str
    pid: str
    kind: str
    what: str
    verdict: str
    weight: str

    def text(self) -> str:
        """Aligned; a long `what` pushes the verdict out, for nothing is cut."""
        left = f"{self.time}  {self.agent:<{AGENT_WIDTH}} {self.pid:>7}  {self.kind:<7}  "
        return f"{left}{self.what:<{WHAT_WIDTH}}  {self.verdict}".rstrip()


def line(entry: Entry) -> Line | None:
    """The line of an entry; None for frames that say nothing to a person."""
    if entry.event is not None:
        event = entry.event
        verdict = "; ".join(verdict_text(v) for v in entry.verdicts)
        weight = max((_weight(v) for v in entry.verdicts), key=_WEIGHTS.index, default="plain")
        pid, kind, what = str(event.process.pid), kind_of(event), describe(event)
    elif entry.frame is not None and not entry.attached:
        pid, kind, what, verdict, weight = _frame(entry.frame)
        if not kind:
            return None
    else:
        return None
    if not entry.intact:
        verdict = f"{verdict} [not intact]".lstrip()
    agent = shown(entry.agent or "-")
    return Line(clock(entry.wall), agent, pid, shown(kind), what, verdict, weight)


def clock(wall: int) -> str:
    """ns since the epoch as local time, to the millisecond; as a number where it is no time."""
    try:
        moment = datetime.fromtimestamp(wall // 1_000_000_000)
    except (ValueError, OverflowError, OSError):
        return str(wall)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{wall // 1_000_000 % 1000:03d}"


def kind_of(event: Event) -> str:
    """exec | fork | exit | read | change | open | connect | syn | mount."""
    if isinstance(event, Open):
        if event.changes:
            return "change"
        return "read" if event.reads else "open"
    if isinstance(event, Connect):
        return "syn" if event.syn else "connect"
    return type(event).__name__.lower()


def describe(event: Event) -> str:
    """What the event was done to, as one escaped line."""
    if isinstance(event, Exec):
        words = shlex.join(event.argv) if event.argv else event.path or event.asked
        return shown(words) + " ..." * event.argv_cut + _also(event) + _failure(event.result)
    if isinstance(event, Open):
        return shown(event.path or event.asked) + _also(event) + _failure(event.result)
    if isinstance(event, Change | Mount):
        return shown(event.what) + _also(event) + _failure(event.result)
    if isinstance(event, Connect):
        return shown(_address(event)) + _also(event) + _failure(event.result)
    if isinstance(event, Fork):
        return f"pid {event.child.pid}"
    if isinstance(event, Exit):
        return f"status {event.code}"
    return ""


def _also(event: Exec | Open | Change | Mount | Connect) -> str:
    """A file's other names."""
    return "".join(f"  also {shown(name)}" for name in event.others)


def verdict_text(verdict: Verdict) -> str:
    """killed by secrets.keys (kills, by the kernel); would kill ..., where it was only observed."""
    done = verdict.outcome or verdict.response or verdict.action
    if verdict.outcome == "observed":
        done = f"would {verdict.action}"
    level = verdict.level + " lossy" * verdict.lossy + ", by the kernel" * (verdict.by == "kernel")
    return shown(f"{done} by {verdict.rule}" + f" ({level})" * bool(level))


def _address(event: Connect) -> str:
    if event.unix:
        return f"unix {event.where}"
    if not event.where:
        return f"address family {event.family}"
    return f"{event.where} {event.protocol}".rstrip()


def _failure(result: int) -> str:
    error = error_name(result)
    return f"  {error}" if error else ""


_WEIGHTS = ("plain", "notice", "alert", "stop")


def _weight(verdict: Verdict) -> str:
    if verdict.action == "allow":
        return "plain"
    return "alert" if verdict.outcome in ("alerted", "observed") else "stop"


def _frame(frame: Frame) -> tuple[str, str, str, str, str]:
    """(pid, kind, what, verdict, weight); no kind: nothing to show."""
    kind = type_name(TYPE_NUMBERS[type(frame)])
    if isinstance(frame, Verdict):
        pid = str(frame.process.pid)
        return pid, frame.kind, shown(frame.what), verdict_text(frame), _weight(frame)
    if isinstance(frame, Kill):
        took = f" after {frame.latency / 1e6:.1f} ms" * bool(frame.latency)
        reason = f": {frame.reason}" * (frame.reason not in ("", frame.outcome))
        what = shown(f"{frame.outcome}{took}{reason}")
        return str(frame.process.pid), kind, what, shown(f"for {frame.rule}"), "notice"
    if isinstance(frame, Session):
        how = _BEGINNINGS.get(frame.how, "begins")
        return str(frame.session.pid), kind, shown(shlex.join(frame.command)), how, "notice"
    if isinstance(frame, SessionEnd):
        what = f"{frame.processes} processes, {frame.kills} killed"
        return str(frame.session.pid), "session", what, "ends", "notice"
    if isinstance(frame, Holdings):
        return str(frame.process.pid), "holds", shown(_held(frame)), "", "notice"
    if isinstance(frame, Control):
        asker = f"by uid {frame.uid}" if frame.ok else f"refused to uid {frame.uid}"
        what = shown(f"{frame.verb} {frame.text}".rstrip())
        return str(frame.pid), kind, what, asker, "notice" if frame.ok else "alert"
    if isinstance(frame, AgentAdded):
        return str(frame.process.pid), "agent", shown(frame.path or frame.agent), "added", "notice"
    what = _own(frame)
    if not what:
        return "", "", "", "", "plain"
    return "-", kind, shown(what), "", "stop" if isinstance(frame, Gap) else "notice"


_BEGINNINGS = {"running": "was running", "tag": "tagged"}


def _held(frame: Holdings) -> str:
    """What was open before the tag; all of it, for nothing is cut."""
    named = (("files", frame.files), ("connections", frame.connections))
    parts = [f"{len(names)} {what}: {', '.join(names)}" for what, names in named if names]
    return "; ".join(parts) or "nothing open"


def _own(frame: Frame) -> str:
    """What a frame about agentwatch itself says."""
    if isinstance(frame, Gap):
        ring = f", {RINGS[frame.ring]} ring" if 0 <= frame.ring < len(RINGS) else ""
        cpu = f", cpu {frame.cpu}" if frame.cpu >= 0 else ""
        return f"{lost(frame)} lost ({frame.stage}{ring}{cpu}): {frame.acted}"
    if isinstance(frame, Start):
        return f"agentwatch begins, {frame.mode or 'mode unknown'}: {shlex.join(frame.command)}"
    if isinstance(frame, Stop):
        return f"agentwatch ends: {frame.reason}"
    if isinstance(frame, Reload):
        state = "in force" if frame.ok else "refused"
        more = f": {frame.message}" * bool(frame.message)
        return f"policy {frame.generation} {state}, {frame.rules} rules{more}"
    if isinstance(frame, Notice):
        return f"{frame.subject}: {frame.text}"
    if isinstance(frame, Resumed):
        return resumed(frame)
    if isinstance(frame, Retired):
        return retired(frame)
    return ""


def lost(gap: Gap) -> str:
    """What a gap is of: 3 records, 1 decisions."""
    others = (("frames", gap.frames), ("decisions", gap.decisions))
    return f"{gap.count} records" + "".join(f", {n} {what}" for what, n in others if n)


def resumed(frame: Resumed) -> str:
    """How a chain was found, and what that may have cost."""
    when = f"frame {frame.sequence} of {clock(frame.last)}"
    if frame.clean:
        return f"goes on after {when}, where it was closed"
    torn = f", {frame.torn} bytes of a cut write behind it" * bool(frame.torn)
    cost = "what was not synced" if frame.rebooted else "what was not written"
    where = "before this boot" if frame.rebooted else "in this boot"
    return f"goes on after {when}{torn}: its writer died {where}, {cost} is lost"


def retired(frame: Retired) -> str:
    """Which segments were removed by the journal's own limits."""
    chain = f" of {frame.chain}" * bool(frame.chain)
    upto = f"segments up to {frame.last}{chain} (frame {frame.sequence})"
    limit = "are older than is kept" if frame.reason == "age" else "are more than is kept"
    return f"{upto} {limit}: removed, {frame.size} bytes"
