"""Requests to send again, and everything there is."""

from __future__ import annotations

from typing import Any

from llmtap.core.record import Choice
from support.captures import Captures, weather

U1 = {"role": "user", "content": "one"}


def test_a_batch_has_the_requests_as_they_were_sent(captures: Captures, run: Any) -> None:
    uid = captures.exchange([U1], "yes", asked={"temperature": 0.5, "stop": ["x"]})
    captures.exchange([U1], outcome="upstream_error", status=500)
    captures.store()
    rows, report = run(captures.db, "batch")
    assert report.rows == 2
    assert rows[1] == {
        "custom_id": uid,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "qwen3-8b", "messages": [U1], "temperature": 0.5, "stop": ["x"]},
    }


def test_raw_rows(captures: Captures, run: Any) -> None:
    weather(captures)
    captures.exchange([U1], [Choice(0, content="a"), Choice(1, content="b")], asked={"tags": ["x"], "metadata": {"k": 1}})
    captures.store()
    rows, _ = run(captures.db, "raw")
    newest = rows[0]
    assert [choice["content"] for choice in newest["choices"]] == ["a", "b"]
    assert (newest["tags"], newest["metadata"], newest["messages"]) == (["x"], {"k": 1}, [U1])
    assert newest["model"] == "Qwen/Qwen3-8B" and "boot" not in newest and "input_tip" not in newest
    first = rows[-1]
    assert first["choices"][0]["reasoning"] == "Two cities, so the tool is called twice."
    assert first["tools"][0]["function"]["name"] == "get_weather"
    assert first["params"]["temperature"] == 0.7


def test_a_sample_of_them_goes_by_conversation(captures: Captures, run: Any) -> None:
    for number in range(60):
        first = {"role": "user", "content": f"q{number}"}
        captures.exchange([first], "yes")
        captures.exchange([first, {"role": "assistant", "content": "yes"}, U1], "no")
    captures.store()
    rows, report = run(captures.db, "raw", sample=0.5)
    assert 20 < len(rows) < 100 and report.left_out == {"not in the sample": 120 - len(rows)}
    counts = {row["conversation_id"]: 0 for row in rows}
    for row in rows:
        counts[row["conversation_id"]] += 1
    assert set(counts.values()) == {2}
