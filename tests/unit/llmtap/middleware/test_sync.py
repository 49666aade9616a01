"""The client without async: threads, a running loop, the same ends as the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from llmtap.middleware import SyncVLLMMiddleware, VLLMConnectionError, VLLMStatusError, VLLMStreamError

CHAT = [{"role": "user", "content": "hi"}]
WHOLE = {
    "id": "c",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
}


class Body(httpx.SyncByteStream):
    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces, self.closed = pieces, False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.closed = True


def client(folder: Path, answer: Any, **more: Any) -> SyncVLLMMiddleware:
    return SyncVLLMMiddleware("http://h/v1", folder, model="m", transport=httpx.MockTransport(answer), **more)


def event(text: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n"


def streamed(body: Body) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 0.0)


def test_threads_share_one(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        asked = orjson.loads(request.content)
        if asked.get("stream"):
            return streamed(Body(event(asked["messages"][0]["content"]), b"data: [DONE]\n\n"))
        return httpx.Response(200, json=WHOLE)

    got: list[str] = []
    with client(tmp_path, answer, max_log_size_mb=0.01) as mw:

        def work(name: int) -> None:
            for n in range(20):
                mw.chat_completion(CHAT, metadata={"n": n})
                words = f"{name}.{n}"
                got.extend(
                    c["choices"][0]["delta"]["content"]
                    for c in mw.chat_completion([{"role": "user", "content": words}], stream=True)
                )

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        figures = mw.get_statistics()
        records = mw.load_logs()
    assert (figures["total_requests"], figures["successful_requests"]) == (240, 240)
    assert sorted(got) == sorted(f"{name}.{n}" for name in range(6) for n in range(20))
    assert len(records) == len({record.request_id for record in records}) == 240
    assert len(list((tmp_path / "spool").iterdir())) > 5
    for record in records:
        if record.parameters.get("stream"):
            assert (record.response or {})["choices"][0]["message"]["content"] == record.messages[0]["content"]


async def test_inside_a_running_loop(tmp_path: Path) -> None:
    with client(tmp_path, lambda request: httpx.Response(200, json=WHOLE)) as mw:
        assert mw.completions("x") == WHOLE
        assert mw.load_logs()[0].messages == ["x"]


def test_retries_and_errors(tmp_path: Path) -> None:
    answers: list[Any] = [
        httpx.ConnectError("refused"),
        httpx.Response(429),
        httpx.Response(200, json=WHOLE),
        httpx.Response(422),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    with client(tmp_path, answer) as mw:
        assert mw.chat_completion(CHAT) == WHOLE
        with pytest.raises(VLLMStatusError):
            mw.chat_completion(CHAT)
        assert [record.error is None for record in mw.load_logs()] == [True, False]
        assert mw.get_statistics()["retries"] == 2


def test_streams_that_break_or_are_left(tmp_path: Path) -> None:
    bodies = [Body(event("a"), httpx.ReadError("reset")), Body(event("a"), event("b")), Body(event("a"))]
    answers = iter(bodies)
    with client(tmp_path, lambda request: streamed(next(answers))) as mw:
        with pytest.raises(VLLMStreamError, match="reset"):
            list(mw.chat_completion(CHAT, stream=True))
        with mw.chat_completion(CHAT, stream=True) as chunks:
            next(iter(chunks))
        forgotten = mw.chat_completion(CHAT, stream=True)
        del forgotten
        assert [body.closed for body in bodies] == [True] * 3
        figures = mw.get_statistics()
        assert (figures["failed_requests"], figures["aborted_requests"]) == (1, 2)


def test_closing_ends_the_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 60.0)
    asked, ended = threading.Event(), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.set()
        return httpx.Response(503)

    mw = client(tmp_path, answer)

    def work() -> None:
        with pytest.raises(VLLMConnectionError, match="closed"):
            mw.chat_completion(CHAT)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    asked.wait(10)
    mw.close()
    thread.join(10)
    assert ended == [True]
