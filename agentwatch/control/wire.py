"""What goes over the control socket: frames of one msgpack map each, decoded at the edge.

A frame is a u32 length, big-endian, and that many bytes of msgpack. A client sends requests; each
is answered by one reply, in order. After the reply to a verb that streams, stream frames follow
until either side closes. Text is `str` with undecodable bytes as surrogate escapes.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack

from agentwatch.errors import (
    AgentwatchError,
    Diagnostic,
    NotRunningError,
    PermissionDenied,
    RuleErrors,
    UsageError,
)

VERSION = 1
REQUEST_MAX = 64 << 10  # bytes of a frame from the client, less its head
REPLY_MAX = 16 << 20  # bytes of a frame from the daemon, less its head
HEAD = struct.Struct(">I")

_ENTRIES_MAX = 64  # of a request's maps; what a verb takes is a handful
_ITEMS_MAX = 1 << 20  # of a map or list from the daemon
_SCALARS = (str, int, float, bool, bytes, type(None))
_VERB = re.compile(r"[a-z]+(\.[a-z]+)?")
_VERB_MAX = 32  # characters
_UNDECODABLE = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
_UNENCODABLE = (ValueError, TypeError, OverflowError, RecursionError)
_ERRORS = {error.exit_code: error for error in (UsageError, NotRunningError, PermissionDenied)}
_RESTART = "restart the daemon: systemctl restart agentwatch"
_FOREIGN = "ask with `agentwatch`, which speaks the control protocol"

_T = TypeVar("_T", str, int, bool)


@dataclass(frozen=True, slots=True)
class Request:
    """One question. args: what the verb takes, scalars all of them."""

    verb: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, name: str, kind: type[_T]) -> _T:
        """An argument that must be there. Raises UsageError where it is not, or no `kind`."""
        value = self.optional(name, kind)
        if value is None:
            raise UsageError(f"{self.verb} needs {name}", f"say {name}, {_article(kind)}")
        return value

    def optional(self, name: str, kind: type[_T]) -> _T | None:
        """An argument, or None. Raises UsageError where it is no `kind`."""
        value = self.args.get(name)
        if value is None:
            return None
        if type(value) is not kind:  # a bool is an int to isinstance
            found, wanted = _article(type(value)), _article(kind)
            raise UsageError(f"{self.verb}: {name} is {found}", f"make it {wanted}")
        return value


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request: a value, or why there is none."""

    value: Mapping[str, Any] = field(default_factory=dict)
    error: AgentwatchError | None = None


@dataclass(frozen=True, slots=True)
class Streamed:
    """One frame of a journal. frame: the number of its type. time: ns of boottime."""

    frame: int
    time: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Missed:
    """So many frames were dropped here because the client was slow."""

    count: int


@dataclass(frozen=True, slots=True)
class End:
    """The last frame of a stream."""

    reason: str = ""


StreamFrame = Streamed | Missed | End


def body_length(head: bytes, limit: int) -> int:
    """Bytes that follow a frame's head. Raises AgentwatchError for none or more than `limit`."""
    (length,) = HEAD.unpack(head)
    if not 0 < length <= limit:
        message = f"not a control frame: its length is {length} bytes, of at most {limit}"
        raise AgentwatchError(message, _FOREIGN)
    return int(length)


def encode_request(request: Request) -> bytes:
    """A whole frame. Raises UsageError for what does not fit into one."""
    raw = {"v": VERSION, "verb": request.verb, "args": dict(request.args)}
    try:
        return _frame(raw, REQUEST_MAX)
    except AgentwatchError as error:
        raise UsageError(f"{request.verb}: {error.message}", "say less") from None


def decode_request(body: bytes) -> Request:
    """The request in a frame's body. Raises AgentwatchError."""
    raw = _map(body, "request", _ENTRIES_MAX)
    version = raw.get("v")
    if type(version) is not int or version != VERSION:
        raise _mismatch(VERSION, version)
    verb, args = raw.get("verb"), raw.get("args", {})
    if not isinstance(verb, str) or len(verb) > _VERB_MAX or not _VERB.fullmatch(verb):
        raise AgentwatchError("not a request: its verb is not one", _FOREIGN)
    if not isinstance(args, dict):
        raise AgentwatchError(f"{verb}: the arguments are no map", _FOREIGN)
    for name, value in args.items():
        # Whoever handles it may quote it: nothing nested, which would overflow the stack there.
        if not isinstance(value, _SCALARS):
            raise AgentwatchError(f"{verb}: {name!a:.40} is not one value", _FOREIGN)
    return Request(verb, args)


def encode_reply(reply: Reply) -> bytes:
    """A whole frame; one that says so where the value does not fit or has no form."""
    try:
        return _frame(_raw_reply(reply), REPLY_MAX)
    except AgentwatchError as error:
        message = f"the daemon's answer cannot be sent: {error.message}"
        failed = AgentwatchError(message, "ask for less, for example one agent or one session")
        return _frame(_raw_reply(Reply(error=failed)), REPLY_MAX)


def decode_reply(body: bytes) -> Reply:
    """The reply in a frame's body. Raises AgentwatchError where it is none we understand."""
    raw = _map(body, "reply", _ITEMS_MAX)
    version, ok, value = raw.get("v"), raw.get("ok"), raw.get("value", {})
    if type(version) is not int or version != VERSION:
        raise _mismatch(version, VERSION)
    if ok is True and isinstance(value, dict):
        return Reply(value=value)
    if ok is False:
        return Reply(error=_error_of(raw))
    raise _foreign("reply", "it is neither an answer nor an error")


def encode_stream(frame: StreamFrame) -> bytes:
    """A whole frame, to be encoded once and sent to many. Raises AgentwatchError: too long."""
    if isinstance(frame, Streamed):
        return _frame({"frame": frame.frame, "time": frame.time, "payload": frame.payload})
    return _frame({"missed": frame.count} if isinstance(frame, Missed) else {"end": frame.reason})


def decode_stream(body: bytes) -> StreamFrame:
    """The stream frame in a frame's body. Raises AgentwatchError."""
    raw = _map(body, "stream frame", _ENTRIES_MAX)
    match raw:
        case {"frame": int(number), "time": int(time), "payload": bytes(payload)}:
            return Streamed(number, time, payload)
        case {"missed": int(count)}:
            return Missed(count)
        case {"end": str(reason)}:
            return End(reason)
    raise _foreign("stream frame", "it is of no known shape")


def _frame(raw: Mapping[str, Any], limit: int = REPLY_MAX) -> bytes:
    try:
        body: bytes = msgpack.packb(raw, unicode_errors="surrogateescape")
    except _UNENCODABLE as error:
        raise AgentwatchError(f"it has no msgpack form: {error}") from None
    if len(body) > limit:
        raise AgentwatchError(f"it takes {len(body)} bytes, of at most {limit}")
    return HEAD.pack(len(body)) + body


def _map(body: bytes, what: str, entries: int) -> dict[str, Any]:
    """entries: of any one map or array in it, so that a few bytes cannot ask for much memory."""
    try:
        raw = msgpack.unpackb(
            body,
            unicode_errors="surrogateescape",
            object_pairs_hook=_unique,
            max_map_len=entries,
            max_array_len=entries,
            max_ext_len=0,
        )
    except _UNDECODABLE as error:
        raise _foreign(what, str(error) or type(error).__name__) from None
    if not isinstance(raw, dict):
        raise _foreign(what, "it is no map")
    return raw


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    if not all(isinstance(key, str) for key in found):
        raise ValueError("a key is no text")
    return found


def _foreign(what: str, why: str) -> AgentwatchError:
    return AgentwatchError(f"not a {what} of the control protocol: {why}", _FOREIGN)


def _mismatch(daemon: object, client: object) -> AgentwatchError:
    both = (
        str(v) if isinstance(v, int) and 0 <= v < 1 << 32 else "unknown" for v in (daemon, client)
    )
    versions = "the daemon speaks version {} of the control protocol, the command line version {}"
    return AgentwatchError(versions.format(*both), _RESTART)


def _raw_reply(reply: Reply) -> dict[str, Any]:
    error = reply.error
    if error is None:
        return {"v": VERSION, "ok": True, "value": dict(reply.value)}
    diagnostics = error.diagnostics if isinstance(error, RuleErrors) else ()
    return {
        "v": VERSION,
        "ok": False,
        "code": error.exit_code,
        "message": error.message,
        "remedy": error.remedy,
        "diagnostics": [dataclasses.asdict(one) for one in diagnostics],
    }


def _error_of(raw: Mapping[str, Any]) -> AgentwatchError:
    """The error that the daemon met, as if it had been met here."""
    code, message, remedy = raw.get("code"), raw.get("message"), raw.get("remedy", "")
    diagnostics = raw.get("diagnostics", [])
    if type(code) is not int or not isinstance(message, str) or not isinstance(remedy, str):
        raise _foreign("reply", "its error has no code, message or remedy")
    if not isinstance(diagnostics, list):
        raise _foreign("reply", "its diagnostics are no list")
    if not diagnostics:
        return _ERRORS.get(code, AgentwatchError)(message, remedy)
    error = RuleErrors(tuple(map(diagnostic_of, diagnostics)))
    error.message, error.remedy = message, remedy
    return error


def diagnostic_of(raw: object) -> Diagnostic:
    """A diagnostic from a reply: an error's, or a warning of a reload. Raises AgentwatchError."""
    match raw:
        case {
            "file": str(file),
            "line": int(line),
            "column": int(column),
            "severity": str(severity),
            "code": str(code),
            "message": str(message),
            "source": str(source),
        }:
            return Diagnostic(file, line, column, severity, code, message, source)
    raise _foreign("reply", "one of its diagnostics is none")


def _article(kind: type) -> str:
    return {str: "text", int: "a number", bool: "true or false"}.get(kind, kind.__name__)
