"""Metrics in front of a real vLLM: its families are those we export under its names, and the same load counts the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmtap.metrics.exposition import parse
from llmtap.metrics.vllm_names import NOT_SEEN
from support.exposition import Shape, shapes
from support.gateway import Gateway, running_gateway, wait_up
from support.wait import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
MODEL = "tiny"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Count to ten"}]


@pytest.fixture(scope="module")
def gateway(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = {
        "backends": [{"name": "v", "url": vllm}],
        "metrics": {"vllm_names": True, "engine_label": "0", "max_model_len": 2048},
    }
    with running_gateway(tmp_path_factory.mktemp("gateway"), config) as running:
        wait_up(running)
        yield running


def scraped(url: str) -> dict[str, Shape]:
    found = shapes(parse(httpx.get(f"{url}/metrics").text))
    return {name: shape for name, shape in found.items() if name.startswith("vllm:")}


def test_each_family_is_as_this_vllm_has_it(vllm: str, gateway: Gateway) -> None:
    """Name, type, help, labels and buckets; and each one it has is exported, or said to be missing."""
    theirs, ours = scraped(vllm), scraped(gateway.url)
    assert {name: shape for name, shape in theirs.items() if name in ours} == ours
    assert set(theirs) <= set(ours) | set(NOT_SEEN)


#: moved alike by vLLM and by us; what vLLM takes from inside (times) or we cannot see is not here
COUNTED = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "request_params_n_sum",
    "request_params_n_count",
    "request_params_max_tokens_sum",
    "request_params_max_tokens_count",
    "request_prompt_tokens_sum",
    "request_prompt_tokens_count",
    "request_generation_tokens_sum",
    "request_generation_tokens_count",
    "request_max_num_generation_tokens_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_inference_time_seconds_count",
)
STREAMED = (
    "time_to_first_token_seconds_count",
    "request_time_per_output_token_seconds_count",
    "request_decode_time_seconds_count",
)


def counts(url: str, names: tuple[str, ...]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for family in parse(httpx.get(f"{url}/metrics").text).families.values():
        for name, labels, value in family.samples:
            if name.removeprefix("vllm:") in names and dict(labels).get("model_name") == MODEL:
                found[name, dict(labels).get("finished_reason", "")] = float(value)
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": MESSAGES, "max_tokens": 20}),
        (CHAT, {"messages": MESSAGES}),
        (CHAT, {"messages": MESSAGES, "n": 2}),
        (CHAT, {"messages": MESSAGES, "stream": True}),
        (CHAT, {"messages": MESSAGES, "stream": True, "n": 3, "max_tokens": 8}),
        (COMPLETIONS, {"prompt": "Hello", "max_tokens": 7}),
        (COMPLETIONS, {"prompt": ["Hello there", "Say pong now"], "max_tokens": 5}),
        (COMPLETIONS, {"prompt": ["Hello there", "Say pong now"], "n": 2, "max_tokens": 5, "stream": True}),
        (COMPLETIONS, {"prompt": "Hello", "max_tokens": 1, "stream": True}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_same_load_counts_the_same(vllm: str, gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    names = COUNTED + (STREAMED if body.get("stream") else ())
    ours, theirs = counts(gateway.url, names), counts(vllm, names)
    reply = httpx.post(gateway.url + path, json={"model": MODEL, **body}, timeout=120)
    assert reply.status_code == 200, reply.text

    def moved() -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
        now, then = counts(gateway.url, names), counts(vllm, names)
        return {name: now[name] - ours[name] for name in then}, {name: value - theirs[name] for name, value in then.items()}

    eventually(lambda: all(one["vllm:request_params_n_count", ""] > 0 for one in moved()), "not counted")
    mine, real = moved()
    assert mine == real


def test_inter_token_latency_counts_tokens_as_vllm_does(vllm: str, gateway: Gateway) -> None:
    """Within the tokens that bear no content: the end of the text, the markup of reasoning."""
    names = ("inter_token_latency_seconds_count", "inter_token_latency_seconds_sum")
    ours, theirs = counts(gateway.url, names), counts(vllm, names)
    httpx.post(gateway.url + CHAT, json={"model": MODEL, "messages": MESSAGES, "stream": True}, timeout=120)
    at = ("vllm:inter_token_latency_seconds_count", "")
    eventually(lambda: counts(gateway.url, names)[at] > ours[at], "not counted")
    mine, real = counts(gateway.url, names)[at] - ours[at], counts(vllm, names)[at] - theirs[at]
    assert real - 4 <= mine <= real


def test_the_backends_page_is_vllms_own(vllm: str, gateway: Gateway) -> None:
    merged = parse(httpx.get(f"{gateway.url}/metrics/backends", timeout=30).text)
    theirs = parse(httpx.get(f"{vllm}/metrics").text)
    assert set(theirs.families) <= set(merged.families)
    for name, family in theirs.families.items():
        assert merged.families[name].kind == family.kind
        assert len(merged.families[name].samples) == len(family.samples), name
