"""`agentwatch run` with real probes: CMD is what it would be without, but for what rules stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentwatch.events import Exec, Open
from agentwatch.sinks.frames import (
    AgentAdded,
    Gap,
    Kill,
    MountsChanged,
    Notice,
    Session,
    Start,
    Stop,
    Verdict,
)
from agentwatch.sinks.verify import verify
from tests.kernel.launching import (
    Launcher,
    ended_after,
    eventually,
    python,
    unwatched,
)
from tests.proc import below, executable, is_there, state

pytestmark = pytest.mark.root


@pytest.fixture
def launch(agentwatch: Path, place: Path) -> Launcher:
    """Runs a command under small rules of the test's own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
    return Launcher(agentwatch, place, environment=environment)


# CMD is what it would be without -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_it_exits_with_the_code_of_its_command(launch: Launcher, script: str, code: int) -> None:
    """A command that a signal ended gives 128 and its number, as in a shell."""
    outcome = launch("sh", "-c", script)
    assert outcome.code == code
    assert outcome.frames(Stop)[-1].status == code


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("no-such-command-anywhere", 127, "command not found"),
        ("{place}/nothing", 127, "command not found"),
        ("{place}/key", 126, "may not be executed"),
        ("{place}/bin", 126, "is a directory"),
        ("{place}/script", 126, "its interpreter was not found"),
        ("{place}/text", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_run_has_a_shells_exit_code(
    launch: Launcher, name: str, code: int, says: str
) -> None:
    """127 for what is not there, 126 for what is no program."""
    for file, text in (("script", "#!/no/such/interpreter\n"), ("text", "just words\n")):
        (launch.place / file).write_text(text)
        (launch.place / file).chmod(0o755)
    outcome = launch(name.format(place=launch.place))
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_stdin_and_stdout_are_the_commands_alone(launch: Launcher) -> None:
    """It reads what it is given; what agentwatch says goes to stderr."""
    outcome = launch("cat", given="one\ntwo\n")
    assert outcome.out == "one\ntwo\n"
    assert "run       cat" in outcome.err


STATE = """
import json, os, signal
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
signals = [status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")]
fds = sorted(int(n) for n in os.listdir("/proc/self/fd"))
limits = open("/proc/self/limits").read()
print(json.dumps([os.getcwd(), sorted(os.environ.items()), signals, fds, limits, os.umask(0),
    os.getpriority(os.PRIO_PROCESS, 0), status["NoNewPrivs"], status["CapEff"], status["Groups"]]))
"""


@pytest.mark.parametrize("ignored", [(), (signal.SIGINT, signal.SIGQUIT)], ids=["plain", "nohup"])
def test_everything_a_process_inherits_is_untouched(
    launch: Launcher, ignored: Sequence[signal.Signals]
) -> None:
    """Directory, environment, descriptors, signals, limits: as if it had been started directly."""

    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    environment = {"PATH": "/usr/bin:/bin", "ODD": "a\nb=c", "HOME": "/nowhere"}
    here = {"env": environment, "cwd": launch.place, "preexec_fn": ignore}
    outcome = launch(*python(STATE), **here)
    assert json.loads(outcome.out) == json.loads(unwatched(*python(STATE), **here))


ON_TERMINAL = """
import os, termios
assert all(map(os.isatty, range(3)))
assert os.tcgetpgrp(0) == os.getpgrp()
print("TERMINAL", os.ttyname(0) == os.ttyname(2), termios.tcgetattr(0)[:4], input())
"""


@pytest.mark.parametrize("pty", ["", "use_pty", "!use_pty"], ids=["root", "sudo-pty", "sudo"])
def test_a_command_on_a_terminal_has_it_for_itself(launch: Launcher, pty: str) -> None:
    """It is in the foreground, reads what is typed, and the modes are those it would find."""
    if pty:
        as_nobody(launch, pty=pty)

    def keys(screen: str) -> bytes:
        done, typed = "TERMINAL" in screen, "typed words" in screen
        return b"" if done or typed else b"typed words\r"

    def shown(line: Sequence[str]) -> str:
        code, screen = launch.typed(line, keys)
        assert code == 0, screen
        return next(row.strip() for row in screen.splitlines() if "TERMINAL" in row)

    watched = shown(launch.line(*python(ON_TERMINAL)))
    assert watched == shown(python(ON_TERMINAL))
    assert watched.endswith("typed words")


# Whom it runs as ----------------------------------------------------------------------------------

WHO = """
import json, os
print(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups()),
    [os.environ[n] for n in ("HOME", "USER", "LOGNAME", "SHELL")]]))
"""
PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]


def with_groups(launch: Launcher) -> list[str]:
    """A prefix: nobody is in a further group, in this mount namespace only."""
    groups = launch.place / "group"
    groups.write_text(Path("/etc/group").read_text() + "agentwatch-test:x:54321:nobody\n")
    return [*PRIVATE, f'mount --bind {groups} /etc/group; exec "$@"', "sh"]


def test_under_sudo_it_runs_as_whoever_typed_it(launch: Launcher) -> None:
    """All ids, the groups and the home are the person's; nothing of root is left."""
    launch.prefix = with_groups(launch)
    launch.environment = {**launch.environment, "SUDO_UID": "65534", "SUDO_GID": "65534"}
    outcome = launch(*python(WHO))
    ids = [65534] * 3
    home, shell = "/nonexistent", "/usr/sbin/nologin"
    assert json.loads(outcome.out) == [ids, ids, [54321, 65534], [home, "nobody", "nobody", shell]]
    assert "runs as root" not in outcome.err
    assert outcome.frames(Start)[0].user == "nobody"


def test_the_person_cannot_change_the_journal(launch: Launcher) -> None:
    """Neither write to a segment, nor remove or add one, nor move the chain away."""
    launch.environment = {**launch.environment, "SUDO_UID": "65534"}
    outcome = launch(
        "sh",
        "-c",
        f"cd {launch.journal} 2>/dev/null && cd run-*; echo x >> 00000001.journal;"
        f"rm -rf {launch.journal}/*; touch {launch.journal}/x;"
        f"mv {launch.journal} {launch.place}/y",
    )
    assert outcome.code != 0
    assert all(report.intact and report.closed for report in verify(launch.journal))
    assert len(os.listdir(launch.journal)) == 1


def test_plain_root_is_warned(launch: Launcher) -> None:
    """Nobody else asked: then CMD is root's, and that is said."""
    outcome = launch("id", "-u")
    assert outcome.out == "0\n"
    assert "CMD runs as root: no SUDO_UID says whose it is" in outcome.err


@pytest.mark.parametrize("uid", ["4242424", "x", "-1", "99999999999999999999"])
def test_a_sudo_uid_that_is_nobodys_is_refused(launch: Launcher, uid: str) -> None:
    """It never falls back to root."""
    launch.environment = {**launch.environment, "SUDO_UID": uid}
    outcome = launch("id", "-u")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"SUDO_UID is {uid}" in outcome.err


# Without root -------------------------------------------------------------------------------------

SUDOERS = """\
Defaults env_reset, {pty}, !lecture, !authenticate
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
root ALL=(ALL:ALL) ALL
{allowed}
"""


def as_nobody(launch: Launcher, allowed: bool = True, pty: str = "use_pty") -> None:
    """The launcher runs as nobody, who may (or may not) use sudo in this mount namespace only."""
    repository = launch.agentwatch.parents[2]
    sudoers = launch.place / "sudoers"
    rule = "nobody ALL=(root) NOPASSWD: ALL" if allowed else ""
    sudoers.write_text(SUDOERS.format(pty=pty, allowed=rule))
    sudoers.chmod(0o440)
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    reach = reachable(repository, launch.place)
    script = f'mount --bind {sudoers} /etc/sudoers; {reach} exec {user} "$@"'
    launch.prefix = [*PRIVATE, script, "sh"]


def reachable(repository: Path, place: Path) -> str:
    """Shell: the checkout at its own path, where a closed directory above it bars everybody."""
    closed = [d for d in repository.parents if not d.stat().st_mode & 0o001]
    if not closed:
        return ""
    stash = place / "checkout"
    stash.mkdir()
    return (
        f"mount --bind {repository} {stash}; mount -t tmpfs -o mode=755 tmpfs {closed[-1]};"
        f"mkdir -p {repository}; mount --bind {stash} {repository};"
    )


def test_without_root_only_the_watching_half_goes_through_sudo(launch: Launcher) -> None:
    """CMD keeps ids, environment, directory and descriptors; the other half is root's."""
    as_nobody(launch)
    launch.environment = {**launch.environment, "ODD": "kept", "HOME": "/nowhere"}
    code = WHO.replace('"USER", "LOGNAME", "SHELL"', '"ODD"') + "print(os.getcwd(), os.getppid())"
    outcome = launch(*python(code + "\nraise SystemExit(7)"), cwd=launch.place)
    ids = [65534] * 3
    told, where = outcome.out.splitlines()
    assert json.loads(told) == [ids, ids, [], ["/nowhere", "kept"]]
    assert where.split()[0] == str(launch.place)
    assert outcome.code == 7
    assert outcome.frames(Stop)[-1].status == 7
    assert outcome.frames(Session)[0].user == "nobody"
    assert (launch.journal.stat().st_uid, launch.journal.stat().st_mode & 0o022) == (0, 0)


def test_kills_work_through_sudo(launch: Launcher) -> None:
    """A child that reads the key dies of it; CMD goes on."""
    as_nobody(launch)
    outcome = launch("sh", "-c", f"sh -c '{launch.hold}'; echo $?")
    assert outcome.out == "137\n"
    assert [kill.outcome for kill in outcome.frames(Kill)] == ["killed"]


def test_nothing_in_the_working_directory_is_run_as_root(launch: Launcher) -> None:
    """An agent that leaves a click.py in its project does not become root by the next run."""
    as_nobody(launch)
    project = launch.place / "project"
    project.mkdir()
    trap = f"import os\nopen('{launch.place}/trapped-%d' % os.geteuid(), 'w')\n"
    for module in ("click", "agentwatch", "json", "sitecustomize"):
        (project / f"{module}.py").write_text(trap)
    launch.environment = {**launch.environment, "PYTHONPATH": ""}
    assert launch("true", cwd=project).code == 0
    assert not list(launch.place.glob("trapped-0"))


def test_sudo_that_refuses_means_not_permitted(launch: Launcher) -> None:
    """Exit 4, a remedy, and CMD was never run."""
    as_nobody(launch, allowed=False)
    launch.environment = {**launch.environment, "SUDO_ASKPASS": "/bin/false"}
    ran = launch.place / "ran"
    outcome = launch("touch", str(ran), start_new_session=True)
    assert outcome.code == 4
    assert "sudo did not give it\n  try: " in outcome.err
    assert not ran.exists()


def test_no_root_and_no_sudo_means_not_permitted(launch: Launcher) -> None:
    """Exit 4 and a remedy."""
    as_nobody(launch)
    launch.prefix = [*launch.prefix, "env", f"PATH={launch.place}/bin"]
    outcome = launch("/bin/true")
    assert outcome.code == 4
    assert "sudo cannot be run" in outcome.err
    assert "  try: " in outcome.err


def test_a_watching_half_that_dies_takes_its_command_along(launch: Launcher) -> None:
    """kill -9 of it: CMD and what it started end at once, with a message."""
    as_nobody(launch)
    waiting = f": < {launch.place}/never"
    with ended_after(launch.start("sh", "-c", f"sh -c '{waiting}' & wait")) as process:
        assert eventually(lambda: found(process.pid, f"sh -c {waiting} "))
        victims = found(process.pid, f"sh -c {waiting} ", f"sh -c sh -c '{waiting}' & wait ")
        os.kill(watching_half(process.pid), signal.SIGKILL)
        outcome = launch.finish(process)
    assert outcome.code == 1
    assert "the watching half ended: CMD was ended too" in outcome.err
    assert len(victims) == 2
    assert eventually(lambda: not any(map(is_there, victims)))


def test_a_starting_half_that_dies_takes_its_command_along(launch: Launcher) -> None:
    """kill -9 of the half that is CMD's parent: the watching half ends the session."""
    as_nobody(launch)
    waiting = f": < {launch.place}/never"
    with ended_after(launch.start("sh", "-c", f"sh -c '{waiting}' & wait")) as process:
        assert eventually(lambda: found(process.pid, f"sh -c {waiting} "))
        victims = found(process.pid, f"sh -c {waiting} ", f"sh -c sh -c '{waiting}' & wait ")
        os.kill(process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=10)
    assert len(victims) == 2
    assert eventually(lambda: not any(map(is_there, victims)))
    assert "CMD was ended too" in err


def found(pid: int, *lines: str) -> list[int]:
    """Processes below one with exactly these command lines."""
    return [child for child, text in below(pid) if text in lines]


def watching_half(pid: int) -> int:
    """Of sudo, its monitor and the half that watches, all with the same arguments, the last."""
    halves = [child for child, text in below(pid) if " watch-for " in text]
    (half,) = (child for child in halves if executable(child).startswith("/usr/bin/python"))
    return half


# Signals ------------------------------------------------------------------------------------------

COUNTING = """
import os, signal, sys, time
got = []
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
for number in numbers:
    signal.signal(number, lambda number, frame: got.append(number))
print("ready", flush=True)
end = time.monotonic() + 10
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
print(*got)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("sudo", [False, True], ids=["root", "sudo"])
def test_signals_reach_the_command_once(
    launch: Launcher, number: signal.Signals, sudo: bool
) -> None:
    """What is sent to agentwatch is meant for CMD, which decides what to do about it."""
    if sudo:
        as_nobody(launch)
    with ended_after(launch.start(*python(COUNTING), start_new_session=True)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        outcome = launch.finish(process)
    assert (outcome.code, outcome.out) == (0, f"{int(number)}\n"), outcome.err


@pytest.mark.parametrize("pty", ["", "use_pty", "!use_pty"], ids=["root", "sudo-pty", "sudo"])
def test_an_interrupt_that_is_typed_reaches_the_command_once(launch: Launcher, pty: str) -> None:
    """The terminal sends it to CMD already: agents take a second one as an order to quit."""
    if pty:
        as_nobody(launch, pty=pty)

    sent = []

    def keys(screen: str) -> bytes:
        if "ready" not in screen or sent:
            return b""
        sent.append(1)
        return b"\x03"

    code, screen = launch.typed(launch.line(*python(COUNTING)), keys)
    assert code == 0, screen
    assert re.search(r"^(\^C)?2\r?$", screen, re.MULTILINE), screen
    assert "exit code 0" in screen


# Decisions ----------------------------------------------------------------------------------------


def test_a_kill_is_on_the_screen_in_the_journal_and_in_the_findings(launch: Launcher) -> None:
    """The victim is gone, CMD goes on, and every place tells the same."""
    outcome = launch(
        "sh", "-c", f"sh -c '{launch.hold}'; echo $?", options=[f"--jsonl={launch.jsonl}"]
    )
    assert outcome.out == "137\n"
    told = r"KILL +read .*/key\n.*test.key · kills, by the kernel · .*\n +It is the key"
    assert re.search(told, outcome.err)
    assert re.search(r"stopped +read .*/key\n +test.key \(kills, [\d.]+ ms\)", outcome.err)
    (verdict,), (kill,) = outcome.frames(Verdict), outcome.frames(Kill)
    assert (verdict.rule, verdict.response, verdict.outcome) == ("test.key", "kill", "killed")
    assert (kill.rule, kill.outcome, kill.process) == ("test.key", "killed", verdict.process)
    assert 0 < kill.latency < 1_000_000_000
    assert [f["unmapped"]["agentwatch"]["rule"] for f in launch.findings()] == ["test.key"]
    assert "test.key" in asked(launch, "--rule", "test.key")
    assert asked(launch, "--would-deny") == ""


def asked(launch: Launcher, *options: str) -> str:
    """What `agentwatch events` prints."""
    line = [launch.agentwatch, "events", f"--journal={launch.journal}", *options]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_an_alert_stops_nothing_and_is_told_everywhere(launch: Launcher) -> None:
    """The file is read, and everybody knows."""
    outcome = launch("cat", f"{launch.place}/watched", options=[f"--jsonl={launch.jsonl}"])
    assert (outcome.code, outcome.out) == (0, "the watched\n")
    assert re.search(r"ALERT +read .*/watched", outcome.err)
    assert re.search(r"alerts +test.watched  x1", outcome.err)
    (verdict,) = outcome.frames(Verdict)
    assert (verdict.rule, verdict.response, verdict.outcome) == ("test.watched", "alert", "alerted")
    assert verdict.level == "detects"
    assert [f["unmapped"]["agentwatch"]["rule"] for f in launch.findings()] == ["test.watched"]
    assert not outcome.frames(Kill)


def test_observing_stops_nothing_and_says_what_enforcing_would(launch: Launcher) -> None:
    """--mode observe: the key is read; events --would-deny lists it."""
    options = ["--mode=observe", f"--jsonl={launch.jsonl}"]
    outcome = launch("cat", f"{launch.place}/key", options=options)
    assert (outcome.code, outcome.out) == (0, "the key\n")
    assert re.search(r"OBSERVED +read .*/key\n.*test.key · detects", outcome.err)
    (verdict,) = outcome.frames(Verdict)
    assert (verdict.action, verdict.response, verdict.outcome) == ("kill", "alert", "observed")
    assert outcome.frames(Start)[0].mode == "observe"
    assert "test.key" in asked(launch, "--would-deny")
    assert len(launch.findings()) == 1


BY_ENGINE = """\
schema: agentwatch/v1
rules:
  - id: test.late
    on: read
    match: {{path|re: "^{key}$"}}
    action: kill
    because: It is the key.
    tests: [{{hit: {{path: {key}}}}}]
"""


def test_a_kill_that_comes_too_late_is_a_failure_and_told(launch: Launcher) -> None:
    """The engine's: the reader had ended by itself: never called stopped, counted, a finding."""
    rules = launch.place / "late.yaml"
    (launch.place / "late").write_text("late")
    rules.write_text(BY_ENGINE.format(key=launch.place / "late"))
    script = "import os, sys\nfd = os.open(sys.argv[1], 0)\nos._exit(0)"
    for _ in range(5):  # it may be caught in time
        outcome = launch(
            *python(script),
            f"{launch.place}/late",
            options=[f"--jsonl={launch.jsonl}", f"--rules={rules}"],
        )
        if outcome.code == 0:
            break
    assert outcome.code == 0
    kill = outcome.frames(Kill)[-1]
    assert (kill.outcome, kill.latency) == ("too late", 0)
    assert outcome.frames(Verdict)[-1].outcome == "too late"
    assert re.search(r"TOO LATE +read .*/late, it had ended by itself", outcome.err)
    assert re.search(r"too late +read .*/late\n +test.late \(kills-after\)", outcome.err)
    assert "stopped" not in outcome.err


THREADS = """
import os, sys, threading, time
def reader():
    os.open(sys.argv[1], os.O_RDONLY)
    time.sleep(10)
for _ in range(8):
    threading.Thread(target=reader).start()
"""


def test_a_read_by_each_thread_is_one_kill(launch: Launcher) -> None:
    """Every call is a verdict; the process is killed once, and nothing is called a failure."""
    outcome = launch(*python(THREADS), f"{launch.place}/key")
    assert outcome.code == 137
    verdicts = outcome.frames(Verdict)
    assert verdicts
    assert {verdict.outcome for verdict in verdicts} == {"killed"}
    opens = [e for e in outcome.events(Open) if e.path.endswith("/key") and e.result >= 0]
    assert len(opens) == len(verdicts)
    assert [kill.outcome for kill in outcome.frames(Kill)] == ["killed"]


def test_a_thread_that_is_not_the_leader_is_killed_with_its_process(launch: Launcher) -> None:
    """Also where the leader has ended before."""
    script = """
import ctypes, os, sys, threading, time
def reader():
    time.sleep(0.1)
    os.open(sys.argv[1], os.O_RDONLY)
    time.sleep(10)
threading.Thread(target=reader).start()
ctypes.CDLL(None).syscall(60, 0)
"""
    begun = time.monotonic()
    outcome = launch(*python(script), f"{launch.place}/key")
    assert time.monotonic() - begun < 8
    assert outcome.code == 137
    assert [kill.outcome for kill in outcome.frames(Kill)] == ["killed"]


# Metrics ------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_metrics_are_served_while_it_runs_and_gone_afterwards(launch: Launcher) -> None:
    """Every kind of decision is counted by rule, action and level."""
    where = f"127.0.0.1:{free_port()}"
    late = "import os, sys; os.open(sys.argv[1], 0); os._exit(0)"
    script = (
        f"sh -c '{launch.hold}'; cat {launch.place}/watched;"
        f"for i in 1 2 3 4; do {launch.place}/bin/late {launch.place}/key; done;"
        f"echo; read done"
    )
    (launch.place / "bin" / "late").write_text(f"#!/usr/bin/python3 -I\n{late}\n")
    (launch.place / "bin" / "late").chmod(0o755)
    process = launch.start(
        "sh", "-c", script, options=[f"--metrics={where}"], stdin=subprocess.PIPE
    )
    with ended_after(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "the watched\n"
        assert process.stdout.readline() == "\n"
        time.sleep(0.2)
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        outcome = launch.finish(process, "\n")
    assert outcome.code == 0
    found = dict(re.findall(r"^agentwatch_(\w+\{[^}]*\}) (\S+)$", text, re.MULTILINE))
    kills = 'decisions_total{action="kill",level="kills",rule="test.key"}'
    alerts = 'decisions_total{action="alert",level="detects",rule="test.watched"}'
    assert float(found[kills]) == 5, found
    assert float(found[alerts]) == 1
    ended = [kill.outcome for kill in outcome.frames(Kill)]
    assert float(found.get('kill_failures_total{reason="too late"}', 0)) == ended.count("too late")
    assert float(found['events_total{kind="exec"}']) >= 6
    assert float(found['hook_attached{hook="sys_exit"}']) == 1
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{where}/metrics", timeout=5)


# The end ------------------------------------------------------------------------------------------


def test_what_outlives_the_command_is_named(launch: Launcher) -> None:
    """Nobody watches it any more; it is not killed for that."""
    script = f"sleep 30 > {launch.place}/out 2>&1 < /dev/null & echo $!"
    outcome = launch("sh", "-c", script)
    pid = int(outcome.out)
    try:
        assert is_there(pid)
        pattern = rf"left +\S*/sleep \(process {pid}\) goes on, unwatched"
        assert re.search(pattern, outcome.err), outcome.err
    finally:
        os.kill(pid, signal.SIGKILL)


def test_the_summary_says_what_was_run_changed_and_reached(launch: Launcher) -> None:
    """And the journal verifies, with nothing lost."""
    home = launch.place / "home"
    home.mkdir()
    changed = Path("/var/lib") / f"agentwatch-test-{launch.unique}"
    port = free_port()
    connect = f"import socket\nsocket.socket().connect_ex(('127.0.0.1', {port}))"
    try:
        outcome = launch(
            "sh", "-c", f"echo > {changed}; echo >> {changed}; true; /bin/true; {line(connect)}"
        )
    finally:
        changed.unlink()
    assert re.search(r"ran +\S", outcome.err)
    assert outcome.err.count(f"create    {changed}") == 1
    assert re.search(rf"changed +{changed}", outcome.err)
    assert re.search(rf"reached +127.0.0.1:{port}", outcome.err)
    assert all(report.intact and report.closed for report in verify(launch.journal))
    assert not outcome.frames(Gap)
    assert "LOST" not in outcome.err


def line(code: str) -> str:
    """A python command for a shell."""
    return f'/usr/bin/python3 -I -c "{code}"'


# The breaker --------------------------------------------------------------------------------------


def storm(launch: Launcher) -> str:
    """A hundred children that read the key, and a mark if it ever gets through."""
    once = f"sh -c '{launch.hold}'"
    return f"i=0; while [ $i -lt 100 ]; do {once}; i=$((i+1)); done; touch {launch.place}/through"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_kill_storm_ends_in_a_stopped_session_and_a_signal_ends_it(
    launch: Launcher, number: signal.Signals
) -> None:
    """More than twenty in ten seconds: everything of it is stopped, nothing is ever allowed."""
    process = launch.start("sh", "-c", storm(launch), start_new_session=True)
    with ended_after(process):
        assert eventually(lambda: stopped(process.pid), 15), "the session was not stopped"
        time.sleep(0.3)
        assert stopped(process.pid)
        os.kill(process.pid, number)
        outcome = launch.finish(process)
    assert outcome.code == 137
    assert "too many kills in too short a time" in outcome.err
    (notice,) = outcome.frames(Notice)
    assert notice.subject == "freeze"
    assert 20 < len(outcome.frames(Verdict)) < 30
    assert not (launch.place / "through").exists()


def stopped(pid: int) -> list[int]:
    """Descendants that are stopped."""
    return [child for child, _ in below(pid) if state(child) == "T"]


@pytest.mark.parametrize("pty", ["", "use_pty", "!use_pty"], ids=["root", "sudo-pty", "sudo"])
def test_a_stopped_session_ends_by_an_interrupt_from_the_keyboard(
    launch: Launcher, pty: str
) -> None:
    """Ctrl-C, whether the watching half was started by root or through sudo."""
    if pty:
        as_nobody(launch, pty=pty)
    sent = []

    def keys(screen: str) -> bytes:
        if "too many kills" not in screen or sent:
            return b""
        sent.append(1)
        time.sleep(0.2)
        return b"\x03"

    code, screen = launch.typed(launch.line("sh", "-c", storm(launch)), keys)
    assert sent, screen
    assert code == 137, screen
    assert not (launch.place / "through").exists()


def test_reads_that_are_over_before_the_kill_trip_the_breaker_too(launch: Launcher) -> None:
    """A storm of readers too quick to be killed is a storm all the same."""
    quick = launch.place / "bin" / "quick"
    quick.write_text(f"#!/bin/sh\n: < {launch.place}/key\n")
    quick.chmod(0o755)
    loop = f"i=0; while [ $i -lt 100 ]; do {quick}; i=$((i+1)); done; : < {launch.place}/never"
    with ended_after(launch.start("sh", "-c", loop, start_new_session=True)) as process:
        assert eventually(lambda: stopped(process.pid), 15)
        os.kill(process.pid, signal.SIGTERM)
        outcome = launch.finish(process)
    assert len(outcome.frames(Notice)) == 1
    assert outcome.code == 137


THAWING = """
import os, signal, sys, time
os.setpgid(0, 0)
for _ in range(6):
    if not os.fork():
        while True:
            os.kill(0, signal.SIGCONT)
for _ in range(60):
    if not os.fork():
        os.open(sys.argv[1], os.O_RDONLY)
        time.sleep(5)
        os._exit(0)
    time.sleep(0.02)
time.sleep(3)
open(sys.argv[2], "w")
os.kill(0, signal.SIGKILL)
"""


def test_a_stopped_session_cannot_let_itself_go_on(launch: Launcher) -> None:
    """Processes that send SIGCONT to all others for ever are held or killed like everything."""
    through = launch.place / "through"
    launch.place.chmod(0o1777)
    process = launch.start(*python(THAWING), f"{launch.place}/key", str(through))
    with ended_after(process):
        assert not eventually(lambda: process.poll() is None and through.exists(), 7)
        process.send_signal(signal.SIGTERM)
        outcome = launch.finish(process)
    assert [notice.subject for notice in outcome.frames(Notice)] == ["freeze"]
    assert not through.exists()


# A terminal and a stderr that CMD shares ----------------------------------------------------------

READS = """
import os, sys, time
def reads(number):
    for _ in range(number):
        child = os.fork()
        if child == 0:
            os.open(sys.argv[1], os.O_RDONLY)
            time.sleep(2)
            os._exit(0)
        with open(sys.argv[2], "a") as told:
            print(os.waitpid(child, 0)[1], file=told)
"""
FREEZING = {
    "stopped": "import termios; termios.tcflow(2, termios.TCOOFF)",
    "taken": "import signal, termios; signal.signal(signal.SIGTTOU, signal.SIG_IGN);"
    "modes = termios.tcgetattr(2); modes[3] |= termios.TOSTOP;"
    "termios.tcsetattr(2, termios.TCSANOW, modes); os.setpgid(0, 0);"
    "os.tcsetpgrp(2, os.getpgrp())",
}


@pytest.mark.parametrize("how", FREEZING)
def test_a_terminal_that_is_stopped_or_taken_stops_no_kill(launch: Launcher, how: str) -> None:
    """CMD holds its terminal back, or is alone in the foreground: the rules apply."""
    told = launch.place / "told"
    code = f"{READS}\n{FREEZING[how]}\nreads(4)"
    launch.typed(launch.line(*python(code), f"{launch.place}/key", str(told)), lambda screen: b"")
    assert told.read_text().split() == ["9"] * 4


@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
def test_a_stderr_that_is_full_or_closed_stops_no_kill(launch: Launcher, closed: bool) -> None:
    """A pipe that nobody reads, or whose reader has gone."""
    told = launch.place / "told"
    fill = "" if closed else "if not os.fork():\n    while True: os.write(2, bytes(4096))\n"
    code = f"{READS}\n{fill}time.sleep(0.3)\nreads(4)\nos.kill(0, 9)"
    read, write = os.pipe()
    line = launch.line(*python("import os; os.setpgid(0, 0)\n" + code), f"{launch.place}/key")
    with subprocess.Popen([*line, str(told)], stderr=write) as process:
        os.close(write)
        if closed:
            os.close(read)
        assert process.wait(20) == 137
    if not closed:
        os.close(read)
    assert told.read_text().split() == ["9"] * 4
    assert all(report.intact and report.closed for report in verify(launch.journal))


# What an agent does to the watcher's tables -------------------------------------------------------


def test_a_mount_point_with_any_name_in_a_namespace_of_its_own_is_nothing_to_us(
    launch: Launcher,
) -> None:
    """Its files are named by their device, whatever the agent calls them; the run goes on."""
    there = "d=$(printf '%s/cr\\rx' " + str(launch.place) + '); mkdir "$d"; '
    there += 'mount -t tmpfs none "$d"; : > "$d/f"'.replace('\\"', '"')
    outcome = launch("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", there)
    assert outcome.code == 0, outcome.err
    made = [e for e in outcome.events(Open) if e.path.endswith("]/f")]
    assert made, [e.path for e in outcome.events(Open)][-5:]
    assert not outcome.frames(Gap)
    assert not outcome.frames(MountsChanged)


def test_secrets_on_the_own_command_line_are_not_journaled(launch: Launcher) -> None:
    """Neither when the writer begins nor with the session."""
    secret = "ghp_" + "a1B2" * 9
    outcome = launch("true", f"--token={secret}")
    assert "redacted" in " ".join(outcome.frames(Start)[0].command)
    for frame in (*outcome.frames(Start), *outcome.frames(Session)):
        assert secret not in " ".join(frame.command)


# Agents -------------------------------------------------------------------------------------------


def test_an_agent_inside_the_command_is_found_by_its_name(launch: Launcher) -> None:
    """`run -- sh -c stub`: from its exec on its rules apply, and the session is shown under it."""
    one = launch.stub("one")
    outcome = launch("sh", "-c", f"cat {launch.place}/one; {one} '{held(launch, 'one')}'; echo $?")
    assert outcome.out == "the one\n137\n"
    (added,) = outcome.frames(AgentAdded)
    assert (added.agent, added.path) == ("stub-one", str(one))
    assert re.search(r"agent +stub-one", outcome.err)
    assert [verdict.agent for verdict in outcome.frames(Verdict)] == ["stub-one"]
    agents = {entry.agent for entry in outcome.entries if isinstance(entry.event, Exec)}
    assert agents == {"stub-one"}


def held(launch: Launcher, name: str) -> str:
    return f"exec 3< {launch.place}/{name}; : < {launch.place}/never"


def test_agent_is_set_by_its_name(launch: Launcher) -> None:
    """--agent: the rules of that agent apply from the first instruction on."""
    outcome = launch("sh", "-c", held(launch, "one"), options=["--agent=stub-one"])
    assert outcome.code == 137
    assert outcome.frames(Session)[0].agent == "stub-one"
    assert [verdict.agent for verdict in outcome.frames(Verdict)] == ["stub-one"]


def test_an_unknown_agent_is_a_usage_error(launch: Launcher) -> None:
    """It names those there are, and CMD is never run."""
    outcome = launch("touch", f"{launch.place}/ran", options=["--agent=nobody-knows"])
    assert outcome.code == 2
    assert "no identity of that name\n  try: one of stub-one, stub-two" in outcome.err
    assert not (launch.place / "ran").exists()


def test_an_agent_that_starts_another_keeps_its_own_rules(launch: Launcher) -> None:
    """The rules of both apply, also to children; the first one gives the session its name."""
    one, two = launch.stub("one"), launch.stub("two")
    reads = "; ".join(f'sh -c "{held(launch, name)}"; echo $?' for name in ("one", "two"))
    outcome = launch(str(one), f"{two} '{reads}'")
    assert outcome.out == "137\n137\n"
    assert [added.agent for added in outcome.frames(AgentAdded)] == ["stub-one", "stub-two"]
    assert {v.rule for v in outcome.frames(Verdict)} == {"test.only-one", "test.only-two"}
    assert {v.agent for v in outcome.frames(Verdict)} == {"stub-one"}


def test_a_child_of_one_agent_is_not_under_anothers_rules(launch: Launcher) -> None:
    """Two in one session, side by side: each child only under what started it."""
    one = launch.stub("one")
    outcome = launch("sh", "-c", f"{one} true; cat {launch.place}/one {launch.place}/two")
    assert (outcome.code, outcome.out) == (0, "the one\nthe two\n")
    assert not outcome.frames(Verdict)
