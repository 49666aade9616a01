"""The same bytes give the same requests however they are cut; and no bytes make the parser raise or grow without bound."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.lane.head import HeaderKinds
from llmtap.lane.inbound import Inbound, RequestParser
from llmtap.lane.limits import LaneLimits

MESSAGES = {
    "get": b"GET /v1/models?x=1 HTTP/1.1\r\nHost: g\r\nX-A: b \t\r\nEmpty:\r\n\r\n",
    "post": b"POST /a HTTP/1.1\r\nhost: g\r\nContent-Length: 5 \r\n\r\nhello",
    "chunked": b"PUT /b HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: v \r\nU: w\r\n\r\n",
    "old": b"GET /c HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "continue": b"POST /d HTTP/1.1\r\nHost: g\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n{}",
    "h2c": b"POST /e HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    "h2c chunked": b"POST /f HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n",
    "h2c get": b"GET /g HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
}


def parse(pieces: list[bytes], limits: LaneLimits | None = None) -> list[Inbound]:
    out: list[Inbound] = []
    parser = RequestParser(limits or LaneLimits(), HeaderKinds(), out.append)
    for piece in pieces:
        parser.feed(piece)
    return out


def seen(inbound: Inbound) -> dict[str, Any]:
    names = (
        "method",
        "target",
        "version",
        "fields",
        "keep_alive",
        "length",
        "trailers",
        "complete",
        "overflow",
        "continue_expected",
    )
    shown = {name: getattr(inbound, name) for name in names}
    shown["body"] = b"".join(inbound.parts)
    shown["refused"] = inbound.refusal and (inbound.refusal.status, inbound.refusal.message)
    return shown


@pytest.mark.parametrize("name", MESSAGES)
def test_every_cut_gives_the_same_request(name: str) -> None:
    data = MESSAGES[name]
    whole = [seen(i) for i in parse([data])]
    assert len(whole) == 1 and whole[0]["complete"] and whole[0]["refused"] is None
    for at in range(1, len(data)):
        assert [seen(i) for i in parse([data[:at], data[at:]])] == whole, at
    assert [seen(i) for i in parse([bytes([b]) for b in data])] == whole


@given(st.lists(st.sampled_from(sorted(MESSAGES)), min_size=1, max_size=5), st.lists(st.integers(0, 2000), max_size=6))
def test_pipelined_requests_however_they_are_cut(names: list[str], cuts: list[int]) -> None:
    data = b"".join(MESSAGES[name] for name in names)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    expected = [seen(parse([MESSAGES[name]])[0]) for name in names]
    assert [seen(i) for i in parse(pieces)] == expected


@given(
    st.sampled_from(sorted(MESSAGES)),
    st.integers(0, 400),
    st.sampled_from([b"", b"\r", b"\n", b"\0", b" ", b":", b"\r\n", b"\t", b"0", b"-1", b"\xff", b"Content-Length: 1\r\n"]),
    st.integers(0, 3),
    st.integers(1, 400),
)
def test_mutated_requests_never_raise_and_cut_never_changes_what_they_are(
    name: str, at: int, put: bytes, drop: int, cut: int
) -> None:
    data = MESSAGES[name]
    at %= len(data)
    data = data[:at] + put + data[at + drop :]
    cut %= len(data) + 1
    whole, halves = parse([data]), parse([data[:cut], data[cut:]])
    # what is complete is the same; a refusal is a refusal (its wording may name the place where llhttp stopped)
    assert [seen(i) for i in whole if i.complete] == [seen(i) for i in halves if i.complete]
    assert [bool(i.refusal) for i in whole] == [bool(i.refusal) for i in halves]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_give_requests_or_a_refusal(data: bytes, cut: int) -> None:
    for inbound in parse([data[:cut], data[cut:]]):
        assert inbound.complete or inbound.refusal is not None or inbound.target


def test_what_is_read() -> None:
    chunked = parse([MESSAGES["chunked"]])[0]
    assert (chunked.method, chunked.target, chunked.length, chunked.body()) == (b"PUT", b"/b", None, b"hello!")
    assert chunked.trailers == [(b"T", b"v"), (b"U", b"w")]
    get = parse([MESSAGES["get"]])[0]
    assert get.fields == [(b"Host", b"g"), (b"X-A", b"b"), (b"Empty", b"")]
    assert parse([MESSAGES["continue"]])[0].continue_expected
    old = parse([MESSAGES["old"]])[0]
    assert (old.version, old.keep_alive) == (b"HTTP/1.0", True)


def test_after_a_refusal_nothing_more_is_a_request() -> None:
    got = parse([MESSAGES["get"] + b"GET / HTTP/1.1\r\n\r\n" + MESSAGES["get"], MESSAGES["get"]])
    assert [i.complete for i in got] == [True, False]
    assert got[1].refusal is not None and got[1].refusal.status == 400 and not got[1].keep_alive


def test_a_refusal_in_the_middle_of_a_body_is_told() -> None:
    out: list[Inbound] = []
    parser = RequestParser(LaneLimits(), HeaderKinds(), out.append)
    parser.feed(b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
    told: list[bool] = []
    out[0].changed = lambda: told.append(out[0].refusal is not None)
    parser.feed(b"nonsense\r\n")
    assert told == [True] and len(out) == 1 and parser.dead


def test_limits() -> None:
    limits = LaneLimits(max_head_bytes=200, max_headers=5, max_body_bytes=10)
    head = b"GET / HTTP/1.1\r\nHost: g\r\n"
    post = b"POST / HTTP/1.1\r\nHost: g\r\n"
    for data, status in (
        (head + b"A: " + b"x" * 300 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 300 + b" HTTP/1.1\r\nHost: g\r\n\r\n", 431),
        (head + b"A: b\r\n" * 5 + b"\r\n", 431),
        (post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 6 + b"\r\n", 431),
        (post + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 300, 431),
        (post + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300, 431),
    ):
        for pieces in ([data, b"x" * 300], [bytes([b]) for b in data]):
            refusal = parse(pieces, limits)[-1].refusal
            assert refusal is not None and refusal.status == status, (data[:60], len(pieces))
    assert parse([post + b"Content-Length: 11\r\n\r\n"], limits)[0].overflow
    assert not parse([post + b"Content-Length: 10\r\n\r\n" + b"x" * 10], limits)[0].overflow
    late = parse([post + b"Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n", b"5\r\nabcde\r\n"], limits)[0]
    assert late.overflow and late.parts == []


def test_a_large_body_before_a_head_does_not_count_as_head() -> None:
    limits = LaneLimits(max_head_bytes=200)
    data = b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000 + MESSAGES["get"]
    for cut in range(40, len(data), 7):
        got = parse([data[:cut], data[cut:]], limits)
        assert [i.complete for i in got] == [True, True], cut


def test_a_head_has_the_same_limit_wherever_in_a_piece_it_begins() -> None:
    """Found by fuzzing: behind another request, or in two large pieces, a head could be larger than the limit."""
    limits = LaneLimits(max_head_bytes=200)
    long = b"GET / HTTP/1.1\r\nHost: g\r\nA: " + b"x" * 200 + b"\r\n\r\n"
    late = MESSAGES["chunked"].replace(b"T: v", b"T: " + b"x" * 200)
    for data in (long, MESSAGES["get"] + long, MESSAGES["post"] + long, MESSAGES["chunked"] + long, late, MESSAGES["get"] + late):
        for cut in range(0, len(data), 5):
            refusal = parse([data[:cut], data[cut:]], limits)[-1].refusal
            assert refusal is not None and refusal.status == 431, (data[:30], cut)


@pytest.mark.parametrize("lines", [b"Connection: keep-alive, close", b"Connection: keep-alive\r\nConnection: close", b""])
def test_http_1_0_says_close(lines: bytes) -> None:
    """Found by fuzzing: llhttp lets keep-alive win."""
    assert not parse([b"GET / HTTP/1.0\r\n" + lines + b"\r\n" * bool(lines) + b"\r\n"])[0].keep_alive


@pytest.mark.parametrize(
    ("host", "good"),
    [(h, True) for h in (b"g", b"g:80", b"10.0.0.1:8000", b"[::1]:8000", b"a_b.example", b"xn--bcher-kva.example:")]
    + [(h, False) for h in (b"", b"a b", b"a/b", b"u@h", b":80", b"g:x", b"[::1", b"h\xe9", b"g h:1", b"http://g", b"g\tg")],
)
def test_a_host_is_one(host: bytes, good: bool) -> None:
    """Found by fuzzing against nginx; RFC 9112 3.2 wants 400."""
    got = parse([b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"])[0]
    assert (got.refusal is None) is good
