"""What a person sees while an agent runs, and the summary when it has ended.

Noteworthy is each executable's first exec, each new address or unix path, the first change of each
file outside scratch space and the agent's own state, and every alert, kill and loss. The rest is
only counted.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TextIO

from agentwatch.engine import Verdict
from agentwatch.events import Connect, Event, Exec, Open, ProcessKey
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
        self._width = _columns(out)
        self._ran: Counter[str] = Counter()
        self._changed: dict[str, None] = {}
        self._reached: dict[str, None] = {}
        self._counted: Counter[str] = Counter()
        self._verdicts: list[frames.Verdict] = []
        self._kills: dict[ProcessKey, frames.Kill] = {}
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
        if isinstance(frame, frames.Start):
            rules = "1 rule" if frame.rules == 1 else f"{frame.rules or 'no'} rules"
            self._head(f"{rules}, mode {frame.mode}")
        elif isinstance(frame, frames.Verdict):
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
        elif verdict.outcome == "observed" and verdict.action in ("deny", "kill"):
            word, colour = "OBSERVED", _YELLOW
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
        self._kills[kill.process] = kill
        if kill.outcome == "killed":
            self._line(
                "ended", f"process {kill.process.pid}, {kill.latency / 1e6:.1f} ms after the call"
            )
        else:
            why = kill.reason or "it had ended by itself"
            self._line("FAILED", f"kill of process {kill.process.pid}: {why}", _RED)

    # The summary.

    def summary(self, code: int, journal: str, *, left: Sequence[str], unwritten: int) -> None:
        """What it ran, changed, reached, and what was stopped and why.

        left: the processes that go on. unwritten: findings that are not in their file.
        """
        self._out.write("\n")
        self._head(f"exit code {code}, {time.monotonic() - self._began:.1f} s")
        self._list("ran", [f"{shown(p)}  x{n}" for p, n in self._ran.most_common()])
        self._list("changed", [shown(path) for path in self._changed])
        self._list("reached", [shown(where) for where in self._reached])
        kills = [v for v in self._verdicts if v.response == "kill"]
        for title, done in (("stopped", True), ("missed", False)):
            told = (self._stopped(v) for v in kills if self._is_dead(v) is done)
            self._list(title, list(dict.fromkeys(told)), _RED)
        alerts = Counter(v.rule for v in self._verdicts if v.response == "alert")
        self._list("alerts", [f"{rule}  x{n}" for rule, n in alerts.items()], _YELLOW)
        if self._lost:
            self._more(self._paint(f"{self._lost} records lost: see the journal", _RED))
        if unwritten:
            self._list("findings", [f"{unwritten} not written: see the journal"], _RED)
        self._list("left", [f"{shown(name)} goes on, unwatched" for name in left], _YELLOW)
        self._more(f"journal  {journal}")
        self._out.flush()

    def _is_dead(self, verdict: frames.Verdict) -> bool:
        """Whether its process is known to have died of the kill."""
        kill = self._kills.get(verdict.process)
        return kill is not None and kill.outcome == "killed"

    def _stopped(self, verdict: frames.Verdict) -> str:
        kill = self._kills.get(verdict.process)
        took = f", {kill.latency / 1e6:.1f} ms" if kill and kill.latency else ""
        if kill and kill.outcome != "killed":
            took = f", {kill.outcome}"
        return (
            f"{self._cut(f'{verdict.kind} {shown(verdict.what)}')}\n"
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
        if rest and (not self._width or _width(text + rest) + 20 <= self._width):
            self._out.write(self._paint(rest, _DIM))
        self._out.write("\n")
        self._out.flush()

    def _more(self, text: str) -> None:
        self._out.write(
            f"          {text}\n" if text.startswith("journal") else f"  {'':<18}{text}\n"
        )

    def _cut(self, text: str, taken: int = 12) -> str:
        room = max((self._width or 160) - taken, 9)
        if "\n" in text or _width(text) <= room:
            return text
        used = accumulate(map(_width, text))
        return text[: sum(1 for columns in used if columns < room)] + "…"

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour != _PLAIN else text


def _columns(out: TextIO) -> int:
    """How wide the terminal is; 0 where it is none."""
    try:
        return os.get_terminal_size(out.fileno()).columns or _NARROW
    except (OSError, ValueError):
        return _NARROW if out.isatty() else 0


def _width(text: str) -> int:
    """Columns of printable text: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _where(event: Connect) -> str:
    """An address as it is shown: no port where there is none, nothing for a dissolved peer."""
    if event.unix:
        return event.unix
    if not event.addr:
        return ""
    host = f"[{event.addr}]" if ":" in event.addr else event.addr
    suffix = "" if event.protocol == "tcp" else f" {event.protocol}"
    return f"{host}:{event.port}{suffix}"
