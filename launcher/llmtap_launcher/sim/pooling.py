"""What a pooling model answers: embeddings, pooling, scores, reranking, classification, as vLLM writes them.

The numbers mean nothing, but the same text always gets the same ones, on any machine.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import time
import uuid
from collections.abc import Sequence
from typing import Any, cast

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from . import generate, template
from .bodies import Json
from .errors import VllmError
from .front import received
from .requests import Message, parse
from .simulation import Simulation
from .text import rng

DIMENSIONS = 64
_LABELS = ("LABEL_0", "LABEL_1")

Item = tuple[str, int]  # a text and its tokens


class PoolingRequest(BaseModel):
    """Bodies of `/v1/embeddings`, `/pooling` and `/classify`."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]] | None = None
    messages: list[Message] | None = None
    encoding_format: str = "float"
    dimensions: int | None = None


class CohereRequest(BaseModel):
    """Body of `/v2/embed`."""

    model: str | None = None
    texts: list[str]


class ScoreRequest(BaseModel):
    """Bodies of `/score` and `/rerank`: what is compared goes by different names."""

    model: str | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    query: str | None = None
    top_n: int = 0


def vector(sim: Simulation, text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The unit vector of a text."""
    random = rng("embedding", sim.settings.seed, text)
    values = [random.gauss(0, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values))
    # 32 bits, as a model's: the same numbers whatever they are sent as
    return [struct.unpack("f", struct.pack("f", value / length))[0] for value in values]


async def embeddings(sim: Simulation, request: Request) -> Response:
    """`POST /v1/embeddings`. Raises VllmError."""
    body, model, items = _read(sim, request)
    size = body.dimensions or DIMENSIONS
    vectors = [vector(sim, text, size) for text, _ in items]
    if body.encoding_format in ("bytes", "bytes_only"):
        return _bytes(model, vectors, items, told=body.encoding_format == "bytes")
    if body.encoding_format == "base64":
        shown: list[Any] = [base64.b64encode(struct.pack(f"<{size}f", *v)).decode() for v in vectors]
    else:
        shown = list(vectors)
    data = [{"index": n, "object": "embedding", "embedding": value} for n, value in enumerate(shown)]
    return _list("embd", model, data, items)


async def embed(sim: Simulation, request: Request) -> Response:
    """`POST /v2/embed`, Cohere's. Raises VllmError."""
    body = parse(CohereRequest, request.headers.get("content-type", ""), received(request.scope).body)
    generate.check_model(sim, body.model)
    count = sum(tokens for _, tokens in _items(sim, body.texts))
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": count, "image_tokens": None}}
    vectors = {"float": [vector(sim, text) for text in body.texts], "binary": None, "ubinary": None, "base64": None}
    answer = {"id": f"embd-{_hex()}", "embeddings": vectors, "texts": body.texts, "meta": meta}
    return _json({**answer, "response_type": "embeddings_by_type"})


async def pooling(sim: Simulation, request: Request) -> Response:
    """`POST /pooling`. Raises VllmError."""
    _, model, items = _read(sim, request)
    data = [{"index": n, "object": "pooling", "data": vector(sim, text)} for n, (text, _) in enumerate(items)]
    return _list("pooling", model, data, items)


async def classify(sim: Simulation, request: Request) -> Response:
    """`POST /classify`. Raises VllmError."""
    _, model, items = _read(sim, request)
    data = []
    for index, (text, _) in enumerate(items):
        first = rng("class", sim.settings.seed, text).random()
        probs = [first, 1 - first]
        label = _LABELS[probs.index(max(probs))]
        data.append({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})
    return _list("classify", model, data, items)


async def score(sim: Simulation, request: Request) -> Response:
    """`POST /score`. Raises VllmError."""
    body = parse(ScoreRequest, request.headers.get("content-type", ""), received(request.scope).body)
    model = generate.check_model(sim, body.model)
    first = _texts(body.text_1 if body.text_1 is not None else body.queries, "text_1")
    second = _texts(body.text_2 if body.text_2 is not None else body.documents, "text_2")
    if len(first) not in (1, len(second)):
        raise VllmError("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))
    data = [{"index": n, "object": "score", "score": _likeness(sim, *pair)} for n, pair in enumerate(pairs)]
    return _list("score", model, data, [item for pair in pairs for item in _items(sim, pair)])


async def rerank(sim: Simulation, request: Request) -> Response:
    """`POST /rerank`. Raises VllmError."""
    body = parse(ScoreRequest, request.headers.get("content-type", ""), received(request.scope).body)
    model = generate.check_model(sim, body.model)
    query, documents = body.query or "", _texts(body.documents, "documents")
    ranked = sorted(((_likeness(sim, query, text), -n) for n, text in enumerate(documents)), reverse=True)
    results = [
        {"index": -n, "document": {"text": documents[-n], "multi_modal": None}, "relevance_score": value} for value, n in ranked
    ]
    count = sum(tokens for text in documents for _, tokens in _items(sim, (query, text)))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return _json({"id": f"score-{_hex()}", "model": model, "usage": usage, "results": results[: body.top_n or None]})


def _read(sim: Simulation, request: Request) -> tuple[PoolingRequest, str, list[Item]]:
    body = parse(PoolingRequest, request.headers.get("content-type", ""), received(request.scope).body)
    model = generate.check_model(sim, body.model)
    if body.messages is not None:
        return body, model, _items(sim, [template.render(body.messages)])
    given = body.input
    if given is None or given == []:
        raise VllmError("You must pass at least one prompt")
    if isinstance(given, str) or isinstance(given[0], int):
        return body, model, [_item(sim, given)]
    return body, model, [_item(sim, one) for one in cast("list[str | list[int]]", given)]


def _item(sim: Simulation, given: str | list[int]) -> Item:
    if isinstance(given, str):
        return given, len(sim.tokenizer.encode(given))
    return sim.tokenizer.decode(given), len(given)


def _items(sim: Simulation, texts: Sequence[str]) -> list[Item]:
    return [_item(sim, text) for text in texts]


def _texts(given: str | list[str] | None, name: str) -> list[str]:
    if not given:
        raise VllmError(f"At least one text in `{name}` must be given")
    return [given] if isinstance(given, str) else given


def _likeness(sim: Simulation, one: str, other: str) -> float:
    return sum(a * b for a, b in zip(vector(sim, one), vector(sim, other), strict=True))


def _usage(items: Sequence[Item]) -> Json:
    count = sum(tokens for _, tokens in items)
    usage: Json = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    return usage | {"prompt_tokens_details": None, "completion_tokens_details": None}


def _list(prefix: str, model: str, data: list[Json], items: Sequence[Item]) -> Response:
    head = {"id": f"{prefix}-{_hex()}", "object": "list", "created": int(time.time()), "model": model}
    return _json({**head, "data": data, "usage": _usage(items)})


def _bytes(model: str, vectors: Sequence[Sequence[float]], items: Sequence[Item], *, told: bool) -> Response:
    """Floats one after the other; `told`: what they are stands in the header `metadata`."""
    size = len(vectors[0])
    body = b"".join(struct.pack(f"={size}f", *values) for values in vectors)
    headers = {}
    if told:
        about = {"embed_dtype": "float32", "endianness": "native"}
        data = [
            {"index": n, **about, "start": n * size * 4, "end": (n + 1) * size * 4, "shape": [size]} for n in range(len(vectors))
        ]
        count = _usage(items)["prompt_tokens"]
        metadata = {"id": f"embd-{_hex()}", "created": int(time.time()), "model": model, "data": data}
        headers["metadata"] = json.dumps({**metadata, "usage": {"prompt_tokens": count, "total_tokens": count}})
    return Response(body, media_type="application/octet-stream", headers=headers)


def _json(data: Json) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")


def _hex() -> str:
    return uuid.uuid4().hex[:16]
