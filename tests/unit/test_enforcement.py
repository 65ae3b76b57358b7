"""From a verdict to a dead process, on real processes, and to knowing whether it worked."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentwatch.actions import Breaker
from agentwatch.enforcement import PATIENCE, Enforcement
from agentwatch.engine import Engine, Verdict
from agentwatch.events import Connect, Event, Exec, Exit, Open, ProcessKey
from agentwatch.policy.levels import Host
from agentwatch.rules.model import Match, Place, Rule, Ruleset
from agentwatch.sinks import frames
from agentwatch.sinks.redact import Redactor
from agentwatch.testing import RecordingSink
from tests.unit.test_actions import key_of, until

SESSION = ProcessKey(1, 1)
HERE = Place("r.yaml", 1, 1)
RULE = Rule("a.key", ("read",), Match(()), "kill", HERE, title="A key", tags=("attack.t1",))
KILL = Verdict("kill", "kill", "a.key", "kills-after", "high", "It is a key.", "Ask.")
ALERT = Verdict("alert", "alert", "a.key", "detects")
DONE = Verdict("kill", "kill", "a.key", "kills", "high", "It is a key.", "Ask.", done=True)
DENIED = Verdict("deny", "deny", "a.key", "prevents", "high", "It is a key.", "Ask.", done=True)


class Acting:
    """An enforcement whose frames are kept, and the clock of its events."""

    def __init__(self, mode: str = "enforce", kills: int = 20) -> None:
        self.sink = RecordingSink()
        engine = Engine(Ruleset((RULE,)), mode=mode, generation=3)
        breaker = Breaker(kills=kills)
        self.enforcement = Enforcement(engine, Host(), Redactor.load(), self.sink.write, breaker)
        self.now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def opened(self, process: ProcessKey) -> Open:
        return Open(time=self.now, process=process, session=SESSION, path="/key", reads=True)

    def act(self, process: ProcessKey, verdict: Verdict = KILL) -> bool:
        return self.enforcement.act(self.opened(process), verdict, "claude")

    def ended(self, process: ProcessKey, status: int = signal.SIGKILL, after: int = 7) -> None:
        event = Exit(time=self.now + after, process=process, session=SESSION, status=status)
        self.enforcement.ended(event)

    @property
    def verdicts(self) -> list[frames.Verdict]:
        return [frame for frame in self.sink.frames if isinstance(frame, frames.Verdict)]

    @property
    def kills(self) -> list[frames.Kill]:
        return [frame for frame in self.sink.frames if isinstance(frame, frames.Kill)]


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A real child."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_kill_is_done_when_the_end_is_seen_and_was_its_doing(
    victim: subprocess.Popen[bytes],
) -> None:
    """The verdict is told at once, the kill with its latency when the process is gone."""
    acting, process = Acting(), key_of(victim.pid)
    assert not acting.act(process)
    assert victim.wait(5) == -signal.SIGKILL
    assert acting.enforcement.waiting
    assert acting.kills == []
    acting.ended(process, after=1234)
    (kill,) = acting.kills
    assert (kill.outcome, kill.latency, kill.rule, kill.agent) == (
        "killed",
        1234,
        "a.key",
        "claude",
    )
    assert not acting.enforcement.waiting
    assert not acting.enforcement.failures
    assert acting.enforcement.decisions == {("a.key", "kill", "kills-after"): 1}


def test_a_verdict_is_complete_without_its_event(victim: subprocess.Popen[bytes]) -> None:
    """What, whose, which rule with its words, in which generation."""
    acting, process = Acting(), key_of(victim.pid)
    acting.act(process)
    (told,) = acting.verdicts
    assert (told.kind, told.what, told.agent, told.outcome) == ("read", "/key", "claude", "killed")
    assert (told.rule, told.title, told.tags) == ("a.key", "A key", ("attack.t1",))
    assert (told.because, told.instead, told.severity) == ("It is a key.", "Ask.", "high")
    assert (told.generation, told.level, told.process) == (3, "kills-after", process)
    assert told.by == "engine"


@pytest.mark.parametrize(("verdict", "lossy"), [(DONE, True), (DENIED, False)])
def test_a_verdict_is_lossy_where_it_rests_on_what_may_be_skipped(
    victim: subprocess.Popen[bytes], verdict: Verdict, lossy: bool
) -> None:
    """What a hook has refused does not."""
    acting = Acting()
    acting.enforcement.host = Host(lossy=True)
    acting.act(key_of(victim.pid), verdict)
    (said,) = acting.verdicts
    assert (said.level, said.lossy) == (verdict.level, lossy)


def test_one_kill_is_enough(victim: subprocess.Popen[bytes]) -> None:
    """Calls made before the process died of it, read before or after its end, fail nothing."""
    acting, process = Acting(kills=1), key_of(victim.pid)
    assert [acting.act(process) for _ in range(3)] == [False] * 3
    victim.wait(5)
    acting.ended(process)
    assert [acting.act(process) for _ in range(3)] == [False] * 3
    assert [told.outcome for told in acting.verdicts] == ["killed"] * 6
    assert [kill.outcome for kill in acting.kills] == ["killed"]
    assert not acting.enforcement.failures


def test_what_had_ended_is_too_late_and_counted() -> None:
    """A pid nobody has: recorded as a failure, with its reason."""
    acting = Acting()
    child = subprocess.Popen(["true"])
    child.wait()
    acting.act(ProcessKey(child.pid, 1))
    assert acting.verdicts[0].outcome == "too late"
    (kill,) = acting.kills
    assert (kill.outcome, kill.latency, kill.reason) == ("too late", 0, "too late")
    assert acting.enforcement.failures == {"too late": 1}


def test_an_end_that_was_seen_before_is_too_late(victim: subprocess.Popen[bytes]) -> None:
    """Between its record and the zombie a signal still reaches a process, and stops nothing."""
    acting, process = Acting(), key_of(victim.pid)
    acting.ended(process, status=0)
    acting.act(process)
    assert acting.verdicts[0].outcome == "too late"
    assert victim.poll() is None
    assert not acting.enforcement.waiting


@pytest.mark.parametrize("status", [0, 3 << 8, signal.SIGTERM])
def test_an_end_of_its_own_is_no_kill(victim: subprocess.Popen[bytes], status: int) -> None:
    """The signal was sent, and the process ended of something else before it came."""
    acting, process = Acting(), key_of(victim.pid)
    acting.act(process)
    acting.ended(process, status=status)
    assert [kill.outcome for kill in acting.kills] == ["too late"]
    assert acting.enforcement.failures == {"too late": 1}


def test_a_kill_whose_end_never_comes_has_failed(victim: subprocess.Popen[bytes]) -> None:
    """After PATIENCE from the signal, however old the call was by then."""
    acting, process = Acting(), key_of(victim.pid)
    acting.now -= 10 * PATIENCE
    acting.act(process)
    sent = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    acting.enforcement.give_up(sent)
    assert acting.kills == []
    assert until(victim.pid, "Z")
    acting.enforcement.give_up(sent + 2 * PATIENCE)
    (kill,) = acting.kills
    assert (kill.outcome, kill.reason) == ("failed", "its end was not seen")
    assert acting.enforcement.failures == {"failed": 1}
    assert not acting.enforcement.waiting


def test_alerts_and_observing_hurt_nobody(victim: subprocess.Popen[bytes]) -> None:
    """Only a response of kill sends a signal; in observe mode the outcome says so."""
    for mode, outcome in (("enforce", "alerted"), ("observe", "observed")):
        acting = Acting(mode)
        assert not acting.act(key_of(victim.pid), replace(ALERT, mode=mode))
        assert acting.verdicts[0].outcome == outcome
        assert acting.enforcement.decisions == {("a.key", "alert", "detects"): 1}
        assert not acting.kills
    assert victim.poll() is None


def test_a_default_is_told_by_that_name() -> None:
    """No rule's id stands for it."""
    acting = Acting()
    acting.act(SESSION, Verdict("deny", "alert", None, "detects", default=True))
    assert acting.verdicts[0].rule == "default"
    assert acting.enforcement.decisions == {("default", "deny", "detects"): 1}


def test_a_storm_trips_the_breaker_by_processes_and_not_by_calls() -> None:
    """One more than allowed, those that had ended by themselves included; then never again."""
    acting = Acting(kills=3)
    gone = [ProcessKey(2**22 + n, 1) for n in range(6)]
    tripped = [acting.act(process) for process in gone for _ in range(2)]
    assert tripped.count(True) == 1
    assert tripped.index(True) == 6
    assert acting.enforcement.frozen(SESSION)
    assert len(acting.kills) == 12


@pytest.mark.parametrize(
    ("event", "kind", "what"),
    [
        (
            Exec(time=1, process=SESSION, session=SESSION, path="/bin/x", argv=("x", "y z")),
            "exec",
            "x y z",
        ),
        (Exec(time=1, process=SESSION, session=SESSION, path="/bin/x"), "exec", "/bin/x"),
        (Open(time=1, process=SESSION, session=SESSION, path="/f", changes=True), "change", "/f"),
        (Open(time=1, process=SESSION, session=SESSION, path="", asked="f"), "read", "f"),
        (
            Connect(time=1, process=SESSION, session=SESSION, family=2, addr="::1", port=9),
            "connect",
            "[::1]:9",
        ),
        (Connect(time=1, process=SESSION, session=SESSION, family=1, unix="@x"), "connect", "@x"),
        (Connect(time=1, process=SESSION, session=SESSION, family=16), "connect", "family 16"),
    ],
)
def test_a_verdict_says_in_one_line_what_it_is_about(event: Event, kind: str, what: str) -> None:
    """A command line, a path, an address."""
    acting = Acting()
    acting.enforcement.act(event, ALERT, "")
    assert (acting.verdicts[0].kind, acting.verdicts[0].what) == (kind, what)


def test_secrets_in_arguments_are_not_told(tmp_path: Path) -> None:
    """A verdict on an exec is redacted as its record is."""
    acting = Acting()
    argv = ("curl", "-H", "Authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789")
    event = Exec(time=1, process=SESSION, session=SESSION, path="/bin/curl", argv=argv)
    acting.enforcement.act(event, ALERT, "")
    assert "abcdefghijklmnop" not in acting.verdicts[0].what
    assert acting.verdicts[0].what.startswith("curl -H")


def test_what_the_kernel_killed_is_not_killed_again(victim: subprocess.Popen[bytes]) -> None:
    """Its end is waited for as that of any kill; nothing is sent by us."""
    acting, process = Acting(), key_of(victim.pid)
    acting.act(process, DONE)
    assert acting.enforcement.waiting
    assert victim.poll() is None
    acting.ended(process, after=1234)
    (kill,), (told,) = acting.kills, acting.verdicts
    assert (kill.outcome, kill.latency) == ("killed", 1234)
    assert (told.outcome, told.response, told.level) == ("killed", "kill", "kills")
    assert told.by == "kernel"
    assert acting.enforcement.decisions == {("a.key", "kill", "kills"): 1}
    assert not acting.enforcement.failures


@pytest.mark.parametrize(("status", "outcome"), [(signal.SIGKILL, "killed"), (0, "too late")])
def test_a_kernels_kill_whose_victims_end_was_told_first(status: int, outcome: str) -> None:
    """The rings are read one after the other: how it ended is known, and that is believed."""
    acting, process = Acting(), ProcessKey(2**22 + 1, 1)
    acting.ended(process, status, after=99)
    acting.act(process, DONE)
    (kill,), (told,) = acting.kills, acting.verdicts
    assert (kill.outcome, told.outcome) == (outcome, outcome)
    assert kill.latency == (99 if outcome == "killed" else 0)
    assert not acting.enforcement.waiting


def test_a_kernels_kill_that_did_not_work_is_a_failure(victim: subprocess.Popen[bytes]) -> None:
    """A process that lives on after it is found out like any other."""
    acting, process = Acting(), key_of(victim.pid)
    acting.act(process, DONE)
    acting.enforcement.give_up(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 2 * PATIENCE)
    assert [(kill.outcome, kill.reason) for kill in acting.kills] == [("failed", "still running")]


def test_the_kernels_kills_count_for_the_breaker(victim: subprocess.Popen[bytes]) -> None:
    """Too many of them are too many, whoever sent the signal."""
    acting = Acting(kills=1)
    assert not acting.act(ProcessKey(2**22 + 1, 1), DONE)
    assert acting.act(ProcessKey(2**22 + 2, 1), DONE)


def test_what_was_denied_kills_nobody(victim: subprocess.Popen[bytes]) -> None:
    """The call failed, and that is all."""
    acting, process = Acting(kills=0), key_of(victim.pid)
    assert not acting.act(process, DENIED)
    (told,) = acting.verdicts
    assert (told.outcome, told.response, told.level) == ("denied", "deny", "prevents")
    assert not acting.enforcement.waiting
    assert acting.kills == []
    assert victim.poll() is None
