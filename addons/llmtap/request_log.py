"""The request log: one line an exchange on standard output, JSON or, where a person reads it, columns. Prompts only if asked for.

Lines are collected for `FLUSH_S` and written by a thread: a terminal that stands still or a pipe nobody reads must not stop
the traffic. What does not fit into `MAX_WAITING` lines meanwhile is dropped, and the log says how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import orjson
from mitmproxy import http

from llmtap.exchange import Exchange

FLUSH_S = 0.05
MAX_WAITING = 10_000
MAX_PROMPT = 8192
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_SHOWN_PROMPT = 80


class RequestLog:
    """Observer: writes the line when an exchange ends. Lines of failures pass a `level` of WARNING, others one of INFO.

    `prompts`: with the text of the request (its last message). On an event loop lines are written soon, without one at once.
    """

    name = "request_log"

    def __init__(self, level: str, as_json: bool, out: TextIO | None = None, prompts: bool = False) -> None:
        self._threshold = _LEVELS.get(level.upper(), 20)
        self._out = out if out is not None else sys.stdout
        self._json = as_json and not self._out.isatty()
        self._prompts = prompts
        self._lines: list[str] = []
        self._dropped = 0
        self._writing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._clock = -1, ""

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        failed = ex.outcome not in ("ok", "cached")
        if self._threshold > (30 if failed else 20):
            return
        summary = ex.summary
        usage = summary.usage if summary is not None else None
        record: dict[str, Any] = {
            "timestamp": self._timestamp(ex.started_us),
            "level": "WARNING" if failed else "INFO",
            "logger": "llmtap.request",
            "uid": ex.uid,
            "request_id": ex.request_id,
            "key": ex.key_name,
            "model": ex.model,
            "backend": ex.backend,
            "endpoint": ex.endpoint.name,
            "path": ex.path,
            "stream": ex.stream,
            "status": ex.status,
            "outcome": ex.outcome,
            "error": ex.error_type or (summary.error_type if summary is not None else None),
            "prompt_tokens": usage.prompt_tokens if usage is not None else None,
            "completion_tokens": usage.completion_tokens if usage is not None else None,
            "attempts": ex.attempts,
            "queue_ms": _ms(ex.queue_s),
            "ttft_ms": _ms(ex.ttft_s),
            "duration_ms": _ms(ex.duration_s),
        }
        if self._prompts:
            record["prompt"] = prompt_of(ex)
        self._put(_json(record) if self._json else _human(record))

    def stop(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None or self._writing.done():  # else its thread hangs in a write, and so would we
            self._write(self._take())

    # ---- writing

    def _put(self, line: str) -> None:
        if len(self._lines) >= MAX_WAITING:
            self._dropped += 1
            return
        self._lines.append(line)
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._write(self._take())
                return
            self._timer = loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._writing is not None and not self._writing.done():
            self._timer = loop.call_later(FLUSH_S, self._flush)
            return
        self._writing = loop.run_in_executor(None, self._write, self._take())

    def _take(self) -> str:
        lines, self._lines = self._lines, []
        if self._dropped:
            text = f"{self._dropped} lines of the request log were dropped: its reader is too slow"
            record = {"timestamp": self._timestamp(time.time_ns() // 1000), "level": "WARNING", "message": text}
            lines.append(_json(record) if self._json else text + "\n")
            self._dropped = 0
        return "".join(lines)

    def _write(self, text: str) -> None:
        # whoever read us is gone: that is no reason to stop serving
        with contextlib.suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()

    def _timestamp(self, at_us: int) -> str:
        second, us = divmod(at_us, 1_000_000)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._clock}.{us // 1000:03d}Z"


def prompt_of(ex: Exchange) -> str | None:
    """The text of the request as a person would tell it: its last message, its prompt or its input, up to `MAX_PROMPT`
    characters."""
    obj = ex.parsed.obj if ex.parsed is not None else {}
    for name in ("messages", "prompt", "input", "query", "text"):
        value = obj.get(name)
        if value is None:
            continue
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            value = value[-1].get("content")
        text = _text(value)
        return text if len(text) <= MAX_PROMPT else text[:MAX_PROMPT] + "…"
    return None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _text(value.get("text") or value.get("content") or "")
    if isinstance(value, list):
        return "\n".join(filter(None, (_text(item) for item in value)))
    return ""


def _json(record: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(record).decode() + "\n"
    except TypeError:  # half a surrogate pair in what a client wrote
        plain = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in record.items()}
        return orjson.dumps(plain).decode() + "\n"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _human(r: Mapping[str, Any]) -> str:
    tokens = f"{_dash(r['prompt_tokens'])}+{_dash(r['completion_tokens'])} tok"
    times = f"ttft {_dash(r['ttft_ms'])} ms  total {_dash(r['duration_ms'])} ms"
    queue = f"queue {r['queue_ms']} ms  " if r["queue_ms"] else ""
    key = f"  key {_dash(r['key'])}" if r["key"] else ""
    error = f"  {_dash(r['error'])}" if r["error"] else ""
    prompt = r.get("prompt")
    said = "" if not prompt else f'  "{_dash(prompt if len(prompt) <= _SHOWN_PROMPT else prompt[:_SHOWN_PROMPT] + "…")}"'
    who = f"{_dash(r['model'])}@{_dash(r['backend'])}"
    return (
        f"{r['timestamp'][11:19]}  {r['status'] or '---'}  {r['outcome']:<14} {who}  {tokens}  {queue}{times}{key}{error}{said}\n"
    )


def _dash(value: object) -> str:
    if value is None:
        return "-"
    # names and texts are the client's: no control characters on somebody's terminal
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
