"""The official SDK through the gateway to a real vLLM: same bytes, same token counts, aborts that stop the generation."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import Gateway, running_gateway, wait_up
from support.tap import Tap, tapped
from support.wait import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
MODEL = "tiny"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def tap(vllm: str) -> Iterator[Tap]:
    with tapped(urlsplit(vllm).port or 80) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tap: Tap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(
        tmp_path_factory.mktemp("gateway"), {"backends": [{"name": "v", "url": tap.url}]}, writer=True
    ) as running:
        wait_up(running)
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk:
        yield sdk


def row(gateway: Gateway, uid: str) -> dict[str, Any]:
    """The exchange in the database, with its reply."""

    def find() -> dict[str, Any] | None:
        with contextlib.suppress(sqlite3.OperationalError):
            db = sqlite3.connect(f"file:{gateway.data / 'capture.db'}?mode=ro", uri=True)
            with contextlib.closing(db):
                db.row_factory = sqlite3.Row
                found = db.execute(
                    "SELECT e.*, b.text AS reply FROM exchanges e LEFT JOIN messages m ON m.hash = e.output_tip"
                    " LEFT JOIN bodies b ON b.id = m.body_id WHERE e.uid = ? AND e.outcome <> 'open'",
                    (uid,),
                ).fetchone()
                return dict(found) if found is not None else None
        return None

    return eventually(find, f"{uid} is not in the database")


def hello(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 40, **more}


# ---- the SDK


def test_not_streamed(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**hello())
    reply = raw.parse()
    assert reply.usage is not None
    stored = row(gateway, raw.headers["x-request-id"])
    assert stored["reply"] == reply.choices[0].message.content and "tiny test model" in stored["reply"]
    assert (stored["prompt_tokens"], stored["completion_tokens"]) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert stored["finish_reason"] == "stop" and stored["usage_source"] == "upstream"


def test_streamed(gateway: Gateway, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**hello())
    raw = client.chat.completions.with_raw_response.create(**hello(), stream=True)
    text = ""
    for chunk in raw.parse():
        assert chunk.choices, "the usage chunk we asked for ourselves is withheld"
        text += chunk.choices[0].delta.content or ""
    assert whole.usage is not None and text == whole.choices[0].message.content
    stored = row(gateway, raw.headers["x-request-id"])
    assert stored["reply"] == text
    assert (stored["prompt_tokens"], stored["completion_tokens"]) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert 0 < stored["ttft_ms"] < stored["duration_ms"]


async def test_async(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(**hello(), stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None and chunks[-1].choices == []
    _, end = gateway.last()
    assert end["summary"]["usage"]["completion_tokens"] == chunks[-1].usage.completion_tokens


@pytest.mark.parametrize("question", ["What is the weather in Paris?", "What is the weather in Paris and London?"])
def test_tools(gateway: Gateway, client: openai.OpenAI, question: str) -> None:
    request = hello(messages=[{"role": "user", "content": question}], tools=[WEATHER], max_tokens=120)
    calls = client.chat.completions.create(**request).choices[0].message.tool_calls
    assert calls
    list(client.chat.completions.create(**request, stream=True))
    _, end = gateway.last()
    choice = end["summary"]["choices"][0]
    assert [(c["name"], json.loads(c["arguments"])) for c in choice["tool_calls"]] == [
        (c.function.name, json.loads(c.function.arguments)) for c in calls
    ]
    assert choice["finish_reason"] == "tool_calls"


# ---- bytes


def bodies_of(raw: bytes) -> list[bytes]:
    """The bodies of the HTTP responses that a connection carried one after the other."""
    bodies: list[bytearray] = []

    class Parts:
        def on_message_begin(self) -> None:
            bodies.append(bytearray())

        def on_body(self, data: bytes) -> None:
            bodies[-1].extend(data)

    httptools.HttpResponseParser(Parts()).feed_data(raw)
    return [bytes(body) for body in bodies]


def sent_by(tap: Tap, got: bytes) -> bytes:
    """The one reply of the backend that begins as `got` does (with its id)."""
    (sent,) = [body for raw in tap.replies if got[:60] in raw for body in bodies_of(bytes(raw)) if body.startswith(got[:60])]
    return sent


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_sent_is_what_the_client_gets(gateway: Gateway, tap: Tap, path: str, stream: bool) -> None:
    """To the byte, ids and times included: a tap on the wire behind the gateway says what vLLM sent."""
    body: dict[str, Any] = hello() if path == CHAT else {"model": MODEL, "prompt": "Hello", "max_tokens": 20, "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    got = httpx.post(f"{gateway.url}{path}", json=body, timeout=60).content
    assert sent_by(tap, got) == got


@pytest.mark.parametrize("more", [{}, {"n": 2, "temperature": 1, "seed": 7}, {"logprobs": True, "top_logprobs": 2}])
def test_without_usage_asked_for_only_the_usage_chunk_is_missing(gateway: Gateway, tap: Tap, more: dict[str, Any]) -> None:
    got = httpx.post(f"{gateway.url}{CHAT}", json=hello(stream=True, **more), timeout=60).content
    sent_events, got_events = sent_by(tap, got).split(b"\n\n"), got.split(b"\n\n")
    usage = [e for e in sent_events if b'"choices":[]' in e]
    assert len(usage) == 1 and b'"usage":{' in usage[0]
    sent_events.remove(usage[0])
    # vLLM puts its fingerprint on the last chunk there is: the usage chunk, or without one the finishing chunk
    fingerprint = json.loads(usage[0].removeprefix(b"data: "))["system_fingerprint"]
    assert len(sent_events) == len(got_events)
    finishing = 0
    for theirs, ours in zip(sent_events, got_events, strict=True):
        if b'"finish_reason":"' in theirs:
            finishing += 1
            assert json.loads(ours[6:]) == json.loads(theirs[6:]) | {"system_fingerprint": fingerprint}
        else:
            assert ours == theirs
    assert finishing == more.get("n", 1)


def merged(body: bytes) -> dict[str, Any]:
    """A stream as its merged text and the set of keys its chunks have (vLLM joins tokens that are ready together, so the
    cutting of a stream differs from run to run)."""
    text, keys, finish = "", set(), set()
    for event in body.split(b"\n\n"):
        payload = event.removeprefix(b"data: ")
        if payload.startswith(b"{"):
            chunk = json.loads(payload)
            keys.add(tuple(chunk))
            for choice in chunk["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                finish.add(choice["finish_reason"])
    return {"text": text, "keys": keys, "finish": finish, "done": body.endswith(b"data: [DONE]\n\n")}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_direct_and_through_are_the_same(vllm: str, gateway: Gateway, path: str) -> None:
    body: dict[str, Any] = hello() if path == CHAT else {"model": MODEL, "prompt": "Hello", "max_tokens": 20, "temperature": 0}
    for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
        direct, through = (httpx.post(f"{url}{path}", json=body | more, timeout=60) for url in (vllm, gateway.url))
        assert direct.headers["content-type"] == through.headers["content-type"]
        if more:
            assert merged(direct.content) == merged(through.content)
        else:
            volatile = ("id", "created")
            assert {k: v for k, v in direct.json().items() if k not in volatile} == {
                k: v for k, v in through.json().items() if k not in volatile
            }


@pytest.mark.parametrize(
    "body", [{"model": "nobody", "messages": []}, {"model": MODEL}, hello(max_tokens=-1), hello(messages="x")]
)
def test_errors_of_vllm_come_through(vllm: str, gateway: Gateway, body: dict[str, Any]) -> None:
    direct, through = (httpx.post(f"{url}{CHAT}", json=body, timeout=60) for url in (vllm, gateway.url))
    assert direct.status_code == through.status_code
    if body["model"] == MODEL:
        assert direct.content == through.content


# ---- aborts


def told(vllm: str, name: str, **labels: str) -> float:
    """The sum of vLLM's own samples of that name with these labels."""
    families = text_string_to_metric_families(httpx.get(f"{vllm}/metrics", timeout=60).text)
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


def test_a_client_that_leaves_stops_the_generation(vllm: str, gateway: Gateway) -> None:
    body = hello(messages=[{"role": "user", "content": "Tell me a long story"}], stream=True, max_tokens=1500, ignore_eos=True)

    # vLLM counts no aborts: one that it stopped is running no more, was not finished and has fewer tokens than it was asked for
    finished, tokens = (told(vllm, f"vllm:{name}_total") for name in ("request_success", "generation_tokens"))
    with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body, timeout=60) as reply:
        uid = reply.headers["x-request-id"]
        pieces = reply.iter_raw()  # kept: httpx closes the connection of a dropped iterator
        seen = b""
        while seen.count(b"data: ") <= 8:
            seen += next(pieces)
    eventually(lambda: told(vllm, "vllm:num_requests_running") == 0, "vLLM is still generating", timeout_s=2.0)
    assert told(vllm, "vllm:request_success_total") == finished
    assert 0 < told(vllm, "vllm:generation_tokens_total") - tokens < 1500
    stored = row(gateway, uid)
    assert stored["outcome"] == "client_abort" and stored["status"] == 499
    assert stored["reply"] and stored["usage_source"] == "estimated"
    assert merged(seen)["text"].startswith(stored["reply"][:10])


def test_models_and_metrics_stay_reachable(vllm: str, gateway: Gateway) -> None:
    listed = httpx.get(f"{gateway.url}/v1/models").json()["data"]
    assert [m["id"] for m in listed] == [MODEL]
    tokens = httpx.post(f"{gateway.url}/tokenize", json={"model": MODEL, "prompt": "Hello"}).json()["tokens"]
    assert tokens == httpx.post(f"{vllm}/tokenize", json={"model": MODEL, "prompt": "Hello"}).json()["tokens"]


def test_nothing_here_left_files_outside_the_data_folder(gateway: Gateway) -> None:
    expected = {"llmtap.yaml", "spool", "capture.db", "capture.db-wal", "capture.db-shm", "writer.json", "writer.lock"}
    assert {p.name for p in gateway.data.iterdir()} <= expected
    assert Path(gateway.data / "spool").is_dir()
