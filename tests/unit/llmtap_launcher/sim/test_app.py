"""The routes that do not generate, with their recordings, and the simulation's own control."""

from __future__ import annotations

import json

import pytest

from support import recordings
from support.asgi_sim import SimApp
from support.shape import shape


@pytest.mark.parametrize(
    "name",
    [
        "err_404_path", "err_405_method", "err_no_content_type", "embeddings_unsupported", "inference_generate_disabled",
        "health", "ping", "load", "version",
    ],
)  # fmt: skip
async def test_the_same_bytes(name: str) -> None:
    recorded = recordings.load(f"vllm-0.33.0/{name}")
    method = recorded.request_line.split(" ")[0]
    sent = {k: v for k, v in recorded.request_headers.items() if k == "content-type"}
    reply = await SimApp(request_id_headers=True, runner="generate").request(method, recorded.path, recorded.request_body, sent)
    assert (reply.status, reply.body) == (recorded.status, recorded.body)
    theirs = [(k, v) for k, v in recorded.headers.items() if k not in ("date", "server", "connection", "x-request-id")]
    assert [(k, v) for k, v in reply.headers if k != "x-request-id"] == theirs


@pytest.mark.parametrize("name", ["tokenize", "tokenize_chat", "detokenize", "metrics"])
async def test_the_same_form(name: str) -> None:
    recorded = recordings.load(f"vllm-0.33.0/{name}")
    reply = await SimApp().request(recorded.request_line.split(" ")[0], recorded.path, recorded.request_body or None)
    assert reply.status == 200
    assert dict(reply.headers)["content-type"] == recorded.content_type
    if recorded.content_type == "application/json":
        assert shape(reply.json()) == shape(json.loads(recorded.body))


async def test_models() -> None:
    """The shape a running vLLM 0.32 gave."""
    reply = (await SimApp(models=("a", "b")).request("GET", "/v1/models")).json()
    assert [card["id"] for card in reply["data"]] == ["a", "b"]
    assert shape(reply) == (
        "{object:str,data:[{id:str,object:str,created:int,owned_by:str,root:str,parent:null,max_model_len:int,permission:["
        "{id:str,object:str,created:int,allow_create_engine:bool,allow_sampling:bool,allow_logprobs:bool,"
        "allow_search_indices:bool,allow_view:bool,allow_fine_tuning:bool,organization:str,group:null,is_blocking:bool}]}]}"
    )


@pytest.mark.parametrize("path", ["/is_sleeping", "/sleep", "/docs/x", "/v1/models/tiny", "/v1/responses/resp_1"])
async def test_what_is_not_there(path: str) -> None:
    reply = await SimApp().request("GET", path)
    assert (reply.status, reply.json()) == (404, {"detail": "Not Found"})


async def test_head_is_not_get() -> None:
    reply = await SimApp().request("HEAD", "/health")
    assert (reply.status, dict(reply.headers)["allow"]) == (405, "GET")


async def test_tokenize_and_back() -> None:
    app = SimApp()
    there = (await app.request("POST", "/tokenize", {"prompt": "Grüße aus 東京", "return_token_strs": True})).json()
    assert there["count"] == len(there["tokens"]) == len(there["token_strs"])
    back = (await app.request("POST", "/detokenize", {"tokens": there["tokens"]})).json()
    assert back == {"prompt": "Grüße aus 東京"}


async def test_tokenize_refuses_what_vllm_refuses() -> None:
    app = SimApp()
    assert (await app.request("POST", "/tokenize", {"prompt": "x", "model": "nope"})).status == 404
    assert (await app.request("POST", "/tokenize", {"prompt": "x " * 5000})).json()["error"]["param"] == "input_tokens"


async def test_fail_and_state() -> None:
    app = SimApp()
    state = await app.request("POST", "/sim/fail", {"kind": "die_mid_stream=7", "times": 2})
    assert state.json()["faults"] == [{"kind": "die_mid_stream", "arg": 7.0, "times": 2, "probability": 1.0, "path": None}]
    await app.request("POST", "/sim/fail", {"kind": "http_503", "times": 1, "path": "/health"})
    assert (await app.request("GET", "/health")).status == 503
    assert (await app.request("GET", "/health")).status == 200
    assert len((await app.request("GET", "/sim/state")).json()["faults"]) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"kind": "nope"}', b'{"kind": "stall", "times": "x"}'])
async def test_fail_says_what_is_wrong(body: bytes) -> None:
    reply = await SimApp().request("POST", "/sim/fail", body)
    assert reply.status == 400
    assert reply.json()["detail"]


async def test_reset() -> None:
    app = SimApp()
    await app.chat("Hello", headers={"x-sim-fail": "engine_dead"})
    await app.request("POST", "/sim/fail", {"kind": "http_500"})
    state = (await app.request("POST", "/sim/reset")).json()
    assert (state["dead"], state["faults"]) == (False, [])
    assert (await app.request("GET", "/sim/requests")).json() == []
    assert (await app.chat("Hello")).status == 200


async def test_requests_of_one_path() -> None:
    app = SimApp()
    await app.request("GET", "/health")
    await app.chat("Hello")
    found = (await app.request("GET", "/sim/requests?path=/health")).json()
    assert [r["path"] for r in found] == ["/health"]
    assert [*found[0]] == [
        "id", "method", "path", "query", "headers", "body", "fault", "status", "tokens", "finished", "aborted",
    ]  # fmt: skip


async def test_load_counts_what_is_in_flight() -> None:
    app = SimApp()
    app.sim.in_flight += 3
    assert (await app.request("GET", "/load")).json() == {"server_load": 3}
