from __future__ import annotations

from typing import Any

import orjson

from llmtap.core.record import Choice, Usage
from llmtap.wire.llama import LlamaAssembler

FINAL = {
    "content": "",
    "tokens": [],
    "stop": True,
    "model": "tiny",
    "tokens_predicted": 2,
    "tokens_evaluated": 9,
    "stop_type": "limit",
    "tokens_cached": 11,
    "timings": {"prompt_n": 5, "predicted_n": 2, "cache_n": 4},
}


def stream(*events: dict[str, Any]) -> LlamaAssembler:
    assembler = LlamaAssembler()
    for event in events:
        assembler.event("", orjson.dumps(event))
    assembler.finish()
    return assembler


def piece(text: str, token: int) -> dict[str, Any]:
    return {"index": 0, "content": text, "tokens": [token], "stop": False, "id_slot": 0, "tokens_predicted": 1}


def test_a_stream() -> None:
    summary = stream(piece("Hel", 1), piece("lo", 2), FINAL).summary()
    assert summary.choices == [Choice(0, content="Hello", finish_reason="length")]
    assert summary.usage == Usage(9, 2, 4, source="upstream")
    assert summary.complete
    assert summary.meta["timings"] == FINAL["timings"]


def test_a_whole_reply() -> None:
    assembler = LlamaAssembler()
    assert assembler.whole({**FINAL, "content": "Hello", "stop_type": "eos"})
    assert assembler.summary().choices == [Choice(0, content="Hello", finish_reason="stop")]


def test_timings_count_where_nothing_else_does() -> None:
    final = {name: value for name, value in FINAL.items() if not name.startswith("tokens_")}
    assert stream(piece("Hel", 1), final).usage == Usage(9, 2, 4, source="upstream")


def test_an_abort_counts_the_token_ids() -> None:
    assembler = stream(piece("Hel", 1), {**piece("lo", 2), "tokens": [2, 3]})
    assert assembler.usage == Usage(completion_tokens=3, source="estimated")
    assert not assembler.complete


def test_an_error() -> None:
    assembler = stream(piece("Hel", 1), {"error": {"code": 500, "message": "boom", "type": "server_error"}})
    assert (assembler.error_type, assembler.error_message, assembler.complete) == ("server_error", "boom", False)
