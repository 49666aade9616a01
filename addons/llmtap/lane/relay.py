"""One exchange from top to bottom: hooks, body, backend (`attempts`), answer (`writing`). A coroutine for each request.

While a response streams, the coroutine sleeps: pieces go from the backend's socket through the addon's callable to the
client's socket inside `data_received` (`_piece`). Exactly one of the hooks `response` and `error` ends a flow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.flow import Error
from mitmproxy.websocket import WebSocketData, WebSocketMessage

from llmtap.core.errors import ApiError, InternalError, UpstreamFailed
from llmtap.core.plan import Plan
from llmtap.lane import mitm
from llmtap.lane.arrival import Arrival
from llmtap.lane.attempts import Attempts, default_plan
from llmtap.lane.body import Framing
from llmtap.lane.head import wants_close
from llmtap.lane.inbound import Inbound
from llmtap.lane.pieces import TOO_LARGE, Collected, Pieces
from llmtap.lane.refusals import ClientGone, Killed, Stopping, forget
from llmtap.lane.tunnel import Tunnel
from llmtap.lane.upload import Upload, UploadAttempts
from llmtap.lane.upstream import Failure, Upstream
from llmtap.lane.writing import ResponseWriter

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")
#: with so few exchanges at once a stream that is here to its end is written in two calls, its text before what is done at the
#: end; with more, one call costs less
_FEW = 4
#: with so many the moment is lost among the others', and calls that come together cost a tenth less
_MANY = 100


class Relay:
    """Serves one `Inbound`. The connection tells it what happens to the client: `client_gone`, `client_full`, `client_ready`."""

    task: asyncio.Task[None] | None = None  # that runs it: the loop itself holds tasks weakly
    _plan: Plan | None = None
    _attempts: Attempts | None = None
    _tunnel: Tunnel | None = None
    _upload: Upload | None = None  # a body that is not waited for
    _pieces: Pieces | None = None  # a response whose head is written before its end is known
    _cancellable: asyncio.Task[None] | None = None  # set while a leaving client may cancel the task
    _gone = False
    _ended = False  # `response` or `error` has fired

    def __init__(self, client: ClientConnection, inbound: Inbound) -> None:
        self._client = client
        self._lane = client.lane
        self._fire = client.lane.fire_flow
        self._inbound = inbound
        self._out = ResponseWriter(client, inbound)
        self._arrival = Arrival(client, inbound)
        self._flow = self._open_flow()

    def _open_flow(self) -> http.HTTPFlow:
        client, inbound = self._client, self._inbound
        host, port = client.placeholder.address or ("", 0)
        fields = tuple(inbound.fields)
        authority = client.authority
        if authority is not None:
            fields = tuple((n, authority if len(n) == 4 and n.lower() == b"host" else v) for n, v in fields)
        now = time.time()
        request = mitm.request(host, port, inbound.method, inbound.target, inbound.version, fields, now)
        if client.upstream is not None and client.upstream[0] == "https":
            request.data.scheme = b"https"
        return mitm.flow(client.conn, client.placeholder, request, now, self._lane.flow_id())

    @property
    def reading(self) -> bool:
        """Its request has not been read to the end."""
        return not self._inbound.complete

    # ---- the exchange

    async def run(self) -> None:
        """Never raises but for a cancellation from outside (the end of the process)."""
        flow = self._flow
        self._lane.running += 1
        try:
            try:
                await self._serve(flow)
            except BaseException as error:
                await self._end_badly(flow, error)
                forget(error)
            if self._upload is not None:
                self._upload.stop()
            if self._out.keep and not self._inbound.complete:
                self._out.keep = not self._gone and await self._arrival.swallow()
        finally:
            self._lane.running -= 1
            flow.live = False
            if self._gone:
                self._lane.goes_on(self, False)
            self._pieces = None  # it knows this object: a cycle would leave every stream to the garbage collector
            if self._attempts is not None:
                self._attempts.close()
            self._client.finished(self._out.keep and self._inbound.complete, not self._inbound.complete)

    async def _end_badly(self, flow: http.HTTPFlow, error: BaseException) -> None:
        match error:
            case ClientGone():
                await self._failed(flow, str(error))
            case Killed():
                await self._failed(flow, None)
                self._client.transport.abort()
            case ApiError():
                await self._refuse(flow, error)
            case Exception():
                log.error("exchange failed", exc_info=(type(error), error, error.__traceback__))
                await self._refuse(flow, InternalError("internal error"))
            case _:  # cancelled from outside: the process ends
                await self._failed(flow, "The gateway is shutting down.")
                self._client.transport.abort()
                raise error

    async def _serve(self, flow: http.HTTPFlow) -> None:
        if (waiting := self._fire("requestheaders", flow)) is not None:
            await waiting
        if flow.error is not None or self._gone:
            self._check(flow)
        if flow.response is None:
            if flow.request.stream and await self._streamed(flow):
                return
            if self._inbound.complete:
                self._arrival.put(flow)
            else:
                await self._arrival.read(flow)
            if (waiting := self._fire("request", flow)) is not None:
                await waiting
            if flow.error is not None or self._gone:
                self._check(flow)
        self._plan = self._lane.plans.get(flow)
        if flow.response is None:
            await self._forward(flow)
        else:
            await self._answer(flow)

    def _check(self, flow: http.HTTPFlow) -> None:
        """After every hook: was the flow killed, has the client left meanwhile?"""
        if flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE:
            raise Killed
        if self._gone:
            raise ClientGone

    # ---- the request's body

    async def _streamed(self, flow: http.HTTPFlow) -> bool:
        """The request whose body an addon wants to go on as it comes. False: it is here already, as a whole."""
        inbound = self._inbound
        if inbound.refusal is not None:
            raise inbound.refusal
        if inbound.complete and not callable(flow.request.stream):
            return False
        if inbound.lost:
            raise self._arrival.too_large()
        upload = self._upload = Upload(self._client, inbound, flow, self._fail_upstream)
        if (waiting := self._lane.uploading(flow, upload)) is not None:
            await waiting
        self._check(flow)
        self._plan = self._lane.plans.get(flow)
        if flow.response is None:
            await self._forward(flow)
        else:
            upload.stop()
            await self._answer(flow)
        return True

    # ---- a backend's response

    async def _forward(self, flow: http.HTTPFlow) -> None:
        plan = self._plan
        if plan is None:
            plan = self._plan = default_plan(flow, self._client)
        if self._upload is None:
            attempts = self._attempts = Attempts(self._client, self._inbound, plan)
        else:
            attempts = self._attempts = UploadAttempts(self._client, self._inbound, plan, self._upload)
        watch = attempts.watch
        upstream = await attempts.obtain(flow)
        reply = upstream.reply
        if reply.switched:
            upstream.pause()  # nothing is read until the addons have had their say
        flow.response = mitm.response(reply.status, reply.reason, reply.version, tuple(reply.fields), time.time())
        if (waiting := self._fire("responseheaders", flow)) is not None:
            watch.phase("idle", 0.0)  # addons may take their time
            await waiting
        if flow.error is not None or (self._gone and not attempts.drains):
            self._check(flow)
        if reply.switched:
            await self._switch(flow, attempts, upstream)
            return
        if not reply.complete:
            watch.phase("idle", plan.idle_s)
        if flow.response.stream:
            await self._stream(flow, attempts, upstream)
            return
        content = reply.take() if reply.complete else await self._collect(flow, attempts, upstream)
        if len(content) > self._lane.limits.max_reply_bytes:
            raise UpstreamFailed(TOO_LARGE)
        response = flow.response
        response.data.content = content
        response.data.timestamp_end = time.time()
        if reply.trailers:
            response.data.trailers = mitm.headers(tuple(reply.trailers))
        self._release()
        await self._send_whole(flow)

    async def _stream(self, flow: http.HTTPFlow, attempts: Attempts, upstream: Upstream) -> None:
        response = cast(http.Response, flow.response)
        lane = self._lane
        pieces = self._pieces = Pieces(flow, attempts.watch, lane.loop.time, self._fail_upstream, stores=lane.stores_bodies)
        pieces.mute = self._gone
        first = upstream.reply.take()
        if first:
            first = pieces.changed(first)
        if not self._gone:
            hold = upstream.reply.complete and lane.running > _FEW
            pieces.writer = self._out.begin(response, first, hold=hold, at_once=lane.running < _MANY)
        upstream.sink = pieces
        pieces.written()
        if self._client.write_paused and not self._gone and not attempts.plan.shared:
            upstream.pause()
        try:
            await upstream.end()
        except Failure as failure:
            raise attempts.failed(failure) from None
        tail = pieces.tail()
        response.data.timestamp_end = time.time()
        trailers = upstream.reply.trailers
        if trailers:
            response.data.trailers = mitm.headers(tuple(trailers))
        self._release()
        self._check(flow)
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        if pieces.writer is not None:
            self._out.finish(pieces.writer, tail, response.data.trailers)

    def tick(self, now: float) -> None:
        """Looked over with its connection: nobody tells of a kill or of a long time that is up; what streams may be watched."""
        if self._attempts is not None:
            self._attempts.watch.tick(now)
        if self._flow.error is not None and not self._ended:
            if self._upload is not None:
                self._upload.fail(Killed())
            self._fail_upstream(Killed())
            self._arrival.fail(Killed())
        elif self._flow.error is not None and self._tunnel is not None:
            self._tunnel.fail(Killed())
        elif self._pieces is not None and self._pieces.unseen:
            self._pieces.show()

    async def _collect(self, flow: http.HTTPFlow, attempts: Attempts, upstream: Upstream) -> bytes:
        """The body of a response that is not streamed and of which not all is here."""
        content = upstream.reply.take()
        most = self._lane.limits.max_reply_bytes
        collected = Collected(flow, attempts.watch, self._lane.loop.time, self._fail_upstream, most)
        if content:
            collected(content)
        upstream.sink = collected
        try:
            await upstream.end()
        except Failure as failure:
            raise attempts.failed(failure) from None
        return collected.content()

    # ---- a websocket

    async def _switch(self, flow: http.HTTPFlow, attempts: Attempts, upstream: Upstream) -> None:
        """The backend has said 101: from `response` on the flow ends with `websocket_end`, whatever happens."""
        flow.websocket = WebSocketData()
        response = cast(http.Response, flow.response)
        response.data.content = b""
        response.data.timestamp_end = time.time()
        try:
            tunnel = Tunnel(flow, self._client, upstream, attempts.watch)
        except ValueError:
            flow.websocket = None
            raise attempts.failed(Failure("protocol", "the backend's websocket handshake is not valid")) from None
        self._ended = True
        head = None
        try:
            if (waiting := self._fire("response", flow)) is not None:
                await waiting
            response = cast(http.Response, flow.response)
            if flow.error is None and response.data.status_code == 101:
                head = self._out.switching(response)
        finally:
            if head is None and (waiting := self._fire("websocket_end", flow)) is not None:
                await waiting
        if head is None:  # an addon has made something else of it
            self._release()
            self._check(flow)
            self._out.send_whole(response)
            return
        self._tunnel = tunnel
        self._out.sent = True
        attempts.hand_over(tunnel.fail)
        attempts.watch.phase("idle", attempts.plan.idle_s)
        if not self._client.dead:
            self._client.transport.write(head)
        await tunnel.run(self._client.take_ahead(), upstream.reply.beyond)

    def stop(self) -> bool:
        """The gateway's patience is over: a websocket's peers are told (True). All else is cut with its connection."""
        if self._tunnel is None:
            return False
        self._tunnel.fail(Stopping())
        return True

    def inject(self, message: WebSocketMessage) -> bool:
        """A message somebody made, into this exchange's websocket. False when it has none."""
        if self._tunnel is None:
            return False
        self._tunnel.inject(message)
        return True

    # ---- answers of our own

    async def _answer(self, flow: http.HTTPFlow) -> None:
        """A response an addon has set, or generates (`Plan.body`)."""
        response = cast(http.Response, flow.response)
        response.data.timestamp_start = time.time()
        if (waiting := self._fire("responseheaders", flow)) is not None:
            await waiting
        self._check(flow)
        response = cast(http.Response, flow.response)
        if wants_close(response.data.headers.fields):
            self._out.keep = False
        if self._plan is not None and self._plan.body is not None:
            await self._generate(flow, response, self._plan.body)
            return
        response.data.timestamp_end = time.time()
        await self._send_whole(flow)

    async def _send_whole(self, flow: http.HTTPFlow) -> None:
        """The last hook, and a response that is here to its end."""
        self._check(flow)
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        self._out.send_whole(cast(http.Response, flow.response))

    async def _generate(self, flow: http.HTTPFlow, response: http.Response, pieces: AsyncIterator[bytes]) -> None:
        passing = self._pieces = Pieces(flow, None, self._lane.loop.time, self._fail_upstream)
        passing.writer = writer = self._out.begin(response, b"", at_once=self._lane.running < _MANY)
        self._cancellable = task = asyncio.current_task()
        try:
            async for data in pieces:
                if data:
                    writer.write(passing.changed(data))
                if self._client.write_paused:
                    await self._client.drained()
                self._check(flow)
        except asyncio.CancelledError:
            if not self._gone or task is None:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            self._cancellable = None
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        tail = passing.tail()
        response.data.timestamp_end = time.time()
        self._check(flow)
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        self._out.finish(writer, tail, None)

    # ---- failures

    async def _failed(self, flow: http.HTTPFlow, message: str | None) -> None:
        """Nobody is to be answered: the `error` hook, unless the flow has ended, and the connection closes."""
        self._out.keep = False
        if self._pieces is not None:
            self._pieces.show()
        if message is not None and flow.error is None:
            flow.error = Error(message)
        flow.intercepted = False  # else a flow that is held when the process ends would wait again, now for ever
        if not self._ended:
            self._ended = True
            if (waiting := self._fire("error", flow)) is not None:
                await waiting

    async def _refuse(self, flow: http.HTTPFlow, error: ApiError) -> None:
        """The `error` hook, then the answer; or, when the head has been sent, last words."""
        if self._plan is not None:
            self._plan.error = error
        self._lane.failing(flow, error)
        writer = self._pieces.writer if self._pieces is not None else None
        keep = self._out.keep and writer is None
        await self._failed(flow, error.message)
        if self._gone or self._client.dead or self._out.sent:
            return
        if writer is None:
            self._out.keep = keep
            response = self._lane.answer_to(flow, error)
            if wants_close(response.data.headers.fields):
                self._out.keep = False
            try:
                self._out.send_whole(response)
            except InternalError as unsendable:
                self._out.send_whole(self._lane.plain_answer(flow, unsendable))
        else:
            writer.flush()
            if writer.framing in (Framing.CHUNKED, Framing.CLOSE):
                writer.write(self._lane.last_words_of(flow, error, writer.tail))

    def _fail_upstream(self, error: Exception) -> None:
        if self._attempts is not None:
            self._attempts.fail(error)

    # ---- what happens to the client

    def client_gone(self) -> None:
        """Stop at once what is done for it; or, if the plan says so, let the backend finish."""
        if self._gone:
            return
        self._gone = True
        self._out.keep = False
        if self.task is not None:
            self._lane.background(self.task)  # held by the connection until now
        if self._pieces is not None:
            self._pieces.mute = True
        if self._upload is not None:
            self._upload.fail(ClientGone())
        if self._attempts is not None:
            self._attempts.abandon()
            if self._attempts.drains:
                self._lane.goes_on(self, True)
        if self._cancellable is not None:
            self._cancellable.cancel()
        else:
            self._arrival.fail(ClientGone())

    def client_full(self) -> None:
        if self._attempts is not None and self._pieces is not None and not self._gone:
            self._attempts.pause()

    def client_ready(self) -> None:
        if self._attempts is not None:
            self._attempts.resume()

    def _release(self) -> None:
        if self._attempts is not None:
            self._attempts.release()
