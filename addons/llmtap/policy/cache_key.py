"""Which requests have the same answer, and which may be answered from what was said before. Pure.

The key is the SHA-256 of the path, whose answers are shared, and the body in canonical form (members sorted) without
`IGNORED`: the few members that do not change what is answered. Everything else counts, known or not, so a new parameter of an
engine can only cause a miss, never a wrong answer.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import orjson

#: members of a body that do not change the answer. `stream` and its options: how it is sent; the rest names who asks
IGNORED = frozenset(("stream", "stream_options", "user", "safety_identifier", "prompt_cache_key", "request_id", "priority"))
#: endpoints whose streamed and whole replies are made from each other: one entry serves both
CONVERTIBLE = frozenset(("chat", "completions"))
#: what is worth keeping. Not /v1/responses, whose replies the server remembers, nor tokenizers, which are quick
CACHEABLE = CONVERTIBLE | frozenset(
    ("messages", "embeddings", "pooling", "classify", "score", "rerank", "ollama_chat", "ollama_generate", "ollama_embed")
)
#: the only members of stream_options that are understood
_STREAM_OPTIONS = frozenset(("include_usage",))


def cache_key(endpoint: str, path: str, obj: dict[str, Any], model: str | None, owner: str) -> bytes | None:
    """32 bytes; None for what has no key (a body that JSON cannot say again, options of streaming that only the engine knows).

    `model`: as the backend is asked for it; `owner`: whose answers these are ("" for everybody's); `path` with its query.
    """
    options = obj.get("stream_options")
    if options is not None and not (type(options) is dict and _STREAM_OPTIONS.issuperset(options)):
        return None
    kept = {name: value for name, value in obj.items() if name not in IGNORED and name != "model"}
    how = None if endpoint in CONVERTIBLE else obj.get("stream")
    try:
        text = orjson.dumps([path, owner, model, how, kept], option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers beyond 64 bits, halves of surrogate pairs
        return None
    return sha256(text).digest()


def deterministic(endpoint: str, generates: bool, obj: dict[str, Any]) -> bool:
    """Whether the same request gets the same answer: nothing is sampled (temperature 0), or from a given seed."""
    if not generates and endpoint not in ("ollama_chat", "ollama_generate"):
        return True
    options = obj.get("options") if endpoint.startswith("ollama_") else obj
    if type(options) is not dict:
        return False
    temperature, seed = options.get("temperature"), options.get("seed")
    return (type(temperature) in (int, float) and temperature == 0) or type(seed) is int
