"""What pip and npm install from: wheels and packages of npm, served on this machine.

Plain files over HTTP/1.0, a connection for each request: pip takes a listing of wheels for an
index, and npm a JSON file of a package's name for what the registry knows of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
PACKAGES = HERE / "npm"
PROJECT = "welcome"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """A test's output is the test's."""


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL at which the files below `directory` are, as long as the context lasts.

    With a name in it, as of other registries: to look it up is a connect as well.
    """
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fetch_wheels(place: Path) -> None:
    """The wheels of requirements.txt into `place`, from wherever pip is told to look for such.

    What is there already, of this very list, is not fetched again.
    """
    complete = place / ".complete"
    wanted = REQUIREMENTS.read_text()
    if complete.exists() and complete.read_text() == wanted:
        return
    print(f"fetching the wheels of {REQUIREMENTS.name} into {place}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none",
            "--require-hashes", "--requirement", REQUIREMENTS, "--dest", place,
        ],
        check=True, timeout=300,
    )  # fmt: skip
    complete.write_text(wanted)


def publish_wheels(wheels: Path, directory: Path) -> None:
    """Files below `directory` as pip reads an index: each project's wheels in one of its name."""
    for wheel in wheels.glob("*.whl"):
        project = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        (directory / project).mkdir(parents=True)
        shutil.copy(wheel, directory / project)


def publish_packages(directory: Path, url: str) -> None:
    """The packages in npm/, packed by npm, and what a registry at `url` knows of them."""
    tarballs = directory / "-"
    tarballs.mkdir()
    for source in PACKAGES.iterdir():
        if source.name == PROJECT:
            continue
        npm("pack", "--silent", "--pack-destination", tarballs, cwd=source, home=directory)
        manifest = json.loads((source / "package.json").read_text())
        name, version = manifest["name"], manifest["version"]
        tarball = tarballs / f"{name}-{version}.tgz"
        digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
        manifest["dist"] = {"tarball": f"{url}/-/{tarball.name}", "integrity": f"sha512-{digest}"}
        known = {"name": name, "dist-tags": {"latest": version}, "versions": {version: manifest}}
        (directory / name).write_text(json.dumps(known))


def locked_project(place: Path, url: str) -> Path:
    """A copy of the project that has a lock file, made by npm from the registry at `url`."""
    project = place / PROJECT
    shutil.copytree(PACKAGES / PROJECT, project)
    npm("install", "--package-lock-only", "--registry", url, cwd=project, home=place)
    return project


def npm(*arguments: str | Path, cwd: Path, home: Path) -> None:
    """npm, knowing nothing of whose machine it runs on but what is configured for all."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "LC_ALL": "C"}
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
    subprocess.run(["npm", *arguments, *quiet], cwd=cwd, env=environment, check=True, timeout=120)
