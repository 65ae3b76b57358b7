"""The Debian package as it is built: twice the same, and without a complaint."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def built(repository: Path, version: str) -> Path:
    """A package of this tree."""
    build = [repository / "packaging" / "deb" / "build", version]
    said = subprocess.run(build, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return repository / said.stdout.strip()


def test_two_builds_are_the_same_and_lintian_has_nothing_to_say(repository: Path) -> None:
    """Byte for byte, at other times; no error and no warning."""
    first = built(repository, "0.0.0~test")
    try:
        before = hashlib.sha256(first.read_bytes()).hexdigest()
        time.sleep(1.1)  # whole seconds are what archives have
        assert hashlib.sha256(built(repository, "0.0.0~test").read_bytes()).hexdigest() == before
        lintian = ["lintian", "--allow-root", "--fail-on", "error,warning", first]
        said = subprocess.run(lintian, capture_output=True, text=True, timeout=300)
        assert (said.returncode, said.stdout) == (0, "")
        contents = ["dpkg-deb", "--contents", first]
        names = subprocess.run(contents, stdout=subprocess.PIPE, text=True, check=True).stdout
        for path in (
            "usr/bin/agentwatch",
            "usr/lib/agentwatch/agentwatch/data/agentwatch.bpf.o",
            "usr/share/agentwatch/rules/secrets.yaml",
            "lib/systemd/system/agentwatch.service",
            "usr/share/man/man8/agentwatch-daemon.8.gz",
            "usr/share/bash-completion/completions/agentwatch",
        ):
            assert f" ./{path}\n" in names
    finally:
        first.unlink()


def test_the_manual_pages_are_good_roff(repository: Path, tmp_path: Path) -> None:
    """groff warns of nothing, and each command has a page."""
    make = [repository / ".venv/bin/python", repository / "packaging" / "man", tmp_path, "0", "1"]
    subprocess.run(make, check=True, timeout=60)
    pages = sorted(tmp_path.iterdir())
    assert {"agentwatch.1", "agentwatch-daemon.8", "agentwatch-rules.1"} <= {p.name for p in pages}
    for page in pages:
        groff = ["groff", "-man", "-Tutf8", "-ww", "-z", page]
        said = subprocess.run(groff, capture_output=True, text=True, timeout=60)
        assert (said.returncode, said.stderr) == (0, ""), page
