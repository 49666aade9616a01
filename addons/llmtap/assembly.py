"""Everything that is built from one configuration, and the order of the steps a request passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mitmproxy import http
from prometheus_client import CollectorRegistry

from llmtap.capture import Capture, WriterProcess
from llmtap.core import config as c
from llmtap.core.ids import new_ulid
from llmtap.core.plan import FailureReason
from llmtap.exchange import Exchange
from llmtap.health import Health
from llmtap.inspect import Inspect, View
from llmtap.metrics import GatewayMetrics
from llmtap.metrics.exposed import Exposed
from llmtap.metrics.workers import Share
from llmtap.policy.backends import Backend, Backends
from llmtap.request_log import RequestLog
from llmtap.routing import Routing
from llmtap.sockets import Sockets
from llmtap.spool.lag import writer_lag_s
from llmtap.tee import TeeInstaller
from llmtap.transforms import Transforms
from llmtap.uploads import Uploads

Kind = Literal["policy", "observer"]
PHASES = ("on_requestheaders", "on_request", "on_responseheaders", "on_response", "on_message", "on_finish")


@dataclass(frozen=True, slots=True)
class Step:
    """One addon's part in one phase."""

    name: str
    kind: Kind
    call: Callable[[http.HTTPFlow, Exchange], Awaitable[None] | None]


def steps_of(addons: Iterable[tuple[Kind, Any]]) -> dict[str, list[Step]]:
    """Phase → steps, in the order of `addons`."""
    table: dict[str, list[Step]] = {phase: [] for phase in PHASES}
    for kind, addon in addons:
        for phase in PHASES:
            call = getattr(addon, phase, None)
            if call is not None:
                table[phase].append(Step(addon.name, kind, call))
    return table


class Gateway:
    """Everything that is built from one configuration."""

    def __init__(
        self,
        config: c.Config,
        own_writer: bool,
        view: View | None = None,
        view_flows: int = 0,
        silent: bool = False,
        shared_metrics: Path | None = None,
    ) -> None:
        """`view`: mitmproxy's list of flows, where there is one (mitmweb, the console), and how many finished ones it keeps.
        `silent`: the console has the terminal, nothing may be written to it. `shared_metrics`: the folder in which the gateways
        that share a port put their metrics together."""
        self.config = config
        self.health_changed: Callable[[], None] = lambda: None  # a backend came or went
        self.registry = CollectorRegistry()
        self.backends = Backends([_backend(b) for b in config.backends if b.url], config.routing.policy)
        self.metrics = GatewayMetrics(
            self.registry,
            config.metrics.max_model_len,
            self._known_model,
            config.metrics.engine_label if config.metrics.vllm_names else None,
            models=lambda: (model for b in self.backends for model in b.fixed_models or b.models or ()),
        )
        self.share: Share | None = None
        if shared_metrics is not None and config.metrics.enabled:
            self.share = Share(self.metrics.families, shared_metrics, new_ulid())
        self.exposed = Exposed(self.metrics.families, self.backends, self.share) if config.metrics.enabled else None
        self.health = Health(self.backends, config.routing.health_interval_s, config.timeouts.connect_s, self._state_changed)
        for backend in self.backends:
            self.metrics.backend_up.labels(backend.name).set(0)
        self.capture: Capture | None = None
        self.writer: WriterProcess | None = None
        if config.capture.enabled:
            self.capture = Capture(config, lambda reason, n: self.metrics.capture_dropped.labels(reason).inc(n))
            self.metrics.spool_bytes.set_function(lambda: self.capture.sink.spool_bytes if self.capture else 0)
            self.metrics.spool_lag.read_from(lambda: _told(writer_lag_s(config.capture.dir)))
            self.writer = WriterProcess(config, silent) if own_writer else None
        self.uploads = Uploads(config, self.backends)
        self.routing = Routing(config, self.backends, self.backend_failed, self.uploads.streams)
        addons: list[tuple[Kind, Any]] = [
            ("policy", Transforms()),
            ("policy", self.routing),
            ("observer", Sockets(keep=self.capture is not None)),
            ("observer", TeeInstaller(self.metrics.tee_errors.inc)),
        ]
        if self.capture is not None:
            addons.append(("policy" if config.capture.required else "observer", self.capture))
        if config.metrics.enabled:
            addons.append(("observer", self.metrics))
        self.request_log: RequestLog | None = None
        if config.logging.request_log and not silent:
            log = config.logging
            self.request_log = RequestLog(log.level, log.json_format, prompts=log.prompts)
            addons.append(("observer", self.request_log))
        self.inspect = Inspect(view, view_flows) if view is not None else None
        if self.inspect is not None:
            addons.append(("observer", self.inspect))
        self.steps = steps_of(addons)

    def start(self) -> None:
        self.health.start()
        if self.share is not None:
            self.share.start()
        if self.capture is not None:
            self.capture.start()
        if self.writer is not None:
            self.writer.start()

    def stop(self) -> None:
        self.health.stop()
        if self.share is not None:
            self.share.stop()
        if self.inspect is not None:
            self.inspect.stop()
        if self.request_log is not None:
            self.request_log.stop()
        if self.capture is not None:
            self.capture.report()
            self.capture.stop()
        if self.writer is not None:
            self.writer.stop()

    def backend_failed(self, name: str, reason: FailureReason) -> None:
        self.metrics.backend_failures.labels(name, reason).inc()
        if reason in ("refused", "reset", "connect_timeout"):
            self.health.failed(name, reason)

    def _known_model(self, model: str) -> bool:
        return any(model in (b.fixed_models or b.models or ()) for b in self.backends)

    def _state_changed(self, backend: Backend) -> None:
        self.metrics.backend_up.labels(backend.name).set(1 if backend.state == "up" else 0)
        self.health_changed()


def _told(value: float | None) -> list[tuple[tuple[str, ...], float]]:
    """The samples of a gauge that may not be known."""
    return [] if value is None else [((), value)]


def _backend(b: c.Backend) -> Backend:
    url = urlsplit(str(b.url))
    tls = url.scheme == "https"
    return Backend(
        name=b.name,
        host=url.hostname or "",
        port=url.port or (443 if tls else 80),
        tls=tls,
        uds=url.path if url.scheme == "unix" else None,
        drain=b.on_client_disconnect == "drain",
        api_key=b.api_key.get_secret_value() if b.api_key else None,
        fixed_models=tuple(b.models) if b.models is not None else None,
    )
