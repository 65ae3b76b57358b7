"""Who used a changing verb of the control socket, and who tried to: in the journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from agentwatch.control import wire
from agentwatch.control.peer import Peer
from agentwatch.sinks import frames

VALUE_MAX = 200  # characters of an argument
REFUSALS = 10  # of one uid in one second that are written out; the rest is counted


class Audit:
    """say: where its frames go. A journal is not to be filled by asking for what is refused."""

    def __init__(self, say: Callable[[frames.Frame], None]) -> None:
        self._say = say
        self._second = 0
        self._refused: Counter[int] = Counter()  # by uid, in this second

    def record(self, peer: Peer, request: wire.Request, refusal: str = "") -> None:
        """One use of a verb. refusal: why nothing was done, "" if it was."""
        if refusal and not self._is_told(peer.uid):
            return
        given = " ".join(f"{name}={value}"[:VALUE_MAX] for name, value in request.args.items())
        text = f"{given}: {refusal}"[: 4 * VALUE_MAX] if refusal else given[: 4 * VALUE_MAX]
        self._say(
            frames.Control(uid=peer.uid, pid=peer.pid, verb=request.verb, text=text, ok=not refusal)
        )

    def _is_told(self, uid: int) -> bool:
        self.tick()
        self._refused[uid] += 1
        return self._refused[uid] <= REFUSALS

    def tick(self) -> None:
        """Once a second, what was not written out is told as a number."""
        second = int(time.monotonic())
        if second == self._second:
            return
        self._second = second
        refused, self._refused = self._refused, Counter()
        for uid, count in refused.items():
            if count > REFUSALS:
                text = f"{count - REFUSALS} more requests within a second were refused"
                self._say(frames.Control(uid=uid, verb="", text=text, ok=False))
