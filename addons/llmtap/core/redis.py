"""Redis, for what several workers or hosts share: a client whose every call has an end, and whose failures are one error.

`redis` (the package) is imported when the first client is made: without a Redis URL in the configuration it is never needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

from llmtap.core.errors import LlmtapError

TIMEOUT_S = 1.0
#: after a failure Redis is left alone for so long: requests must not wait for a dead server one after the other
PAUSE_S = 1.0
_CONNECTIONS = 64


class StorageError(LlmtapError):
    """Redis did not do what was asked, in time or at all."""


class Script:
    """A Lua script, which Redis runs as one step."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


class SharedRedis:
    """One Redis server, its connections shared by everything in this process."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic, timeout_s: float = TIMEOUT_S) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis

        self._clock = clock
        self._timeout_s = timeout_s
        self._pool = BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=timeout_s, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
        )
        self._redis: Any = Redis(connection_pool=self._pool)
        self._paused_until = 0.0

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int | float]) -> Any:
        """The script's result. Raises StorageError."""
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except _Unknown:
            return await self.command("EVAL", script.text, len(keys), *keys, *arguments)

    async def command(self, *words: str | bytes | int | float) -> Any:
        """A command's result. Raises StorageError."""
        from redis.exceptions import NoScriptError, RedisError

        if self._clock() < self._paused_until:
            raise StorageError("Redis has failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s * 2):
                return await self._redis.execute_command(*words)
        except NoScriptError as error:
            raise _Unknown from error
        except (RedisError, OSError, TimeoutError) as error:
            self._paused_until = self._clock() + PAUSE_S
            raise StorageError(f"Redis: {type(error).__name__}") from error  # its text may hold the password

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()
        await self._pool.aclose()

    def close_soon(self) -> None:
        """`close` where nobody can wait for it."""
        with contextlib.suppress(RuntimeError):  # no loop any more: the end of the process closes them
            self._closing = asyncio.get_running_loop().create_task(self.close())


class _Unknown(StorageError):
    """A Redis that has been restarted knows no scripts."""
