"""What a rule is worth on this host: its level, and why, in a sentence for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentwatch.rules import fields
from agentwatch.rules.model import Match, Rule

LEVELS = ("prevents", "kills", "kills-after", "detects", "none")
NO_POLICY = "No policy is in the kernel."
"""Why the engine decides on all rules where none is."""
BCC = "the probes of the bcc loader decide nothing"
"""Why none is there, where that is so."""


@dataclass(frozen=True, slots=True)
class Host:
    """Which tiers there are here, as found by trying them.

    lsm: the hooks whose programs refuse what is denied (kernel.lsm.HOOKS). lost: those that this
    kernel has, without a program. cgroup: programs are attached that refuse connections. tracing:
    the tracepoints of the signal tier are. lossy: the kernel may skip tracing programs under load.
    loader: core | bcc, whose probes decide nothing.
    """

    lsm: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    cgroup: bool = False
    tracing: bool = True
    lossy: bool = False
    loader: str = "core"

    @property
    def decides(self) -> bool:
        """Whether the kernel takes a policy."""
        return self.loader == "core"

    @property
    def tier(self) -> str:
        """lsm where something is refused before it happens, else signal."""
        return "lsm" if self.lsm else "signal"


@dataclass(frozen=True, slots=True)
class Level:
    """One of LEVELS. lossy: it depends on a program the kernel may skip. reason: one sentence."""

    name: str
    lossy: bool = False
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} (lossy)" if self.lossy else self.name


def response(action: str, without_hook: str, mode: str) -> str:
    """What to do here and now about a verdict where nothing can be prevented: none | alert | kill.

    A deny is answered as `without_hook` says; `refuse`, which loading should have refused, kills.
    """
    if action in ("none", "allow"):
        return "none"
    stops = action == "kill" or (action == "deny" and without_hook != "alert")
    return "kill" if stops and mode == "enforce" else "alert"


def level(
    rule: Rule,
    host: Host,
    mode: str = "enforce",
    without_hook: str = "kill",
    engine: str = NO_POLICY,
) -> Level:
    """The level of a rule where all rules have this mode and `without_hook` but for their own.

    engine: why the engine decides on it, a sentence; "" where the kernel does.
    """
    mode = rule.mode or mode
    reason = _unseen(rule)
    if reason:
        return Level("none", reason=reason)
    if not host.tracing:
        return Level("none", reason="The probes of this kind cannot be attached here.")
    if rule.action == "allow":
        return Level("detects", host.lossy, "It stops nothing: it makes a hole in a default.")
    if rule.action == "alert" or mode != "enforce":
        return Level("detects", host.lossy, _alert_reason(rule, mode))
    without_hook = rule.without_hook or without_hook
    if engine:
        if response(rule.action, without_hook, mode) == "kill":
            return Level("kills-after", host.lossy, _engine_reason(rule, engine))
        return Level("detects", host.lossy, _alert_reason(rule, mode))
    return _by_kernel(rule, host, without_hook)


def name_of(answer: str) -> str:
    """The level of the engine's answer to one event; "" where nothing was to be done."""
    return {"kill": "kills-after", "alert": "detects"}.get(answer, "")


def of_kernel(kind: str, prevented: bool) -> str:
    """The level of what the kernel has done about one event of a kind."""
    return "prevents" if prevented else _KERNEL[kind][0]


def prevents(rule: Rule, host: Host, engine: str = NO_POLICY) -> bool:
    """Whether the kernel refuses what the rule denies, wherever the rule matches."""
    if engine:
        return False
    return all(_hooked(rule, kind, host) or _cgroup_alone(rule, kind, host) for kind in rule.on)


def _cgroup_alone(rule: Rule, kind: str, host: Host) -> bool:
    refused = _is_refused(rule.match) and not _by_other_protocols(rule.match)
    return kind == "connect" and host.cgroup and refused


_OPENING = frozenset({"lsm_file_open", "lsm_file_receive"})
_HOOKS = {
    "exec": frozenset({"lsm_bprm_check_security", "lsm_mmap_file", "lsm_file_mprotect"}),
    "read": _OPENING,
    "open": _OPENING,
    "mount": frozenset(
        {
            "lsm_sb_mount",
            "lsm_move_mount",
            "lsm_sb_pivotroot",
            "lsm_sb_remount",
            "lsm_sb_umount",
            "lsm_userns_create",
        }
    ),
    "connect": frozenset(
        {
            "lsm_socket_connect",
            "lsm_socket_sendmsg",
            "lsm_socket_create",
            "lsm_unix_stream_connect",
            "lsm_unix_may_send",
        }
    ),
}
"""By kind: the hooks that refuse it, all of which must be there."""

_OF_OP = {
    "open": _OPENING,
    "create": _OPENING | {"lsm_path_mknod"},
    "truncate": _OPENING | {"lsm_path_truncate"},
    "rename": frozenset({"lsm_path_rename"}),
    "link": frozenset({"lsm_path_link"}),
    "symlink": frozenset({"lsm_path_symlink"}),
    "delete": frozenset({"lsm_path_unlink"}),
    "chmod": frozenset({"lsm_path_chmod"}),
    "chown": frozenset({"lsm_path_chown"}),
    "xattr": frozenset({"lsm_inode_setxattr", "lsm_inode_removexattr"}),
    "mkdir": frozenset({"lsm_path_mkdir"}),
    "rmdir": frozenset({"lsm_path_rmdir"}),
}
"""The same, by `op` of a change."""

_OF_LAYERS = {
    "create": frozenset({"lsm_inode_create", "lsm_inode_mknod"}),
    "truncate": frozenset({"lsm_inode_setattr"}),
    "rename": frozenset({"lsm_inode_rename"}),
    "link": frozenset({"lsm_inode_link"}),
    "symlink": frozenset({"lsm_inode_symlink"}),
    "delete": frozenset({"lsm_inode_unlink"}),
    "chmod": frozenset({"lsm_inode_setattr"}),
    "chown": frozenset({"lsm_inode_setattr"}),
    "mkdir": frozenset({"lsm_inode_mkdir"}),
    "rmdir": frozenset({"lsm_inode_rmdir"}),
}
"""The same, of what an overlay does to the files of its layers."""

_NEWER = {
    "truncate": frozenset({"lsm_file_truncate"}),
    "xattr": frozenset({"lsm_inode_set_acl", "lsm_inode_remove_acl"}),
}
"""By `op` of a change: what older kernels ask by the hooks above, and newer ones by their own."""

_OF_TASKS = frozenset({"lsm_task_alloc", "lsm_bprm_committed_creds"})
"""What every rule needs: a child has its tag at once, a new program nothing of the old one."""

_OF_NAMELESS = frozenset({"lsm_inode_init_security_anon"})
"""What refuses files that nobody opens, such as `[io_uring]`."""

_OF_MOUNT = {
    "mount": frozenset({"lsm_sb_mount", "lsm_move_mount"}),
    "move": frozenset({"lsm_sb_mount", "lsm_move_mount", "lsm_sb_pivotroot"}),
    "remount": frozenset({"lsm_sb_mount", "lsm_sb_remount"}),
    "umount": frozenset({"lsm_sb_umount"}),
    "userns": frozenset({"lsm_userns_create"}),
}
"""The same, by `op` of a mount."""

_TOO_EARLY = frozenset({"args", "argv", "argc"})
"""What is not known of an exec before the new program is in place."""


def _hooks(rule: Rule, kind: str) -> frozenset[str]:
    """The hooks that refuse what a rule denies of a kind, with those of tags; or none."""
    hooks = _HOOKS.get(kind, frozenset())
    if kind in ("change", "mount"):
        of_op = _OF_OP if kind == "change" else _OF_MOUNT
        hooks = _of_ops(of_op, rule.match)
        if kind == "change":
            hooks |= _of_ops(_OF_LAYERS, rule.match)
    elif kind in ("read", "open") and _may_be_nameless(rule.match):
        hooks |= _OF_NAMELESS
    return hooks and hooks | _OF_TASKS


def _may_be_nameless(match: Match) -> bool:
    """Whether it names what is no path, as `[[]io_uring]`."""
    paths = [one for one in match.conditions if one.field == "path"]
    return any(value.startswith("[") for one in paths for value in one.values)


def _lacking(rule: Rule, kind: str, host: Host) -> frozenset[str]:
    """The hooks that a rule needs and that have no program."""
    newer = frozenset[str]()
    if kind == "change":
        newer = _of_ops(_NEWER, rule.match)
    return (_hooks(rule, kind) - host.lsm) | (newer & host.lost)


def _of_ops(hooks: Mapping[str, frozenset[str]], match: Match) -> frozenset[str]:
    """Those of the operations that can fulfil a match."""
    return frozenset().union(*(hooks[op] for op in _ops(match) & hooks.keys()))


def _ops(match: Match) -> frozenset[str]:
    """The operations that can fulfil a match, of whatever kind."""
    asked = [set(one.values) for one in match.conditions if one.field == "op"]
    return frozenset(set.intersection(*asked) if asked else (*_OF_OP, *_OF_MOUNT))


def is_hooked(host: Host, kinds: Sequence[str], op: str = "") -> bool:
    """Whether LSM hooks are asked about an event. op: of a mount, or of what is no opening."""
    needed = frozenset[str]().union(*map(_hooks_of, kinds))
    if op:
        needed = (_OF_OP | _OF_MOUNT)[op] - _OPENING
    return bool(needed) and needed <= host.lsm


def _hooks_of(kind: str) -> frozenset[str]:
    return _OPENING if kind == "change" else _HOOKS.get(kind, frozenset())


def _too_early(rule: Rule) -> bool:
    matches = (rule.match, *(match for _, match in rule.unless))
    return any(one.field in _TOO_EARLY for match in matches for one in match.conditions)


def _hooked(rule: Rule, kind: str, host: Host) -> bool:
    """Whether LSM hooks refuse what the rule denies of a kind."""
    if not _hooks(rule, kind) or _lacking(rule, kind, host):
        return False
    return kind != "exec" or not _too_early(rule)


def refusal(
    rule: Rule, host: Host, without_hook: str = "kill", engine: str = NO_POLICY
) -> str | None:
    """Why a rule that insists on being prevented (`without_hook: refuse`) cannot be loaded here.

    without_hook: what the host says for rules that say nothing themselves. engine: as for `level`.
    """
    if rule.action != "deny" or (rule.without_hook or without_hook) != "refuse":
        return None
    if prevents(rule, host, engine):
        return None
    who = (
        f"rule {rule.id} says"
        if rule.without_hook
        else f"for rule {rule.id} this host's setting is"
    )
    why = engine or _why_not(rule, host)
    why = f" ({why.rstrip('.')})" if why else ""
    return (
        f"{who} `without_hook: refuse`, and {', '.join(rule.on)} cannot be prevented "
        f"here{why}: write `without_hook: kill` or `alert`"
    )


def insists(rule: Rule, host: Host, without_hook: str) -> bool:
    """Whether a rule must be prevented, and may be: who decides it is all that is in question."""
    return refusal(rule, host, without_hook, NO_POLICY) is not None and prevents(rule, host, "")


def _why_not(rule: Rule, host: Host) -> str:
    """Why the kernel does not refuse what a rule denies though it could refuse something; or ""."""
    for kind in rule.on:
        if _hooked(rule, kind, host) or _cgroup_alone(rule, kind, host):
            continue
        if missing := _missing(rule, kind, host):
            return missing
        if kind == "connect" and host.cgroup:
            return _unprevented(rule.match)
        if kind == "exec" and host.lsm:
            return "what it says of arguments is known for sure only when the program is in place"
    return ""


def _missing(rule: Rule, kind: str, host: Host) -> str:
    """Which hooks are not there that others are; or ""."""
    missing = sorted(_lacking(rule, kind, host)) if host.lsm else []
    return f"this kernel lacks {', '.join(missing)}" if missing else ""


_KERNEL = {
    "exec": ("kills", "The kernel kills the process before the new program runs an instruction"),
    "read": (
        "kills",
        "The kernel kills the process at the end of the call that opens the file, "
        "before its thread can read",
    ),
    "change": (
        "kills-after",
        "The kernel kills the process at the end of the call that opens the file, which may have "
        "been created or emptied by then",
    ),
    "open": (
        "kills-after",
        "The kernel kills the process at the end of the call that opens the file; what was opened "
        "for writing may have been created or emptied by then",
    ),
    "mount": (
        "kills-after",
        "The engine kills the process milliseconds after the call, by the names it was given",
    ),
    "connect": (
        "kills-after",
        "The kernel kills the process in the call that connects, before it can send anything; "
        "the other end may have seen the connection",
    ),
}
"""By kind: the level of a kill by the probes, and how it comes about."""

REFUSED = {
    "exec": "The kernel refuses the exec with EPERM",
    "read": "The kernel refuses the open with EPERM",
    "open": "The kernel refuses the open with EPERM",
    "change": "The kernel refuses the call with EPERM: nothing is changed",
    "mount": "The kernel refuses the call with EPERM: nothing is mounted",
    "connect": "The kernel refuses the connection with EPERM before anything is sent",
}
_BY_ARGUMENTS = (
    "Where the kernel can read the caller's arguments it refuses the exec with EPERM; else it "
    "kills the process before the new program runs an instruction"
)
_AFTER = (
    "The engine kills the process milliseconds after the effect, by the names the call was given"
)
_CHANGES_TOO = (
    "; for what is no opening (rename, delete and the like) the engine kills it milliseconds after"
)
_UNASKED = "; about mount_setattr, a `remount`, it asks nobody: the engine "
REFUSED_TOO = "; TCP and UDP it refuses before anything is sent, which is `prevents`"
_OTHERS_TOO = "; that is so of TCP and UDP, and who connects by another protocol is "
_REFUSED = frozenset({"tcp", "udp"})  # what cgroup programs are asked about


def _opens(match: Match) -> bool:
    """Whether opening a file can fulfil a match of changes."""
    return not any(
        one.field == "new_path" or (one.field == "op" and fields.OPENED.isdisjoint(one.values))
        for one in match.conditions
    )


def _only_opens(match: Match) -> bool:
    """Whether nothing else can. A truncation may be either."""
    return any(
        one.field == "op" and set(one.values) <= fields.OPENED - {"truncate", "create"}
        for one in match.conditions
    )


def _unprevented(match: Match) -> str:
    """Why what a rule on connections matches is not refused, or not all of it."""
    if _is_refused(match):
        return "Only TCP and UDP are refused: add `proto: [tcp, udp]`."
    if any(condition.field == "proto" for condition in match.conditions):
        return "Only TCP and UDP are refused: name no other `proto`."
    return "It is about unix sockets too: name addresses or ports, and `proto: [tcp, udp]`."


def _is_refused(match: Match) -> bool:
    """Whether the kernel refuses what fulfils a match, where that is TCP or UDP."""
    protocols = [set(one.values) for one in match.conditions if one.field == "proto"]
    if protocols:
        return any(one <= _REFUSED for one in protocols)
    return any(
        one.field in ("addr", "port")
        or (one.field == "family" and set(one.values) <= {"inet", "inet6"})
        for one in match.conditions
    )


def _may_be_refused(match: Match) -> bool:
    """Whether TCP or UDP, too, can fulfil a match."""
    return not any(
        one.field == "unix" or (one.field == "proto" and _REFUSED.isdisjoint(one.values))
        for one in match.conditions
    )


def _by_other_protocols(match: Match) -> bool:
    """Whether something else than TCP and UDP can fulfil a match."""
    return not any(one.field == "proto" and set(one.values) <= _REFUSED for one in match.conditions)


def _by_kernel(rule: Rule, host: Host, without_hook: str) -> Level:
    """A rule of several kinds is worth what it is worth for the weakest of them."""
    found = [_of_kind(rule, kind, host, without_hook) for kind in rule.on]
    found = [one for one in found if one.name != "none"]
    weakest = max(found, key=lambda one: LEVELS.index(one.name))
    reason = weakest.reason
    kinds = [kind for kind in rule.on if kind not in fields.UNPROBED_KINDS]
    for name in LEVELS[: LEVELS.index(weakest.name)]:
        better = [kind for kind, one in zip(kinds, found, strict=True) if one.name == name]
        if better:
            reason += f"; for {_named(better)} alone it is `{name}`"
    missing = [kind for kind in rule.on if kind in fields.UNPROBED_KINDS]
    if missing:
        reason += f"; there is no probe yet for {_named(missing)}"
    return Level(weakest.name, host.lossy and weakest.name != "prevents", f"{reason}.")


def _of_kind(rule: Rule, kind: str, host: Host, without_hook: str) -> Level:
    if kind in fields.UNPROBED_KINDS:
        return Level("none")
    kills = rule.action == "kill" or without_hook != "alert"
    if _hooked(rule, kind, host):
        ends = ", and kills the process" if rule.action == "kill" else ""
        if kind == "mount" and "remount" in _ops(rule.match):
            ends += _UNASKED + ("kills for it" if kills else "records it") + " milliseconds after"
        return Level("prevents", reason=REFUSED[kind] + ends)
    if kind == "connect" and host.cgroup and _is_refused(rule.match):
        ends = ", and kills the process" if rule.action == "kill" else ""
        if _by_other_protocols(rule.match):
            ends += _OTHERS_TOO + ("killed after" if kills else "recorded only")
        return Level("prevents", reason=REFUSED["connect"] + ends)
    if not kills:
        return Level("detects", reason=_alert_reason(rule, "enforce").rstrip("."))
    name, reason = _KERNEL[kind]
    missing = _missing(rule, kind, host)
    if kind == "change" and not _opens(rule.match):
        return Level(name, reason=_AFTER + f"; {missing}" * bool(missing))
    if kind == "change" and not _only_opens(rule.match):
        reason += _CHANGES_TOO
    if missing:
        reason += f"; {missing}"
    elif kind == "exec" and rule.action == "deny" and host.lsm:
        reason = _BY_ARGUMENTS
    if kind == "connect" and host.cgroup and _may_be_refused(rule.match):
        reason += REFUSED_TOO
    return Level(name, reason=reason)


def _named(kinds: Sequence[str]) -> str:
    return " or ".join(f"`{kind}`" for kind in kinds)


def _engine_reason(rule: Rule, why: str) -> str:
    reason = f"{why.rstrip('.')}: the engine kills the process milliseconds after the effect"
    if rule.count:
        reason = "The engine counts and kills the process milliseconds after the one too many"
    missing = [kind for kind in rule.on if kind in fields.UNPROBED_KINDS]
    if missing:
        return f"{reason}; there is no probe yet for {_named(missing)}."
    return f"{reason}."


def _alert_reason(rule: Rule, mode: str) -> str:
    if mode != "enforce":
        if rule.mode:
            return "This rule is in observe mode: it is recorded and nothing is stopped."
        return "In observe mode everything is recorded and nothing is stopped."
    if rule.action == "deny":
        who = "the rule says" if rule.without_hook else "this host's setting is"
        return f"It cannot be prevented here, and {who} `without_hook: alert`."
    return "The rule asks for an alert."


def _unseen(rule: Rule) -> str:
    """Why a rule can never match today, or ""."""
    if fields.UNPROBED_KINDS.issuperset(rule.on):
        return f"There is no probe yet for {_named(rule.on)}."
    return unseen(rule.match, rule.on)


def unseen(match: Match, kinds: Sequence[str]) -> str:
    """Why no event of these kinds can fulfil a match today, or ""."""
    for condition in match.conditions:
        found = [fields.lookup(condition.field, kind) for kind in kinds]
        known = [field for field in found if field is not None]
        if known and all(field.unprobed for field in known):
            return f"There is no probe yet for `{condition.field}`."
    return ""
