"""Many who follow what happens, one of whom does not read: does the loop wait for anybody?"""

from __future__ import annotations

import multiprocessing
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from agentwatch.control.client import Client
from agentwatch.control.wire import Missed, Streamed
from agentwatch.errors import NotRunningError
from bench.daemon_place import daemon, place, turns
from bench.watched import kept
from bench.workplace import Workplace, say

SUBSCRIBERS = 50
RATE = 20_000  # events a second
SECONDS = 30
ASK = 0.005  # s between two questions
TARGET = 50  # ms


@dataclass(slots=True)
class Taken:
    """What a subscriber was sent. missed: frames, as it was told."""

    frames: int = 0
    bytes: int = 0
    missed: int = 0

    def take(self, client: Client) -> None:
        for one in client.arrived():
            if isinstance(one, Streamed):
                self.frames += 1
                self.bytes += len(one.payload)
            elif isinstance(one, Missed):
                self.missed += one.count


def measure(work: Workplace, seconds: int = SECONDS, subscribers: int = SUBSCRIBERS) -> None:
    """RATE opens a second by an agent, judged by the shipped packs, for so long."""
    with place() as here:
        with daemon(here, here.rules(True)) as running:
            over = multiprocessing.Event()
            slow = Client.connect(here.socket)
            slow.stream("events", follow=True)
            readers = _Aside(_read, here.socket, over, subscribers - 1)
            asker = _Aside(_ask, here.socket, over)
            time.sleep(1)
            before, used, begun = running.metrics(), running.cpu(), time.monotonic()
            here.agent(f"{work.program('pace')} {RATE} {seconds} {work.tree}").wait()
            took = time.monotonic() - begun
            used = (running.cpu() - used) / took
            time.sleep(1)
            after = running.metrics()
            over.set()
            answers, readings = asker.result(), readers.result()
            told = _all_of(slow)
        journal = kept(here.journal)
    found = _since(before, after)
    rate = found["events_total", "open"] / took
    say(f"{subscribers} follow, one of them does not read; {rate:,.0f} opens a second")
    say(f"  status    {_spread(answers)} (under {TARGET})")
    say(f"            of {len(answers):,} answers, one asked for each {ASK * 1e3:g} ms")
    say(f"  loop      {turns(found)}")
    sent = sum(one.bytes for one in readings) / took / 1e6
    say(f"  agentwatch {used * 100:.0f} % of one CPU, {sent:.0f} MB/s sent")
    say(f"  loss      {journal.lost} told, {journal.holes} holes, {journal.problems} problems")
    missed = sum(one.missed for one in readings)
    say(f"  readers   {readings[0].frames:,} frames each; {missed:,} missed by all of them")
    dropped = int(found["control_dropped_frames_total", ""])
    say(f"  the slow  {told.frames:,} frames, then that it missed {told.missed:,}")
    say(f"            {dropped:,} dropped, as the daemon counts")


def _since(
    before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    return {name: number - before.get(name, 0) for name, number in after.items()}


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    found = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 0.999, 1)]
    half, most, nearly, worst = (f"{one * 1e3:.1f}" for one in found)
    return f"ms: median {half}, 99 % {most}, 99.9 % {nearly}, slowest {worst}"


class _Aside:
    """A function that runs in a process of its own, until `over` is set."""

    def __init__(self, work: Callable[..., Any], socket: Path, over: Event, *more: Any) -> None:
        self._mine, theirs = multiprocessing.Pipe(False)
        arguments = (work, theirs, socket, over, *more)
        self._process = multiprocessing.Process(target=_run, args=arguments)
        self._process.start()
        theirs.close()

    def result(self) -> Any:
        found = self._mine.recv()
        self._process.join()
        return found


def _run(work: Callable[..., Any], pipe: Any, socket: Path, over: Event, *more: Any) -> None:
    pipe.send(work(socket, over, *more))


def _read(socket: Path, over: Event, count: int) -> list[Taken]:
    clients = {}
    poller = select.epoll()
    for _ in range(count):
        client = Client.connect(socket)
        client.stream("events", follow=True)
        clients[client.fileno()] = (client, Taken())
        poller.register(client.fileno(), select.EPOLLIN)
    while not over.is_set():
        for fd, _ in poller.poll(0.2):
            client, taken = clients[fd]
            taken.take(client)
    return [taken for _, taken in clients.values()]


def _ask(socket: Path, over: Event) -> list[float]:
    """How long each answer took."""
    took = []
    with Client.connect(socket) as client:
        while not over.is_set():
            begun = time.monotonic()
            client.request("status")
            took.append(time.monotonic() - begun)
            time.sleep(max(0.0, begun + ASK - time.monotonic()))
    return took


def _all_of(client: Client) -> Taken:
    """What waited for somebody who did not read, until nothing more comes."""
    taken = Taken()
    poller = select.poll()
    poller.register(client.fileno(), select.POLLIN)
    try:
        while poller.poll(500):
            taken.take(client)
    except NotRunningError:
        pass
    client.close()
    return taken
