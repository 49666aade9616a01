"""Websockets: their messages kept for capture, bounded, and read for what the realtime protocol says in them.

Kept of each direction: the first 512 KiB, of each message its first 16 KiB (audio is cut, a transcription is not). What is left
out is counted. A message is `{"at_ms", "from": "client" | "server", "bytes", "text" | "base64"}` and `"truncated": true` where
it was longer.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

from mitmproxy import http

from llmtap.exchange import Exchange
from llmtap.wire.realtime import Realtime

#: of one message, and of all messages of one direction
MESSAGE_BYTES, SIDE_BYTES = 16 << 10, 512 << 10
#: what the record around a message takes
_AROUND = 64


class SocketLog:
    """The messages of one exchange."""

    def __init__(self, started: float, keep: bool, reads: bool) -> None:
        self.messages: list[dict[str, Any]] = []
        self.dropped = 0
        self.received = 0  # bytes of the client's messages
        self.realtime = Realtime() if reads else None
        self._started = started
        self._keep = keep
        self._kept = {True: 0, False: 0}

    def note(self, from_client: bool, is_text: bool, content: bytes, now: float) -> None:
        if from_client:
            self.received += len(content)
        if not self._keep:
            return
        kept = content[:MESSAGE_BYTES]
        size = len(kept) + _AROUND
        if self._kept[from_client] + size > SIDE_BYTES:
            self.dropped += 1
            return
        self._kept[from_client] += size
        message: dict[str, Any] = {
            "at_ms": round((now - self._started) * 1000, 1),
            "from": "client" if from_client else "server",
            "bytes": len(content),
        }
        if is_text:
            message["text"] = kept.decode("utf-8", "ignore" if len(kept) < len(content) else "replace")
        else:
            message["base64"] = base64.b64encode(kept).decode("ascii")
        if len(kept) < len(content):
            message["truncated"] = True
        self.messages.append(message)


class Sockets:
    """Observer: `Exchange.socket`, and of realtime sessions `Exchange.summary`."""

    name = "sockets"

    def __init__(self, keep: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep = keep
        self._clock = clock

    def on_message(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        """The last message of the flow's websocket has just passed."""
        if flow.websocket is None:
            return
        log = ex.socket
        if log is None:
            log = ex.socket = SocketLog(ex.started, self._keep, ex.endpoint.name == "realtime")
        message = flow.websocket.messages[-1]
        content, now = message.content, self._clock()
        log.note(message.from_client, message.is_text, content, now)
        if not message.from_client:
            ex.last_chunk = now
        realtime = log.realtime
        if realtime is not None and message.is_text:
            text = content.decode("utf-8", "replace")
            ex.summary = realtime.summary
            if message.from_client:
                realtime.client(text)
            elif realtime.server(text) and ex.first_content is None:
                ex.first_content = now

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.socket is not None and ex.socket.realtime is not None:
            ex.socket.realtime.close()
