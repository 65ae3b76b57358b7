"""What programs that mean harm get done where a rule denies it, with BPF LSM and without."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from agentwatch.kernel.probes import Probes
from bench.workplace import REPOSITORY, say
from tests.kernel.building import build
from tests.kernel.law import KILLED, Law, code_of, spawn
from tests.kernel.recording import tell

RUNS = 1000
FEW = 200
DELETERS = 10  # of one session: the breaker allows twenty kills in ten seconds
FILES = 2000
PAUSE = 5  # s, for the engine to have read of all that was made
AGENTWATCH = REPOSITORY / ".venv" / "bin" / "agentwatch"
DELETES = """\
import os, time
for run in range({deleters}):
    for number in range({files}):
        open(f"{place}/kept/{{number}}", "w").close()
    time.sleep({pause})
    pid = os.fork()
    if pid == 0:
        for number in range({files}):
            try:
                os.unlink(f"{place}/kept/{{number}}")
            except OSError:
                pass
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print(len(os.listdir("{place}/kept")), status & 127, flush=True)
"""
RULE = """\
schema: agentwatch/v1
rules:
  - id: kept
    title: What is kept is not deleted
    on: change
    match: {{path: "{place}/kept/*", op: delete}}
    action: deny
    severity: high
    because: It is what the measurement is about.
    tests: [{{hit: {{path: "{place}/kept/1", op: delete}}}}]
"""


def measure() -> None:
    """A line for each. Needs root."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as made:
        place = Path(made).resolve()
        place.chmod(0o755)
        programs = place / "programs"
        programs.mkdir()
        build(programs)
        probes = Probes()
        law = Law(probes, place)
        say(f"{len(probes.hooks)} hooks of BPF LSM")
        for act in (_thief, _races, _execs, _creates):
            say(f"  {act(law, programs)}")
            probes.withdraw()
        probes.close()
        say(f"  {_deletes(place)}")


def _told(law: Law, act: Callable[[], object]) -> tuple[object, ...]:
    return law.record(act).told


def _thief(law: Law, programs: Path) -> str:
    key = law.place / "key"
    key.write_text("secret")
    law.rule(("read", f'{{path: "{key}"}}', "deny"))

    def act() -> None:
        subprocess.run([programs / "thief", key, str(RUNS // 10)], check=True, stdout=1)

    stolen = 0
    for _ in range(10):  # a witness may not take long
        (seen,) = law.record(act).told
        stolen += seen["stolen"]
    return f"read by another thread: {stolen} of {RUNS} runs of a hostile reader had bytes"


def _races(law: Law, programs: Path) -> str:
    """Where a run is killed it tells nothing: it is many short ones."""
    for name, text in (("denied", "S"), ("allowed", "P"), ("name", "P")):
        (law.place / name).mkdir()
        (law.place / name / "file").write_text(text)
    (law.place / "link").symlink_to("allowed")
    law.rule(("read", f'{{path: "{law.place}/denied/**"}}', "deny"))
    races, won, killed = 0, 0, 0
    for _ in range(FEW // 10):
        told = _told(law, lambda: _race(law.place, programs))
        for seen in told:
            if isinstance(seen, dict):
                races, won = races + seen["races"], won + seen["won"]
            else:
                killed += 1
    return f"races: {races} opens by runs that ended, {killed} runs killed, {won} had the secret"


def _race(place: Path, programs: Path) -> None:
    for _ in range(10):
        done = subprocess.run([programs / "races", place, "20"], stdout=subprocess.PIPE)
        tell(json.loads(done.stdout) if done.stdout else done.returncode)


def _execs(law: Law, programs: Path) -> str:
    canary, made = programs / "canary", law.place / "made"
    law.rule(("exec", f'{{path: "{canary}"}}', "deny"))

    def act() -> None:
        for number in range(FEW // 10):
            tell(spawn(canary, f"{made}{number}"))

    codes = [code for _ in range(10) for code in _told(law, act)]
    ran = len(list(law.place.glob("made*")))
    return f"execs: {ran} of {len(codes)} ran an instruction; {_killed(codes)}"


def _creates(law: Law, programs: Path) -> str:
    law.rule(("change", f'{{path: "{law.place}/new*"}}', "deny"))

    def act() -> None:
        for number in range(FEW):
            pid = os.fork()
            if pid == 0:
                try:
                    os.open(law.place / f"new{number}", os.O_CREAT | os.O_WRONLY)
                except OSError:
                    os._exit(1)
                os._exit(0)
            tell(code_of(pid))

    codes = _told(law, act)
    left = len(list(law.place.glob("new*")))
    return f"creates: {left} of {len(codes)} left a name behind; {_killed(codes)}"


def _killed(codes: tuple[object, ...] | list[object]) -> str:
    return f"{codes.count(-KILLED)} killed"


def _deletes(place: Path) -> str:
    """By `agentwatch run`: without hooks it is the engine who kills for a deletion."""
    (place / "kept").mkdir()
    (place / "kept.yaml").write_text(RULE.format(place=place))
    script = DELETES.format(place=place, deleters=DELETERS, files=FILES, pause=PAUSE)
    done = subprocess.run(
        [AGENTWATCH, "run", f"--rules={place}/kept.yaml", f"--journal={place}/journal", "--",
         "/usr/bin/python3", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, timeout=500,
    )  # fmt: skip
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    gone = sorted(FILES - left for left, _ in rows)
    killed = sum(status == KILLED for _, status in rows)
    return (
        f"deletes: of {FILES} files in a loop {gone[len(gone) // 2]} were gone (median of "
        f"{len(rows)}; {gone[0]} to {gone[-1]}); {killed} killed"
    )
