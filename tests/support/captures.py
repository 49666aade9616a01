"""A capture folder filled the way a gateway fills it: records, spool, writer, database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import orjson
from ulid import ULID

from llmtap.core.record import Begin, Choice, End, Outcome, Summary, ToolCall, Usage, encode
from llmtap.spool.writer import SegmentWriter
from llmtap_launcher.store.options import Options
from llmtap_launcher.store.writer import Writer

START_US = 1_763_717_400_000_000  # 2025-11-21 09:30:00 UTC

WEATHER_CALLS = [
    ToolCall(0, "call_paris", name="get_weather", arguments='{"city":"Paris","unit":"celsius"}'),
    ToolCall(1, "call_tokyo", name="get_weather", arguments='{"city":"Tokyo","unit":"celsius"}'),
]
WEATHER_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


class Captures:
    """`exchange` writes both records of one, `store` brings all written so far into the database."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.folder = folder
        self.db = folder / "capture.db"
        self._spool = SegmentWriter(folder / "spool", "w1", "boot", 1_000_000_000)
        self._writer = Writer(folder, options=options)
        self._at_us = START_US
        self.written = 0  # exchanges begun
        self.store()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        self._writer.close()

    def begin(
        self, messages: Sequence[dict[str, Any]], *, uid: str | None = None, at_us: int | None = None, **fields: Any
    ) -> str:
        """The `begin` record alone: an exchange under way. Fields of the record go there, all others into the body."""
        record_fields = {k: fields.pop(k) for k in list(fields) if k in Begin.__dataclass_fields__}
        uid = uid or str(ULID())
        self._at_us = at_us or self._at_us + 7_000_000
        body = orjson.dumps({"model": "qwen3-8b", "messages": list(messages), "stream": True, **fields})
        self.write(
            encode(
                Begin(
                    **{
                        "uid": uid,
                        "at_us": self._at_us,
                        "worker": "w1",
                        "method": "POST",
                        "path": "/v1/chat/completions",
                        "endpoint": "chat",
                        "model": fields.get("model", "qwen3-8b"),
                        "stream": True,
                        "client_ip": "127.0.0.1",
                        "user_agent": "OpenAI/Python 2.8.1",
                        "request_bytes": len(body),
                        "body": body,
                        "body_is_json": True,
                        **record_fields,
                    }
                )
            )
        )
        return uid

    def end(self, uid: str, choices: Sequence[Choice] = (), *, outcome: Outcome = "ok", **fields: Any) -> None:
        """The `end` record. `usage` is (prompt, completion)."""
        prompt, completion = fields.pop("usage", (None, None))
        summary = Summary(
            response_id="chatcmpl-1",
            model=fields.pop("served", "Qwen/Qwen3-8B"),
            choices=list(choices),
            usage=Usage(prompt, completion, source="none" if prompt is None else "upstream"),
            complete=outcome == "ok",
        )
        values: dict[str, Any] = {
            "status": 200,
            "backend": "a",
            "attempts": 1,
            "content_type": "text/event-stream",
            "summary": summary,
            "queue_ms": 0.1,
            "duration_ms": 1312.7,
            "overhead_ms": 0.31,
            **fields,
        }
        took_us = int((values["duration_ms"] or 0) * 1000)
        self.write(encode(End(uid=uid, at_us=self._at_us + took_us, outcome=outcome, **values)))

    def exchange(
        self,
        messages: Sequence[dict[str, Any]],
        reply: str | Choice | Sequence[Choice] | None = None,
        *,
        asked: dict[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """Both records; returns the uid. `asked` are fields of `begin`, the others of `end`."""
        uid = self.begin(messages, **(asked or {}))
        if isinstance(reply, str):
            reply = Choice(0, content=reply, finish_reason="stop")
        choices = [] if reply is None else [reply] if isinstance(reply, Choice) else reply
        self.end(uid, choices, **fields)
        return uid

    def write(self, record: bytes) -> None:
        """A record of any kind, encoded."""
        self.written += b'"t":"begin"' in record[:40]
        self._spool.append(record)

    def store(self) -> None:
        self._writer.run_pass()


def weather(captures: Captures) -> list[str]:
    """A conversation of three exchanges, with tool calls and reasoning, the last one broken off by its client; their uids."""
    deltas = [1842] + [278 + 13 * (i % 7) - 31 * (i % 3) for i in range(120)]
    deltas[40], deltas[77] = 2100, 1500
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a weather assistant. Be brief."},
        {"role": "user", "content": "What is the weather in Paris and in Tokyo? Should I take an umbrella?"},
    ]
    asked = {"key_name": "production", "temperature": 0.7, "max_tokens": 512, "tools": [WEATHER_TOOL]}
    calls = Choice(
        0, reasoning="Two cities, so the tool is called twice.", tool_calls=list(WEATHER_CALLS), finish_reason="tool_calls"
    )
    first = captures.exchange(said, calls, asked={**asked, "request_id": "trip-1"}, usage=(142, 41), ttft_ms=201.4)
    said += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in WEATHER_CALLS
            ],
        },
        {"role": "tool", "tool_call_id": "call_paris", "content": '{"temperature": 7, "sky": "rain"}'},
        {"role": "tool", "tool_call_id": "call_tokyo", "content": '{"temperature": 16, "sky": "clear"}'},
    ]
    answer = (
        "Paris: 7 °C and rain, so take an umbrella. Tokyo: 16 °C and clear, sunglasses will do.\n\n"
        "```python\npack = {'Paris': 'umbrella', 'Tokyo': 'sunglasses'}\n```\n\nHave a good trip!"
    )
    second = captures.exchange(
        said,
        answer,
        asked=asked,
        usage=(211, 121),
        ttft_ms=184.2,
        duration_ms=3912.5,
        chunks=121,
        deltas=deltas,
        response_bytes=28_400,
    )
    said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And in Oslo?"}]
    third = captures.exchange(
        said, Choice(0, content="Oslo: 2 °C, sn"), asked=asked, outcome="client_abort", ttft_ms=190.0, duration_ms=512.0
    )
    captures.store()
    return [first, second, third]
