"""Processes as /proc shows them: what they say of themselves is read, and not believed too far."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentwatch import processes
from agentwatch.events import ProcessKey
from agentwatch.holdings import HELD_MAX, holdings
from agentwatch.processes import image_now, key_now, names_now


@contextmanager
def sleeping(*argv: str, **more: object) -> Iterator[ProcessKey]:
    process = subprocess.Popen(["sleep", *argv], **more)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 5
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep\0"):
            assert time.monotonic() < deadline
        key = key_now(process.pid)
        assert key is not None
        yield key
    finally:
        process.kill()
        process.wait()


def test_a_process_is_what_it_runs_where_and_as_whom() -> None:
    """Executable, argv, working directory, real user."""
    with sleeping("60", cwd="/usr") as key:
        image = image_now(key)
    assert image is not None
    assert image.exe.endswith("/sleep")
    assert (image.argv, image.cwd, image.uid) == (("sleep", "60"), "/usr", os.getuid())


def test_argv_of_any_length_is_read_to_a_limit() -> None:
    """A process can make it as long as its memory."""
    with sleeping(*["60"] * 20000) as key:
        image = image_now(key)
    assert image is not None
    assert len(image.argv) == processes.WORDS_MAX
    with sleeping("60", "1" + "0" * 100_000) as key:
        image = image_now(key)
    assert image is not None
    assert sum(map(len, image.argv)) <= processes.PROC_MAX


def test_a_program_of_an_interpreter_is_known_by_its_script_or_its_title(tmp_path: Path) -> None:
    """Programs in node call themselves by a bare name: it is looked for in their own PATH."""
    code = "import time; time.sleep(60)"
    script = tmp_path / "agent"
    script.write_text(code)
    environment = {**os.environ, "PATH": f"/first:{tmp_path}"}
    for argv, name in (
        ([str(script)], str(script)),
        (["-c", code], "/first/title"),
    ):
        python = ["/usr/bin/python3", *argv]
        process = subprocess.Popen(
            ["title", *argv] if name.endswith("title") else python,
            executable="/usr/bin/python3",
            env=environment,
        )
        try:
            time.sleep(0.2)
            key = key_now(process.pid)
            assert key is not None
            assert name in names_now(key)
        finally:
            process.kill()
            process.wait()


def test_who_is_gone_has_no_names_and_holds_nothing() -> None:
    """Nor an image."""
    gone = ProcessKey(2**22 + 1, 5)
    assert image_now(gone) is None
    assert names_now(gone) == ()
    assert holdings(gone).files == ()


def test_more_descriptors_than_are_listed_are_counted(tmp_path: Path) -> None:
    """A process may hold as many as it likes."""
    file = tmp_path / "file"
    file.write_text("")
    more = HELD_MAX + 100
    code = (
        "import os, resource, sys, time\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        f"kept = [os.open(sys.argv[1], os.O_RDONLY) for _ in range({more})]\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code, file], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        key = key_now(process.pid)
        assert key is not None
        held = holdings(key)
        process.kill()
    assert f"r {file}" in held.files
    assert any(text.endswith(" more") for text in held.files)
