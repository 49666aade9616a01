"""The sliding window of `policy.windows`, in Redis: one for all workers and hosts, on the clock of the Redis server.

The clocks of the hosts do not matter, so neither does their disagreement. A Redis clock that is set back stands still for the
windows until it has caught up.
"""

from __future__ import annotations

from typing import Any

from llmtap.core.redis import Script, SharedRedis

_PREFIX = "llmtap:window:"
# KEYS: times by id (sorted set), amounts by id with `total` and `last` (hash). Microseconds: below 2^53 until the year 2255
_TAKE = Script("""
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local window, limit, amount, id = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
now = math.max(now, tonumber(redis.call('HGET', KEYS[2], 'last') or 0))
local total = tonumber(redis.call('HGET', KEYS[2], 'total') or 0)
local until_then = string.format('%.0f', now - window)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', until_then)) do
  total = total - tonumber(redis.call('HGET', KEYS[2], old) or 0)
  redis.call('HDEL', KEYS[2], old)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', until_then)
local allowed, retry, reset = 1, 0, window
if total + amount <= limit then
  total = total + amount
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
  redis.call('HSET', KEYS[2], id, amount)
else
  allowed = 0
  local too_much = total + amount - limit
  for at = 0, redis.call('ZCARD', KEYS[1]) - 1 do
    local entry = redis.call('ZRANGE', KEYS[1], at, at, 'WITHSCORES')
    too_much = too_much - tonumber(redis.call('HGET', KEYS[2], entry[1]) or 0)
    retry = tonumber(entry[2]) + window - now
    if too_much <= 0 then break end
  end
  local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  reset = newest[2] and tonumber(newest[2]) + window - now or 0
end
redis.call('HSET', KEYS[2], 'total', string.format('%.0f', total), 'last', string.format('%.0f', now))
local keep = math.ceil(window / 1000) + 60000
redis.call('PEXPIRE', KEYS[1], keep)
redis.call('PEXPIRE', KEYS[2], keep)
return {allowed, math.max(0, limit - total), reset, retry}
""")
_SETTLE = Script("""
local reserved = redis.call('HGET', KEYS[1], ARGV[1])
if reserved then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'total', tonumber(ARGV[2]) - tonumber(reserved))
end
return 0
""")


async def take(
    redis: SharedRedis, name: str, seconds: float, limit: int, amount: int, taking: str
) -> tuple[bool, int, float, float]:
    """Reserve `amount` under the id `taking`: (allowed, remaining, seconds to an empty window, seconds to wait).

    Raises StorageError.
    """
    found: list[Any] = await redis.run(_TAKE, _keys(name), (round(seconds * 1e6), limit, min(amount, limit), taking))
    allowed, remaining, reset, retry = map(int, found)
    return bool(allowed), remaining, reset / 1e6, retry / 1e6


async def settle(redis: SharedRedis, name: str, taking: str, actual: int) -> None:
    """What the taking turned out to be. Raises StorageError."""
    await redis.run(_SETTLE, _keys(name)[1:], (taking, actual))


def _keys(name: str) -> list[str]:
    # in braces: on a cluster both belong to one server
    return [f"{_PREFIX}{{{name}}}:times", f"{_PREFIX}{{{name}}}:amounts"]
