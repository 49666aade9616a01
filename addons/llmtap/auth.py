"""Who may come in: keys are checked at the head of a request, before its body is read, and taken out of it.

From here on nobody sees the client's key: not the backend, not mitmweb or `-w` files, not the spool. What is left is the
name of the key (`Exchange.client`). Without a valid key: 401 in the client's dialect; a model the key may not use: 403.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mitmproxy import http

from llmtap.core import config as c
from llmtap.core.errors import Forbidden, TooMany, Unauthorized
from llmtap.exchange import Exchange
from llmtap.policy.keys import Client, Keyring, allowed, take, without_keys

#: what a key that is limited to some models may ask without naming one: it reveals and costs nothing
_WITHOUT_MODEL = frozenset(("models", "version", "responses_by_id"))


class Auth:
    """Policy. `admit` is called by the chain for every request, the gateway's own endpoints included."""

    name = "auth"

    def __init__(self, config: c.Auth, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._busy: dict[str, int] = {}  # requests in flight by key, where it has a limit
        self.reload(config)

    def reload(self, config: c.Auth) -> None:
        """Other keys from now on; requests that are in go on."""
        self._keyring = Keyring(config.keys)
        self._exempt = frozenset(config.exempt_paths)
        self._exempt_below = tuple(path.rstrip("/") + "/" for path in config.exempt_paths)

    def admit(self, flow: http.HTTPFlow, path: str | None) -> Client | None:
        """Take the key out of the request and say whose it is; None on a path that needs none. Raises Unauthorized."""
        request = flow.request.data
        request.headers.fields, presented = take(request.headers.fields)
        if b"?" in request.path:
            request.path = without_keys(request.path.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if flow.is_replay is not None:
            return None  # sent again by whoever runs the gateway; the key went with the first time
        for key in presented:
            client = self._keyring.find(key)
            if client is not None:
                if client.expires is not None and self._clock() >= client.expires:
                    raise Unauthorized("this API key has expired")
                return client
        if path is not None and (path in self._exempt or path.startswith(self._exempt_below)):
            return None
        if presented:
            raise Unauthorized("invalid API key")
        raise Unauthorized("no API key: send it as Authorization: Bearer KEY, or as x-api-key")

    # steps

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        client = ex.client
        if client is None or client.max_concurrency is None:
            return
        busy = self._busy.get(client.name, 0)
        if busy >= client.max_concurrency:
            raise TooMany(f"this API key may have {client.max_concurrency} requests at the same time")
        self._busy[client.name] = busy + 1
        ex.counted = True

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        client = ex.client
        if client is None or client.models is None:
            return
        model = ex.model
        if model is None and ex.endpoint.name == "realtime":
            model = flow.request.query.get("model")
        if model is None and ex.endpoint.name in _WITHOUT_MODEL:
            return
        if not allowed(client, model):
            said = f"the model `{model}`" if model is not None else "a request that names no model"
            raise Forbidden(f"this API key may not use {said}", param="model")

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if ex.counted and ex.client is not None:
            ex.counted = False
            left = self._busy[ex.client.name] - 1
            if left:
                self._busy[ex.client.name] = left
            else:
                del self._busy[ex.client.name]
