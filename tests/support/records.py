"""Spool records and spools for tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from llmtap.core.record import Begin, Choice, End, Summary, Usage
from llmtap.spool.sink import SpoolSink

START_US = 1_795_224_923_456_000  # 2026-11-21T01:35:23.456Z


def chat(*messages: dict[str, Any] | str, **params: Any) -> bytes:
    """A chat request's body; a plain string is a user's message."""
    listed = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return orjson.dumps({"model": "m", "messages": listed, **params})


def begin(uid: str = "u1", body: bytes | None = None, *, is_json: bool = True, **more: Any) -> Begin:
    values: dict[str, Any] = {
        "at_us": START_US,
        "worker": "w0",
        "method": "POST",
        "path": "/v1/chat/completions",
        "endpoint": "chat",
        "model": "m",
        "body": chat("hello") if body is None else body,
        "body_is_json": is_json,
        **more,
    }
    return Begin(uid=uid, **values)


def end(uid: str = "u1", text: str | None = "hi there", **more: Any) -> End:
    values: dict[str, Any] = {
        "at_us": START_US + 1_000_000,
        "outcome": "ok",
        "status": 200,
        "backend": "a",
        "attempts": 1,
        "content_type": "text/event-stream",
        "duration_ms": 1000.0,
        "ttft_ms": 100.0,
        "summary": summary(Choice(0, content=text, finish_reason="stop")),
        **more,
    }
    return End(uid=uid, **values)


def summary(*choices: Choice, **more: Any) -> Summary:
    return Summary(
        response_id="chatcmpl-1",
        model="served",
        choices=list(choices),
        usage=Usage(prompt_tokens=5, completion_tokens=10, source="upstream"),
        complete=True,
        **more,
    )


def sink(directory: Path, worker: str = "w0", boot: str = "b", **kwargs: Any) -> SpoolSink:
    """A sink into the spool of a capture folder."""
    return SpoolSink(directory / "spool", worker, boot, **kwargs)
