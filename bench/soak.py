"""A daemon at work for a while, scraped by a real Prometheus: does anything of it grow?

In rounds: agents come, work and go, rules are reloaded, the journal is rotated and cut; then all
have ended, and what the daemon holds is looked at. Prometheus asks every second throughout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.daemon_place import PATIENCE, Daemon, Place, place
from bench.watched import free_port, kept
from bench.workplace import REPOSITORY, say

MINUTES = 20.0
WARM_UP = 0.2  # of that time: what it grows by until then is not counted
ROUND = 45.0  # s of work; then everybody ends
IDLE = 60.0  # s, before the work with nobody asking, and after it with Prometheus asking
MEMORY, CPU = 5.0, 0.5  # what it may grow by, MiB; and take when idle, % of one CPU
JOURNAL = {"segment_bytes": "1MiB", "keep_bytes": "8MiB"}  # both are met many times
WORK = (
    "find /usr/share/doc -name '*.gz' -exec cat {} + > /dev/null; find /etc -type f -exec cat {} +",
    "cat /nonexistent; for i in 1 2 3 4 5 6 7 8; do cat /etc/hostname; /bin/true; done; sleep 2",
    "(setsid sleep 3 &); exec sleep 1",
)
QUESTIONS = {
    "scrapes that were answered, %": 'avg_over_time(up{job="agentwatch"}[%s]) * 100',
    "slowest scrape, ms": "max_over_time(scrape_duration_seconds[%s]) * 1000",
    "events": "sum(increase(agentwatch_events_total[%s]))",
    "events lost": "sum(increase(agentwatch_events_lost_total[%s]))",
    "time series": "max_over_time(scrape_samples_scraped[%s])",
    "... at first": "min_over_time(scrape_samples_scraped[%s])",
}

RULE = """\
schema: agentwatch/v1
rules:
  - id: soak.{number}
    on: [read, change]
    match: {{path: "/nonexistent/{number}/**"}}
    action: deny
    because: It comes and goes.
    tests: [{{hit: {{path: /nonexistent/{number}/x}}}}]
"""


@dataclass(frozen=True, slots=True)
class Held:
    """By a daemon, while nobody is watched. memory: MiB besides the rings' mappings."""

    seconds: float
    memory: float
    descriptors: int
    maps: int
    programs: int
    pins: int


@contextmanager
def _prometheus(here: Place, port: int) -> Iterator[Callable[[str], float]]:
    """Debian's, asking a port every second; answers PromQL with one number, NaN for nothing."""
    unpack = REPOSITORY / "packaging" / "apt" / "unpack"
    found = subprocess.run([unpack, "prometheus"], stdout=subprocess.PIPE, text=True, check=True)
    config, own = here.top / "prometheus.yml", f"127.0.0.1:{free_port()}"
    jobs = [{"job_name": "agentwatch", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    running = subprocess.Popen(
        [
            Path(found.stdout.strip()) / "usr/bin/prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={here.top / 'prometheus'}",
            f"--web.listen-address={own}",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(query: str) -> float:
        where = f"http://{own}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(where, timeout=PATIENCE) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else float("nan")

    try:
        yield ask
    finally:
        running.terminate()
        running.wait(PATIENCE)


def _held(running: Daemon, begun: float) -> Held:
    pid, counts = running.process.pid, {"map_id": 0, "prog_id": 0, "link_id": 0}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            words = {line.partition(":")[0] for line in path.read_text().splitlines()}
        except OSError:  # it was there for a moment
            continue
        for word in counts:
            counts[word] += word in words
    memory = running.memory()
    pins = sum(len(files) for _, _, files in os.walk(running.pins))
    return Held(
        time.monotonic() - begun,
        memory.rss - memory.ring,
        running.descriptors(),
        counts["map_id"],
        counts["prog_id"],
        pins,
    )


def _idle(running: Daemon, seconds: float) -> float:
    """% of one CPU."""
    used, begun = running.cpu(), time.monotonic()
    time.sleep(seconds)
    return (running.cpu() - used) / (time.monotonic() - begun) * 100


def _work(here: Place, running: Daemon, rules: Path, number: int) -> int:
    """One round; how many agents there were."""
    begun, started = time.monotonic(), 0
    extra = rules / "soak.yaml"
    while time.monotonic() - begun < ROUND:
        here.agent(WORK[started % len(WORK)])
        started += 1
        if started % 15 == 0:  # every second reload has one more rule
            if extra.exists():
                extra.unlink()
            else:
                extra.write_text(RULE.format(number=number))
            running.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        here.reap()
    return started


def _until_over(here: Place, running: Daemon) -> None:
    """Everybody has ended, and the daemon has tidied."""
    here.quiet()
    limit = time.monotonic() + PATIENCE
    while running.sessions() and time.monotonic() < limit:
        time.sleep(0.2)
    time.sleep(5)


def measure(minutes: float = MINUTES) -> None:
    """For so long, and about two minutes of idling beside."""
    with place() as here:
        rules = here.rules(True)
        running = Daemon(here, rules, journal=JOURNAL)
        try:
            time.sleep(3)
            alone = _idle(running, IDLE)
            generation = running.status()["generation"]
            with _prometheus(here, running.port) as ask:
                levels, agents = [], 0
                begun = time.monotonic()
                while time.monotonic() - begun < minutes * 60:
                    agents += _work(here, running, rules, len(levels))
                    _until_over(here, running)
                    levels.append(_held(running, begun))
                asked = _idle(running, IDLE)
                window = f"{int(time.monotonic() - begun)}s"
                answers = {what: ask(query % window) for what, query in QUESTIONS.items()}
            reloads = running.status()["generation"] - generation
            last = running.metrics()
        finally:
            running.stop()
        journal, segments = kept(here.journal), len(list(here.journal.rglob("*.journal")))
    say(f"{agents} agents in {levels[-1].seconds / 60:.1f} minutes, {reloads} reloads")
    say(
        f"  journal    {segments} segments of {JOURNAL['segment_bytes']} kept; "
        f"{journal.lost} lost, {journal.problems} problems"
    )
    _compare(levels, minutes * 60 * WARM_UP)
    say(f"  idle       {alone:.2f} % of one CPU (under {CPU}); {asked:.2f} % while it is scraped")
    left = {name: int(last["map_entries", name]) for name in ("sessions", "mirror", "marks")}
    say(f"  left over  {left}")
    for what, answer in answers.items():
        say(f"  Prometheus {what}: {answer:,.1f}")


def _compare(levels: list[Held], warm: float) -> None:
    for one in levels:
        say(
            f"  {one.seconds / 60:5.1f} min  {one.memory:6.2f} MiB besides the rings', "
            f"{one.descriptors} descriptors, {one.maps} maps, {one.programs} programs, "
            f"{one.pins} pins"
        )
    settled = [one for one in levels if one.seconds >= warm] or levels
    grown = settled[-1].memory - settled[0].memory
    say(f"  memory     {grown:+.2f} MiB since the warm-up (under {MEMORY:g})")
    for name in ("descriptors", "maps", "programs", "pins"):
        values = [getattr(one, name) for one in settled]
        say(f"  {name:10} {min(values)} to {max(values)}")
