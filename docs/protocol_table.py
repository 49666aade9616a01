"""The table of `protocols.md`: endpoints from the gateway's own table, the readers from the decoders', and what they read."""

from __future__ import annotations

from llmtap.core.endpoints import ENDPOINTS
from llmtap.wire import decode

JSON, SSE, LINES = "application/json", "text/event-stream", "application/x-ndjson"
TEXT, BYTES = "text/plain", "application/octet-stream"
_TYPES = {JSON: "JSON", SSE: "SSE", LINES: "JSON lines", TEXT: "text", BYTES: "bytes"}
_USAGE = "`usage.prompt_tokens`; never the numbers"
_OPENAI = (
    "per choice: text, `reasoning` or `reasoning_content`, `refusal`, tool calls, `finish_reason`, `stop_reason`; "
    "`usage` with cached and reasoning tokens; `system_fingerprint`, vLLM's `metrics`, llama.cpp's `timings`, "
    "`service_tier`; `token_ids` are counted"
)
_RESPONSES = "text, reasoning, refusal, function, custom and MCP calls as one choice; `status`, `incomplete_details`, "
_MESSAGES = "text, thinking, tool uses as one choice; `stop_reason`; `usage`, to whose `input_tokens` the cached ones "
_OLLAMA = "thinking, `done_reason`, `prompt_eval_count`, `eval_count`, the four durations"
READS = {
    "chat": _OPENAI,
    "chat_batch": "as chat; one choice a conversation",
    "completions": "text (an echoed prompt is part of it) of every choice, index = choice + prompt × n; the rest as chat",
    "responses": _RESPONSES + "`usage`, `metrics`",
    "messages": _MESSAGES + "are added",
    "count_tokens": "`input_tokens`, kept with the exchange, counted nowhere: nothing was computed for it",
    "embeddings": _USAGE + "; Cohere's `meta.billed_units`; of bytes the header `metadata`",
    "pooling": _USAGE + "; of bytes the header `metadata`",
    "classify": _USAGE,
    "score": _USAGE,
    "rerank": _USAGE,
    "tokenize": "`count`, `max_model_len`; counted nowhere",
    "detokenize": "nothing but that it is whole",
    "transcriptions": "text; tokens of a stream's `usage`, seconds of a whole one's; `duration`, `language`",
    "translations": "as transcriptions",
    "ollama_chat": "message text, tool calls; " + _OLLAMA,
    "ollama_generate": "text; " + _OLLAMA,
    "ollama_embed": "`prompt_eval_count`, durations; never the numbers",
    "ollama_embeddings": "nothing but that it is whole: Ollama counts nothing here",
}
#: read message by message (`llmtap.wire.realtime`)
SOCKETS = {"realtime": "transcription, its `usage`, errors; of a session all utterances together"}


def table() -> str:
    """A row for each endpoint name: its paths, the content types that are read, what is read."""
    paths: dict[str, list[str]] = {}
    for path, endpoint in ENDPOINTS.items():
        paths.setdefault(endpoint.name, []).append(path)
    rows = ["| endpoint | paths | read as | what is read |", "|---|---|---|---|"]
    for name, where in paths.items():
        read = [word for kind, word in _TYPES.items() if understood(name, kind)]
        if name in SOCKETS:
            rows.append(f"| `{name}` | `{where[0]}` | websocket | {SOCKETS[name]} |")
            continue
        if bool(read) != (name in READS):
            raise ValueError(f"the decoders and the page disagree about {name}")
        shown = " ".join(f"`{path}`" for path in where)
        rows.append(f"| `{name}` | {shown} | {', '.join(read) or '–'} | {READS.get(name, 'size and times')} |")
    return "\n".join(rows)


def understood(endpoint: str, content_type: str) -> bool:
    """Whether a reply of this type is read."""
    metadata = "{}" if content_type == BYTES else None
    return decode.decoder_for(endpoint, content_type, 200, metadata=metadata).understands
