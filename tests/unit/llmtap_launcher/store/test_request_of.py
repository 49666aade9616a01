"""A stored request comes back: chat and completions as sent, other APIs as the chat that says the same."""

from __future__ import annotations

import sqlite3
from typing import Any

import orjson
import pytest

from llmtap.core.record import encode
from llmtap.spool.segment import Segment
from llmtap_launcher.store.ingest import Ingester, Item
from llmtap_launcher.store.request_of import messages_at, replay_path, request_of
from support.records import begin

PNG = "data:image/png;base64," + "iVBORw0K" * 200


def there_and_back(
    conn: sqlite3.Connection, body: dict[str, Any], endpoint: str = "chat", path: str = "/v1/chat/completions"
) -> Any:
    record = begin("u", orjson.dumps(body), endpoint=endpoint, path=path, model=body.get("model"))
    conn.execute("BEGIN")
    assert Ingester(conn).apply([Item(Segment("w0", "b", 1), 0, encode(record))]).poison == []
    conn.execute("COMMIT")
    return request_of(conn, "u")


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def test_a_chat(conn: sqlite3.Connection) -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PNG}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "user", "content": "attachment:00000000000000000000000000000000:data:image/png;base64,"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "temperature": 0.3,
        "stream": True,
        "extra_of_vllm": {"x": [1]},
    }
    assert there_and_back(conn, body) == body


@pytest.mark.parametrize("prompt", ["Once upon", [1, 2, 3], ["a", "b"], [[1], [2, 3]]])
def test_a_completion(conn: sqlite3.Connection, prompt: Any) -> None:
    body = {"model": "m", "prompt": prompt, "max_tokens": 5}
    assert there_and_back(conn, body, "completions", "/v1/completions") == body


def test_other_apis_become_a_chat(conn: sqlite3.Connection) -> None:
    body = {"model": "m", "instructions": "be brief", "input": "hello", "max_output_tokens": 9, "store": True, "temperature": 0}
    assert there_and_back(conn, body, "responses", "/v1/responses") == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_completion_tokens": 9,
        "temperature": 0,
    }


def test_what_is_not_there(conn: sqlite3.Connection) -> None:
    assert request_of(conn, "nobody") is None
    assert there_and_back(conn, {"model": "m", "input": "x"}, "embeddings", "/v1/embeddings") is None
    assert messages_at(conn, None) == messages_at(conn, b"nothing") == []


def test_where_to_send_it() -> None:
    assert replay_path({"endpoint": "completions"}) == "/v1/completions"
    assert replay_path({"endpoint": "messages"}) == replay_path({"endpoint": None}) == "/v1/chat/completions"
