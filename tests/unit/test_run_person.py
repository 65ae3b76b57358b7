"""Whom CMD runs as, what its project is, and the halves' protocol; no root and no kernel needed."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentwatch import run
from agentwatch.cli.run import Options, _address, _check_command
from agentwatch.command import Command, Person, exit_code, invoking_person
from agentwatch.errors import AgentwatchError, UsageError
from agentwatch.project import project_of
from agentwatch.run import ToldEnding

SELF = Person(os.getuid(), os.getgid(), "me", "/", "/bin/sh", False)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the person is worked out, this process is root's."""
    monkeypatch.setattr(os, "getuid", lambda: 0)


def test_without_root_it_is_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    """SUDO_UID says nothing to somebody who could have set it."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "getuid", lambda: nobody.pw_uid)
    person = invoking_person({"SUDO_UID": "0"})
    assert (person.uid, person.name, person.changes) == (nobody.pw_uid, "nobody", False)


@pytest.mark.usefixtures("root")
def test_under_sudo_it_is_whoever_typed_it() -> None:
    """With the ids, name, home and shell of passwd, not of the environment."""
    nobody = pwd.getpwnam("nobody")
    person = invoking_person({"SUDO_UID": str(nobody.pw_uid), "HOME": "/root", "USER": "root"})
    assert (person.uid, person.gid, person.name) == (nobody.pw_uid, nobody.pw_gid, "nobody")
    assert (person.home, person.shell, person.changes) == (nobody.pw_dir, nobody.pw_shell, True)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("environment", [{}, {"SUDO_UID": ""}, {"SUDO_UID": "0"}])
def test_plain_root_is_root(environment: dict[str, str]) -> None:
    """Nobody else asked."""
    person = invoking_person(environment)
    assert (person.uid, person.changes) == (0, False)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("uid", ["x", "-1", "1.5", "4242424", "9" * 30])
def test_a_uid_that_is_nobodys_is_refused(uid: str) -> None:
    """Never root instead."""
    with pytest.raises(UsageError, match="SUDO_UID is") as refused:
        invoking_person({"SUDO_UID": uid})
    assert refused.value.remedy


def test_somebody_without_an_entry_is_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: the number is the name."""
    monkeypatch.setattr(os, "getuid", lambda: 4242424)
    assert invoking_person({}).name == "4242424"


def test_the_project_is_the_git_top_above(tmp_path: Path) -> None:
    """A worktree's .git is a file; without one it is the directory itself."""
    (tmp_path / "p" / "src" / "deep").mkdir(parents=True)
    deep = tmp_path / "p" / "src" / "deep"
    assert project_of(deep, "/home/x") == str(deep)
    (tmp_path / "p" / ".git").write_text("gitdir: elsewhere\n")
    assert project_of(deep, "/home/x") == str(tmp_path / "p")


@pytest.mark.parametrize("place", ["/", "/tmp", "/var/tmp", pwd.getpwuid(0).pw_dir])
def test_a_place_that_everything_is_in_is_no_project(place: str) -> None:
    """Nor is the home given, wherever that is."""
    assert project_of(Path(place), "/nonexistent") is None


def test_a_home_with_git_in_it_is_no_project(tmp_path: Path) -> None:
    """Dotfiles under version control do not open the whole home."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "work").mkdir()
    assert project_of(tmp_path / "work", str(tmp_path)) is None


def test_a_command_waits_at_its_gate_and_ends_unrun_when_abandoned(tmp_path: Path) -> None:
    """Nothing of it is executed before the gate opens."""
    command = Command(["touch", str(tmp_path / "ran")], SELF)
    assert not command.ended()
    command.abandon()
    assert command.status == signal.SIGKILL
    assert not (tmp_path / "ran").exists()
    opened = Command(["touch", str(tmp_path / "ran")], SELF)
    opened.open()
    assert opened.ended(block=True)
    assert exit_code(opened.status or 0) == 0
    assert (tmp_path / "ran").exists()


def test_an_abandoned_command_takes_what_it_started_along(tmp_path: Path) -> None:
    """It would go on unwatched."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    command = Command(["sh", "-c", f"sleep 60 & echo $! > {fifo}; wait"], SELF)
    command.open()
    child = int(fifo.read_text())
    command.abandon()
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(child)], stdout=subprocess.PIPE, text=True
    )
    assert state.stdout.strip()[:1] in ("", "Z")


def test_a_signal_to_what_has_ended_is_no_error() -> None:
    """And reaches nobody who has the pid by then."""
    command = Command(["true"], SELF)
    command.open()
    assert command.ended(block=True)
    command.signal(signal.SIGTERM)


def test_an_interrupt_at_the_gate_ends_the_child_quietly() -> None:
    """No handler of the parent's runs there: no traceback, no second clean-up."""
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "import os, signal; from agentwatch.command import Command, Person\n"
    code += "c = Command(['true'], Person(os.getuid(), os.getgid(), 'me', '/', '/bin/sh', False))\n"
    code += "os.kill(c.pid, signal.SIGINT); c.ended(block=True); print(c.status)"
    here = str(Path(run.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, here], capture_output=True, text=True, timeout=20
    )
    assert (done.stdout, done.stderr) == (f"{int(signal.SIGINT)}\n", "")


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7 << 8, 7), (9, 137), (15, 143), (139, 139)])
def test_a_wait_status_is_shown_as_a_shell_shows_it(status: int, code: int) -> None:
    """128 and the signal's number, core dumped or not."""
    assert exit_code(status) == code


@pytest.mark.parametrize(
    ("told", "code", "untold"),
    [
        (b"ended 7\n", 7, False),
        (b"ended 0\n", 0, False),
        (b"ended 0\nended 7\n", 7, False),
        (b"", 1, True),
        (b"ended\n", 1, True),
        (b"ended x\n", 1, True),
        (b"what 7\n", 1, True),
    ],
)
def test_the_watching_half_is_told_how_it_ended(told: bytes, code: int, untold: bool) -> None:
    """A pipe that closes without a word means that the other half is gone."""
    read, write = os.pipe()
    child = subprocess.Popen(["sleep", "60"])
    with open(read, "rb") as pipe:
        ending = ToldEnding(pipe, child.pid)
        assert not ending.ended()
        child.kill()
        child.wait()
        os.write(write, told)
        os.close(write)
        assert ending.ended()
        assert (ending.code, ending.untold) == (code, untold)


def test_an_end_that_is_only_told_is_not_believed() -> None:
    """CMD can write to that pipe itself; what it says counts once the kernel says it has ended."""
    read, write = os.pipe()
    with subprocess.Popen(["sleep", "60"]) as child, open(read, "rb") as pipe:
        ending = ToldEnding(pipe, child.pid)
        os.write(write, b"ended 0\n")
        assert not ending.ended()
        assert not ending.ended()
        child.kill()
        child.wait()
        os.write(write, b"ended 137\n")
        assert ending.ended()
        assert (ending.code, ending.untold) == (137, False)
        os.close(write)


def test_a_half_that_is_gone_while_the_command_runs_is_told() -> None:
    """Whatever was said before."""
    read, write = os.pipe()
    with subprocess.Popen(["sleep", "60"]) as child, open(read, "rb") as pipe:
        ending = ToldEnding(pipe, child.pid)
        os.write(write, b"ended 0\n")
        os.close(write)
        ending.ended()
        assert ending.ended()
        assert ending.untold
        child.kill()


def test_a_command_that_died_at_its_gate_can_still_be_let_go() -> None:
    """No error: that it has ended is seen afterwards."""
    command = Command(["true"], SELF)
    os.kill(command.pid, signal.SIGKILL)
    assert command.ended(block=True)
    command.open()
    assert command.status == signal.SIGKILL


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9477", ("127.0.0.1", 9477)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    """Without a host it is this one."""
    assert _address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9477", "host", "host:", "host:x", "host:-1", "h:65536", "h:\u00b2"]
)
def test_anything_else_is_no_address(text: str) -> None:
    """With an example of one."""
    with pytest.raises(UsageError, match="not HOST:PORT") as refused:
        _address(text)
    assert "127.0.0.1:9477" in refused.value.remedy


def test_commands_are_refused_with_a_shells_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """127 for none, 126 for one that is no program; both say what to do."""
    (tmp_path / "plain").write_text("words")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, code in (
        ("none", 127), ("", 127), (f"{tmp_path}/none", 127),
        ("plain", 126), (f"{tmp_path}/plain", 126), (str(tmp_path), 126),
    ):  # fmt: skip
        with pytest.raises(AgentwatchError) as refused:
            _check_command(name)
        assert refused.value.exit_code == code, name
        assert refused.value.remedy
    (tmp_path / "plain").chmod(0o755)
    _check_command("plain")


def test_the_other_half_gets_the_same_options() -> None:
    """CMD stands behind `--` and cannot be taken for options."""
    command = ("cmd", "--agent=b")
    options = Options("a", ("/r1", "/r2"), "/p", "observe", "/j", "", "h:1", "bcc", command)
    expected = ["--agent=a", "--project=/p", "--mode=observe", "--journal=/j", "--metrics=h:1"]
    expected += ["--loader=bcc", "--rules=/r1", "--rules=/r2", "--", "cmd", "--agent=b"]
    assert options.arguments() == expected
