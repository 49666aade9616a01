"""Answers that were given before: a request that means the same as an earlier one gets the same reply, and no backend is asked.

Two parts. `Cache` (policy, before a backend is asked) looks up; `CacheFill` (observer, after the tee) keeps what a request
missed. Only complete replies of status 200 are kept. A reply serves streamed and whole requests alike: it is kept as it came,
the other form is made when somebody asks for it. Nothing here can fail a request: what goes wrong is a miss.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Literal

from mitmproxy import http

from llmtap.core import config as c
from llmtap.core.plan import Plan
from llmtap.core.redis import SharedRedis, StorageError
from llmtap.exchange import Exchange
from llmtap.policy.answer import Answer, pack, unpack
from llmtap.policy.cache_key import CACHEABLE, CONVERTIBLE, cache_key, deterministic
from llmtap.policy.lru import Lru
from llmtap.wire.rebuild import to_stream, to_whole
from llmtap.wire.withhold import UsageFilter

Lookup = Literal["hit", "miss", "shared", "bypass", "error"]
_JSON, _EVENTS = "application/json", "text/event-stream; charset=utf-8"
_PREFIX = b"llmtap:cache:"
#: replies that ended of their own accord
_GOOD_ENDS = frozenset(
    (None, "stop", "length", "tool_calls", "function_call", "end_turn", "max_tokens", "stop_sequence", "tool_use")
)


class Cache:
    """Policy. `redis`: None keeps answers in memory. `count` is told of every look-up."""

    name = "cache"

    def __init__(
        self,
        config: c.Cache,
        redis: SharedRedis | None = None,
        count: Callable[[Lookup], None] = lambda result: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._count = count
        self.aliases: Mapping[str, str] = {}  # as clients name a model → as the backends do
        self._clock = clock
        self._answers: Lru[Answer] = Lru(1, 0, 0.0)
        self._storing: set[asyncio.Task[None]] = set()
        self.reload(config)

    def __len__(self) -> int:
        return len(self._answers)

    def reload(self, config: c.Cache) -> None:
        """Other bounds from now on; answers stay."""
        self._ttl_s = config.ttl_s
        self._answers.limit(config.max_entries, int(config.max_mb * 1_000_000), config.ttl_s)
        self._shared_by_all = config.scope == "all"
        self._only_deterministic = config.only_deterministic
        self._paced = config.replay == "original"

    # ---- looking up

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        key = self.key_of(flow, ex)
        if key is None or ex.cache_wish == b"no-store":
            self._count("bypass")
            return None
        ex.cache_key = key
        if ex.cache_wish == b"no-cache":
            self._count("bypass")
            return None
        ex.cache = "miss"
        if self._redis is not None:
            return self._look_in_redis(self._redis, flow, ex, key)
        answer = self._answers.get(key, self._clock())
        self._count("hit" if answer is not None and self._give(flow, ex, answer) else "miss")
        return None

    def key_of(self, flow: http.HTTPFlow, ex: Exchange) -> bytes | None:
        """What the request is known by; None when it is not to be answered from here."""
        parsed = ex.parsed
        if parsed is None or not parsed.exact or ex.endpoint.name not in CACHEABLE or ex.direct is not None:
            return None
        if self._only_deterministic and not deterministic(ex.endpoint.name, ex.endpoint.generates, parsed.obj):
            return None
        owner = "" if self._shared_by_all else f"key:{ex.key_name}"
        query = flow.request.path.partition("?")[2]
        return cache_key(ex.endpoint.name, f"{ex.path}?{query}", parsed.obj, self._served(ex.model), owner)

    def right_model(self, ex: Exchange) -> bool:
        """Whether the model that has answered is the one that was asked for, and not a fallback."""
        return ex.route is None or ex.route.answered_as is None or ex.route.answered_as == self._served(ex.model)

    def _served(self, model: str | None) -> str | None:
        return self.aliases.get(model, model) if model is not None else None

    async def _look_in_redis(self, redis: SharedRedis, flow: http.HTTPFlow, ex: Exchange, key: bytes) -> None:
        try:
            found = await redis.command("GET", _PREFIX + key.hex().encode())
        except StorageError:
            self._count("error")
            return
        answer = unpack(found) if found is not None else None
        self._count("hit" if answer is not None and self._give(flow, ex, answer) else "miss")

    # ---- giving

    def _give(self, flow: http.HTTPFlow, ex: Exchange, answer: Answer) -> bool:
        """Answer with it. False when it cannot be said in the form that is asked for."""
        bare = ex.endpoint.name in CONVERTIBLE and not (ex.parsed is not None and ex.parsed.wants_usage)
        body = _form(answer, ex.endpoint.name, ex.stream, bare)
        if body is None:
            return False
        ex.route = None  # it needs no backend any more
        ex.cache = "hit"
        ex.summary = answer.summary
        now = self._clock()
        ex.first_content = ex.last_chunk = now
        ex.chunks, ex.reply_bytes = 1, len(body)
        same = answer.streamed == ex.stream
        content_type = answer.content_type if same else (_EVENTS if ex.stream else _JSON)
        headers = http.Headers(((b"content-type", content_type.encode()),))
        if self._paced and answer.pieces and ex.stream and ex.lane:
            flow.response = http.Response(b"HTTP/1.1", 200, b"OK", headers, None, None, now, None)
            ex.plan = Plan([], body=_paced(answer, bare))
        else:
            headers.fields += ((b"content-length", b"%d" % len(body)),)
            flow.response = http.Response(b"HTTP/1.1", 200, b"OK", headers, body, None, now, now)
        return True

    # ---- keeping

    def keep(self, key: bytes, answer: Answer) -> None:
        """From now on it is given."""
        if self._redis is None:
            self._answers.put(key, answer, answer.size, self._clock())
            return
        task = asyncio.get_running_loop().create_task(self._store(self._redis, key, answer))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, redis: SharedRedis, key: bytes, answer: Answer) -> None:
        try:
            await redis.command("SET", _PREFIX + key.hex().encode(), pack(answer), "PX", max(1, round(self._ttl_s * 1000)))
        except StorageError:
            self._count("error")


class CacheFill:
    """Observer: keeps the reply of a request that had a key. It stands behind the tee, whose pieces it sees before anything is
    withheld of them."""

    name = "cache_fill"

    def __init__(self, cache: Cache, timings: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._timings = timings
        self._clock = clock

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        response = flow.response
        if ex.cache_key is None or ex.cache in ("hit", "shared") or response is None or response.data.status_code != 200:
            return
        if callable(response.stream):
            ex.kept = Kept(response.stream, self._clock if self._timings else None)
            response.stream = ex.kept

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        kept, ex.kept = ex.kept, None
        key, summary, response = ex.cache_key, ex.summary, flow.response
        if (
            key is None
            or ex.cache in ("hit", "shared")
            or ex.outcome != "ok"
            or ex.status != 200
            or summary is None
            or response is None
        ):
            return
        if summary.error_type is not None or "content-encoding" in response.headers or not self._cache.right_model(ex):
            return
        if ex.endpoint.generates and not (summary.complete and all(x.finish_reason in _GOOD_ENDS for x in summary.choices)):
            return
        if kept is not None:
            self._cache.keep(key, Answer(True, ex.content_type, b"".join(kept.pieces), summary, kept.timed()))
        elif not response.stream and response.data.content:
            self._cache.keep(key, Answer(ex.stream, ex.content_type, response.data.content, summary))


class Kept:
    """A reply's pieces as they come, on their way to `forward`."""

    __slots__ = ("_clock", "_forward", "pieces", "times")

    def __init__(self, forward: Callable[[bytes], Iterable[bytes] | bytes], clock: Callable[[], float] | None) -> None:
        self._forward = forward
        self._clock = clock
        self.pieces: list[bytes] = []
        self.times: list[float] = []

    def __call__(self, data: bytes) -> Iterable[bytes] | bytes:
        self.pieces.append(data)
        if self._clock is not None and data:
            self.times.append(self._clock())
        return self._forward(data)

    def timed(self) -> tuple[tuple[int, int], ...]:
        """(milliseconds since the piece before, length) of each."""
        if not self.times:
            return ()
        gaps = (round((b - a) * 1000) for a, b in zip([self.times[0], *self.times], self.times, strict=False))
        return tuple(zip(gaps, (len(piece) for piece in self.pieces if piece), strict=False))


def _form(answer: Answer, endpoint: str, stream: bool, bare: bool) -> bytes | None:
    """The reply as a stream (`bare`: without its usage event) or whole; made once. None where it cannot be made."""
    name = "whole" if not stream else "bare" if bare else "stream"
    if name in answer.forms:
        return answer.forms[name]
    body: bytes | None = answer.body
    if stream != answer.streamed:
        if endpoint not in CONVERTIBLE:
            return None
        body = to_stream(endpoint, answer.body) if stream else to_whole(endpoint, answer.body)
    if body is not None and stream and bare:
        usage = UsageFilter()
        body = usage.feed(body) + usage.flush()
    answer.forms[name] = body
    return body


async def _paced(answer: Answer, bare: bool) -> AsyncIterator[bytes]:
    """The pieces at the pace they came at."""
    usage = UsageFilter()
    feed: Callable[[bytes], bytes] = usage.feed if bare else partial(bytes)
    at = 0
    for gap_ms, length in answer.pieces:
        if gap_ms:
            await asyncio.sleep(gap_ms / 1000)
        yield feed(answer.body[at : at + length])
        at += length
    if bare:
        yield usage.flush()
