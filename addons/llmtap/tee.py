"""The tee: every piece of a reply goes to the client as it came, and to a decoder that learns from it.

Promises: the client's bytes never depend on the decoder (it may raise, lag or not exist), except that the usage chunk
we asked for ourselves is withheld; memory is bounded by one event plus what the decoder keeps; one clock reading a piece.
A piece that takes the decoder some time is read when the client has it (`after`), at the latest before the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mitmproxy import http

from llmtap.core.endpoints import OTHER
from llmtap.core.errors import WireError
from llmtap.core.headers import by_name, text
from llmtap.core.record import Usage
from llmtap.exchange import Exchange
from llmtap.wire.decode import Decoder, decoder_for
from llmtap.wire.estimate import PromptEstimator
from llmtap.wire.openai import plain_chat
from llmtap.wire.request import ParsedRequest
from llmtap.wire.withhold import UsageFilter

#: a reply that nobody decodes is kept up to this size
RAW_CAP = 1 << 20
#: answers that may take their time to come: these are streamed, everything else is small and arrives whole
_STREAMED = ("text/event-stream", "application/x-ndjson", "application/octet-stream", "audio/", "multipart/")
_CLOSED = b""
_JSON = "application/json"


class Tee:
    """The callable mitmproxy hands each piece of a streamed reply to; `b""` says the clean end."""

    __slots__ = ("_clock", "_decoder", "_ex", "_failed", "_filter", "_last", "_on_error", "_quick", "_unread")

    def __init__(
        self,
        ex: Exchange,
        decoder: Decoder,
        usage_filter: UsageFilter | None,
        on_error: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._ex: Exchange | None = ex  # until the end: the exchange knows its tee, and a cycle would wait for the collector
        self._decoder = decoder
        self._quick = decoder.quick
        self._filter = usage_filter
        self._on_error = on_error
        self._clock = clock
        self._last = ex.started
        self._failed = False
        self._unread: tuple[bytes, float] | None = None  # a piece the decoder has yet to read, and when it came

    def __call__(self, data: bytes) -> bytes | list[bytes]:
        now = self._clock()
        if self._unread is not None:
            self.after()
        if data:
            try:
                count = self._quick(data)  # most pieces of a stream
            except Exception:
                count = -1
            out = data if self._filter is None else self._forward(data, count >= 0)
            self._learn(data, now, count)
            return out or []  # an empty bytes object would end the client's response
        tail = self._flush()
        self.close()
        return tail

    def _forward(self, data: bytes, ordinary: bool) -> bytes:
        if self._filter is None:
            return data
        try:
            return self._filter.ordinary(data) if ordinary else self._filter.feed(data)
        except Exception:
            # what the filter still held is not lost: it gives it up, and passes everything from now on
            held = self._flush()
            self._filter = None
            self._on_error()
            return held + data

    def _flush(self) -> bytes:
        if self._filter is None:
            return b""
        try:
            return self._filter.flush()
        except Exception:
            self._on_error()
            return b""

    def _learn(self, data: bytes, now: float, content_events: int) -> None:
        """`content_events`: -1 when the decoder has not taken the piece yet."""
        ex = self._ex
        if ex is None:
            return
        ex.chunks += 1
        ex.reply_bytes += len(data)
        ex.last_chunk = now
        if self._failed:
            return
        if content_events < 0:
            self._unread = data, now
        elif content_events:
            self._note(ex, content_events, now)

    def after(self) -> None:
        """The client has the last piece: the decoder may take its time. Whoever forwards pieces may call it, or not."""
        unread, ex = self._unread, self._ex
        if unread is None or ex is None:
            return
        self._unread = None
        data, came = unread
        try:
            content_events = self._decoder.feed(data)
        except Exception as error:
            self._fail(error)
            return
        if content_events:
            self._note(ex, content_events, came)

    def _note(self, ex: Exchange, content_events: int, now: float) -> None:
        if ex.first_content is None:
            ex.first_content = now
        ex.deltas.append(round((now - self._last) * 10_000))
        # several tokens in one piece arrived at once
        ex.deltas.extend([0] * (content_events - 1))
        self._last = now

    def close(self) -> None:
        """The reply has ended, cleanly or not: let the decoder finish what it has. Safe to call twice."""
        ex = self._ex
        if ex is None:
            return
        self.after()
        if not self._failed:
            try:
                self._decoder.close()
            except Exception as error:
                self._fail(error)
        ex.summary = self._decoder.summary
        self._ex = None

    def _fail(self, error: Exception) -> None:
        self._failed = True
        ex = self._ex
        if ex is not None:
            ex.summary = self._decoder.summary
        if not isinstance(error, WireError) or (ex is not None and ex.status == 200):
            self._on_error()

    def held(self) -> bytes:
        """What the filter holds back of a stream that broke: the client gets it before the last words."""
        return self._flush()


class TeeInstaller:
    """Observer: puts a tee on streamed replies and reads whole ones."""

    name = "tee"

    def __init__(self, on_error: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_error = on_error
        self._clock = clock
        self._estimator = PromptEstimator()
        self._fingerprints: dict[str, str] = {}  # by backend: vLLM's system_fingerprint, which a withheld chunk takes with it

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        response = flow.response
        if response is None or ex.refusal is not None:
            return
        ex.status = response.data.status_code
        headers = by_name(response.data.headers.fields)
        content_type = headers.get(b"content-type")
        if content_type == b"application/json" and b"content-length" in headers:
            ex.content_type = _JSON
            return  # it comes whole
        ex.content_type = text(content_type) or ""
        if ex.cache == "hit":
            return  # understood long ago
        kind = ex.content_type.partition(";")[0].strip().lower()
        if kind.startswith(_STREAMED) or (ex.stream and b"content-length" not in headers):
            usage_filter = None
            if ex.usage_injected and kind == "text/event-stream":
                usage_filter = UsageFilter(self._fingerprints.get(ex.backend or ""))
            response.stream = ex.tee = self._tee(response, ex, usage_filter)

    def _tee(self, response: http.Response, ex: Exchange, usage_filter: UsageFilter | None) -> Tee:
        metadata = text(by_name(response.data.headers.fields).get(b"metadata"))
        decoder = decoder_for(ex.endpoint.name, ex.content_type, response.status_code, metadata=metadata)
        return Tee(ex, decoder, usage_filter, self._on_error, self._clock)

    def on_response(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        """A reply that was not streamed is here as a whole."""
        response = flow.response
        if response is None or ex.refusal is not None or ex.status is None or response.stream or ex.cache == "hit":
            return
        body = response.data.content or b""
        if ex.endpoint.name == "chat" and ex.status == 200 and ex.content_type == _JSON:
            summary = plain_chat(body)
            if summary is not None:
                ex.summary = summary
                ex.chunks, ex.reply_bytes, ex.last_chunk = 1, len(body), self._clock()
                return
        ex.tee = self._tee(response, ex, None)
        if body:
            ex.tee(body)
            if ex.endpoint is OTHER and len(body) <= RAW_CAP:
                ex.reply_body = body
        ex.tee(_CLOSED)

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        summary = ex.summary
        if summary is None:
            return
        fingerprint = summary.meta.get("system_fingerprint")
        if ex.backend is not None and isinstance(fingerprint, str):
            self._fingerprints[ex.backend] = fingerprint
        if ex.parsed is not None and ex.endpoint.generates:
            self._prompt(ex.parsed, summary.usage)

    def _prompt(self, parsed: ParsedRequest, usage: Usage) -> None:
        if usage.prompt_tokens is not None:
            self._estimator.learn(parsed, usage.prompt_tokens)
        elif usage.source == "estimated":  # a stream that was cut: what it produced is counted, its prompt is not known
            usage.prompt_tokens = self._estimator.guess(parsed)
