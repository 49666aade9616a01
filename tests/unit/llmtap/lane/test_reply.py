from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.lane.head import HeaderKinds
from llmtap.lane.reply import ReplyParser

OK = b"HTTP/1.1 200 OK\r\n"
REPLIES = {
    "length": OK + b"Content-Length: 3 \r\nX: y\t\r\n\r\nabc",
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e\r\nde\r\n0\r\nT: v\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nz",
    "no reason": b"HTTP/1.1 299\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "close": OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nz",
}
WRONG = {
    "cl+te": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "te gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "te gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "folded": OK + b"A: b\r\n c\r\n\r\n",
    "switch": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "status 0": b"HTTP/1.1 000 x\r\n\r\n",
    "status 99": b"HTTP/1.1 99 x\r\n\r\n",
    "not http": b"SSH-2.0-x\r\n\r\n",
    "nul": OK + b"A: b\0\r\n\r\n",
    "many headers": OK + b"A: b\r\n" * 500 + b"\r\n",
    "endless head": OK + b"A: " + b"x" * 300_000,
    "endless interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    "endless trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 600_000,
}


def parse(pieces: list[bytes], head_only: bool = False) -> ReplyParser:
    parser = ReplyParser(HeaderKinds())
    parser.expect(head_only)
    for piece in pieces:
        parser.feed(piece)
    return parser


def seen(parser: ReplyParser) -> dict[str, Any]:
    names = ("status", "reason", "version", "fields", "trailers", "head_done", "complete", "keep_alive", "until_close", "surplus")
    return {name: getattr(parser, name) for name in names} | {"body": b"".join(parser.parts), "error": parser.error}


@pytest.mark.parametrize("name", REPLIES)
def test_every_cut_gives_the_same_response(name: str) -> None:
    data = REPLIES[name]
    whole = seen(parse([data]))
    assert whole["complete"] and whole["error"] is None and not whole["surplus"]
    for at in range(1, len(data)):
        assert seen(parse([data[:at], data[at:]])) == whole, at
    assert seen(parse([bytes([b]) for b in data])) == whole


@pytest.mark.parametrize("name", WRONG)
def test_wrong_bytes_are_an_error_however_they_are_cut(name: str) -> None:
    data = WRONG[name]
    step = max(1, len(data) // 50)
    for pieces in ([data, b"x" * 300_000], [data[i : i + step] for i in range(0, len(data), step)]):
        parser = parse(pieces)
        assert parser.error is not None and not parser.complete


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"\x16\x03"])
@pytest.mark.parametrize("name", ["length", "chunked", "no content", "close"])
def test_bytes_after_the_end_belong_to_nothing(name: str, extra: bytes) -> None:
    whole = seen(parse([REPLIES[name]]))
    for pieces in ([REPLIES[name] + extra], [REPLIES[name], extra]):
        got = seen(parse(pieces))
        assert got.pop("surplus") is True
        assert got == {k: v for k, v in whole.items() if k != "surplus"}


def test_a_response_without_length_ends_with_its_connection() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\n\r\nabc", b"def"])
    assert parser.until_close and not parser.complete
    assert parser.closed() and parser.complete and parser.take() == b"abcdef"
    cut = parse([OK + b"Content-Length: 9\r\n\r\nabc"])
    assert not cut.closed() and not cut.complete
    assert not parse([OK]).closed()


def test_head_requests_have_no_body() -> None:
    parser = parse([OK + b"Content-Length: 100\r\n\r\n"], head_only=True)
    assert parser.complete and parser.keep_alive and not parser.surplus
    parser.expect(head_only=False)
    parser.feed(REPLIES["length"])
    assert parser.complete and parser.take() == b"abc"
    assert parse([OK + b"Content-Length: 3\r\n\r\nabc"], head_only=True).surplus


def test_what_is_read() -> None:
    interim = parse([REPLIES["interim"]])
    assert (interim.status, interim.reason, interim.fields) == (200, b"OK", [(b"Content-Length", b"1")])
    chunked = parse([REPLIES["chunked"]])
    assert chunked.trailers == [(b"T", b"v")] and chunked.take() == b"abcde" and chunked.buffered == 0
    assert parse([REPLIES["length"]]).fields == [(b"Content-Length", b"3"), (b"X", b"y")]
    assert not parse([REPLIES["close"]]).keep_alive


@given(st.lists(st.binary(max_size=100), max_size=4), st.booleans())
def test_any_bytes_never_raise(pieces: list[bytes], started: bool) -> None:
    parse([OK, *pieces] if started else pieces).closed()


def test_a_trailer_without_end_is_noticed_even_while_nobody_takes_the_body() -> None:
    parser = parse([OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: ", *[b"x" * 50_000] * 10])
    assert parser.error is not None and parser.buffered == 3


def test_found_by_fuzzing() -> None:
    old = parse([b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 0\r\n\r\n"])
    assert old.complete and not old.keep_alive, "llhttp lets keep-alive win"
    zeros = parse([OK + b"Content-Length: " + b"0" * 5000 + b"1\r\n\r\nx"])
    assert zeros.error is not None and not zeros.head_done, "a length that int() refuses"
    odd = parse([b"HTTP/1.1 200 a\0b\r\nContent-Length: 0\r\n\r\n"])
    assert odd.error is not None and not odd.head_done, "a status line that could not be sent on"
    parser = parse([OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], head_only=True)
    assert parser.complete and not parser.keep_alive, "a body after HEAD would not be seen"
