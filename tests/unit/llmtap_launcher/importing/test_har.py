"""HAR files."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from llmtap_launcher.importing.entries import Entry, Malformed
from llmtap_launcher.importing.har import entries
from llmtap_launcher.importing.web import NotInference

REPLY = '{"object":"chat.completion","model":"m","choices":[{"index":0,"message":{"content":"hey"},"finish_reason":"stop"}]}'


def archive(*listed: Any) -> Any:
    return {"log": {"version": "1.2", "entries": list(listed)}}


def one(**more: Any) -> dict[str, Any]:
    return {
        "startedDateTime": "2025-11-21T09:30:00.000Z",
        "time": 120.5,
        "request": {
            "method": "POST",
            "url": "http://127.0.0.1:8000/v1/chat/completions",
            "headers": [{"name": "User-Agent", "value": "OpenAI/Python"}, {"name": "Authorization", "value": "Bearer sk-secret"}],
            "postData": {"mimeType": "application/json", "text": '{"model":"m","messages":[{"role":"user","content":"hi"}]}'},
        },
        "response": {
            "status": 200,
            "headers": [{"name": "Content-Type", "value": "application/json"}],
            "content": {"size": 9, "mimeType": "application/json", "text": REPLY},
        },
        "timings": {"send": 0, "wait": 80, "receive": 40},
        **more,
    }


def test_an_exchange(stored: Any) -> None:
    (found,) = entries(archive(one()))
    assert isinstance(found, Entry)
    row, asked, said = stored(found)
    assert (asked[0]["content"], said["content"], row["duration_ms"], row["user_agent"]) == ("hi", "hey", 120.5, "OpenAI/Python")
    assert row["backend"] == "127.0.0.1:8000" and "sk-secret" not in str(row)


def test_packed_bodies_and_no_answer() -> None:
    packed = one()
    packed["response"]["content"] = {
        "text": base64.b64encode(REPLY.encode()).decode(),
        "encoding": "base64",
        "mimeType": "application/json",
    }
    packed["response"]["headers"] = []
    gone = one(response={"status": 0, "_error": "net::ERR_ABORTED"})
    first, second = entries(archive(packed, gone))
    assert isinstance(first, Entry) and isinstance(second, Entry)
    assert (first.reply, first.content_type) == (REPLY.encode(), "application/json")
    assert (second.status, second.error) == (None, "net::ERR_ABORTED")


def test_others_and_damaged_ones() -> None:
    page = one()
    page["request"] = {"method": "GET", "url": "https://e.org/", "headers": []}
    broken = one()
    broken["response"]["content"] = {"text": "%%%", "encoding": "base64"}
    found = list(entries(archive(page, broken, {}, 3, one(startedDateTime="never"))))
    assert [type(it) for it in found] == [NotInference, Malformed, Malformed, Malformed, Malformed]
    for wrong in ({}, {"log": {}}, [], None):
        with pytest.raises(Malformed):
            list(entries(wrong))
