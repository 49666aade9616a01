"""What every request goes through before its endpoint: the log, the faults before headers, the API key, common headers."""

from __future__ import annotations

import asyncio
import hmac
import sys
import traceback
import uuid
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connection import Connection, connection_of
from .errors import VllmError, busy, internal_error
from .faults import Directives, Fault, FaultError, read_directives
from .simulation import Seen, Simulation

_KEY = "llmtap.received"
#: where tokens are generated: a fault in the middle of a reply means something there
INFERENCE_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/api/chat",
        "/api/generate",
    }
)
#: what vLLM's --api-key guards; the rest is open
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")


@dataclass(frozen=True, slots=True)
class Received:
    """A request whose body is in."""

    body: bytes
    directives: Directives
    fault: Fault | None
    seen: Seen


def received(scope: Scope) -> Received:
    """What the front found out about a request."""
    return cast(Received, scope[_KEY])


def error_response(error: VllmError) -> Response:
    """A refusal in vLLM's shape."""
    return Response(error.body(), error.code, media_type="application/json")


class Front:
    """ASGI middleware around the endpoints of one simulation."""

    def __init__(self, app: ASGIApp, sim: Simulation) -> None:
        self._app = app
        self._sim = sim

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith("/sim/"):  # the simulation's own control: no faults, no log
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        headers = Headers(scope=scope)
        seen = self._sim.log.open(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            dict(headers.items()),
            body.decode("utf-8", "replace"),
        )
        connection = connection_of(scope)
        send = self._observed(send, headers, seen)
        self._sim.in_flight += 1
        try:
            await self._serve(scope, receive, send, body, headers, seen)
        except asyncio.CancelledError:
            raise
        except Exception:
            # a defect of the simulation: told on the console, and to the client as vLLM would
            traceback.print_exc(file=sys.stderr)
            if seen.status is None:
                await error_response(internal_error())(scope, receive, send)
            else:
                connection.close()
        finally:
            self._sim.in_flight -= 1
            seen.aborted = connection.lost and not seen.finished and seen.fault is None

    async def _serve(self, scope: Scope, receive: Receive, send: Send, body: bytes, headers: Headers, seen: Seen) -> None:
        connection = connection_of(scope)
        path = scope["path"]
        generates = path in INFERENCE_PATHS and scope["method"] == "POST"
        if self._sim.refusing:
            seen.fault = "refuse"
            connection.reset()
            await connection.wait_lost()
            return
        try:
            directives = read_directives(body, headers.get("x-sim-fail"))
        except FaultError as error:
            await error_response(VllmError(f"llmtap sim: {error}"))(scope, receive, send)
            return
        fault = directives.fault or self._sim.rules.strike(path, generates)
        if fault is not None:
            seen.fault = fault.kind
            if await self._strike(fault, generates, connection, scope, receive, send):
                return
        if not self._authorized(path, headers):
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
            return
        if generates and self._sim.rest.now and not await self._awake(connection):
            return
        scope[_KEY] = Received(body, directives, fault, seen)
        await self._app(scope, receive, send)

    async def _strike(
        self, fault: Fault, generates: bool, connection: Connection, scope: Scope, receive: Receive, send: Send
    ) -> bool:
        """A fault before the response; whether that was the whole answer. Those in its middle are the endpoint's business."""
        kind = fault.kind
        if kind == "slow_headers":
            return await connection.wait_lost(fault.seconds)
        if kind == "http_500":
            await error_response(internal_error())(scope, receive, send)
        elif kind == "http_503":
            await error_response(busy())(scope, receive, send)
        elif kind in ("refuse", "die_before_headers", "garbage"):
            if kind == "refuse":
                connection.reset()
            else:
                connection.write_raw(b"\x00\xfe\x15\x03garbage, not HTTP\r\n\r\n" if kind == "garbage" else b"")
                connection.close()
            await connection.wait_lost()
        elif generates:
            return False
        elif kind == "stall":
            return await connection.wait_lost(fault.seconds)
        elif kind == "engine_dead":
            self._sim.engine.die()
            return False
        elif kind == "bad_json":
            await Response(b'{"object":"list","data":[', media_type="application/json")(scope, receive, send)
        else:  # die_mid_stream: the headers promise more than comes
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            connection.close()
            await connection.wait_lost()
        return True

    async def _awake(self, connection: Connection) -> bool:
        """Wait until the engine works again; False when the client has gone before that."""
        over = asyncio.ensure_future(self._sim.rest.over())

        def lost() -> None:
            over.cancel()

        connection.when_lost(lost)
        await asyncio.wait([over])
        connection.forget(lost)
        return not connection.lost

    def _authorized(self, path: str, headers: Headers) -> bool:
        key = self._sim.settings.api_key
        if key is None or not path.startswith(_GUARDED):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), key.encode())

    def _observed(self, send: Send, headers: Headers, seen: Seen) -> Send:
        """Adds the headers vLLM puts on everything but a 401, and notes status and end of the response."""

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                extra = [] if seen.status == 401 else [(b"vary", b"Origin")]
                if extra and self._sim.settings.request_id_headers:
                    request_id = headers.get("x-request-id") or uuid.uuid4().hex
                    extra.append((b"x-request-id", request_id.encode("latin-1")))
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            elif not message.get("more_body", False):
                seen.finished = True
            await send(message)

        return observe


async def _read_body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
