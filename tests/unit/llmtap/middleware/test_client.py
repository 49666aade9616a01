"""The asynchronous client against a transport of our own: retries, aborts, cancellation. Real servers: integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from llmtap.middleware import VLLMConnectionError, VLLMMiddleware, VLLMStatusError, VLLMStreamError, VLLMTimeout

CHAT = [{"role": "user", "content": "hi"}]
WHOLE = {
    "id": "c",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
}


class Body(httpx.AsyncByteStream):
    def __init__(self, *pieces: bytes | Exception, hang: asyncio.Event | None = None) -> None:
        self.pieces, self.hang, self.closed = pieces, hang, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if self.hang is not None:
            await self.hang.wait()

    async def aclose(self) -> None:
        self.closed = True


Answer = Callable[[httpx.Request], httpx.Response]


def client(folder: Path, answer: Answer, **more: Any) -> VLLMMiddleware:
    return VLLMMiddleware("http://h/v1", folder, model="m", transport=httpx.MockTransport(answer), **more)


def event(text: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n"


def stream(*pieces: bytes | Exception, hang: asyncio.Event | None = None) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(*pieces, hang=hang))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 0.0)


async def test_retries_until_it_answers(tmp_path: Path) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503) if len(asked) == 2 else httpx.Response(200, json=WHOLE)

    async with client(tmp_path, answer) as mw:
        assert await mw.chat_completion(CHAT, temperature=0.1) == WHOLE
        assert mw.get_statistics()["retries"] == 2
        (record,) = mw.load_logs()
    assert record.error is None
    assert record.parameters == {"temperature": 0.1}
    assert len({request.headers["x-request-id"] for request in asked}) == 1


@pytest.mark.parametrize(
    ("trouble", "kind", "error"),
    [
        (httpx.ConnectError("refused"), VLLMConnectionError, "refused"),
        (httpx.ReadTimeout("slow"), VLLMTimeout, "no answer in time"),
        (httpx.Response(500, text="no"), VLLMStatusError, "500: no"),
    ],
)
async def test_retries_end(tmp_path: Path, trouble: Any, kind: type[Exception], error: str) -> None:
    count = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        if isinstance(trouble, Exception):
            raise trouble
        return httpx.Response(500, text="no")

    async with client(tmp_path, answer, max_retries=1) as mw:
        with pytest.raises(kind, match=error):
            await mw.chat_completion(CHAT)
        assert count == 2
        (record,) = mw.load_logs()
        assert record.error is not None
        assert error in record.error
        assert mw.get_statistics()["failed_requests"] == 1


async def test_an_error_of_the_caller_is_not_tried_again(tmp_path: Path) -> None:
    async with client(
        tmp_path, lambda request: httpx.Response(400, json={"error": {"message": "bad", "type": "BadRequestError"}})
    ) as mw:
        with pytest.raises(VLLMStatusError) as caught:
            await mw.completions("x", stream=True)
        assert (caught.value.status, mw.get_statistics()["retries"]) == (400, 0)


async def test_a_stream_to_its_end_and_one_that_breaks(tmp_path: Path) -> None:
    answers = [
        stream(event("a"), event("b"), b"data: [DONE]\n\n"),
        stream(event("a"), httpx.ReadError("reset")),
        stream(event("a")),
    ]
    async with client(tmp_path, lambda request: answers.pop(0)) as mw:
        assert [c["choices"][0]["delta"]["content"] async for c in await mw.chat_completion(CHAT, stream=True)] == ["a", "b"]
        for words in ("reset", "before its end"):
            got = []
            with pytest.raises(VLLMStreamError, match=words):
                async for chunk in await mw.chat_completion(CHAT, stream=True):
                    got.append(chunk)
            assert len(got) == 1
        errors = [record.error for record in mw.load_logs()]
        assert errors[0] is None
        assert "reset" in (errors[1] or "")
        # what came is in the log all the same
        assert (mw.load_logs()[1].response or {})["choices"][0]["message"]["content"] == "a"


async def test_what_is_left_off_is_aborted_and_hung_up(tmp_path: Path) -> None:
    bodies = [Body(event("a"), event("b"), hang=asyncio.Event()) for _ in range(3)]
    answers = iter(bodies)

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=next(answers))

    async with client(tmp_path, answer) as mw:
        async with await mw.chat_completion(CHAT, stream=True) as chunks:
            await anext(aiter(chunks))
        unread = await mw.chat_completion(CHAT, stream=True)
        await unread.close()
        del unread
        forgotten = await mw.chat_completion(CHAT, stream=True)
        del forgotten
        assert mw.get_statistics()["aborted_requests"] == 3
        assert [body.closed for body in bodies[:2]] == [True, True]
        assert [record.error for record in mw.load_logs()] == ["client_abort"] * 3


async def test_a_cancelled_call(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with VLLMMiddleware("http://h/v1", tmp_path, model="m", transport=httpx.MockTransport(answer)) as mw:
        task = asyncio.create_task(mw.chat_completion(CHAT))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert mw.get_statistics()["aborted_requests"] == 1


async def test_the_servers_model(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "first"}]})
        return httpx.Response(200, json={**WHOLE, "model": orjson.loads(request.content)["model"]})

    async with VLLMMiddleware("http://h", None, False, transport=httpx.MockTransport(answer)) as mw:
        assert (await mw.chat_completion(CHAT))["model"] == "first"
        assert (await mw.completions("x", "named"))["model"] == "named"
        assert (await mw.chat_completion(CHAT))["model"] == "first"
        assert asked.count("/v1/models") == 1
        assert mw.load_logs() == []
        with pytest.raises(ValueError, match="messages"):
            await mw.chat_completion("hi")  # type: ignore[call-overload]
    async with VLLMMiddleware("http://h", None, False, transport=httpx.MockTransport(lambda r: httpx.Response(404))) as mw:
        with pytest.raises(VLLMConnectionError, match="/v1/models"):
            await mw.chat_completion(CHAT)
