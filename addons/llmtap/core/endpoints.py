"""The inference routes of vLLM and Ollama: one table of path, short endpoint name and how a request to it is handled.

The table is the built-in allowlist: what is not in it (vLLM's control routes above all) is refused unless the
configuration's `routing.allow_paths` names it. So are Ollama's routes that change which models it has (pull, push, create,
copy, delete, blobs). Source of the routes: vLLM 0.33's own sources and a running server; Ollama's API of August 2026.
Endpoint names are short and fixed, because they label metrics and fill `exchanges.endpoint`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

Family = Literal["openai", "anthropic", "ollama"]
Serves = Literal["any", "openai", "ollama"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference route. `generates`: its reply is model output with prompt and completion tokens. `kind`: which backends
    have it."""

    name: str
    methods: tuple[str, ...] = ("POST",)
    family: Family = "openai"
    generates: bool = False
    json_body: bool = True  # False: multipart or none
    form: bool = False  # multipart/form-data, the model one of its fields
    kind: Serves = "openai"


_E = Endpoint
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": _E("chat", generates=True, kind="any"),
    "/v1/chat/completions/batch": _E("chat_batch"),
    "/v1/completions": _E("completions", generates=True, kind="any"),
    "/v1/responses": _E("responses", generates=True, kind="any"),
    "/v1/messages": _E("messages", family="anthropic", generates=True, kind="any"),
    "/v1/messages/count_tokens": _E("count_tokens", family="anthropic"),
    "/v1/embeddings": _E("embeddings", kind="any"),
    "/v2/embed": _E("embeddings"),
    "/pooling": _E("pooling"),
    "/classify": _E("classify"),
    "/score": _E("score"),
    "/v1/score": _E("score"),
    "/rerank": _E("rerank"),
    "/v1/rerank": _E("rerank"),
    "/v2/rerank": _E("rerank"),
    "/v1/audio/transcriptions": _E("transcriptions", json_body=False, form=True),
    "/v1/audio/translations": _E("translations", json_body=False, form=True),
    "/tokenize": _E("tokenize"),
    "/detokenize": _E("detokenize"),
    "/tokenizer_info": _E("tokenizer_info", methods=("GET",), json_body=False),
    "/v1/realtime": _E("realtime", methods=("GET",), json_body=False),  # a websocket
    "/v1/models": _E("models", methods=("GET",), json_body=False, kind="any"),
    "/version": _E("version", methods=("GET",), json_body=False),
    "/api/chat": _E("ollama_chat", family="ollama", generates=True, kind="ollama"),
    "/api/generate": _E("ollama_generate", family="ollama", generates=True, kind="ollama"),
    "/api/embed": _E("ollama_embed", family="ollama", kind="ollama"),
    "/api/embeddings": _E("ollama_embeddings", family="ollama", kind="ollama"),
    "/api/show": _E("ollama_show", family="ollama", kind="ollama"),
    "/api/tags": _E("ollama_tags", ("GET",), "ollama", json_body=False, kind="ollama"),
    "/api/ps": _E("ollama_ps", ("GET",), "ollama", json_body=False, kind="ollama"),
    "/api/version": _E("ollama_version", ("GET",), "ollama", json_body=False, kind="ollama"),
}

#: `GET /v1/responses/{id}`, `POST /v1/responses/{id}/cancel`, `GET /v1/models/{name}` (names may contain slashes)
_PATTERNS: tuple[tuple[re.Pattern[str], Endpoint], ...] = (
    (
        re.compile(r"/v1/responses/[A-Za-z0-9_.-]+(/cancel)?"),
        _E("responses_by_id", methods=("GET", "POST"), json_body=False, kind="any"),
    ),
    (
        re.compile(r"/v1/models/[A-Za-z0-9_.:@-]+(/[A-Za-z0-9_.:@-]+)*"),
        _E("models", methods=("GET",), json_body=False, kind="any"),
    ),
)

OTHER = _E("other", methods=("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"), json_body=False)
#: what may be asked of a server directly (`/proxy/<port>/...`), beside inference: it tells and changes nothing
TELLING: frozenset[str] = frozenset({"/health", "/ping", "/load", "/metrics"})
NAMES: frozenset[str] = frozenset(e.name for e in ENDPOINTS.values()) | {e.name for _, e in _PATTERNS} | {OTHER.name}

#: paths that change a server or show its inside: vLLM's (0.32 and 0.33, with every flag) and Ollama's model management
_CONTROL = re.compile(
    r"(/v\d+)?/("
    r"(un)?load_lora_adapter|sleep|wake_up|is_sleeping|release_kv_cache_memory|server_info|reset_\w+_cache|collective_rpc|pause|resume"
    r"|is_paused|abort_requests|\w*weight\w*|get_world_size|\w+_profile|fault_tolerance|(is_)?scal\w+_elastic_ep|inference|invocations"
    r"|api/(pull|push|create|copy|delete|blobs)|docs|redoc|openapi\.json"
    r")(/.*)?"
)
_DIRECT = re.compile(r"/proxy/([1-9][0-9]{0,4})(/.*)")


def is_control(path: str) -> bool:
    """Whether a canonical path is one of a server's control routes, in any case and with or without a slash at its end."""
    return _CONTROL.fullmatch(path.lower().rstrip("/")) is not None


def direct(path: str) -> tuple[int, str] | None:
    """The port and the rest of a canonical `/proxy/<port>/<rest>`, else None."""
    found = _DIRECT.fullmatch(path) if path.startswith("/proxy/") else None
    if found is None or int(found[1]) > 65535:
        return None
    return int(found[1]), found[2]


def canonical_path(target: str) -> str | None:
    """The one spelling of a request target's path: query cut off, percent-decoded once.

    None for a target that no honest client sends and that a backend might read differently than we do: not
    origin-form, `//`, `.` or `..` segments, backslashes, control characters, a second layer of encoding, invalid UTF-8.
    """
    if target in ENDPOINTS:  # nearly always: nothing to cut off or decode
        return target
    raw = target.partition("?")[0]
    if not raw.startswith("/") or "#" in raw:
        return None
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "%" in path or "\\" in path or "?" in path or "#" in path or ";" in path or "//" in path:
        return None
    if any(ord(c) < 0x21 or ord(c) == 0x7F for c in path):
        return None
    if any(segment in (".", "..") for segment in path.split("/")):
        return None
    return path


def endpoint_of(path: str) -> Endpoint | None:
    """The inference route at a canonical path, or None (refused unless the configuration allows it)."""
    found = ENDPOINTS.get(path)
    if found is not None:
        return found
    for pattern, endpoint in _PATTERNS:
        if pattern.fullmatch(path):
            return endpoint
    return None
