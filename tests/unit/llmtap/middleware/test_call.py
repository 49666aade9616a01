"""A call without its I/O: whatever way the bytes are cut, the same chunks and the same record."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from llmtap.middleware.call import About, Call
from llmtap.middleware.errors import VLLMConnectionError, VLLMError, VLLMStatusError, VLLMStreamError, VLLMTimeout
from llmtap.middleware.journal import Journal
from llmtap.middleware.settings import settings
from llmtap.middleware.statistics import Statistics

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": None}


class Log(Journal):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__(None, 1)
        self.records: list[Any] = []

    def write(self, record: Any) -> None:
        self.records.append(record)


class Case:
    def __init__(self, body: dict[str, Any] | None = None, about: About | None = None, retries: int = 2) -> None:
        self.now = 100.0
        self.log, self.statistics = Log(), Statistics()
        told = settings("http://h:1/v1", env={}, api_key="secret-key", max_retries=retries)
        self.call = Call("chat", ASK if body is None else body, about or About(), told, self.log, self.statistics,
                         clock=lambda: self.now, wall_us=lambda: 5_000_000)  # fmt: skip

    @property
    def end(self) -> Any:
        (end,) = self.log.records[1:]
        return end


def sse(*chunks: dict[str, Any], done: bool = True) -> bytes:
    return b"".join(b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks) + (b"data: [DONE]\n\n" if done else b"")


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {
        "id": "c1",
        "model": "served",
        "choices": [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}],
        **more,
    }


USAGE = {"id": "c1", "model": "served", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
STREAM = sse(chunk("Hel", usage=None), chunk("lo ✓", usage=None), chunk(finish="stop", usage=None), USAGE)


def test_what_is_sent_and_recorded() -> None:
    case = Case(about=About({"user": 7}, ["a", "b"], "s1"))
    begin = case.log.records[0]
    assert case.call.content == b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    assert case.call.url == "http://h:1/v1/chat/completions"
    assert case.call.headers["authorization"] == "Bearer secret-key"
    assert case.call.headers["x-request-id"] == begin.uid == case.call.uid
    assert (begin.metadata, begin.tags, begin.session_hint, begin.model) == ({"user": 7}, ["a", "b"], "s1", "m")
    assert (begin.endpoint, begin.path, begin.body, begin.at_us) == ("chat", "/v1/chat/completions", case.call.content, 5_000_000)
    case.call.attempts = 1
    case.call.head(200, "application/json")
    case.now = 100.25
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    body = {"id": "c1", "model": "served", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    case.call.feed(orjson.dumps(body))
    assert case.call.finish() == ([], body)
    end = case.end
    assert (end.outcome, end.status, end.duration_ms, end.ttft_ms, end.backend) == ("ok", 200, 250.0, None, "h:1")
    assert end.summary.choices[0].content == "yes"
    assert "secret-key" not in repr(case.log.records)
    assert case.statistics.figures()["total_tokens"] == 5


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
@examples(suppress_health_check=[HealthCheck.too_slow])
def test_streams_cut_anywhere(cuts: list[int]) -> None:
    case = Case({**ASK, "stream": True})
    assert orjson.loads(case.call.content)["stream_options"] == {"include_usage": True}
    assert b"stream_options" not in case.log.records[0].body
    case.call.head(200, "text/event-stream; charset=utf-8")
    edges = [0, *sorted(cuts), len(STREAM)]
    got = []
    for a, b in pairwise(edges):
        case.now += 0.01
        got += case.call.feed(STREAM[a:b])
    last, whole = case.call.finish()
    # the usage chunk was asked for by us
    assert [*got, *last] == [chunk("Hel"), chunk("lo ✓"), chunk(finish="stop")]
    assert whole is None
    end = case.end
    assert (end.outcome, end.summary.choices[0].content, end.summary.usage.prompt_tokens) == ("ok", "Hello ✓", 3)
    assert len(end.deltas) == 2
    assert end.ttft_ms == pytest.approx(end.deltas[0] / 10)


def test_a_caller_that_asks_for_usage_gets_it() -> None:
    case = Case({**ASK, "stream": True, "stream_options": {"include_usage": True}})
    case.call.head(200, "text/event-stream")
    assert case.call.feed(STREAM)[-1] == USAGE


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (sse(chunk("a"), done=False), "ended before its end"),
        (b"data: {not json\n\n", "not JSON"),
        (b"data: [1]\n\n", "no JSON object"),
        (sse({"error": {"message": "engine died", "type": "InternalServerError"}}), "engine died"),
    ],
)
def test_streams_that_break(stream: bytes, words: str) -> None:
    case = Case({**ASK, "stream": True})
    case.call.head(200, "text/event-stream")
    with pytest.raises(VLLMStreamError, match=words) as caught:
        try:
            case.call.feed(stream)
        except VLLMError as error:
            case.call.fail(error)
            raise
        case.call.finish()
    assert caught.value.request_id == case.call.uid
    assert (case.end.outcome, case.end.error_type) == ("upstream_error", "stream_error")
    assert words in case.end.error_message


@pytest.mark.parametrize(
    ("status", "outcome"), [(400, "rejected"), (404, "rejected"), (429, "rejected"), (500, "upstream_error"), (504, "timeout")]
)
@pytest.mark.parametrize("stream", [True, False])
def test_error_answers(status: int, outcome: str, stream: bool) -> None:
    case = Case({**ASK, "stream": stream})
    case.call.head(status, "application/json")
    body = {"error": {"message": "no good", "type": "SomeError", "code": status}}
    case.call.feed(orjson.dumps(body))
    with pytest.raises(VLLMStatusError) as caught:
        case.call.finish()
    assert (caught.value.status, caught.value.type, caught.value.body) == (status, "SomeError", body)
    assert (case.end.outcome, case.end.status, case.end.error_type) == (outcome, status, "SomeError")
    case.call.abort()  # nothing more is recorded
    assert len(case.log.records) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"data":[]}'])
def test_answers_that_are_no_completion(body: bytes) -> None:
    case = Case()
    case.call.head(200, "application/json")
    case.call.feed(body)
    with pytest.raises(VLLMStreamError, match="no completion"):
        case.call.finish()
    whole = Case({**ASK, "stream": True})
    whole.call.head(200, "application/json")
    whole.call.feed(b'{"choices":[]}')
    with pytest.raises(VLLMStreamError, match="a stream was asked for"):
        whole.call.finish()


@pytest.mark.parametrize(
    ("error", "begun", "kind", "outcome", "recorded"),
    [
        (httpx.ConnectError("refused"), False, VLLMConnectionError, "upstream_error", "connection_error"),
        (httpx.ReadTimeout("slow"), False, VLLMTimeout, "timeout", "timeout"),
        (httpx.ReadTimeout(""), True, VLLMTimeout, "timeout", "timeout"),
        (httpx.ReadError("reset"), True, VLLMStreamError, "upstream_error", "stream_error"),
    ],
)
def test_errors_of_the_transport(error: httpx.HTTPError, begun: bool, kind: type[VLLMError], outcome: str, recorded: str) -> None:
    case = Case()
    if begun:
        case.call.head(200, "application/json")
    with pytest.raises(kind, match=str(error) or type(error).__name__) as caught, case.call.watched():
        raise error
    assert (type(caught.value), caught.value.__cause__, caught.value.request_id) == (kind, error, case.call.uid)
    assert (case.end.outcome, case.end.error_type, case.end.status) == (outcome, recorded, 200 if begun else None)


def test_what_else_ends_a_call_is_raised_as_it_is() -> None:
    told = VLLMConnectionError("the client was closed")
    for error, outcome in ((told, "upstream_error"), (KeyboardInterrupt(), "client_abort"), (GeneratorExit(), "client_abort")):
        case = Case()
        with pytest.raises(type(error)) as caught, case.call.watched():
            raise error
        assert caught.value is error
        assert case.end.outcome == outcome
    unharmed = Case()
    with unharmed.call.watched():
        pass
    assert len(unharmed.log.records) == 1  # it goes on


def test_pauses() -> None:
    call = Case(retries=5).call
    found = []
    for call.attempts in range(1, 8):
        found.append(call.again(None))
    assert found == [0.5, 1.0, 2.0, 4.0, 8.0, None, None]
    call.attempts = 1
    assert [call.again(status) is None for status in (200, 400, 401, 404, 408, 429, 500, 503)] == [True] * 4 + [False] * 4
    assert (call.again(429, "3"), call.again(429, "0"), call.again(503, "soon"), call.again(503, "9999")) == (3.0, 0.5, 0.5, 60.0)


@pytest.mark.parametrize(
    "body", [{"model": "m", "messages": [{1, 2}]}, {"model": 5, "messages": []}, {"model": "m", "stream": "yes"}]
)
def test_requests_that_are_none(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"JSON|model|stream"):
        Case(body)


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Case(about=About({"x": object()}))
