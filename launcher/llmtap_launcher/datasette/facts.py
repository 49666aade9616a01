"""The facts of one exchange beside its transcript: groups of (label, value), only what is known."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from llmtap_launcher.datasette import cells
from llmtap_launcher.datasette.bubbles import pretty
from llmtap_launcher.datasette.conversation import Transcript
from llmtap_launcher.datasette.formats import dollars, duration, number, size

Fact = tuple[str, Markup]
Group = tuple[str, list[Fact]]


def _plain(value: Any) -> Markup:
    return Markup("{}").format(value)


def _code(value: Any) -> Markup:
    return Markup("<code>{}</code>").format(value)


def _ms(value: Any) -> Markup:
    return _plain(duration(value))


def _count(value: Any) -> Markup:
    return _plain(number(value))


def _size(value: Any) -> Markup:
    return _plain(size(value))


def _yes(value: Any) -> Markup:
    return _plain("yes" if value else "no")


def _rate(value: Any) -> Markup:
    return _plain(f"{number(value)} / s")


def _tags(value: Any) -> Markup:
    try:
        tags = json.loads(value)
    except ValueError:
        tags = value
    return _plain(", ".join(map(str, tags)) if isinstance(tags, list) else tags)


def _dollars(value: Any) -> Markup:
    return _plain(dollars(value / 1e9))


#: title, then (column, label, how)
_GROUPS: tuple[tuple[str, tuple[tuple[str, str, Any], ...]], ...] = (
    (
        "Result",
        (
            ("outcome", "outcome", cells.badge),
            ("status", "status", cells.status),
            ("finish_reason", "finish reason", _plain),
            ("error_type", "error", _code),
            ("error_message", "message", _plain),
        ),
    ),
    (
        "Time",
        (
            ("started_at", "started (UTC)", cells.time),
            ("ttft_ms", "first token", _ms),
            ("duration_ms", "duration", _ms),
            ("tokens_per_second", "tokens", _rate),
            ("queue_ms", "queued", _ms),
            ("overhead_ms", "overhead", _ms),
        ),
    ),
    (
        "Tokens",
        (
            ("prompt_tokens", "prompt", _count),
            ("completion_tokens", "completion", _count),
            ("cached_tokens", "cached", _count),
            ("reasoning_tokens", "reasoning", _count),
            ("usage_source", "counted by", _plain),
            ("cost_nanousd", "cost", _dollars),
        ),
    ),
    (
        "Served by",
        (
            ("model_requested", "model asked for", _plain),
            ("model_response", "model", _plain),
            ("backend", "backend", _plain),
            ("attempts", "attempts", _count),
            ("cache", "cache", _plain),
        ),
    ),
    (
        "Request",
        (
            ("key_name", "key", _plain),
            ("method", "method", _plain),
            ("path", "path", _code),
            ("stream", "streamed", _yes),
            ("temperature", "temperature", _plain),
            ("top_p", "top p", _plain),
            ("max_tokens", "max tokens", _count),
            ("seed", "seed", _plain),
            ("n", "n", _plain),
            ("tags", "tags", _tags),
            ("session_hint", "session", _plain),
            ("client_ip", "client", _plain),
            ("user_agent", "user agent", _plain),
            ("request_bytes", "request", _size),
            ("response_bytes", "response", _size),
        ),
    ),
    ("Identity", (("uid", "llmtap id", _code), ("request_id", "x-request-id", _code), ("response_id", "response id", _code))),
)


def facts(exchange: dict[str, Any]) -> list[Group]:
    """The groups that have something to say; NULL and empty columns are left out."""
    out: list[Group] = []
    for title, rows in _GROUPS:
        shown = [
            (label, how(exchange[column]))
            for column, label, how in rows
            if exchange.get(column) not in (None, "") and not (column == "model_requested" and _same_model(exchange))
        ]
        if shown:
            out.append((title, shown))
    return out


def _same_model(exchange: dict[str, Any]) -> bool:
    return bool(exchange.get("model_requested") == exchange.get("model_response"))


def extras(it: Transcript) -> list[tuple[str, str]]:
    """What is kept as JSON: tool definitions, other parameters, metadata, extras of the reply. Empty ones are left out."""
    row = it.exchange
    found = (
        ("Tools offered", it.tools),
        ("Parameters", row.get("params_json")),
        ("Metadata", row.get("metadata_json")),
        ("Reply extras", it.meta),
    )
    return [(title, text) for title, value in found if value and (text := pretty(value)) not in ("{}", "[]")]
