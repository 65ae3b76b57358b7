"""bpf/agentwatch.h and agentwatch/abi.py say the same, and a difference would be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentwatch import abi, decoding
from agentwatch.abi import Layout
from tests.abi import mirror
from tests.abi.mirror import Mirror

TEXT = mirror.HEADER.read_text()
TRUE = mirror.of_abi()


def test_every_struct_is_mirrored_byte_for_byte(tmp_path: Path) -> None:
    """Size of each struct, offset and type of each field, value of each constant."""
    source = mirror.program(TRUE)
    assert source.count("offsetof") > 100
    assert not mirror.compile_against(TEXT, source, tmp_path)


def test_no_struct_of_the_header_is_missing_from_the_mirror() -> None:
    """Nor the other way round; with the sizes equal and no byte unnamed, no field is either."""
    names = [layout.name for layout in TRUE.layouts]
    assert sorted(names) == sorted(mirror.structs(TEXT))
    for layout in TRUE.layouts:
        ends = [field.offset + size_of(field.type) for field in layout.fields]
        assert ends == [field.offset for field in layout.fields[1:]] + [layout.size]


def size_of(kind: str) -> int:
    """Bytes of a field, from its type's name alone: u16 2, u64*6 48, bytes7 7."""
    one, _, count = kind.partition("*")
    if one.startswith("bytes"):
        return int(one.removeprefix("bytes"))
    return int(one[1:]) // 8 * int(count or 1)


def test_every_constant_is_mirrored_with_its_value() -> None:
    """In both directions: none is missing on either side."""
    assert mirror.defines(TEXT) == dict(TRUE.constants)
    assert len(TRUE.constants) > 30


def test_words_stand_for_the_constants_they_are_named_after() -> None:
    """The words that events carry follow the numbers: kinds, unresolved bits, kinds of stdin."""
    constants = TRUE.constants
    assert {f"AW_KIND_{word.upper()}": number for number, word in abi.KIND_NAMES.items()} == {
        name: value for name, value in constants.items() if name.startswith("AW_KIND_")
    }
    assert {f"AW_UNRESOLVED_{word.upper()}": bit for bit, word in decoding._UNRESOLVED} == {
        name: value for name, value in constants.items() if name.startswith("AW_UNRESOLVED_")
    }
    assert {f"AW_STDIN_{word.upper()}": number for number, word in enumerate(decoding._STDIN)} == {
        name: value for name, value in constants.items() if name.startswith("AW_STDIN_")
    }


def test_kinds_and_flags_do_not_overlap() -> None:
    """Flags and unresolved bits are one bit each, kinds fit the counters that are kept by kind."""
    for prefix in ("AW_FLAG_", "AW_UNRESOLVED_"):
        bits = [value for name, value in TRUE.constants.items() if name.startswith(prefix)]
        assert sum(bits) == (1 << len(bits)) - 1
    assert all(0 < kind < abi.KINDS for kind in abi.KIND_NAMES)


# That the comparison can fail.


def changed(name: str, change: Callable[[list[tuple[str, str]]], None]) -> Mirror:
    """The mirror with one struct's fields changed, the nested ones written out."""
    layouts = []
    for layout in TRUE.layouts:
        if layout.name == name:
            fields = [(field.name, field.type) for field in layout.fields]
            change(fields)
            layout = Layout(name, tuple(fields))
        layouts.append(layout)
    return replace(TRUE, layouts=tuple(layouts))


def swap(fields: list[tuple[str, str]]) -> None:
    fields[6], fields[7] = fields[7], fields[6]


def sign(fields: list[tuple[str, str]]) -> None:
    fields[1] = (fields[1][0], "s32")


def rename(fields: list[tuple[str, str]]) -> None:
    fields[0] = ("size", fields[0][1])


def shorten(fields: list[tuple[str, str]]) -> None:
    del fields[-2:]


def lengthen(fields: list[tuple[str, str]]) -> None:
    fields.append(("more", "u64"))


def widen(fields: list[tuple[str, str]]) -> None:
    fields[-2:] = [("state", "u64")]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("aw_header", swap, "offsetof(struct aw_header, tgid) == 28"),
        ("aw_control", sign, "wake_kinds), __s32"),
        ("aw_header", rename, "has no member named size"),
        ("aw_counters", shorten, "sizeof(struct aw_counters)"),
        ("aw_session_key", lengthen, "sizeof(struct aw_session_key)"),
        ("aw_session", widen, "state), __u64"),
    ],
)
def test_a_wrong_mirror_does_not_compile(
    tmp_path: Path, name: str, change: Callable[[list[tuple[str, str]]], None], says: str
) -> None:
    """Fields swapped, of another sign, name or width, one too few or too many: each by name."""
    errors = mirror.compile_against(TEXT, mirror.program(changed(name, change)), tmp_path)
    assert any(says in plain(error) for error in errors), errors


def plain(error: str) -> str:
    """Without the quotation marks that depend on the locale."""
    return error.translate({ord(mark): None for mark in "‘’'\"`"})


@pytest.mark.parametrize("name", ["AW_ABI", "AW_FLAG_COMPAT", "AW_STDIN_FILE"])
def test_a_wrong_constant_does_not_compile(tmp_path: Path, name: str) -> None:
    """One number that differs is enough."""
    wrong = replace(TRUE, constants={**TRUE.constants, name: TRUE.constants[name] + 1})
    errors = mirror.compile_against(TEXT, mirror.program(wrong), tmp_path)
    assert any(name in error for error in errors)


def test_a_header_with_hidden_padding_does_not_compile(tmp_path: Path) -> None:
    """Padding is spelled out: -Wpadded refuses what the compiler would put in."""
    padded = TEXT.replace("\t__u8 pad2[2];\n", "", 1)
    assert padded != TEXT
    errors = mirror.compile_against(
        padded, '#include <linux/types.h>\n#include "agentwatch.h"\n', tmp_path
    )
    assert any("padding struct" in error for error in errors)


def test_additions_to_the_header_are_noticed() -> None:
    """A constant or a struct that only the header has is a difference."""
    more = TEXT + "#define AW_FLAG_MORE 0x1000\nstruct aw_more {\n};\n"
    assert set(mirror.defines(more)) - set(TRUE.constants) == {"AW_FLAG_MORE"}
    assert mirror.structs(more) - {layout.name for layout in TRUE.layouts} == {"aw_more"}
