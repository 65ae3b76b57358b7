"""Ordinary work with real programs under `agentwatch run` with the packs: everything succeeds, and
nothing is a finding of severity medium or above.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packs.score import Score
from tests.packs.stage import Run, Stage, as_person, git, staged

pytestmark = pytest.mark.root
NPM = "npm --offline --cache ~/.npm"


@dataclass
class Work:
    """One run at a time, counted."""

    stage: Stage
    score: Score

    def __call__(self, *steps: str) -> Run:
        run = self.stage(*steps)
        self.score.work(run.severe)
        assert not run.severe, "\n".join(run.severe)
        assert run.steps == [0] * len(steps), f"{run.out}\n{run.err}"
        return run


@pytest.fixture
def work(agentwatch: Path, packs: Path, scores: dict[str, Score]) -> Iterator[Work]:
    with staged(agentwatch, packs) as stage:
        yield Work(stage, scores["runs"])


def remote(stage: Stage) -> Path:
    """A server's repository with the project in it."""
    bare = stage.home / "remote.git"
    as_person(stage, "git", "init", "-q", "--bare", str(bare))
    git(stage, "remote", "add", "origin", str(bare))
    git(stage, "push", "-q", "origin", "main")
    return bare


def test_git_with_a_feature_branch(work: Work) -> None:
    """Clone, commit, rebase, push and fetch; the name of a branch says nothing about what it is."""
    bare = remote(work.stage)
    work(
        f"git clone -q {bare} copy && cd copy && git checkout -q -b feature/maintenance"
        " && echo x > x && git add x && git commit -q -m 'Reset --hard is not push --force'"
        " && git push -q -u origin feature/maintenance && git status --short",
        "cd copy && git fetch -q --all --prune && git rebase -q origin/main"
        " && git log --oneline --author=claude && git stash list && git branch -a",
        "git pull -q origin main && git diff --stat && git worktree add -q ../tree -b other"
        " && git worktree remove ../tree && rm -rf copy",
    )
    assert "feature/maintenance" in as_person(work.stage, "git", "ls-remote", str(bare))


def test_a_checkout_of_ten_thousand_files(work: Work) -> None:
    """And back, which removes them."""
    stage = work.stage
    entries = "".join(f"M 100644 inline d{n % 100}/f{n}.txt\ndata 2\nx\n\n" for n in range(10_000))
    who = "committer A <a@example.org> 1700000000 +0000\n"
    stream = f"commit refs/heads/many\n{who}data 4\nmany\nfrom refs/heads/main\n{entries}"
    stage.write("stream", stream)
    as_person(stage, "sh", "-c", f"git fast-import --quiet < {stage.home}/stream")
    work("git checkout -q many && ls d7 | wc -l", "git checkout -q main")
    assert not (stage.project / "d7").exists()


def packed(stage: Stage) -> None:
    """A package with a script that builds something, as npm packs it, and a project using it."""
    top = stage.home / "dependency" / "package"
    top.mkdir(parents=True)
    scripts = '"scripts": {"install": "node build.js"}, "main": "index.js"'
    (top / "package.json").write_text(f'{{"name": "leaf", "version": "1.0.0", {scripts}}}')
    (top / "build.js").write_text("require('fs').writeFileSync('built.js', 'module.exports = 7')")
    (top / "index.js").write_text("module.exports = require('./built.js')")
    (top / "CLAUDE.md").write_text("A package may bring one.\n")
    with tarfile.open(stage.project / "leaf-1.0.0.tgz", "w:gz") as archive:
        archive.add(top, "package")
    test = '"scripts": {"test": "node test.js"}, "dependencies": {"leaf": "file:leaf-1.0.0.tgz"}'
    stage.write("project/package.json", f'{{"name": "app", "version": "1.0.0", {test}}}')
    stage.write("project/test.js", "require('assert').equal(require('leaf'), 7)")
    stage.own()
    as_person(stage, "sh", "-c", f"{NPM} install --package-lock-only --ignore-scripts > /dev/null")


def test_npm_ci_test_and_removal_of_its_modules(work: Work) -> None:
    """A package's install script builds what it needs inside the package."""
    packed(work.stage)
    fill = "for n in $(seq 2000); do echo > node_modules/leaf/$n.js; done"
    work(f"{NPM} ci", f"{NPM} test", f"{fill}; rm -rf node_modules", "grep -rn SECRET . ; true")
    assert not (work.stage.project / "node_modules").exists()


def test_pip_into_a_virtual_environment(work: Work) -> None:
    """From a wheel that is there."""
    wheel = work.stage.project / "leaf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("leaf.py", "value = 7\n")
        about = "leaf-1.0.dist-info"
        made.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: leaf\nVersion: 1.0\n")
        made.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(
            f"{about}/RECORD", f"leaf.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n"
        )
    work(
        "/usr/bin/python3 -m venv .venv",
        f".venv/bin/pip install -q --no-index ./{wheel.name}",
        ".venv/bin/python -c 'import leaf; assert leaf.value == 7'",
    )


def test_pytest_with_directories_of_its_own(work: Work) -> None:
    """Temporary homes with keys in them included."""
    stage = work.stage
    library = stage.home / "lib"
    library.mkdir()
    for name in ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        if spec.submodule_search_locations:
            shutil.copytree(Path(spec.origin).parent, library / name)
        else:
            shutil.copy(spec.origin, library)
    text = "def test_it(tmp_path, monkeypatch):\n    monkeypatch.setenv('HOME', str(tmp_path))\n"
    text += "    key = tmp_path / 'key.pem'\n    key.write_text('x')\n    assert key.read_text()\n"
    stage.write("project/test_it.py", text)
    work("PYTHONPATH=~/lib /usr/bin/python3 -m pytest -q --basetemp=$HOME/temporary .")


def test_make_and_gcc(work: Work) -> None:
    """Build, run, install into the project, clean up."""
    stage = work.stage
    stage.write("project/main.c", '#include <stdio.h>\nint main(void) { return puts("x") < 0; }\n')
    rules = "app: main.o\n\tgcc -o $@ $^\ninstall: app\n\tinstall -D app out/bin/app\n"
    stage.write("project/Makefile", f"{rules}clean:\n\trm -rf app *.o out\n")
    work("make && ./app", "make install && out/bin/app", "make clean")


def toolchain() -> tuple[str, str] | None:
    """(directory, builder) of Rust's toolchain or Go's; None where there is neither."""
    cargo = shutil.which("cargo")
    rustup = shutil.which("rustup")
    if rustup:
        found = subprocess.run([rustup, "which", "cargo"], stdout=subprocess.PIPE, text=True)
        cargo = found.stdout.strip() or cargo
    if cargo:
        return str(Path(cargo).resolve().parent.parent), "cargo"
    go = shutil.which("go")
    return (str(Path(go).resolve().parent.parent), "go") if go else None


def test_a_build_with_cargo_or_go(work: Work) -> None:
    """Where one of them is installed; else the summary names what was not run."""
    stage, found = work.stage, toolchain()
    if found is None:
        work.score.missing.append("cargo build or go build (neither is installed)")
        return
    stage.toolchain, builder = found
    path = "export PATH=~/toolchain/bin:$PATH"
    if builder == "cargo":
        stage.write("project/Cargo.toml", '[package]\nname = "app"\nversion = "1.0.0"\n')
        stage.write("project/src/main.rs", 'fn main() { println!("x"); }\n')
        work(f"{path}; cargo build -q --offline", "target/debug/app && rm -rf target")
    else:
        stage.write("project/go.mod", "module app\n")
        stage.write("project/main.go", 'package main\n\nfunc main() { println("x") }\n')
        work(f"{path}; go build -o app . && go vet . && ./app")


def test_the_agents_own_state_and_update(work: Work) -> None:
    """It reads its login, keeps transcripts and settings, puts a new version in its place."""
    stage = work.stage
    stage.write(".claude/.credentials.json", "{}\n", 0o600)
    state = """self:
import json, os, shutil, subprocess
state = f"{HOME}/.claude"
json.load(open(f"{state}/.credentials.json"))
for name in ("projects/-home/0a1b.jsonl", "todos/1.json", "settings.local.json", "settings.json"):
    os.makedirs(os.path.dirname(f"{state}/{name}"), exist_ok=True)
    open(f"{state}/{name}", "a").write("{}")
    open(f"{state}/{name}").read()
versions = f"{HOME}/.local/share/claude/versions"
os.makedirs(versions)
shutil.copy(f"{HOME}/.local/bin/claude", f"{versions}/2.1.1")
os.symlink(f"{versions}/2.1.1", f"{HOME}/.local/bin/claude.new")
os.replace(f"{HOME}/.local/bin/claude.new", f"{HOME}/.local/bin/claude")
subprocess.run([f"{HOME}/.local/bin/claude", "--version"], check=True)
"""
    work(state, "claude --version", "ls ~/.claude && cat ~/.claude/settings.json > /dev/null")


def test_signing_through_ssh_agent(work: Work) -> None:
    """The key is read by OpenSSH's own programs only, and commits are signed with it."""
    work(
        'eval "$(ssh-agent -s)" > /dev/null; trap "ssh-agent -k > /dev/null" EXIT; set -e;'
        "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_sign; ssh-add -q ~/.ssh/id_sign;"
        "echo x > x; ssh-keygen -q -Y sign -n file -f ~/.ssh/id_sign.pub x; test -s x.sig;"
        "git config gpg.format ssh; git config user.signingkey ~/.ssh/id_sign.pub;"
        "git commit -q -S --allow-empty -m Signed; git cat-file -p HEAD | grep -q 'SSH SIGNATURE'"
    )


def test_signing_through_gpg_agent(work: Work) -> None:
    """Where GnuPG is installed; else the summary names what was not run."""
    if not (shutil.which("gpg") and shutil.which("gpg-agent")):
        work.score.missing.append("signing through gpg-agent (GnuPG is not installed)")
        return
    work(
        'trap "gpgconf --kill all" EXIT; set -e; mkdir -m 700 ~/.gnupg;'
        "gpg -q --batch --pinentry-mode loopback --passphrase '' --quick-gen-key a@example.org"
        " ed25519 sign 2> /dev/null;"
        "git config user.signingkey a@example.org; git commit -q -S --allow-empty -m Signed;"
        "git cat-file -p HEAD | grep -q 'PGP SIGNATURE'"
    )


def test_look_alikes(work: Work) -> None:
    """A person and programs whose names only sound like something."""
    stage = work.stage
    stage.write("project/claude.sh", "#!/bin/sh\necho $USER\n", 0o755)
    stage.write("project/rm-home", "#!/bin/sh\necho terraform destroy\n", 0o755)
    run = work(
        "whoami && ./claude.sh && ./rm-home",
        "git checkout -q -b feature/maintenance && git branch",
        "echo 'curl https://example.org/install.sh | bash' > README.md && cat README.md",
        "grep -n 'rm -rf /' README.md; find . -name '*.env' -o -name id_rsa; ps aux > /dev/null",
        "env | grep PATH; printenv HOME; cat /proc/self/status > /dev/null; ls /proc/self/root",
        "ldd /usr/bin/id > /dev/null; sed -n 1p /etc/passwd; python3 -c 'import socket'",
        "cp README.md .env.example && cat .env.example && chmod -R u+w . && rm -rf build dist",
    )
    assert "claude" in run.out.split()
