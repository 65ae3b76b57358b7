"""Records of any version, by the field table in their segment's header.

A record of the layout in force today is decoded as it is; one of another layout is first put into
today's, by the names of its fields: what today's does not know is left out, what it adds is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentwatch import abi, decoding
from agentwatch.errors import JournalError, RecordError
from agentwatch.events import Event
from agentwatch.sinks.frames import GARBLED

_CODES = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "s32": "<i", "s64": "<q"}
_RECORD_MAX = 1 << 16
_HEADER_MIN = 8  # length, kind and flags never move


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    offset: int
    code: struct.Struct


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A layout of another version. lengths: one per string, in order; strings: their names."""

    size: int
    fields: tuple[_Field, ...]
    strings: tuple[str, ...]


class FieldTable:
    """Decodes the records of one segment."""

    def __init__(self, tables: Mapping[int, Mapping[str, Any]]) -> None:
        """tables: kind -> abi.Layout.table(), as read. Raises JournalError."""
        self._foreign: dict[int, _Foreign] = {}
        self._known = frozenset(tables)
        try:
            for kind, table in tables.items():
                layout = abi.LAYOUTS.get(kind)
                if layout is not None and layout.table() != table:
                    self._foreign[kind] = _foreign(table)
        except GARBLED as error:
            reason = str(error) or type(error).__name__
            raise JournalError(f"a field table that does not decode: {reason}") from None

    def event(self, record: memoryview, name: decoding.Name) -> Event | None:
        """The event, or None for a kind that only a newer version knows. Raises RecordError."""
        _, kind, _ = abi.peek(record)
        if kind not in abi.LAYOUTS:
            if kind in self._known:
                return None
            raise RecordError(f"a record of the unknown kind {kind}")
        foreign = self._foreign.get(kind)
        try:
            if foreign is None:
                return decoding.decode(record, name)
            return decoding.decode(_today(record, kind, foreign), name)
        except GARBLED as error:
            raise RecordError(f"a record that does not decode: {error}") from None


def split(batch: memoryview) -> Iterator[memoryview]:
    """The records of a batch, one after the other. Raises RecordError where a length is wrong."""
    offset, end = 0, len(batch)
    while offset < end:
        if end - offset < _HEADER_MIN:
            raise RecordError(f"{end - offset} bytes where a record belongs")
        length, _, _ = abi.peek(batch, offset)
        if not _HEADER_MIN <= length <= end - offset:
            raise RecordError(f"a record of {length} bytes in {end - offset}")
        yield batch[offset : offset + length]
        offset += length


def _foreign(table: Mapping[str, Any]) -> _Foreign:
    """Raises one of GARBLED for a table that is none."""
    size = _place(table["size"])
    fields = tuple(
        _Field(_text(name), _place(offset), struct.Struct(_code(type_)))
        for name, offset, type_ in table["fields"]
        if _text(type_) in _CODES or type_.startswith("bytes")
    )
    return _Foreign(size, fields, tuple(map(_text, table["strings"])))


def _place(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= _RECORD_MAX:
        raise ValueError(f"a {type(value).__name__} where a size or an offset belongs")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a name belongs")
    return value


def _code(type_: str) -> str:
    if type_ in _CODES:
        return _CODES[type_]
    return f"{_place(int(type_.removeprefix('bytes')))}s"


def _today(record: memoryview, kind: int, foreign: _Foreign) -> bytes:
    """The record in the layout of this version. Raises RecordError when it is too short."""
    try:
        values = {f.name: f.code.unpack_from(record, f.offset)[0] for f in foreign.fields}
    except struct.error as error:
        raise RecordError(f"a record that does not decode: {error}") from None
    strings: dict[str, bytes] = {}
    offset = foreign.size
    for name in foreign.strings:
        length = values.get(f"{name}_len", 0)
        end = offset + _place(length)
        strings[name] = bytes(record[offset:end])
        offset = end
    if offset > len(record):
        raise RecordError(f"a record of {len(record)} bytes whose strings end at {offset}")
    # What is padding in one version may be a field in another.
    names = {name for name in abi.LAYOUTS[kind].names if not name.startswith("pad")}
    return abi.pack(kind, {n: v for n, v in values.items() if n in names}, strings)
