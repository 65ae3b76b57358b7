"""What a person sees while an agent runs, and the summary when it has ended.

Noteworthy is each executable's first exec, each new address or unix path, the first change of each
file outside scratch space and the agent's own state, and every alert, kill and loss. The rest is
only counted.
"""

from __future__ import annotations

import errno
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from agentwatch.engine import Verdict
from agentwatch.events import Change, Connect, Event, Exec, Mount, Open, ProcessKey
from agentwatch.lineage import Actor
from agentwatch.sinks import frames
from agentwatch.sinks.escape import shown

SCRATCH = ("/tmp/", "/var/tmp/", "/dev/", "/proc/")
_NARROW = 100  # columns where nobody says how many there are
_SHOWN = 12  # lines of a list in the summary

# Of what was stopped: how it is called, and what is said of it.
_OUTCOMES = {
    "denied": ("DENIED", ""),
    "killed": ("KILL", ""),
    "too late": ("TOO LATE", ", it had ended by itself"),
    "failed": ("FAILED", ", not killed"),
}

_STOPS = ("kill", "deny")
_SUMMED = (("stopped", ("killed", "denied")), ("too late", ("too late",)), ("failed", ("failed",)))
_DIM, _RED, _YELLOW, _BOLD, _PLAIN = "2", "1;31", "33", "1", "0"


class Output(Protocol):
    """As much of a text file as is needed. Each call of write is one block, whole or not at all."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...

    def fileno(self) -> int: ...


class Live:
    """A sink that writes to a terminal or a file. own: whether a path is an agent's own state."""

    def __init__(self, out: Output, *, colour: bool, own: Callable[[str], bool]) -> None:
        self._out, self._colour, self._own = out, colour, own
        self._began = time.monotonic()
        self._first = 0  # ns of boottime: of the first event
        self._width = _columns(out)
        self._ran: Counter[str] = Counter()
        self._changed: dict[str, None] = {}
        self._reached: dict[str, None] = {}
        self._verdicts: list[frames.Verdict] = []
        self._kills: dict[ProcessKey, frames.Kill] = {}
        self._lost = 0

    # What happens.

    def event(self, event: Event, actor: Actor, verdict: Verdict) -> None:
        if isinstance(event, Exec) and event.result == 0:
            self._exec(event)
        elif isinstance(event, Open) and event.changes and event.result >= 0:
            self._change(event)
        elif isinstance(event, Change) and event.result >= 0 and not event.anonymous:
            for path in dict.fromkeys((event.path, event.new_path)):
                self._changed_at(event.time, event.op, path)
        elif isinstance(event, Mount) and event.result >= 0:
            self._line(event.time, "mount", shown(event.what))
        elif isinstance(event, Connect) and event.result != -errno.EPERM:  # refused: not reached
            self._connect(event)

    def _exec(self, event: Exec) -> None:
        program = event.script or event.path
        self._ran[program] += 1
        if self._ran[program] == 1:
            command = " ".join(event.argv)
            text = shown(command) or shown(program)
            self._line(event.time, "run", text, _BOLD, f"  {shown(program)}")

    def _change(self, event: Open) -> None:
        self._changed_at(event.time, "create" if event.created else "change", event.path)

    def _changed_at(self, at: int, how: str, path: str) -> None:
        if not path or path.startswith(SCRATCH) or self._own(path) or path in self._changed:
            return
        self._changed[path] = None
        self._line(at, how, shown(path))

    def _connect(self, event: Connect) -> None:
        where = _where(event)
        if where and where not in self._reached:
            self._reached[where] = None
            self._line(event.time, "connect", shown(where))

    # What is said about it.

    def frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Start):
            rules = "1 rule" if frame.rules == 1 else f"{frame.rules or 'no'} rules"
            self._out.write(self._head(f"{rules}, mode {frame.mode}"))
        elif isinstance(frame, frames.Verdict):
            self._verdict(frame)
        elif isinstance(frame, frames.Kill):
            self._kill(frame)
        elif isinstance(frame, frames.Gap):
            self._lost += frame.count
            self._line(frame.time, "LOST", f"{frame.count} records ({shown(frame.stage)})", _RED)
        elif isinstance(frame, frames.AgentAdded):
            text = f"{shown(frame.agent)}: {shown(frame.path)}"
            self._line(frame.time, "agent", text, _BOLD)
        elif isinstance(frame, frames.Notice):
            self._line(frame.time, "NOTICE", shown(frame.text), _RED)

    def _verdict(self, verdict: frames.Verdict) -> None:
        self._verdicts.append(verdict)
        text, colour = f"{verdict.kind} {shown(verdict.what)}", _YELLOW
        if verdict.response in _STOPS:
            word, after = _OUTCOMES.get(verdict.outcome, _OUTCOMES["failed"])
            text, colour = text + after, _RED
        elif verdict.outcome == "observed" and verdict.action in ("deny", "kill"):
            word = "OBSERVED"
        else:
            word = "ALERT"
        level = f"{verdict.level}{' (lossy)' if verdict.lossy else ''}"
        level += ", by the kernel" if verdict.by == "kernel" else ""
        more = [f"{shown(verdict.rule)} · {shown(level)} · {shown(verdict.severity)}"]
        more += [shown(verdict.because)] if verdict.because else []
        more += [f"instead: {shown(verdict.instead)}"] if verdict.instead else []
        self._block(self._row(verdict.time, word, text, colour), more)

    def _kill(self, kill: frames.Kill) -> None:
        self._kills[kill.process] = kill
        of = next((v for v in reversed(self._verdicts) if v.process == kill.process), None)
        at = of.time + kill.latency if of else 0
        if kill.outcome == "killed":
            took = f"{kill.latency / 1e6:.1f} ms after the call"
            self._line(at, "ended", f"process {kill.process.pid}, {took}")
        elif of is None or of.outcome == "killed":  # else the verdict has said so
            word, after = _OUTCOMES.get(kill.outcome, _OUTCOMES["failed"])
            what = f"{of.kind} {shown(of.what)}" if of else f"kill of process {kill.process.pid}"
            why = f": {shown(kill.reason)}" if word == "FAILED" and kill.reason else ""
            self._line(at, word, f"{what}{after}{why}", _RED)

    # The summary.

    def summary(
        self, code: int, journal: str, *, left: Sequence[str], unwritten: int, dropped: int = 0
    ) -> None:
        """What it ran, changed, reached, and what was stopped and why.

        left: what goes on, and how. unwritten: findings that are not in their file. dropped:
        lines that were to be shown here, and were not.
        """
        self._out.flush()
        text = "\n" + self._head(f"exit code {code}, {time.monotonic() - self._began:.1f} s")
        text += self._list("ran", [f"{shown(p)}  x{n}" for p, n in self._ran.most_common()])
        text += self._list("changed", [shown(path) for path in self._changed])
        text += self._list("reached", [shown(where) for where in self._reached])
        kills = [v for v in self._verdicts if v.response in _STOPS]
        for title, outcomes in _SUMMED:
            told = (self._stopped(v) for v in kills if self._outcome(v) in outcomes)
            text += self._list(title, list(dict.fromkeys(told)), _RED)
        alerts = Counter(v.rule for v in self._verdicts if v.response == "alert")
        text += self._list("alerts", [f"{shown(r)}  x{n}" for r, n in alerts.items()], _YELLOW)
        lost = [f"{self._lost} records lost: see the journal"] if self._lost else []
        text += self._list("lost", lost, _RED)
        missing = [f"{unwritten} not written: see the journal"] if unwritten else []
        text += self._list("findings", missing, _RED)
        unseen = [f"{dropped} lines, for which there was no room: see the journal"]
        text += self._list("unshown", unseen if dropped else [], _RED)
        text += self._list("left", [shown(text) for text in left], _YELLOW)
        self._out.write(f"{text}{'':10}journal  {shown(journal)}\n")
        self._out.flush()

    def _outcome(self, verdict: frames.Verdict) -> str:
        """What became of a kill: by how the process ended, where that is known."""
        if verdict.outcome == "denied":
            return verdict.outcome
        kill = self._kills.get(verdict.process)
        if kill is not None:
            return kill.outcome
        return "failed" if verdict.outcome == "killed" else verdict.outcome

    def _stopped(self, verdict: frames.Verdict) -> str:
        kill = self._kills.get(verdict.process)
        took = f", {kill.latency / 1e6:.1f} ms" if kill and kill.latency else ""
        took = "" if verdict.outcome == "denied" else took
        what = self._cut(f"{verdict.kind} {shown(verdict.what)}")
        why = f"{shown(verdict.rule)} ({shown(verdict.level)}{took}): {shown(verdict.because)}"
        return "\n".join([what, *(f"{'':12}{row}" for row in self._wrapped(why, 12))])

    def _list(self, title: str, lines: list[str], colour: str = _PLAIN) -> str:
        text = ""
        for index, line in enumerate(lines[:_SHOWN]):
            name = title if index == 0 else ""
            text += f"  {self._paint(f'{name:<8}', colour)}  {self._cut(line)}\n"
        if len(lines) > _SHOWN:
            text += f"            and {len(lines) - _SHOWN} more\n"
        return text

    # Lines.

    def _head(self, text: str) -> str:
        return self._paint(f"agentwatch: {text}", _BOLD) + "\n"

    def _row(self, at: int, word: str, text: str, colour: str, rest: str = "") -> str:
        """A line. at: ns of boottime when it happened; 0 for now."""
        now = at or time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._first = self._first or now
        when = f"{max(now - self._first, 0) / 1e9:7.2f}s"
        text = self._cut(text, 20)
        if rest and (not self._width or _width(text + rest) + 20 <= self._width):
            text += self._paint(rest, _DIM)
        return f"{self._paint(when, _DIM)}  {self._paint(f'{word:<8}', colour)}  {text}\n"

    def _line(self, at: int, word: str, text: str, colour: str = _PLAIN, rest: str = "") -> None:
        self._block(self._row(at, word, text, colour, rest), [])

    def _block(self, row: str, more: Sequence[str]) -> None:
        rows = [f"{'':20}{part}\n" for text in more for part in self._wrapped(text, 20)]
        self._out.write(row + "".join(rows))

    def _wrapped(self, text: str, taken: int) -> list[str]:
        """The text in rows that fit, parted between words."""
        room = max((self._width or 160) - taken, 9)
        rows = [""]
        for word in text.split(" "):
            longer = f"{rows[-1]} {word}" if rows[-1] else word
            if rows[-1] and _width(longer) > room:
                rows.append(word)
            else:
                rows[-1] = longer
        return [self._cut(row, taken) for row in rows]

    def _cut(self, text: str, taken: int = 12) -> str:
        room = max((self._width or 160) - taken, 9)
        if "\n" in text or _width(text) <= room:
            return text
        used = accumulate(map(_width, text))
        return text[: sum(1 for columns in used if columns < room)] + "…"

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour != _PLAIN else text


def _columns(out: Output) -> int:
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
    if event.unix or not event.addr or event.protocol == "tcp":
        return event.where
    return f"{event.where} {event.protocol}"
