"""The middleware in front of a real vLLM: its tokens, tools, errors and aborts, as the engine itself counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtap.middleware import SyncVLLMMiddleware, VLLMMiddleware, VLLMStatusError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
HELLO = [{"role": "user", "content": "hello"}]


async def test_calls_of_every_kind(vllm: str, tmp_path: Path) -> None:
    async with VLLMMiddleware(vllm, tmp_path) as mw:
        whole = await mw.chat_completion(HELLO, max_tokens=6, temperature=0)
        chunks = [c async for c in await mw.chat_completion(HELLO, max_tokens=6, temperature=0, stream=True)]
        text = await mw.completions(["one", "two"], max_tokens=3, n=2)
        with pytest.raises(VLLMStatusError) as refused:
            await mw.chat_completion(HELLO, temperature=-3)
        async with await mw.chat_completion(HELLO, max_tokens=500, ignore_eos=True, stream=True) as stream:
            await anext(aiter(stream))
        figures, logs = mw.get_statistics(), mw.load_logs()
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert said == whole["choices"][0]["message"]["content"]
    assert not any(c.get("usage") for c in chunks)
    assert (logs[1].response or {})["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len(text["choices"]) == 4
    assert logs[2].messages == ["one", "two"]
    assert refused.value.status == 400
    assert "temperature" in str(refused.value)
    assert [record.error is None for record in logs] == [True, True, True, False, False]
    assert (figures["successful_requests"], figures["failed_requests"], figures["aborted_requests"]) == (3, 1, 1)
    assert figures["completion_tokens"] >= 2 * whole["usage"]["completion_tokens"] + text["usage"]["completion_tokens"]


def test_without_async(vllm: str, tmp_path: Path) -> None:
    with SyncVLLMMiddleware(f"{vllm}/v1/", tmp_path, model="tiny") as mw:
        pieces = [c["choices"][0]["text"] for c in mw.completions("Once", max_tokens=5, temperature=0, stream=True)]
        assert "".join(pieces) == mw.completions("Once", max_tokens=5, temperature=0)["choices"][0]["text"]
        with pytest.raises(VLLMStatusError) as unknown:
            mw.chat_completion(HELLO, "no-such-model")
        assert unknown.value.status == 404
