"""What a person sees while an agent runs, and the summary when it has ended.

Noteworthy is each executable's first exec, each new address or unix path, the first change of each
file outside scratch space and the agent's own state, and every alert, kill and loss. The rest is
only counted.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from agentwatch.engine import Verdict
from agentwatch.events import Connect, Event, Exec, Open
from agentwatch.lineage import Actor
from agentwatch.sinks import frames
from agentwatch.sinks.escape import shown

SCRATCH = ("/tmp/", "/var/tmp/", "/dev/", "/proc/")
_NARROW = 100  # columns where nobody says how many there are
_SHOWN = 12  # lines of a list in the summary

_DIM, _RED, _YELLOW, _BOLD, _PLAIN = "2", "1;31", "33", "1", "0"


class Live:
    """A sink that writes to a terminal or a file. own: whether a path is an agent's own state."""

    def __init__(self, out: TextIO, *, colour: bool, own: Callable[[str], bool]) -> None:
        self._out, self._colour, self._own = out, colour, own
        self._began = time.monotonic()
        self._width = shutil.get_terminal_size((_NARROW, 24)).columns if out.isatty() else 0
        self._ran: Counter[str] = Counter()
        self._changed: dict[str, None] = {}
        self._reached: dict[str, None] = {}
        self._counted: Counter[str] = Counter()
        self._verdicts: list[frames.Verdict] = []
        self._ends: Counter[str] = Counter()
        self._latency: dict[tuple[object, str], int] = {}
        self._lost = 0

    # What happens.

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        if isinstance(event, Exec) and event.result == 0:
            self._exec(event)
        elif isinstance(event, Open) and event.changes and event.result >= 0:
            self._change(event)
        elif isinstance(event, Connect):
            self._connect(event)

    def _exec(self, event: Exec) -> None:
        program = event.script or event.path
        self._counted["exec"] += 1
        self._ran[program] += 1
        if self._ran[program] == 1:
            command = " ".join(event.argv)
            self._line("run", f"{shown(command) or shown(program)}", _BOLD, f"  {shown(program)}")

    def _change(self, event: Open) -> None:
        self._counted["change"] += 1
        if event.path.startswith(SCRATCH) or self._own(event.path) or event.path in self._changed:
            return
        self._changed[event.path] = None
        self._line("create" if event.created else "change", shown(event.path))

    def _connect(self, event: Connect) -> None:
        if event.protocol != "tcp" or event.syn:
            self._counted["connect"] += 1
        where = _where(event)
        if where and where not in self._reached:
            self._reached[where] = None
            self._line("connect", shown(where))

    # What is said about it.

    def frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Verdict):
            self._verdict(frame)
        elif isinstance(frame, frames.Kill):
            self._kill(frame)
        elif isinstance(frame, frames.Gap):
            self._lost += frame.count
            self._line("LOST", f"{frame.count} records ({frame.stage})", _RED)
        elif isinstance(frame, frames.AgentAdded):
            self._line("agent", f"{frame.agent}: {shown(frame.path)}", _BOLD)
        elif isinstance(frame, frames.Notice):
            self._line("NOTICE", shown(frame.text), _RED)

    def _verdict(self, verdict: frames.Verdict) -> None:
        self._verdicts.append(verdict)
        if verdict.response == "kill":
            word, colour = ("KILL", _RED) if verdict.outcome == "killed" else ("FAILED", _RED)
        else:
            word, colour = "ALERT", _YELLOW
        self._line(word, f"{verdict.kind} {shown(verdict.what)}", colour)
        level = f"{verdict.level}{' (lossy)' if verdict.lossy else ''}"
        self._more(f"{verdict.rule} · {level} · {verdict.severity}")
        if verdict.because:
            self._more(verdict.because)
        if verdict.instead:
            self._more(f"instead: {verdict.instead}")

    def _kill(self, kill: frames.Kill) -> None:
        self._ends[kill.outcome] += 1
        self._latency[kill.process, kill.rule] = kill.latency
        if kill.outcome == "killed":
            self._line(
                "ended", f"process {kill.process.pid}, {kill.latency / 1e6:.1f} ms after the call"
            )
        else:
            why = kill.reason or "it had ended by itself"
            self._line("FAILED", f"kill of process {kill.process.pid}: {why}", _RED)

    # The summary.

    def summary(self, code: int, journal: str, left: int) -> None:
        """What it ran, changed, reached, and what was stopped and why."""
        self._out.write("\n")
        self._head(f"exit code {code}, {time.monotonic() - self._began:.1f} s")
        self._list("ran", [f"{shown(p)}  x{n}" for p, n in self._ran.most_common()])
        self._list("changed", [shown(path) for path in self._changed])
        self._list("reached", [shown(where) for where in self._reached])
        stopped = [v for v in self._verdicts if v.response == "kill"]
        self._list("stopped", [self._stopped(v) for v in stopped], _RED)
        alerts = Counter(v.rule for v in self._verdicts if v.response == "alert")
        self._list("alerts", [f"{rule}  x{n}" for rule, n in alerts.items()], _YELLOW)
        failures = {k: n for k, n in self._ends.items() if k != "killed"}
        self._list("kills that failed", [f"{k}  x{n}" for k, n in failures.items()], _RED)
        if self._lost:
            self._more(self._paint(f"{self._lost} records lost: see the journal", _RED))
        if left:
            processes = "process goes on" if left == 1 else "processes go on"
            self._more(self._paint(f"{left} {processes}, no longer watched", _YELLOW))
        self._more(f"journal  {journal}")
        self._out.flush()

    def _stopped(self, verdict: frames.Verdict) -> str:
        latency = self._latency.get((verdict.process, verdict.rule), 0)
        took = f", {latency / 1e6:.1f} ms" if latency else ""
        return (
            f"{verdict.kind} {shown(verdict.what)}\n"
            f"            {verdict.rule} ({verdict.level}{took}): {verdict.because}"
        )

    def _list(self, title: str, lines: list[str], colour: str = _PLAIN) -> None:
        for index, line in enumerate(lines[:_SHOWN]):
            name = title if index == 0 else ""
            self._out.write(f"  {self._paint(f'{name:<8}', colour)}  {self._cut(line)}\n")
        if len(lines) > _SHOWN:
            self._out.write(f"            and {len(lines) - _SHOWN} more\n")

    # Lines.

    def _head(self, text: str) -> None:
        self._out.write(self._paint(f"agentwatch: {text}", _BOLD) + "\n")

    def _line(self, word: str, text: str, colour: str = _PLAIN, rest: str = "") -> None:
        at = f"{time.monotonic() - self._began:7.2f}s"
        text = self._cut(text, 20)
        self._out.write(f"{self._paint(at, _DIM)}  {self._paint(f'{word:<8}', colour)}  {text}")
        if rest and (not self._width or len(text) + len(rest) + 20 <= self._width):
            self._out.write(self._paint(rest, _DIM))
        self._out.write("\n")
        self._out.flush()

    def _more(self, text: str) -> None:
        self._out.write(
            f"          {text}\n" if text.startswith("journal") else f"  {'':<18}{text}\n"
        )

    def _cut(self, text: str, taken: int = 12) -> str:
        room = (self._width or 160) - taken
        return text if len(text) <= room or "\n" in text else text[: max(room - 1, 8)] + "…"

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour != _PLAIN else text


def _where(event: Connect) -> str:
    """An address as it is shown: no port where there is none, nothing for a dissolved peer."""
    if event.unix:
        return event.unix
    if not event.addr:
        return ""
    host = f"[{event.addr}]" if ":" in event.addr else event.addr
    suffix = "" if event.protocol == "tcp" else f" {event.protocol}"
    return f"{host}:{event.port}{suffix}"
