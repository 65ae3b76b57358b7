"""A journal followed while it is written: frames go in one by one, entries come out at once.

What has no future cannot look ahead: a verdict is an entry of its own, right before or after that
of its event, and is attached to none.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentwatch.errors import RecordError
from agentwatch.events import Event
from agentwatch.sinks import entries, frames
from agentwatch.sinks.entries import Entry, Images, Learned
from agentwatch.sinks.frames import Header, Records


class Following:
    """One stream: first a header (Journal.header), then what Journal.tap is given.

    Session and agentadded frames of sessions that have begun before may come after the header.
    damaged: records that did not decode. Records of sessions that are not confirmed as an agent's
    are left out, unless provisional.
    """

    def __init__(self, chain: str = "daemon", provisional: bool = False) -> None:
        self.damaged = 0
        self._chain = chain
        self._provisional = provisional
        self._learned = Learned()
        self._images = Images()
        self._number = 0

    def feed(self, type_: int, time: int, payload: bytes | memoryview) -> Iterator[Entry]:
        """The entries of a frame; numbers count the frames fed. All of them must be taken.

        Raises JournalError for a frame that does not decode; the stream can go on.
        """
        frame = frames.decode(type_, time, payload)
        self._number += 1
        if frame is None:
            return
        if isinstance(frame, Header):
            self._learned.begin(frame)
        elif isinstance(frame, Records):
            for event in entries.events(frame, self._learned.table, self._learned.name):
                if isinstance(event, RecordError):
                    self.damaged += 1
                else:
                    yield from self._event(event)
        else:
            self._learned.learn(frame)
            agent = self._learned.agent_of(frame)
            yield Entry(
                chain=self._chain,
                host=self._learned.host,
                number=self._number,
                wall=self._learned.host.wall(frame.time),
                agent=agent,
                frame=frame,
            )

    def _event(self, event: Event) -> Iterator[Entry]:
        image = self._images.before(event)
        agent = self._learned.agent(event.session)
        if event.provisional and not agent and not self._provisional:
            return
        yield Entry(
            chain=self._chain,
            host=self._learned.host,
            number=self._number,
            wall=self._learned.host.wall(event.time),
            agent=agent,
            event=event,
            image=image,
        )
