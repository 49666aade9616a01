"""The slowest: the same as sorting all rows in Python, whichever index is taken; where their time went."""

from __future__ import annotations

import shlex
import sqlite3
from typing import Any

import pytest

from llmtap_launcher.analysis.slowest import MEASURES, Links, slowest, split
from llmtap_launcher.selection import Selection

SELECTIONS = [
    Selection(),
    Selection(since="2026-10-06T08:00:00.000Z"),
    Selection(models=("Qwen/*",), keys=("ci",)),
    Selection(tags=("canary",), backends=("b",)),
    Selection(keys=("",), until="2026-10-02T12:00:00.000Z"),
    Selection(models=("none",)),
]


def fits(row: dict[str, Any], of: Selection) -> bool:
    return (
        (of.since or "") <= row["started_at"] < (of.until or "9")
        and (not of.models or (row["model"] or "").startswith(of.models[0].rstrip("*")))
        and (not of.keys or (row["key_name"] or "") in of.keys)
        and (not of.backends or row["backend"] in of.backends)
        and (not of.tags or row["tags"] is not None)
    )


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("by", MEASURES)
def test_as_sorted_by_hand(conn: sqlite3.Connection, rows: list[dict[str, Any]], selection: Selection, by: str) -> None:
    column, low = MEASURES[by].column, MEASURES[by].low
    values = sorted((row[column] for row in rows if row[column] is not None and fits(row, selection)), reverse=not low)
    found = slowest(conn, selection, by, 15)
    assert [row[column] for row in found] == values[:15]
    if len(values) > 30:
        edge = values[20]
        assert len(slowest(conn, selection, by, 1000, edge)) == sum(v <= edge if low else v >= edge for v in values)


def test_links_and_commands(conn: sqlite3.Connection) -> None:
    (row,) = slowest(conn, Selection(), top=1, links=Links("http://127.0.0.1:8001", "http://127.0.0.1:8000"))
    uid = row["uid"]
    assert row["url"] == f"http://127.0.0.1:8001/-/transcript/{uid}"
    assert row["replay"] == (
        f"curl -s http://127.0.0.1:8001/-/request/{uid}.json | curl -sN http://127.0.0.1:8000/v1/chat/completions "
        "-H 'content-type: application/json' --data-binary @-"
    )
    (row,) = slowest(conn, Selection(), top=1, links=Links("http://127.0.0.1:8001", "https://127.0.0.1:8000", keyed=True))
    sent = shlex.split(row["replay"])
    assert sent[sent.index("-sN") + 1] == "https://127.0.0.1:8000/v1/chat/completions"
    assert "authorization: Bearer $OPENAI_API_KEY" in sent and '"authorization' in row["replay"]  # the shell puts it in
    assert row["queue_ms"] + row["prefill_ms"] + row["decode_ms"] == pytest.approx(row["duration_ms"], abs=0.01)


ROW = {"duration_ms": 1000.0, "ttft_ms": 300.0, "queue_ms": 50.0, "stream": 1}


@pytest.mark.parametrize(
    ("row", "meta", "parts"),
    [
        (ROW, {}, (50.0, 250.0, 700.0)),
        (ROW | {"queue_ms": None}, {}, (None, 300.0, 700.0)),
        (ROW | {"stream": 0}, {}, (50.0, None, None)),
        (ROW | {"ttft_ms": None}, {}, (50.0, None, None)),
        # vLLM tells of its own queue
        (
            ROW,
            {"metrics": {"queue_time_ms": 100, "time_to_first_token_ms": 200, "generation_time_ms": 650}},
            (150.0, 150.0, 650.0),
        ),
        # llama.cpp and Ollama of the prompt, also without a stream
        (ROW | {"stream": 0}, {"timings": {"prompt_ms": 220.0, "predicted_ms": 710.0}}, (50.0, 220.0, 710.0)),
        (
            ROW | {"stream": 0, "ttft_ms": None},
            {"total_duration": 1, "prompt_eval_duration": 220_000_000, "eval_duration": 710_000_000},
            (50.0, 220.0, 710.0),
        ),
        (ROW | {"queue_ms": 400.0}, {}, (400.0, 0.0, 700.0)),  # clocks may differ: never less than nothing
    ],
)
def test_split(row: dict[str, Any], meta: dict[str, Any], parts: tuple[float | None, ...]) -> None:
    found = split(row, meta)
    assert (found["queue_ms"], found["prefill_ms"], found["decode_ms"]) == parts
