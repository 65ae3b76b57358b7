"""Is a journal what its writer wrote? Finds what was edited, removed, reordered, cut or swapped.

The chain proves order and content up to its last frame. A cut at the end leaves no stop frame; it
is proven only by a head that was kept elsewhere (metrics, a log shipper): pass it as `heads`.
Segments that their writer retired are not missing: a frame later in the chain names the last of
them, and the hash that it ended with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agentwatch.errors import AgentwatchError, JournalError
from agentwatch.sinks import frames, segments
from agentwatch.sinks.chain import ROOT, Head, Hole, RawFrame, follows, is_cut, walk
from agentwatch.sinks.frames import Header, Retired
from agentwatch.sinks.segments import Chain


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. what: torn | tampered | missing | unreadable | untrusted. frame: sequence, or 0.

    torn is a write cut by a kill or power loss: everything before it is intact. untrusted: somebody
    else than root and the reader could have put the whole chain there.
    """

    what: str
    chain: str
    file: Path
    offset: int
    frame: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}" + f" at byte {self.offset}" * (self.what != "untrusted")
        frame = f", frame {self.frame}" * bool(self.frame)
        return f"{self.what}: {where}{frame}: {self.message}"


@dataclass(frozen=True, slots=True)
class Step:
    """A frame of a chain, with the header of its segment. intact: its hash fits the chain."""

    file: Path
    header: Header
    raw: RawFrame
    intact: bool


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What was found in one chain. closed: it ends with a stop frame; live: its writer runs.

    retired: what its writer has said that it removed, of this chain and of others.
    """

    chain: str
    segments: int
    frames: int
    records: int
    bytes: int
    head: Head
    closed: bool
    live: bool
    problems: tuple[Problem, ...]
    retired: tuple[Retired, ...] = ()

    @property
    def intact(self) -> bool:
        return not self.problems

    @property
    def begins(self) -> int:
        """The first segment that its writer has not retired."""
        return 1 + max((one.last for one in self.retired if not one.chain), default=0)


def verify(directory: Path, heads: Mapping[str, Head] | None = None) -> tuple[ChainReport, ...]:
    """Every chain of `directory`. heads: chain -> where it is known to have stood.

    Raises JournalError when there is no journal, PermissionDenied when it may not be read.
    """
    wanted = dict(heads or {})
    found = segments.chains(directory)
    reports = [verify_chain(one, wanted.pop(one.name, None)) for one in found]
    retired = {one.chain: one for report in reports for one in report.retired}
    for name, head in wanted.items():
        if name in retired and _covers(retired[name], head):
            continue
        message = "this chain is gone, but it is known to have existed"
        gone = Problem("missing", name, directory / name, 0, 0, message)
        nothing = Head(0, ROOT)
        reports.append(ChainReport(name, 0, 0, 0, 0, nothing, False, False, (gone,)))
    return tuple(reports)


def verify_chain(one: Chain, head: Head | None = None) -> ChainReport:
    """One chain. head: where it is known to have stood."""
    live = one.live
    report = ChainReport(one.name, len(one.segments), 0, 0, 0, Head(0, ROOT), False, live, ())
    problems: list[Problem] = []
    retired: list[Retired] = []
    count = records = size = 0
    seen = head is None or head.sequence == 0
    for item in examine(one, live):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        raw = item.raw
        count += 1
        size += raw.end - raw.offset
        records += _count(raw)
        last = Head(raw.sequence, raw.hash)
        report = replace(report, head=last, closed=raw.type == frames.STOP)
        if item.intact:
            retired += _retired(raw)
        if head is not None and raw.sequence == head.sequence:
            seen = True
            if raw.hash != head.hash:
                message = "this frame is not the one that is known to have been written"
                problems.append(_problem("tampered", one, item.file, raw, message))
    seen = seen or any(not r.chain and head is not None and _covers(r, head) for r in retired)
    if head is not None and not seen:
        file = one.segments[-1][1]
        message = f"the chain stood at frame {head.sequence}, but ends at {report.head.sequence}"
        problems.append(Problem("missing", one.name, file, 0, report.head.sequence, message))
    report = replace(report, frames=count, records=records, bytes=size, retired=tuple(retired))
    return replace(report, problems=tuple(problems))


def examine(one: Chain, live: bool = False) -> Iterator[Step | Problem]:
    """Everything in a chain, in order; after a problem it goes on with the next frame there is.

    live: a writer is at work, so a frame that is cut at the very end is only not complete yet.
    """
    state = _State(one)
    distrust = segments.distrust(one)
    if distrust:
        yield Problem("untrusted", one.name, one.directory, 0, 0, distrust)
    for number, path in one.segments:
        try:
            data, left = segments.load(path)
        except AgentwatchError as error:
            if os.path.lexists(path):  # else it went since it was listed: retired, or missing
                yield Problem("unreadable", one.name, path, 0, 0, error.message)
                state.skip(number)
            continue
        yield from state.segment(number, path, memoryview(data))
        if left:
            state.known = False
            message = f"{left} bytes more than a segment can have: not read"
            yield Problem("tampered", one.name, path, len(data), state.head.sequence, message)
    yield from state.missing()
    if not live:
        yield from state.torn


class _State:
    """Where the examination of a chain stands. known: `head` is what the next frame must follow.

    unseen: of the segments before the one at hand, back to the last frame, not all could be read.
    gone: the last of some segments that are not here, and the problem that this is unless they were
    retired. ends: where a segment ended, or is said to have by the one after it.
    """

    def __init__(self, one: Chain) -> None:
        self.chain = one
        self.head = Head(0, ROOT)
        self.known = True
        self.unseen = False
        self.expected = 1
        self.torn: list[Problem] = []
        self.torn_bytes = 0
        self.gone: list[tuple[int, Problem]] = []
        self.ends: dict[int, Head] = {}
        self.retired: list[Retired] = []

    def skip(self, number: int) -> None:
        """A segment that cannot be read."""
        self.known, self.unseen, self.expected = False, True, number + 1

    def segment(self, number: int, path: Path, data: memoryview) -> Iterator[Step | Problem]:
        if number != self.expected:
            self.gone.append((number - 1, self._missing_segments(number, path)))
        self.expected = number + 1
        header: Header | None = None
        for item in walk(data):
            if isinstance(item, Hole):
                yield from self._hole(path, item)
                continue
            if self.known and is_cut(data, item, self.head.hash):
                yield from self._hole(path, Hole(item.offset, len(data), torn=True))
                break
            if header is None:
                header, found = self._header(number, path, item)
                yield from found
                if not self.known and header.previous:
                    self.head, self.known = Head(item.sequence - 1, header.previous), True
                self.ends.setdefault(number - 1, self.head)
            yield from self._frame(path, header, data, item)
        if self.known:  # else the next segment's header says where this one ended
            self.ends[number] = self.head

    def missing(self) -> Iterator[Problem]:
        """The segments that are not here and were not retired by this chain's own writer."""
        told = [r.last for r in self.retired if self.ends.get(r.last) == Head(r.sequence, r.hash)]
        yield from (problem for last, problem in self.gone if last > max(told, default=0))

    def _missing_segments(self, number: int, path: Path) -> Problem:
        self.known, self.unseen = False, True
        first, last = segments.segment_name(self.expected), segments.segment_name(number - 1)
        which = f"segment {first}" if first == last else f"segments {first} to {last}"
        return Problem("missing", self.chain.name, path, 0, 0, f"{which} before this one: not here")

    def _hole(self, path: Path, hole: Hole) -> Iterator[Problem]:
        """A torn tail is kept back until the next segment's header has told what its writer saw."""
        size, after = hole.end - hole.offset, self.head.sequence
        if hole.torn:
            message = f"{size} bytes of a write that was cut; everything before them is intact"
            self.torn.append(Problem("torn", self.chain.name, path, hole.offset, after, message))
            self.torn_bytes += size
            return
        self.known = False
        message = f"{size} bytes after frame {after} are no frame: changed, or added"
        yield Problem("tampered", self.chain.name, path, hole.offset, after, message)

    def _header(self, number: int, path: Path, raw: RawFrame) -> tuple[Header, tuple[Problem, ...]]:
        """The segment's header, and what is wrong with it."""
        try:
            header = frames.decode(raw.type, raw.time, raw.payload)
        except JournalError as error:
            return Header(), (self._at("tampered", path, raw, error.message),)
        if not isinstance(header, Header):
            message = "the segment does not begin with its header: frames were removed"
            return Header(), (self._at("tampered", path, raw, message),)
        found = []
        if header.segment != number:
            message = f"this is segment {header.segment} under the name of {number}"
            found.append(self._at("tampered", path, raw, message))
        message = self._cut_since(header)
        if message:
            found.append(self._at("tampered", path, raw, message))
        found += self.torn
        self.torn, self.torn_bytes, self.unseen = [], 0, False
        return header, tuple(found)

    def _cut_since(self, header: Header) -> str:
        """What was done to the cut writes before a segment after its writer saw them; or "".

        More than can be seen may lie in segments that are gone: retired, or a problem themselves.
        """
        more = header.torn - self.torn_bytes
        if more == 0 or (more > 0 and self.unseen):
            return ""
        if self.torn:
            return "the segment before was cut after this one began"
        return f"{more} bytes of a cut write were removed from the segment before"

    def _frame(
        self, path: Path, header: Header, data: memoryview, raw: RawFrame
    ) -> Iterator[Step | Problem]:
        right = raw.sequence == self.head.sequence + 1 and follows(data, raw, self.head.hash)
        if self.known and not right:
            yield self._wrong(path, raw)
        yield Step(path, header, raw, right)
        if right:
            self.retired += [frame for frame in _retired(raw) if not frame.chain]
        self.known = True
        self.head = Head(raw.sequence, raw.hash)

    def _wrong(self, path: Path, raw: RawFrame) -> Problem:
        expected = self.head.sequence + 1
        if raw.sequence > expected:
            message = f"frames {expected} to {raw.sequence - 1} are not here: removed"
            return self._at("missing", path, raw, message)
        if raw.sequence < expected:
            message = f"this frame stands after frame {expected - 1}: moved or repeated"
        else:
            message = "it does not fit the chain: this frame, or the hash before it, was changed"
        return self._at("tampered", path, raw, message)

    def _at(self, what: str, path: Path, raw: RawFrame, message: str) -> Problem:
        return _problem(what, self.chain, path, raw, message)


def _problem(what: str, one: Chain, path: Path, raw: RawFrame, message: str) -> Problem:
    return Problem(what, one.name, path, raw.offset, raw.sequence, message)


def _retired(raw: RawFrame) -> tuple[Retired, ...]:
    """What the frame says was removed, if that is what it is about."""
    if raw.type != frames.RETIRED:
        return ()
    try:
        frame = frames.decode(raw.type, raw.time, raw.payload)
    except JournalError:
        return ()
    return (frame,) if isinstance(frame, Retired) else ()


def _covers(retired: Retired, head: Head) -> bool:
    """A chain that stood at `head` may have had this removed."""
    if head.sequence == retired.sequence:
        return head.hash == retired.hash
    return head.sequence < retired.sequence


def _count(raw: RawFrame) -> int:
    if raw.type != frames.RECORDS:
        return 0
    try:
        frame = frames.decode(raw.type, raw.time, raw.payload)
    except JournalError:
        return 0
    return frame.count if isinstance(frame, frames.Records) else 0
