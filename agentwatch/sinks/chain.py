"""The bytes of a journal: frames, and the hash that chains each one to all before it.

A frame is one msgpack array, [sequence, type, time, payload, hash], with every head in its widest
form, so that a frame's length is known from its first 25 bytes and framing never depends on what
is inside:

    95 cf SEQUENCE:8 TYPE:1 cf TIME:8 c6 LENGTH:4 PAYLOAD c4 20 HASH:32

hash is BLAKE2b-256 over the hash of the frame before it (32 zero bytes before the first) and all
bytes of this frame up to the end of its payload. sequence counts the frames of a chain from 1,
time is ns of CLOCK_BOOTTIME. The payload is msgpack again (frames.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

HASH_SIZE = 32
ROOT = bytes(HASH_SIZE)
"""What the first frame of a chain follows."""

TYPE_MAX = 0x7F
PAYLOAD_MAX = 1 << 30

_HEAD = struct.Struct(">BBQBBQBI")
_TAIL = b"\xc4\x20"
_MARK = b"\x95\xcf"
_PIECE = 1 << 16  # bytes searched at a time, so that many holes cost no more than few
OVERHEAD = _HEAD.size + len(_TAIL) + HASH_SIZE


class Head(NamedTuple):
    """Where a chain stands: its last frame's sequence and hash. Whoever kept it can prove a cut."""

    sequence: int
    hash: bytes


class RawFrame(NamedTuple):
    """A frame as it stands in a segment. offset, end: bytes from the segment's start."""

    offset: int
    end: int
    sequence: int
    type: int
    time: int
    payload: memoryview
    hash: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes of a segment that are no frame. torn: they look like the end of a cut write."""

    offset: int
    end: int
    torn: bool


def encode(
    sequence: int, type_: int, time: int, payload: bytes, previous: bytes
) -> tuple[bytes, bytes]:
    """(the frame, its hash)."""
    head = _HEAD.pack(0x95, 0xCF, sequence, type_, 0xCF, time, 0xC6, len(payload))
    digest = blake2b(previous, digest_size=HASH_SIZE)
    digest.update(head)
    digest.update(payload)
    hash_ = digest.digest()
    return b"".join((head, payload, _TAIL, hash_)), hash_


def follows(segment: memoryview, frame: RawFrame, previous: bytes) -> bool:
    """True when the frame's own hash is right for a chain that stood at `previous`."""
    return _digest(segment, frame, previous) == frame.hash


def is_cut(segment: memoryview, frame: RawFrame, previous: bytes) -> bool:
    """True when the frame is what a cut write left: zeros from within its hash on to the end.

    Only who knows what it must follow can tell that from a frame whose hash was changed.
    """
    kept = frame.hash.rstrip(b"\0")
    if len(kept) == HASH_SIZE or not _is_zero(segment[frame.end :]):
        return False
    right = _digest(segment, frame, previous)
    return right != frame.hash and right.startswith(kept)


def _digest(segment: memoryview, frame: RawFrame, previous: bytes) -> bytes:
    digest = blake2b(previous, digest_size=HASH_SIZE)
    digest.update(segment[frame.offset : frame.end - HASH_SIZE - len(_TAIL)])
    return digest.digest()


def walk(segment: memoryview) -> Iterator[RawFrame | Hole]:
    """Everything in a segment, in order; between two holes there is at least one frame."""
    offset = 0
    while offset < len(segment):
        frame = _at(segment, offset)
        if frame is not None:
            yield frame
            offset = frame.end
            continue
        found = _next(segment, offset + 1)
        yield Hole(offset, found, torn=found == len(segment) and _is_torn(segment[offset:]))
        offset = found


def _at(segment: memoryview, offset: int) -> RawFrame | None:
    """The frame that starts at offset, if one does and it is complete."""
    if len(segment) - offset < OVERHEAD:
        return None
    parts = _HEAD.unpack_from(segment, offset)
    if not _is_head(parts):
        return None
    start = offset + _HEAD.size
    stop = start + parts[7]
    end = stop + len(_TAIL) + HASH_SIZE
    if end > len(segment) or segment[stop : stop + len(_TAIL)] != _TAIL:
        return None
    hash_ = bytes(segment[end - HASH_SIZE : end])
    return RawFrame(offset, end, parts[2], parts[3], parts[5], segment[start:stop], hash_)


def _is_head(parts: tuple[int, ...]) -> bool:
    array, mark, _, type_, mark2, _, binary, length = parts
    marks = (array, mark, mark2, binary) == (0x95, 0xCF, 0xCF, 0xC6)
    return marks and type_ <= TYPE_MAX and length <= PAYLOAD_MAX


def _next(segment: memoryview, offset: int) -> int:
    """Where the next complete frame starts; the end of the segment when none does."""
    while offset < len(segment):
        piece = bytes(segment[offset : offset + _PIECE + 1])
        found = piece.find(_MARK)
        while found >= 0:
            if _at(segment, offset + found) is not None:
                return offset + found
            found = piece.find(_MARK, found + 1)
        offset += _PIECE
    return len(segment)


def _is_zero(rest: memoryview) -> bool:
    pieces = (bytes(rest[at : at + _PIECE]) for at in range(0, len(rest), _PIECE))
    return not any(piece.strip(b"\0") for piece in pieces)


def _is_torn(rest: memoryview) -> bool:
    """A write that was cut ends inside a frame, or leaves zeros behind: blocks that power loss
    kept from the disk, or allocated ones that were not written yet.
    """
    if len(rest) < _HEAD.size:
        return bytes(rest[:2]) == _MARK[: len(rest)] or _is_zero(rest)
    parts = _HEAD.unpack_from(rest, 0)
    if not _is_head(parts):
        return _is_zero(rest[_HEAD.size :] if rest[0] == _MARK[0] else rest)
    end = _HEAD.size + parts[7] + len(_TAIL) + HASH_SIZE
    return end > len(rest) or _is_zero(rest[end - HASH_SIZE :])
