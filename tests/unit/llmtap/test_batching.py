"""Gathering: who goes together, when, and what becomes of those who leave or fail."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.batching import Batching
from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import ApiError, ClientLeft, TooMany
from llmtap.exchange import Exchange
from llmtap.policy.route import Route
from llmtap.wire.request import parse

Sent = tuple[http.HTTPFlow, Exchange, asyncio.Task[None] | None]


class Desk:
    """Batching over a server that embeds a text as its length; `asked` are the bodies it got."""

    def __init__(self, **section: Any) -> None:
        config = Config.model_validate({"batching": {"enabled": True, "max_wait_ms": 5, **section}}).batching
        self.gate = Batching(config, self.ask, lambda *seen: self.seen.append(seen))
        self.seen: list[tuple[str | None, int, list[float]]] = []
        self.asked: list[tuple[str, dict[str, Any], int]] = []
        self.status, self.error, self.content = 200, None, b""
        self.release = asyncio.Event()
        self.release.set()
        self.cancelled = False

    async def ask(self, flow: http.HTTPFlow, path: str, body: bytes, priority: int) -> tuple[Exchange, int, http.Headers, bytes]:
        obj = orjson.loads(body)
        self.asked.append((path, obj, priority))
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        ex = exchange("/v1/embeddings", body)
        ex.backend, ex.forwarded, ex.queue_s = "gpu-0", 7.0, 0.5
        data = [{"index": n, "embedding": [len(text)]} for n, text in enumerate(obj.get("input") or ())]
        return (
            ex,
            self.status,
            http.Headers(),
            self.content or orjson.dumps({"data": data, "usage": {"prompt_tokens": len(data)}}),
        )

    def send(
        self, text: Any, path: str = "/v1/embeddings", **more: Any
    ) -> tuple[http.HTTPFlow, Exchange, asyncio.Task[None] | None]:
        attributes = {name: more.pop(name) for name in ("lane", "route", "priority", "direct") if name in more}
        body = orjson.dumps({"model": "m", "input": text, **more})
        flow = tflow.tflow()
        flow.request = http.Request.make("POST", f"http://gw{path}", body)
        ex = exchange(path, body)
        for name, value in attributes.items():
            setattr(ex, name, value)
        waiting = self.gate.on_request(flow, ex)
        return flow, ex, None if waiting is None else asyncio.ensure_future(waiting)  # type: ignore[arg-type]


def exchange(path: str, body: bytes) -> Exchange:
    endpoint = endpoint_of(path)
    assert endpoint is not None
    ex = Exchange("POST", path, endpoint, "openai", "")
    ex.parsed, ex.lane, ex.route = parse(endpoint.name, body), True, Route("any", "m")
    return ex


def vectors(flow: http.HTTPFlow) -> list[int]:
    assert flow.response is not None and flow.response.status_code == 200
    return [d["embedding"][0] for d in orjson.loads(flow.response.content or b"")["data"]]


async def test_those_who_come_together_go_together() -> None:
    desk = Desk()
    sent = [desk.send("x" * n, priority=n) for n in range(1, 4)]
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert [vectors(flow) for flow, _, _ in sent] == [[1], [2], [3]]
    ((path, body, priority),) = desk.asked
    assert (path, body, priority) == ("/v1/embeddings", {"model": "m", "input": ["x", "xx", "xxx"]}, 3)
    for _, ex, _ in sent:
        assert (ex.route, ex.backend, ex.forwarded, ex.queue_s, ex.cache) == (None, "gpu-0", 7.0, 0.5, "bypass")
    assert [(model, size, len(waits)) for model, size, waits in desk.seen] == [("m", 3, 3)]


async def test_a_full_batch_leaves_at_once_and_the_next_is_another() -> None:
    desk = Desk(max_batch_size=4, max_wait_ms=60_000)
    sent = [desk.send(f"{n:04}") for n in range(8)]
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert [len(body["input"]) for _, body, _ in desk.asked] == [4, 4]
    more = [desk.send(["a", "b", "c"]), desk.send(["d", "e"])]
    await asyncio.sleep(0)
    assert len(desk.gate._gathering) == 1 and more[0][2] is not None
    await more[0][2]
    assert more[0][0].response is None, "too many for one: the first was alone"
    for _, ex, task in more[1:]:
        desk.gate.on_finish(more[1][0], ex)
        assert task is not None
        with pytest.raises(ClientLeft):
            await task


async def test_the_same_text_is_computed_once() -> None:
    desk = Desk()
    sent = [desk.send("same"), desk.send("same"), desk.send(["same", "other"])]
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert desk.asked[0][1]["input"] == ["same", "other"]
    assert [vectors(flow) for flow, _, _ in sent] == [[4], [4], [4, 5]]
    assert [ex.cache for _, ex, _ in sent] == ["bypass", "shared", "bypass"]


async def test_alone_it_goes_its_ordinary_way() -> None:
    desk = Desk()
    flow, ex, task = desk.send("alone")
    assert task is not None
    await task
    assert flow.response is None and ex.route is not None and desk.asked == [] and desk.seen == []
    for others in ({"dimensions": 3}, {"model": "n"}):
        first, second = desk.send("a"), desk.send("b", **others)
        assert first[2] is not None and second[2] is not None
        await asyncio.gather(first[2], second[2])
        assert first[0].response is second[0].response is None


@pytest.mark.parametrize("others", [{"lane": False}, {"route": None}, {"direct": (1, "/")}])
async def test_who_does_not_wait(others: dict[str, Any]) -> None:
    desk = Desk()
    assert desk.send("a", **others)[2] is None
    assert desk.send("a", "/v1/chat/completions")[2] is None
    desk.gate.ask = None
    assert desk.send("a")[2] is None


@pytest.mark.parametrize(("status", "content"), [(400, b""), (200, b"nonsense"), (200, b'{"data":[]}')])
async def test_what_is_refused_or_strange_goes_again_one_by_one(status: int, content: bytes) -> None:
    desk = Desk()
    desk.status, desk.content = status, content
    sent = [desk.send(text) for text in "abc"]
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert all(flow.response is None and ex.route is not None for flow, ex, _ in sent)


async def test_a_failure_is_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.error = TooMany("full", code="queue_full")  # type: ignore[assignment]
    sent = [desk.send(text) for text in "ab"]
    for _, _, task in sent:
        assert task is not None
        with pytest.raises(TooMany) as caught:
            await task
        assert caught.value.code == "queue_full" and caught.value is not desk.error
    desk.error = RuntimeError("boom")  # type: ignore[assignment]
    sent = [desk.send(text) for text in "ab"]
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert all(ex.route is not None for _, ex, _ in sent) and "a batch failed" in caplog.text


async def test_one_leaves_the_others_stay() -> None:
    desk = Desk()
    sent = [desk.send(text) for text in ("a", "bb", "ccc")]
    await asyncio.sleep(0)
    desk.gate.client_left(sent[0][0].client_conn.id)
    results = await asyncio.gather(*(task for _, _, task in sent if task is not None), return_exceptions=True)
    assert isinstance(results[0], ClientLeft) and results[1:] == [None, None]
    assert desk.asked[0][1]["input"] == ["bb", "ccc"]


async def test_when_all_have_left_the_backend_is_stopped() -> None:
    desk = Desk()
    desk.release.clear()
    sent = [desk.send(text) for text in ("a", "bb")]
    while not desk.asked:
        await asyncio.sleep(0)
    for flow, ex, _ in sent:
        assert not desk.cancelled
        desk.gate.on_finish(flow, ex)
    results = await asyncio.gather(*(task for _, _, task in sent if task is not None), return_exceptions=True)
    assert all(isinstance(result, ApiError) for result in results)
    while not desk.cancelled:
        await asyncio.sleep(0)
    assert desk.gate._members == desk.gate._gathering == {}


async def test_chats_where_it_is_asked_for() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert Desk().send(None, "/v1/chat/completions", **body)[2] is None
    desk = Desk(chat=True)
    sent = [desk.send(None, "/v1/chat/completions", messages=[{"role": "user", "content": text}]) for text in "ab"]
    choices = [{"index": n, "message": {"role": "assistant", "content": f"to {n}"}} for n in range(2)]
    desk.content = orjson.dumps({"choices": choices})
    await asyncio.gather(*(task for _, _, task in sent if task is not None))
    assert desk.asked[0][0] == "/v1/chat/completions/batch"
    for n, (flow, _, _) in enumerate(sent):
        assert flow.response is not None
        assert orjson.loads(flow.response.content or b"")["choices"][0]["message"]["content"] == f"to {n}"
