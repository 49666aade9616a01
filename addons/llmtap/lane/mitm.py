"""Everything of mitmproxy that is not documented API and that the lane stands on, so that an upgrade that breaks it says what.

    mode_specs.ProxyMode, mode_servers.ServerInstance   subclassing registers in a private table (a second time asserts)
    Proxyserver.connections                             mitmproxy's count of connections and target of `inject.*`
    AddonManager.chain / register / remove / clear      what `hooks_of` and `on_addons_changed` read and wrap
    addonmanager.traverse                               an addon and its sub-addons in dispatch order
    HTTPFlow / Request / Response / Headers ...         built without their constructors: `MessageData.__post_init__` checks
                                                        every field's type, 110 us a message
    Flow.kill / Flow._resume_event                      kill() does not wake whoever waits for the held flow (issue 4711)
    Master.shutdown                                     replaced on the instance, to drain before the end
    clientplayback.ReplayHandler                        what `ClientPlayback.playback` makes for a flow, and its `replay()`
    WebSocketMessageInjected                            what `inject.websocket` hands to `server_event`
    status_codes.RESPONSES                              reason phrases
    asyncio_utils.set_eager_task_factory                sets `asyncio.eager_task_factory`, which uvloop calls with an
                                                        argument that Python 3.13's does not know

Each has a test in tests/unit/llmtap/lane/test_mitm.py.
"""

from __future__ import annotations

import asyncio
import types
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mitmproxy import addonmanager, http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import clientplayback
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Flow
from mitmproxy.master import Master
from mitmproxy.net.http import status_codes
from mitmproxy.proxy.layers.websocket import WebSocketMessageInjected
from mitmproxy.proxy.mode_servers import ServerInstance, ServerManager
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.websocket import WebSocketMessage

Fields = tuple[tuple[bytes, bytes], ...]
Hook = Callable[[Any], Awaitable[None] | None]

#: status → reason phrase
REASONS: dict[int, bytes] = {status: reason.encode() for status, reason in status_codes.RESPONSES.items()}

# ---- messages


def headers(fields: Fields) -> http.Headers:
    """`http.Headers(fields)` without checking that bytes are bytes."""
    made: http.Headers = object.__new__(http.Headers)
    made.fields = fields
    return made


def request(host: str, port: int, method: bytes, path: bytes, version: bytes, fields: Fields, at: float) -> http.Request:
    """The request of a flow whose head has arrived: origin-form, no content yet, started `at` (epoch seconds)."""
    data: http.RequestData = object.__new__(http.RequestData)
    data.__dict__ = {
        "http_version": version,
        "headers": headers(fields),
        "content": None,
        "trailers": None,
        "timestamp_start": at,
        "timestamp_end": None,
        "host": host,
        "port": port,
        "method": method,
        "scheme": b"http",
        "authority": b"",
        "path": path,
    }
    made: http.Request = object.__new__(http.Request)
    made.data = data
    return made


def response(status: int, reason: bytes, version: bytes, fields: Fields, at: float) -> http.Response:
    """The response of a flow whose head has arrived from a backend `at` (epoch seconds)."""
    data: http.ResponseData = object.__new__(http.ResponseData)
    data.__dict__ = {
        "http_version": version,
        "headers": headers(fields),
        "content": None,
        "trailers": None,
        "timestamp_start": at,
        "timestamp_end": None,
        "status_code": status,
        "reason": reason,
    }
    made: http.Response = object.__new__(http.Response)
    made.data = data
    return made


class FlowIds:
    """Call it for the id of the next flow: a UUID (version 4), as mitmproxy's are, its last 48 bits counted on from a random
    start. `uuid.uuid4()` takes ten times as long."""

    def __init__(self) -> None:
        made = str(uuid.uuid4())
        self._first, self._last = made[:24], int(made[24:], 16)

    def __call__(self) -> str:
        self._last = (self._last + 1) & 0xFFFF_FFFF_FFFF
        return f"{self._first}{self._last:012x}"


def flow(client: Client, server: Server, request: http.Request, at: float, id: str | None = None) -> http.HTTPFlow:
    """A live flow of `request`, created `at` (epoch seconds). `id`: of `FlowIds`, else one of its own."""
    made: http.HTTPFlow = object.__new__(http.HTTPFlow)
    made.__dict__ = {
        "id": id or str(uuid.uuid4()),
        "client_conn": client,
        "server_conn": server,
        "live": True,
        "timestamp_created": at,
        "intercepted": False,
        "_resume_event": None,
        "_backup": None,
        "marked": "",
        "is_replay": None,
        "metadata": {},
        "comment": "",
        "request": request,
    }
    return made


# ---- addons


def hooks_of(manager: AddonManager, name: str) -> tuple[tuple[Hook, ...], ...]:
    """Who implements a hook: one group for each element of the chain, because an exception ends its own group only."""
    groups = []
    for top in manager.chain:
        found = []
        for addon in addonmanager.traverse([top]):
            hook = getattr(addon, name, None)
            if hook is not None and callable(hook) and not isinstance(hook, types.ModuleType):
                found.append(hook)
        if found:
            groups.append(tuple(found))
    return tuple(groups)


def on_addons_changed(manager: AddonManager, changed: Callable[[], None]) -> None:
    """Call `changed` before and after every addon comes or goes (script reload, interfaces, options)."""
    for name in ("register", "remove", "clear"):
        setattr(manager, name, _announcing(getattr(manager, name), changed))


def _announcing(call: Callable[..., Any], changed: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        changed()
        try:
            return call(*args)
        finally:
            changed()

    return wrapped


# ---- flows


async def resumed(held: Flow) -> None:
    """Wait until a held flow is resumed or killed."""
    if not held.intercepted:
        return
    if held._resume_event is None:
        held._resume_event = asyncio.Event()
    event = held._resume_event
    kill: Callable[[], None] = held.kill

    def kill_and_wake() -> None:
        kill()
        event.set()

    held.kill = kill_and_wake  # type: ignore[method-assign]
    try:
        await event.wait()
    finally:
        del held.kill  # the class's own again


class Replays(Protocol):
    async def replay(self) -> None: ...


_OwnReplay = clientplayback.ReplayHandler


def replay_with(make: Callable[[http.HTTPFlow], Replays | None]) -> None:
    """Ask `make` for who replays a flow; where it gives None mitmproxy's own client does."""

    def handler(flow: http.HTTPFlow, options: Any) -> Replays:
        return make(flow) or _OwnReplay(flow, options)

    clientplayback.ReplayHandler = handler  # type: ignore[assignment,misc]


def injected(event: object) -> WebSocketMessage | None:
    """The message of mitmproxy's command `inject.websocket`; None for other events."""
    return event.message if isinstance(event, WebSocketMessageInjected) else None


# ---- the process


def register_connection(manager: ServerManager, client_id: str, handler: object) -> None:
    manager.connections[client_id] = handler  # type: ignore[assignment]


def forget_connection(manager: ServerManager, client_id: str) -> None:
    manager.connections.pop(client_id, None)


def drain_before_shutdown(master: Master, drain: Callable[[], Awaitable[None]]) -> None:
    """Let `drain` finish before mitmproxy ends (SIGTERM, Ctrl-C, quit). A second request to end does so at once."""
    shutdown: Callable[[], None] = master.shutdown
    draining: set[asyncio.Task[None]] = set()

    async def drained() -> None:
        try:
            await drain()
        finally:
            shutdown()

    def begin() -> None:
        if draining:
            shutdown()
        else:
            draining.add(master.event_loop.create_task(drained()))

    def wrapped() -> None:
        master.event_loop.call_soon_threadsafe(begin)

    master.shutdown = wrapped  # type: ignore[method-assign]


def _eager_task(
    loop: asyncio.AbstractEventLoop, coro: Any, *, name: str | None = None, context: Any = None, **_: Any
) -> asyncio.Task[Any]:
    return asyncio.Task(coro, loop=loop, name=name, context=context, eager_start=True)


def uvloop_loop_factory() -> asyncio.AbstractEventLoop:
    """A new uvloop that accepts mitmproxy's eager task factory: `asyncio.Runner(loop_factory=uvloop_loop_factory)`.

    Raises ImportError where uvloop is not installed.
    """
    import uvloop

    class Loop(uvloop.Loop):
        def set_task_factory(self, factory: Any) -> None:
            super().set_task_factory(_eager_task if factory is asyncio.eager_task_factory else factory)

    return Loop()


__all__ = [
    "REASONS",
    "Fields",
    "FlowIds",
    "Hook",
    "ProxyMode",
    "ServerInstance",
    "ServerManager",
    "drain_before_shutdown",
    "flow",
    "forget_connection",
    "headers",
    "hooks_of",
    "injected",
    "on_addons_changed",
    "register_connection",
    "replay_with",
    "request",
    "response",
    "resumed",
    "uvloop_loop_factory",
]
