"""Spool records as columns of `exchanges`: plain functions from what was written to what is stored.

Values are taken only when they are what the column says (a `temperature` that is a string goes nowhere but into
`params_json`, whole). A record without the fields every record has raises KeyError, TypeError or ValueError: it is poison.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from llmtap.core.errors import WireError
from llmtap.spool.sink import plain
from llmtap.wire.jsonload import load_object
from llmtap.wire.values import number
from llmtap_launcher.store.canonical import Body, body_of, tools_body
from llmtap_launcher.store.messages import dialect, from_choice, from_request

#: raw bodies (unknown endpoints, errors) are kept up to this many bytes
RAW_BYTES = 64 * 1024
_MIN_WINDOW_MS = 10.0  # a reply that came in one piece has no rate of its own
_STREAMS = ("text/event-stream", "application/x-ndjson")

#: columns a `begin` record fills, then those of an `end` record
BEGIN_COLUMNS = (
    "started_at started_us worker boot key_name client_ip user_agent session_hint request_id tags metadata_json "
    "method path endpoint model_requested stream temperature top_p max_tokens seed n "
    "request_bytes n_messages input_tip tools_hash params_json"
).split()
END_COLUMNS = (
    "model_response backend attempts cache status outcome error_type error_message finish_reason response_id "
    "prompt_tokens completion_tokens cached_tokens reasoning_tokens usage_source queue_ms ttft_ms duration_ms overhead_ms "
    "itl_p50_ms itl_p95_ms itl_max_ms tokens_per_second chunks response_bytes output_tip response_meta_json"
).split()

_OUTCOMES = frozenset({"ok", "cached", "client_abort", "upstream_error", "timeout", "rejected", "lost"})

Record = dict[str, Any]
#: a message of a websocket: at_ms, from_client, content, bytes
Said = tuple[float | None, int, str | bytes | None, int]
Columns = dict[str, Any]


@dataclass(slots=True)
class Asked:
    """A `begin` record, understood. `messages` is the chain of the request (empty: it has none)."""

    columns: Columns
    messages: list[Body] = field(default_factory=list)
    tools: Body | None = None
    previous: str | None = None  # of the Responses API: the reply it goes on from


@dataclass(slots=True)
class Replied:
    """An `end` record, understood. `choices` are the assistant messages with their reasoning, first choice first."""

    columns: Columns
    meta: dict[str, Any]
    choices: list[tuple[Body, str | None]] = field(default_factory=list)
    deltas: list[int] | None = None
    request_bytes: int | None = None  # of a body that was sent on as it came
    socket: list[Said] = field(default_factory=list)  # messages of a websocket


def iso(us: int) -> str:
    """Microseconds since the epoch as `2026-11-21T01:02:03.456Z`. Raises ValueError or OverflowError outside the calendar."""
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def asked(record: Record, boot: str) -> Asked:
    """The columns and messages of a `begin` record. `boot`: the worker boot (`<worker>-<boot>`) whose segment it was in."""
    at_us = _required_int(record, "at_us")
    endpoint, path = _text(record.get("endpoint")), _text(record.get("path"))
    columns: Columns = {
        "started_at": iso(at_us),
        "started_us": at_us,
        "worker": _text(record.get("worker")),
        "boot": boot,
        **{k: _text(record.get(k)) for k in ("key_name", "client_ip", "user_agent", "session_hint", "request_id", "method")},
        "path": path,
        "endpoint": endpoint,
        "tags": _json(record.get("tags")),
        "metadata_json": _json(record.get("metadata")),
        "model_requested": _text(record.get("model")),
        "stream": int(bool(record.get("stream"))),
        "request_bytes": _int(record.get("request_bytes")),
    }
    out = Asked(columns)
    params: dict[str, Any] = {}
    body = record.get("body")
    request = _object(body)
    if dropped := record.get("body_dropped"):
        params["body_dropped"] = dropped
    elif endpoint == "other" or (request is None and body is not None and _is_text(body)):
        params["body"] = _raw(body)
    elif request is not None:
        prompt = from_request(dialect(endpoint, path), request)
        columns.update(_settings(request))
        params = prompt.params if prompt.messages is not None else _bounded(prompt.params)
        if prompt.messages is not None:
            out.messages = [body_of(m) for m in prompt.messages]
            columns["n_messages"] = len(out.messages)
            if endpoint == "responses":
                out.previous = _text(params.get("previous_response_id"))
        if prompt.tools:
            out.tools = tools_body(prompt.tools)
    if forwarded := record.get("forwarded"):
        params["forwarded"] = _raw(forwarded)
    columns["params_json"] = _json(params)
    return out


def replied(record: Record, endpoint: str | None) -> Replied:
    """The columns, extras and messages of an `end` record. `endpoint`: of its `begin` record (None: not known)."""
    outcome = record["outcome"]
    if outcome not in _OUTCOMES:
        raise ValueError("unknown outcome")
    _required_int(record, "at_us")
    summary = record.get("summary") or {}
    usage = summary.get("usage") or {}
    choices = [c for c in summary.get("choices") or () if type(c) is dict]
    deltas = record.get("deltas")
    deltas = deltas if type(deltas) is list and deltas and all(type(d) is int for d in deltas) else None
    columns: Columns = {
        "model_response": _text(summary.get("model")),
        "response_id": _text(summary.get("response_id")),
        "outcome": outcome,
        "finish_reason": next((_text(c.get("finish_reason")) for c in choices), None),
        **{k: _text(record.get(k)) for k in ("backend", "cache", "error_type", "error_message")},
        **{k: _int(record.get(k)) for k in ("attempts", "status", "chunks", "response_bytes")},
        **{k: number(record.get(k)) for k in ("queue_ms", "ttft_ms", "duration_ms", "overhead_ms")},
        **{k: _int(usage.get(k)) for k in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")},
        "usage_source": _text(usage.get("source")) or "none",
    }
    if deltas is not None:
        columns.update(_gaps(deltas[1:]))
        if columns["ttft_ms"] is None:
            columns["ttft_ms"] = deltas[0] / 10
    content_type = _text(record.get("content_type")) or ""
    columns["tokens_per_second"] = _rate(columns, content_type.startswith(_STREAMS))
    out = Replied(columns, _meta(summary), request_bytes=_int(record.get("request_bytes")))
    _errors(columns, out.meta, summary, record, endpoint)
    out.socket = _said(record.get("messages"))
    if dropped := _int(record.get("messages_dropped")):
        out.meta["messages_dropped"] = dropped
    if dropped := record.get("body_dropped"):
        out.meta["body_dropped"] = dropped
    else:
        out.choices = [(body_of(m), _text(m["reasoning"])) for c in choices if (m := from_choice(c)) is not None]
    out.deltas = deltas
    return out


def _said(messages: Any) -> list[Said]:
    """Raises ValueError for what is no message."""
    out: list[Said] = []
    for message in messages if type(messages) is list else ():
        content: str | bytes | None = _text(message.get("text"))
        if content is None and type(message.get("base64")) is str:
            content = base64.b64decode(message["base64"], validate=True)
        out.append((number(message.get("at_ms")), int(message.get("from") == "client"), content, _int(message.get("bytes")) or 0))
    return out


def _settings(request: Record) -> Columns:
    """The sampling parameters, under whichever name the API has for them (Ollama: inside `options`)."""
    options = request.get("options")
    where = {**request, **options} if type(options) is dict else request
    limits = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
    return {
        "temperature": number(where.get("temperature")),
        "top_p": number(where.get("top_p")),
        "max_tokens": next((m for k in limits if (m := _int(where.get(k))) is not None), None),
        "seed": _int(where.get("seed")),
        "n": _int(where.get("n")),
    }


def _meta(summary: Record) -> dict[str, Any]:
    meta = summary.get("meta")
    return dict(meta) if type(meta) is dict else {}


def _errors(columns: Columns, meta: dict[str, Any], summary: Record, record: Record, endpoint: str | None) -> None:
    """What went wrong, in the backend's own words where it has some; the raw body where nothing else tells the story."""
    body = record.get("body")
    failed = (columns["status"] or 0) >= 400
    for column in ("error_type", "error_message"):
        columns[column] = columns[column] or _text(summary.get(column))
    if failed and columns["error_message"] is None:
        columns["error_type"], columns["error_message"] = _error_of(_object(body), columns["error_type"])
    if body is not None and (endpoint == "other" or (failed and columns["error_message"] is None)):
        meta["body"] = _raw(body)
        meta["content_type"] = _text(record.get("content_type"))


def _error_of(body: Record | None, kind: str | None) -> tuple[str | None, str | None]:
    """Type and message of an error body: OpenAI's and Anthropic's object, Ollama's string, FastAPI's `detail`."""
    error = (body or {}).get("error")
    if type(error) is dict:
        return kind or _text(error.get("type")), _text(error.get("message"))
    if type(error) is str:
        return kind, error
    for name in ("detail", "message"):
        if value := (body or {}).get(name):
            return kind, value if type(value) is str else _json(value)
    return kind, None


def _gaps(gaps: Sequence[int]) -> Columns:
    """Nearest-rank percentiles of the gaps between content events (0.1 ms), in ms."""
    if not gaps:
        return {}
    ordered = sorted(gaps)
    p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    return {"itl_p50_ms": p50 / 10, "itl_p95_ms": p95 / 10, "itl_max_ms": ordered[-1] / 10}


def _rate(columns: Columns, streamed: bool) -> float | None:
    """Tokens a second: of the generation itself (after the first token) where a stream shows it, else of the whole request."""
    tokens, duration, ttft = columns["completion_tokens"], columns["duration_ms"], columns["ttft_ms"]
    if not tokens or not duration or columns["outcome"] == "cached" or columns["cache"] in ("hit", "shared"):
        return None
    if streamed and ttft is not None and tokens > 1 and duration - ttft >= _MIN_WINDOW_MS:
        tokens, duration = tokens - 1, duration - ttft
    return float(round(tokens / duration * 1000, 2))


def _object(body: Any) -> Record | None:
    """The JSON object of a stored body, also one that only lenient servers take for JSON (NaN, half an emoji)."""
    if type(body) is not dict:
        return None
    value = body.get("json")
    if "json" not in body and _is_text(body):
        try:
            value = plain(load_object(body["text"].encode()))
        except WireError:
            return None
    return value if type(value) is dict else None


def _is_text(body: Any) -> bool:
    return type(body) is dict and type(body.get("text")) is str


def _raw(body: Any) -> Any:
    """A stored body as it is, or its beginning. Binary ones keep their size only."""
    if type(body) is not dict:
        return None
    if "json" in body:
        return _bounded(body["json"])
    text = body.get("text")
    return text[:RAW_BYTES] if type(text) is str else None


def _bounded(value: Any) -> Any:
    data = orjson.dumps(value)
    return value if len(data) <= RAW_BYTES else {"truncated": data[:RAW_BYTES].decode("utf-8", "ignore")}


def _required_int(record: Record, name: str) -> int:
    value = record[name]
    if type(value) is not int:
        raise TypeError(f"{name} is not an integer")
    return value


def _int(value: Any) -> int | None:
    """An integer that SQLite can hold."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _json(value: Any) -> str | None:
    return orjson.dumps(value).decode() if value else None
