"""One call without its I/O: the request's bytes, what the reply's bytes say, and its two records.

A client makes it, sends `content`, hands in what comes (`head`, `feed`) within `watched`, and ends it once: `finish`, `fail` or
`abort`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from llmtap.core.errors import WireError
from llmtap.core.record import Begin, End, Outcome, Summary
from llmtap.middleware.errors import VLLMConnectionError, VLLMError, VLLMStatusError, VLLMStreamError, VLLMTimeout
from llmtap.middleware.journal import Journal
from llmtap.middleware.settings import Settings
from llmtap.middleware.statistics import Statistics
from llmtap.wire.decode import Decoder, decoder_for
from llmtap.wire.faults import error_of
from llmtap.wire.request import inject_usage, parse
from llmtap.wire.sse import SseDecoder

#: answers that may be another one the next time
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(slots=True)
class About:
    """What the caller says of a call beside its body. `headers` are sent; the rest is for the log alone."""

    metadata: Mapping[str, Any] | None = None
    tags: Sequence[str] | None = None
    session: str | None = None
    headers: Mapping[str, str] | None = None


@dataclass(slots=True)
class Reply:
    """What has come of an answer."""

    status: int
    content_type: str
    decoder: Decoder
    events: SseDecoder | None
    body: list[bytes] = field(default_factory=list)


class Call:
    """`endpoint`: chat or completions; `body`: the request. Raises ValueError for a request that is no JSON."""

    def __init__(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        about: About,
        settings: Settings,
        journal: Journal,
        statistics: Statistics,
        clock: Callable[[], float] = time.monotonic,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        try:
            data = orjson.dumps({name: value for name, value in body.items() if value is not None})
            metadata = None if about.metadata is None else orjson.loads(orjson.dumps(about.metadata))
        except TypeError as error:
            raise ValueError(f"the request cannot be written as JSON: {error}") from None
        try:
            parsed = parse(endpoint, data)
        except WireError as error:
            raise ValueError(str(error)) from None
        self.content = inject_usage(parsed, data)
        self._injected = self.content is not data
        self.stream = parsed.stream
        self.url = settings.base_url + PATHS[endpoint]
        self.retries = settings.retries
        self._headers = {**settings.headers, **(about.headers or {})}
        self._endpoint, self._settings, self._journal, self._statistics = endpoint, settings, journal, statistics
        self._clock, self._wall_us = clock, wall_us
        self._started = self._last = clock()
        self._first: float | None = None
        self._deltas: list[int] = []
        self._chunks = self._bytes = self.attempts = 0
        self._reply: Reply | None = None
        self._done = self._ended = False
        self._begin = Begin(
            uid=journal.new_id(),
            at_us=wall_us(),
            worker=journal.worker,
            method="POST",
            path="/v1" + PATHS[endpoint],
            endpoint=endpoint,
            key_name=settings.key_name,
            session_hint=about.session,
            tags=list(about.tags) if about.tags else None,
            metadata=metadata,
            model=parsed.model,
            stream=parsed.stream,
            request_bytes=len(data),
            body=data,
            body_is_json=True,
        )
        journal.write(self._begin)

    @property
    def uid(self) -> str:
        """Its identity in the log, and the `x-request-id` it is sent with."""
        return self._begin.uid

    @property
    def headers(self) -> dict[str, str]:
        """Of the request."""
        accept = "text/event-stream" if self.stream else "application/json"
        return {"content-type": "application/json", "accept": accept, "x-request-id": self.uid, **self._headers}

    def again(self, status: int | None, retry_after: str | None = None) -> float | None:
        """After an attempt that got this status (None: no answer): seconds to wait before the next, None when it was the last."""
        if self.attempts > self.retries or (status is not None and status not in _AGAIN):
            return None
        try:
            asked = float(retry_after) if retry_after else 0.0
        except ValueError:
            asked = 0.0
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self.attempts - 1))
        return max(pause, min(asked, 60.0)) if asked > 0 else pause

    def head(self, status: int, content_type: str) -> None:
        """The answer has begun."""
        decoder = decoder_for(self._endpoint, content_type, status)
        streamed = self.stream and status < 400 and content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._reply = Reply(status, content_type, decoder, SseDecoder() if streamed else None)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """A piece of the answer: the chunks of a stream it completes. Raises VLLMStreamError; then call `fail`."""
        reply = self._reply
        assert reply is not None
        now = self._clock()
        self._chunks += 1
        self._bytes += len(data)
        try:
            found = reply.decoder.feed(data)
        except WireError:
            found = 0  # the chunks tell
        if found:
            self._first = self._first if self._first is not None else now
            self._deltas += [round((now - self._last) * 10_000), *[0] * (found - 1)]
            self._last = now
        if reply.events is None:
            reply.body.append(data)
            return []
        try:
            return self._read([event.data for event in reply.events.feed(data)])
        except WireError as error:
            raise VLLMStreamError(str(error), request_id=self.uid) from None

    def finish(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The answer is over: the last chunks of a stream, or the whole reply. Raises VLLMError for an answer that is an error or
        broke off; either way the call is recorded."""
        reply = self._reply
        assert reply is not None
        try:
            last = self._read([event.data for event in reply.events.close()]) if reply.events is not None else []
            whole = None if reply.events is not None else self._whole(reply)
            if reply.events is not None and not self._done:
                raise VLLMStreamError("the stream ended before its end ([DONE])", request_id=self.uid)
        except WireError as error:
            broken = VLLMStreamError(str(error), request_id=self.uid)
            self.fail(broken)
            raise broken from None
        except VLLMError as error:
            self.fail(error)
            raise
        self._end("ok")
        return last, whole

    def fail(self, error: VLLMError) -> None:
        """It failed: this is recorded, unless something was before."""
        outcome: Outcome = "upstream_error"
        if isinstance(error, VLLMTimeout):
            outcome = "timeout"
        elif isinstance(error, VLLMStatusError):
            outcome = "timeout" if error.status == 504 else "upstream_error" if error.status >= 500 else "rejected"
        self._end(outcome, error)

    def abort(self) -> None:
        """The caller has lost interest: this is recorded, unless something was before."""
        self._end("client_abort")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around the I/O of the call: what ends it before its time is recorded; an error of httpx's is raised as VLLMError."""
        try:
            yield
        except httpx.HTTPError as error:
            failed = self._unreached(error)
            self.fail(failed)
            raise failed from error
        except VLLMError as error:
            self.fail(error)
            raise
        except BaseException:
            self.abort()
            raise

    def _unreached(self, error: httpx.HTTPError) -> VLLMError:
        words = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            return VLLMTimeout(f"{self.url}: no answer in time ({words})", request_id=self.uid)
        if self._reply is not None:
            return VLLMStreamError(f"{self.url}: the answer broke off: {words}", request_id=self.uid)
        return VLLMConnectionError(f"{self.url}: {words}", request_id=self.uid)

    def _read(self, events: Sequence[bytes]) -> list[dict[str, Any]]:
        chunks = []
        for data in events:
            if data.strip() == b"[DONE]":
                self._done = True
                continue
            try:
                chunk = orjson.loads(data)
            except ValueError:
                raise VLLMStreamError("an event of the stream is not JSON", request_id=self.uid) from None
            if not isinstance(chunk, dict):
                raise VLLMStreamError("an event of the stream is no JSON object", request_id=self.uid)
            if (told := error_of(chunk)) is not None:
                raise VLLMStreamError(told[1], request_id=self.uid)
            if self._injected and "usage" in chunk and not chunk.get("choices"):
                continue  # asked for by us, not by the caller
            if self._injected and chunk.get("usage") is None:
                chunk.pop("usage", None)
            chunks.append(chunk)
        return chunks

    def _whole(self, reply: Reply) -> dict[str, Any]:
        body = b"".join(reply.body)
        try:
            value = orjson.loads(body)
        except ValueError:
            value = None
        if reply.status >= 400:
            reply.decoder.close()
            summary = reply.decoder.summary
            told = body.decode("utf-8", "replace") if value is None else value
            kind = summary.error_type or f"http_{reply.status}"
            raise VLLMStatusError(summary.error_message or "", status=reply.status, type=kind, body=told, request_id=self.uid)
        if self.stream:
            raise VLLMStreamError("a stream was asked for, the answer is none", request_id=self.uid)
        if not isinstance(value, dict) or "choices" not in value:
            raise VLLMStreamError("the answer is no completion of OpenAI's API", request_id=self.uid)
        return value

    def _end(self, outcome: Outcome, error: VLLMError | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        reply, now = self._reply, self._clock()
        summary: Summary | None = None
        if reply is not None:
            with suppress(WireError):
                reply.decoder.close()
            summary = reply.decoder.summary
        end = End(
            uid=self.uid,
            at_us=self._begin.at_us + round((now - self._started) * 1e6),
            outcome=outcome,
            status=None if reply is None else reply.status,
            error_type=None if error is None else error.type,
            error_message=None if error is None else str(error),
            backend=self._settings.backend,
            attempts=self.attempts,
            content_type=None if reply is None else reply.content_type,
            summary=summary,
            ttft_ms=None if self._first is None else round((self._first - self._started) * 1000, 3),
            duration_ms=round((now - self._started) * 1000, 3),
            chunks=self._chunks,
            response_bytes=self._bytes,
            deltas=self._deltas or None,
        )
        self._journal.write(end)
        self._statistics.add(self._begin, end)
