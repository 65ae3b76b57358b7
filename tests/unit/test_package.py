"""What the Debian package says, against what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from agentwatch.sinks.families import FAMILIES

REPOSITORY = Path(__file__).resolve().parents[2]
DEB = REPOSITORY / "packaging" / "deb"
DEBIAN = {
    "click": "python3-click",
    "msgpack": "python3-msgpack",
    "prometheus-client": "python3-prometheus-client",
    "psutil": "python3-psutil",
    "ruamel.yaml": "python3-ruamel.yaml",
    "ruamel.yaml.clib": "python3-ruamel.yaml.clib",
}
UNUSED = {"pyroute2"}  # nothing imports it yet


def depends() -> dict[str, str]:
    """Of the package: name -> lowest version, the first one that is said."""
    (line,) = re.findall(r"^Depends: (.*)$", (DEB / "control").read_text(), re.M)
    found: dict[str, str] = {}
    for name, version in re.findall(r"([a-z0-9.+-]+)(?: \(>= ([^)]*)\))?", line):
        found.setdefault(name, version)
    return found


def test_the_package_and_the_wheel_need_the_same() -> None:
    """Each dependency, and its lowest version, is Debian's or brought along, pinned by its hash."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = dict(one.split(">=") for one in project["dependencies"])
    vendored = (DEB / "requirements.txt").read_text()
    for name, version in wanted.items():
        if name in DEBIAN:
            assert depends()[DEBIAN[name]] == version
        elif name not in UNUSED:
            assert re.search(rf"^{name}==\S+ --hash=sha256:[0-9a-f]{{64}}$", vendored, re.M)


def test_every_metric_in_an_alert_is_one_we_serve() -> None:
    """An alert on a name with a slip in it never fires."""
    text = (REPOSITORY / "packaging" / "prometheus" / "agentwatch.rules.yml").read_text()
    expressions = " ".join(re.findall(r"expr: (.*)", text))
    named = set(re.findall(r"agentwatch_[a-z_]+", expressions))
    served = {one.full_name for one in FAMILIES}
    assert named
    assert {name.removesuffix("_bucket") for name in named} <= served


def test_what_is_removed_and_purged_is_ours_alone() -> None:
    """A purge deletes three directories, each of our own name."""
    (line,) = re.findall(r"rm -rf (.*)", (DEB / "postrm").read_text())
    assert line.split() == ["/etc/agentwatch", "/var/log/agentwatch", "/run/agentwatch"]
