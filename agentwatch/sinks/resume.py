"""How the next writer of a chain finds it: where to go on, and what to say about the one before."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agentwatch.errors import AgentwatchError, JournalError
from agentwatch.sinks import chain, frames, segments
from agentwatch.sinks.chain import Head, Hole, RawFrame
from agentwatch.sinks.frames import Header, Resumed

LAST_MAX = (1 << 63) - 1  # a header that somebody made up is no reason not to go on


class Tail(NamedTuple):
    """Where an old chain ended. number: its last segment; torn: bytes of cut writes behind `head`.

    type, time: of the last frame. header: of the segment that it is in.
    """

    number: int = 0
    head: Head = Head(0, chain.ROOT)
    torn: int = 0
    type: int = -1
    time: int = 0
    header: Header = Header()

    def resumed(self, boot_id: str) -> Resumed | None:
        """What the next writer says, in boot `boot_id`; None for a chain that had no frames."""
        if not self.head.sequence:
            return None
        return Resumed(
            clean=self.type == frames.STOP and not self.torn,
            sequence=self.head.sequence,
            last=max(0, min(LAST_MAX, self.header.wall - self.header.boottime + self.time)),
            torn=self.torn,
            rebooted=self.header.boot_id != boot_id,
            boot_id=self.header.boot_id,
        )


def tail_of(directory: Path) -> Tail:
    """Where to go on. Raises JournalError for an old chain that cannot be read."""
    number = torn = 0
    try:
        for path in sorted(directory.glob("*.journal"), reverse=True):
            number = number or int(path.stem)
            found, cut = _whole(memoryview(segments.load(path)[0]))
            torn += cut
            if found:
                last = found[-1]
                head = Head(last.sequence, last.hash)
                return Tail(number, head, torn, last.type, last.time, _header(found[0]))
    except (AgentwatchError, OSError, ValueError) as error:
        reason = error.message if isinstance(error, AgentwatchError) else error
        raise JournalError(
            f"the journal in {directory} cannot be continued: {reason}", "move it away"
        ) from None
    return Tail(number, torn=torn)


def _whole(segment: memoryview) -> tuple[list[RawFrame], int]:
    """(the frames of a segment; bytes of a cut write behind them)."""
    items = list(chain.walk(segment))
    found = [item for item in items if isinstance(item, RawFrame)]
    if found:
        previous = found[-2].hash if len(found) > 1 else _header(found[0]).previous
        if chain.is_cut(segment, found[-1], previous):
            return found[:-1], len(segment) - found[-1].offset
    end = items[-1] if items else None
    return found, end.end - end.offset if isinstance(end, Hole) and end.torn else 0


def _header(first: RawFrame) -> Header:
    """The header of a segment as far as it can be read: what is wrong with it, verify says."""
    try:
        frame = frames.decode(first.type, first.time, first.payload)
    except JournalError:
        frame = None
    return frame if isinstance(frame, Header) else Header()
