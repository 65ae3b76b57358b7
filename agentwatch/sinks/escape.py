"""Names chosen by an agent, made safe to show: no line of a log or a terminal can be forged."""

from __future__ import annotations


def shown(text: str) -> str:
    r"""`text` for a terminal or a text log: what does not print is written as \n, \x1b, \u202e.

    Bytes that are no UTF-8 (surrogate escapes) become \xNN, a backslash becomes two.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_character, text))


def _character(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def utf8(text: str) -> str:
    r"""`text` as valid Unicode, for JSON: bytes that are no UTF-8 become \xNN."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text
