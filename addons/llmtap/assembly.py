"""Everything that is built from one configuration, and the order of the steps a request passes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
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
from llmtap.errands import Errands
from llmtap.exchange import Exchange
from llmtap.health import Health
from llmtap.inspect import Inspect, View
from llmtap.metrics import GatewayMetrics
from llmtap.metrics.exposed import Exposed
from llmtap.metrics.workers import Share
from llmtap.policies import Policies
from llmtap.policy.backends import Backend, Backends
from llmtap.queueing import Queueing
from llmtap.request_log import RequestLog
from llmtap.routing import Routing
from llmtap.sockets import Sockets
from llmtap.spool.lag import quarantined, writer_lag_s, writer_troubles
from llmtap.tee import TeeInstaller
from llmtap.transforms import Transforms
from llmtap.uploads import Uploads

log = logging.getLogger("llmtap")
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

    registry: CollectorRegistry
    metrics: GatewayMetrics
    inspect: Inspect | None
    share: Share | None
    policies: Policies
    backends: Backends
    routing: Routing

    def __init__(
        self,
        config: c.Config,
        own_writer: bool,
        view: View | None = None,
        view_flows: int = 0,
        silent: bool = False,
        shared_metrics: Path | None = None,
        before: Gateway | None = None,
        file: Path | None = None,
    ) -> None:
        """`view`: mitmproxy's list of flows, where there is one (mitmweb, the console), and how many finished ones it keeps.
        `silent`: the console has the terminal, nothing may be written to it. `shared_metrics`: the folder in which the gateways
        that share a port put their metrics together. `file`: where the configuration came from, for the writer. `before`:
        whose place it takes (`start`); what the two configurations have in common is shared: counters, what is known of
        backends, the capture log, the writer. Raises SpoolError, ConfigError."""
        self.config = config
        self.health_changed: Callable[[], None] = lambda: None  # a backend came or went
        self.after: Gateway | None = None  # who has taken our place
        routing = config.routing
        self.backends = Backends(
            _backends(config, before),
            routing.policy,
            routing.aliases,
            routing.fallbacks,
            config.queue.max_concurrency,
            before.backends if before is not None else None,
        )
        if before is not None:
            self.registry, self.metrics, self.share = before.registry, before.metrics, before.share
        else:
            self.registry = CollectorRegistry()
            self.metrics = GatewayMetrics(
                self.registry,
                config.metrics.max_model_len,
                self.backends.known,
                config.metrics.engine_label if config.metrics.vllm_names else None,
                models=self._models,
            )
            self.share = None
            if shared_metrics is not None and config.metrics.enabled:
                self.share = Share(self.metrics.families, shared_metrics, new_ulid())
        self.exposed = Exposed(self.metrics.families, self.backends, self.share) if config.metrics.enabled else None
        self.health = Health(self.backends, routing.health_interval_s, config.timeouts.connect_s)
        self.backends.changed.append(self._state_changed)
        for backend in self.backends:
            self.metrics.backend_up.labels(backend.name).set(1 if backend.state == "up" else 0)
        self.capture: Capture | None = None
        self.writer: WriterProcess | None = None
        if config.capture.enabled:
            if before is not None and before.capture is not None and before.config.capture == config.capture:
                self.capture = before.capture
            else:
                self.capture = Capture(config, lambda reason, n: self.metrics.capture_dropped.labels(reason).inc(n))
            if before is not None and before.writer is not None and _stored_alike(before.config, config):
                self.writer = before.writer
            else:
                self.writer = WriterProcess(config, silent, file) if own_writer else None
        self.uploads = Uploads(config, self.backends)
        self.routing = Routing(config, self.backends, self.uploads.streams, before.routing if before is not None else None)
        self.queueing = Queueing(config, self.backends, self.backend_failed, self.backend_worked, self.metrics.enqueue)
        errands = Errands(self.queueing, self.metrics.dequeue)
        self.policies = Policies(config, self.metrics, self.backends, errands, before.policies if before is not None else None)
        self.auth, self.cors = self.policies.auth, self.policies.cors
        addons: list[tuple[Kind, Any]] = [
            ("policy", Transforms()),
            *(("policy", addon) for addon in self.policies.before_routing),
            ("policy", self.routing),
            *(("policy", addon) for addon in self.policies.after_routing),
            ("policy", self.queueing),
            ("observer", Sockets(keep=self.capture is not None)),
            ("observer", TeeInstaller(self.metrics.tee_errors.inc)),
            *(("observer", addon) for addon in self.policies.after_tee),
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
        self.inspect = before.inspect if before is not None else Inspect(view, view_flows) if view is not None else None
        if self.inspect is not None:
            addons.append(("observer", self.inspect))
        self.steps = steps_of(addons)

    def start(self, before: Gateway | None = None) -> None:
        """Call on the running event loop. `before`: as it was made with; it serves what runs under it until `stop`."""
        if before is not None:
            before.health.stop()
            before.health_changed = lambda: None
            before.after = self
            for gone in {b.name for b in before.backends} - {b.name for b in self.backends}:
                self.metrics.backend_up.remove(gone)
        self.policies.start()
        self.metrics.know_models(self.backends.known, self._models)
        self.metrics.spool_bytes.set_function(lambda: self.capture.sink.spool_bytes if self.capture else 0)
        self.metrics.spool_lag.read_from(lambda: _told(writer_lag_s(self.config.capture.dir)) if self.capture else [])
        self.metrics.quarantined.read_from(lambda: _told(quarantined(self.config.capture.dir)) if self.capture else [])
        self.metrics.writer_trouble.read_from(
            lambda: [((t,), float(on)) for t, on in writer_troubles(self.config.capture.dir).items()] if self.capture else []
        )
        self.health.start()
        if self.share is not None and before is None:
            self.share.start()
        if self.capture is not None and (before is None or before.capture is not self.capture):
            self.capture.start()
        if self.writer is not None and (before is None or before.writer is not self.writer):
            self.writer.start()

    def stop(self, others: Iterable[Gateway] = ()) -> None:
        """The end of all that `others`, who go on, do not use."""
        others = list(others)
        self.health.stop()
        if not others:
            self.policies.stop()
        if self.share is not None and not others:
            self.share.stop()
        if self.inspect is not None and all(other.inspect is not self.inspect for other in others):
            self.inspect.stop()
        if self.request_log is not None:
            self.request_log.stop()
        if self.capture is not None and all(other.capture is not self.capture for other in others):
            self.capture.report()
            self.capture.stop()
        if self.writer is not None and all(other.writer is not self.writer for other in others):
            self.writer.stop()

    def discard(self, before: Gateway) -> None:
        """It will not take that place after all."""
        if self.capture is not None and self.capture is not before.capture:
            self.capture.stop()

    def backend_failed(self, name: str, reason: FailureReason) -> None:
        if self.after is not None and self.after.shares(name, self):
            self.after.backend_failed(name, reason)  # whose health checks find out when it is back
            return
        self.metrics.backend_failures.labels(name, reason).inc()
        if name in self.backends:  # else a port beside them
            self.health.failed(self.backends[name], reason)

    def backend_worked(self, backend: Backend) -> None:
        """A request was answered by a backend that was in doubt."""
        if self.after is not None and self.after.shares(backend.name, self):
            self.after.backend_worked(backend)
        else:
            self.health.worked(backend)

    # ---- at run time, on the event loop

    def add_backend(self, backend: Backend) -> None:
        """One more backend; it gets requests at once. Raises ValueError when there is one of that name."""
        self.backends.add(backend)
        self.health.watch(backend)

    def remove_backend(self, name: str) -> Backend:
        """It gets no further request; those in flight go on (`backends.when_idle`). Raises KeyError."""
        backend = self.backends.remove(name)
        self.health.forget(backend)
        return backend

    def shares(self, name: str, other: Gateway) -> bool:
        """Whether the backend of this name is the very same one for both."""
        return any(b is o for b in self.backends for o in other.backends if b.name == name)

    def _models(self) -> Iterator[str]:
        return (model for b in self.backends for model in b.fixed_models or b.models or ())

    def _state_changed(self, backend: Backend) -> None:
        up = self.metrics.backend_up
        if backend.removed:
            up.remove(backend.name)
            log.info("backend %s (%s) is removed", backend.name, backend.url)
        else:
            up.labels(backend.name).set(1 if backend.state == "up" else 0)
            if backend.told != backend.state:
                backend.told = backend.state
                self.metrics.backend_changes.labels(backend.name, backend.state).inc()
            words = "draining" if backend.draining else backend.state
            log.info("backend %s (%s) is %s%s", backend.name, backend.url, words, f": {backend.reason}" if backend.reason else "")
        self.health_changed()


def _told(value: float | None) -> list[tuple[tuple[str, ...], float]]:
    """The samples of a gauge that may not be known."""
    return [] if value is None else [((), value)]


def _stored_alike(one: c.Config, other: c.Config) -> bool:
    """Whether the same writer process serves both."""
    kept = one.capture.dir == other.capture.dir and one.store == other.store
    return kept and one.prices == other.prices and one.backends == other.backends


def _backends(config: c.Config, before: Gateway | None) -> Iterator[Backend]:
    """Those of the configuration; of one that has not changed all stays known: its health, its models, what runs there."""
    known = {b.name: b for b in before.config.backends} if before is not None else {}
    for b in config.backends:
        if b.url is not None:
            same = before is not None and known.get(b.name) == b
            yield before.backends[b.name] if same and before is not None else backend_of(b)


def backend_of(b: c.Backend) -> Backend:
    """A backend as the configuration has it."""
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
        kind=b.kind,
        max_concurrency=b.max_concurrency,
    )
