"""HAR files (HTTP Archive 1.2), as browsers, mitmproxy and Charles write them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from llmtap_launcher.importing.entries import Entry, Malformed, moment
from llmtap_launcher.importing.web import NotInference, decoded, entry


def entries(archive: Any) -> Iterator[Entry | Malformed | NotInference]:
    """The exchanges of a loaded HAR file, in its order; what is none as the reason why."""
    log = archive.get("log") if type(archive) is dict else None
    listed = log.get("entries") if type(log) is dict else None
    if type(listed) is not list:
        raise Malformed("not a HAR file: it has no log.entries")
    for one in listed:
        try:
            yield _entry(one)
        except (Malformed, NotInference) as reason:
            yield reason
        except (KeyError, TypeError, AttributeError, ValueError):
            yield Malformed("an entry that HAR 1.2 does not know")


def _entry(one: dict[str, Any]) -> Entry:
    request, response = one["request"], one["response"]
    posted = request.get("postData") or {}
    body = (posted.get("text") or "").encode()
    if posted.get("encoding") == "base64":
        body = _base64(posted["text"])
    content = response.get("content") or {}
    text = content.get("text") or ""
    reply = _base64(text) if content.get("encoding") == "base64" else text.encode()
    answered = _headers(response)
    answered.setdefault("content-type", str(content.get("mimeType") or ""))
    status = int(response.get("status") or 0)
    timings: dict[str, Any] = one.get("timings") or {}
    started = one["startedDateTime"]
    wait: Any = timings.get("wait")
    streamed = answered["content-type"].startswith(("text/event-stream", "application/x-ndjson"))
    return entry(
        "har",
        f"{started} {request['url']} {response.get('bodySize')} {len(body)} {answered.get('x-request-id')}",
        request["url"],
        request["method"],
        _headers(request),
        answered,
        at_us=moment(started),
        body=body,
        reply=reply,
        status=status or None,
        error=None if status > 0 else str(response.get("_error") or "no answer"),
        duration_ms=max(0.0, float(one.get("time") or 0)),
        ttft_ms=float(wait) if streamed and type(wait) in (int, float) and wait >= 0 else None,
    )


def _headers(side: dict[str, Any]) -> dict[str, str]:
    return {str(header["name"]).lower(): str(header["value"]) for header in side.get("headers") or []}


def _base64(text: str) -> bytes:
    try:
        return decoded(base64.b64decode(text, validate=True), None)
    except binascii.Error as error:
        raise Malformed("a body that is no base64") from error
