"""Ways around the policy in the kernel that were tried on it: each must end where the rule says."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.engine import by_unknown
from agentwatch.events import Exec
from agentwatch.kernel.probes import Probes, Sizes
from agentwatch.mounts import Mounts
from agentwatch.policy import compiler, patterns
from agentwatch.policy.subjects import AgentBits
from agentwatch.rules.load import load
from tests.kernel.law import KILLED, RULE, Law, code_of
from tests.kernel.recording import Recording, call, tell, witness
from tests.kernel.test_policy import attempts, untouched

pytestmark = pytest.mark.root

CLONE, OPENAT, OPENAT2, PRCTL, SECCOMP, UNSHARE = 56, 257, 437, 157, 317, 272
CLONE_FILES = 0x400
UDPLITE = 136


@pytest.fixture
def law(probes: Probes, place: Path) -> Iterator[Law]:
    """No rules yet; afterwards no rules, nobody held, and the host's mounts known again."""
    law = Law(probes, place)
    yield law
    probes.withdraw()
    probes.set_mounts(Mounts.read())
    for session in probes.sessions():
        probes.release(session)


@pytest.fixture(scope="module")
def preventing(probes: Probes) -> Probes:
    """The programs that refuse connections, attached to the tests' own root of cgroups."""
    assert probes.attach_connect()
    return probes


def flags_of(seen: Recording, path: Path) -> list[int]:
    """Of the records of every open of a file."""
    opened = [one for one in seen.records if getattr(one.event, "path", "") == str(path)]
    return [one.flags for one in opened if not isinstance(one.event, Exec)]


def shares(act: Callable[[], object]) -> int:
    """Does something in a child that has our table of descriptors; how it ended."""
    pid = call(CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        with suppress(BaseException):
            act()
        os._exit(0)
    return code_of(pid)


def found(path: Path) -> str:
    """What can be read from whatever descriptor of ours is of a file."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == str(path):
                return os.pread(int(fd), 100, 0).decode()
    return ""


# descriptors


def with_idle_threads(act: Callable[[], object]) -> None:
    """Acts where there are as many threads as users of the table, each with a table of its own."""
    apart = threading.Barrier(5)

    def idle() -> None:
        assert call(UNSHARE, CLONE_FILES) == 0
        apart.wait()
        threading.Event().wait()

    for _ in range(4):
        threading.Thread(target=idle, daemon=True).start()
    apart.wait()
    act()


@pytest.mark.parametrize("hidden", [False, True])
def test_who_shares_the_descriptors_of_a_killed_reader_reads_nothing(
    law: Law, hidden: bool
) -> None:
    """The parent has the descriptor that its child died for: it dies as well, before it reads."""
    key = law.place / "key"
    key.write_text("SECRET")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))

    def opens() -> None:
        os.open(key, os.O_RDONLY)

    def act() -> None:
        shares((lambda: with_idle_threads(opens)) if hidden else opens)
        tell(found(key))

    for _ in range(5):
        seen = law.record(act)
        assert (seen.status, seen.told) == (KILLED, ())
        assert all(flags & abi.FLAG_SHARED for flags in flags_of(seen, key))
        (event,) = [event for event in seen.opens if event.path == str(key)]
        assert event.shared
        assert by_unknown(event).scope == "session"


def test_threads_are_not_another_process(law: Law) -> None:
    """They die with the one that opened; the session goes on."""
    key = law.place / "key"
    key.write_text("SECRET")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            for _ in range(4):
                threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
            os.open(key, os.O_RDONLY)
            os._exit(0)
        tell(code_of(pid))

    for _ in range(5):
        seen = law.record(act)
        assert (seen.status, seen.told) == (0, (-KILLED,))
        assert not any(flags & abi.FLAG_SHARED for flags in flags_of(seen, key))


def test_a_session_that_the_probes_end_is_not_let_go_for_another(law: Law) -> None:
    """Whoever of it waits in a call dies at its end, whatever userspace does with others."""
    key = law.place / "key"
    key.write_text("SECRET")
    law.rule(("read", f'{{path: "{key}"}}', "kill"))
    reading, writing = os.pipe()

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            if os.read(reading, 1):
                tell("still there")
            os._exit(0)
        while not Path(f"/proc/{pid}/syscall").read_text().startswith(f"0 0x{reading:x} "):
            time.sleep(0.001)
        shares(lambda: os.open(key, os.O_RDONLY))

    try:
        with witness(act) as child, witness(lambda: None) as other:
            law.judge(child)
            child.go()
            child.status = os.waitpid(child.pid, 0)[1]
            assert child.status == KILLED
            assert law.probes.confirm(law.recorder.tag(other))
            os.write(writing, b"!")
            child.finish()
            assert child.told == ()
            assert child.session is not None
            ended = law.probes.session(child.session)
            assert ended is not None
            assert ended.state == abi.SESSION_ENDING
    finally:
        os.close(reading)
        os.close(writing)


def answers_zero(number: int) -> None:
    """From here on a call is not made, and has the result 0: a filter of seccomp says so."""
    steps = (
        (0x20, 0, 0, 0),  # load the number
        (0x15, 0, 1, number),  # is it this one?
        (0x06, 0, 0, 0x00050000),  # an error, of number 0
        (0x06, 0, 0, 0x7FFF0000),  # allowed
    )
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(program)
    given = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(kept)))
    assert call(PRCTL, 38, 1, 0, 0, 0) == 0  # no new privileges
    assert call(SECCOMP, 1, 0, given) == 0


@pytest.mark.parametrize(
    ("flags", "reads", "changes"),
    [
        (os.O_RDONLY, True, False),
        (os.O_WRONLY, False, True),
        (os.O_RDWR, True, True),
        (os.O_RDONLY | os.O_CREAT, True, True),
        (os.O_RDONLY | os.O_TRUNC, True, True),
        (os.O_PATH, False, False),
    ],
)
def test_a_descriptor_that_is_gone_is_judged_by_what_was_asked(
    law: Law, flags: int, reads: bool, changes: bool
) -> None:
    """Nothing is at the number that the call returned: what restricts reading or changing holds."""

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(0)
            answers_zero(OPENAT)
            call(OPENAT, -100, b"/key", flags, 0)
            os._exit(0)
        tell(code_of(pid))

    for kind, restricted in (("read", reads), ("change", changes)):
        law.rule((kind, '{path: "/nowhere"}', "kill"))
        seen = law.record(act)
        assert seen.told == (-KILLED if restricted else 0,)
        (event,) = [event for event in seen.opens if event.asked == "/key"]
        assert (event.reads, event.changes) == (reads, changes)


def test_flags_that_another_thread_may_write_to_are_not_believed(law: Law) -> None:
    """openat2 has them in memory: what is gone was read and changed, whatever they say."""
    how = ctypes.create_string_buffer(struct.pack("QQQ", os.O_PATH, 0, 0))

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            os.close(0)
            answers_zero(OPENAT2)
            call(OPENAT2, -100, b"/key", how, 24)
            os._exit(0)
        tell(code_of(pid))

    for kind in ("read", "change"):
        law.rule((kind, '{path: "/nowhere"}', "kill"))
        assert law.record(act).told == (-KILLED,)


# addresses


def sends(family: int, protocol: int, address: tuple[str, int]) -> int:
    """Sends a datagram without connecting; 0, or the error's number."""
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as client:
        try:
            client.sendto(b"x", address)
        except OSError as error:
            return error.errno or -1
    return 0


V4, V6 = socket.AF_INET, socket.AF_INET6
NOWHERE = [
    (V4, "127.0.0.1", "0.0.0.0"),
    (V6, "::1", "::"),
    (V6, "127.0.0.1", "::"),
    (V6, "127.0.0.1", "::ffff:0.0.0.0"),
]


@pytest.mark.parametrize("action", ["deny", "kill"])
@pytest.mark.parametrize(("family", "denied", "asked"), NOWHERE)
def test_no_address_at_all_is_this_machine(
    law: Law, preventing: Probes, family: socket.AddressFamily, denied: str, asked: str, action: str
) -> None:
    """The kernel takes 0.0.0.0 and :: for the loopback address: so is the rule on that asked."""
    law.rule(("connect", f'{{addr: "{denied}"}}', action))

    def act() -> None:
        for sent in (False, True):
            pid = os.fork()
            if pid == 0:
                where = (asked, 9)
                os._exit(sends(family, 0, where) if sent else attempts(where, family))
            tell(code_of(pid))

    seen = law.record(act)
    assert seen.told == ((errno.EPERM, errno.EPERM) if action == "deny" else (-KILLED, -KILLED))
    refused = [event for event in seen.connects if event.verdict]
    assert [event.addr.removeprefix("::ffff:") for event in refused] == [denied] * 2
    assert {event.result for event in refused} == {-errno.EPERM}


def test_a_listener_of_this_machine_sees_nothing_of_who_asks_for_no_address(
    law: Law, preventing: Probes
) -> None:
    """By TCP to 0.0.0.0; where no rule is about the loopback address, it is reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = ("0.0.0.0", server.getsockname()[1])
        law.rule(("connect", "{addr: 127.0.0.1}", "deny"))
        assert law.record(lambda: tell(attempts(address))).told == (errno.EPERM,)
        assert untouched(server)
        law.rule(("connect", "{addr: 127.0.0.2}", "deny"))
        assert law.record(lambda: tell(attempts(address))).told == (0,)
        law.rule(("connect", "{addr: 0.0.0.0}", "deny"))
        assert law.record(lambda: tell(attempts(address))).told == (errno.EPERM,)


def test_of_two_answers_on_no_address_the_stricter_stands(law: Law, preventing: Probes) -> None:
    """Whichever of the two the rule that only looks is about."""
    for first, second in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")):
        law.rule(
            ("connect", f"{{addr: {first}}}", "alert"), ("connect", f"{{addr: {second}}}", "deny")
        )
        seen = law.record(lambda: tell(sends(V4, 0, ("0.0.0.0", 9))))
        assert seen.told == (errno.EPERM,)
        assert [e.addr for e in seen.connects] == [second]


def test_the_light_datagrams_are_datagrams(law: Law, preventing: Probes) -> None:
    """UDP-Lite, of which no rule can speak, is sent nowhere that UDP is not; its connect kills."""
    with socket.socket(V4, socket.SOCK_DGRAM, UDPLITE) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        address = server.getsockname()
        law.rule(("connect", f"{{addr: 127.0.0.1, port: {address[1]}, proto: udp}}", "deny"))

        def act() -> None:
            tell(sends(V4, UDPLITE, address))
            pid = os.fork()
            if pid == 0:
                with socket.socket(V4, socket.SOCK_DGRAM, UDPLITE) as client:
                    client.connect(address)
                    client.send(b"x")
                os._exit(0)
            tell(code_of(pid))

        seen = law.record(act)
        assert seen.told == (errno.EPERM, -KILLED)
        assert [event.protocol for event in seen.connects] == ["udp", "udp"]
        with pytest.raises(BlockingIOError):
            server.recv(100)


def sleepers() -> tuple[list[int], int]:
    """More children than a small mirror has room for; they end when the descriptor is closed."""
    reading, writing = os.pipe()
    children = []
    for _ in range(70):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        children.append(pid)
    return children, writing


def test_who_has_no_place_in_the_mirror_sends_nothing(place: Path) -> None:
    """Where connections are refused, a child that those who refuse cannot know does not begin."""
    probes = Probes(sizes=Sizes(mirror=64))
    try:
        assert probes.attach_connect()
        law = Law(probes, place)
        with socket.socket(V4, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            address = server.getsockname()
            law.rule(("connect", "{addr: 127.0.0.1}", "deny"))

            def act() -> None:
                children, writing = sleepers()
                pid = os.fork()
                if pid == 0:
                    os._exit(sends(V4, 0, address))
                tell(code_of(pid))
                os.close(writing)
                tell([code_of(pid) for pid in children].count(-KILLED) > 0)

            assert law.record(act).told == (-KILLED, True)
            with pytest.raises(BlockingIOError):
                server.recv(100)
        assert probes.counters().mirror_full
    finally:
        probes.close()


def test_without_hooks_that_refuse_a_full_mirror_kills_nobody(place: Path) -> None:
    """The tag of the task's own storage is enough then, as it always was."""
    probes = Probes(sizes=Sizes(mirror=64))
    try:
        law = Law(probes, place)

        def act() -> None:
            children, writing = sleepers()
            os.close(writing)
            tell([code_of(pid) for pid in children].count(0))

        assert law.record(act).told == (70,)
        assert probes.counters().mirror_full
    finally:
        probes.close()


# defaults


def test_a_default_kills_nobody_on_a_mount_that_is_not_known_yet(law: Law) -> None:
    """What would allow it may be there: the engine looks. Rules that kill have their verdict."""

    def force(*rules: tuple[str, str]) -> None:
        law.generation += 1
        text = "schema: agentwatch/v1\ndefaults:\n  all: {change: deny}\nrules:\n"
        for number, (match, action) in enumerate(rules):
            text += RULE.format(number=number, on="change", match=match, action=action, unless="")
        file = law.place / "law.yaml"
        file.write_text(text)
        compiled = compiler.compile(
            load([file], homes=("/root",), patterns=patterns),
            mode="enforce",
            without_hook="kill",
            agents=AgentBits(),
            prevents=True,
            generation=law.generation,
            size=law.probes.policy_room,
        )
        law.probes.put_in_force(compiled.image)

    def act() -> None:
        for name in ("allowed", "other"):
            pid = os.fork()
            if pid == 0:
                os.open(law.place / name, os.O_WRONLY | os.O_CREAT)
                os._exit(0)
            tell(code_of(pid))

    def verdicts() -> tuple[list[int], list[int]]:
        seen = law.record(act)
        opens = [e for e in seen.opens if e.asked.startswith(str(law.place)) and e.changes]
        return list(seen.told), [event.verdict for event in opens]

    allow = (f'{{path: "{law.place}/allowed"}}', "allow")
    force(allow)
    assert verdicts() == ([0, -KILLED], [0, abi.VERDICT_KILL])
    status = os.stat(law.place)
    dev = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    known = {number: rows for number, rows in Mounts.read().items() if number != dev}
    law.probes.set_mounts(Mounts(known))
    assert verdicts() == ([0, 0], [abi.VERDICT_LOOK] * 2)
    force(allow, ('{path: "**/other"}', "kill"))
    assert verdicts() == ([0, -KILLED], [abi.VERDICT_LOOK, abi.VERDICT_KILL])


# reload


def test_an_exec_that_began_before_the_next_policy_was_there_has_told_of_itself(
    law: Law, programs: Path
) -> None:
    """From the end of publish on, an exec is in a ring already or leaves a mark, a long one too."""
    canary = programs / "canary"
    law.rule(("exec", '{args: "** --no-such"}', "alert"))
    filling = [b"x" * 100_000] * 18

    def act() -> None:
        workers: list[int] = []
        while len(workers) < 3 and 0 not in workers:
            workers.append(os.fork())  # 0: this is one of them
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                os.execv(canary, [b"canary", str(law.place / "made").encode(), *filling])
            code_of(pid)
        if 0 not in workers:
            for worker in workers:
                code_of(worker)

    with witness(act) as child:
        law.judge(child)
        child.go()
        session, unknown = child.session, 0
        while child.status is None:
            law.probes.publish(law.image(("exec", '{args: "** --no-such"}', "alert")))
            law.recorder.collect()
            time.sleep(0.01)
            later = [one.event for one in law.recorder.collect() if isinstance(one.event, Exec)]
            marked = law.probes.forget_marks(law.generation)
            unknown += sum(e.time not in marked for e in later if e.session == session)
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            child.status = status if pid else None
    assert unknown == 0
