"""A stored exchange as a request again: for a replay, for a batch, to be looked at.

Chat and text completions come back as they were sent (key order and white space apart). What came through another API is
stored in OpenAI's shape, so it comes back as a chat request of the same messages.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import orjson

from llmtap_launcher.store.attachments import restore
from llmtap_launcher.store.canonical import message_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

_CHAIN = """
WITH RECURSIVE up(parent_id, depth, body_id) AS (
  SELECT parent_id, depth, body_id FROM messages WHERE hash = ?
  UNION ALL
  SELECT m.parent_id, m.depth, m.body_id FROM messages m JOIN up ON m.id = up.parent_id
)
SELECT b.id, b.role, b.text, b.json FROM up JOIN bodies b ON b.id = up.body_id ORDER BY up.depth
"""
#: parameters of other APIs that chat completions know under another name, or not at all
_RENAMED = {"max_output_tokens": "max_completion_tokens", "stop_sequences": "stop", "num_predict": "max_tokens"}
_FOREIGN = frozenset("previous_response_id store truncation include text options keep_alive raw thinking system".split())


def replay_path(row: Mapping[str, Any]) -> str:
    """Where the body of `request_of` is to be sent."""
    return COMPLETIONS if row["endpoint"] == "completions" else CHAT


def messages_at(conn: sqlite3.Connection, tip: bytes | None) -> list[dict[str, Any]]:
    """The messages up to `tip`, in OpenAI's shape, attachments put back. Empty when they are not stored (any more)."""
    if tip is None:
        return []
    out = []
    for body_id, role, text, json in conn.execute(_CHAIN, (tip,)):

        def load(hashed: bytes, body_id: int = body_id) -> bytes | None:
            # only what this very message had: a text may say anything, also what looks like a reference
            found = conn.execute(
                "SELECT a.content FROM attachments a JOIN body_attachments b ON b.hash = a.hash WHERE b.body_id = ? "
                "AND a.hash = ?",
                (body_id, hashed),
            ).fetchone()
            return None if found is None else bytes(found[0])

        message: dict[str, Any] = restore(message_of(role, text, json), load)
        message.pop("reasoning", None)
        out.append(message)
    return out


def request_of(conn: sqlite3.Connection, uid: str) -> dict[str, Any] | None:
    """The request's body; None when there is no such exchange, or its messages are not stored."""
    cursor = conn.execute(
        "SELECT endpoint, model_requested, input_tip, tools_hash, params_json FROM exchanges WHERE uid = ?", (uid,)
    )
    row = cursor.fetchone()
    if row is None:
        return None
    endpoint, model, tip, tools_hash, raw = tuple(row)
    messages = messages_at(conn, tip)
    if not messages:
        return None
    params = orjson.loads(raw) if raw else {}
    params.setdefault("model", model)
    if endpoint == "completions":
        return {**params, "prompt": _prompt(messages[0]["content"])}
    if endpoint != "chat":
        params = {_RENAMED.get(key, key): value for key, value in params.items() if key not in _FOREIGN}
    body = {**params, "messages": messages}
    tools = conn.execute("SELECT json FROM bodies WHERE hash = ?", (tools_hash,)).fetchone()
    if tools is not None:
        body["tools"] = orjson.loads(tools[0])
    return body


def _prompt(content: Any) -> Any:
    """The `prompt` that was stored as the content of a message: text, token ids, or a list of either."""
    if not isinstance(content, list):
        return content
    prompts = [part.get("text") if part.get("type") == "text" else part.get("token_ids") for part in content]
    return prompts[0] if len(prompts) == 1 else prompts
