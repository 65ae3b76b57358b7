"""Where verdicts and records go: journal, findings file, metrics.

frames    what a journal says             chain     its bytes, and the hash over them
segments  its files                       journal   the writer
verify    is it intact                    reader    frames and events again, in order
redact    secrets out of argv             ocsf      the record for everybody else
host      whose clock                    lines     text for people
jsonl     findings for log shippers       metrics   Prometheus
"""

from __future__ import annotations

from typing import Protocol

from agentwatch.sinks.frames import Frame


class Sink(Protocol):
    """What the loop writes to: Journal, and testing.RecordingSink."""

    def records(self, batch: bytes | memoryview, count: int) -> None:
        """Raw records exactly as drained, one after the other; count of them."""

    def write(self, frame: Frame) -> None: ...

    def flush(self) -> None: ...

    def close(self, reason: str = "ended") -> None: ...
