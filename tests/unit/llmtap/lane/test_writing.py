"""Corners of writing a response; the whole of it is in tests/integration/test_lane_*.py."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import http

from llmtap.core.errors import InternalError
from llmtap.lane import mitm
from llmtap.lane.head import HeaderKinds
from llmtap.lane.inbound import Inbound
from llmtap.lane.limits import LaneLimits
from llmtap.lane.writing import ResponseWriter, declared_length


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (((b"content-length", b"5"),), 5),
        (((b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")), None),
        (((b"content-length", b"five"),), None),
        ((), None),
    ],
)
def test_declared_length(fields: mitm.Fields, length: int | None) -> None:
    assert declared_length(mitm.headers(fields)) == length


class Written(asyncio.WriteTransport):
    def __init__(self) -> None:
        self.data = b""
        self.at_once = False  # as the client connection has been told

    def write(self, data: Any) -> None:
        self.data += bytes(data)


def writer(version: bytes = b"HTTP/1.1", keep: bool = True, complete: bool = True) -> tuple[ResponseWriter, Written, Inbound]:
    inbound = Inbound()
    inbound.method, inbound.version, inbound.keep_alive, inbound.complete = b"POST", version, keep, complete
    out = Written()
    lane = SimpleNamespace(limits=LaneLimits(), kinds=HeaderKinds())
    client: Any = SimpleNamespace(
        lane=lane, transport=out, closing=False, write_at_once=lambda at_once: setattr(out, "at_once", at_once)
    )
    return ResponseWriter(client, inbound), out, inbound


def test_a_whole_response() -> None:
    w, out, _ = writer()
    w.send_whole(http.Response.make(200, b"ab", {"x": "y"}))
    assert out.data == b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nab" and w.sent and w.keep


@pytest.mark.parametrize(
    ("version", "head", "body", "keep"),
    [
        (b"HTTP/1.1", b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n", True),
        (b"HTTP/1.0", b"connection: close\r\n\r\n", b"ab", False),
    ],
)
def test_a_body_of_unknown_length(version: bytes, head: bytes, body: bytes, keep: bool) -> None:
    w, out, _ = writer(version)
    response = http.Response.make(200)
    del response.headers["content-length"]
    body_writer = w.begin(response, b"a")
    assert out.at_once and out.data.endswith(b"a\r\n" if keep else b"a")
    w.finish(body_writer, b"b", None)
    assert not out.at_once and out.data == b"HTTP/1.1 200 OK\r\n" + head + body and w.keep is keep and not w.sent


def test_a_stream_among_many_waits_for_the_end_of_the_turn() -> None:
    w, out, _ = writer()
    w.begin(http.Response.make(200, headers={"transfer-encoding": "chunked"}), b"a", at_once=False)
    assert out.data.endswith(b"1\r\na\r\n") and not out.at_once


def test_a_stream_that_is_here_to_its_end_may_be_held() -> None:
    w, out, _ = writer()
    body_writer = w.begin(http.Response.make(200, headers={"transfer-encoding": "chunked"}), b"a", hold=True)
    assert out.data == b"" and not out.at_once
    w.finish(body_writer, b"", None)
    assert not out.at_once
    assert out.data.startswith(b"HTTP/1.1 200 OK\r\n") and out.data.endswith(b"1\r\na\r\n0\r\n\r\n")


def test_a_connection_ends_when_the_unread_rest_is_too_much() -> None:
    for length, keep in ((100, True), (1 << 20, False), (None, False)):
        w, out, inbound = writer(complete=False)
        inbound.length = length
        w.send_whole(http.Response.make(413))
        assert w.keep is keep and (b"connection: close" in out.data) is not keep


def test_what_cannot_be_sent_is_not_begun() -> None:
    w, out, _ = writer()
    for send in (w.send_whole, lambda response: w.begin(response, b"")):
        with pytest.raises(InternalError):
            send(http.Response.make(200, b"", {"x": "a\r\nb"}))
    assert out.data == b"" and not w.sent
