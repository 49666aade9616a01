"""The proxy mode `gateway`, as mitmproxy knows modes:

    gateway@127.0.0.1:8000                        requests go where their plan says
    gateway:http://127.0.0.1:8081@127.0.0.1:8000  ... and those without a plan to this server

Importing this module registers it. A second registration in one process would fail, so it must only ever be imported as a
package module, never loaded as a script.
"""

from __future__ import annotations

from mitmproxy import ctx
from mitmproxy.connection import Address
from mitmproxy.net import server_spec
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.mode_specs import TCP

from llmtap.lane.lane import Upstream, lane_of
from llmtap.lane.listener import Listener
from llmtap.lane.mitm import ProxyMode, ServerInstance


def default_mode(host: str, port: int, upstream: str | None = None) -> str:
    """The mode specification of a gateway on this address. `upstream`: an http(s) URL for requests without a plan."""
    data = f":{upstream}" if upstream else ""
    return f"gateway{data}@{host}:{port}"


class GatewayMode(ProxyMode):
    """`gateway[:URL]@[host:]port`"""

    description = "LLM gateway"
    transport_protocol = TCP

    def __post_init__(self) -> None:
        if self.data and self.upstream is None:
            raise ValueError("gateway:URL takes an http:// or https:// address")

    @property
    def upstream(self) -> Upstream | None:
        """Where requests without a plan go."""
        if not self.data:
            return None
        scheme, (host, port) = server_spec.parse(self.data, default_scheme="http")
        return (scheme, host, port) if scheme in ("http", "https") else None


class GatewayInstance(ServerInstance[GatewayMode]):
    """One listener of the mode. Its connections are not mitmproxy layers: see `client` and `relay`."""

    _listener: Listener | None = None

    @property
    def is_running(self) -> bool:
        return self._listener is not None

    @property
    def listen_addrs(self) -> tuple[Address, ...]:
        return self._listener.addresses if self._listener is not None else ()

    def make_top_layer(self, context: Context) -> Layer:
        raise AssertionError("gateway connections have no layers")

    async def _start(self) -> None:
        host = self.mode.listen_host(ctx.options.listen_host)
        port = self.mode.listen_port(ctx.options.listen_port) or 0
        try:
            self._listener = lane_of(ctx.master).listen(host, port, upstream=self.mode.upstream)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host or '*'}:{port}: {error.strerror or error}") from error

    async def _stop(self) -> None:
        # connections go on: requests in flight are not a mode change's business, and the process's end drains them
        if self._listener is not None:
            self._listener.close()
            self._listener = None
