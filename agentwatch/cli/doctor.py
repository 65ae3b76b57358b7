"""`agentwatch doctor`: what this host lacks, one line a problem, with its remedy."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import closing

import click

from agentwatch.errors import AgentwatchError
from agentwatch.kernel import loading as loaders
from agentwatch.kernel import preflight
from agentwatch.kernel.preflight import Check
from agentwatch.kernel.probes import HOOKS, Probes
from agentwatch.policy.levels import BCC


@click.command()
@click.option("--programs", is_flag=True, help="Also load and attach every probe (root).")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def doctor(programs: bool, output: str) -> None:
    """Check kernel, privileges and libraries; exit 1 when something needed is missing."""
    found = preflight.checks()
    if programs:
        found += _programs()
    if output == "json":
        click.echo(json.dumps([dataclasses.asdict(check) for check in found], indent=2))
    else:
        for check in found:
            _show(check)
    sys.exit(1 if any(check.needed and not check.ok for check in found) else 0)


def _show(check: Check) -> None:
    word = "ok" if check.ok else "MISSING" if check.needed else "without"
    click.echo(f"{word:<8} {check.name:<14} {check.says}")
    if not check.ok and check.remedy:
        click.echo(f"{'':<8} {'':<14} try: {check.remedy}")


_NEWER = "boot a kernel that has BTF and bpf_loop, as 5.17 and newer have"
_BOOT = "boot a kernel with CONFIG_BPF_LSM=y and bpf in its lsm= list, see `lsm list`"
_FEWER = "agentwatch rules list says which rules are worth less without, and why"
_LOSSY = "this kernel skips tracing programs under load: levels that rest on them are (lossy)"


def _programs() -> list[Check]:
    """Loads and attaches for a moment; nothing is tagged, so nothing is recorded."""
    try:
        with closing(loaders.begin()) as loading:
            return _attached(loading.probes(), loading.loader == "core")
    except AgentwatchError as error:
        click.echo(getattr(error, "log", ""), err=True)
        return [Check("programs", False, error.message, error.remedy, needed=True)]


def _attached(probes: Probes, decides: bool) -> list[Check]:
    programs = Check("programs", probes.attached() >= set(HOOKS), ", ".join(HOOKS), needed=True)
    if not decides:
        probes.close()
        return [Check("prevention", False, f"{BCC}: rules kill after", _NEWER), programs]
    refuses = probes.attach_connect(None)
    lossy = probes.lossy
    hooks, lacking = probes.hooks, sorted(probes.missing.items())
    probes.close()
    says = (
        "can be refused by address"
        if refuses
        else "cannot be refused: whoever makes them is killed"
    )
    prevents = "; ".join([f"{len(hooks)} hooks", *(f"not {h}: {why}" for h, why in lacking)])
    if not hooks and not lacking:
        prevents = "no program on an LSM hook can be attached: rules kill where they would prevent"
    return [
        Check("prevention", bool(hooks) and not lacking, prevents, _FEWER if hooks else _BOOT),
        programs,
        Check("skipping", not lossy, _LOSSY if lossy else "no probe is skipped under load"),
        Check("connections", refuses, says, "mount -t cgroup2 cgroup2 /sys/fs/cgroup (as root)"),
    ]
