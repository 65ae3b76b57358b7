"""What goes over the control socket: every value survives, and garbage is an error that says so."""

from __future__ import annotations

import random

import msgpack
import pytest

from agentwatch.control import wire
from agentwatch.control.wire import End, Missed, Reply, Request, Streamed
from agentwatch.errors import (
    AgentwatchError,
    Diagnostic,
    JournalError,
    NotRunningError,
    PermissionDenied,
    RuleErrors,
    UsageError,
)

ODD = "caf\udce9 \udcff\n\x1b[31m"  # bytes that are no UTF-8, and what a terminal would obey


def body(frame: bytes) -> bytes:
    """What is behind the head, which must tell its length."""
    length = wire.body_length(frame[: wire.HEAD.size], wire.REPLY_MAX)
    assert length == len(frame) - wire.HEAD.size
    return frame[wire.HEAD.size :]


def packed(**raw: object) -> bytes:
    return bytes(msgpack.packb(raw))


REQUESTS = [
    Request("status"),
    Request("agents.tag", {"pid": 7, "agent": "", "project": ODD}),
    Request("events", {"follow": True, "session": None, "since": 1 << 62}),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.verb)
def test_a_request_arrives_as_it_was_made(request_: Request) -> None:
    """Scalars of every kind and undecodable names survive."""
    assert wire.decode_request(body(wire.encode_request(request_))) == request_


def test_a_value_arrives_as_it_was_made() -> None:
    """Maps, lists, large numbers and undecodable names survive."""
    value = {"a": [{"b": ODD, "c": None}], "n": (1 << 64) - 1, "f": 0.5, "raw": b"\xff"}
    assert wire.decode_reply(body(wire.encode_reply(Reply(value)))) == Reply(value)


@pytest.mark.parametrize("frame", [Streamed(3, 1 << 60, b"\x00\xff"), Missed(9), End(ODD)], ids=str)
def test_a_stream_frame_arrives_as_it_was_made(frame: wire.StreamFrame) -> None:
    """Each of the three shapes is told from the others."""
    assert wire.decode_stream(body(wire.encode_stream(frame))) == frame


ERRORS = [
    (AgentwatchError("m", "r"), AgentwatchError),
    (JournalError("m", "r"), AgentwatchError),
    (UsageError("m", "r"), UsageError),
    (NotRunningError("m", "r"), NotRunningError),
    (PermissionDenied(ODD, "r"), PermissionDenied),
]


@pytest.mark.parametrize(("sent", "kind"), ERRORS, ids=lambda e: getattr(e, "__name__", ""))
def test_an_error_is_raised_anew_as_what_it_exits_with(
    sent: AgentwatchError, kind: type[AgentwatchError]
) -> None:
    """Message, remedy and exit code are the daemon's."""
    error = wire.decode_reply(body(wire.encode_reply(Reply(error=sent)))).error
    assert type(error) is kind
    assert (error.message, error.remedy) == (sent.message, sent.remedy)
    assert error.exit_code == sent.exit_code


def test_refused_rules_keep_every_diagnostic() -> None:
    """A reload that failed reads as if the rules had been checked here."""
    found = (
        Diagnostic("/etc/a.yaml", 3, 5, "error", "AW201", "no such field", "  pathh: x"),
        Diagnostic(ODD, 0, 0, "warning", "AW300", "unused"),
    )
    error = wire.decode_reply(body(wire.encode_reply(Reply(error=RuleErrors(found))))).error
    assert isinstance(error, RuleErrors)
    assert error.diagnostics == found
    assert error.message == "1 error in the rule files"


@pytest.mark.parametrize("value", [{"x": "x" * wire.REPLY_MAX}, {"x": object()}, {"x": "\ud800"}])
def test_an_answer_that_cannot_be_sent_is_an_error_that_can(value: dict[str, object]) -> None:
    """Too long, or of no form msgpack has: the client is told, the daemon goes on."""
    error = wire.decode_reply(body(wire.encode_reply(Reply(value)))).error
    assert error is not None
    assert "cannot be sent" in error.message


def test_a_request_that_is_too_long_is_refused_before_it_is_sent() -> None:
    """64 KiB are enough for every verb."""
    with pytest.raises(UsageError, match="bytes"):
        wire.encode_request(Request("status", {"x": "x" * wire.REQUEST_MAX}))


@pytest.mark.parametrize("length", [0, wire.REQUEST_MAX + 1, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_refused(length: int) -> None:
    """Nothing, or more than a request may have."""
    with pytest.raises(AgentwatchError, match=str(length)):
        wire.body_length(wire.HEAD.pack(length), wire.REQUEST_MAX)


def test_the_longest_length_is_accepted() -> None:
    """The limit itself is within the limit."""
    assert wire.body_length(wire.HEAD.pack(65536), wire.REQUEST_MAX) == 65536


@pytest.mark.parametrize("version", [0, 2, 1 << 63, -1, "1", None, True, 1.0])
def test_another_version_is_told_both(version: object) -> None:
    """What each speaks, and what to do."""
    with pytest.raises(AgentwatchError, match="the daemon speaks version 1 of") as caught:
        wire.decode_request(packed(v=version, verb="status", args={}))
    assert "restart the daemon" in caught.value.remedy


def test_an_answer_of_another_version_is_told_both() -> None:
    """An old daemon and a new command line."""
    with pytest.raises(AgentwatchError, match=r"daemon speaks version 7 .* line version 1"):
        wire.decode_reply(packed(v=7, ok=True, value={}))


NO_REQUESTS = {
    "no map": msgpack.packb([1, 2]),
    "no verb": packed(v=1, args={}),
    "a verb that is a number": packed(v=1, verb=3, args={}),
    "a verb that is a list": packed(v=1, verb=["status"], args={}),
    "a verb that is empty": packed(v=1, verb="", args={}),
    "a verb with an escape code": packed(v=1, verb="\x1b[31m", args={}),
    "a verb with a newline behind": packed(v=1, verb="status\n", args={}),
    "a verb without end": packed(v=1, verb="s" * 60000, args={}),
    "arguments that are a list": packed(v=1, verb="status", args=[1]),
    "an argument that is a list": packed(v=1, verb="status", args={"x": []}),
    "an argument that is a map": packed(v=1, verb="status", args={"x": {}}),
    "a key that is a number": b"\x83\x01\x02" + packed(v=1, verb="status")[1:],
    "a key that is a list": b"\x81\x91\x01\x02",
    "a key that is there twice": b"\x83" + packed(v=1, verb="status")[1:] + b"\xa1v\x01",
    "an argument that is there twice": b"\x83"
    + packed(v=1, verb="status")[1:]
    + b"\xa4args\x82\xa1x\x01\xa1x\x02",
    "more behind it": packed(v=1, verb="status", args={}) + b"\x00",
    "the half of one": packed(v=1, verb="status", args={})[:-3],
    "deep lists": b"\x91" * 65536,
    "deep maps": b"\x81\xa1x" * 20000,
    "a list of 2^32-1": b"\xdd\xff\xff\xff\xff",
    "a map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "a list of 65,000": b"\xdc\xfd\xe8" + b"\xc0" * 65000,
    "a map of 8,000": msgpack.packb({str(i): None for i in range(8000)}),
    "a text of 2^32-1": b"\xdb\xff\xff\xff\xff",
    "an extension": b"\x84" + packed(v=1, verb="status")[1:] + b"\xa1x\xd4\x05\x00\xa1y\x01",
    "a time": b"\x83"
    + packed(v=1, verb="status")[1:]
    + b"\xa4args\x81\xa1x\xd6\xff\x00\x00\x00\x00",
    "a byte that means nothing": b"\xc1",
}


@pytest.mark.parametrize("garbage", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
def test_what_is_no_request_is_an_error(garbage: bytes) -> None:
    """One line of bounded length, whatever was sent."""
    with pytest.raises(AgentwatchError) as caught:
        wire.decode_request(garbage)
    assert caught.value.remedy
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable() or str(caught.value).count("\n") == 1


NO_REPLIES = [
    packed(v=1),
    packed(v=1, ok=1, value={}),
    packed(v=1, ok=True, value=[]),
    packed(v=1, ok=False),
    packed(v=1, ok=False, code="1", message="", remedy=""),
    packed(v=1, ok=False, code=1, message=None, remedy=""),
    packed(v=1, ok=False, code=1, message="", remedy="", diagnostics={}),
    packed(v=1, ok=False, code=1, message="", remedy="", diagnostics=[{"file": "x"}]),
    b"",
    b"\xc1",
]


@pytest.mark.parametrize("garbage", NO_REPLIES, ids=range(len(NO_REPLIES)))
def test_what_is_no_reply_is_an_error(garbage: bytes) -> None:
    """Something else than a daemon listens at that path."""
    with pytest.raises(AgentwatchError, match="not a reply"):
        wire.decode_reply(garbage)


@pytest.mark.parametrize("raw", [{}, {"frame": 1}, {"missed": "1"}, {"end": None}], ids=str)
def test_what_is_no_stream_frame_is_an_error(raw: dict[str, object]) -> None:
    """Each shape wants all of its fields, with their types."""
    with pytest.raises(AgentwatchError, match="not a stream frame"):
        wire.decode_stream(packed(**raw))


def test_random_bytes_decode_or_are_an_error() -> None:
    """100,000 mutations of real frames, and noise: never any other exception."""
    chance = random.Random(20)
    real = [body(wire.encode_request(r)) for r in REQUESTS]
    real += [body(wire.encode_stream(Streamed(1, 2, b"abc"))), packed(v=1, ok=True, value={})]
    decoders = (wire.decode_request, wire.decode_reply, wire.decode_stream)
    refused = 0
    for turn in range(100_000):
        data = bytearray(chance.choice(real) if turn % 4 else chance.randbytes(turn % 64))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            decoders[turn % 3](bytes(data))
        except AgentwatchError:
            refused += 1
    assert 50_000 < refused < 100_000


def test_an_argument_is_of_the_type_asked_for() -> None:
    """A number is no text and a truth is no number; what is missing is named."""
    request = Request("agents.tag", {"pid": 7, "agent": "x", "flag": True, "none": None})
    assert request.argument("pid", int) == 7
    assert request.argument("agent", str) == "x"
    assert request.argument("flag", bool) is True
    assert request.optional("none", str) is None
    assert request.optional("missing", int) is None
    for name, kind in (("pid", str), ("flag", int), ("agent", bool)):
        with pytest.raises(UsageError, match=f"agents.tag: {name} is"):
            request.optional(name, kind)
    with pytest.raises(UsageError, match=r"agents\.tag needs missing"):
        request.argument("missing", int)
