"""What agentwatch knows: one frozen dataclass per kind of record.

Produced by `decoding.decode` from the kernel's records (bpf/agentwatch.h is the contract), consumed
by the lineage, the engine and the sinks. Names of files are `str` with undecodable bytes as
surrogate escapes: `os.fsencode` gives the kernel's bytes back. Times are nanoseconds of
CLOCK_BOOTTIME, taken in the probe.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NamedTuple


class ProcessKey(NamedTuple):
    """A process for the whole boot: `pid` may be reused, the pair is not.

    pid: thread group id in the initial PID namespace. start: ns of CLOCK_BOOTTIME at its fork.
    """

    pid: int
    start: int

    def id(self, boot_id: str) -> str:
        """`boot-id:pid:start-time`, unique across machines and reboots."""
        return f"{boot_id}:{self.pid}:{self.start}"


NO_PROCESS = ProcessKey(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every record has. `unresolved` names fields whose read failed or was cut.

    generation: of the policy the kernel judged it by, 0: it did not. verdict: what that said
    (abi.VERDICT_*, 0: nothing), rule: its number in that policy. refused: an LSM hook did not
    let the call happen; its names are those that would have been used.
    """

    time: int
    process: ProcessKey
    session: ProcessKey
    tid: int = 0
    cpu: int = 0
    sequence: int = 0
    generation: int = 0
    provisional: bool = False  # the tag is not confirmed: nothing is acted on or shown yet
    unresolved: frozenset[str] = frozenset()
    rule: int = 0
    verdict: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork(Event):
    """A new process (never a thread). `process` is the forker, `child` the new one."""

    child: ProcessKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec(Event):
    """execve or execveat. result 0: the program runs; below 0: -errno, and only `asked` is known.

    view, known: see Open.

    path: canonical name of the executable that runs (the interpreter, where a shebang ran it).
    asked: the name given to the call. script: the script's absolute name, or None.
    argv: as the new program sees it; argv_cut when more than ARGV_MAX bytes of it exist.
    stdin: tty | pipe | socket | file | null. candidate: the name has a literal component of an
    identity. parent: the process that would be told of its exit.
    """

    path: str
    asked: str = ""
    script: str | None = None
    argv: tuple[str, ...] = ()
    argv_cut: bool = False
    argc: int = 0
    stdin: str = "null"
    cwd: str = ""
    uid: int = 0
    parent: ProcessKey = NO_PROCESS
    result: int = 0
    candidate: bool = False
    anonymous: bool = False  # a memfd or another file without a name
    deleted: bool = False
    view: str = ""
    known: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """What else the executable is called."""
        return _others(self.view, self.known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit(Event):
    """The last thread of a process is gone. status: as wait(2) gives it."""

    status: int = 0

    @property
    def code(self) -> int:
        """As a shell shows it: the exit code, or 128 + the signal's number.

        A status that no process ends with is 255.
        """
        signal = self.status & 0x7F
        return 128 + signal if signal else self.status >> 8 & 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Open(Event):
    """open, openat, openat2, creat, open_by_handle_at. result: the descriptor, or -errno.

    path: canonical name of the file opened; "" when the call failed, for then only `asked` (and
    `cwd`-relative, as given) is known. flags: O_* as asked, with the access mode as granted.
    reads / changes: the kernel's own view of the file opened; both False for O_PATH. shared: the
    kernel kills for it, and another process has the descriptor as well. view: its name as the
    process sees it, below its own root and through its own mounts. known: the name it had when the
    policy was loaded, of a file that rules are about. Either is "" where it is no other name.
    """

    path: str
    asked: str = ""
    flags: int = 0
    result: int = 0
    reads: bool = False
    changes: bool = False
    created: bool = False
    directory: bool = False
    deleted: bool = False
    shared: bool = False
    view: str = ""
    known: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """What else the file is called."""
        return _others(self.view, self.known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Event):
    """A change of names or attributes that is no opening. op: create (mknod), truncate, rename,
    link, symlink, delete, chmod, chown, xattr, mkdir, rmdir. result: 0, or -errno.

    path: the file's name; "" when the call failed, for then only `asked` is known. new_path: the
    second name of a rename or link, or "". An LSM hook tells them as they are. Without one the
    kernel tells where a name began and the text that the call was given (asked, new_asked), which
    another thread may have exchanged; path is what that comes to with its symbolic links looked up
    a moment later, and written, new_written the same without looking, where that is another name.
    So these names are no proof of what was changed, unless the call was made on a descriptor. view,
    known, new_view, new_known: see Open. new_asked: of a symbolic link, its text. mode: of create,
    mkdir and chmod, as asked. anonymous: a file without a place, as a memfd.
    """

    op: str
    path: str
    new_path: str = ""
    asked: str = ""
    new_asked: str = ""
    view: str = ""
    new_view: str = ""
    known: str = ""
    new_known: str = ""
    written: str = ""
    new_written: str = ""
    result: int = 0
    mode: int = 0
    anonymous: bool = False

    @property
    def others(self) -> tuple[str, ...]:
        """What else the file is called, by its first name."""
        return _others(self.view, self.known, self.written)

    @property
    def what(self) -> str:
        """The operation and its names: delete /a, rename /a -> /b, symlink /a -> its text."""
        said = f"{self.op} {self.path or self.asked}"
        other = self.new_asked if self.op == "symlink" else self.new_path or self.new_asked
        return f"{said} -> {other}" if other else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount(Event):
    """A mount, or what lets somebody make one. op: mount (something is at `path` that was not: a
    file system, a directory, a tree that open_tree made), move (a mount, or the root: pivot_root),
    remount (flags and options, how mounts spread), umount, userns (a user namespace, which has no
    path). result: 0, or -errno.

    path: the mount point; "" when the call failed, for then only `asked` is known, and of
    pivot_root at its end. source: what is mounted, a name where the kernel has it, else the text
    that the call was given; "" for none. fstype: the type of the file system, "" where the call
    needs none. asked, view, known, written: as of a Change, which has the same said of its names.
    """

    op: str = "mount"
    path: str = ""
    source: str = ""
    fstype: str = ""
    asked: str = ""
    view: str = ""
    known: str = ""
    written: str = ""
    result: int = 0
    flags: int = 0

    @property
    def others(self) -> tuple[str, ...]:
        """What else the mount point is called."""
        return _others(self.view, self.known, self.written)

    @property
    def what(self) -> str:
        """The operation and its names: mount tmpfs -> /mnt, umount /mnt, userns."""
        names = (self.source, self.path or self.asked)
        return f"{self.op} {' -> '.join(filter(None, names))}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(Event):
    """connect(2) at its end, or, with `syn`, the first packet of a TCP connection.

    The syn record comes from the kernel's socket (inet_sock_set_state) and is what TCP is judged
    by; it has no result (0). family: AF_* number. addr: text form ("" if none). port: 0 if none.
    protocol: tcp | udp | unix | icmp | the number as text. unix: a path, "@name" for an abstract
    socket, "" if none. from_socket: address read from kernel objects, not from the caller's
    memory. view: of a path, see Open.
    """

    family: int
    addr: str = ""
    port: int = 0
    protocol: str = ""
    unix: str = ""
    result: int = 0
    syn: bool = False
    from_socket: bool = False
    view: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """What else a unix socket's path is called."""
        return _others(self.view)

    @property
    def where(self) -> str:
        """The address as people write it: host:port ([host]:port), a unix path, "" for none."""
        if self.unix or not self.addr:
            return self.unix
        host = f"[{self.addr}]" if ":" in self.addr else self.addr
        return f"{host}:{self.port}"


def _others(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def error_name(result: int) -> str:
    """ENOENT for -2; "" for success; the number where the kernel's codes have no name."""
    if result >= 0:
        return ""
    return {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND"}.get(
        -result, errno.errorcode.get(-result, str(-result))
    )
