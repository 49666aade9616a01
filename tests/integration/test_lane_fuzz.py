"""The corpus of `tests/fuzz/run.py`, replayed: through the parsers in every cut, through a real lane, and next to nginx."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fuzz.corpus import Corpus
from fuzz.differential import EXCEPTIONS, SENTINEL, Bench, Seen, available, compare, rewritten, run_one
from fuzz.generate import KINDS, Case, ReplyCase
from fuzz.oracle import check_reply, check_requests, check_tight
from fuzz.reference import requests

pytestmark = pytest.mark.integration

REQUESTS, REPLIES = Corpus().requests(), Corpus().replies()
_SLOTS = 24


def test_the_corpus_has_every_class() -> None:
    for kind in KINDS:
        stem = f"request-{re.sub(r'[^a-z0-9.]+', '-', kind)}-"
        assert any(name.startswith(stem) for name in REQUESTS), kind
    assert {"reply-boundary", "reply-closed", "reply-incomplete"} <= set(REPLIES)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_of_the_corpus_in_every_cut(name: str) -> None:
    data = REQUESTS[name]
    for at in range(len(data)):
        check_requests(Case(name, data), [data[:at], data[at:]])
        check_tight(data, [data[:at], data[at:]])
    check_requests(Case(name, data), [data[i : i + 1] for i in range(len(data))])


@pytest.mark.parametrize("name", REPLIES)
def test_a_response_of_the_corpus_in_every_cut(name: str) -> None:
    data = REPLIES[name]
    for head_only in (False, True):
        for eof in (False, True):
            for at in range(len(data)):
                check_reply(ReplyCase(data, head_only, eof), [data[:at], data[at:]])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench(_SLOTS, tmp_path).running(nginx=available() is None) as running:
        yield running


async def _all(one: Callable[[int, str, bytes], Awaitable[None]]) -> None:
    """Every input of the corpus, some at a time."""
    left = iter(REQUESTS.items())

    async def work(slot: int) -> None:
        for name, data in left:
            await one(slot, name, data + SENTINEL)

    await asyncio.gather(*(work(slot) for slot in range(_SLOTS)))


async def test_the_corpus_through_the_lane(bench: Bench) -> None:
    """What reaches the backend is what the reference reads; every connection ends."""

    async def one(slot: int, name: str, data: bytes) -> None:
        seen = await bench.lane(slot, [data[:7], data[7:]])
        assert not seen.hung and not seen.garbled, name
        keys = requests(data).keys
        assert seen.messages == keys[: len(seen.messages)], name
        assert len(seen.statuses) >= len(seen.messages), name
        if name.startswith("request-valid"):
            assert seen.messages == keys, name

    await _all(one)


@pytest.mark.skipif(available() is not None, reason=str(available()))
async def test_the_corpus_next_to_nginx(bench: Bench) -> None:
    wrong: list[str] = []

    async def one(slot: int, name: str, data: bytes) -> None:
        found, _, _ = await run_one(bench, slot, data, [data])
        if found is not None:  # a busy machine makes proxies time out: once more
            found, _, _ = await run_one(bench, slot, data, [data])
        if found is not None:
            wrong.append(f"{name}: {found}")

    await _all(one)
    assert wrong == []


def test_the_comparison_notices() -> None:
    data = b"GET /a HTTP/1.1\r\nHost: g\r\n\r\n" + SENTINEL
    a, sentinel = requests(data).keys
    assert compare(data, Seen([a, sentinel]), Seen([a, sentinel])) == (None, "same")
    assert compare(data, Seen([a]), Seen([a, sentinel])) == (None, "stricter")
    assert compare(data, Seen([a, sentinel]), Seen([a]))[1] == "differs"
    assert compare(data, Seen([a], hung=True), Seen([a]))[1] == "wrong"
    assert compare(data, Seen([a], garbled=[b"x"]), Seen([a]))[1] == "wrong"
    assert compare(data, Seen([sentinel]), Seen([sentinel]))[1] == "wrong"


def test_exceptions_change_heads_only() -> None:
    body = b"5\r\n\t..%x\r\n0\r\n\r\n"
    data = (
        b"POST /../%00 HTTP/1.1\r\nHost:\ta..b\r\nConnection: closed\r\nExpect: 100-continue\r\nExpect: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + body + b"GET / RTSP/1.0\r\nHost: g\r\n\r\nrest\t.."
    )
    assert rewritten(data, EXCEPTIONS) == (
        b"POST /__/_00 HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + body + b"GET / HTTP/1.0\r\nHost: g\r\n\r\nrest\t.."
    )
    assert rewritten(SENTINEL, EXCEPTIONS) == SENTINEL


def test_the_documented_exceptions_are_those_in_use() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    for what, why, _ in EXCEPTIONS:
        assert f"| {what} | {why} |" in page
