from __future__ import annotations

from typing import Any

import pytest

from llmtap_launcher.datasette import page
from llmtap_launcher.datasette.conversation import Message, Transcript, Turn

ROW: dict[str, Any] = {
    "id": 7,
    "uid": "01J",
    "outcome": "ok",
    "model_requested": "m",
    "model_response": "M",
    "prompt_tokens": 5,
    "completion_tokens": 1200,
    "duration_ms": 1500.0,
    "started_at": "2025-11-21T01:36:12.123Z",
    "endpoint": "chat",
}


def context(row: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return page.context(Transcript({**ROW, **(row or {})}, **fields), "/base/capture", lambda path: "/base" + path)


def said(role: str, text: str | None, reply: bool = False) -> Message:
    return Message(3, role, text, len(text or ""), None, reply)


def test_links_are_below_the_base_url() -> None:
    found = context(messages=[said("user", "hi")], previous=[Turn("01H", "2025-11-21T01:36:12Z", "M", "client_abort")])
    assert found["row_url"] == "/base/capture/exchanges/7"
    assert found["json_url"] == "/base/capture/transcript.json?id=01J&_shape=array"
    assert found["all_url"] == "/base/-/transcript/01J?all=1"
    assert found["previous"] == [{"href": "/base/-/transcript/01H", "title": "2025-11-21 01:36:12 · M · client abort"}]
    assert 'href="/base/capture/bodies/3"' in found["bubbles"][0]


def test_the_title_is_what_the_user_said_last() -> None:
    messages = [
        said("user", "first"),
        said("assistant", "answer"),
        said("user", "  second\n question "),
        said("assistant", "x", True),
    ]
    assert context(messages=messages)["title"] == "second question"
    assert len(context(messages=[said("user", "word " * 100)])["title"]) <= 70
    assert context(messages=[said("user", None)])["title"] == "chat"
    assert context({"endpoint": None})["title"] == "Exchange"


def test_the_line_below_it_sums_up_what_is_known() -> None:
    assert context()["subtitle"] == "M · 5 → 1,200 tokens · 1.50 s · 2025-11-21 01:36:12 UTC"
    bare = {"model_response": None, "prompt_tokens": None, "duration_ms": None, "started_at": None}
    assert context(bare)["subtitle"] == "m"


@pytest.mark.parametrize(
    ("outcome", "notice", "kind"),
    [
        ("ok", "", ""),
        ("cached", "", ""),
        ("open", "Still running", "mild"),
        ("client_abort", "The client went away before the reply was complete. The reply is what had arrived by then.", "mild"),
        ("lost", "The gateway was killed", "bad"),
        ("timeout", "Timeout: too late The reply is what had arrived by then.", "bad"),
        ("upstream_error", "Upstream error: too late", "bad"),
    ],
)
def test_an_exchange_that_did_not_end_well_says_so(outcome: str, notice: str, kind: str) -> None:
    found = context({"outcome": outcome, "error_message": "too late"}, messages=[said("assistant", "par", True)])
    assert found["notice"].startswith(notice) and bool(notice) is bool(found["notice"])
    assert found["notice_kind"] == kind


def test_pace_is_told_in_numbers_too() -> None:
    assert context(deltas=[1000, 100, 300])["pace"].startswith("3 events; between two of them 20 ms (median)")
    assert context(deltas=[1000])["svg"] == "" and context()["pace"] == ""
