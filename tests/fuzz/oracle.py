"""What must hold for any bytes given to the lane's parsers, next to the reference. `Violation` says what did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fuzz.generate import Case, Key, ReplyCase
from fuzz.reference import Stream, requests, response
from llmtap.lane.head import HeaderKinds
from llmtap.lane.inbound import Inbound, RequestParser
from llmtap.lane.limits import LaneLimits
from llmtap.lane.reply import ReplyParser

LIMITS = LaneLimits()
#: so small that the limits themselves get tried
TIGHT = LaneLimits(max_head_bytes=160, max_headers=6, max_body_bytes=30)


class Violation(AssertionError):
    """The lane did with these bytes what it must not."""


class Parsed:
    """All that came of the bytes, as a connection would use it: nothing after a request that ends the connection."""

    def __init__(self, pieces: Sequence[bytes], limits: LaneLimits = LIMITS) -> None:
        self.inbounds: list[Inbound] = []
        self.parser = RequestParser(limits, HeaderKinds(), self.inbounds.append)
        for piece in pieces:
            self.parser.feed(piece)
        self.bodies = [b"".join(i.parts) for i in self.inbounds]

    @property
    def served(self) -> list[Key]:
        out: list[Key] = []
        for inbound, body in zip(self.inbounds, self.bodies, strict=True):
            if not inbound.complete or inbound.refusal is not None:
                break
            out.append((inbound.method, inbound.target, body))
            if not inbound.keep_alive:
                break
        return out

    @property
    def refused(self) -> bool:
        return any(i.refusal is not None for i in self.inbounds)

    @property
    def oversized(self) -> bool:
        return any(i.refusal is not None and i.refusal.status == 431 for i in self.inbounds)

    @property
    def ended(self) -> bool:
        """Nothing after this is served, refusal or not."""
        return any(i.refusal is not None or (i.complete and not i.keep_alive) for i in self.inbounds)

    def shown(self) -> list[Any]:
        """All there is to see of it, for comparing; of a refused one only that it is."""
        return [
            (
                i.method,
                i.target,
                i.version,
                i.fields,
                i.trailers if i.complete else None,
                i.keep_alive,
                i.length,
                i.complete,
                i.continue_expected,
                i.overflow,
                body,
            )
            if i.refusal is None
            else "refused"
            for i, body in zip(self.inbounds, self.bodies, strict=True)
        ]


def check_requests(case: Case, pieces: Sequence[bytes]) -> Stream:
    """`pieces` are the case's bytes cut somehow. Raises Violation; returns what the reference makes of the bytes."""
    whole, parts = Parsed([case.data]), Parsed(pieces)
    # one way of counting for what is there, one for what is still to come: the cut decides between a limit and a little more
    near_limits = len(case.data) > LIMITS.max_head_bytes and (whole.oversized or parts.oversized)
    if not near_limits and whole.shown() != parts.shown():
        raise Violation(f"cutting changes what is read: {whole.shown()} / {parts.shown()}")
    expected = requests(case.data)
    if case.expected is not None and not (expected.keys == case.expected == whole.served):
        raise Violation(f"valid requests are read as {whole.served}, reference {expected.keys} {expected.why}")
    served = whole.served
    if served != expected.keys[: len(served)]:
        raise Violation(f"read as {served}, the reference as {expected.keys} {expected.why}")
    for inbound, message in zip(whole.inbounds, expected.messages, strict=False):
        if (
            inbound.refusal is None
            and inbound.complete
            and (inbound.fields, inbound.trailers) != (message.fields, message.trailers)
        ):
            raise Violation(
                f"headers are {inbound.fields} {inbound.trailers}, the reference's {message.fields} {message.trailers}"
            )
        if inbound.refusal is None and inbound.complete and inbound.keep_alive and not message.keep_alive:
            raise Violation("the connection goes on after a request that ends it")
    if expected.end == "invalid" and not whole.ended and whole.parser.in_head:  # judged when it is complete
        whole = Parsed([case.data + b"\r\n\r\n"])
    if expected.end == "invalid" and not whole.ended:
        raise Violation(f"invalid ({expected.why}) and not refused")
    if expected.end in ("boundary", "closed") and len(served) < len(expected.messages) and not whole.ended:
        raise Violation("neither served nor refused")
    return expected


def check_tight(data: bytes, pieces: Sequence[bytes]) -> None:
    """Limits hold however the bytes are cut: nothing above them is taken, nothing below them refused for its size."""
    parts = Parsed(pieces, TIGHT)
    for inbound, body in zip(parts.inbounds, parts.bodies, strict=True):
        size = len(inbound.target) + sum(len(n) + len(v) + 4 for n, v in inbound.fields)
        if inbound.refusal is None and (size > TIGHT.max_head_bytes or len(inbound.fields) > TIGHT.max_headers):
            raise Violation(f"a head of {size} bytes and {len(inbound.fields)} headers is taken")
        size = sum(len(n) + len(v) + 4 for n, v in inbound.trailers)
        if (
            inbound.complete
            and inbound.refusal is None
            and (size > TIGHT.max_head_bytes or len(inbound.trailers) > TIGHT.max_headers)
        ):
            raise Violation(f"trailers of {size} bytes are taken")
        if len(body) > TIGHT.max_body_bytes:
            raise Violation(f"{len(body)} bytes of a body are kept")
        if (
            inbound.refusal is not None
            and inbound.refusal.status == 431
            and len(data) <= TIGHT.max_head_bytes
            and data.count(b"\r\n") < 6
        ):
            raise Violation("refused for its size, which it does not have")


def read_reply(pieces: Sequence[bytes], head_only: bool, eof: bool) -> ReplyParser:
    parser = ReplyParser(HeaderKinds())
    parser.expect(head_only)
    for piece in pieces:
        if parser.error is not None:
            break  # the connection is closed then
        parser.feed(piece)
    if eof and parser.error is None:
        parser.closed()
    return parser


def check_reply(case: ReplyCase, pieces: Sequence[bytes]) -> Stream:
    """The same for what a backend sends."""
    whole, parts = read_reply([case.data], case.head_only, case.eof), read_reply(pieces, case.head_only, case.eof)
    expected = response(case.data, head_only=case.head_only, eof=case.eof)
    # empty lines after a response are harmless wherever they are read: before the next one they are skipped
    empty = not case.data[len(case.data) - expected.rest :].strip(b"\r\n")
    ends = [p.surplus or p.error is not None or not p.keep_alive for p in (whole, parts)]
    if empty and expected.rest:
        ends = [True, True]
    shown = [
        (p.complete, p.head_done, p.error is None or p.complete, end, p.status)
        for p, end in zip((whole, parts), ends, strict=True)
        if p.error is None or p.complete
    ]
    if len(shown) == 2 and (shown[0] != shown[1] or whole.take() != (taken := parts.take())):
        raise Violation(f"cutting changes what is read: {shown}")
    if len(shown) == 2:
        whole.parts = [taken]
    if (whole.error is None) != (parts.error is None):
        raise Violation(f"cutting changes whether it is refused: {whole.error} / {parts.error}")
    if whole.error is None and whole.complete:
        if not expected.messages:
            raise Violation(f"taken as complete, the reference: {expected.end} {expected.why}")
        message = expected.messages[0]
        if (b"%d" % whole.status, body := whole.take()) != (message.first[1], message.body):
            raise Violation(f"read as {whole.status} {body!r}, the reference as {message.first} {message.body!r}")
        if whole.keep_alive and not whole.surplus and (not message.keep_alive or not empty):
            raise Violation(f"the connection would be used again, with {expected.rest} bytes after the response")
        if whole.fields != message.fields:
            raise Violation(f"headers are {whole.fields}, the reference's {message.fields}")
    elif (
        expected.end == "invalid"
        and whole.error is None
        and not whole.complete
        and case.eof
        and whole.head_done
        and whole.until_close
    ):
        raise Violation(f"invalid ({expected.why}) and not refused")
    elif expected.messages and whole.error is None and not whole.complete and not (whole.head_done and not whole.until_close):
        raise Violation("complete for the reference, and the lane waits on")
    return expected
