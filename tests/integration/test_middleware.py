"""The middleware against the simulated engine, and through the store: both clients, streams, tools, faults, threads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.middleware import (
    SyncVLLMMiddleware,
    VLLMConnectionError,
    VLLMMiddleware,
    VLLMStatusError,
    VLLMStreamError,
    VLLMTimeout,
)
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.writer import Writer
from support.gateway import free_port
from support.sim import SimHandle, running_sim

pytestmark = pytest.mark.integration
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(ttft_ms=1, tokens_per_second=3000) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(sim: SimHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    sim.reset()
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def stored(folder: Path) -> list[sqlite3.Row]:
    with closing(Writer(folder)) as writer:
        writer.run_pass()
        assert writer.status.bad == 0
    with closing(connect_ro(folder / "capture.db")) as conn:
        return conn.execute("SELECT * FROM exchanges ORDER BY id").fetchall()


async def test_everything_ends_in_the_database(sim: SimHandle, tmp_path: Path) -> None:
    async with VLLMMiddleware(f"{sim.url}/v1", tmp_path, key_name="job", api_key="sk-secret") as mw:
        whole = await mw.chat_completion(chat("one"), max_tokens=8, metadata={"user": 1}, tags=["x"], session="s")
        pieces = [chunk async for chunk in await mw.chat_completion(chat("two"), stream=True, max_tokens=8)]
        text = await mw.completions("three", max_tokens=8)
        called = await mw.chat_completion(chat("weather"), tools=[TOOL], tool_choice="required", max_tokens=30)
        with pytest.raises(VLLMStatusError):
            await mw.chat_completion(chat("four"), "no-such-model")
        sim.fail("die_mid_stream")
        with pytest.raises(VLLMStreamError):
            _ = [chunk async for chunk in await mw.chat_completion(chat("five"), stream=True, max_tokens=50)]
        logs = mw.load_logs()
        figures = mw.get_statistics()
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in pieces)
    assert not any("usage" in chunk for chunk in pieces)
    assert [record.error is None for record in logs] == [True] * 4 + [False] * 2
    assert (logs[1].response or {})["choices"][0]["message"]["content"] == said
    assert (logs[3].response or {})["choices"][0]["message"]["tool_calls"] == [
        {"id": c["id"], "type": "function", "function": c["function"]} for c in called["choices"][0]["message"]["tool_calls"]
    ]
    assert (figures["total_requests"], figures["failed_requests"]) == (6, 2)
    assert "sk-secret" not in "".join(path.read_text() for path in (tmp_path / "spool").iterdir())
    rows = stored(tmp_path)
    assert [row["outcome"] for row in rows] == ["ok"] * 4 + ["rejected", "upstream_error"]
    assert {row["key_name"] for row in rows} == {"job"}
    assert (rows[0]["metadata_json"], rows[0]["tags"], rows[0]["session_hint"]) == ('{"user":1}', '["x"]', "s")
    assert rows[0]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert rows[1]["completion_tokens"] == 8
    assert rows[1]["ttft_ms"] > 0
    assert rows[1]["itl_p50_ms"] is not None
    assert (rows[2]["endpoint"], rows[2]["completion_tokens"]) == ("completions", text["usage"]["completion_tokens"])
    assert rows[3]["finish_reason"] == called["choices"][0]["finish_reason"]
    assert rows[4]["status"] == 404
    assert sum(row["completion_tokens"] or 0 for row in rows[:4]) == sum(
        record.response["usage"]["completion_tokens"] for record in logs[:4] if record.response
    )


async def test_what_is_left_off_stops_the_engine(sim: SimHandle, tmp_path: Path) -> None:
    async with (
        VLLMMiddleware(f"{sim.url}/v1", tmp_path) as mw,
        await mw.chat_completion(chat("long"), stream=True, max_tokens=2000, ignore_eos=True) as stream,
    ):
        await anext(aiter(stream))
    assert [row["outcome"] for row in stored(tmp_path)] == ["client_abort"]
    for _ in range(500):
        if sim.requests("/v1/chat/completions")[-1]["aborted"]:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the engine went on")


async def test_trouble_on_the_way(sim: SimHandle, tmp_path: Path) -> None:
    async with VLLMMiddleware(f"{sim.url}/v1", tmp_path, timeout=5) as mw:
        sim.fail("http_503", times=2)
        assert (await mw.chat_completion(chat("a"), max_tokens=2))["choices"]
        sim.fail("die_before_headers", times=1)
        assert (await mw.chat_completion(chat("b"), max_tokens=2))["choices"]
        sim.fail("slow_headers=5", times=None)
        with pytest.raises(VLLMTimeout):
            await mw.chat_completion(chat("c"), max_tokens=2, timeout=0.05)
    async with VLLMMiddleware(f"http://127.0.0.1:{free_port()}", tmp_path, model="m", max_retries=1) as mw:
        with pytest.raises(VLLMConnectionError):
            await mw.chat_completion(chat("d"))
    rows = stored(tmp_path)
    assert [(row["outcome"], row["attempts"]) for row in rows] == [("ok", 3), ("ok", 2), ("timeout", 3), ("upstream_error", 2)]


async def test_many_at_once(sim: SimHandle, tmp_path: Path) -> None:
    async with VLLMMiddleware(f"{sim.url}/v1", tmp_path, max_log_size_mb=0.02) as mw:

        async def one(n: int) -> None:
            if n % 2:
                await mw.chat_completion(chat(f"n{n}"), max_tokens=4)
            else:
                async for _ in await mw.chat_completion(chat(f"n{n}"), stream=True, max_tokens=4):
                    pass

        await asyncio.gather(*(one(n) for n in range(60)))
    assert len(list((tmp_path / "spool").iterdir())) > 1
    assert [row["outcome"] for row in stored(tmp_path)] == ["ok"] * 60


async def test_without_async_in_threads_and_in_a_loop(sim: SimHandle, tmp_path: Path) -> None:
    with SyncVLLMMiddleware(f"{sim.url}/v1", tmp_path) as mw:
        assert mw.chat_completion(chat("in the loop"), max_tokens=3)["choices"]

        def one(n: int) -> str:
            chunks = mw.chat_completion(chat(f"n{n}"), stream=True, max_tokens=5)
            return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(one, range(40)))
        replies = {record.messages[0]["content"]: record.response for record in mw.load_logs()}
    for n, text in enumerate(said):
        assert (replies[f"n{n}"] or {})["choices"][0]["message"]["content"] == text
    assert [row["outcome"] for row in stored(tmp_path)] == ["ok"] * 41
