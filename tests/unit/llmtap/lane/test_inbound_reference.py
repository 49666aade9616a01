"""The lane's parsers next to an independent reading of RFC 9112 (`fuzz.reference`): never laxer, whatever the bytes and the cuts.

`tests/fuzz/run.py` does the same a million times; here hypothesis looks for small counterexamples, and shrinks them.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import oracle
from fuzz.generate import KINDS, TOKENS, Case, ReplyCase, alter, case, cut, reply, valid
from fuzz.reference import requests, response
from llmtap.lane.inbound import RequestParser

_LINES = (
    b"GET /a HTTP/1.1\r\n", b"POST /b HTTP/1.1\r\n", b"POST /c HTTP/1.0\r\n", b"Host: g\r\n", b"Content-Length: 3\r\n",
    b"content-length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"A: b\r\n", b"\r\n", b"abc", b"3\r\nabc\r\n", b"3;a=b\r\nabc\r\n", b"0\r\n", b"0\r\n\r\n",
)  # fmt: skip
_REPLIES = (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No\r\n", *_LINES[4:])
_edges = st.lists(st.integers(0, 10_000), max_size=4)


def _cut(data: bytes, edges: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(edge % (len(data) + 1) for edge in edges)})
    return [data[a:b] for a, b in pairwise(at)]


@given(st.lists(st.sampled_from(_LINES + TOKENS) | st.binary(max_size=4), max_size=20), _edges)
def test_no_bytes_are_read_more_laxly_than_the_rfc_does(parts: list[bytes], edges: list[int]) -> None:
    data = b"".join(parts)
    pieces = _cut(data, edges)
    oracle.check_requests(Case("altered", data), pieces)
    oracle.check_tight(data, pieces)


@given(st.lists(st.sampled_from(_REPLIES + TOKENS) | st.binary(max_size=4), max_size=16), _edges, st.booleans(), st.booleans())
def test_nor_are_responses(parts: list[bytes], edges: list[int], head_only: bool, eof: bool) -> None:
    data = b"".join(parts)
    oracle.check_reply(ReplyCase(data, head_only, eof), _cut(data, edges))


@given(st.integers(0, 1 << 64))
def test_generated_streams(seed: int) -> None:
    rng = Random(seed)
    tried = case(rng)
    oracle.check_requests(tried, cut(rng, tried.data))
    answer = reply(rng)
    oracle.check_reply(answer, cut(rng, answer.data))


@given(st.integers(0, 1 << 64))
def test_valid_requests_are_all_served(seed: int) -> None:
    rng = Random(seed)
    made = [valid(rng) for _ in range(3)]
    data = b"".join(wire for wire, _ in made)
    assert oracle.Parsed(cut(rng, data)).served == [key for _, key in made] == requests(data).keys


def test_the_same_seed_gives_the_same_streams() -> None:
    def some(seed: int) -> list[bytes]:
        rng = Random(seed)
        return [case(rng).data for _ in range(50)]

    assert some(3) == some(3) != some(4)
    assert {case(Random(seed)).kind for seed in range(3000)} == set(KINDS)


#: what the reference has to refuse for any comparison with it to mean something
H = b"POST / HTTP/1.1\r\nHost: g\r\n"
REFUSED = [
    H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    H + b"Content-Length: +3\r\n\r\nabc",
    H + b"Content-Length: 3, 3\r\n\r\nabc",
    H + b"Transfer-Encoding: gzip\r\n\r\n",
    H + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    H + b"A: b\r\n c\r\n\r\n",
    H + b"A: b\n\r\n",
    H + b"A: b\rc\r\n\r\n",
    H + b"A: \0\r\n\r\n",
    H + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    H + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
    H + b"Host: h\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\r\n\r\n",
]


@pytest.mark.parametrize("data", REFUSED)
def test_the_reference_refuses(data: bytes) -> None:
    assert requests(data).end == "invalid"
    assert oracle.Parsed([data]).refused


def test_the_reference_reads() -> None:
    data = H + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n" + H + b"Content-Length: 2\r\n\r\n{}GET / HT"
    got = requests(data)
    assert got.keys == [(b"POST", b"/", b"abc"), (b"POST", b"/", b"{}")] and got.end == "incomplete"
    assert got.messages[0].trailers == [(b"T", b"v")]
    assert requests(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\nGET").end == "closed"
    late = response(b"HTTP/1.1 200 OK\r\n\r\nabc", head_only=False, eof=True)
    assert late.messages[0].body == b"abc" and late.end == "closed"


@pytest.mark.parametrize(
    ("data", "old", "new"),
    [
        (REFUSED[0], b"Content-Length: 3\r\n", b""),  # one of two framings overlooked
        (REFUSED[6], b"\r\n c", b" c"),  # a fold unfolded
        (REFUSED[12], b"f" * 17, b"f"),  # an overflow
        (H + b"Content-Length: 5\r\n\r\nhello", b": 5", b": 4"),  # a byte left for the next request
        (H + b"Content-Length: 5\r\n\r\nhello", b"lo", b"l"),  # waited for in vain
        (H + b"A: b\r\nContent-Length: 0\r\n\r\n", b"A: b", b"A: c"),
    ],
)
def test_the_oracle_would_notice(data: bytes, old: bytes, new: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that reads one thing for another."""
    feed = RequestParser.feed
    monkeypatch.setattr(RequestParser, "feed", lambda self, piece: feed(self, piece.replace(old, new)))
    with pytest.raises(oracle.Violation):
        oracle.check_requests(Case("altered", data), [data])


def test_altering_alters() -> None:
    assert sum(alter(Random(seed), H) != H for seed in range(100)) > 80
