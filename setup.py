"""Puts rule packs and the probes' sources into the wheel; the rest is in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
OBJECT = HERE / "agentwatch" / "data" / "agentwatch.bpf.o"


class BuildWithData(build_py):
    """An installed agentwatch has the packs and the probes, compiled and not, beside its code."""

    def run(self) -> None:
        """Do as setuptools does, then add the packs. An editable install has rules/ itself."""
        super().run()
        if self.editable_mode:
            return
        if not OBJECT.exists():
            raise SystemExit(f"{OBJECT} is missing: build with `make wheel`")
        packs = Path(self.build_lib) / "agentwatch" / "data" / "rules"
        copytree(HERE / "rules", packs, dirs_exist_ok=True)
        copytree(HERE / "bpf", packs.parent / "bpf", dirs_exist_ok=True)  # for bcc


setup(cmdclass={"build_py": BuildWithData})
