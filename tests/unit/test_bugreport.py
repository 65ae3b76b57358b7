"""What goes into a bug report, and what must not."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentwatch.cli.bugreport import bugreport
from agentwatch.cli.completion import SHELLS, completion
from agentwatch.errors import UsageError

TOKEN = "ghp_0123456789abcdefghijABCDEFGHIJ012345"


def test_it_has_its_parts_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is there, whatever fails; nothing of the environment is."""
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    path = tmp_path / "report.tar.gz"
    arguments = ["--to", str(path), "--socket", str(tmp_path / "nobody")]
    result = CliRunner().invoke(bugreport, arguments, catch_exceptions=False)
    assert result.output.strip() == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as archive:
        parts = {Path(one.name).name: archive.extractfile(one).read() for one in archive}
    assert {"versions.txt", "doctor.json", "status.json", "kernel.txt", "log.txt"} <= parts.keys()
    assert b"agentwatch " in parts["versions.txt"]
    assert b'"libbpf"' in parts["doctor.json"]
    assert b"not to be had: no daemon" in parts["status.json"]
    assert not any(TOKEN.encode() in text for text in parts.values())


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """Nor is a link followed: root may be who collects it."""
    path = tmp_path / "report.tar.gz"
    path.write_text("mine")
    with pytest.raises(UsageError, match="File exists"):
        CliRunner().invoke(bugreport, ["--to", str(path)], catch_exceptions=False)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_completion(shell: str) -> None:
    """What is printed names the variable that has click answer."""
    result = CliRunner().invoke(completion, [shell], catch_exceptions=False)
    assert "_AGENTWATCH_COMPLETE" in result.output or "_COMPLETE" in result.output
