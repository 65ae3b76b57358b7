"""Levels, by their effects: what the kernel kills or refuses has not happened.

Each claim is about a file, an output or a server, never about what agentwatch says of itself; what
it says is looked at beside that.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentwatch.sinks.frames import Kill, Notice, Reload, Verdict
from tests.daemon.running import PATIENCE, Daemon, Place, reads, until

pytestmark = pytest.mark.root

TIMES = 20  # a kill that only came late would be seen in some of them
SERVER = "127.0.0.1"


def add(place: Place, *rules: dict[str, object]) -> None:
    """Rules beside those of the place, in a file of their own."""
    lines = ["schema: agentwatch/v1", "rules:"]
    for one in rules:
        match = one["match"]
        tests = [{"hit": one.get("hit", match)}]
        whole = {"because": "No.", "action": "kill", **one, "tests": tests}
        whole.pop("hit", None)
        lines.append(f"  - {json.dumps(whole)}")
    place["more.yaml"].write_text("\n".join(lines) + "\n")
    place.write(rules=[str(place["rules.yaml"]), str(place["more.yaml"])])


def level(place: Place, rule: str) -> set[tuple[str, str]]:
    """(level, outcome) of every verdict by a rule."""
    until(lambda: any(one.rule == rule for one in place.frames(Verdict)), rule)
    return {(one.level, one.outcome) for one in place.frames(Verdict) if one.rule == rule}


@contextmanager
def server() -> Iterator[tuple[socket.socket, int]]:
    """Listens at SERVER; its port."""
    with socket.socket() as listener:
        listener.bind((SERVER, 0))
        listener.listen()
        listener.setblocking(False)
        yield listener, listener.getsockname()[1]


def connections(listener: socket.socket) -> int:
    """How many were made and not accepted yet."""
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def connecting(port: int, kind: str = "SOCK_STREAM") -> str:
    """A program of an agent that connects, or sends to a server, and says what came of it."""
    act = f"s.connect(('{SERVER}', {port}))"
    if kind == "SOCK_DGRAM":
        act = f"s.sendto(b'x', ('{SERVER}', {port}))"
    code = f"import socket\ns = socket.socket(socket.AF_INET, socket.{kind})\n"
    code += f"try:\n {act}\n print('done')\nexcept OSError as e:\n print(e.errno)\n"
    return f"python3 -c {json.dumps(code)}".replace("\\n", "\n")


def known(daemon: Daemon, script: str, **more: Any) -> subprocess.Popen[str]:
    """An agent that begins with its script once its session is confirmed: the kernel judges it."""
    agent = daemon.place.agent(f"read line; {script}", **more)
    daemon.session(agent.pid)
    assert agent.stdin is not None
    agent.stdin.write("\n")
    agent.stdin.flush()
    return agent


def said(daemon: Daemon, script: str) -> str:
    """What an agent prints that the kernel judges."""
    out, _ = known(daemon, script).communicate(timeout=PATIENCE)
    return out


def test_what_is_read_is_never_read(daemon: Daemon, place: Place) -> None:
    """`kills`: the one that opens the file dies in the call, and its shell goes on."""
    script = f"for i in $(seq {TIMES}); do cat {place['key']}; done; echo over"
    assert said(daemon, script) == "over\n"
    until(lambda: len(place.frames(Kill)) == TIMES, "kills")
    assert {one.outcome for one in place.frames(Kill)} == {"killed"}
    assert level(place, "test.key") == {("kills", "killed")}


def test_a_program_that_must_not_run_runs_no_instruction(daemon: Daemon, place: Place) -> None:
    """`kills`: by its path, and by an argument far behind what a record holds."""
    copy = place["bin/copy"]
    copy.write_bytes(Path("/bin/touch").read_bytes())
    copy.chmod(0o755)
    add(
        place,
        {"id": "test.path", "on": "exec", "match": {"path": str(copy)}},
        {"id": "test.args", "on": "exec", "match": {"args|has": "never-this"}, "action": "deny"}
        | {"hit": {"args": ["x", "never-this"]}},
    )
    daemon.reload()
    script = f"cd {place.directory}; for i in $(seq {TIMES}); do {copy} one; done; "
    script += "/bin/touch two $(seq 5000) never-this; echo over"
    assert said(daemon, script) == "over\n"
    assert not place["one"].exists()
    assert not place["two"].exists()
    assert level(place, "test.path") == {("kills", "killed")}
    assert level(place, "test.args") == {("kills", "killed")}


def test_a_connection_is_refused_before_it_is_made(daemon: Daemon, place: Place) -> None:
    """`prevents`: EPERM, the process lives on, and the server has seen nothing."""
    with server() as (listener, port), server() as (other, free):
        match = {"addr": SERVER, "port": port}
        add(
            place,
            {"id": "test.net", "on": "connect", "match": {**match, "proto": "tcp"}}
            | {"action": "deny", "without_hook": "refuse"},
        )
        daemon.reload()
        script = "; ".join([connecting(port)] * 3 + [connecting(free)])
        assert said(daemon, script).split() == ["1", "1", "1", "done"]
        assert connections(listener) == 0
        assert connections(other) == 1
    assert level(place, "test.net") == {("prevents", "denied")}
    assert place.frames(Kill) == []


def test_datagrams_are_refused_too(daemon: Daemon, place: Place) -> None:
    """Sent without a connect."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((SERVER, 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        match = {"addr": SERVER, "port": port, "proto": "udp"}
        add(place, {"id": "test.udp", "on": "connect", "match": match, "action": "deny"})
        daemon.reload()
        assert said(daemon, connecting(port, "SOCK_DGRAM")) == "1\n"
        with pytest.raises(BlockingIOError):
            listener.recv(10)
    assert level(place, "test.udp") == {("prevents", "denied")}


def test_a_kill_rule_on_a_connection_kills_and_prevents(daemon: Daemon, place: Place) -> None:
    """Nothing is sent, and the process does not learn why."""
    with server() as (listener, port):
        match = {"addr": SERVER, "port": port}
        add(place, {"id": "test.net", "on": "connect", "match": match, "action": "kill"})
        daemon.reload()
        assert said(daemon, f"{connecting(port)}; echo $?") == "137\n"
        assert connections(listener) == 0
    assert level(place, "test.net") == {("prevents", "killed")}


def test_what_changes_a_file_is_killed_after(daemon: Daemon, place: Place) -> None:
    """`kills-after`: the file may be there, what was to be written is not in it."""
    target = place["target"]
    add(place, {"id": "test.new", "on": "change", "match": {"path": str(target)}})
    daemon.reload()
    script = f"for i in $(seq {TIMES}); do sh -c 'echo x > {target}'; done; echo over"
    assert said(daemon, script) == "over\n"
    assert not target.exists() or target.read_text() == ""
    assert level(place, "test.new") == {("kills-after", "killed")}


def test_what_only_the_engine_knows_is_the_engines(daemon: Daemon, place: Place) -> None:
    """`kills-after`, milliseconds later, as ever."""
    add(
        place,
        {"id": "test.re", "on": "read", "match": {"path|re": f"^{place['other']}$"}}
        | {"hit": {"path": str(place["other"])}},
    )
    daemon.reload()
    assert known(daemon, reads(place, "other")).wait(PATIENCE) == -signal.SIGKILL
    assert level(place, "test.re") == {("kills-after", "killed")}


def test_who_runs_already_is_known_to_a_new_policy(daemon: Daemon, place: Place) -> None:
    """What rules ask of a process's program is worked out for those that did not exec since."""
    sh = str(Path("/bin/sh").resolve())
    script = "echo started; read line; exec 3< {}; echo lives; read line; exec 3< {}; echo lives"
    agent = place.agent(script.format(place["other"], place["key"]))
    assert agent.stdout is not None
    assert agent.stdin is not None
    assert agent.stdout.readline() == "started\n"
    add(
        place,
        {"id": "test.other", "on": "read", "match": {"path": str(place["other"])}}
        | {"unless": {"shells": {"process.exe": sh}}},
        {"id": "test.shell", "on": "read"}
        | {"match": {"path": str(place["key"]), "process.exe": sh}},
    )
    place.rules.clear()
    place.rules["nothing"] = "kill"
    place.write()
    daemon.reload()
    agent.stdin.write("\n")
    agent.stdin.flush()
    assert agent.stdout.readline() == "lives\n"
    agent.stdin.write("\n")
    agent.stdin.flush()
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert level(place, "test.shell") == {("kills", "killed")}
    # Another program is no shell.
    assert said(daemon, f"cat {place['other']}; cat {place['key']}") == "the key\n"


def test_files_that_change_are_loaded(daemon: Daemon, place: Place) -> None:
    """Nobody has to ask; every record says by which policy it was judged."""
    place.rules["other"] = "kill"
    place.write()
    until(lambda: daemon.status["generation"] == 2, "a reload")
    assert known(daemon, reads(place, "other")).wait(PATIENCE) == -signal.SIGKILL
    (verdict,) = place.awaited(Verdict)
    assert (verdict.rule, verdict.generation, verdict.level) == ("test.other", 2, "kills")


def test_rules_that_are_gone_without_a_word_are_named(daemon: Daemon, place: Place) -> None:
    """A half-written file is whole YAML with fewer rules; who asked for a reload knows."""

    def named() -> list[str]:
        return [one.text for one in place.frames(Notice) if "in none of them any more" in one.text]

    def reloaded(generation: int) -> bool:
        return [one.generation for one in place.frames(Reload)][-1:] == [generation]

    place.rules["other"] = "kill"
    place.write()
    until(lambda: reloaded(2), "one rule more")
    assert named() == []
    del place.rules["other"]
    place.write()
    until(named, "the notice")
    (text,) = named()
    assert "test.other" in text
    assert "test.key" not in text
    place.rules["other"] = "kill"
    place.write()
    daemon.reload()
    del place.rules["other"]
    place.write()
    daemon.reload()
    until(lambda: reloaded(5), "both reloads")
    assert len(named()) == 1


def test_a_change_for_the_worse_is_said_once(daemon: Daemon, place: Place) -> None:
    """The old rules stay, and the daemon does not try again and again."""
    place.rules["other"] = "slap"
    place.write()
    until(lambda: daemon.status["reload_error"], "an error")
    agent = place.agent("sleep 3.5")
    agent.wait(PATIENCE)
    (told,) = place.awaited(Reload)
    assert (told.ok, told.generation) == (False, 1)
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
    place.rules["other"] = "kill"
    place.write()
    until(lambda: daemon.status["generation"] == 2, "a reload")
    assert daemon.status["reload_error"] == ""


def test_status_says_what_the_kernel_has(daemon: Daemon) -> None:
    """How much of the rules it decides."""
    policy = daemon.status["policy"]
    assert policy["kernel"] is True
    assert (policy["engine"], policy["bytes"] > 0, policy["states"] > 0) == (0, True, True)
    assert daemon.status["rules"]["levels"] == {"kills": 1}


def test_a_pause_ends_by_itself(daemon: Daemon, place: Place) -> None:
    """The kernel has the rule back, and not only the engine."""
    daemon.ask("rules.pause", rule="test.key", seconds=3)
    assert said(daemon, f"cat {place['key']}") == "the key\n"
    until(lambda: daemon.status["generation"] == 3, "the rule is back")
    assert said(daemon, f"cat {place['key']}; echo over") == "over\n"
    assert level(place, "test.key") == {("kills", "killed")}
