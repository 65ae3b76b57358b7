"""What the daemon streams, as entries of a journal; for who follows, or may not read its journal.

Everything is held for a moment: a verdict and its event become one line, as when a journal is read.
"""

from __future__ import annotations

import heapq
import os
import select
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import click

from agentwatch.cli.asking import ask, many
from agentwatch.control.client import Client
from agentwatch.control.wire import Missed, Streamed
from agentwatch.errors import (
    AgentwatchError,
    JournalError,
    NotRunningError,
    PermissionDenied,
)
from agentwatch.sinks.entries import Entry
from agentwatch.sinks.escape import shown
from agentwatch.sinks.following import Following
from agentwatch.sinks.frames import EventRef, Verdict
from agentwatch.sinks.reader import Reader, read
from agentwatch.sinks.verify import Problem

WAITING = 0.2  # s that an entry waits for what belongs to it or before it
HELD_MAX = 8192  # entries
CHAIN = "daemon"


class Entries(Protocol):
    """Entries in order of time; problems: what was found wrong while they were read."""

    @property
    def problems(self) -> list[Problem]: ...

    def __iter__(self) -> Iterator[Entry]: ...


def available(directory: Path, socket: Path, since: int | None) -> Entries:
    """What there is to read for whoever asks: chains that are readable, else through the daemon.

    directory: where no daemon says that its journal is elsewhere. since: ns since the epoch, for
    the daemon. Raises what `read` raises where neither is there.
    """
    directory = journal_of(socket) or directory
    if os.geteuid() == 0 or os.access(directory / CHAIN, os.R_OK | os.X_OK):
        return read(directory)
    own: Reader | None = None
    refused: AgentwatchError | None = None
    try:
        own = read(directory)
    except AgentwatchError as error:
        refused = error
    try:
        return _Both(own, streamed(socket, since, follow=False))
    except (NotRunningError, PermissionDenied) as error:
        if own is not None:
            return own
        raise (refused if isinstance(error, NotRunningError) and refused else error) from None


def journal_of(socket: Path) -> Path | None:
    """Where a daemon that runs keeps its journal, with those of runs beside it; None without."""
    try:
        found = ask(socket, "status").get("journal", {}).get("directory", "")
    except AgentwatchError:
        return None
    return Path(found).parent if found else None


class _Both:
    """A person's own chains, and what the daemon says."""

    def __init__(self, own: Reader | None, asked: Iterator[Entry]) -> None:
        self._own, self._asked = own, asked

    @property
    def problems(self) -> list[Problem]:
        return self._own.problems if self._own is not None else []

    def __iter__(self) -> Iterator[Entry]:
        return heapq.merge(self._own or (), self._asked, key=lambda entry: entry.wall)


def streamed(socket: Path, since: int | None, *, follow: bool) -> Iterator[Entry]:
    """Asks the daemon at once. What it says of frames that were missed goes to stderr.

    Raises NotRunningError where there is no daemon; while iterating, when it ends a stream that is
    followed, or breaks off.
    """
    client = Client.connect(socket)
    client.stream("events", follow=follow, since=since, session=None)
    return _entries(client, follow)


def _entries(client: Client, follow: bool) -> Iterator[Entry]:
    following, window = Following(CHAIN), Window()
    poller = _poller(client)
    with client:
        while client.ended is None:
            try:
                frames = client.arrived()
            except NotRunningError:
                yield from window.release(time.monotonic(), all_of_it=True)
                raise
            for frame in frames:
                if isinstance(frame, Missed):
                    _say(f"missed {many(frame.count, 'frame')}, which came faster than read")
                elif isinstance(frame, Streamed):
                    window.add(_fed(following, frame), time.monotonic())
            yield from window.release(time.monotonic())
            if not frames and not _waits(poller, client, window.patience(time.monotonic())):
                return  # nobody reads any more, and no event need come to find out
    yield from window.release(time.monotonic(), all_of_it=True)
    if following.damaged:
        _say(f"left out {many(following.damaged, 'record')} that did not decode")
    if follow or client.ended:
        reason = f": {shown(client.ended)}" * bool(client.ended)
        raise NotRunningError(f"the daemon ended the stream{reason}", "agentwatch status")


def _poller(client: Client) -> select.poll:
    """Of the client and, where it is a pipe, of standard output: told when its reader has gone."""
    poller = select.poll()
    poller.register(client.fileno(), select.POLLIN)
    with suppress(OSError, ValueError):  # not a descriptor
        poller.register(sys.stdout.fileno(), 0)
    return poller


def _waits(poller: select.poll, client: Client, patience: float | None) -> bool:
    """Until there is a frame, or for so many seconds; False where nobody reads what is printed."""
    ready = poller.poll(None if patience is None else patience * 1000)
    return all(fd == client.fileno() for fd, _ in ready)


def _fed(following: Following, frame: Streamed) -> list[Entry]:
    try:
        return list(following.feed(frame.frame, frame.time, frame.payload))
    except JournalError as error:
        _say(shown(error.message))
        return []


def _say(text: str) -> None:
    click.echo(f"agentwatch: {text}", err=True)


@dataclass(slots=True)
class _Held:
    entry: Entry
    since: float


class Window:
    """The last entries of a stream, held until each is WAITING old or HELD_MAX came after it.

    A verdict arrives before its event, or after it where it waited to see the process end: here
    both meet, as they do where a journal is read. Times are s of the monotonic clock.
    """

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._events: dict[EventRef, _Held] = {}
        self._verdicts: dict[EventRef, list[_Held]] = {}

    def add(self, entries: Iterable[Entry], now: float) -> None:
        for entry in entries:
            held = _Held(entry, now)
            self._held.append(held)
            if entry.event is not None:
                ref = EventRef.of(entry.event)
                self._events[ref] = held
                for verdict in self._verdicts.pop(ref, ()):
                    _attach(held, verdict)
            elif isinstance(entry.frame, Verdict) and entry.frame.event.sequence:
                event = self._events.get(entry.frame.event)
                if event is not None:
                    _attach(event, held)
                else:
                    self._verdicts.setdefault(entry.frame.event, []).append(held)

    def patience(self, now: float) -> float | None:
        """Seconds until there is something to release; None where nothing is held."""
        return max(0.0, self._held[0].since + WAITING - now) if self._held else None

    def release(self, now: float, all_of_it: bool = False) -> list[Entry]:
        """Those that have waited long enough, in order of time."""
        found = []
        while self._held and (
            all_of_it or len(self._held) > HELD_MAX or now - self._held[0].since >= WAITING
        ):
            entry = self._held.popleft().entry
            found.append(entry)
            if entry.event is not None:
                self._events.pop(EventRef.of(entry.event), None)
            elif isinstance(entry.frame, Verdict):
                self._verdicts.pop(entry.frame.event, None)
        return sorted(found, key=lambda entry: entry.wall)


def _attach(event: _Held, verdict: _Held) -> None:
    assert isinstance(verdict.entry.frame, Verdict)
    verdicts = (*event.entry.verdicts, verdict.entry.frame)
    event.entry = replace(event.entry, verdicts=verdicts)
    verdict.entry = replace(verdict.entry, attached=True)
