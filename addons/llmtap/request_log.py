"""The request log: one line an exchange on standard output, JSON or, where a person reads it, columns. Never a prompt."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

import orjson
from mitmproxy import http

from llmtap.exchange import Exchange

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class RequestLog:
    """Observer: writes the line when an exchange ends. Lines of failures pass a `level` of WARNING, others one of INFO."""

    name = "request_log"

    def __init__(self, level: str, as_json: bool, out: TextIO | None = None) -> None:
        self._threshold = _LEVELS.get(level.upper(), 20)
        self._out = out if out is not None else sys.stdout
        self._json = as_json and not self._out.isatty()

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        failed = ex.outcome not in ("ok", "cached")
        if self._threshold > (30 if failed else 20):
            return
        usage = ex.summary.usage if ex.summary else None
        record = {
            "timestamp": datetime.fromtimestamp(ex.started_us / 1e6, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": "WARNING" if failed else "INFO",
            "logger": "llmtap.request",
            "uid": ex.uid,
            "key": ex.key_name,
            "model": ex.model,
            "backend": ex.backend,
            "endpoint": ex.endpoint.name,
            "path": ex.path,
            "stream": ex.stream,
            "status": ex.status,
            "outcome": ex.outcome,
            "error": ex.error_type or (ex.summary.error_type if ex.summary else None),
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "queue_ms": _ms(ex.queue_s),
            "ttft_ms": _ms(ex.ttft_s),
            "duration_ms": _ms(ex.duration_s),
        }
        self._out.write(orjson.dumps(record).decode() + "\n" if self._json else _human(record))
        self._out.flush()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _human(r: Mapping[str, object]) -> str:
    tokens = f"{_dash(r['prompt_tokens'])}+{_dash(r['completion_tokens'])} tok"
    times = f"ttft {_dash(r['ttft_ms'])} ms  total {_dash(r['duration_ms'])} ms"
    error = f"  {r['error']}" if r["error"] else ""
    clock = str(r["timestamp"])[11:19]
    who = f"{_dash(r['model'])}@{_dash(r['backend'])}"
    return f"{clock}  {r['status'] or '---'}  {r['outcome']:<14} {who}  {tokens}  {times}{error}\n"


def _dash(value: object) -> str:
    if value is None:
        return "-"
    # a model name is the client's text: no control characters on somebody's terminal
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
