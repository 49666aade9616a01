"""What the tables and columns of the capture database mean: the words of `docs/schema.md`. Their SQL is in `migrations.py`."""

from __future__ import annotations

#: table or view: what a row of it is
TABLES: dict[str, str] = {
    "requests": "The narrow view to land on: one row an exchange, prompt and reply cut to 200 characters.",
    "exchanges": "One row for every request that was captured, whatever came of it.",
    "messages": "One row for every message of every conversation, once, pointing to the one before it. A request resends "
    "its whole history, so an exchange names only its last message: walk `parent_id` back from `input_tip`.",
    "bodies": "What the messages say; the same words under different histories are one row. Tool definitions too (role `tools`).",
    "bodies_fts": "Full text search over `bodies.text` (SQLite FTS5): "
    "`SELECT rowid FROM bodies_fts WHERE bodies_fts MATCH 'words'` gives ids of `bodies`.",
    "token_timings": "When the pieces of a streamed reply came.",
    "websocket_messages": "What was said over a websocket (`/v1/realtime`): the first 512 KiB of each direction.",
    "segments": "The files of the spool and how far they are in the database.",
}

_EXCHANGE = {
    "id": "Number, in the order of storing.",
    "uid": "Identity minted by the gateway: a ULID, and the reply's `x-request-id` unless the client gave one.",
    "started_at": "When the request arrived: ISO 8601, UTC, milliseconds.",
    "started_us": "The same in microseconds since the epoch.",
    "worker": "Which gateway worker captured it.",
    "key_name": "Name of the API key (never the key).",
    "client_ip": "Address of the client.",
    "user_agent": "Its `user-agent` header.",
    "session_hint": "Its `x-session-id` header.",
    "tags": "JSON array: the `x-llmtap-tags` header.",
    "metadata_json": "JSON object: the `x-llmtap-metadata` header.",
    "method": "HTTP method.",
    "path": "Path, without its query.",
    "endpoint": "Short name of the endpoint: chat, completions, messages, responses, embeddings … other.",
    "model_requested": "Model the client named.",
    "model_response": "Model the reply names.",
    "backend": "Name of the backend that answered.",
    "attempts": "Backends tried.",
    "stream": "1: the client asked for a stream.",
    "cache": "hit, miss, shared or bypass.",
    "status": "HTTP status the client got.",
    "outcome": "open (no end yet), ok, cached, client_abort, upstream_error, timeout, rejected, "
    "or lost (the gateway died before the end).",
    "error_type": "Class of the error, as the answer names it.",
    "error_message": "Its text.",
    "finish_reason": "Why the first choice ended: stop, length, tool_calls …",
    "response_id": "The reply's own `id`.",
    "temperature": "Sampling parameter of the request.",
    "top_p": "Sampling parameter of the request.",
    "max_tokens": "Limit asked for, under whichever name (`max_completion_tokens`, `max_output_tokens`, `num_predict`).",
    "seed": "Sampling parameter of the request.",
    "n": "Choices asked for.",
    "prompt_tokens": "Tokens of the prompt.",
    "completion_tokens": "Tokens of the reply.",
    "cached_tokens": "Tokens of the prompt that came from the backend's prefix cache.",
    "reasoning_tokens": "Tokens of the reply that were reasoning.",
    "usage_source": "Who counted: upstream, estimated or none.",
    "queue_ms": "Time in the gateway's queue.",
    "ttft_ms": "Time to first token, from the request's arrival.",
    "duration_ms": "From the request's arrival to the reply's last byte.",
    "overhead_ms": "What the gateway itself added.",
    "itl_p50_ms": "Median gap between pieces of the stream (inter-token latency).",
    "itl_p95_ms": "95th percentile of the gaps (nearest rank).",
    "itl_max_ms": "Longest gap.",
    "tokens_per_second": "Streams: tokens after the first over the time after the first. Others: tokens over the whole duration.",
    "chunks": "Pieces the reply came in.",
    "request_bytes": "Size of the request's body.",
    "response_bytes": "Size of the reply's body.",
    "cost_nanousd": "Cost in billionths of a dollar.",
    "price_id": "The price row the cost was computed with.",
    "n_messages": "Messages in the request.",
    "conversation_id": "The conversation it belongs to.",
    "input_tip": "Hash of the last message asked (`messages.hash`). NULL: no messages, or they were dropped.",
    "output_tip": "Hash of the reply (first choice), a child of `input_tip`.",
    "tools_hash": "Hash of the tool definitions (`bodies.hash`).",
    "params_json": "The request without its messages and tools. Requests without a known shape: `body`, up to 64 KiB.",
    "response_meta_json": "Extras of the reply: `output_tips` (all choices, when several), `reasoning` (when the stored message "
    "shows another), `body` (unknown endpoints and unreadable errors, up to 64 KiB), `body_dropped`, `messages_dropped` (of a "
    "websocket, beyond those that are kept), and what the backend adds (timings, fingerprint).",
    "request_id": "The client's own `x-request-id`.",
    "boot": "Worker and start of it whose spool it was in; only used to tell lost exchanges.",
}

#: table: {column: meaning}; a view's columns mean what the table's do unless they are named here
COLUMNS: dict[str, dict[str, str]] = {
    "exchanges": _EXCHANGE,
    "requests": {
        **_EXCHANGE,
        "model": "Model the reply names, else the one the client named.",
        "prompt": "What the user said last, its first 200 characters.",
        "reply": "What the model said, its first 200 characters; → and the names when it only called tools.",
    },
    "messages": {
        "id": "Number.",
        "hash": "blake2b (16 bytes) of the parent's hash and the body's: names a message together with its whole history.",
        "parent_id": "The message before; NULL for the first.",
        "depth": "Messages before it.",
        "body_id": "What it says.",
    },
    "bodies": {
        "id": "Number.",
        "hash": "blake2b (16 bytes) of the canonical `{role, content, name, tool_calls, tool_call_id}` without its empty fields.",
        "role": "system, developer, user, assistant, tool … or tools (definitions).",
        "text": "What is said, as text. Images and the like are in `json` only.",
        "json": "The whole message in OpenAI's shape, when it is more than role and text. Reasoning is here, outside the hash.",
        "bytes": "Size of text and JSON.",
    },
    "bodies_fts": {"text": "The indexed text."},
    "token_timings": {
        "exchange_id": "The exchange.",
        "deltas": "JSON array of integers, 0.1 ms: gaps between pieces, the first from the request's arrival. "
        "`SELECT value / 10.0 FROM token_timings, json_each(deltas) WHERE exchange_id = 1`.",
    },
    "websocket_messages": {
        "exchange_id": "The exchange.",
        "n": "Its place in the session, from 0.",
        "at_ms": "When, from the request's arrival.",
        "from_client": "1: the client said it. 0: the backend.",
        "content": "Text, or the bytes of a binary message; of long ones the first 16 KiB.",
        "bytes": "Its whole size.",
    },
    "segments": {
        "name": "File name.",
        "worker": "Which gateway worker wrote it.",
        "ingested_to": "Bytes that are in the database.",
        "records": "Records read.",
        "bad": "Lines that could not be stored; they are in `quarantine.jsonl`.",
        "finished_at": "When it was all in and its file could go. NULL: more may come.",
    },
}
