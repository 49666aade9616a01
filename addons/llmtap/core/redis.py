"""Redis, for what several workers or hosts share: one pipelined connection, whose every command has an end.

Commands go out as they come and answers come back in order, so a hundred waiting requests share a packet instead of queueing
for connections; a command costs a tenth of what a general client takes. All failures are one error. `hiredis`, which reads the
answers, is imported when the first client is made: without a Redis URL in the configuration it is never needed.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any
from urllib.parse import unquote, urlsplit

from llmtap.core.errors import ConfigError, LlmtapError

TIMEOUT_S = 2.0
#: after a failure Redis is left alone for so long: requests must not wait for a dead server one after the other
PAUSE_S = 1.0
Word = str | bytes | int | float


class StorageError(LlmtapError):
    """Redis did not do what was asked, in time or at all. The text never holds a password."""


class Script:
    """A Lua script, which Redis runs as one step."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


class SharedRedis:
    """One Redis server, for everything in this process. Making it connects nothing; ConfigError where `hiredis` is missing.

    `url`: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic, timeout_s: float = TIMEOUT_S) -> None:
        try:
            import hiredis
        except ImportError:
            raise ConfigError("a redis:// URL needs the package hiredis; `pip install hiredis`, or use memory://") from None
        self._make_reader: Callable[[], Any] = hiredis.Reader
        self._pack: Callable[[Any], bytes] = hiredis.pack_command
        self._refused: type[Exception] = hiredis.ReplyError
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._tls = parts.scheme == "rediss"
        self._greeting: list[tuple[str, ...]] = []
        if parts.password:
            self._greeting.append(("AUTH", *([unquote(parts.username)] if parts.username else []), unquote(parts.password)))
        if parts.path.strip("/"):
            self._greeting.append(("SELECT", parts.path.strip("/")))
        self._clock = clock
        self._timeout_s = timeout_s
        self._paused_until = float("-inf")
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._closed = 0  # how often

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """The script's result. Raises StorageError."""
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except StorageError as error:
            if not str(error).startswith("Redis: NOSCRIPT"):
                raise
        return await self.command("EVAL", script.text, len(keys), *keys, *arguments)

    async def command(self, *words: Word) -> Any:
        """A command's result: bytes, int, None or a list of these. Raises StorageError."""
        if self._clock() < self._paused_until:
            raise StorageError("Redis has failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._connection
                if connection is None or connection.lost:
                    connection = await self._connected()
                reply = await connection.send(self._pack(words))
        except (OSError, TimeoutError) as error:
            self._paused_until = self._clock() + PAUSE_S
            self.close()
            raise StorageError(f"Redis: {type(error).__name__}") from error
        if isinstance(reply, self._refused):
            raise StorageError(f"Redis: {str(reply)[:80]}")
        return reply

    async def _connected(self) -> _Connection:
        """A connection that has said who it is; one attempt for all who wait."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self._closed))
            self._connecting.add_done_callback(self._no_longer_connecting)
        return await asyncio.shield(self._connecting)

    def _no_longer_connecting(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # told to those who wait

    async def _connect(self, closed: int) -> _Connection:
        async with asyncio.timeout(self._timeout_s):
            tls = ssl.create_default_context() if self._tls else None
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._make_reader()), *self._address, ssl=tls
            )
            try:
                for words in self._greeting:
                    reply = await connection.send(self._pack(words))
                    if isinstance(reply, self._refused):
                        raise ConnectionError(f"{words[0]} was refused")
                if closed != self._closed:
                    raise ConnectionAbortedError("closed meanwhile")
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return connection

    def close(self) -> None:
        """Close the connection; the next command opens another."""
        self._closed += 1
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection(asyncio.Protocol):
    """Answers come in the order of the commands."""

    transport: asyncio.Transport

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """The future answer, or OSError there."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.lost:
            future.set_exception(ConnectionResetError("closed"))
        else:
            self._waiting.append(future)
            self.transport.write(packed)
        return future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                future = self._waiting.popleft()
                if not future.done():  # nobody waits any longer
                    future.set_result(reply)
        except Exception:  # what hiredis calls a protocol error, or an answer that nobody has asked for
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionResetError("closed"))

    def close(self) -> None:
        self.transport.abort()
        self.lost = True
