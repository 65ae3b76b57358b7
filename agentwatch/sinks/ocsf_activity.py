"""What an event is in OCSF: its class, its activity, and the attributes that class has."""

from __future__ import annotations

import socket
from typing import Any

from agentwatch.events import (
    NO_PROCESS,
    Change,
    Connect,
    Event,
    Exec,
    Exit,
    Fork,
    Mount,
    Open,
    ProcessKey,
    error_name,
)
from agentwatch.lineage import Image
from agentwatch.sinks.host import Host

PENDING = ("EINPROGRESS", "EINTR", "EALREADY")
"""A connect that goes on after the call."""

Object = dict[str, Any]


def shape(
    event: Event, host: Host, actor: Object, image: Image | None
) -> tuple[int, int, str, Object, int]:
    """(class, activity, its name, the attributes of the class, the result)."""
    if isinstance(event, Exec):
        return 1007, 1, "Launch", _exec(event, host), event.result
    if isinstance(event, Fork):
        child = process(event.child, host, image)
        child["parent_process"] = process(event.process, host, image)
        return 1007, 1, "Launch", {"process": child} | _launch(2, "Fork"), 0
    if isinstance(event, Exit):
        rest = {"process": actor, "exit_code": event.code, "_extra": {"status": event.status}}
        return 1007, 2, "Terminate", rest, 0
    if isinstance(event, Open):
        activity_id, name = _access(event)
        return 1001, activity_id, name, _open(event), event.result
    if isinstance(event, Change):
        activity_id, name = _ACTIVITIES.get(event.op, (99, event.op))
        return 1001, activity_id, name, _change(event), event.result
    if isinstance(event, Mount):
        activity_id, name = _MOUNTS.get(event.op, (99, event.op))
        return 1001, activity_id, name, _mount(event), event.result
    if isinstance(event, Connect):
        activity_id, name = _outcome(event.result)
        return 4001, activity_id, name, _connect(event), event.result
    raise TypeError(type(event).__name__)


def _exec(event: Exec, host: Host) -> Object:
    asked = event.path or event.asked
    launched: Object = {
        "pid": event.process.pid,
        "uid": event.process.id(host.boot_id),
        "created_time": host.wall(event.process.start) // 1_000_000,
        "name": _base_name(asked),
        "file": _file(asked, 1),
        "user": {"uid": str(event.uid)},
    }
    if event.argv:
        launched["cmd_line"] = " ".join(event.argv)
    if event.cwd:
        launched["working_directory"] = event.cwd
    if event.parent != NO_PROCESS:
        launched["parent_process"] = process(event.parent, host, None)
    extra: Object = {
        "kind": "exec",
        "asked": event.asked,
        "argv": list(event.argv),
        "argc": event.argc,
        "stdin": event.stdin,
    }
    extra |= {"script": event.script} if event.script else {}
    extra |= {name: True for name in ("argv_cut", "anonymous", "deleted") if getattr(event, name)}
    extra |= _others(event)
    return {"process": launched, "_extra": extra} | _launch(3, "Exec")


def _launch(number: int, name: str) -> Object:
    return {"launch_type_id": number, "launch_type": name}


def _access(event: Open) -> tuple[int, str]:
    if event.created:
        return 1, "Create"
    if event.changes:
        return 3, "Update"
    return 14, "Open"


def _open(event: Open) -> Object:
    path = event.path or event.asked
    extra = {
        "kind": "open",
        "asked": event.asked,
        "flags": event.flags,
        "result": event.result,
        "reads": event.reads,
        "changes": event.changes,
    }
    extra |= {"deleted": True} if event.deleted else {}
    extra |= _others(event)
    return {"file": _file(path, 2 if event.directory else 0), "_extra": extra}


_ACTIVITIES = {
    "create": (1, "Create"),
    "mkdir": (1, "Create"),
    "link": (1, "Create"),
    "symlink": (1, "Create"),
    "truncate": (3, "Update"),
    "delete": (4, "Delete"),
    "rmdir": (4, "Delete"),
    "rename": (5, "Rename"),
    "xattr": (6, "Set Attributes"),
    "chmod": (7, "Set Security"),
    "chown": (7, "Set Security"),
}
"""By operation. What makes a name is Create; `unmapped` has which operation it was."""
_TYPES = {"mkdir": 2, "rmdir": 2, "symlink": 7}


def _change(event: Change) -> Object:
    """file: of a link the name it makes, of a rename the old one; the new one is the result."""
    path, type_id = event.path or event.asked, _TYPES.get(event.op, 0)
    new_path = event.new_path or (event.new_asked if event.op in ("rename", "link") else "")
    made = event.op == "link"
    extra: Object = {
        "kind": "change",
        "op": event.op,
        "asked": event.asked,
        "result": event.result,
    }
    extra |= {"new_asked": event.new_asked} if event.new_asked else {}
    extra |= {"mode": event.mode} if event.op in ("create", "mkdir", "chmod") else {}
    extra |= {"existing": path} if made else {}
    extra |= _others(event)
    found: Object = {"file": _file(new_path if made else path, type_id), "_extra": extra}
    if event.op == "rename":
        found["file_result"] = _file(new_path, type_id)
    return found


_MOUNTS = {"mount": (12, "Mount"), "move": (12, "Mount"), "umount": (13, "Unmount")}
"""By operation; `unmapped` has which it was."""


def _mount(event: Mount) -> Object:
    """file: the mount point; of a user namespace there is none, and its name is the operation."""
    path = event.path or event.asked or event.op
    extra: Object = {
        "kind": "mount",
        "op": event.op,
        "asked": event.asked,
        "flags": event.flags,
        "result": event.result,
    }
    extra |= {name: getattr(event, name) for name in ("source", "fstype") if getattr(event, name)}
    extra |= _others(event)
    return {"file": _file(path, 0 if event.op == "userns" else 2), "_extra": extra}


_OTHERS = ("view", "known", "written", "new_view", "new_known", "new_written")


def _others(event: Exec | Open | Change | Mount | Connect) -> Object:
    """The file's other names, where it has them: as the task saw it, as rules found it, and as it
    was written where a link was followed.
    """
    names = {which: getattr(event, which, "") for which in _OTHERS}
    return {which: name for which, name in names.items() if name}


def _outcome(result: int) -> tuple[int, str]:
    error = error_name(result)
    if not error or error in PENDING:
        return 1, "Open"
    return (5, "Refuse") if error == "ECONNREFUSED" else (4, "Fail")


def _connect(event: Connect) -> Object:
    endpoint: Object = {}
    connection: Object = {"direction_id": 2, "direction": "Outbound"}
    if event.unix:
        endpoint["name"] = event.unix
        connection = {"direction_id": 99, "direction": "Local"}
    else:
        if event.addr:
            endpoint["ip"] = event.addr
        endpoint["port"] = event.port
    if not endpoint.get("ip") and not event.unix:
        endpoint["name"] = f"address family {event.family}"
    if event.protocol:
        connection["protocol_name"] = event.protocol
    version = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}.get(event.family)
    if version:
        connection["protocol_ver_id"] = version
    extra = {"kind": "connect", "syn": event.syn, "from_socket": event.from_socket}
    extra |= {"family": event.family, "result": event.result}
    extra |= _others(event)
    return {"dst_endpoint": endpoint, "connection_info": connection, "_extra": extra}


def status(result: int) -> Object:
    error = error_name(result)
    if not error or error in PENDING:
        return {"status_id": 1, "status": "Success"}
    return {"status_id": 2, "status": "Failure", "status_code": str(result), "status_detail": error}


def process(key: ProcessKey, host: Host, image: Image | None) -> Object:
    found: Object = {
        "pid": key.pid,
        "uid": key.id(host.boot_id),
        "created_time": host.wall(key.start) // 1_000_000,
    }
    if image is not None:
        found |= {"name": _base_name(image.exe), "file": _file(image.exe, 1)}
        found |= {"cmd_line": " ".join(image.argv), "user": {"uid": str(image.uid)}}
    return found


def session(key: ProcessKey, host: Host) -> Object:
    created = host.wall(key.start) // 1_000_000
    return {"uid": key.id(host.boot_id), "created_time": created}


def _file(path: str, type_id: int) -> Object:
    return {"name": _base_name(path), "path": path, "type_id": type_id}


def _base_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path
