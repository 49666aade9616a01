"""The one addon mitmproxy sees: it drives a request through its phases (the order of the steps: `assembly.py`).

    requestheaders   open the exchange → own endpoints → routing (path, method, size)
    request          transforms (parse, usage) → routing (who serves it) → queueing (backend, wait) → capture (begin) → metrics
    responseheaders  queueing → tee
    response|error   tee closes → outcome → finalise, once → queueing (place), capture (end), metrics, request log
                     (for a websocket: `websocket_end`)

mitmproxy logs an exception in a hook and lets the request pass: it fails OPEN. So every step is called from here and
everything it raises is caught: a *policy* step fails closed (its ApiError is the answer, any other exception a 500), an
*observer* fails open. Both are counted in `llmtap_hook_errors_total`. Every hook may be called twice for one event and acts once
(why: `backstop.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from mitmproxy import connection, ctx, http
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import server_hooks
from mitmproxy.websocket import WebSocketData

from llmtap import settings
from llmtap.answers import client_left, error_response, last_words, own_headers, plain_failure, readable_by
from llmtap.assembly import Gateway, Step
from llmtap.backstop import Backstop
from llmtap.core.attached import Attached
from llmtap.core.config import Config
from llmtap.core.config_watch import watch
from llmtap.core.endpoints import canonical_path
from llmtap.core.errors import (
    ApiError,
    BadRequest,
    Cancelled,
    ConfigError,
    InternalError,
    NotFound,
    SpoolError,
    UpstreamFailed,
    UpstreamTimeout,
)
from llmtap.core.plan import FailureReason, Plan
from llmtap.core.record import Outcome
from llmtap.endpoints import Endpoints
from llmtap.exchange import Exchange, is_cut, outcome_of_refusal, outcome_of_status
from llmtap.lane import Lane, LaneLimits, Upload, default_mode, install, stock
from llmtap.lane.last_words import last_words as words_after
from llmtap.lane.listener import server_tls
from llmtap.listening import CompatListener, read_tls, try_address
from llmtap.opening import open_exchange, read_own_headers
from llmtap.transcript import register as register_transcript

log = logging.getLogger("llmtap")


class Chain:
    """The addon. Holds the exchanges of live flows and runs the steps of the current `Gateway`."""

    name = "llmtap.chain"

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self._endpoints: Endpoints | None = None
        self._exchanges: Attached[http.HTTPFlow, Exchange] = Attached("exchange")
        self._live: dict[Exchange, http.HTTPFlow] = {}
        self._answers: Attached[http.Request, Exchange] = Attached("exchange")
        self._plans: Attached[http.HTTPFlow, Plan] = Attached("plan")
        self._own: Attached[http.HTTPFlow, bool] = Attached("own answer")  # by our own endpoints: no exchanges
        self._later: Attached[http.HTTPFlow, Callable[[], Awaitable[http.Response]]] = Attached("own answer to come")
        self._lane: Lane | None = None  # None: one of mitmproxy's stock modes was asked for
        self._tls: ssl.SSLContext | None = None  # for clients
        self._compat: CompatListener | None = None
        self._under: dict[Exchange, Gateway] = {}  # what began before the configuration was loaded again
        self._again = False
        self._held = False
        self._running = False
        self._started = asyncio.Event()
        self._unloaded = False  # the script is gone: what runs is finished, what is new is refused
        self._draining: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._idle: asyncio.Event | None = None

    # ---- life of the addon

    def load(self, loader: Loader) -> None:
        self._unloaded = False
        self._again = self._gateway is not None
        settings.declare(loader)
        self._held = stock.hold_listeners()

    def configure(self, updated: set[str]) -> None:
        if self._gateway is not None and (self._again or "llmtap_config" in updated):
            self._again = False
            self.reload_file()
        if self._gateway is not None or ("llmtap_config" not in updated and "mode" not in updated):
            return
        try:
            config = settings.load_config(ctx.options, settings.environment(), Path.cwd())
            stock_mode = list(ctx.options.mode) != settings.DEFAULT_MODE
            if stock_mode:
                settings.refuse_in_stock_modes(config)
            settings.check_exposure(ctx.options, config)
            self._tls = read_tls(config.server, server_tls) if not stock_mode else None
            view = ctx.master.addons.get("view")
            flows = ctx.options.llmtap_view_flows
            shared = Path(ctx.options.llmtap_shared_metrics) if ctx.options.llmtap_shared_metrics else None
            self._gateway = Gateway(config, ctx.options.llmtap_writer, view, flows, stock.in_console(), shared)
        except (ConfigError, SpoolError) as error:
            # no traceback for a user's mistake; an error logged while mitmproxy starts ends it with status 1
            for line in str(error).splitlines():
                log.error("llmtap: %s", line)
            return
        self._serve(self._gateway)
        stock.install(self._stock_answer, self._last_words)

    def _serve(self, gateway: Gateway) -> None:
        """What is new goes through `gateway` from now on."""
        self._gateway = gateway
        self._endpoints = Endpoints(gateway.backends, self._stats, gateway.exposed)
        self._set_options(gateway.config)

    def reload_file(self) -> bool:
        """Read the configuration again (the script was loaded again, SIGHUP). One that is wrong is told, and nothing changes."""
        try:
            self.reload(settings.load_config(ctx.options, settings.environment(), Path.cwd()))
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("llmtap: %s", line)
            log.error("llmtap: the configuration stays as it was")
            return False
        return True

    def _file_changed(self) -> None:
        """What stands in the file now is read, if it says anything else: a key that is taken out stops working at once."""
        with contextlib.suppress(ConfigError):  # what is wrong is told by `reload_file`
            config = settings.load_config(ctx.options, settings.environment(), Path.cwd())
            if self._gateway is not None and config == self._gateway.config:
                return
        self.reload_file()

    def reload(self, config: Config) -> None:
        """Go over to another configuration: what runs ends under the one it began with, counters go on, listeners follow.

        Raises ConfigError, and then nothing has changed."""
        old = self._gateway
        if old is None or not self._running:
            raise ConfigError("the gateway is not running")
        settings.check_exposure(ctx.options, config)
        settings.refuse_disarming(old.config, config)
        if self._lane is None:
            settings.refuse_in_stock_modes(config)
        tls = read_tls(config.server, server_tls) if self._lane is not None else None
        try:
            view, flows = ctx.master.addons.get("view"), ctx.options.llmtap_view_flows
            new = Gateway(config, ctx.options.llmtap_writer, view, flows, silent=stock.in_console(), before=old)
        except SpoolError as error:
            raise ConfigError(f"capture.dir: {error}") from None
        if self._lane is not None and (host_port := self._address(config)) != self._address(old.config):
            try:
                try_address(*host_port)
            except ConfigError:
                new.discard(old)
                raise
        for key in settings.needs_restart(old.config, config):
            log.warning("llmtap: %s has changed, which takes a restart", key)
        for ex in self._live:
            self._under.setdefault(ex, old)
        self._tls = tls
        self._serve(new)
        new.health_changed = self._follow_health
        new.start(before=old)
        self._follow_health()
        self._leave(old)
        log.info("llmtap: the configuration was loaded again")

    @staticmethod
    def _address(config: Config) -> tuple[str, int]:
        """What the gateway listens on."""
        return ctx.options.listen_host or config.server.host, ctx.options.listen_port or config.server.port

    def _gateway_of(self, ex: Exchange) -> Gateway | None:
        """That under which the exchange began."""
        return self._under.get(ex, self._gateway) if self._under else self._gateway

    def _ended(self, ex: Exchange) -> None:
        """An exchange that began under another configuration is over."""
        gateway = self._under.pop(ex, None)
        if gateway is not None:
            self._leave(gateway)

    def _leave(self, gateway: Gateway) -> None:
        """Stop it, unless something still runs under it."""
        running = set(self._under.values())
        if gateway not in running:
            gateway.stop(running if self._gateway is None else {self._gateway, *running})

    def _set_options(self, config: Config) -> None:
        opts = ctx.options
        changes: dict[str, Any] = {
            "connection_strategy": "lazy",  # eager would close the client when the default target is down
            "block_global": False,
            "onboarding": False,
            # a little above ours: a body of exactly the limit must pass, and a declared larger one gets our 413
            "body_size_limit": f"{config.server.max_body_mb + 1}m",
        }
        if self._gateway is not None and self._gateway.inspect is not None:
            register_transcript()
            changes["store_streamed_bodies"] = True  # else there is nothing to look at
            if "web_columns" in opts and list(opts.web_columns) == list(opts.default("web_columns")):
                changes["web_columns"] = [*opts.web_columns, "comment"]
        if self._lane is not None or list(opts.mode) == settings.DEFAULT_MODE:
            changes["mode"] = [default_mode(*self._address(config))]
            limits = LaneLimits(max_body_bytes=config.server.max_body_mb << 20, drain_s=config.server.drain_timeout_s)
            self._lane = install(
                plans=self._plans,
                answer=self._lane_answer,
                failing=self._failing,
                last_words=self._lane_last_words,
                uploading=self._uploading,
                limits=limits,
                before_replay=self._replayable,
                reuse_port=config.server.workers > 1,
            )
            self._lane.set_server_tls(self._tls)
        else:
            for keys in settings.unused_in_stock_modes(config):
                log.warning("llmtap: %s: needs the gateway mode (no --mode); %s does without", keys, opts.mode[0])
            if not opts.listen_host:
                changes["listen_host"] = config.server.host
            if opts.listen_port is None:
                changes["listen_port"] = config.server.port
        # a trimmed mitmproxy has not the addons that declare some of them
        opts.update(**{name: value for name, value in changes.items() if name in opts})

    @property
    def ready(self) -> bool:
        """Whether there is a valid configuration."""
        return self._gateway is not None

    @property
    def in_flight(self) -> int:
        """Exchanges that have begun and not ended."""
        return len(self._live)

    def running(self) -> Awaitable[None] | None:
        if self._gateway is None:
            return None  # the configuration was bad: mitmproxy ends because an error was logged
        if self._running:
            return None  # the script was loaded again
        self._running = True
        self._gateway.health_changed = self._follow_health
        self._gateway.start()
        path = settings.config_path(ctx.options, settings.environment(), Path.cwd())
        if path is not None:
            self._watch = asyncio.create_task(watch(path, self._file_changed), name="llmtap configuration")
        if self._lane is None:
            stock.on_terminate(self._terminate)  # the lane drains by itself
        stock.on_hangup(self.reload_file)
        return stock.open_listeners() if self._held else None

    def _follow_health(self) -> None:
        """`server.compat_port` is open while a backend is healthy."""
        gateway, lane = self._gateway, self._lane
        if gateway is None or lane is None or lane.draining:
            return
        port, host = gateway.config.server.compat_port, self._address(gateway.config)[0]
        if self._compat is not None and self._compat.address != (host, port):
            self._compat.close()
            self._compat = None
        if port is not None:
            if self._compat is None:
                self._compat = CompatListener(host, port, lane.listen)
            self._compat.follow(gateway.backends.healthy())

    def started(self) -> None:
        """Every addon of this mitmproxy is running."""
        self._started.set()

    async def _replayable(self) -> None:
        """`-C` replays while mitmproxy is starting: not before its addons run and backends have been looked at."""
        await self._started.wait()
        while self._gateway is not None and any(backend.state == "unknown" for backend in self._gateway.backends):
            await asyncio.sleep(0.02)

    def _terminate(self) -> None:
        """SIGTERM or Ctrl-C: no new connections, running requests to their end, then the end. A second signal ends at once."""
        gateway = self._gateway
        if self._draining or gateway is None or not self._live:
            ctx.master.shutdown()
            return
        self._draining = asyncio.create_task(self._drain(gateway.config.server.drain_timeout_s), name="llmtap drain")

    async def _drain(self, patience_s: float) -> None:
        log.info("llmtap: %d requests are running; waiting up to %g s (once more to stop at once)", len(self._live), patience_s)
        ctx.options.update(server=False)
        self._idle = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), patience_s)
        ctx.master.shutdown()

    def done(self) -> None:
        """The end, or the script's reload or removal: then the backstop knows when the end has come."""
        if ctx.master.addons.get(Backstop.name) is None:
            self.end()
        else:
            self._unloaded = True

    def end(self) -> None:
        """Shutdown: whatever is still open ends here, before mitmproxy's own `error` hooks."""
        for ex, flow in list(self._live.items()):
            self._close(flow, ex, "lost", "the gateway stopped")
        if self._compat is not None:
            self._compat.close()
        if self._watch is not None:
            self._watch.cancel()
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None
        stock.uninstall()

    # ---- life of a flow

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not flow.live:
            return None  # loaded from a file
        known = self._exchanges.get(flow)
        answered = flow.response is not None or self._later.get(flow) is not None
        if (known is not None and known.outcome == "open") or (answered and flow in self._own):
            return None
        if flow.is_replay:
            self._own.pop(flow)
        gateway = self._gateway
        if gateway is None or self._endpoints is None or self._unloaded:
            self._own[flow] = True
            flow.response = error_response(InternalError("the gateway is not ready"), None, flow.request)
            return None
        path = canonical_path(flow.request.path)
        client, origin = None, None
        if gateway.cors is not None:
            own = gateway.cors.preflight(flow.request)
            if own is not None:
                self._answer_own(gateway, flow, own, None)
                return None
            origin = gateway.cors.origin(flow.request)
        if gateway.auth is not None:
            try:
                client = gateway.auth.admit(flow, path)
            except Exception as error:
                self._shut_out(gateway, flow, path, error, origin)
                return None
        if path is not None:
            own = self._endpoints.answer(flow.request, path, client.models if client is not None else None)
            if own is not None:
                self._answer_own(gateway, flow, own, origin)
                return None
            later = self._endpoints.later(flow.request, path)
            if later is not None:
                self._own[flow] = True
                self._later[flow] = later if origin is None else _for_page(later, origin)
                return None
        ex = self._open(flow, path, origin)
        if client is not None:
            ex.client, ex.priority = client, client.priority
        try:
            if path is None:
                raise NotFound("the request target is not a plain path")
            read_own_headers(flow.request, ex)
        except ApiError as error:
            self._refuse(flow, ex, error)
            return None
        return self._run("on_requestheaders", flow, ex, then=_nothing)

    def _open(self, flow: http.HTTPFlow, path: str | None, origin: str | None) -> Exchange:
        ex = open_exchange(flow, path)
        ex.lane = self._lane is not None
        ex.cors_origin = origin
        self._exchanges[flow] = ex
        self._answers[flow.request] = ex
        self._live[ex] = flow
        return ex

    def _answer_own(self, gateway: Gateway, flow: http.HTTPFlow, response: http.Response, origin: str | None) -> None:
        self._own[flow] = True
        if gateway.inspect is not None:
            gateway.inspect.own_answer(flow)
        if origin is not None:
            readable_by(response.headers, origin)
        flow.response = response

    def _shut_out(self, gateway: Gateway, flow: http.HTTPFlow, path: str | None, error: Exception, origin: str | None) -> None:
        """No (valid) key, or the look at it failed: in both cases the request goes no further."""
        refusal = error if isinstance(error, ApiError) else InternalError("internal error; the request was not forwarded")
        if not isinstance(error, ApiError):
            gateway.metrics.hook_errors.labels("auth", "on_requestheaders").inc()
            log.error("llmtap: auth failed", exc_info=(type(error), error, error.__traceback__))
        if path is None or self._endpoints is None or not self._endpoints.knows(flow.request, path):
            self._refuse(flow, self._open(flow, path, origin), refusal)
            return
        gateway.metrics.refusals.labels(refusal.code).inc()
        self._answer_own(gateway, flow, error_response(refusal, None, flow.request), origin)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not flow.live:
            return None
        if flow in self._own:
            later = self._later.get(flow)
            return self._answer_later(flow, later) if later is not None else None
        ex = self._exchanges.get(flow)
        if ex is None or ex.outcome != "open":
            waiting = self.requestheaders(flow)  # another script kept that event from us (AddonHalt)
            if waiting is not None:
                return self._caught_up(waiting, flow)
            ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or ex.received is not None:
            return None
        ex.received = _now()
        ex.body = flow.request.raw_content
        if ex.body is None and flow.request.stream:
            ex.upload = _Unseen()  # a stock mode has sent it already, because another addon wanted that
        return self._run("on_request", flow, ex, then=self._forwarding)

    async def _caught_up(self, waiting: Awaitable[None], flow: http.HTTPFlow) -> None:
        await waiting
        more = self.request(flow)
        if more is not None:
            await more

    async def _uploading(self, flow: http.HTTPFlow, upload: Upload) -> None:
        """The lane sends this body as it comes: what is done at `request` has to be done now."""
        later = self._later.get(flow)
        if later is not None:
            await self._answer_later(flow, later)
            return
        ex = self._exchanges.get(flow)
        if ex is None:
            late = self.requestheaders(flow)  # another script kept that event from us (AddonHalt)
            if late is not None:
                await late
            ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or ex.received is not None:
            return
        gateway = self._gateway_of(ex)
        if gateway is None:
            return
        ex.upload = upload
        try:
            await gateway.uploads.read(flow, ex, upload)
        except ApiError as error:
            self._refuse(flow, ex, error)
            return
        ex.received = _now()
        waiting = self._run("on_request", flow, ex, then=self._forwarding)
        if waiting is not None:
            await waiting

    async def _answer_later(self, flow: http.HTTPFlow, later: Callable[[], Awaitable[http.Response]]) -> None:
        self._later.pop(flow)
        try:
            flow.response = await later()
        except Exception as error:
            log.error("llmtap: %s failed", flow.request.path, exc_info=(type(error), error, error.__traceback__))
            flow.response = error_response(InternalError("internal error"), None, flow.request)
        if self._gateway is not None and self._gateway.inspect is not None:
            self._gateway.inspect.own_answer(flow)

    def _forwarding(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.refusal is None:
            if ex.cache != "hit":
                ex.forwarded = _now()
            if ex.plan is not None:
                self._plans[flow] = ex.plan

    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        ex = self._exchanges.get(flow)
        if ex is None or ex.refusal is not None or flow.response is None or ex.replied:
            return None
        ex.replied = True
        return self._run("on_responseheaders", flow, ex, then=self._stamp)

    def _stamp(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if flow.response is not None:
            own_headers(flow.response.headers, ex)

    def response(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or flow.response is None or ex.outcome != "open":
            return
        if flow.websocket is not None and flow.response.status_code == 101:
            return  # it has only begun: `websocket_end`
        self._run_sync("on_response", flow, ex)
        if ex.status is None:
            ex.status = flow.response.status_code
        if ex.refusal is not None:
            self._finish(flow, ex, outcome_of_refusal(ex.refusal))
            return
        if ex.cache == "hit":
            self._finish(flow, ex, "cached")
            return
        summary = ex.summary
        if summary is not None and summary.error_type is not None and ex.status < 400:
            self._finish(flow, ex, "upstream_error")  # an error inside a stream that had begun well
        elif is_cut(ex):
            self._close(flow, ex, "upstream_error", "the stream ended before it was complete")
        else:
            self._finish(flow, ex, outcome_of_status(ex.status))

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or flow.websocket is None or ex.outcome != "open":
            return
        if not flow.websocket.messages[-1].from_client:
            ex.chunks += 1
            ex.reply_bytes += len(flow.websocket.messages[-1].content)
        self._run_sync("on_message", flow, ex)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        socket = flow.websocket
        if ex is None or socket is None or ex.outcome != "open":
            return
        if ex.failure is not None:
            self._failed(flow, ex, ex.failure)
        elif flow.error is not None:
            self._close(flow, ex, "rejected", "killed in the interactive interface")
        elif flow.response is not None and flow.response.status_code != 101:
            ex.status = flow.response.status_code  # another addon has refused the switch
            self._finish(flow, ex, outcome_of_status(ex.status))
        elif self._stopped(socket):
            self._close(flow, ex, "lost", "the gateway stopped")
        elif socket.close_code in _CLEAN_CLOSE or (socket.closed_by_client and socket.close_code != _ABNORMAL_CLOSE):
            self._finish(flow, ex, "ok")
        elif not socket.closed_by_client:
            self._close(flow, ex, "upstream_error", f"the backend ended the websocket with {socket.close_code}")
        else:
            self._close(flow, ex, "client_abort", "the client closed the connection")

    def _stopped(self, socket: WebSocketData) -> bool:
        """Whether it was us who ended it: the gateway stops, and neither side has said goodbye of its own."""
        if self._lane is None or not self._lane.cutting:
            return False
        return socket.close_code == (_ABNORMAL_CLOSE if socket.closed_by_client else _GOING_AWAY)

    def error(self, flow: http.HTTPFlow) -> None:
        ex = self._exchanges.get(flow)
        if ex is None or ex.outcome != "open":
            return
        message = flow.error.msg if flow.error else "unknown"
        ex.upstream_failure = message
        gone = client_left(flow, message)
        if gone and self._lane is not None and self._lane.cutting:
            self._close(flow, ex, "lost", "the gateway stopped")
            return
        if gone:
            if ex.tee is not None and ex.replied:
                ex.tee.close()
                if ex.status == 200 and ex.summary is not None and ex.summary.complete and not _went_on(ex):
                    # it has all there is, and hung up between that and the end of the body, as SDKs do after [DONE]
                    self._finish(flow, ex, "ok")
                    return
            ex.status = 499
            self._close(flow, ex, "client_abort", "the client closed the connection")
            return
        if message == _KILLED:
            cancelled = isinstance(ex.failure, Cancelled)
            self._close(flow, ex, "rejected", str(ex.failure) if cancelled else "killed in the interactive interface")
            return
        if ex.failure is not None:
            if ex.forwarded is None:
                ex.refuse(ex.failure)  # it never got as far as a backend
            self._failed(flow, ex, ex.failure)
            return
        if ex.refusal is not None or ex.forwarded is None:
            # the request itself was unreadable, or too large for mitmproxy's own limit
            error = ex.refusal or self._request_error(message)
            ex.refuse(error)
            self._close(flow, ex, outcome_of_refusal(error), error.message)
            return
        silent = message == "timeout"
        failure = UpstreamTimeout("the backend was silent for too long") if silent else UpstreamFailed(plain_failure(message))
        if ex.backend is not None and (gateway := self._gateway_of(ex)) is not None:
            reason: FailureReason = "refused" if flow.server_conn.timestamp_tcp_setup is None else "closed"
            gateway.backend_failed(ex.backend, reason)
        self._failed(flow, ex, failure)

    def _failed(self, flow: http.HTTPFlow, ex: Exchange, failure: ApiError) -> None:
        """No (complete) reply, and this is why. Its status counts where no other has been sent."""
        if ex.status is None:
            ex.status = failure.status
        ex.error_type, ex.error_message = failure.code, failure.message
        self._close(flow, ex, outcome_of_refusal(failure), failure.message)

    def _request_error(self, message: str) -> ApiError:
        if "body_size_limit" in message and self._gateway is not None:
            return self._gateway.routing.too_large()
        return BadRequest("the request is not valid HTTP")

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        # mitmproxy would fail every later request of this client to that address without trying again
        data.server.error = None

    def client_disconnected(self, client: connection.Client) -> None:
        for gateway in self._gateways():
            gateway.queueing.client_left(client.id)

    def _gateways(self) -> Iterable[Gateway]:
        """That of the configuration in force, and those under which requests of earlier ones run."""
        if self._under:
            return {*self._under.values(), *([self._gateway] if self._gateway is not None else [])}
        return () if self._gateway is None else (self._gateway,)

    # ---- for those who look after it

    def in_flight_list(self) -> list[dict[str, Any]]:
        """Every request that has not ended, oldest first, as plain data; never its text."""
        now = _now()
        return [
            {
                "id": ex.uid,
                "request_id": ex.request_id,
                "endpoint": ex.endpoint.name,
                "path": ex.path,
                "model": ex.model,
                "backend": ex.backend,
                "key": ex.key_name,
                "client": ex.client_ip,
                "stream": ex.stream,
                "state": _state_of(ex),
                "age_s": round(now - ex.started, 3),
                "queue_s": round(ex.queue_s, 3),
                "attempts": ex.attempts,
                "reply_bytes": ex.reply_bytes,
            }
            for ex in list(self._live)
        ]

    def cancel(self, uid: str) -> bool:
        """End one request: its client gets an error, or the last words of its stream. False when there is none of that id."""
        found = next((pair for pair in self._live.items() if pair[0].uid == uid), None)
        if found is None:
            return False
        ex, flow = found
        error = Cancelled("the request was cancelled by an operator")
        if any(gateway.queueing.cancel(ex, error) for gateway in self._gateways()):
            return True
        if ex.plan is not None and ex.plan.cancel is not None:
            ex.plan.cancel(error)
        elif flow.killable:
            ex.failure = error
            flow.kill()
        return True

    # ---- ends

    def _close(self, flow: http.HTTPFlow, ex: Exchange, outcome: Outcome, message: str) -> None:
        """End an exchange that has no complete reply; what arrived of it is kept."""
        if ex.tee is not None and ex.outcome == "open":
            ex.tee.close()
        if ex.error_message is None:
            ex.error_message = message
        if ex.error_type is None:
            ex.error_type = outcome
        self._finish(flow, ex, outcome)

    def _finish(self, flow: http.HTTPFlow, ex: Exchange, outcome: Outcome) -> None:
        if ex.finalise(outcome, _now()):
            self._live.pop(ex, None)
            self._run_sync("on_finish", flow, ex)
            if self._under:
                self._ended(ex)
            if self._idle is not None and not self._live:
                # one more turn of the loop: the last bytes are still to be sent
                asyncio.get_running_loop().call_later(0.05, self._idle.set)

    # ---- running steps

    def _run_sync(self, phase: str, flow: http.HTTPFlow, ex: Exchange) -> None:
        """Run a phase whose steps never wait."""
        for step in self._steps(phase, ex):
            try:
                step.call(flow, ex)
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return

    def _run(
        self, phase: str, flow: http.HTTPFlow, ex: Exchange, then: Callable[[http.HTTPFlow, Exchange], None]
    ) -> Awaitable[None] | None:
        """Run a phase; an awaitable comes back only when a step has to wait."""
        steps = self._steps(phase, ex)
        for i, step in enumerate(steps):
            try:
                waiting = step.call(flow, ex)
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return None
                continue
            if waiting is not None and inspect.isawaitable(waiting):
                return self._rest(waiting, step, steps[i + 1 :], phase, flow, ex, then)
        then(flow, ex)
        return None

    async def _rest(
        self,
        waiting: Awaitable[None],
        step: Step,
        rest: list[Step],
        phase: str,
        flow: http.HTTPFlow,
        ex: Exchange,
        then: Callable[[http.HTTPFlow, Exchange], None],
    ) -> None:
        try:
            await waiting
        except Exception as error:
            if self._caught(step, phase, flow, ex, error):
                return
        for step in rest:
            try:
                more = step.call(flow, ex)
                if more is not None and inspect.isawaitable(more):
                    await more
            except Exception as error:
                if self._caught(step, phase, flow, ex, error):
                    return
        then(flow, ex)

    def _steps(self, phase: str, ex: Exchange) -> list[Step]:
        gateway = self._gateway if not self._under else self._gateway_of(ex)
        return gateway.steps[phase] if gateway is not None else []

    def _caught(self, step: Step, phase: str, flow: http.HTTPFlow, ex: Exchange, error: Exception) -> bool:
        """Deal with what a step raised. True when the request is refused and the phase ends."""
        if isinstance(error, ApiError) and step.kind == "policy" and phase != "on_finish":
            self._refuse(flow, ex, error)
            return True
        if self._gateway is not None:
            self._gateway.metrics.hook_errors.labels(step.name, phase).inc()
        log.error("llmtap: %s failed in %s", step.name, phase, exc_info=(type(error), error, error.__traceback__))
        if step.kind == "policy" and phase in ("on_requestheaders", "on_request"):
            self._refuse(flow, ex, InternalError("internal error; the request was not forwarded"))
            return True
        return False

    # ---- answers of our own

    def _refuse(self, flow: http.HTTPFlow, ex: Exchange, error: ApiError) -> None:
        ex.refuse(error)
        flow.response = error_response(error, ex, flow.request)

    # what the lane asks of us

    def _failing(self, flow: http.HTTPFlow, error: ApiError) -> None:
        ex = self._exchanges.get(flow)
        if ex is not None:
            ex.failure = error

    def _lane_answer(self, flow: http.HTTPFlow, error: ApiError) -> http.Response:
        return error_response(error, self._exchanges.get(flow), flow.request)

    def _lane_last_words(self, flow: http.HTTPFlow, error: ApiError, tail: bytes) -> bytes:
        ex = self._exchanges.get(flow)
        held = ex.tee.held() if ex is not None and ex.tee is not None else b""
        return held + words_after(flow, error, tail + held)

    # what stock modes ask of us

    def _stock_answer(self, request: http.Request | None, status: int, message: str) -> http.Response:
        """What a stock mode answers when it has no response: the exchange's own failure, or its status in words."""
        ex = self._answers.get(request) if request is not None else None
        error: ApiError
        if ex is not None and ex.refusal is not None:
            error = ex.refusal
        elif ex is not None and ex.outcome == "timeout":
            error = UpstreamTimeout(ex.error_message or "the backend was silent for too long")
        elif status == 413:
            error = self._request_error("body_size_limit")
        elif status >= 500:
            error = UpstreamFailed(plain_failure(message))
        else:
            error = BadRequest("the request is not valid HTTP")
        response = error_response(error, ex, request)
        response.headers["connection"] = "close"
        return response

    def _last_words(self, request: http.Request, message: str) -> bytes:
        ex = self._answers.get(request)
        return last_words(ex) if ex is not None else b""

    def _stats(self) -> dict[str, Any]:
        gateway = self._gateway
        return {
            "in_flight": len(self._live),
            "waiting": sum(gateway.queueing.waiting for gateway in self._gateways()),
            "spool_bytes": gateway.capture.sink.spool_bytes if gateway and gateway.capture else 0,
            "capture_healthy": gateway.capture.sink.healthy if gateway and gateway.capture else None,
        }


#: how a backend may end a websocket without anything being wrong: done, going away, no code given
_CLEAN_CLOSE = (1000, 1001, 1005)
_ABNORMAL_CLOSE = 1006  # without a close frame
_GOING_AWAY = 1001  # what both sides are told when the gateway stops
_KILLED = "Connection killed."  # mitmproxy.flow.Error.KILLED_MESSAGE


_now = time.monotonic


def _for_page(later: Callable[[], Awaitable[http.Response]], origin: str) -> Callable[[], Awaitable[http.Response]]:
    """The same answer, for the web page at `origin`."""

    async def respond() -> http.Response:
        response = await later()
        readable_by(response.headers, origin)
        return response

    return respond


def _nothing(flow: http.HTTPFlow, ex: Exchange) -> None:
    """What follows the head: nothing."""


def _went_on(ex: Exchange) -> bool:
    """Whether the backend went on after the client had left (`on_client_disconnect: drain`)."""
    left = ex.plan.left_at if ex.plan is not None else None
    return left is not None and ex.last_chunk is not None and ex.last_chunk > left


class _Unseen:
    """A body that was sent without coming by here."""

    received = 0


def _state_of(ex: Exchange) -> str:
    """receiving → waiting → forwarded → replying"""
    if ex.replied:
        return "replying"
    if ex.forwarded is not None:
        return "forwarded"
    return "receiving" if ex.received is None else "waiting"


def gateway() -> Chain:
    """What `addons/gateway.py` gives to mitmproxy: the same chain again when the script is loaded again."""
    known = ctx.master.addons.get(Backstop.name)
    if known is not None:
        chain: Chain = known.chain
        return chain
    chain = Chain()
    ctx.master.addons.add(Backstop(chain))
    return chain
