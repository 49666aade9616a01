"""mitmproxy's flow files (`mitmdump -w`), without mitmproxy: the exchanges of their HTTP flows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from llmtap_launcher.importing.entries import Entry, Malformed
from llmtap_launcher.importing.tnetstring import BadNetstring, read
from llmtap_launcher.importing.web import NotInference, decoded, entry


def entries(file: BinaryIO) -> Iterator[Entry | Malformed | NotInference]:
    """The exchanges of an open file, in its order; what is none as the reason why. A damaged file ends where it is damaged."""
    try:
        for flow in read(file):
            try:
                yield _entry(flow)
            except (Malformed, NotInference) as reason:
                yield reason
            except (KeyError, TypeError, AttributeError, ValueError):
                yield Malformed("a flow that this version of llmtap cannot read")
    except BadNetstring as error:
        yield Malformed(f"damaged: {error}; nothing behind it can be read")


def _entry(flow: dict[str, Any]) -> Entry:
    if flow["type"] != "http":
        raise NotInference
    request, response = flow["request"], flow.get("response")
    asked = _headers(request)
    answered = _headers(response) if response is not None else {}
    host, port = _text(request["host"]), int(request["port"])
    begun = float(request["timestamp_start"])
    ended = float((response or {}).get("timestamp_end") or request.get("timestamp_end") or begun)
    failed = flow.get("error")
    streamed = answered.get("content-type", "").startswith(("text/event-stream", "application/x-ndjson"))
    first = (response or {}).get("timestamp_start")
    peer = (flow.get("client_conn") or {}).get("peername")
    return entry(
        "flow",
        _text(flow["id"]),
        f"{_text(request['scheme'])}://{host}:{port}{_text(request['path'])}",
        _text(request["method"]),
        asked,
        answered,
        at_us=round(begun * 1_000_000),
        body=decoded(request.get("content") or b"", asked.get("content-encoding")),
        reply=decoded((response or {}).get("content") or b"", answered.get("content-encoding")),
        status=int(response["status_code"]) if response is not None else None,
        error=_text(failed["msg"]) if failed else None if response is not None else "no answer",
        duration_ms=max(0.0, (ended - begun) * 1000),
        ttft_ms=max(0.0, (float(first) - begun) * 1000) if streamed and first else None,
        client_ip=_text(peer[0]) if peer else None,
    )


def _headers(side: dict[str, Any]) -> dict[str, str]:
    return {_text(name).lower(): _text(value) for name, value in side["headers"]}


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
