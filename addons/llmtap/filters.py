"""Filters: what the operator makes of requests before they go anywhere (`filters` in the configuration), own rules in Python
among them.

A rule is a function `rule(request, about)`: `request` is the body as a dict, `about` says whose it is. It returns the dict to
send on, or None to leave it as it is; it may be `async`. `llmtap.core.errors.Forbidden("why")` and its kin refuse the request
in the client's dialect; any other exception does so with a 500. What was received and what was sent on are both captured when
they differ.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from mitmproxy import http

from llmtap.core import config as c
from llmtap.core.errors import ConfigError, InternalError
from llmtap.core.headers import changed
from llmtap.exchange import Exchange
from llmtap.policy.filters import Filter
from llmtap.wire import request as wire_request


@dataclass(frozen=True, slots=True)
class About:
    """What a rule is told beside the request."""

    key: str | None
    model: str | None
    endpoint: str
    path: str
    client_ip: str
    tags: tuple[str, ...]
    metadata: dict[str, Any]


class Filters:
    """Policy. Raises ConfigError for a rule that cannot be loaded."""

    name = "filters"

    def __init__(self, filters: Sequence[c.Filter]) -> None:
        self._filters = tuple(_filter(at, entry) for at, entry in enumerate(filters))

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        parsed = ex.parsed
        if parsed is None or not ex.endpoint.json_body:
            return None
        fitting = [f for f in self._filters if f.fits(parsed.model, ex.key_name, ex.endpoint.name)]
        if not fitting:
            return None
        obj = parsed.obj
        for at, entry in enumerate(fitting):
            obj = entry.apply(ex.endpoint.name, obj)
            if entry.hook is not None:
                return self._with_hooks(flow, ex, obj, fitting[at:])
        self._send(flow, ex, obj)
        return None

    async def _with_hooks(self, flow: http.HTTPFlow, ex: Exchange, obj: dict[str, Any], rest: list[Filter]) -> None:
        """`rest`: the filters from the first with a hook on; all but that hook of the first has been applied."""
        about = About(
            ex.key_name, ex.model, ex.endpoint.name, ex.path, ex.client_ip, tuple(ex.tags or ()), dict(ex.metadata or {})
        )
        for at, entry in enumerate(rest):
            if at:
                obj = entry.apply(ex.endpoint.name, obj)
            if entry.hook is not None:
                made = entry.hook(obj, about)
                if inspect.isawaitable(made):
                    made = await made
                if made is not None:
                    if type(made) is not dict:
                        raise InternalError("internal error; a filter did not return a request")
                    obj = made
        self._send(flow, ex, obj)

    @staticmethod
    def _send(flow: http.HTTPFlow, ex: Exchange, obj: dict[str, Any]) -> None:
        if ex.parsed is None or obj == ex.parsed.obj:
            return
        body = orjson.dumps(obj)
        ex.received_exact = ex.parsed.exact
        ex.filtered = body
        ex.parsed = wire_request.parse(ex.endpoint.name, body)
        sent = wire_request.inject_usage(ex.parsed, body)
        ex.usage_injected = sent is not body
        data = flow.request.data
        data.content = sent
        data.headers.fields = changed(data.headers.fields, {b"content-length": b"%d" % len(sent)})


def _filter(at: int, entry: c.Filter) -> Filter:
    return Filter(
        models=entry.models,
        keys=frozenset(entry.keys) if entry.keys is not None else None,
        endpoints=frozenset(entry.endpoints) if entry.endpoints is not None else None,
        strip=entry.strip,
        set=_plain(entry.set),
        max_tokens=entry.max_tokens,
        system_prompt=entry.system_prompt,
        redact=tuple((re.compile(pattern), replacement) for pattern, replacement in entry.redact.items()),
        hook=load_rule(entry.python, f"filters[{at}].python") if entry.python is not None else None,
    )


def _plain(value: Any) -> Any:
    """Configuration values as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def load_rule(where: str, key: str) -> Callable[..., Any]:
    """The function `module:function` or `path/to/file.py:function`. Raises ConfigError, its text beginning with `key`."""
    module_name, _, function = where.rpartition(":")
    try:
        if module_name.endswith(".py"):
            path = Path(module_name).expanduser()
            spec = importlib.util.spec_from_file_location(f"llmtap_rule_{path.stem}", path)
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        rule = getattr(module, function)
    except Exception as error:
        raise ConfigError(f"{key}: {where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(rule):
        raise ConfigError(f"{key}: {where} is no function")
    found: Callable[..., Any] = rule
    return found
