"""Sending again: what goes out, what is counted, who records."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtap.core.errors import LlmtapError
from llmtap.middleware import iter_logs
from llmtap_launcher.replay.chosen import Asked
from llmtap_launcher.replay.send import Manner, Sent, send
from llmtap_launcher.replay.target import Target

STRAIGHT = Target("b", "http://b/v1", "sk-b", False)
GATEWAY = Target("gateway", "http://gateway/v1", None, True)
REPLY = {
    "id": "1",
    "model": "new",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def asked(number: int, **body: Any) -> Asked:
    return Asked(f"uid{number}", "chat", {"model": "new", "messages": [{"role": "user", "content": str(number)}], **body})


class Engine:
    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []
        self.now = self.most = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        body = json.loads(request.content)
        if body.get("seed") == 4:
            return httpx.Response(400, json={"error": {"message": "no", "type": "BadRequestError"}})
        if body.get("stream"):
            chunk = {"id": "1", "model": "new", "choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]}
            return httpx.Response(
                200, headers={"content-type": "text/event-stream"}, content=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            )
        return httpx.Response(200, json=REPLY)


async def sending(folder: Path, target: Target, engine: Any, requests: list[Asked | None], at_once: int = 4) -> Sent:
    told: list[int] = []
    manner = Manner("r", folder, 1, at_once)
    sent = await send(iter(requests), target, manner, lambda sent: told.append(sent.done), httpx.MockTransport(engine))
    assert told == list(range(1, len(requests) + 1))
    return sent


async def test_straight_to_a_server_they_are_recorded_here(tmp_path: Path) -> None:
    engine = Engine()
    sent = await sending(tmp_path, STRAIGHT, engine, [asked(1, temperature=0), asked(2, stream=True), asked(3, seed=4), None])
    assert (sent.answered, dict(sent.failed), sent.gone) == (2, {"400 BadRequestError": 1}, 1)
    first = engine.seen[0]
    assert (str(first.url), first.headers["authorization"]) == ("http://b/v1/chat/completions", "Bearer sk-b")
    assert not [name for name in first.headers if name.startswith("x-llmtap")]
    logs = sorted(iter_logs(tmp_path), key=lambda record: str(record.metadata))
    assert [record.metadata for record in logs] == [{"replay": "r", "replay_of": f"uid{n}"} for n in (1, 2, 3)]


async def test_through_the_gateway_it_records(tmp_path: Path) -> None:
    engine = Engine()
    assert (await sending(tmp_path, GATEWAY, engine, [asked(1)])).answered == 1
    headers = engine.seen[0].headers
    assert headers["x-llmtap-tags"] == "replay,replay:r" and headers["x-llmtap-cache"] == "no-cache"
    assert json.loads(headers["x-llmtap-metadata"]) == {"replay": "r", "replay_of": "uid1"}
    assert "authorization" not in headers and not (tmp_path / "spool").exists()


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    engine = Engine()
    sent = await sending(tmp_path, GATEWAY, engine, [asked(n) for n in range(20)], at_once=3)
    assert sent.answered == 20 and engine.most == 3


async def test_a_server_that_is_not_there_ends_it(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(LlmtapError, match="http://b/v1/chat/completions: refused"):
        await sending(tmp_path, STRAIGHT, refuse, [asked(n) for n in range(50)])
