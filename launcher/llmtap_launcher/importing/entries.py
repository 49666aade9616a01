"""One exchange of somebody else's log, and how it becomes the two spool records a gateway would have written.

The identity of an imported exchange is made of its source's own, so an import that is run again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import WireError
from llmtap.core.record import Begin, End, Summary, encode
from llmtap.wire.decode import decoder_for
from llmtap.wire.request import parse

WORKER = "import"
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Malformed(Exception):
    """An entry that is no exchange; the text says why, without any of its content."""


@dataclass(slots=True)
class Entry:
    """An exchange. `identity`: names it among all of its source; `at_us`: when it began, microseconds since the epoch.
    `reply` is the body as it came, `content_type` says how to read it."""

    identity: str
    at_us: int
    path: str
    body: bytes
    method: str = "POST"
    reply: bytes = b""
    content_type: str = "application/json"
    status: int | None = 200
    error: str | None = None
    request_id: str | None = None
    duration_ms: float | None = None
    ttft_ms: float | None = None
    key_name: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    session_hint: str | None = None
    backend: str | None = None
    cached: bool = False
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def uid_of(entry: Entry) -> str:
    """A ULID of its time and a hash of its identity: the same every time."""
    value = (entry.at_us // 1000 & (1 << 48) - 1) << 80
    value |= int.from_bytes(blake2b(entry.identity.encode("utf-8", "surrogatepass"), digest_size=10).digest(), "big")
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def records(entry: Entry) -> list[bytes]:
    """Both spool records. Raises Malformed when the request cannot be read at all."""
    uid = uid_of(entry)
    endpoint = endpoint_of(entry.path)
    if endpoint is None:
        raise Malformed("not a path of an inference API")
    try:
        parsed = parse(endpoint.name, entry.body)
    except WireError as error:
        raise Malformed(str(error)) from error
    begin = Begin(
        uid,
        entry.at_us,
        WORKER,
        entry.method,
        entry.path,
        endpoint.name,
        request_id=entry.request_id,
        client_ip=entry.client_ip,
        user_agent=entry.user_agent,
        key_name=entry.key_name,
        session_hint=entry.session_hint,
        tags=entry.tags or None,
        metadata=entry.metadata or None,
        model=parsed.model,
        stream=parsed.stream,
        request_bytes=len(entry.body),
        body=entry.body,
        body_is_json=parsed.exact,
    )
    summary = _summary(entry, endpoint.name)
    failed = entry.error is not None or (entry.status or 0) >= 400
    end = End(
        uid,
        entry.at_us + round((entry.duration_ms or 0) * 1000),
        "upstream_error" if failed else "cached" if entry.cached else "ok",
        status=entry.status,
        error_type=summary.error_type,
        error_message=entry.error or summary.error_message,
        backend=entry.backend,
        attempts=1,
        cache="hit" if entry.cached else None,
        content_type=entry.content_type or None,
        summary=summary,
        ttft_ms=entry.ttft_ms,
        duration_ms=entry.duration_ms,
        response_bytes=len(entry.reply),
    )
    return [encode(begin), encode(end)]


def _summary(entry: Entry, endpoint: str) -> Summary:
    decoder = decoder_for(endpoint, entry.content_type, entry.status or (500 if entry.error else 200))
    try:
        if entry.reply:
            decoder.feed(entry.reply)
        decoder.close()
    except WireError:
        pass  # what it understood so far stays
    return decoder.summary


def moment(value: Any) -> int:
    """Microseconds since the epoch of a time as logs write it: ISO 8601 (UTC unless it says otherwise), seconds or
    milliseconds since the epoch. Raises Malformed."""
    try:
        if type(value) is str:
            try:
                value = float(value)
            except ValueError:
                at = datetime.fromisoformat(value.strip())
                return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1_000_000)
        if type(value) is int or type(value) is float:
            seconds = value / 1000 if value > 1e11 else value
            if 0 < seconds < 1e11:
                return round(seconds * 1_000_000)
    except (ValueError, OverflowError):
        pass
    raise Malformed("no time that can be read")


def dumped(value: Any) -> bytes:
    """JSON of a value out of a log. Raises Malformed for what has none (half a surrogate pair)."""
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise Malformed("texts that are no Unicode") from error
