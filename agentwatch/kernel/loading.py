"""Which loader, and what there is with it: core where the kernel takes that, else bcc."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentwatch.errors import KernelError
from agentwatch.kernel import preflight
from agentwatch.kernel.pins import Pins
from agentwatch.kernel.policies import cgroup_root
from agentwatch.kernel.probes import Loading, Probes
from agentwatch.policy.levels import Host

if TYPE_CHECKING:  # imported where it is used
    from agentwatch.kernel.bcc_probes import BccLoading

LOADERS = ("core", "bcc")


def begin(asked: str = "", pins: Pins | None = None) -> Loading | BccLoading:
    """Begins to load the probes. asked: one of LOADERS, "" for the one that fits this kernel.

    pins: what is to be gone on with, by the core loader alone.
    Raises PermissionDenied without root, KernelError for what the loader lacks.
    """
    lacks = preflight.core_lacks() if not asked else ()
    if asked == "core" or not (asked or lacks):
        return Loading(pins=pins)
    if pins is not None and not pins.empty:
        raise KernelError(
            "what is in force is the core loader's, which bcc's probes cannot go on with",
            "agentwatch release: nothing is watched from there until the daemon starts",
        )
    from agentwatch.kernel.bcc_probes import BccLoading

    try:
        return BccLoading()
    except KernelError as error:
        if not lacks:
            raise
        why = f"this kernel lacks {' and '.join(lacks)}, which leaves the bcc loader"
        raise KernelError(f"{why}, and {error.message}", error.remedy) from None


def expected(loading: Loading | BccLoading) -> Host:
    """What there is to be, before anything is attached."""
    cgroup = loading.loader == "core" and cgroup_root() is not None
    return Host(loading.hooks, cgroup=cgroup, loader=loading.loader)


def found(host: Host, probes: Probes, cgroup: Path | None = None) -> Host:
    """What there is, now that probes are attached. cgroup: below which connections are refused."""
    cgroups = host.cgroup and probes.attach_connect(cgroup)
    return replace(host, lsm=probes.hooks, lost=frozenset(probes.missing), cgroup=cgroups)
