"""Events and verdicts as OCSF 1.8 objects, the shape everybody else reads.

1007 process activity, 1001 file activity, 4001 network activity, 2004 detection finding, 6002
application lifecycle; what a rule said is in the security_control profile, what OCSF has no place
for under unmapped.agentwatch. `time` is ms since the epoch, exact ns are in unmapped. A dict here
is the JSON object that leaves; nothing inside agentwatch takes one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agentwatch import __version__
from agentwatch.events import NO_PROCESS, Event, ProcessKey
from agentwatch.lineage import Image
from agentwatch.sinks import lines
from agentwatch.sinks import ocsf_activity as parts
from agentwatch.sinks.escape import utf8
from agentwatch.sinks.frames import NUMBERS as TYPE_NUMBERS
from agentwatch.sinks.frames import (
    RINGS,
    Control,
    EventRef,
    Frame,
    Gap,
    Holdings,
    Kill,
    Notice,
    Reload,
    Resumed,
    Retired,
    SessionEnd,
    Start,
    Stop,
    Verdict,
    type_name,
)
from agentwatch.sinks.host import Host
from agentwatch.sinks.ocsf_activity import Object
from agentwatch.sinks.reader import Entry

VERSION = "1.8.0"
SEVERITIES = {"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
STRENGTH = ("allow", "alert", "deny", "kill")

_CAPTIONS = {1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical"}
_ACTIONS = {1: "Allowed", 2: "Denied", 3: "Observed"}
_DISPOSITIONS = {1: "Allowed", 2: "Blocked", 15: "Detected", 19: "Alert", 27: "Error"}
_CLASSES = {
    0: ("Base Event", 0, "Uncategorized"),
    1001: ("File System Activity", 1, "System Activity"),
    1007: ("Process Activity", 1, "System Activity"),
    2004: ("Detection Finding", 2, "Findings"),
    4001: ("Network Activity", 4, "Network Activity"),
    6002: ("Application Lifecycle", 6, "Application Activity"),
}


def objects(entry: Entry) -> Iterator[Object]:
    """What an entry is in OCSF: one object, for each event and for each frame."""
    if entry.event is not None:
        found = activity(
            entry.event,
            entry.host,
            agent=entry.agent,
            verdicts=entry.verdicts,
            image=entry.image,
        )
    elif entry.frame is not None:
        found = from_frame(entry.frame, entry.host, entry.agent, entry.number)
    else:
        return
    extra = found["unmapped"]["agentwatch"]
    extra |= {"chain": entry.chain, "frame": entry.number}
    if not entry.intact:
        extra["intact"] = False
    yield found


def dumps(found: Object) -> str:
    """One line of JSON, without its newline, always valid UTF-8."""
    return json.dumps(_clean(found), ensure_ascii=False, separators=(",", ":"))


def activity(
    event: Event,
    host: Host,
    *,
    agent: str = "",
    verdicts: tuple[Verdict, ...] = (),
    image: Image | None = None,
) -> Object:
    """The activity an event is. image: what its process ran, when known."""
    ref = EventRef.of(event)
    actor = parts.process(event.process, host, image)
    if event.tid and event.tid != event.process.pid:
        actor["tid"] = event.tid
    class_uid, activity_id, name, rest, result = parts.shape(event, host, actor, image)
    found = _base(class_uid, activity_id, name, event.time, host)
    found["metadata"]["uid"] = event_uid(event, host)
    found["metadata"]["sequence"] = event.sequence
    found["actor"] = {"process": actor, "session": parts.session(event.session, host)}
    found |= parts.status(result) | rest
    extra: Object = {
        "agent": agent,
        "session": event.session.id(host.boot_id),
        "ring": RINGS[ref.ring],
        "cpu": event.cpu,
        "time_ns": host.wall(event.time),
        "boottime_ns": event.time,
    }
    if event.generation:
        extra["generation"] = event.generation
    if event.unresolved:
        extra["unresolved"] = sorted(event.unresolved)
    found["unmapped"] = {"agentwatch": extra | found.pop("_extra", {})}
    if verdicts:
        strongest = max(verdicts, key=lambda v: _strength(v.action))
        _control(found, strongest)
        extra_now = found["unmapped"]["agentwatch"]
        extra_now["verdicts"] = [_verdict(v) for v in verdicts]
    return found


def finding(verdict: Verdict, host: Host) -> Object:
    """A verdict as a detection finding."""
    found = _finding(verdict.time, host, verdict.severity)
    uid = ":".join(map(str, (host.boot_id, *verdict.event, verdict.time, verdict.rule)))
    found["metadata"]["uid"] = f"finding:{uid}"
    found["message"] = f"{verdict.rule}: {verdict.kind} {verdict.what} ({verdict.outcome})"
    found["finding_info"] = {
        "uid": uid,
        "title": verdict.title or verdict.rule,
        "desc": verdict.because,
        "analytic": {"type_id": 1, "type": "Rule", "uid": verdict.rule, "name": verdict.title},
        "created_time": found["time"],
    }
    if verdict.instead:
        found["remediation"] = {"desc": verdict.instead}
    found["evidences"] = [{"process": parts.process(verdict.process, host, None)}]
    _control(found, verdict)
    extra = {
        "agent": verdict.agent,
        "session": verdict.session.id(host.boot_id),
        "time_ns": host.wall(verdict.time),
        "event": dict(zip(("ring", "cpu", "sequence"), verdict.event, strict=True)),
        "kind": verdict.kind,
        "what": verdict.what,
    }
    found["unmapped"] = {"agentwatch": extra | _verdict(verdict)}
    return found


def from_frame(frame: Frame, host: Host, agent: str = "", number: int = 0) -> Object:
    """Any other frame. Losses, kills that failed and a writer that died are findings, start and
    stop are lifecycle.
    """
    if isinstance(frame, Verdict):
        return finding(frame, host)
    if isinstance(frame, Gap):
        title = f"{lines.lost(frame)} lost ({frame.stage})"
        found = _trouble(frame, host, "loss", title, "high")
    elif isinstance(frame, Resumed) and not frame.clean:
        title = f"the journal {lines.resumed(frame)}"
        found = _trouble(frame, host, "resumed", title, "medium")
    elif isinstance(frame, Kill) and frame.outcome != "killed":
        title = f"a kill did not work: {frame.outcome} {frame.reason}".rstrip()
        found = _trouble(frame, host, "kill", title, "critical")
    elif isinstance(frame, Start | Stop):
        which, name = (3, "Start") if isinstance(frame, Start) else (4, "Stop")
        found = _base(6002, which, name, frame.time, host)
        found["app"] = found["metadata"]["product"]
        found["message"] = f"agentwatch {name.lower()}"
    else:
        found = _base(0, 99, type_name(TYPE_NUMBERS[type(frame)]), frame.time, host)
        found["message"] = _message(frame)
    found["metadata"].setdefault("uid", f"frame:{host.boot_id}:{frame.time}:{number}")
    found["metadata"]["sequence"] = number
    extra = _plain(frame, host) | {"time_ns": host.wall(frame.time)}
    if agent:
        extra["agent"] = agent
    found["unmapped"] = {"agentwatch": extra}
    return found


def event_uid(event: Event, host: Host) -> str:
    """Unique for an event, and the same in every export of it."""
    ring, cpu, sequence = EventRef.of(event)
    return f"{host.boot_id}:{event.time}:{ring}:{cpu}:{sequence}"


def _base(class_uid: int, activity_id: int, name: str, time: int, host: Host) -> Object:
    caption, category, category_name = _CLASSES[class_uid]
    return {
        "class_uid": class_uid,
        "class_name": caption,
        "category_uid": category,
        "category_name": category_name,
        "activity_id": activity_id,
        "activity_name": name,
        "type_uid": class_uid * 100 + activity_id,
        "type_name": f"{caption}: {name}",
        "severity_id": 1,
        "severity": _CAPTIONS[1],
        "time": host.wall(time) // 1_000_000,
        "metadata": {
            "version": VERSION,
            "product": {"name": "agentwatch", "vendor_name": "agentwatch", "version": __version__},
            "log_name": "agentwatch",
            "profiles": ["host"],
        },
        "device": {"type_id": 0, "hostname": host.name},
        "unmapped": {"agentwatch": {}},
    }


def _finding(time: int, host: Host, severity: str) -> Object:
    found = _base(2004, 1, "Create", time, host)
    number = SEVERITIES.get(severity, 1)
    found |= {"severity_id": number, "severity": _CAPTIONS[number]}
    found |= {"status_id": 1, "status": "New", "is_alert": True}
    return found


def _trouble(frame: Frame, host: Host, subject: str, title: str, severity: str) -> Object:
    """A finding about agentwatch itself."""
    found = _finding(frame.time, host, severity)
    uid = f"{subject}:{host.boot_id}:{frame.time}"
    found["metadata"]["uid"] = f"finding:{uid}"
    found["message"] = title
    found["finding_info"] = {"uid": uid, "title": title, "created_time": found["time"]}
    return found


def _control(found: Object, verdict: Verdict) -> None:
    """What the rule did, as the security_control profile puts it."""
    action, disposition = _disposition(verdict)
    number = SEVERITIES.get(verdict.severity, 1)
    found["metadata"]["profiles"] = ["host", "security_control"]
    found |= {
        "action_id": action,
        "action": _ACTIONS[action],
        "disposition_id": disposition,
        "disposition": _DISPOSITIONS[disposition],
        "is_alert": verdict.action != "allow",
        "severity_id": number,
        "severity": _CAPTIONS[number],
        "policy": {"uid": verdict.rule, "name": verdict.title, "version": str(verdict.generation)},
    }


def _disposition(verdict: Verdict) -> tuple[int, int]:
    """(action_id, disposition_id). Denied only where the operation, or its process, was stopped."""
    if verdict.outcome in ("killed", "denied", "frozen"):
        return 2, 2
    if verdict.outcome in ("too late", "failed"):
        return 3, 27
    if verdict.action == "allow":
        return 1, 1
    return 3, 19 if verdict.outcome == "alerted" else 15


def _verdict(verdict: Verdict) -> Object:
    names = ("rule", "action", "response", "level", "lossy", "outcome", "generation")
    found: Object = {name: getattr(verdict, name) for name in names}
    found |= {"by": verdict.by} if verdict.by else {}
    found |= {"because": verdict.because} if verdict.because else {}
    found |= {"tags": list(verdict.tags)} if verdict.tags else {}
    return found


def _strength(action: str) -> int:
    return STRENGTH.index(action) if action in STRENGTH else -1


def _message(frame: Frame) -> str:
    if isinstance(frame, Notice):
        return f"{frame.subject}: {frame.text}"
    if isinstance(frame, Reload):
        return frame.message or f"policy {frame.generation}: {frame.rules} rules"
    if isinstance(frame, SessionEnd):
        return f"a session of {frame.processes} processes ended, {frame.kills} were killed"
    if isinstance(frame, Holdings):
        return f"{len(frame.files)} files and {len(frame.connections)} connections held"
    if isinstance(frame, Control):
        refused = "" if frame.ok else "refused: "
        return f"{refused}{frame.verb} {frame.text}".rstrip()
    if isinstance(frame, Resumed):
        return f"the journal {lines.resumed(frame)}"
    if isinstance(frame, Retired):
        return lines.retired(frame)
    return type_name(TYPE_NUMBERS[type(frame)])


def _plain(frame: Frame, host: Host) -> Object:
    """A frame's fields as JSON has them; processes by their id."""
    found: Object = {"frame_type": type_name(TYPE_NUMBERS[type(frame)])}
    for name in type(frame).__dataclass_fields__:
        value = getattr(frame, name)
        if isinstance(value, ProcessKey):
            value = value.id(host.boot_id) if value != NO_PROCESS else None
        elif isinstance(value, bytes):
            value = value.hex()
        found[name] = value
    found["boottime_ns"] = found.pop("time")
    return found


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, bytes):
        return utf8(value.decode("utf-8", "surrogateescape"))
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value
