"""The body of a response on its way: piece by piece through the addon's callable to the client, or collected to be whole.

Both are called from inside the backend connection's `data_received`. They raise nothing: what goes wrong ends the exchange
through `fail`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import cast

from mitmproxy import http

from llmtap.core.errors import InternalError, UpstreamFailed
from llmtap.lane.body import BodyWriter
from llmtap.lane.refusals import Killed
from llmtap.lane.timing import Watch

log = logging.getLogger("llmtap.lane")
#: of a streamed body; a larger one is not stored at all
_STORED_BYTES = 16 << 20
TOO_LARGE = "the backend's response is too large to be buffered"
Transform = Callable[[bytes], Iterable[bytes] | bytes]
Fail = Callable[[Exception], None]


class Pieces:
    """A response that streams. `writer` takes what goes to the client, once its head has been sent; `mute` when nobody is
    there any more. `stores`: the content is kept for whoever looks at the flow, up to a bound."""

    __slots__ = ("_after", "_fail", "_flow", "_now", "_stored", "_stored_size", "_transform", "_watch", "mute", "writer")

    def __init__(
        self, flow: http.HTTPFlow, watch: Watch | None, now: Callable[[], float], fail: Fail, *, stores: bool = False
    ) -> None:
        stream = flow.response.stream if flow.response is not None else False
        self._flow = flow
        self._watch = watch
        self._now = now
        self._fail = fail
        self._transform: Transform | None = stream if callable(stream) else None
        self._after: Callable[[], None] | None = getattr(stream, "after", None)
        self._stored: list[bytes] | None = [] if stores else None
        self._stored_size = 0
        self.writer: BodyWriter | None = None
        self.mute = False

    def __call__(self, data: bytes) -> None:
        """One piece, from the backend to the client."""
        if self._watch is not None:
            self._watch.touched = self._now()
        try:
            if self._transform is not None:
                out = self._transform(data)
                data = out if type(out) is bytes else b"".join(cast(Iterable[bytes], out))
            if self._stored is not None:
                self._store(data)
            if data and self.writer is not None and not self.mute:
                self.writer.write(data)
            if self._after is not None:
                self._after()
        except Exception as error:
            log.error("stream callable failed", exc_info=(type(error), error, error.__traceback__))
            self._fail(InternalError("internal error; the response cannot be shown"))
        if self._flow.error is not None:  # killed while it streams
            self._fail(Killed())

    def changed(self, data: bytes) -> bytes:
        """A piece that is written by somebody else, through the addon's callable, which may give bytes or pieces."""
        if self._transform is not None:
            out = self._transform(data)
            data = out if type(out) is bytes else b"".join(cast(Iterable[bytes], out))
        if self._stored is not None:
            self._store(data)
        return data

    def written(self) -> None:
        """What `changed` gave is on its way: an addon's callable that has an `after` may do what the client need not wait for."""
        if self._after is not None:
            self._after()

    def tail(self) -> bytes:
        """The clean end: what the callable still held back. The content can now be looked at."""
        data = self.changed(b"") if self._transform is not None else b""
        self.show()
        return data

    def _store(self, data: bytes) -> None:
        if self._stored is None or not data:
            return
        self._stored_size += len(data)
        self._stored.append(data)
        if self._stored_size > _STORED_BYTES:
            self._stored = None
            if self._flow.response is not None:
                self._flow.response.data.content = None

    def show(self) -> None:
        """What was stored so far becomes the content of the response (which has none without this)."""
        if self._stored and self._flow.response is not None:
            content = b"".join(self._stored)
            self._stored = [content]
            self._flow.response.data.content = content

    @property
    def unseen(self) -> bool:
        """Whether more has been stored since `show`."""
        return self._stored is not None and len(self._stored) > 1


class Collected:
    """A response that is kept until it is whole; at most `max_bytes`."""

    __slots__ = ("_fail", "_flow", "_max", "_now", "_parts", "_size", "_watch")

    def __init__(self, flow: http.HTTPFlow, watch: Watch, now: Callable[[], float], fail: Fail, max_bytes: int) -> None:
        self._flow = flow
        self._watch = watch
        self._now = now
        self._fail = fail
        self._max = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def __call__(self, data: bytes) -> None:
        """One piece."""
        self._watch.touched = self._now()
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max:
            self._parts.clear()
            self._fail(UpstreamFailed(TOO_LARGE))
        elif self._flow.error is not None:
            self._fail(Killed())

    def content(self) -> bytes:
        return b"".join(self._parts)
