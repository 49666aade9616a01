"""vLLM's families: held against a scrape of vLLM itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llmtap.metrics.exposition import parse
from llmtap.metrics.families import Families
from llmtap.metrics.vllm_names import NOT_SEEN, VllmNames
from support.exposition import Shape, shapes

SCRAPE = Path(__file__).parents[4] / "fixtures" / "metrics" / "vllm-0.33.0.prom"
MODEL = {"model_name": "m", "engine": "proxy"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def names(registry: CollectorRegistry) -> VllmNames:
    families = Families()
    found = VllmNames(families, "proxy", 2048, running=lambda: [("m", 1)], waiting=list, models=lambda: ["m"])
    registry.register(families)
    return found


@pytest.fixture
def vllm() -> dict[str, Shape]:
    found = shapes(parse(SCRAPE.read_text()))
    return {name: shape for name, shape in found.items() if name.startswith("vllm:")}


def test_each_family_is_vllms(registry: CollectorRegistry, names: VllmNames, vllm: dict[str, Shape]) -> None:
    """Name, type, help, label names and buckets."""
    ours = shapes(parse(generate_latest(registry).decode()))
    assert len(ours) == 19
    for name, shape in ours.items():
        assert shape == vllm[name], name


def test_every_family_of_vllm_is_exported_or_said_to_be_missing(
    registry: CollectorRegistry, names: VllmNames, vllm: dict[str, Shape]
) -> None:
    ours = shapes(parse(generate_latest(registry).decode()))
    assert set(vllm) == set(ours) | set(NOT_SEEN)
    assert not set(ours) & set(NOT_SEEN)


def test_the_reasons_are_vllms() -> None:
    samples = parse(SCRAPE.read_text()).families["vllm:request_success_total"].samples
    families = Families()
    registry = CollectorRegistry()
    VllmNames(families, "proxy", 2048, list, list).at("m")
    registry.register(families)
    ours = parse(generate_latest(registry).decode()).families["vllm:request_success_total"].samples
    assert {dict(labels)["finished_reason"] for _, labels, _ in ours} == {
        dict(labels)["finished_reason"] for _, labels, _ in samples
    }


def test_several_prompts_with_several_choices(registry: CollectorRegistry, names: VllmNames) -> None:
    """What vLLM 0.32 counted for two prompts of 7 tokens together and `n` 2: four sequences, two requests."""
    names.produced("m", 7, 20, None, n=2, choices=4)
    names.finished("m", ["length"] * 4, 7, 20, n=2, max_tokens=5, e2e_s=0.1, queue_s=0.0, inference_s=0.1)

    def told(name: str, **more: str) -> float | None:
        return registry.get_sample_value(f"vllm:{name}", {**MODEL, **more})

    assert told("prompt_tokens_total") == told("request_prompt_tokens_sum") == 14
    assert told("request_success_total", finished_reason="length") == 4
    assert told("request_params_n_count") == 2 and told("request_params_n_sum") == 4
    assert told("request_generation_tokens_count") == 4 and told("request_generation_tokens_sum") == 20
    assert told("request_max_num_generation_tokens_sum") == 10
    assert told("e2e_request_latency_seconds_count") == 4


def test_ends_in_the_words_of_other_protocols(registry: CollectorRegistry, names: VllmNames) -> None:
    for reason in ("stop", "tool_calls", "end_turn", "length", "max_tokens", None):
        names.finished("m", [reason], 1, 1, e2e_s=None, queue_s=None, inference_s=None)
    told = {
        r: registry.get_sample_value("vllm:request_success_total", {**MODEL, "finished_reason": r}) for r in ("stop", "length")
    }
    assert told == {"stop": 4, "length": 2}
