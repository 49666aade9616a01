"""Request bodies that go on as they come: which ones, and what is read of them on the way.

Audio uploads name their model in a field of a form. It is looked for at the beginning; where it matters which model is asked for
and a file stands before it, the form is read up to the field (at most `server.max_body_mb`), and sent on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mitmproxy import http

from llmtap.core.config import Config
from llmtap.core.endpoints import OTHER
from llmtap.core.errors import BadRequest, TooLarge, WireError
from llmtap.exchange import Exchange
from llmtap.policy.backends import Backends
from llmtap.wire.form import FormScanner, boundary_of, request_of

Look = Callable[[bytes], bool]
#: where a form's model is looked for when it makes no difference
LOOK_BYTES = 64 << 10
#: bodies for paths nobody here knows are captured, and sent again where a backend fails, up to this size
_SMALL = 1 << 20


class Body(Protocol):
    """The lane's side of it (`llmtap.lane.upload.Upload`)."""

    @property
    def received(self) -> int: ...

    async def look(self, look: Look, limit: int) -> bool: ...


class Uploads:
    """Policy: `flow.request.stream` for bodies nobody here needs, `Exchange.parsed` for forms."""

    name = "uploads"

    def __init__(self, config: Config, backends: Backends) -> None:
        self._backends = backends
        self._max_body = config.server.max_body_mb << 20
        self._models_matter = config.auth.enabled and any(key.models is not None for key in config.auth.keys)

    @staticmethod
    def streams(request: http.Request, ex: Exchange) -> bool:
        """Whether this request's body is to be sent on as it comes. Asked for endpoints without a JSON body only."""
        if ex.endpoint.form:
            return True
        if ex.endpoint is not OTHER:
            return False
        length = request.headers.get("content-length")
        if length is None:
            return "transfer-encoding" in request.headers
        return not length.isdigit() or int(length) > _SMALL

    async def read(self, flow: http.HTTPFlow, ex: Exchange, body: Body) -> None:
        """What has to be known of a form before it is sent on. Raises ApiError."""
        boundary = boundary_of(flow.request.headers.get("content-type", "")) if ex.endpoint.form else None
        if boundary is None:
            return
        scanner = FormScanner(boundary)

        def look(piece: bytes) -> bool:
            try:
                return scanner.feed(piece)
            except WireError as error:
                raise BadRequest(str(error)) from None

        any_model = self._backends.one_model() and not self._models_matter
        found = await body.look(look, LOOK_BYTES if any_model else self._max_body)
        if not found and not any_model:
            raise TooLarge(
                f"the field `model` does not come within the first {self._max_body >> 20} MiB; put it before the file",
                param="model",
            )
        ex.parsed = request_of(ex.endpoint.name, scanner.fields)
