"""Secrets out of command lines, before anything is written. The patterns are data/redact.yaml.

Everything works on bytes with RE2, which takes linear time whatever an agent puts into argv. A
command line that one combined pattern does not match is left alone, which is nearly all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agentwatch import abi
from agentwatch.errors import UsageError

PATTERNS = Path(__file__).resolve().parent.parent / "data" / "redact.yaml"
REDACTED = b"[redacted]"

_DEPTH = 3
"""How deep quoted command lines inside command lines are looked into (sh -c "ssh 'mysql ...'")."""

_WORDS = re.compile(rb"""\s+|(?:'[^']*'?|"(?:\\.|[^"\\])*"?|\\.|[^\s'"\\])+|\\""", re.S)
_SEPARATORS = frozenset((b";", b"|", b"||", b"&", b"&&"))
_NEXT_FLAG = re.compile(rb"--[A-Za-z][A-Za-z-]*(?:=.*)?\Z|-[A-Za-z]\Z", re.S)
"""What is another flag where a value belongs, and no secret that begins with a dash."""
_SCRIPT_FLAG = re.compile(rb"-[A-Za-z]*c\Z")


@dataclass(frozen=True, slots=True)
class _Program:
    """What a program's own words say about secrets (see redact.yaml).

    flags: (flag, what is taken out of its value), for a value of its own word, or joined to it if
    the flag is in `joined`. only: a word that must be there, or b"".
    """

    flags: Mapping[bytes, Callable[[bytes], bytes]]
    joined: tuple[bytes, ...]
    settings: Any
    login: bytes
    switches: bytes
    only: bytes


class Redactor:
    """Made by `Redactor.load`; holds compiled patterns and no state."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        """data: redact.yaml as read. Raises UsageError for a pattern that does not compile."""
        tokens = [(t["prefix"], t["body"], t["least"]) for t in data["tokens"]]
        whole = [f"({prefix}){body}{{{least},}}" for prefix, body, least in tokens]
        after = [entry["pattern"] for entry in data["after"]]
        flag = f"(?is)(--?(?:{'|'.join(data['flags'])}))(?:(=)(.*))?"
        self._values = [_compile(pattern) for pattern in whole + after]
        self._which = _set(whole + after)
        self._cut = [_compile(f"({prefix}){body}*$") for prefix, body, _ in tokens]
        self._cut += [_compile(entry["cut"]) for entry in data["after"] if "cut" in entry]
        self._flag = _compile(flag)
        headers = data["headers"]
        self._header_flag = _compile(headers["flags"])
        self._header = _compile(
            f"(?s)((?:(?:{headers['flags']})=?)?[\"']?{headers['name']}\\s*[:;]\\s*)(.+?)([\"']?)"
        )
        self._assignment = _compile(f"(?s)({data['assignments']}=)(.+)")
        self._programs = dict(_programs(data["programs"]))
        self._any = _compile("|".join([*whole, *after, *_hints(data)]))

    @classmethod
    def load(cls, path: Path = PATTERNS) -> Redactor:
        """The shipped patterns, or those of another file. Raises UsageError, naming the file."""
        try:
            return cls(YAML(typ="safe", pure=False).load(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", "reinstall") from None
        except (YAMLError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no list of redaction patterns: {error}") from None

    def argv(self, tokens: tuple[str, ...], cut: bool = False) -> tuple[str, ...]:
        """The tokens with secrets replaced by `[redacted]`. cut: the last one is not complete."""
        raw = [os.fsencode(token) for token in tokens]
        if not cut and self._any.search(b"\0".join(raw)) is None:
            return tokens
        return tuple(os.fsdecode(token) for token in self._tokens(raw, cut))

    def text(self, text: str) -> str:
        """The same for a text of any other kind: a name as asked for, a URL, a message."""
        raw = os.fsencode(text)
        if self._any.search(raw) is None:
            return text
        return os.fsdecode(self._script(self._value(raw), 0))

    def record(self, raw: bytes | memoryview) -> bytes | memoryview:
        """An exec record with its argv (and its name as asked) redacted; any other as it is.

        The very same object when there was nothing to redact. Raises RecordError.
        """
        _, kind, flags = abi.peek(raw)
        if kind != abi.EXEC:
            return raw
        cut = bool(flags & abi.FLAG_ARGV_CUT)
        values, strings = abi.unpack(raw)
        argv, asked = strings["argv"], strings["asked"]
        if not cut and self._any.search(argv) is None and self._any.search(asked) is None:
            return raw
        ended = argv.endswith(b"\0")
        tokens = argv.removesuffix(b"\0").split(b"\0") if argv else []
        clean = b"\0".join(self._tokens(tokens, cut and not ended)) + b"\0" * ended
        name = os.fsencode(self.text(os.fsdecode(asked)))
        if clean == argv and name == asked:
            return raw
        return abi.pack(kind, values, {**strings, "argv": clean, "asked": name})

    def _tokens(self, tokens: Sequence[bytes], cut: bool) -> list[bytes]:
        clean = []
        for index, token in enumerate(tokens):
            script = index > 0 and _SCRIPT_FLAG.match(tokens[index - 1]) is not None
            whole = None if script else self._assignment.fullmatch(token)
            if whole is not None:
                clean.append(whole.group(1) + REDACTED)
                continue
            token = self._value(token)
            if cut and index == len(tokens) - 1:
                token = _replace(self._cut, token)
            clean.append(self._script(token, 0) if b" " in token or b"\n" in token else token)
        return self._words(clean)

    def _value(self, token: bytes) -> bytes:
        found = sorted(self._which.Match(token) or ())  # no list where nothing matches
        return _replace((self._values[index] for index in found), token)

    def _script(self, text: bytes, depth: int) -> bytes:
        """A command line inside a token: its words are looked at like tokens of their own."""
        pieces = _WORDS.findall(text)
        places = [i for i, piece in enumerate(pieces) if not piece.isspace()]
        words = [self._quoted(pieces[i], depth) for i in places]
        for place, word in zip(places, self._words(words), strict=True):
            pieces[place] = word
        return b"".join(pieces)

    def _quoted(self, word: bytes, depth: int) -> bytes:
        quote = word[:1]
        if depth == _DEPTH or quote not in (b"'", b'"') or not any(c in word for c in b" \t\n"):
            return word
        closed = len(word) > 1 and word.endswith(quote)
        inner = word[1:-1] if closed else word[1:]
        return quote + self._script(inner, depth + 1) + quote * closed

    def _words(self, words: list[bytes]) -> list[bytes]:
        """Flags whose value is a secret, in `words` themselves."""
        for index, word in enumerate(words):
            self._flags(words, index, word)
            self._headers(words, index, word)
            program = self._programs.get(word.rpartition(b"/")[2])
            if program is not None:
                _short_flags(words, index + 1, program)
        return words

    def _flags(self, words: list[bytes], index: int, word: bytes) -> None:
        if not word.startswith(b"-"):
            return
        flag = self._flag.fullmatch(word)
        if flag is None:
            return
        if flag.group(2):
            words[index] = flag.group(1) + b"=" + REDACTED * bool(flag.group(3))
        elif index + 1 < len(words) and not _NEXT_FLAG.match(words[index + 1]):
            words[index + 1] = REDACTED * bool(words[index + 1])

    def _headers(self, words: list[bytes], index: int, word: bytes) -> None:
        """A header behind its flag, or joined to it; one that is redacted already stays so."""
        if not word.startswith(b"-"):
            return
        if index + 1 < len(words) and self._header_flag.fullmatch(word):
            index += 1
        header = self._header.fullmatch(words[index])
        if header is not None and REDACTED not in words[index]:
            words[index] = header.group(1) + REDACTED + header.group(3)


def _short_flags(words: list[bytes], start: int, program: _Program) -> None:
    """Replace a program's own secrets, up to the end of its command."""
    stop = next((i for i in range(start, len(words)) if words[i] in _SEPARATORS), len(words))
    if program.only and program.only not in words[start:stop]:
        return
    login = taken = False
    for index in range(start, stop):
        word = words[index]
        lead, flag = _unbundled(word, program.switches)
        take = program.flags.get(flag)
        if taken:
            taken = False
        elif login and not word.startswith(b"-") and b"=" not in word:
            words[index] = REDACTED
        elif take is not None or (program.settings and program.settings.fullmatch(word)):
            if index + 1 < stop:
                words[index + 1] = (take or _all)(words[index + 1])
                taken = True
        else:
            words[index] = lead + _attached(flag, program)[len(lead) > 0 :]
        login = login or word == program.login != b""


def _unbundled(word: bytes, switches: bytes) -> tuple[bytes, bytes]:
    """-su is (-s, -u): switches come before the one flag that may take a value."""
    rest = word[1:].lstrip(switches) if switches and word[:1] == b"-" != word[1:2] else b""
    return (word[: -len(rest)], b"-" + rest) if 0 < len(rest) < len(word) - 1 else (b"", word)


def _attached(word: bytes, program: _Program) -> bytes:
    for flag in program.joined:
        if word.startswith(flag) and len(word) > len(flag):
            return flag + program.flags.get(flag, _all)(word[len(flag) :])
    return word


def _all(value: bytes) -> bytes:
    return REDACTED if value else value


def _user(value: bytes) -> bytes:
    """USER:SECRET with the secret gone; a user alone stays."""
    for separator in (b":", b"%", b","):
        user, found, secret = value.partition(separator)
        if found and secret:
            return user + separator + REDACTED
    return value


def _pair(value: bytes) -> bytes:
    """NAME=SECRET with the secret gone; a name alone (of a file) stays."""
    name, found, secret = value.partition(b"=")
    return name + found + REDACTED if secret else value


def _proxy(value: bytes) -> bytes:
    """USER:SECRET@HOST with the secret gone; a URL was looked at as such already."""
    user, found, host = value.rpartition(b"@")
    return value if not found or b"://" in value else _user(user) + found + host


def _replace(patterns: Iterable[Any], token: bytes) -> bytes:
    for pattern in patterns:
        token = pattern.sub(_keep, token)
    return token


def _keep(match: Any) -> bytes:
    groups = match.groups()
    after: bytes = groups[1] if len(groups) > 1 and groups[1] else b""
    kept: bytes = groups[0] + REDACTED + after
    return kept


def _options() -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = 64 << 20
    return options


def _set(patterns: Iterable[str]) -> Any:
    """Which of the patterns match, in one pass. They are known to compile."""
    found = re2.Set.SearchSet(_options())
    for pattern in patterns:
        found.Add(pattern.encode("latin-1"))
    found.Compile()
    return found


def _compile(pattern: str) -> Any:
    try:
        return re2.compile(pattern.encode("latin-1"), _options())
    except re2.error as error:
        raise UsageError(f"a redaction pattern does not compile: {pattern}: {error}") from None


_TAKES = {"separate": _all, "user": _user, "pair": _pair, "proxy": _proxy}


def _programs(entries: Iterable[Mapping[str, Any]]) -> Iterable[tuple[bytes, _Program]]:
    for entry in entries:
        flags: dict[bytes, Callable[[bytes], bytes]] = {}
        joined = [flag.encode() for flag in entry.get("attached", ())]
        for key, take in _TAKES.items():
            for flag in (text.encode() for text in entry.get(key, ())):
                flags[flag] = take
                if flag.startswith(b"--"):
                    joined.append(flag + b"=")
                    flags[flag + b"="] = take
                elif key != "separate":
                    joined.append(flag)
        program = _Program(
            flags,
            tuple(joined),
            _compile(entry["settings"]) if "settings" in entry else None,
            entry.get("login", "").encode(),
            entry.get("switches", "").encode(),
            entry.get("only", "").encode(),
        )
        for name in entry["names"]:
            yield name.encode(), program


def _hints(data: Mapping[str, Any]) -> list[str]:
    """What makes a command line worth a closer look, beside the patterns of values."""
    always, needing = [], []
    for entry in data["programs"]:
        names = "|".join(re.escape(name) for name in entry["names"])
        word = entry.get("only") or entry.get("login") or entry.get("settings")
        if word is None:
            always.append(names)
        else:
            needing.append(
                f"(?s:(?:^|[\\0/\\s'\"])(?:{names})[\\0\\s](?:.*[\\0\\s'\"])?(?:{word})[\\0\\s])"
            )
    return [
        f"(?i:--?(?:{'|'.join(data['flags'])})(?:[=\\0\\s]|$))",
        f"(?:^|[\\0/\\s'\"])(?:{'|'.join(always)})[\\0\\s]",
        *needing,
        f"(?:{data['headers']['flags']})[=\\0\\s]?[\"']?{data['headers']['name']}\\s*[:;]",
        f"(?:{data['assignments']}=)",
    ]
