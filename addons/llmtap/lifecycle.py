"""The life of the addon: its configuration is read, listeners open, a changed configuration takes over, everything ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader

from llmtap import settings
from llmtap.assembly import Gateway
from llmtap.backstop import Backstop
from llmtap.core.config import Config
from llmtap.core.config_watch import watch
from llmtap.core.errors import (
    ConfigError,
    SpoolError,
)
from llmtap.core.sockets import CONTROL, MANAGEMENT
from llmtap.endpoints import Endpoints
from llmtap.exchanges import Exchanges
from llmtap.lane import Lane, LaneLimits, Upload, default_mode, install, stock
from llmtap.lane.listener import server_tls
from llmtap.listening import CompatListener, read_tls, try_address
from llmtap.management import Management
from llmtap.policy.backends import Backend, Backends
from llmtap.remote import Remote
from llmtap.transcript import register as register_transcript

log = logging.getLogger("llmtap")


class Lifecycle(Exchanges, ABC):
    """From `load` to `end`; what happens to flows is the chain's."""

    def __init__(self) -> None:
        super().__init__()
        self._endpoints: Endpoints | None = None
        self._management: Management | None = None
        self._remote: Remote | None = None  # the launcher, where one runs us
        self._lane: Lane | None = None  # None: one of mitmproxy's stock modes was asked for
        self._tls: ssl.SSLContext | None = None  # for clients
        self._compat: CompatListener | None = None
        self._again = False
        self._held = False
        self._running = False
        self._started = asyncio.Event()
        self._unloaded = False  # the script is gone: what runs is finished, what is new is refused
        self._draining: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @abstractmethod
    async def _uploading(self, flow: http.HTTPFlow, upload: Upload) -> None:
        """A request whose body goes on as it comes."""

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
            self._gateway = Gateway(config, ctx.options.llmtap_writer, view, flows, stock.in_console(), shared, file=_file())
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
        folder = ctx.options.llmtap_launcher
        self._management = Management(gateway.config, Path(folder) / MANAGEMENT if folder else None)
        self._set_options(gateway.config)
        gateway.policies.carried_by(self._lane)

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
            new = Gateway(config, ctx.options.llmtap_writer, view, flows, stock.in_console(), before=old, file=_file())
        except SpoolError as error:
            raise ConfigError(f"capture.dir: {error}") from None
        if self._lane is not None and (host_port := self._address(config)) != self._address(old.config):
            try:
                try_address(*host_port, reuse_port=config.server.workers > 1)
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
        if self._remote is not None:
            self._remote.apply()
        self._follow_health()
        self._leave(old)
        log.info("llmtap: the configuration was loaded again")

    # ---- for the launcher

    def reload_now(self) -> str | None:
        """Go over to what stands in the file, if that is anything else. What is wrong with it, and then nothing has changed."""
        try:
            config = settings.load_config(ctx.options, settings.environment(), Path.cwd())
            if self._gateway is None or config != self._gateway.config:
                self.reload(config)
        except ConfigError as error:
            return str(error)
        return None

    def stats(self) -> dict[str, Any]:
        """Requests in flight and waiting, how capture fares."""
        return self._stats()

    def backends(self) -> Backends | None:
        """Those of the configuration in force."""
        return self._gateway.backends if self._gateway is not None else None

    def check_now(self, backend: Backend) -> None:
        """Look at this backend without waiting for its turn."""
        if self._gateway is not None:
            self._gateway.health.check_now(backend)

    @staticmethod
    def _address(config: Config) -> tuple[str, int]:
        """What the gateway listens on."""
        return ctx.options.listen_host or config.server.host, ctx.options.listen_port or config.server.port

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

    def running(self) -> Awaitable[None] | None:
        if self._gateway is None:
            return None  # the configuration was bad: mitmproxy ends because an error was logged
        if self._running:
            return None  # the script was loaded again
        self._running = True
        self._gateway.health_changed = self._follow_health
        self._gateway.start()
        path = _file()
        if path is not None:
            self._watch = asyncio.create_task(watch(path, self._file_changed), name="llmtap configuration")
        if ctx.options.llmtap_launcher:
            self._remote = Remote(self, Path(ctx.options.llmtap_launcher) / CONTROL)
            self._remote.start()
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
        if self._remote is not None:
            self._remote.stop()
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None
        stock.uninstall()


def _file() -> Path | None:
    """The configuration file in force."""
    return settings.config_path(ctx.options, settings.environment(), Path.cwd())
