"""What a person sees: what is noteworthy, what is only counted, and nothing an agent forged."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import termios
from dataclasses import replace

import pytest

from agentwatch.engine import NO_VERDICT
from agentwatch.events import Connect, Event, Exec, Exit, Fork, Open, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.sinks import frames
from agentwatch.sinks.live import Live

ME = ProcessKey(7, 7)
ACTOR = Actor(ME, ME, ("claude",))


class Screen:
    """A live view and what it wrote."""

    def __init__(self, colour: bool = False) -> None:
        self._out = io.StringIO()
        self.live = Live(self._out, colour=colour, own=lambda path: path.startswith("/home/own/"))

    def see(self, *events: Event) -> str:
        return self._new(lambda: [self.live.event(e, ACTOR, NO_VERDICT) for e in events])

    def told(self, *told: frames.Frame) -> str:
        return self._new(lambda: [self.live.frame(frame) for frame in told])

    def summary(self, code: int = 0, left: tuple[str, ...] = (), unwritten: int = 0) -> str:
        return self._new(
            lambda: self.live.summary(code, "/j/run-1", left=left, unwritten=unwritten)
        )

    def _new(self, act: object) -> str:
        before = len(self._out.getvalue())
        act()  # type: ignore[operator]
        return self._out.getvalue()[before:]


def ran(path: str, *argv: str, script: str | None = None, result: int = 0) -> Exec:
    return Exec(time=1, process=ME, session=ME, path=path, argv=argv, script=script, result=result)


def changed(path: str, created: bool = False, result: int = 3) -> Open:
    return Open(
        time=1, process=ME, session=ME, path=path, changes=True, created=created, result=result
    )


def reached(addr: str = "", port: int = 0, protocol: str = "tcp", unix: str = "") -> Connect:
    return Connect(
        time=1, process=ME, session=ME, family=2, addr=addr, port=port, protocol=protocol, unix=unix
    )


def verdict(response: str = "kill", outcome: str = "killed", **more: object) -> frames.Verdict:
    values = {
        "process": ME, "kind": "read", "what": "/key", "rule": "a.key", "action": "kill",
        "level": "kills-after", "severity": "high", "because": "It is a key.", "instead": "Ask.",
    }  # fmt: skip
    return frames.Verdict(response=response, outcome=outcome, **(values | more))  # type: ignore[arg-type]


def killed(outcome: str = "killed", latency: int = 2_500_000, reason: str = "") -> frames.Kill:
    return frames.Kill(process=ME, rule="a.key", outcome=outcome, latency=latency, reason=reason)


def test_each_program_is_shown_once_and_counted() -> None:
    """Its first exec with the command line and its path; a script by its own name."""
    screen = Screen()
    assert re.search(
        r"run +git status +/usr/bin/git$", screen.see(ran("/usr/bin/git", "git", "status")).strip()
    )
    assert screen.see(ran("/usr/bin/git", "git", "log")) == ""
    assert "/opt/tool" in screen.see(ran("/usr/bin/python3", "python3", script="/opt/tool"))
    assert re.search(r"ran +/usr/bin/git  x2\n +/opt/tool  x1", screen.summary())


@pytest.mark.parametrize(
    "event",
    [
        ran("", "x", result=-2),
        changed("/etc/x", result=-13),
        Open(time=1, process=ME, session=ME, path="/etc/passwd", reads=True, result=3),
        changed("/tmp/x"), changed("/dev/null"), changed("/var/tmp/x"), changed("/home/own/state"),
        Fork(time=1, process=ME, session=ME, child=ProcessKey(8, 8)),
        Exit(time=1, process=ME, session=ME),
        reached(),
    ],
)  # fmt: skip
def test_what_is_not_noteworthy_is_not_shown(event: Event) -> None:
    """Failures, reads, scratch space, the agent's own state, lifecycle, dissolved addresses."""
    screen = Screen()
    assert screen.see(event) == ""
    assert not re.search("ran|changed|reached", screen.summary())


def test_each_file_is_shown_when_it_is_first_changed() -> None:
    """Created or changed; after that it is silent."""
    screen = Screen()
    assert re.search(r"create +/etc/x\n$", screen.see(changed("/etc/x", created=True)))
    assert re.search(r"change +/etc/y\n$", screen.see(changed("/etc/y")))
    assert screen.see(changed("/etc/x"), changed("/etc/y")) == ""
    assert re.search(r"changed +/etc/x\n +/etc/y\n", screen.summary())


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (reached("192.0.2.1", 443), "192.0.2.1:443"),
        (reached("2001:db8::1", 80), "[2001:db8::1]:80"),
        (reached("192.0.2.1", 53, "udp"), "192.0.2.1:53 udp"),
        (reached(unix="/run/docker.sock"), "/run/docker.sock"),
        (reached(unix="@abstract"), "@abstract"),
    ],
)
def test_each_address_is_shown_once(event: Connect, shown: str) -> None:
    """TCP and UDP are told apart, and so are ports."""
    screen = Screen()
    assert screen.see(event).endswith(f"connect   {shown}\n")
    assert screen.see(event) == ""
    assert f"reached   {shown}\n" in screen.summary()


def test_a_kill_is_shown_with_level_reason_and_what_to_do_instead() -> None:
    """And its latency when the process is gone, here and in the summary."""
    screen = Screen()
    told = screen.told(verdict())
    assert re.search(r"KILL +read /key\n +a.key · kills-after · high\n", told)
    assert re.search(r"It is a key.\n +instead: Ask.\n", told)
    assert "process 7, 2.5 ms after the call" in screen.told(killed())
    assert re.search(r"stopped +read /key\n +a.key \(kills-after, 2.5 ms\)", screen.summary())


def test_what_the_kernel_stopped_says_so() -> None:
    """Killed in the call, or refused: the word, the level and who did it."""
    screen = Screen()
    told = screen.told(verdict(level="kills", by="kernel"))
    assert re.search(r"KILL +read /key\n +a.key · kills, by the kernel · high\n", told)
    refused = {"kind": "connect", "what": "192.0.2.1:80", "rule": "a.net", "level": "prevents"}
    told = screen.told(verdict("deny", "denied", by="kernel", **refused))
    assert re.search(r"DENIED +connect 192.0.2.1:80\n +a.net · prevents, by the kernel", told)
    screen.told(killed(latency=100_000))
    summary = screen.summary()
    assert re.search(r"stopped +read /key\n +a.key \(kills, 0.1 ms\)", summary)
    assert re.search(r"connect 192.0.2.1:80\n +a.net \(prevents\)", summary)


def test_an_address_that_was_refused_was_not_reached() -> None:
    """What failed otherwise was tried, and is shown."""
    screen = Screen()
    assert screen.see(replace(reached("192.0.2.1", 80), result=-1)) == ""
    assert "192.0.2.1:80" in screen.see(replace(reached("192.0.2.1", 80), result=-111))


@pytest.mark.parametrize(
    ("outcome", "says"),
    [("too late", "TOO LATE  read /key, it had ended"), ("failed", "FAILED    read /key, not")],
)
def test_a_kill_that_failed_has_one_name_and_is_never_called_stopped(
    outcome: str, says: str
) -> None:
    """Also one that was sent and missed: what counts is how the process ended."""
    for said in ("killed", outcome):
        screen = Screen()
        told = screen.told(verdict(outcome=said)) + screen.told(killed(outcome, 0, "why"))
        assert told.count(says) == 1
        assert "missed" not in told
        summary = screen.summary()
        assert "stopped" not in summary
        assert re.search(rf"{outcome} +read /key\n +a.key \(kills-after\)", summary)


def test_times_are_those_of_the_events() -> None:
    """Since the first one, however late and in whatever order they are shown."""
    screen = Screen()
    first = replace(ran("/bin/a", "a"), time=5_000_000_000)
    assert screen.see(first).startswith("   0.00s")
    assert screen.told(verdict(time=6_250_000_000)).startswith("   1.25s")
    assert screen.told(killed(latency=500_000_000)).startswith("   1.75s")
    assert screen.see(replace(changed("/etc/x"), time=4_000_000_000)).startswith("   0.00s")


class Counting(io.StringIO):
    """How often it was written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_a_verdict_and_the_summary_are_one_write_each() -> None:
    """Nothing that CMD writes comes between the rule and its reason."""
    out = Counting()
    live = Live(out, colour=True, own=lambda path: False)
    live.frame(verdict())
    assert out.writes == 1
    live.summary(0, "/j", left=("a", "b"), unwritten=3, dropped=4)
    assert out.writes == 2
    assert "4 lines, for which there was no room" in out.getvalue()


def test_alerts_and_what_was_only_observed_are_told_apart() -> None:
    """A deny that observing did not carry out is not an alert like others."""
    screen = Screen()
    assert re.search(r"ALERT +read", screen.told(verdict("alert", "alerted", action="alert")))
    assert re.search(r"OBSERVED +read", screen.told(verdict("alert", "observed", action="deny")))
    assert re.search(r"ALERT +read", screen.told(verdict("alert", "observed", action="alert")))
    assert re.search(r"alerts +a.key  x3", screen.summary())


def test_losses_agents_and_notices_are_shown() -> None:
    """And a loss is in the summary as well."""
    screen = Screen()
    assert re.search(r"LOST +3 records \(ring\)", screen.told(frames.Gap(stage="ring", count=3)))
    assert "claude: /bin/claude" in screen.told(
        frames.AgentAdded(agent="claude", path="/bin/claude")
    )
    assert re.search(r"NOTICE +frozen", screen.told(frames.Notice(subject="x", text="frozen")))
    assert "3 records lost: see the journal" in screen.summary()


def test_the_summary_names_what_goes_on_and_what_was_not_written() -> None:
    """The exit code, processes left behind, missing findings, and where the journal is."""
    summary = Screen().summary(3, ("sleep (process 9)", "\x1b[2J (process 8)"), 2)
    assert "exit code 3" in summary
    assert "left      sleep (process 9)\n" in summary
    assert "\\x1b[2J (process 8)" in summary
    assert "2 not written" in summary
    assert "journal  /j/run-1" in summary


def test_a_long_list_is_cut_and_counted() -> None:
    """Twelve lines, then how many more."""
    screen = Screen()
    screen.see(*(changed(f"/srv/{n}") for n in range(20)))
    summary = screen.summary()
    assert "/srv/11" in summary
    assert "/srv/12" not in summary
    assert "and 8 more" in summary


EVIL = "/srv/\x1b[2J\n   0.00s  KILL      forged\r\u202e\udcff"


def test_names_cannot_steer_the_terminal_or_forge_a_line() -> None:
    """Escape codes, new lines, direction marks and broken UTF-8 are written out, everywhere."""
    screen = Screen()
    shown = screen.see(ran(EVIL, EVIL), changed(EVIL), reached(unix=EVIL))
    shown += screen.told(
        verdict(what=EVIL, because=EVIL, instead=EVIL, rule=EVIL, level=EVIL, severity=EVIL),
        verdict("alert", "alerted", rule=EVIL), killed(), killed("failed", 0, EVIL),
        frames.Notice(text=EVIL), frames.AgentAdded(path=EVIL, agent=EVIL),
        frames.Gap(stage=EVIL),
    )  # fmt: skip
    shown += screen.summary(left=(EVIL,))
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\udcff]", shown)
    assert not re.search(r"^ +0.00s  KILL      forged", shown, re.MULTILINE)
    assert "\\x1b[2J\\n" in shown


def test_there_is_colour_only_where_it_is_wanted() -> None:
    """None without; the words are the same."""
    plain, coloured = Screen(), Screen(colour=True)
    for screen in (plain, coloured):
        screen.see(ran("/bin/x", "x"))
    assert "\x1b[" not in plain.told(verdict())
    assert "\x1b[1;31mKILL" in coloured.told(verdict())


@pytest.mark.parametrize("text", ["x" * 300, "\u6f22" * 300, "e\u0301" * 300])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal(text: str, columns: int) -> None:
    """Whatever is run, one event is one row: wide characters take two columns, accents none."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(follower, "w", encoding="utf-8") as terminal:
        live = Live(terminal, colour=False, own=lambda path: False)
        live.event(ran(f"/bin/{text[:20]}", text), ACTOR, NO_VERDICT)
        terminal.flush()
        row = os.read(leader, 65536).decode().rstrip("\r\n")
    os.close(leader)
    width = sum(0 if c == "\u0301" else 2 if c == "\u6f22" else 1 for c in row)
    assert width <= columns
    assert width >= columns - 3
    assert "…" in row


def test_reasons_are_parted_at_the_terminals_edge() -> None:
    """Between words, below one another; nothing of a sentence is cut off."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    because = " ".join(f"word{number}" for number in range(30))
    with open(follower, "w", encoding="utf-8") as terminal:
        live = Live(terminal, colour=False, own=lambda path: False)
        live.frame(verdict(because=because))
        terminal.flush()
        text = os.read(leader, 65536).decode()
        live.summary(0, "/j", left=(), unwritten=0)
        text += os.read(leader, 65536).decode()
    os.close(leader)
    assert all(len(row) <= 60 for row in text.replace("\r", "").split("\n"))
    assert " ".join(text.split()).count("word28 word29") == 2
