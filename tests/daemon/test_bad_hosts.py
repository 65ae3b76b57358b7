"""Hosts that lack something: what the daemon says, what to do about it, and what goes on."""

from __future__ import annotations

import grp
from pathlib import Path

import pytest

from tests.daemon.running import Place

pytestmark = pytest.mark.root

LIBBPF = next(Path("/usr/lib").rglob("libbpf.so.1")).resolve()


def within(*commands: str) -> tuple[str, ...]:
    """A prefix that runs commands in a mount namespace of the daemon's own first."""
    script = " && ".join((*commands, 'exec "$@"'))
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


def refused(place: Place, *prefix: str, code: int = 1) -> str:
    """What a daemon says that does not start."""
    daemon = place.start(*prefix, check=False)
    assert daemon.wait() == code, daemon.err
    assert "Traceback" not in daemon.err
    assert "try:" in daemon.err
    assert place.supervisor.told == []
    assert not place.socket.exists()
    return daemon.err


def test_without_libbpf_it_says_what_to_install(place: Place) -> None:
    """The library is the distribution's, and may be gone."""
    said = refused(place, *within(f"mount --bind /dev/null {LIBBPF}"))
    assert "libbpf" in said
    assert "apt install libbpf1" in said


def test_without_the_powers_it_names_them(place: Place) -> None:
    """As root in a container, or below a security module that refuses bpf()."""
    drop = "-bpf,-sys_admin,-perfmon"
    said = refused(place, "setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}")
    assert "capabilities: missing CAP_BPF, CAP_PERFMON" in said


def test_on_a_read_only_root_it_says_where_it_cannot_write(place: Place) -> None:
    """The disk was mounted read-only after an error, or the service's sandbox is narrower."""
    where = place.directory
    said = refused(
        place, *within(f"mount --bind {where} {where}", f"mount -o remount,ro,bind {where}")
    )
    assert "Read-only file system" in said
    assert "ReadWritePaths=" in said


def test_a_read_only_journal_alone_is_told_so(place: Place) -> None:
    """The socket can be made; the journal cannot."""
    place.journal.mkdir()
    where = place.journal
    said = refused(
        place, *within(f"mount --bind {where} {where}", f"mount -o remount,ro,bind {where}")
    )
    assert f"{place.journal}" in said
    assert "Read-only file system" in said
    assert "ReadWritePaths=" in said


def test_without_cgroup2_it_watches_and_says_what_it_cannot_do(place: Place) -> None:
    """Rules still kill; that connections cannot be refused is a problem in `status`."""
    place.write(cgroup=None)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
              if " - cgroup2 " in line]  # fmt: skip
    daemon = place.start(*within(*(f"umount -l {mount}" for mount in reversed(mounts))))
    problems = daemon.status["problems"]
    assert any("connections cannot be refused here" in one for one in problems)
    agent = place.agent(f"exec 3< {place['key']}; sleep 1000")
    assert agent.wait(60) < 0


def test_a_member_of_the_group_sees_everybodys_agents(place: Place) -> None:
    """And reads the journal; somebody else sees nothing of root's; neither changes anything."""
    place.write(group="games")
    daemon = place.start()
    agent = place.agent("sleep 1000")
    daemon.session(agent.pid)
    gid = grp.getgrnam("games").gr_gid
    seen = {}
    for name, groups in (("member", f"--groups={gid}"), ("nobody", "--clear-groups")):
        script = f"{place.agentwatch} agents list --socket {place.socket}; " \
            f"{place.agentwatch} agents kill {agent.pid} --socket {place.socket}; " \
            f"cat {place.journal}/daemon/*.journal > /dev/null && echo readable"  # fmt: skip
        line = ("setpriv", "--reuid=65534", "--regid=65534", groups, "sh", "-c", script)
        asking = place.process(*line, stderr=-2)
        seen[name] = asking.communicate(timeout=60)[0]
    assert f"{agent.pid}" in seen["member"]
    assert "readable" in seen["member"]
    assert "no agent" in seen["nobody"]
    assert "readable" not in seen["nobody"]
    for said in seen.values():
        assert "agents.kill is for root" in said
    assert agent.poll() is None


def test_metrics_may_be_a_file(place: Place) -> None:
    """With everything that a scrape has; it goes when the daemon does."""
    page = place["agentwatch.prom"]
    place.write(metrics=str(page))
    daemon = place.start()
    assert 'agentwatch_hook_attached{hook="sys_exit"} 1.0' in page.read_text()
    assert daemon.stop() == 0
    assert not page.exists()
