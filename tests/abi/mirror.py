"""The Python mirror as a C program that compiles only where bpf/agentwatch.h says the same."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentwatch import abi
from agentwatch.abi import Layout

HEADER = Path(__file__).resolve().parent.parent.parent / "bpf" / "agentwatch.h"

# Not numbers of the contract, though they look it.
_OWN = frozenset({"KIND_NAMES", "LAYOUTS", "HEADER", "MAP_VALUES"})
# A struct that begins with another has it as a member of this name; the mirror flattens it.
_NESTED = ((abi.HEADER, "header"), (abi.SESSION_KEY, "session"))
_C_TYPES = {"u8": "__u8", "u16": "__u16", "u32": "__u32", "u64": "__u64", "s32": "__s32"}


@dataclass(frozen=True, slots=True)
class Mirror:
    """What is compared: every struct, and every constant by its name in C."""

    layouts: tuple[Layout, ...]
    constants: Mapping[str, int]


def of_abi() -> Mirror:
    """The mirror that agentwatch uses."""
    layouts = {id(one): one for one in (abi.HEADER, *abi.LAYOUTS.values(), *abi.MAP_VALUES)}
    kinds = {name.upper() for name in abi.KIND_NAMES.values()}
    constants = {
        f"AW_KIND_{name}" if name in kinds else f"AW_{name}": value
        for name, value in vars(abi).items()
        if re.fullmatch(r"[A-Z][A-Z_]*", name) and isinstance(value, int) and name not in _OWN
    }
    return Mirror(tuple(layouts.values()), constants)


def defines(header: str) -> dict[str, int]:
    """Every `#define AW_NAME NUMBER` of a header's text."""
    found = re.findall(r"^#define (AW_\w+) (\w+)", header, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def structs(header: str) -> frozenset[str]:
    """Every struct that a header's text defines."""
    return frozenset(re.findall(r"^struct (\w+) \{", header, re.MULTILINE))


def _c_type(kind: str) -> str:
    """u64*6 is __u64[6], bytes7 is __u8[7]."""
    one, _, count = kind.partition("*")
    if one.startswith("bytes"):
        return f"__u8[{one.removeprefix('bytes')}]"
    return _C_TYPES[one] + (f"[{count}]" if count else "")


def _member(layout: Layout, index: int) -> str:
    """A field as C spells it, with the struct it is nested in."""
    name = layout.fields[index].name
    for base, member in _NESTED:
        if layout is not base and layout.fields[: len(base.fields)] == base.fields:
            return f"{member}.{name}" if index < len(base.fields) else name
    return name


def _asserts(layout: Layout) -> Iterator[str]:
    struct = f"struct {layout.name}"
    yield f"sizeof({struct}) == {layout.size}"
    for index, field in enumerate(layout.fields):
        member = _member(layout, index)
        yield f"offsetof({struct}, {member}) == {field.offset}"
        yield (
            f"__builtin_types_compatible_p(__typeof__((({struct} *)0)->{member}), "
            f"{_c_type(field.type)})"
        )


def program(mirror: Mirror) -> str:
    """Nothing but assertions: it compiles where all of them hold."""
    claims = [claim for layout in mirror.layouts for claim in _asserts(layout)]
    claims += [f"{name} == {value}" for name, value in mirror.constants.items()]
    lines = [f'_Static_assert({claim}, "{claim}");' for claim in claims]
    return "\n".join(
        ["#include <linux/types.h>", "#include <stddef.h>", '#include "agentwatch.h"', *lines, ""]
    )


def compile_against(header: str, source: str, place: Path) -> Sequence[str]:
    """gcc's complaints about a program that includes this text as agentwatch.h, a line each."""
    (place / "agentwatch.h").write_text(header)
    (place / "mirror.c").write_text(source)
    gcc = ["gcc", "-std=gnu11", "-Wall", "-Wpadded", "-Werror", "-fsyntax-only", "mirror.c"]
    done = subprocess.run(gcc, cwd=place, stderr=subprocess.PIPE, text=True, timeout=60)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert bool(errors) == bool(done.returncode), done.stderr
    return errors
