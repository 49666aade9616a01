"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, overload

import httpx

from llmtap.middleware.base import LIMITS, Logged, Messages, is_stream, patience
from llmtap.middleware.call import About, Call
from llmtap.middleware.errors import VLLMConnectionError
from llmtap.middleware.requests import chat_body, first_model, text_body
from llmtap.middleware.settings import settings


class VLLMMiddleware(Logged):
    """Sends requests to vLLM and logs them. Use it as a context manager, or `close` it; any number of calls at once.

    `base_url`: with its `/v1` (`VLLM_BASE_URL`, http://localhost:8081/v1). `log_dir`: folder of the log (`VLLM_LOG_DIR`,
    ./logs/vllm); `enable_file_logging` False: none. `max_log_size_mb`: size of one log file, then a new one begins
    (`VLLM_MAX_LOG_SIZE_MB`, 100). `timeout`: seconds to wait for the next byte (600; None: for ever), 5 to connect.
    `max_retries`: of calls that got no answer, or 408, 429 or 5xx; never once an answer has begun. `api_key`: `VLLM_API_KEY`.
    `model`: of calls that name none (else the server's first). `key_name`: who asks, `backend`: how the server is called (its
    address), for the statistics. `transport`: httpx's.

    Raises ValueError for wrong arguments, SpoolError for a folder that cannot be written.
    """

    def __init__(
        self,
        base_url: str | None = None,
        log_dir: str | PathLike[str] | None = None,
        enable_file_logging: bool = True,
        log_format: str = "jsonl",
        max_log_size_mb: float | None = None,
        timeout: float | None = 600.0,
        *,
        api_key: str | None = None,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        model: str | None = None,
        key_name: str | None = None,
        backend: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(settings(
            base_url, log_dir, enable_file_logging, log_format, max_log_size_mb, timeout,
            api_key=api_key, max_retries=max_retries, headers=headers, model=model, key_name=key_name, backend=backend,
        ))  # fmt: skip
        self._http = httpx.AsyncClient(timeout=patience(self._settings.timeout), transport=transport, limits=LIMITS)
        self._syncing: asyncio.Task[None] | None = None

    @overload
    async def chat_completion(
        self, messages: Messages, model: str | None = None, *, stream: Literal[False] = False,
        tools: Sequence[Mapping[str, Any]] | None = None, metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None, session: str | None = None, timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None, extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> dict[str, Any]: ...  # fmt: skip
    @overload
    async def chat_completion(
        self, messages: Messages, model: str | None = None, *, stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = None, metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None, session: str | None = None, timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None, extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> AsyncStream: ...  # fmt: skip
    async def chat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        session: str | None = None,
        timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> dict[str, Any] | AsyncStream:
        """A chat: the reply as OpenAI's API has it; with `stream`, its chunks (`async for`). `params`: any of the API's, None is
        left out; `extra_body`: members whose names are taken by arguments; `extra_headers`: of this request. `metadata`,
        `tags`, `session` are logged, not sent. Raises VLLMError."""
        body = chat_body(messages, await self._named(model), stream, tools, extra_body, params)
        return await self._call("chat", body, About(metadata, tags, session, extra_headers), timeout)

    @overload
    async def completions(
        self, prompt: str | Sequence[Any], model: str | None = None, *, stream: Literal[False] = False,
        metadata: Mapping[str, Any] | None = None, tags: Sequence[str] | None = None, session: str | None = None,
        timeout: float | None = None, extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> dict[str, Any]: ...  # fmt: skip
    @overload
    async def completions(
        self, prompt: str | Sequence[Any], model: str | None = None, *, stream: Literal[True],
        metadata: Mapping[str, Any] | None = None, tags: Sequence[str] | None = None, session: str | None = None,
        timeout: float | None = None, extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> AsyncStream: ...  # fmt: skip
    async def completions(
        self,
        prompt: str | Sequence[Any],
        model: str | None = None,
        *,
        stream: bool = False,
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        session: str | None = None,
        timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> dict[str, Any] | AsyncStream:
        """A text completion of a prompt (or of several, or of token ids); otherwise as `chat_completion`."""
        body = text_body(prompt, await self._named(model), stream, extra_body, params)
        return await self._call("completions", body, About(metadata, tags, session, extra_headers), timeout)

    async def close(self) -> None:
        """Ends the connections, and the log."""
        await self._http.aclose()
        if self._syncing is not None:
            await self._syncing
        await asyncio.to_thread(self._journal.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _named(self, model: str | None) -> str:
        if model or self._model:
            return model or self._model or ""
        url = f"{self._settings.base_url}/models"
        try:
            answer = await self._http.get(url, headers=dict(self._settings.headers))
            self._model = first_model(answer.raise_for_status().json(), url)
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise VLLMConnectionError(f"{url}: {error or type(error).__name__}") from error
        return self._model

    async def _call(
        self, endpoint: str, body: Mapping[str, Any], about: About, timeout: float | None
    ) -> dict[str, Any] | AsyncStream:
        call = Call(endpoint, body, about, self._settings, self._journal, self._statistics)
        try:
            with call.watched():
                response = await self._sent(call, timeout)
                if call.stream and response.status_code < 400 and is_stream(response):
                    return AsyncStream(call, response, self)
                try:
                    async for data in response.aiter_bytes():
                        call.feed(data)
                finally:
                    await response.aclose()
                whole = call.finish()[1]
                assert whole is not None
                return whole
        finally:
            self._flush()

    async def _sent(self, call: Call, timeout: float | None) -> httpx.Response:
        """The answer to the last attempt, its head read."""
        waits = patience(timeout) if timeout is not None else httpx.USE_CLIENT_DEFAULT
        while True:
            call.attempts += 1
            request = self._http.build_request("POST", call.url, content=call.content, headers=call.headers, timeout=waits)
            try:
                response = await self._http.send(request, stream=True)
            except httpx.TransportError:
                pause = call.again(None)
                if pause is None:
                    raise
            else:
                pause = call.again(response.status_code, response.headers.get("retry-after"))
                if pause is None:
                    call.head(response.status_code, response.headers.get("content-type", ""))
                    return response
                await response.aclose()
            await asyncio.sleep(pause)

    def _flush(self) -> None:
        """Now and then, beside the calls."""
        if (self._syncing is None or self._syncing.done()) and self._journal.due():
            self._syncing = asyncio.create_task(asyncio.to_thread(self._journal.sync))


class AsyncStream:
    """The chunks of a reply: `async for chunk in stream`. Read it to its end, or `close` it (or use it as a context manager):
    what is left off is logged as aborted. `request_id` finds it in the log."""

    def __init__(self, call: Call, response: httpx.Response, client: VLLMMiddleware) -> None:
        self.request_id = call.uid
        self._call = call
        self._response = response
        self._chunks = _read(call, response, client)

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._chunks)

    async def close(self) -> None:
        """Hangs up; the backend stops generating."""
        await self._chunks.aclose()
        self._call.abort()
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __del__(self) -> None:
        self._call.abort()  # never read, never closed


async def _read(call: Call, response: httpx.Response, client: VLLMMiddleware) -> AsyncGenerator[dict[str, Any]]:
    """The chunks. No method of the stream: it would hold it, and a stream that nobody holds any more is to end."""
    try:
        with call.watched():
            async for data in response.aiter_bytes():
                for chunk in call.feed(data):
                    yield chunk
            for chunk in call.finish()[0]:
                yield chunk
    finally:
        await response.aclose()
        client._flush()
