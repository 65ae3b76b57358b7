"""What the kernel does goes on without a daemon, and the next goes on with it: without a gap."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Open
from agentwatch.kernel.pins import sets
from agentwatch.sinks.frames import Gap, Notice, Session, SessionEnd, Verdict
from tests.daemon.denied import accounted, kill, lay_down, load
from tests.daemon.running import PATIENCE, Place, cue, grows, reads, size, until
from tests.daemon.test_lsm_feedback import lose
from tests.kernel.held import held

pytestmark = pytest.mark.root


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Where nobody is let."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening


def remembered(place: Place) -> Path:
    """What a daemon leaves beside its socket, about a second after a session has begun."""
    return place.socket.with_name("control.sock.sessions")


def names(place: Place) -> list[str]:
    return [one.name for one in sets(place.pins)]


def unattended(place: Place) -> list[str]:
    """What was said of times when nobody listened."""
    return [one.text for one in place.frames(Notice) if one.subject == "unattended"]


def console(place: Place, *command: str) -> subprocess.CompletedProcess[str]:
    """agentwatch as root has it."""
    env = {
        **os.environ,
        "AGENTWATCH_SOCKET": str(place.socket),
        "AGENTWATCH_PINS": str(place.pins),
    }
    return subprocess.run(
        [place.agentwatch, *command], env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def has_read(agent: subprocess.Popen[str]) -> bool:
    """Whether it has the file open that it was to read, and lives."""
    held = Path(f"/proc/{agent.pid}/fd/3")
    until(lambda: held.exists() or agent.poll() is not None, "the file that it opens")
    return agent.poll() is None


@pytest.fixture
def port(place: Place, listener: socket.socket) -> int:
    """Of the listener; rules deny it, and what else the load tries."""
    port: int = listener.getsockname()[1]
    lay_down(place, port)
    return port


def test_a_killed_daemon_leaves_no_gap(place: Place, port: int) -> None:
    """Nothing is let through while it is dead, nor while the next takes over; all is accounted."""
    first = place.start()
    assert first.status["pins"]["kept"]
    working = load(place, port, first)
    kill(first)
    working.rounds()
    second = place.start()
    working.rounds()
    (one,) = sets(place.pins)
    assert one.instances == [2]
    assert second.session(working.process.pid)["agents"] == ["stub"]
    tries = working.ended()
    assert second.stop() == 0
    accounted(place, port, tries)
    (told,) = unattended(place)
    assert "the kernel went on by the policy it had" in told
    assert " 0 were lost" in told


def test_what_the_kernel_did_meanwhile_is_told_in_the_rules_words(place: Place, port: int) -> None:
    """Verdicts of the time when nobody listened name the rule that the dead daemon had compiled."""
    working = load(place, port, place.start())
    kill(place.latest)
    working.rounds()
    daemon = place.start()
    tries = working.ended()
    assert daemon.stop() == 0
    verdicts = [one.rule for one in place.frames(Verdict)]
    counted = {rule: verdicts.count(f"test.{rule}") for rule in ("key", "canary", "port")}
    assert set(verdicts) == {"test.key", "test.canary", "test.port"}
    assert counted["key"] >= tries["open"]
    assert counted["canary"] >= tries["exec"]


def test_a_restart_opens_no_gap(place: Place, port: int) -> None:
    """With on_exit: keep, three times in a row; each is told as a time without anybody."""
    place.write(on_exit="keep")
    lay_down(place, port)
    daemon = place.start()
    working = load(place, port, daemon)
    for _ in range(3):
        assert daemon.stop() == 0
        assert "the kernel goes on by the policy it has" in daemon.err
        working.rounds(20)
        daemon = place.start()
        working.rounds(20)
    (one,) = sets(place.pins)
    assert one.instances == [4]
    tries = working.ended()
    assert daemon.stop() == 0
    accounted(place, port, tries)
    assert len(unattended(place)) == 3
    shutil.rmtree(place.pins)


def test_deaths_in_the_midst_of_taking_over_open_no_gap(place: Place, port: int) -> None:
    """A dozen daemons, each killed a little later after it was begun; the last goes on with it."""
    working = load(place, port, place.start())
    kill(place.latest)
    for step in range(12):
        begun = place.start(check=False)
        try:
            begun.process.wait(0.4 + step * 0.15)
        except subprocess.TimeoutExpired:
            kill(begun)
    daemon = place.start()
    working.rounds()
    (one,) = sets(place.pins)
    assert len(one.instances) == 1
    tries = working.ended()
    assert daemon.stop() == 0
    accounted(place, port, tries)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Another build of the same ABI: its programs are not the same."""
    directory = tmp_path_factory.mktemp("newer")
    directory.chmod(0o755)
    shutil.copytree(repository / "agentwatch", directory / "agentwatch", symlinks=True)
    shutil.copytree(repository / "bpf", directory / "bpf")
    source = directory / "bpf" / "record.bpf.c"
    text = source.read_text()
    assert "#define WAKE_NS (2 *" in text
    source.write_text(text.replace("#define WAKE_NS (2 *", "#define WAKE_NS (3 *"))
    (directory / "Makefile").write_text((repository / "Makefile").read_text())
    built = directory / "agentwatch" / "data" / "agentwatch.bpf.o"
    before = built.read_bytes()
    os.utime(source)
    subprocess.run(
        ["make", "-s", "-o", "packages", "agentwatch/data/agentwatch.bpf.o"],
        cwd=directory,
        check=True,
        timeout=PATIENCE,
    )
    assert built.read_bytes() != before
    return directory


def test_an_upgrade_and_a_downgrade_open_no_gap(place: Place, port: int, newer: Path) -> None:
    """Programs of another build take over the maps, and give them back."""
    daemon = place.start()
    working = load(place, port, daemon)
    for env in ({"PYTHONPATH": str(newer)}, {}):
        kill(daemon)
        working.rounds(20)
        daemon = place.start(env=env)
        working.rounds(20)
    (one,) = sets(place.pins)
    assert (one.name, one.instances) == (f"v{abi.ABI}", [3])
    tries = working.ended()
    assert daemon.stop() == 0
    accounted(place, port, tries)


def test_pins_of_another_abi_stay_in_force_until_they_are_replaced(place: Place, port: int) -> None:
    """Nothing is let through; the session goes on in new maps; the old ones are gone, and told."""
    working = load(place, port, place.start())
    pid, left = f"[{working.process.pid}, ", remembered(place)
    until(lambda: left.exists() and pid in left.read_text(), "it is remembered")
    kill(place.latest)
    (place.pins / f"v{abi.ABI}").rename(place.pins / f"v{abi.ABI + 3}")
    daemon = place.start()
    assert names(place) == [f"v{abi.ABI}"]
    assert daemon.session(working.process.pid)["agents"] == ["stub"]
    working.rounds()
    tries = working.ended()
    assert daemon.stop() == 0
    accounted(place, port, tries)
    told = [one.text for one in place.frames(Notice) if one.subject == "pins"]
    assert told == [f"v{abi.ABI + 3}: taken over, and removed"]


def test_sessions_of_another_abi_need_no_file_to_be_found(place: Place, port: int) -> None:
    """A child that only the old tags know is the session's in the new maps, too."""
    daemon = place.start()
    agent = place.agent("(setsid sleep 1000 > /dev/null 2>&1 &) ; sleep 1", stdin=None)
    agent.wait(PATIENCE)
    until(lambda: len(daemon.sessions) == 1, "a session without its first process")
    kill(daemon)
    remembered(place).unlink(missing_ok=True)
    (place.pins / f"v{abi.ABI}").rename(place.pins / "v9")
    daemon = place.start()
    assert [one["pid"] for one in daemon.sessions] == [agent.pid]
    assert names(place) == [f"v{abi.ABI}"]


@pytest.mark.parametrize("broken", ["policies", "control", "kept", "mirror", "policy_0"])
def test_pins_that_are_not_whole_are_replaced(place: Place, port: int, broken: str) -> None:
    """With a notice that says what was missing; agents that run are watched, and stopped."""
    working = load(place, port, place.start())
    pid = str(working.process.pid)
    until(lambda: remembered(place).exists() and pid in remembered(place).read_text(), "a file")
    kill(place.latest)
    found = place.pins / f"v{abi.ABI}" / "maps" / broken
    if broken == "policy_0":
        for slot in range(abi.POLICY_SLOTS):
            found.with_name(f"policy_{slot}").unlink(missing_ok=True)
    else:
        found.unlink()
    daemon = place.start()
    assert names(place) == [f"v{abi.ABI}_1"]
    working.rounds()
    working.ended()
    assert daemon.stop() == 0
    (wrong, replaced) = [one.text for one in place.frames(Notice) if one.subject == "pins"]
    assert wrong.startswith(f"the pins of v{abi.ABI} are not gone on with: ")
    assert wrong.endswith("missing")
    assert replaced == f"v{abi.ABI}: taken over, and removed"


def test_pins_that_nobody_can_read_stay_in_force(place: Place, port: int) -> None:
    """Where nothing tells whose processes are tagged, a daemon refuses to start, and says so."""
    working = load(place, port, place.start())
    kill(place.latest)
    remembered(place).unlink(missing_ok=True)
    (place.pins / f"v{abi.ABI}" / "maps" / "mirror").unlink()
    refused = place.start(check=False)
    assert refused.wait() == 1
    assert "of another version, and whose it is cannot be read" in refused.err
    assert "agentwatch release" in refused.err
    working.rounds(20)
    (one,) = sets(place.pins)
    assert one.instances == [1]
    working.ended()


def test_a_map_of_another_kind_is_not_taken_for_ours(place: Place, port: int) -> None:
    """Nor one of another size."""
    working = load(place, port, place.start())
    kill(place.latest)
    maps = place.pins / f"v{abi.ABI}" / "maps"
    (maps / "sessions").unlink()
    (maps / "doomed").rename(maps / "sessions")
    daemon = place.start()
    working.rounds()
    working.ended()
    assert daemon.stop() == 0
    wrong = next(one.text for one in place.frames(Notice) if one.subject == "pins")
    assert "missing" in wrong or "of another size or kind" in wrong


def test_a_clean_stop_releases(place: Place) -> None:
    """By default nothing is in force afterwards: the agent reads what it may not."""
    daemon = place.start()
    (one,) = sets(place.pins)
    assert one.programs(1)
    agent = place.agent(f"read line; {reads(place)}")
    daemon.session(agent.pid)
    assert daemon.stop() == 0
    assert names(place) == []
    cue(agent)
    assert has_read(agent)


def test_the_console_ends_what_the_kernel_goes_on_with(place: Place) -> None:
    """`status` says it and exits with 3; `release` ends it; a second time there is nothing."""
    daemon = place.start()
    agent = place.agent("read line; exec sleep 1000")
    daemon.session(agent.pid)
    refused = console(place, "release")
    assert refused.returncode == 1
    assert f"a daemon runs already (pid {daemon.pid})" in refused.stderr
    kill(daemon)
    status = console(place, "status")
    assert status.returncode == 3
    assert "the kernel goes on by policy 1, and nobody listens: " in status.stdout
    assert "1 session in " in status.stdout
    assert console(place, "release").stdout.startswith(f"released v{abi.ABI}: ")
    assert names(place) == []
    assert console(place, "release").stdout == f"nothing is kept in {place.pins}\n"
    assert console(place, "status").stdout == ""
    assert has_read(place.agent(reads(place)))


def test_a_second_daemon_touches_no_pins(place: Place) -> None:
    """Not even one with a socket of its own."""
    first = place.start()
    (one,) = sets(place.pins)
    before = {i: one.programs(i) for i in one.instances}
    place.write(socket=str(place["other.sock"]), journal={"dir": str(place["other-journal"])})
    second = place.start(check=False)
    assert second.wait() == 1
    assert f"a daemon runs already (pid {first.pid})" in second.err
    assert {i: one.programs(i) for i in one.instances} == before
    assert not place["other-journal"].exists()
    assert first.process.poll() is None


def test_rules_that_are_refused_leave_in_force_what_was(place: Place, port: int) -> None:
    """A daemon that cannot start has changed nothing, be its rules wrong or their own tests."""
    working = load(place, port, place.start())
    kill(place.latest)
    good = place["rules.yaml"].read_text()
    for bad in (good.replace("action: deny", "action: slap"), good.replace('key"}}]', 'k"}}]')):
        place["rules.yaml"].write_text(bad)
        refused = place.start(check=False)
        assert refused.wait() == 1
        (one,) = sets(place.pins)
        assert one.instances == [1]
        working.rounds(10)
    place["rules.yaml"].write_text(good)
    daemon = place.start()
    tries = working.ended()
    assert daemon.stop() == 0
    accounted(place, port, tries)


def test_without_bpffs_it_goes_on_and_says_so(place: Place) -> None:
    """A problem in `status`, a notice in the journal; its rules are in force while it lives."""
    daemon = place.start(env={"AGENTWATCH_PINS": str(place["pins"])})
    (problem,) = daemon.status["problems"]
    assert problem.startswith("nothing is in force without the daemon: no bpffs is mounted at ")
    assert not daemon.status["pins"]["kept"]
    assert place.agent(reads(place)).wait(PATIENCE) == -9
    assert [one.text for one in place.frames(Notice) if one.subject == "pins"] == [
        problem.replace("without the daemon", "without this daemon")
    ]


def hooks_told(place: Place) -> list[str]:
    """What was said of hooks."""
    return [one.text for one in place.frames(Notice) if one.subject == "hooks"]


def test_what_is_unpinned_is_pinned_again(place: Place) -> None:
    """One program's pin, and then all there is; a notice names what was gone."""
    daemon = place.start()
    (one,) = sets(place.pins)
    before = one.programs(1)
    one.link(1, "sys_exit").unlink()
    until(lambda: one.programs(1) == before, "the pin")
    maps = one.maps
    shutil.rmtree(one.path, ignore_errors=True)  # the daemon may be at it meanwhile
    until(lambda: one.programs(1) == before and one.maps == maps, "the pins")
    until(lambda: len(hooks_told(place)) >= 2, "notices")
    first, *others = hooks_told(place)
    assert first == "unpinned by somebody, and pinned again: sys_exit"
    assert all(name in " ".join(others) for name in (*before, *maps))
    agent = place.agent(f"read line; {reads(place)}")
    daemon.session(agent.pid)
    kill(daemon)
    cue(agent)
    assert agent.wait(PATIENCE) == -9
    assert place.start().status["pins"]["kept"]
    assert names(place) == [f"v{abi.ABI}"]


def test_a_link_that_the_daemon_loses_is_taken_from_its_pin(place: Place) -> None:
    """Nothing was detached: nothing is said, who reads is killed, and the hook is there again."""
    wrapper = Path(__file__).with_name("losing.py")
    daemon = place.start(sys.executable, str(wrapper), env={"LOSES": str(place["loses"])})
    lose(place, daemon, held(daemon.pid, "sys_exit").link)
    assert place.agent(reads(place)).wait(PATIENCE) == -9
    until(lambda: daemon.status["hooks"]["sys_exit"], "the hook")
    assert held(daemon.pid, "sys_exit")
    assert hooks_told(place) == []
    assert daemon.stop() == 0
    assert names(place) == []


def test_a_frozen_session_stays_frozen(place: Place) -> None:
    """Killed and started anew: nothing of it has gone on in between, and a person lets it go."""
    daemon = place.start()
    script = f"while :; do printf . >> {place['count']}; sleep 0.01; done"
    agent = place.agent(script)
    daemon.session(agent.pid)
    assert grows(place["count"])
    daemon.ask("agents.freeze", which=str(agent.pid))
    kill(daemon)
    daemon = place.start()
    until(lambda: daemon.session(agent.pid)["state"] == "frozen", "the session is frozen")
    before = size(place["count"])
    daemon.ask("agents.thaw", which=str(agent.pid))
    until(lambda: size(place["count"]) > before, "it goes on")


FLOOD = """
import os
for _ in range({count}):
    os.close(os.open("{file}", os.O_RDONLY))
"""


def test_what_found_no_room_meanwhile_is_counted_once(place: Place) -> None:
    """A flood without a daemon: each open is in the journal or in a gap; later daemons add none."""
    count, flooded = 250_000, place["other"]
    daemon = place.start()
    place["flood.py"].write_text(FLOOD.format(count=count, file=flooded))
    agent = place.agent(f"read line; exec {sys.executable} {place['flood.py']}")
    daemon.session(agent.pid)
    kill(daemon)
    cue(agent)
    assert agent.wait(PATIENCE) == 0
    daemon = place.start()
    (gap,) = [one for one in place.awaited(Gap) if one.stage == "ring"]
    until(lambda: place.of_session(SessionEnd, agent.pid), "the end of the session")
    for _ in range(2):
        kill(daemon)
        daemon = place.start()
    assert daemon.stop() == 0
    told = [one.count for one in place.frames(Gap)]
    assert told == [gap.count]
    opens = sum(1 for one in place.events(Open) if one.path == str(flooded))
    assert 0 < opens < count
    # What Python itself opens, too, may be among what was lost.
    assert count <= opens + gap.count <= count + 2000
    assert f" {gap.count} were lost" in unattended(place)[0]


def test_losses_are_not_told_where_there_are_none(place: Place, port: int) -> None:
    """Two deaths under load: no gap."""
    working = load(place, port, place.start())
    for _ in range(2):
        kill(place.latest)
        place.start()
        working.rounds(20)
    tries = working.ended()
    assert place.latest.stop() == 0
    accounted(place, port, tries)
    assert place.frames(Gap) == []


def test_an_agent_that_came_and_went_meanwhile_is_in_the_journal(place: Place) -> None:
    """With what it has done: it was tagged by its name, and recorded."""
    place.start()
    kill(place.latest)
    agent = place.agent(f"cat {place['other']} > /dev/null; exit 0")
    assert agent.wait(PATIENCE) == 0
    daemon = place.start()
    (session,) = place.of_session(Session, agent.pid)
    assert session.agent == "stub"
    assert place.of_session(SessionEnd, agent.pid)
    assert daemon.stop() == 0
    events = place.events_of(agent.pid)
    assert [type(e).__name__ for e in events if e.process.pid == agent.pid][-1] == "Exit"
    assert str(place["other"]) in [e.path for e in events if isinstance(e, Open)]


def test_an_agent_that_began_meanwhile_is_stopped_from_then_on(place: Place) -> None:
    """Its session is confirmed by the next daemon, and what it tries then is denied."""
    place.start()
    kill(place.latest)
    agent = place.agent(f"read line; {reads(place)}")
    until(lambda: (place.cgroup / "cgroup.procs").read_text(), "the agent")
    daemon = place.start()
    daemon.session(agent.pid)
    cue(agent)
    assert agent.wait(PATIENCE) == -9


def test_a_policy_that_was_reloaded_is_the_one_that_is_kept(place: Place) -> None:
    """Several reloads on, the daemon dies: what the last of them denies is denied, no more."""
    daemon = place.start()
    agent = place.agent(f"read line; exec 4< {place['key']}; read line; {reads(place, 'other')}")
    daemon.session(agent.pid)
    place.rules = {"other": "kill"}
    for _ in range(5):
        place.write()
        generation = daemon.reload()["generation"]
    kill(daemon)
    cue(agent)
    until(lambda: Path(f"/proc/{agent.pid}/fd/4").exists(), "what is not denied any more")
    cue(agent)
    assert agent.wait(PATIENCE) == -9
    daemon = place.start()
    assert daemon.status["generation"] == generation + 1
    (killed,) = place.awaited(Verdict)
    assert (killed.rule, killed.generation) == ("test.other", generation)
