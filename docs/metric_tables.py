"""The tables of `metrics.md`: our families, and vLLM's beside them as a scrape of vLLM has them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llmtap.core.config import Config
from llmtap.metrics import GatewayMetrics
from llmtap.metrics.exposition import Family, parse
from llmtap.metrics.vllm_names import NOT_SEEN

SCRAPE = Path(__file__).resolve().parents[1] / "fixtures" / "metrics" / "vllm-0.33.0.prom"
#: what differs in meaning although name, labels and buckets are the same
_MEANS = {
    "vllm:num_requests_running": "at a backend",
    "vllm:num_requests_waiting": "in the gateway's queue",
    "vllm:prompt_tokens_total": "of aborted requests estimated",
    "vllm:prompt_tokens_cached_total": "where the server tells (`--enable-prompt-tokens-details`)",
    "vllm:time_to_first_token_seconds": "streams; to the first content",
    "vllm:inter_token_latency_seconds": "streams; see above",
    "vllm:request_time_per_output_token_seconds": "streams",
    "vllm:request_prefill_time_seconds": "streams; forwarding to first content",
    "vllm:request_decode_time_seconds": "streams; first content to last byte",
    "vllm:request_queue_time_seconds": "the gateway's queue",
    "vllm:request_inference_time_seconds": "forwarding to last byte",
    "vllm:request_generation_tokens": "of several choices, each its share",
    "vllm:request_max_num_generation_tokens": "of several choices, their mean",
    "vllm:request_params_max_tokens": "where none was asked for: `metrics.max_model_len` less the prompt",
}


def families() -> str:
    """Every metric of the gateway: name, type, labels, meaning."""
    metrics = GatewayMetrics(CollectorRegistry(), Config().metrics.max_model_len, lambda model: True)
    rows = []
    for family in metrics.families:
        name = family.name + ("_total" if family.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.label_names) or "–"
        rows.append(f"| `{name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *sorted(rows)])


def vllm() -> str:
    """vLLM's families as scraped from it, and whether the gateway has the same: type, labels and buckets are compared."""
    theirs = _vllm_families(SCRAPE.read_text(encoding="utf-8"))
    registry = CollectorRegistry()
    GatewayMetrics(registry, 2048, lambda model: True, "0", models=lambda: ["tiny"])
    ours = _vllm_families(generate_latest(registry).decode())
    rows = []
    for name, family in theirs.items():
        if name in NOT_SEEN:
            told = f"– ({NOT_SEEN[name]})"
        else:
            same = _shape(ours[name]) == _shape(family)
            told = "same" + (f"; {_MEANS[name]}" if name in _MEANS else "") if same else "DIFFERS"
        labels = ", ".join(f"`{label}`" for label in _labels(family))
        buckets = len(_buckets(family))
        rows.append(f"| `{name}` | {family.kind} | {labels} | {buckets or '–'} | {told} |")
    return "\n".join(["| vLLM 0.33 | type | labels | buckets | llmtap |", "|---|---|---|---|---|", *rows])


def _vllm_families(text: str) -> dict[str, Family]:
    found = parse(text).families
    return {name: family for name, family in found.items() if name.startswith("vllm:") and not name.endswith("_created")}


def _shape(family: Family) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return family.kind, _labels(family), _buckets(family)


def _labels(family: Family) -> tuple[str, ...]:
    found = {key for _, labels, _ in family.samples for key, _ in labels} - {"le"}
    first = [key for key in ("model_name", "engine") if key in found]
    rest = sorted(found - set(first))
    return (*first, *(rest if len(rest) < 4 else (f"{len(rest)} more",)))


def _buckets(family: Family) -> tuple[str, ...]:
    return tuple(dict.fromkeys(dict(labels)["le"] for _, labels, _ in family.samples if "le" in dict(labels)))
