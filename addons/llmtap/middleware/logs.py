"""Reading a log folder back: every call as one record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from llmtap.core.errors import SpoolError
from llmtap.spool.frame import Bad
from llmtap.spool.reader import read
from llmtap.spool.segment import scan

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class QueryRecord:
    """A call. `timestamp`: ISO 8601, UTC; `messages`: of a chat, or the prompts of a text completion; `response`: as OpenAI's API
    has it (a stream put together), None without one; `parameters`: the rest of the request; `latency_ms` None and `error`
    "unfinished" while it runs, or when its process died."""

    timestamp: str
    request_id: str
    model: str | None
    messages: list[Any]
    response: dict[str, Any] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    latency_ms: float | None = None
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def load_logs(log_dir: str | os.PathLike[str]) -> list[QueryRecord]:
    """All calls in a log folder, in the order of their time."""
    return sorted(iter_logs(log_dir), key=lambda record: (record.timestamp, record.request_id))


def iter_logs(log_dir: str | os.PathLike[str]) -> Iterator[QueryRecord]:
    """The calls in a log folder, in the order of their end; unfinished ones last. Damaged lines are left out. What
    `llmtap ingest` has taken into a database is not here any more. Raises SpoolError when there is no such folder."""
    folder = Path(log_dir)
    if not folder.is_dir():
        raise SpoolError(f"{folder}: no such log folder")
    spool = folder / "spool" if (folder / "spool").is_dir() else folder
    asked: dict[str, dict[str, Any]] = {}
    early: dict[str, dict[str, Any]] = {}
    for segment in scan(spool):
        for _, line in read(spool / segment.filename):
            if isinstance(line, Bad):
                continue
            try:
                record = orjson.loads(line)
            except ValueError:
                continue
            uid = record.get("uid")
            if record.get("t") == "begin":
                if uid in early:
                    yield _record(record, early.pop(uid))
                else:
                    asked[uid] = record
            elif record.get("t") == "end":
                if uid in asked:
                    yield _record(asked.pop(uid), record)
                else:  # of another process's file: its begin comes later
                    early[uid] = record
    for begin in asked.values():
        yield _record(begin, None)


def _record(begin: dict[str, Any], end: dict[str, Any] | None) -> QueryRecord:
    body = (begin.get("body") or {}).get("json")
    body = body if isinstance(body, dict) else {}
    prompt = body.get("prompt")
    messages = body.get("messages") or (prompt if isinstance(prompt, list) else [] if prompt is None else [prompt])
    out = QueryRecord(
        timestamp=(_EPOCH + timedelta(microseconds=begin["at_us"])).isoformat(timespec="microseconds"),
        request_id=begin["uid"],
        model=begin.get("model"),
        messages=messages,
        parameters={name: value for name, value in body.items() if name not in ("model", "messages", "prompt")},
        metadata=begin.get("metadata") or {},
        error="unfinished",
    )
    if end is not None:
        out.latency_ms = end.get("duration_ms")
        out.error = None if end["outcome"] in ("ok", "cached") else end.get("error_message") or end["outcome"]
        out.response = _response(begin["endpoint"], end.get("summary"))
    return out


def _response(endpoint: str, summary: dict[str, Any] | None) -> dict[str, Any] | None:
    if not summary or not summary.get("choices"):
        return None
    usage = summary.get("usage") or {}
    counted = {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if usage.get(name) is not None}
    if len(counted) == 2:
        counted["total_tokens"] = sum(counted.values())
    return {
        "id": summary.get("response_id"),
        "object": "text_completion" if endpoint == "completions" else "chat.completion",
        "model": summary.get("model"),
        "choices": [_choice(endpoint, choice) for choice in summary["choices"]],
        "usage": counted or None,
    }


def _choice(endpoint: str, choice: dict[str, Any]) -> dict[str, Any]:
    base = {"index": choice["index"], "finish_reason": choice.get("finish_reason")}
    if endpoint == "completions":
        return {**base, "text": choice.get("content") or ""}
    message = {"role": choice.get("role") or "assistant", "content": choice.get("content")}
    message |= {name: choice[name] for name in ("reasoning", "refusal") if choice.get(name)}
    if calls := choice.get("tool_calls"):
        message["tool_calls"] = [
            {"id": c.get("id"), "type": c.get("type"), "function": {"name": c.get("name"), "arguments": c.get("arguments")}}
            for c in calls
        ]
    return {**base, "message": message}
