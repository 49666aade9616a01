"""Rate limits: requests a window and tokens a minute, per key (per address where no key is demanded), over all and per model.

Requests are counted at the head. Tokens are reserved when the body has come, as many as the request may cost, and corrected
at its end to what it did cost. Refused requests count nothing. Where counts are shared (Redis) asking takes a moment; in memory
it does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mitmproxy import http

from llmtap.core import config as c
from llmtap.core import shared_window
from llmtap.core.errors import ApiError, TooMany
from llmtap.core.ids import new_ulid
from llmtap.core.redis import SharedRedis, StorageError
from llmtap.exchange import Exchange
from llmtap.policy.windows import Taking, Verdict, Windows, duration, estimate_tokens

log = logging.getLogger("llmtap.limits")
MINUTE_S = 60.0
#: completion tokens reserved for a request that does not say how many it wants at most
USUAL_TOKENS = 256


class LimitsUnavailable(ApiError):
    """Counts are shared through Redis, Redis is away, and `rate_limit.on_storage_error` is deny."""

    status, type, default_code = 503, "service_unavailable_error", "rate_limit_unavailable"
    retry_after_s = 1


@dataclass(slots=True)
class Reserved:
    """What an exchange has taken of a token window: `taking` in memory, or its id in Redis."""

    window: str
    amount: int
    taking: Taking | str


@dataclass(frozen=True, slots=True)
class Limit:
    """One window to pass: its name, its length in seconds, how much fits, and in whose words to tell."""

    window: str
    seconds: float
    limit: int
    what: str


class Limits:
    """Policy. `redis`: None counts in memory. `failed` is told when Redis fails."""

    name = "limits"

    def __init__(
        self,
        config: c.RateLimit,
        redis: SharedRedis | None = None,
        failed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._failed = failed
        self._clock = clock
        self._wall = wall
        self._windows = Windows()
        self._settling: set[asyncio.Task[None]] = set()
        self.reload(config)

    def reload(self, config: c.RateLimit) -> None:
        """Other limits from now on; what has been counted stays counted."""
        self._default = config.default_limit
        self._seconds = float(config.window_seconds)
        self._tokens = config.tokens_per_minute
        self._models = {m.model: m for m in config.models}
        self._allow = config.on_storage_error == "allow"

    # ---- steps

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        client = ex.client
        limit = self._default if client is None or client.rate_limit is None else client.rate_limit
        who = _who(ex)
        if self._redis is not None:
            return self._shared_requests(self._redis, ex, Limit(f"r:{who}", self._seconds, limit, "requests"))
        verdict, _ = self._windows.take("r:" + who, self._clock(), self._seconds, limit)
        self._tell_requests(ex, verdict)
        if not verdict.allowed:
            raise self._too_many(verdict, "requests", self._seconds)
        return None

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        if ex.parsed is None:
            return None
        limits = self._of_the_body(ex)
        if not limits:
            return None
        cost = estimate_tokens(len(ex.body or b""), ex.parsed.max_tokens, ex.parsed.n, _generates(ex))
        if self._redis is not None:
            return self._shared_tokens(self._redis, ex, limits, cost)
        now = self._clock()
        for limit in limits:
            amount = 1 if limit.what == "requests" else cost
            verdict, taking = self._windows.take(limit.window, now, limit.seconds, limit.limit, amount)
            if taking is not None and limit.what == "tokens":
                ex.reserved.append(Reserved(limit.window, cost, taking))
            self._judge(ex, limit, verdict)
        return None

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if not ex.reserved:
            return
        actual = actual_tokens(ex)
        for reserved in ex.reserved:
            cost = reserved.amount if actual is None else actual
            if isinstance(reserved.taking, Taking):
                self._windows.settle(reserved.window, reserved.taking, cost)
            elif self._redis is not None:
                task = asyncio.get_running_loop().create_task(self._settle(self._redis, reserved.window, reserved.taking, cost))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)
        ex.reserved = ()

    # ---- which windows

    def _of_the_body(self, ex: Exchange) -> list[Limit]:
        """The windows that need the body: tokens over all, then those of the model."""
        client = ex.client
        who = _who(ex)
        found = []
        tokens = self._tokens if client is None or client.tokens_per_minute is None else client.tokens_per_minute
        if tokens is not None:
            found.append(Limit(f"t:{who}", MINUTE_S, tokens, "tokens"))
        model = self._models.get(ex.model) if self._models and ex.model is not None else None
        if model is not None:
            if model.rate_limit is not None:
                found.append(Limit(f"r:{who}:{model.model}", self._seconds, model.rate_limit, "requests"))
            if model.tokens_per_minute is not None:
                found.append(Limit(f"t:{who}:{model.model}", MINUTE_S, model.tokens_per_minute, "tokens"))
        if found and not ex.reserved:
            ex.reserved = []
        return found

    # ---- in Redis

    async def _shared_requests(self, redis: SharedRedis, ex: Exchange, limit: Limit) -> None:
        verdict = await self._shared(redis, limit, 1, new_ulid())
        if verdict is not None:
            self._tell_requests(ex, verdict)
            if not verdict.allowed:
                raise self._too_many(verdict, "requests", limit.seconds)

    async def _shared_tokens(self, redis: SharedRedis, ex: Exchange, limits: list[Limit], cost: int) -> None:
        for limit in limits:
            taking = new_ulid()
            verdict = await self._shared(redis, limit, 1 if limit.what == "requests" else cost, taking)
            if verdict is None:
                continue
            if verdict.allowed and limit.what == "tokens":
                ex.reserved.append(Reserved(limit.window, cost, taking))
            self._judge(ex, limit, verdict)

    async def _shared(self, redis: SharedRedis, limit: Limit, amount: int, taking: str) -> Verdict | None:
        """The verdict of the shared window; None: nobody knows, and that is allowed."""
        try:
            allowed, remaining, reset, retry = await shared_window.take(
                redis, limit.window, limit.seconds, limit.limit, amount, taking
            )
        except StorageError as error:
            self._failed()
            if self._allow:
                return None
            raise LimitsUnavailable("limits cannot be checked at the moment; try again later") from error
        return Verdict(allowed, limit.limit, remaining, reset, retry)

    async def _settle(self, redis: SharedRedis, window: str, taking: str, actual: int) -> None:
        try:
            await shared_window.settle(redis, window, taking, actual)
        except StorageError:
            self._failed()  # the estimate stays

    # ---- what the client is told

    def _judge(self, ex: Exchange, limit: Limit, verdict: Verdict) -> None:
        if limit.what == "tokens":
            ex.limit_headers = [
                *(field for field in ex.limit_headers if not field[0].endswith(b"-tokens")),
                (b"x-ratelimit-limit-tokens", b"%d" % verdict.limit),
                (b"x-ratelimit-remaining-tokens", b"%d" % verdict.remaining),
                (b"x-ratelimit-reset-tokens", duration(verdict.reset_s).encode()),
            ]
        if not verdict.allowed:
            if limit.what == "requests":
                self._tell_requests(ex, verdict)
            raise self._too_many(verdict, limit.what, limit.seconds)

    def _tell_requests(self, ex: Exchange, verdict: Verdict) -> None:
        limit, remaining = b"%d" % verdict.limit, b"%d" % verdict.remaining
        ex.limit_headers = [
            (b"x-ratelimit-limit", limit),
            (b"x-ratelimit-remaining", remaining),
            (b"x-ratelimit-reset", b"%d" % math.ceil(self._wall() + verdict.reset_s)),
            (b"x-ratelimit-limit-requests", limit),
            (b"x-ratelimit-remaining-requests", remaining),
            (b"x-ratelimit-reset-requests", duration(verdict.reset_s).encode()),
        ]

    @staticmethod
    def _too_many(verdict: Verdict, what: str, seconds: float) -> TooMany:
        wait = max(1, math.ceil(verdict.retry_s))
        message = f"rate limit reached: {verdict.limit} {what} in {seconds:g} s; try again in {wait} s"
        return TooMany(message, retry_after_s=wait)


def _who(ex: Exchange) -> str:
    """Whose window: the key's, or the address's."""
    return f"key:{ex.client.name}" if ex.client is not None else f"ip:{ex.client_ip}"


def _generates(ex: Exchange) -> int:
    return USUAL_TOKENS if ex.endpoint.generates else 0


def actual_tokens(ex: Exchange) -> int | None:
    """What the request cost in the end: nothing when no backend worked on it, None when nobody has counted."""
    if ex.forwarded is None or ex.cache in ("hit", "shared"):
        return 0
    usage = ex.summary.usage if ex.summary is not None else None
    if usage is None or (usage.prompt_tokens is None and usage.completion_tokens is None):
        return 0 if ex.status is not None and 400 <= ex.status < 500 and ex.status != 499 else None
    if usage.prompt_tokens is None:
        return (usage.completion_tokens or 0) + len(ex.body or b"") // 4
    return usage.prompt_tokens + (usage.completion_tokens or 0)
