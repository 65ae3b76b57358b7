"""Who may ask what: root everything, a person about their own agents, an agent hardly anything."""

from __future__ import annotations

from agentwatch.errors import PermissionDenied
from agentwatch.events import ProcessKey

ASKING = frozenset({"status", "agents.list", "why", "events"})
CHANGING = frozenset(
    {"agents.tag", "agents.untag", "agents.kill", "agents.freeze", "agents.thaw"}
    | {"rules.reload", "rules.pause"}
)


def check(verb: str, uid: int, asks_of_itself: bool, session: ProcessKey | None) -> None:
    """Raises PermissionDenied unless the peer may use the verb.

    asks_of_itself: what is asked for is the peer process itself or, with `why`, its own session.
    session: that the peer is tagged with, None for an untagged one.
    """
    if session is not None:
        if verb == "why" and asks_of_itself:
            return
        remedy = (
            "a person asks from a terminal of their own; `agentwatch why` tells what was denied"
        )
        raise PermissionDenied(f"{verb} is not for what an agent runs", remedy)
    if uid == 0 or verb in ASKING or (verb == "agents.tag" and asks_of_itself):
        return
    if verb == "agents.tag":
        message = "only root tags processes of others; a process may tag itself"
        raise PermissionDenied(message, "agentwatch run -- CMD tags CMD; or ask root")
    raise PermissionDenied(f"{verb} is for root", "ask as root: the same command through sudo")
