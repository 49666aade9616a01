"""One exchange from top to bottom: hooks, body, backend, retries, answer. A coroutine for each request.

While a response streams, the coroutine sleeps: pieces go from the backend's socket through the addon's callable to the
client's socket inside `data_received` (`_piece`). Exactly one of the hooks `response` and `error` ends a flow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.flow import Error

from llmtap.core.errors import ApiError, InternalError, NoHealthyBackend, TooLarge, UpstreamFailed, UpstreamTimeout
from llmtap.core.plan import FailureReason, Plan, Target
from llmtap.lane import mitm
from llmtap.lane.body import BodyWriter, Framing
from llmtap.lane.head import BadHead, build, is_target, trailer_lines, wants_close
from llmtap.lane.inbound import Inbound
from llmtap.lane.refusals import ClientGone, Killed
from llmtap.lane.timing import Limit, Watch
from llmtap.lane.upstream import Failure, Upstream

if TYPE_CHECKING:
    from llmtap.lane.client import ClientConnection

log = logging.getLogger("llmtap.lane")
_RETRIED = frozenset((502, 503, 504))
_TOO_LARGE = "the backend's response is too large to be buffered"
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
Transform = Callable[[bytes], Iterable[bytes] | bytes]


class Relay:
    """Serves one `Inbound`. The connection tells it what happens to the client: `client_gone`, `client_full`, `client_ready`."""

    _plan: Plan | None = None
    _upstream: Upstream | None = None
    _writer: BodyWriter | None = None  # of a response whose head has been written before its end is known
    _sent = False  # a whole response has been written
    _transform: Transform | None = None
    _watch: Watch | None = None
    _waiter: asyncio.Future[None] | None = None  # for the request's body
    _cancellable: asyncio.Task[None] | None = None  # set while a leaving client may cancel the task
    _collected: list[bytes]
    _collected_size = 0
    _gone = False
    _overdue = False
    _ended = False  # `response` or `error` has fired

    def __init__(self, client: ClientConnection, inbound: Inbound) -> None:
        self._client = client
        self._lane = client.lane
        self._fire = client.lane.fire_flow
        self._inbound = inbound
        self._keep = inbound.keep_alive
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
        return mitm.flow(client.conn, client.placeholder, request, now)

    @property
    def reading(self) -> bool:
        """Its request has not been read to the end."""
        return not self._inbound.complete

    # ---- the exchange

    async def run(self) -> None:
        """Never raises but for a cancellation from outside (the end of the process)."""
        flow = self._flow
        try:
            try:
                await self._serve(flow)
            except BaseException as error:
                await self._end_badly(flow, error)
            if self._keep and not self._inbound.complete:
                await self._swallow_rest()
        finally:
            if self._watch is not None:
                self._watch.stop()
                self._watch = None  # it knows this object: a cycle would leave every flow to the garbage collector
            flow.live = False
            self._release()
            self._client.finished(self._keep and self._inbound.complete, not self._inbound.complete)

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
        self._check(flow)
        if flow.response is None:
            await self._read_body(flow)
            if (waiting := self._fire("request", flow)) is not None:
                await waiting
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

    async def _read_body(self, flow: http.HTTPFlow) -> None:
        inbound = self._inbound
        if not inbound.complete and not inbound.overflow and inbound.refusal is None:
            if inbound.continue_expected:
                self._client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._arrival()
        if inbound.refusal is not None:
            raise inbound.refusal
        if inbound.overflow:
            raise TooLarge(f"the request body is larger than {self._lane.limits.max_body_bytes} bytes")
        data = flow.request.data
        data.content = inbound.body()
        data.timestamp_end = time.time()
        if inbound.trailers:
            data.trailers = mitm.headers(tuple(inbound.trailers))

    async def _arrival(self) -> None:
        """Until the request is complete, too large, refused, or its client is gone."""
        self._waiter = self._lane.loop.create_future()
        self._inbound.changed = self._arrived
        self._client.expect_body(self._inbound)
        try:
            await self._waiter
        finally:
            self._waiter = self._inbound.changed = None

    def _arrived(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _swallow_rest(self) -> None:
        """A small rest of a refused body: read and dropped, and the connection stays usable."""
        self._inbound.overflow = True
        self._inbound.parts.clear()
        if self._inbound.refusal is None and not self._gone:
            try:
                await self._arrival()
            except ClientGone:
                self._keep = False

    # ---- a backend's response

    async def _forward(self, flow: http.HTTPFlow) -> None:
        plan = self._plan or self._default_plan(flow)
        self._watch = Watch(self._lane.loop, plan.total_s, self._expired)
        upstream = await self._obtain(flow, plan)
        reply = upstream.reply
        flow.response = mitm.response(reply.status, reply.reason, reply.version, tuple(reply.fields), time.time())
        if (waiting := self._fire("responseheaders", flow)) is not None:
            self._watch.phase("idle", 0.0)  # addons may take their time
            await waiting
        if flow.error is not None or (self._gone and not self._drains):
            self._check(flow)
        if not reply.complete:
            self._watch.phase("idle", plan.idle_s)
        if flow.response.stream:
            await self._stream(flow, upstream)
        else:
            await self._buffer(flow, upstream)

    async def _stream(self, flow: http.HTTPFlow, upstream: Upstream) -> None:
        response = cast(http.Response, flow.response)
        self._transform = response.stream if callable(response.stream) else None
        first = upstream.reply.take()
        if not self._gone:
            self._begin(response, self._transformed(first) if first else b"")
        upstream.sink = self._piece
        if self._client.write_paused and not self._gone:
            upstream.pause()
        try:
            await upstream.end()
        except Failure as failure:
            self._note(self._plan, failure.reason)
            raise _api_error(failure) from None
        tail = self._transformed(b"") if self._transform is not None else b""
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
        self._finish(tail, response.data.trailers)

    def _piece(self, data: bytes) -> None:
        """A piece of a streamed response, inside the backend's data_received."""
        if self._watch is not None:
            self._watch.touched = self._lane.loop.time()
        try:
            if self._transform is not None:
                out = self._transform(data)
                data = out if type(out) is bytes else b"".join(cast(Iterable[bytes], out))
            if data and not self._gone and self._writer is not None:
                self._writer.write(data)
        except Exception as error:
            log.error("stream callable failed", exc_info=(type(error), error, error.__traceback__))
            self._fail_upstream(InternalError("internal error; the response cannot be shown"))
        if self._flow.error is not None:  # killed while it streams
            self._fail_upstream(Killed())

    def _transformed(self, data: bytes) -> bytes:
        """Through the addon's callable, which may give bytes or pieces."""
        if self._transform is None:
            return data
        out = self._transform(data)
        return out if type(out) is bytes else b"".join(cast(Iterable[bytes], out))

    async def _buffer(self, flow: http.HTTPFlow, upstream: Upstream) -> None:
        content = upstream.reply.take()
        if not upstream.reply.complete:
            self._collected = [content] if content else []
            self._collected_size = len(content)
            upstream.sink = self._collect
            try:
                await upstream.end()
            except Failure as failure:
                self._note(self._plan, failure.reason)
                raise _api_error(failure) from None
            content = b"".join(self._collected)
        elif len(content) > self._lane.limits.max_reply_bytes:
            raise UpstreamFailed(_TOO_LARGE)
        response = cast(http.Response, flow.response)
        response.data.content = content
        response.data.timestamp_end = time.time()
        if upstream.reply.trailers:
            response.data.trailers = mitm.headers(tuple(upstream.reply.trailers))
        self._release()
        self._check(flow)
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        self._send_whole(cast(http.Response, flow.response))

    def _collect(self, data: bytes) -> None:
        """A piece of a response that is kept until it is whole."""
        if self._watch is not None:
            self._watch.touched = self._lane.loop.time()
        self._collected.append(data)
        self._collected_size += len(data)
        if self._collected_size > self._lane.limits.max_reply_bytes:
            self._collected.clear()
            self._fail_upstream(UpstreamFailed(_TOO_LARGE))
        elif self._flow.error is not None:
            self._fail_upstream(Killed())

    # ---- candidates

    def _default_plan(self, flow: http.HTTPFlow) -> Plan:
        """Without a plan: where the request says, as mitmproxy's reverse mode does."""
        data, client = flow.request.data, self._client
        if client.upstream is None and (data.host, data.port) == client.placeholder.address:
            self._plan = Plan([])  # nobody sent it anywhere, and it must not come back here
        else:
            self._plan = Plan([Target(data.host, data.host, data.port, data.scheme == b"https")], retries=0)
        return self._plan

    async def _obtain(self, flow: http.HTTPFlow, plan: Plan) -> Upstream:
        """The connection whose response's head has come and will be used. Raises ApiError when all candidates failed."""
        candidates = plan.candidates[: plan.retries + 1]
        failed: Failure | None = None
        for at, target in enumerate(candidates):
            plan.attempts += 1
            plan.served_by = target
            try:
                upstream = await self._attempt(flow, plan, target)
            except Failure as failure:
                self._note(plan, failure.reason)
                failed = failure
                if self._gone:
                    raise ClientGone from None
                if self._overdue:
                    break
                continue
            if upstream.reply.status in _RETRIED:
                self._note(plan, "status")
                if at + 1 < len(candidates) and not self._gone:
                    self._release()
                    continue
            return upstream
        plan.served_by = None
        if failed is None:
            raise NoHealthyBackend("no healthy backend for this request")
        raise _api_error(failed)

    async def _attempt(self, flow: http.HTTPFlow, plan: Plan, target: Target) -> Upstream:
        """One candidate: over a pooled connection, and if that turns out to be stale over a new one. Raises Failure."""
        data = flow.request.data
        data.host, data.port, data.scheme = target.host, target.port, b"https" if target.tls else b"http"
        head, body = self._request_bytes(data, target)
        upstream = self._lane.pool.take(target)
        stale_possible = upstream is not None
        while True:
            if upstream is None:
                upstream = await self._connect(plan, target)
            self._upstream = upstream
            flow.server_conn = upstream.server
            upstream.send(head, body, data.method == b"HEAD")
            if self._watch is not None:
                self._watch.phase("first_byte", plan.first_byte_s)
                plan.sent_at = self._watch.touched
            try:
                await upstream.head()
            except Failure as failure:
                self._upstream = None
                if not stale_possible or upstream.answered or failure.reason not in ("reset", "closed"):
                    raise
                upstream = None
                stale_possible = False
                continue
            return upstream

    async def _connect(self, plan: Plan, target: Target) -> Upstream:
        if self._watch is not None and plan.attempts > 1:
            self._watch.phase("connect", 0.0)  # the pool keeps this time
        self._cancellable = task = asyncio.current_task()
        try:
            return await self._lane.pool.connect(target, self._client.conn, plan.connect_s)
        except asyncio.CancelledError:
            if not self._gone or task is None:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            self._cancellable = None

    def _request_bytes(self, data: http.RequestData, target: Target) -> tuple[bytes, bytes]:
        if data.path is not self._inbound.target and not is_target(data.path):
            raise InternalError("internal error; the request's path was made unusable")
        body = data.content or b""
        chunked = data.trailers is not None
        try:
            head = build(
                b"%b %b HTTP/1.1" % (data.method, data.path),
                data.headers.fields,
                self._lane.kinds,
                length=len(body) if body or data.method in _WITH_BODY else None,
                chunked=chunked,
                host=target.host_header,
                replace=target.headers,
            )
            if data.trailers is not None:
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n"
                body += trailer_lines(data.trailers.fields, self._lane.kinds)
        except BadHead as error:
            log.error("request not sent: %s", error)
            raise InternalError("internal error; the request's headers were made unusable") from None
        return head, body

    def _note(self, plan: Plan | None, reason: FailureReason) -> None:
        if plan is None or plan.on_failure is None or plan.served_by is None:
            return
        try:
            plan.on_failure(plan.served_by, reason)
        except Exception as error:
            log.error("on_failure failed", exc_info=(type(error), error, error.__traceback__))

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
            self._keep = False
        if self._plan is not None and self._plan.body is not None:
            await self._generate(flow, response, self._plan.body)
            return
        response.data.timestamp_end = time.time()
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        self._send_whole(cast(http.Response, flow.response))

    async def _generate(self, flow: http.HTTPFlow, response: http.Response, pieces: AsyncIterator[bytes]) -> None:
        self._transform = response.stream if callable(response.stream) else None
        self._begin(response, b"")
        self._cancellable = task = asyncio.current_task()
        try:
            async for data in pieces:
                if data and self._writer is not None:
                    self._writer.write(self._transformed(data))
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
        tail = self._transformed(b"") if self._transform is not None else b""
        response.data.timestamp_end = time.time()
        self._check(flow)
        self._ended = True
        if (waiting := self._fire("response", flow)) is not None:
            await waiting
        self._check(flow)
        self._finish(tail, None)

    # ---- failures

    async def _failed(self, flow: http.HTTPFlow, message: str | None) -> None:
        """Nobody is to be answered: the `error` hook, unless the flow has ended, and the connection closes."""
        self._keep = False
        if message is not None and flow.error is None:
            flow.error = Error(message)
        if not self._ended:
            self._ended = True
            if (waiting := self._fire("error", flow)) is not None:
                await waiting

    async def _refuse(self, flow: http.HTTPFlow, error: ApiError) -> None:
        """The `error` hook, then the answer; or, when the head has been sent, last words."""
        if self._plan is not None:
            self._plan.error = error
        self._lane.failing(flow, error)
        keep = self._keep and self._writer is None
        await self._failed(flow, error.message)
        if self._gone or self._client.dead or self._sent:
            return
        if self._writer is None:
            self._keep = keep
            response = self._lane.answer_to(flow, error)
            if wants_close(response.data.headers.fields):
                self._keep = False
            try:
                self._send_whole(response)
            except InternalError as unsendable:
                self._send_whole(self._lane.plain_answer(flow, unsendable))
        elif self._writer.framing in (Framing.CHUNKED, Framing.CLOSE):
            self._writer.write(self._lane.last_words_of(flow, error, self._writer.tail))

    def _fail_upstream(self, error: Exception) -> None:
        upstream = self._upstream
        if upstream is not None:
            self._upstream = None
            upstream.fail(error)

    def _expired(self, limit: Limit) -> None:
        if limit == "total":
            self._overdue = True
        if limit == "idle" and self._upstream is not None and self._upstream.paused:
            self._client.transport.abort()  # it is the client who does not move
        elif limit == "first_byte":
            self._fail_upstream(Failure("first_byte_timeout", "the backend did not answer in time"))
        elif self._upstream is not None:
            self._fail_upstream(
                UpstreamTimeout("the backend was silent for too long" if limit == "idle" else "the request took too long")
            )

    # ---- what happens to the client

    @property
    def _drains(self) -> bool:
        return self._plan is not None and self._plan.on_client_disconnect == "drain"

    def client_gone(self) -> None:
        """Stop at once what is done for it; or, if the plan says so, let the backend finish."""
        if self._gone:
            return
        self._gone = True
        self._keep = False
        if self._upstream is not None and self._drains:
            self._upstream.resume()
        elif self._upstream is not None:
            self._fail_upstream(ClientGone())
        elif self._cancellable is not None:
            self._cancellable.cancel()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ClientGone())

    def client_full(self) -> None:
        if self._upstream is not None and self._writer is not None and not self._gone:
            self._upstream.pause()

    def client_ready(self) -> None:
        if self._upstream is not None:
            if self._watch is not None:
                self._watch.touched = self._lane.loop.time()
            self._upstream.resume()

    def _release(self) -> None:
        upstream = self._upstream
        if upstream is not None:
            self._upstream = None
            upstream.release()

    # ---- writing

    def _empty(self, status: int) -> bool:
        return self._inbound.method == b"HEAD" or status in (204, 304)

    def _decide_keep(self) -> None:
        """Whether the connection goes on; known before the head is written, because the head says so."""
        inbound, limits = self._inbound, self._lane.limits
        if self._client.closing:
            self._keep = False
        elif not inbound.complete:
            rest = inbound.rest
            small = rest is not None and rest <= limits.drain_rest_bytes and not inbound.continue_expected
            self._keep = self._keep and small and inbound.refusal is None

    def _begin(self, response: http.Response, first: bytes) -> None:
        """The head and the first piece of a body whose length is not known in advance."""
        self._decide_keep()
        data = response.data
        declared = _declared(data.headers)
        if self._empty(data.status_code):
            framing = Framing.EMPTY
        elif declared is not None:
            framing = Framing.LENGTH
        elif self._inbound.version == b"HTTP/1.1":
            framing = Framing.CHUNKED
        else:
            framing = Framing.CLOSE
            self._keep = False
        head = self._head(data, None if data.status_code == 204 else declared, framing is Framing.CHUNKED)
        self._writer = BodyWriter(self._client.transport, framing, declared or 0)
        self._client.transport.write(head + self._writer.encode(first) if first else head)

    def _finish(self, tail: bytes, trailers: http.Headers | None) -> None:
        writer = self._writer
        if writer is None:
            return
        writer.write(tail)
        lines = b"\r\n"
        if trailers is not None:
            try:
                lines = trailer_lines(trailers.fields, self._lane.kinds)
            except BadHead as error:
                log.error("trailers not sent: %s", error)
        if not writer.end(lines):
            self._keep = False

    def _send_whole(self, response: http.Response) -> None:
        self._decide_keep()
        data = response.data
        body = data.content or b""
        transport = self._client.transport
        if data.trailers is not None and self._inbound.version == b"HTTP/1.1" and not self._empty(data.status_code):
            head = self._head(data, None, chunked=True)
            self._writer = BodyWriter(transport, Framing.CHUNKED)
            transport.write(head + self._writer.encode(body))
            self._finish(b"", data.trailers)
            return
        if self._empty(data.status_code):
            body = b""
            head = self._head(data, None if data.status_code == 204 else _declared(data.headers), chunked=False)
        else:
            head = self._head(data, len(body), chunked=False)
        self._sent = True
        if len(body) > 65536:  # two calls cost less than a copy
            transport.write(head)
            transport.write(body)
        else:
            transport.write(head + body if body else head)

    def _head(self, data: http.ResponseData, length: int | None, chunked: bool) -> bytes:
        if not self._keep:
            extra: tuple[bytes, ...] = (b"connection: close",)
        else:
            extra = () if self._inbound.version == b"HTTP/1.1" else (b"connection: keep-alive",)
        first = b"HTTP/1.1 %d %b" % (data.status_code, data.reason)
        try:
            return build(first, data.headers.fields, self._lane.kinds, length=length, chunked=chunked, extra=extra)
        except BadHead as error:
            log.error("response not sent: %s", error)
            raise InternalError("internal error; the response's headers were made unusable") from None


def _api_error(failure: Failure) -> ApiError:
    if failure.reason in ("connect_timeout", "first_byte_timeout"):
        return UpstreamTimeout(str(failure))
    return UpstreamFailed(str(failure))


def _declared(headers: http.Headers) -> int | None:
    """The content-length a response's head announces, when it can be believed."""
    length: int | None = None
    for name, value in headers.fields:
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            length = int(value) if value.isdigit() else None
        elif size == 17 and name.lower() == b"transfer-encoding":
            return None
    return length
