"""Requests of our own take their place among those of clients, and give it back."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.errors import ApiError, InternalError, QueueTimeout, UpstreamFailed
from llmtap.errands import Errands
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backend, Backends
from llmtap.queueing import Queueing
from support.lane import Peer, response, running_lane, upstream

BODY = b'{"model":"m","input":["a","b"]}'


def like() -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", "http://gw/v1/embeddings", b"{}", {"content-length": "2", "x-api-key": "client"})
    return flow


def errands(port: int, room: int = 1, **config: object) -> tuple[Errands, Backends, list[Exchange], list[str]]:
    backends = Backends([Backend("a", "127.0.0.1", port, models=("m",), state="up", api_key="own", max_concurrency=room)])
    failed: list[str] = []
    gone: list[Exchange] = []
    queueing = Queueing(
        Config.model_validate(config), backends, lambda name, reason: failed.append(reason), lambda backend: None, lambda ex: None
    )
    return Errands(queueing, gone.append), backends, gone, failed


async def test_a_place_is_taken_and_given_back() -> None:
    heads: list[bytes] = []

    async def serve(peer: Peer) -> None:
        while True:
            head, body = await peer.message()
            heads.append(head.lower())
            assert body == BODY and backends["a"].in_flight == 1
            peer.send(response(b'{"data":[]}'))

    async with upstream(serve) as up, running_lane() as lane:
        own, backends, gone, _ = errands(up.port)
        own.lane = lane.lane
        replies = await asyncio.gather(*(own.ask(like(), "/v1/embeddings", BODY, 5) for _ in range(3)))
        for ex, status, _, content in replies:
            assert (status, content, ex.backend, ex.priority) == (200, b'{"data":[]}', "a", 5)
            assert ex.forwarded is not None and ex in gone
        assert backends["a"].in_flight == 0
        assert b"authorization: bearer own" in heads[0] and b"client" not in heads[0]
        assert b"content-length: %d" % len(BODY) in heads[0]


async def test_failures_are_held_against_the_backend_and_the_place_is_free_again() -> None:
    async def die(peer: Peer) -> None:
        await peer.message()

    async with upstream(die) as up, running_lane() as lane:
        own, backends, _, failed = errands(up.port)
        own.lane = lane.lane
        with pytest.raises(UpstreamFailed):
            await own.ask(like(), "/v1/embeddings", BODY, 0)
        assert failed and backends["a"].in_flight == 0
        with pytest.raises(ApiError):
            await own.ask(like(), "/v1/embeddings", b'{"model":"unknown"}', 0)


async def test_waiting_has_an_end() -> None:
    async def stuck(peer: Peer) -> None:
        await peer.message()
        await peer.rest()

    async with upstream(stuck) as up, running_lane() as lane:
        own, backends, _, _ = errands(up.port, queue={"timeout_s": 0.05})
        own.lane = lane.lane
        first = asyncio.create_task(own.ask(like(), "/v1/embeddings", BODY, 0))
        while not backends["a"].in_flight:
            await asyncio.sleep(0)
        with pytest.raises(QueueTimeout):
            await own.ask(like(), "/v1/embeddings", BODY, 0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert backends["a"].in_flight == 0


async def test_nobody_to_carry_it_out() -> None:
    own, _, _, _ = errands(1)
    with pytest.raises(InternalError):
        await own.ask(like(), "/v1/embeddings", BODY, 0)
