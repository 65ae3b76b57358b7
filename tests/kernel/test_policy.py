"""What the policy in the kernel does: looked at from outside, never in our own records alone."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Open
from agentwatch.kernel.policies import CONNECT_HOOKS
from agentwatch.kernel.probes import Probes
from agentwatch.mounts import Mounts
from agentwatch.policy.image import Image
from tests.kernel.law import KILLED, NONE, Law, code_of, reads, spawn
from tests.kernel.recording import tell, witness

pytestmark = pytest.mark.root

DEPTH = 300


@pytest.fixture(scope="module")
def preventing(probes: Probes) -> Probes:
    """The programs that refuse connections, attached to the tests' own root of cgroups."""
    assert probes.attach_connect()
    assert probes.attached() >= set(CONNECT_HOOKS)
    return probes


# exec


def test_a_program_that_a_rule_kills_runs_no_instruction(law: Law, programs: Path) -> None:
    """The file it would make first of all is never there, in fifty runs."""
    canary, made = programs / "canary", law.place / "made"
    law.rule(("exec", f'{{path: "{canary}"}}', "kill"))

    def act() -> None:
        for _ in range(50):
            tell(spawn(canary, made))

    seen = law.record(act)
    assert seen.told == (-KILLED,) * 50
    assert not made.exists()
    execs = [event for event in seen.execs if event.path == str(canary)]
    assert {(e.verdict, e.rule, e.generation) for e in execs} == {
        (abi.VERDICT_KILL, 1, law.generation)
    }
    assert spawn(canary, made) == 0
    assert made.exists()


@pytest.mark.parametrize("size", [0, 100_000, 1_900_000])
def test_arguments_are_read_to_their_end(law: Law, programs: Path, size: int) -> None:
    """The last of many kilobytes of arguments is found, and one that is not there is not."""
    canary, made = programs / "canary", law.place / "made"
    law.rule(("exec", f'{{args: "** --last-of-{law.place.name}"}}', "kill"))
    filling = [b"x" * min(100_000, size)] * (size // 100_000)

    def act() -> None:
        tell(spawn(canary, made, *filling, f"--last-of-{law.place.name}"))
        tell(made.exists())
        tell(spawn(canary, made, *filling, f"--last-of-{law.place.name}x"))

    assert law.record(act).told == (-KILLED, False, 0)


@pytest.mark.parametrize("size", [1, 4_000, 4_094, 4_095, 4_096, 4_097, 8_190, 8_191, 100_000])
def test_the_first_argument_is_left_out_however_long(law: Law, programs: Path, size: int) -> None:
    """What stands in argv[0] matches no args; what comes behind it does."""
    canary = programs / "canary"
    law.rule(("exec", '{args: "evil"}', "kill"))

    def run(*argv: bytes) -> int:
        pid = os.fork()
        if pid == 0:
            os.chdir(law.place)
            os.execv(canary, argv)
        return code_of(pid)

    def act() -> None:
        tell(run(b"x" * size, b"evil"))
        tell(run(b"evil" if size < 4 else b"x" * (size - 4) + b"evil"))

    assert law.record(act).told == (-KILLED, 2)


def test_rules_know_which_program_makes_a_call(law: Law) -> None:
    """process.exe is the program that runs now, from its exec on, and its child's after a fork."""
    key = law.place / "key"
    key.write_text("key")
    cat, head = (str(Path(f"/usr/bin/{name}").resolve()) for name in ("cat", "head"))
    law.rule(("read", f'{{path: "{key}"}}', "kill", f'{{process.exe: "{cat}"}}'))

    def act() -> None:
        tell(spawn(cat, key))
        tell(spawn(head, key))
        tell(spawn("/bin/sh", "-c", f"{cat} {key} && {head} {key}; exit $?"))
        tell(spawn("/bin/sh", "-c", f"read line < {key}"))

    assert law.record(act).told == (0, -KILLED, 128 + KILLED, -KILLED)


# open


def test_a_file_that_a_rule_kills_for_is_not_read(law: Law) -> None:
    """A reader with one thread is gone before it has the descriptor: no byte, in a hundred runs."""
    key = law.place / "key"
    key.write_text("key")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))

    def act() -> None:
        reading, writing = os.pipe()
        ends = []
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                with open(key, "rb", buffering=0) as file:
                    os.write(writing, file.read())
                os._exit(0)
            ends.append(code_of(pid))
        os.close(writing)
        tell(ends)
        tell(os.read(reading, 4096).decode())

    seen = law.record(act)
    assert seen.told == ([-KILLED] * 100, "")
    (verdicts,) = {(e.verdict, e.rule) for e in seen.opens if e.path == str(key)}
    assert verdicts == (abi.VERDICT_KILL, 1)


def test_a_rule_on_changes_lets_reading_be_and_the_other_way_round(law: Law) -> None:
    """Access and kind are the kernel's own view of what was opened."""
    one, other = law.place / "one", law.place / "other"
    for path in (one, other):
        path.write_text("x")
    law.rule(("change", f'{{path: "{one}"}}', "kill"), ("read", f'{{path: "{other}"}}', "kill"))

    def opens(path: Path, flags: int) -> int:
        pid = os.fork()
        if pid == 0:
            os.open(path, flags)
            os._exit(0)
        return code_of(pid)

    def act() -> None:
        for path in (one, other):
            tell([opens(path, f) for f in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_PATH)])

    assert law.record(act).told == ([0, -KILLED, -KILLED, 0], [-KILLED, 0, -KILLED, 0])


def test_names_at_the_end_of_many_directories_are_found(law: Law) -> None:
    """Three hundred levels, each of them named like the beginning of the pattern."""
    deep = law.place.joinpath(*["a"] * DEPTH)
    deep.mkdir(parents=True)
    (deep / "key").write_text("x")
    (deep / "other").write_text("x")
    law.rule(("read", '{path: "**/a/a/key"}', "kill"))

    def act() -> None:
        tell([reads(deep / "other"), reads(deep / "key")])

    assert law.record(act).told == ([0, -KILLED],)


def long_name(place: Path, length: int) -> tuple[int, str]:
    """A directory (its descriptor) and a file's name in it, so that the whole is so long."""
    fd, left = os.open(place, os.O_RDONLY | os.O_DIRECTORY), length - len(str(place))
    while left > 251:
        part = "d" * min(200, left - 51)
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=fd)
        inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd, left = inner, left - len(part) - 1
    name = "k" * (left - 1)
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    return fd, name


@pytest.mark.parametrize("length", [4_000, 4_094, 4_095])
def test_names_are_read_to_their_full_length(law: Law, length: int) -> None:
    """A pattern that only the last byte decides, on a path of 4,095 bytes."""
    directory, name = long_name(law.place, length)
    law.rule(("read", f'{{path: "**/{name}"}}', "kill"))
    other = f"{name[:-1]}x"
    os.close(os.open(other, os.O_CREAT | os.O_WRONLY, dir_fd=directory))

    def opens(name: str) -> int:
        pid = os.fork()
        if pid == 0:
            os.open(name, os.O_RDONLY, dir_fd=directory)
            os._exit(0)
        return code_of(pid)

    def act() -> None:
        tell([opens(other), opens(name)])

    seen = law.record(act)
    os.close(directory)
    assert seen.told == ([0, -KILLED],)
    assert {len(e.path) for e in seen.opens if e.path.endswith((name, other))} == {length}


def test_a_name_too_long_to_be_read_restricts_and_loosens_nothing(law: Law) -> None:
    """Any rule that restricts a path applies to it, and no exception by a path does."""
    directory, name = long_name(law.place, 4_300)
    elsewhere = '{path: "/nowhere"}'

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            os.open(name, os.O_RDONLY, dir_fd=directory)
            os._exit(0)
        tell(code_of(pid))

    law.rule(("read", elsewhere, "kill"))
    assert law.record(act).told == (-KILLED,)
    law.rule(("read", elsewhere, "kill", '{path: "/**"}'))
    assert law.record(act).told == (-KILLED,)
    law.rule(("change", elsewhere, "kill"))
    assert law.record(act).told == (0,)
    os.close(directory)


def test_bytes_that_are_no_text_are_characters_too(law: Law) -> None:
    """`*` covers them, `?` one of them."""
    names = [
        os.fsencode(law.place) + b"/" + name for name in (b"a\xff\xfeb", b"c\xffd", b"c\xc3\xa9d")
    ]
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    law.rule(
        ("read", f'{{path: "{law.place}/a*b"}}', "kill"),
        ("read", f'{{path: "{law.place}/c?d"}}', "kill"),
    )

    def act() -> None:
        tell([reads(name) for name in names])

    assert law.record(act).told == ([-KILLED] * 3,)


def test_what_init_has_not_mounted_is_foreign(law: Law) -> None:
    """Its files keep the names from their own root, and no exception rests on such a name. By the
    name that the task has for them rules restrict, too.
    """
    mounted = law.place / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        (mounted / "key").write_text("x")
        law.rule(("read", '{path: "**/key"}', "kill", '{path: "**"}'))

        def act() -> None:
            tell(reads(mounted / "key"))

        assert law.record(act).told == (-KILLED,)
        law.rule(("read", f'{{path: "{mounted}/key"}}', "kill"))
        assert law.record(act).told == (-KILLED,)
        law.rule(("read", f'{{path: "{mounted}/other"}}', "kill"))
        assert law.record(act).told == (0,)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_name_has_its_mount_point_in_front(law: Law, place: Path) -> None:
    """As the table of mounts says, also of a directory that is mounted elsewhere."""
    inner = place / "inner" / "deep"
    inner.mkdir(parents=True)
    (inner / "key").write_text("x")
    (place / "innermost").write_text("x")
    dev, top = os.stat(place).st_dev, next(p for p in place.parents if p.is_mount())
    number, within = os.major(dev) << 20 | os.minor(dev), f"/{place.relative_to(top)}"
    far = (os.fsencode(within) + b"/inner", b"/mnt/far")
    law.probes.set_mounts(Mounts({number: (far, (b"", b"/home"))}))
    law.rule(
        ("read", '{path: "/mnt/far/deep/key"}', "kill"),
        ("read", f'{{path: "/home{within}/innermost"}}', "kill"),
    )

    def act() -> None:
        tell([reads(inner / "key"), reads(place / "innermost"), reads(place / "law.yaml")])

    assert law.record(act).told == ([-KILLED, -KILLED, 0],)


def test_a_rule_on_the_project_is_about_each_sessions_own(law: Law) -> None:
    """$project is the directory that was told for the session, and nothing without one."""
    project = law.place / "project"
    project.mkdir()
    for name in ("project/key", "key"):
        (law.place / name).write_text("x")
    law.rule(("read", '{path: "$project/key"}', "kill"))

    def act() -> None:
        tell([reads(project / "key"), reads(law.place / "key")])

    assert law.record(act, str(project)).told == ([-KILLED, 0],)
    assert law.record(act, str(law.place)).told == ([0, -KILLED],)
    assert law.record(act, str(law.place) + "/pro").told == ([0, 0],)
    assert law.record(act).told == ([0, 0],)


def test_a_session_is_judged_once_it_is_set(law: Law) -> None:
    """Before, and with no policy, records have generation 0 and nothing happens."""
    key = law.place / "key"
    key.write_text("x")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))

    def act() -> None:
        tell(reads(key))

    unset = law.recorder.record(act)
    assert unset.told == (0,)
    assert {(e.generation, e.verdict) for e in unset.opens} == {(0, 0)}
    law.probes.withdraw()
    withdrawn = law.record(act)
    assert withdrawn.told == (0,)
    assert {(e.generation, e.verdict) for e in withdrawn.opens} == {(0, 0)}


def test_an_alert_is_told_and_nothing_else(law: Law) -> None:
    """The verdict is to look; what no rule is about has the generation and no verdict."""
    key, other = law.place / "key", law.place / "other"
    for path in (key, other):
        path.write_text("x")
    law.rule(("read", f'{{path: "{key}"}}', "alert"))

    def act() -> None:
        tell([reads(key), reads(other)])

    seen = law.record(act)
    assert seen.told == ([0, 0],)
    verdicts = {e.path: (e.generation, e.verdict, e.rule) for e in seen.opens}
    assert verdicts[str(key)] == (law.generation, abi.VERDICT_LOOK, 1)
    assert verdicts[str(other)] == (law.generation, 0, 0)


def test_a_shared_descriptor_table_does_not_help(law: Law) -> None:
    """Every thread of the process dies with the one that opened."""
    key = law.place / "key"
    key.write_text("x")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            threading.Thread(target=os.open, args=(key, os.O_RDONLY)).start()
            while True:
                os.getppid()
        tell(code_of(pid))

    assert law.record(act).told == (-KILLED,)


# connect


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP port of 127.0.0.1; accepting does not wait."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def untouched(server: socket.socket) -> bool:
    """Whether nobody has come."""
    with suppress(BlockingIOError):
        server.accept()[0].close()
        return False
    return True


def attempts(address: tuple[str, int], family: socket.AddressFamily = socket.AF_INET) -> int:
    """Connects by TCP; 0, or the error's number."""
    with socket.socket(family) as client:
        return client.connect_ex(address)


def test_a_denied_connection_does_not_come_about(
    law: Law, preventing: Probes, listener: socket.socket
) -> None:
    """EPERM, and the listener sees nothing; the record has the address, the result, the verdict."""
    port = listener.getsockname()[1]
    law.rule(("connect", f"{{addr: 127.0.0.1, port: {port}}}", "deny"))

    def act() -> None:
        tell([attempts(("127.0.0.1", port)) for _ in range(20)])

    seen = law.record(act)
    assert seen.told == ([errno.EPERM] * 20,)
    assert untouched(listener)
    denied = [e for e in seen.connects if e.verdict]
    assert {(e.addr, e.port, e.protocol, e.result, e.verdict, e.rule) for e in denied} == {
        ("127.0.0.1", port, "tcp", -errno.EPERM, abi.VERDICT_DENY, 1)
    }
    assert len(denied) == 20
    assert attempts(("127.0.0.1", port)) == 0


def test_a_mapped_address_is_the_same_address(
    law: Law, preventing: Probes, listener: socket.socket
) -> None:
    """::ffff:127.0.0.1 is denied with 127.0.0.1, and other ports are not."""
    port = listener.getsockname()[1]
    law.rule(("connect", f"{{addr: 127.0.0.1, port: {port}}}", "deny"))

    def act() -> None:
        tell(attempts(("::ffff:127.0.0.1", port), socket.AF_INET6))
        tell(attempts(("127.0.0.1", port + 1 if port < 65535 else 1)) == errno.EPERM)

    assert law.record(act).told == (errno.EPERM, False)
    assert untouched(listener)


def test_a_denied_connection_of_IPv6_does_not_come_about(law: Law, preventing: Probes) -> None:
    """The same, by a network of IPv6."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        server.setblocking(False)
        address = server.getsockname()[:2]
        law.rule(("connect", '{"addr|cidr": "::/120"}', "deny"))
        seen = law.record(lambda: tell(attempts(address, socket.AF_INET6)))
        assert seen.told == (errno.EPERM,)
        assert untouched(server)


def test_a_killing_connection_ends_the_process_and_does_not_come_about(
    law: Law, preventing: Probes, listener: socket.socket
) -> None:
    """The process is gone at the end of its call, the listener sees nothing."""
    port = listener.getsockname()[1]
    law.rule(("connect", f"{{port: {port}}}", "kill"))

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            attempts(("127.0.0.1", port))
            tell("still there")
            os._exit(0)
        tell(code_of(pid))

    assert law.record(act).told == (-KILLED,)
    assert untouched(listener)


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_denied_message_is_not_sent(
    law: Law, preventing: Probes, family: socket.AddressFamily, host: str
) -> None:
    """sendto and connect of a UDP socket: EPERM, and nothing arrives."""
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((host, 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        law.rule(("connect", f"{{port: {port}, proto: udp}}", "deny"))

        def act() -> None:
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                tell(client.connect_ex((host, port)))
                try:
                    tell(client.sendto(b"secret", (host, port)))
                except OSError as error:
                    tell(error.errno)

        assert law.record(act).told == (errno.EPERM, errno.EPERM)
        with pytest.raises(BlockingIOError):
            server.recv(100)


def test_a_message_that_a_rule_looks_at_is_recorded(law: Law, preventing: Probes) -> None:
    """sendto without a connect is a record of its own where the engine has to judge it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        law.rule(("connect", f"{{port: {address[1]}}}", "alert"))

        def act() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                tell(client.sendto(b"hello", address))

        seen = law.record(act)
        assert seen.told == (5,)
        (sent,) = seen.connects
        assert (sent.port, sent.protocol, sent.result) == (address[1], "udp", 0)
        assert sent.verdict == abi.VERDICT_LOOK


def test_a_unix_socket_is_judged_by_the_name_it_is_bound_to(law: Law) -> None:
    """By its path, and by its abstract name; the process dies at the end of its connect."""
    path = law.place / "socket"
    names: list[str | bytes] = [str(path), f"\0{law.place.name}", str(law.place / "other")]
    servers = []
    for name in names:
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.listen(10)
        servers.append(server)
    law.rule(
        ("connect", f'{{unix: "{path}"}}', "kill"),
        ("connect", f'{{unix: "@{law.place.name}"}}', "kill"),
    )

    def connects(name: str | bytes) -> int:
        pid = os.fork()
        if pid == 0:
            socket.socket(socket.AF_UNIX).connect(name)
            os._exit(0)
        return code_of(pid)

    def act() -> None:
        tell([connects(name) for name in names])

    assert law.record(act).told == ([-KILLED, -KILLED, 0],)
    for server in servers:
        server.close()


# reload


def test_an_exec_before_the_swap_is_known_to_the_next_policy(law: Law) -> None:
    """A program that began while the next policy was there already has its predicates in it."""
    key = law.place / "key"
    key.write_text("x")
    shell = str(Path("/bin/sh").resolve())
    law.rule(("read", f'{{path: "{key}"}}', "alert"))
    following = law.image(("read", f'{{path: "{key}"}}', "kill", f'{{process.exe: "{shell}"}}'))
    started, swapped = law.place / "started", law.place / "swapped"
    os.mkfifo(started)
    os.mkfifo(swapped)
    law.probes.publish(following)
    script = f"echo > {started}; read line < {swapped}; read line < {key}; exit $?"
    with witness(lambda: tell(spawn("/bin/sh", "-c", script))) as child:
        law.judge(child)
        child.go()
        started.read_bytes()
        law.probes.put_in_force(following)
        swapped.write_text("go\n")
        child.finish()
        seen = law.recorder.recording(child)
    assert seen.told == (1,)
    (read,) = [e for e in seen.opens if e.path == str(key)]
    assert (read.generation, read.verdict) == (law.generation, 0)


def test_what_is_known_of_a_program_reaches_its_tags(law: Law) -> None:
    """A mark is taken over with the next look at it: what was not known held for the rule."""
    key = law.place / "key"
    key.write_text("x")
    image = law.image(("read", f'{{path: "{key}"}}', "alert", '{process.exe: "/no/such"}'))
    law.probes.put_in_force(image)
    known = Image(image).predicates(b"/no/such/", b"//", b"")
    assert known

    reading, writing = os.pipe()

    def act() -> None:
        while os.read(reading, 1) == b"a":
            os.close(os.open(key, os.O_RDONLY))
            tell("read")

    def verdicts() -> list[int]:
        return [
            record.event.verdict
            for record in law.recorder.quiet()
            if isinstance(record.event, Open) and record.event.path == str(key)
        ]

    with witness(act) as child:
        session = law.recorder.tag(child)
        assert law.probes.set_session(session, NONE, None)
        child.go()
        os.write(writing, b"a")
        child.hear(1)
        assert verdicts() == [abi.VERDICT_LOOK]
        law.probes.mark(session.start, law.generation, NONE, known)
        law.probes.refresh()
        os.write(writing, b"a")
        child.hear(2)
        assert verdicts() == [0]
        os.write(writing, b".")
        child.finish()
    os.close(reading)
    os.close(writing)
