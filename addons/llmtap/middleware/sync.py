"""The client without async: the same calls, for threads and scripts; also inside a running event loop, which waits meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, overload

import httpx

from llmtap.middleware.base import LIMITS, Logged, Messages, is_stream, patience
from llmtap.middleware.call import About, Call
from llmtap.middleware.errors import VLLMConnectionError
from llmtap.middleware.requests import chat_body, first_model, text_body
from llmtap.middleware.settings import settings


class SyncVLLMMiddleware(Logged):
    """`VLLMMiddleware` without async, arguments and errors as there. One of it serves any number of threads."""

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(settings(
            base_url, log_dir, enable_file_logging, log_format, max_log_size_mb, timeout,
            api_key=api_key, max_retries=max_retries, headers=headers, model=model, key_name=key_name, backend=backend,
        ))  # fmt: skip
        self._http = httpx.Client(timeout=patience(self._settings.timeout), transport=transport, limits=LIMITS)
        self._closing = threading.Event()

    @overload
    def chat_completion(
        self, messages: Messages, model: str | None = None, *, stream: Literal[False] = False,
        tools: Sequence[Mapping[str, Any]] | None = None, metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None, session: str | None = None, timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None, extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> dict[str, Any]: ...  # fmt: skip
    @overload
    def chat_completion(
        self, messages: Messages, model: str | None = None, *, stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = None, metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None, session: str | None = None, timeout: float | None = None,
        extra_body: Mapping[str, Any] | None = None, extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> Stream: ...  # fmt: skip
    def chat_completion(
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
    ) -> dict[str, Any] | Stream:
        """As `VLLMMiddleware.chat_completion`."""
        body = chat_body(messages, self._named(model), stream, tools, extra_body, params)
        return self._call("chat", body, About(metadata, tags, session, extra_headers), timeout)

    @overload
    def completions(
        self, prompt: str | Sequence[Any], model: str | None = None, *, stream: Literal[False] = False,
        metadata: Mapping[str, Any] | None = None, tags: Sequence[str] | None = None, session: str | None = None,
        timeout: float | None = None, extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> dict[str, Any]: ...  # fmt: skip
    @overload
    def completions(
        self, prompt: str | Sequence[Any], model: str | None = None, *, stream: Literal[True],
        metadata: Mapping[str, Any] | None = None, tags: Sequence[str] | None = None, session: str | None = None,
        timeout: float | None = None, extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None, **params: Any,
    ) -> Stream: ...  # fmt: skip
    def completions(
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
    ) -> dict[str, Any] | Stream:
        """As `VLLMMiddleware.completions`."""
        body = text_body(prompt, self._named(model), stream, extra_body, params)
        return self._call("completions", body, About(metadata, tags, session, extra_headers), timeout)

    def close(self) -> None:
        """Ends the connections, the pauses before retries, and the log."""
        self._closing.set()
        self._http.close()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _named(self, model: str | None) -> str:
        if model or self._model:
            return model or self._model or ""
        url = f"{self._settings.base_url}/models"
        try:
            answer = self._http.get(url, headers=dict(self._settings.headers))
            self._model = first_model(answer.raise_for_status().json(), url)
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise VLLMConnectionError(f"{url}: {error or type(error).__name__}") from error
        return self._model

    def _call(self, endpoint: str, body: Mapping[str, Any], about: About, timeout: float | None) -> dict[str, Any] | Stream:
        call = Call(endpoint, body, about, self._settings, self._journal, self._statistics)
        try:
            with call.watched():
                response = self._sent(call, timeout)
                if call.stream and response.status_code < 400 and is_stream(response):
                    return Stream(call, response, self)
                try:
                    for data in response.iter_bytes():
                        call.feed(data)
                finally:
                    response.close()
                whole = call.finish()[1]
                assert whole is not None
                return whole
        finally:
            self._flush()

    def _sent(self, call: Call, timeout: float | None) -> httpx.Response:
        """The answer to the last attempt, its head read."""
        waits = patience(timeout) if timeout is not None else httpx.USE_CLIENT_DEFAULT
        while True:
            call.attempts += 1
            request = self._http.build_request("POST", call.url, content=call.content, headers=call.headers, timeout=waits)
            try:
                response = self._http.send(request, stream=True)
            except httpx.TransportError:
                pause = call.again(None)
                if pause is None:
                    raise
            else:
                pause = call.again(response.status_code, response.headers.get("retry-after"))
                if pause is None:
                    call.head(response.status_code, response.headers.get("content-type", ""))
                    return response
                response.close()
            if self._closing.wait(pause):
                raise VLLMConnectionError(f"{call.url}: the client was closed", request_id=call.uid)

    def _flush(self) -> None:
        """Now and then."""
        if self._journal.due():
            self._journal.sync()


class Stream:
    """The chunks of a reply: `for chunk in stream`. Read it to its end, or `close` it (or use it as a context manager): what
    is left off is logged as aborted. `request_id` finds it in the log."""

    def __init__(self, call: Call, response: httpx.Response, client: SyncVLLMMiddleware) -> None:
        self.request_id = call.uid
        self._call = call
        self._response = response
        self._chunks = _read(call, response, client)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._chunks)

    def close(self) -> None:
        """Hangs up; the backend stops generating."""
        self._chunks.close()
        self._call.abort()
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self._call.abort()  # never read, never closed
        self._response.close()


def _read(call: Call, response: httpx.Response, client: SyncVLLMMiddleware) -> Generator[dict[str, Any]]:
    """The chunks. No method of the stream: it would hold it, and a stream that nobody holds any more is to end."""
    try:
        with call.watched():
            for data in response.iter_bytes():
                for chunk in call.feed(data):
                    yield chunk
            for chunk in call.finish()[0]:
                yield chunk
    finally:
        response.close()
        client._flush()
