"""How a daemon's start begins, up to where an agent that starts is tagged; in an order of its own.

The kernel takes a third of a second to verify the probes, and needs nothing of us for it: the rules
are read meanwhile. What only the loop needs is imported once agents are tagged.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentwatch.errors import ConfigErrors
from agentwatch.kernel import loading as loaders
from agentwatch.kernel.pins import Pins, Unpinned
from agentwatch.kernel.probes import Probes

if TYPE_CHECKING:  # imported when the kernel has begun
    from agentwatch.admission import Admitted
    from agentwatch.config import Config
    from agentwatch.policy.levels import Host


@dataclass(frozen=True, slots=True)
class Begun:
    """Agents that start are tagged, and what they do waits in the rings of the probes.

    admitted: the rules; tested: whether their own tests are done. seconds: it took to read them.
    """

    config: Config
    host: Host
    admitted: Admitted
    seconds: float
    probes: Probes
    tested: bool = False


def begin(stack: ExitStack, path: Path | None, root: Path, loader: str = "") -> Begun:
    """As a configuration says (config.load). root: where pins are. loader: see kernel.loading.
    Raises AgentwatchError.

    stack: closes the probes, and what has become of them where they could not be had.
    """
    closing = stack.enter_context(ExitStack())
    pins, unpinned = _pins(root)
    if pins is not None:
        closing.callback(pins.close)
    loading = loaders.begin(loader, pins)
    closing.callback(loading.close)
    from agentwatch import config
    from agentwatch.admission import admit
    from agentwatch.engine import Engine
    from agentwatch.rules.model import Ruleset

    settings, host, began = (
        config.load(path),
        loaders.expected(loading),
        time.monotonic(),
    )

    # Where something is in force it can wait, and does not go for rules that are refused later.
    tested = pins is not None and not pins.empty

    def admitted_here() -> Admitted:
        return admit(
            settings.rule_paths, host=host, without_hook=settings.without_hook, tested=tested
        )

    admitted = admitted_here()
    agents = admitted.ruleset.agents
    wrong = settings.check_agents([agent.id for agent in agents])
    if wrong:
        raise ConfigErrors(wrong)
    seconds = time.monotonic() - began
    probes = loading.probes(identify=True)
    closing.callback(probes.close)
    probes.set_literals(Engine(Ruleset((), agents)).literals())
    found = loaders.found(host, probes, settings.cgroup)
    if found != host:
        host = found
        admitted = admitted_here()  # there are rules that insist on being prevented
    if unpinned:
        probes.keeping.problem = unpinned
    return Begun(settings, replace(host, lossy=probes.lossy), admitted, seconds, probes, tested)


def _pins(root: Path) -> tuple[Pins | None, str]:
    """What there is to go on with, or why nothing can be kept."""
    try:
        return Pins(root), ""
    except Unpinned as why:
        return None, str(why)
