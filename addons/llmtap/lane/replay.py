"""Replays (`replay.client`, `-C`, the button in mitmweb) through the lane.

mitmproxy's own replay client would go to one address, with one attempt, and would need the backend's key as part of the flow,
where everybody who looks at it sees it. So a replayed flow takes the way of any other request; only, nobody reads the answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Server

from llmtap.lane.client import ClientConnection
from llmtap.lane.inbound import Inbound
from llmtap.lane.lane import Lane
from llmtap.lane.relay import Relay


class Replay:
    """Stands in for `mitmproxy.addons.clientplayback.ReplayHandler`."""

    def __init__(self, lane: Lane, flow: http.HTTPFlow) -> None:
        self._lane = lane
        self._flow = flow

    async def replay(self) -> None:
        """To the end of the exchange. `flow` has been prepared: no response, no error, `is_replay` set."""
        if self._lane.before_replay is not None:
            await self._lane.before_replay()
        flow = self._flow
        data = flow.request.data
        data.timestamp_start = time.time()
        flow.live = True
        inbound = Inbound()
        inbound.method = data.method
        inbound.version = b"HTTP/1.1"
        inbound.keep_alive = inbound.complete = True
        inbound.parts = [data.content] if data.content else []
        inbound.length = inbound.received = len(data.content or b"")
        # the target stays empty: as after a change by an addon, the path is checked before it is sent (it may be from any file)
        if data.trailers is not None:
            inbound.trailers = list(data.trailers.fields)
        await _ReplayRelay(NoClient(self._lane, flow), inbound, flow).run()


class _ReplayRelay(Relay):
    def __init__(self, client: ClientConnection, inbound: Inbound, flow: http.HTTPFlow) -> None:
        self._replayed = flow
        super().__init__(client, inbound)

    def _open_flow(self) -> http.HTTPFlow:
        return self._replayed


class NoClient(ClientConnection):
    """Looks like the connection the flow came over, and leads nowhere."""

    def __init__(self, lane: Lane, flow: http.HTTPFlow) -> None:
        super().__init__(lane, flow.client_conn.proxy_mode, None)
        self.transport = _Nowhere()
        self.conn = flow.client_conn
        # without a plan it is refused: where it went the last time is not for us to say
        self.placeholder = Server(address=(flow.request.host, flow.request.port))

    def finished(self, keep: bool, unread: bool) -> None:
        """There is no next request."""

    def write_at_once(self, at_once: bool) -> None:
        """Nothing is written."""


class _Nowhere(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass
