"""The two spool records of an exchange: `begin` (what was asked) and `end` (what came of it).

The spool is the only hand-over from whoever captures (gateway, in-process client) to whoever stores, so these shapes
are a published format: fields are only ever added. Times are microseconds since the epoch (`*_us`), durations
milliseconds (`*_ms`), sizes bytes. Bodies are embedded as received: JSON as JSON (bytes spliced in, not re-serialised),
anything else as `{"text": ...}` or `{"base64": ...}`. Headers that carry secrets have no field to be in.

None of them has slots: orjson and `_plain` read a record's `__dict__` in a quarter of the time.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

VERSION = 1

Outcome = Literal["open", "ok", "cached", "client_abort", "upstream_error", "timeout", "rejected", "lost"]
UsageSource = Literal["upstream", "estimated", "none"]


@dataclass
class Usage:
    """Token counts of one exchange. `source` says who counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: UsageSource = "none"


@dataclass
class ToolCall:
    """One tool call, its streamed fragments merged. `arguments` is the raw text the model wrote."""

    index: int
    id: str | None = None
    type: str = "function"
    name: str = ""
    arguments: str = ""


@dataclass
class Choice:
    """One choice of a reply, its deltas merged. Text completions have only `content`."""

    index: int
    role: str = "assistant"
    content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Summary:
    """What a decoder understood of a reply. `complete`: the protocol's own end was seen ([DONE], done:true, a whole body)."""

    response_id: str | None = None
    model: str | None = None
    choices: list[Choice] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    error_type: str | None = None
    error_message: str | None = None
    complete: bool = False
    meta: dict[str, Any] = field(default_factory=dict)  # small extras: system_fingerprint, timings, metrics ...


@dataclass
class Begin:
    """What was asked. `body` is the request as received; None: there was none, or it was dropped (`body_dropped` says why)."""

    uid: str
    at_us: int
    worker: str
    method: str
    path: str
    endpoint: str
    request_id: str | None = None  # the client's own x-request-id
    client_ip: str | None = None
    user_agent: str | None = None
    key_name: str | None = None
    session_hint: str | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    stream: bool = False
    request_bytes: int = 0
    body: bytes | None = None
    body_is_json: bool = False  # the caller has parsed it: safe to splice
    forwarded: dict[str, Any] | None = None  # the request as filters have made it, where that differs from `body`; as bodies are
    body_dropped: str | None = None  # disk_full | too_large | opted_out | streamed (sent on as it came; its size is in `End`)


@dataclass
class End:
    """What came of it: outcome, timings, usage and the merged reply (or, when there is no decoder, the raw body up to a cap)."""

    uid: str
    at_us: int
    outcome: Outcome
    status: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    backend: str | None = None
    attempts: int = 0
    cache: str | None = None
    content_type: str | None = None
    summary: Summary | None = None
    body: bytes | None = None
    body_is_json: bool = False
    body_dropped: str | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    duration_ms: float | None = None
    overhead_ms: float | None = None
    chunks: int = 0
    response_bytes: int = 0
    request_bytes: int | None = None  # of a body that was sent on as it came, of a websocket's messages; else `Begin` has it
    messages: list[dict[str, Any]] | None = None  # of a websocket: at_ms, from (client | server), bytes, text | base64, truncated
    messages_dropped: int | None = None  # how many more there were
    deltas: list[int] | None = None  # arrival gaps of content events in 0.1 ms; the first counts from the request


def _one_line(json: bytes) -> bytes:
    # a record is one line; inside valid JSON a raw line break can only be white space between tokens
    return json.replace(b"\n", b" ").replace(b"\r", b" ")


def _body(data: bytes, is_json: bool) -> Any:
    if is_json:
        return json_body(data)
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def json_body(data: bytes) -> dict[str, Any]:
    """How valid JSON is put into a record."""
    return {"json": orjson.Fragment(_one_line(data))}


def body_bytes(stored: dict[str, Any] | None) -> bytes | None:
    """The inverse of how a body is stored; JSON comes back re-serialised, text and base64 exactly."""
    if stored is None:
        return None
    if "json" in stored:
        return orjson.dumps(stored["json"])
    if "text" in stored:
        return str(stored["text"]).encode("utf-8")
    return base64.b64decode(stored["base64"])


_KIND = {Begin: "begin", End: "end"}


def _plain(record: Begin | End) -> dict[str, Any]:
    out: dict[str, Any] = {"v": VERSION, "t": _KIND[type(record)]}
    for name, value in record.__dict__.items():
        if value is not None:
            out[name] = value
    del out["body_is_json"]
    if record.body is not None:
        out["body"] = _body(record.body, record.body_is_json)
    return out


def encode_parts(record: Begin) -> tuple[bytes, bytes, bytes]:
    """As `encode`, in three parts that make the line together: the middle one is a JSON body as it is, not copied."""
    body = record.body
    if body is None or not record.body_is_json:
        return encode(record), b"", b""
    return orjson.dumps(_plain(replace(record, body=None)))[:-1] + b',"body":{"json":', _one_line(body), b"}}"


def encode_fields(kind: Literal["begin", "end"], fields: Mapping[str, Any]) -> bytes:
    """As `encode`, for a record that is given as its fields, those that are None left out and bodies as `json_body` has them:
    a third of the price. Raises as `encode`."""
    return orjson.dumps({"v": VERSION, "t": kind, **fields})


def encode(record: Begin | End) -> bytes:
    """One line of JSON without the line feed. Raises TypeError/JSONEncodeError only for values that are not plain data."""
    return orjson.dumps(_plain(record))
