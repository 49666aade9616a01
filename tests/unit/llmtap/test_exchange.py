"""An exchange ends once, and its durations come from its marks."""

from __future__ import annotations

import gc
import weakref

import pytest
from mitmproxy.test import tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.errors import ApiError, InternalError, NoHealthyBackend, NotFound, UpstreamTimeout
from llmtap.core.plan import Plan
from llmtap.core.record import Choice, Summary
from llmtap.exchange import Exchange, is_cut, outcome_of_refusal, outcome_of_status
from llmtap.wire.request import parse


def exchange() -> Exchange:
    return Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")


def test_only_the_first_end_counts() -> None:
    ex = exchange()
    assert ex.finalise("client_abort", 5.0) is True
    assert ex.finalise("ok", 9.0) is False
    assert (ex.outcome, ex.finished) == ("client_abort", 5.0)


def test_ids() -> None:
    ex = exchange()
    assert len(ex.uid) == 26 and ex.client_request_id == ex.uid
    ex.request_id = "mine"
    assert ex.client_request_id == "mine" and ex.uid != "mine"
    assert exchange().uid != exchange().uid


def test_durations() -> None:
    ex = exchange()
    assert ex.duration_s is None and ex.ttft_s is None and ex.overhead_s is None
    ex.started, ex.received, ex.forwarded = 10.0, 10.5, 10.8
    ex.queue_s, ex.first_content, ex.last_chunk = 0.2, 11.0, 12.0
    ex.finalise("ok", 12.25)
    assert ex.duration_s == pytest.approx(2.25)
    assert ex.ttft_s == pytest.approx(1.0)
    assert ex.overhead_s == pytest.approx(0.1 + 0.25)


def test_attempts() -> None:
    ex = exchange()
    assert ex.attempts == 0
    ex.plan = Plan([])
    ex.forwarded = 1.0
    assert ex.attempts == 1
    ex.plan.attempts = 3
    assert ex.attempts == 3


def test_a_refusal_is_an_answer_with_a_code() -> None:
    ex = exchange()
    ex.refuse(NotFound("no such model", code="model_not_found"))
    assert (ex.status, ex.error_type, ex.error_message) == (404, "model_not_found", "no such model")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (304, "ok"), (400, "rejected"), (429, "rejected"), (500, "upstream_error"), (504, "timeout")],
)
def test_outcome_of_a_status(status: int, outcome: str) -> None:
    assert outcome_of_status(status) == outcome


def test_it_lives_as_long_as_its_flow() -> None:
    table: weakref.WeakKeyDictionary[object, Exchange] = weakref.WeakKeyDictionary()
    flow = tflow.tflow()
    table[flow] = exchange()
    del flow
    gc.collect()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotFound("x"), "rejected"),
        (InternalError("x"), "rejected"),
        (NoHealthyBackend("x"), "upstream_error"),
        (UpstreamTimeout("x"), "timeout"),
    ],
)
def test_outcome_of_a_refusal(error: ApiError, outcome: str) -> None:
    assert outcome_of_refusal(error) == outcome


def test_a_stream_without_its_end_is_cut() -> None:
    ex = exchange()
    ex.parsed = parse("chat", b'{"model":"m","messages":[],"stream":true}')
    ex.status, ex.content_type, ex.summary = 200, "text/event-stream", Summary(choices=[Choice(0, content="Hel")])
    assert is_cut(ex)
    ex.summary.choices[0].finish_reason = "stop"  # not every server sends [DONE]
    assert not is_cut(ex)
    ex.summary = Summary(complete=True)
    assert not is_cut(ex)
    ex.summary, ex.status = Summary(), 500
    assert not is_cut(ex)
