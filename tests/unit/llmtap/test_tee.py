"""The tee: the client's bytes never depend on the decoder."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.record import Summary
from llmtap.exchange import Exchange
from llmtap.tee import Tee, TeeInstaller
from llmtap.wire.decode import decoder_for
from llmtap.wire.request import parse
from llmtap.wire.withhold import UsageFilter

SSE = "text/event-stream; charset=utf-8"


def event(**body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def chunk(content: str | None = None, **delta: object) -> bytes:
    if content is not None:
        delta["content"] = content
    return event(
        id="c1", object="chat.completion.chunk", model="m", choices=[{"index": 0, "delta": delta, "finish_reason": None}]
    )


ROLE = chunk(role="assistant", content="")
FINISH = event(id="c1", object="chat.completion.chunk", model="m", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = event(
    id="c1",
    object="chat.completion.chunk",
    model="m",
    choices=[],
    usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
)
DONE = b"data: [DONE]\n\n"
STREAM = [ROLE, chunk("Hel"), chunk("lo"), FINISH, USAGE, DONE]


class Broken:
    """A decoder that raises at its nth piece."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.summary = Summary(model="partly")

    def quick(self, data: bytes) -> int:
        return -1

    def feed(self, data: bytes) -> int:
        self.at -= 1
        if self.at < 0:
            raise RuntimeError("a bug in the decoder")
        return 0

    def close(self) -> int:
        if self.at < 0:
            raise RuntimeError("still broken")
        return 0


def exchange() -> Exchange:
    ex = Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.started, ex.status = 100.0, 200
    return ex


def ticking(times: list[float]) -> Iterator[float]:
    yield from times


def output(tee: Tee, pieces: list[bytes]) -> bytes:
    out = b""
    for piece in [*pieces, b""]:
        answer = tee(piece)
        out += answer if isinstance(answer, bytes) else b"".join(answer)
    return out


def test_times_of_a_stream() -> None:
    ex = exchange()
    clock = ticking([100.1, 100.5, 100.75, 100.8, 100.8, 100.9, 101.0])
    errors: list[int] = []
    tee = Tee(ex, decoder_for("chat", SSE, 200), None, lambda: errors.append(1), lambda: next(clock))
    assert output(tee, STREAM) == b"".join(STREAM)
    assert ex.ttft_s == pytest.approx(0.5), "the role chunk is not the first token"
    assert ex.deltas == [5000, 2500]
    assert ex.chunks == 6 and ex.reply_bytes == sum(map(len, STREAM)) and ex.last_chunk == 100.9
    assert ex.summary is not None and ex.summary.choices[0].content == "Hello" and ex.summary.usage.completion_tokens == 2
    assert ex.summary.complete and errors == []


def test_what_takes_the_decoder_some_time_waits_until_the_client_has_it() -> None:
    for told in (True, False):
        ex = exchange()
        clock = ticking([100.1, 100.5, 100.75, 101.0])
        tee = Tee(ex, decoder_for("chat", SSE, 200), None, lambda: None, clock.__next__)
        for piece in STREAM[:3]:
            assert tee(piece) == piece
            before = ex.first_content, len(ex.deltas)
            if told:
                tee.after()
            if piece is STREAM[1]:
                assert before == (None, 0), "the first token is read the long way, not before it is sent"
                assert ex.first_content == (100.5 if told else None)
        tee.close()
        assert ex.first_content == 100.5 and ex.deltas == [5000, 2500], "by the clock of its arrival"
        tee.after()  # nothing is left


def test_several_tokens_in_one_piece_arrived_at_once() -> None:
    ex = exchange()
    clock = ticking([100.2, 100.3])
    output(Tee(ex, decoder_for("chat", SSE, 200), None, lambda: None, lambda: next(clock)), [b"".join(STREAM)])
    assert ex.deltas == [2000, 0]


def test_the_injected_usage_chunk_is_withheld_and_still_counted() -> None:
    ex = exchange()
    tee = Tee(ex, decoder_for("chat", SSE, 200), UsageFilter(), lambda: None, lambda: 101.0)
    assert output(tee, STREAM) == b"".join([ROLE, chunk("Hel"), chunk("lo"), FINISH, DONE])
    assert ex.summary is not None and ex.summary.usage.prompt_tokens == 3


def test_withheld_pieces_are_an_empty_list_never_an_empty_string() -> None:
    tee = Tee(exchange(), decoder_for("chat", SSE, 200), UsageFilter(), lambda: None, lambda: 101.0)
    answers = [tee(piece) for piece in STREAM]
    assert b"" not in answers


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(0, 8))
def test_the_client_gets_everything_when_the_decoder_raises(pieces: list[bytes], at: int) -> None:
    errors: list[int] = []
    tee = Tee(exchange(), Broken(at), None, lambda: errors.append(1), lambda: 101.0)
    assert output(tee, pieces) == b"".join(pieces)
    assert len(errors) == (1 if at < len(pieces) else 0)


def test_what_a_broken_decoder_had_is_kept() -> None:
    ex = exchange()
    output(Tee(ex, Broken(1), None, lambda: None, lambda: 101.0), [b"a", b"b"])
    assert ex.summary is not None and ex.summary.model == "partly"


def test_a_filter_that_raises_gives_up_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    usage_filter = UsageFilter()
    tee = Tee(exchange(), decoder_for("chat", SSE, 200), usage_filter, lambda: None, lambda: 101.0)
    first = tee(ROLE + b'data: {"half')
    assert first == ROLE

    def broken(data: bytes) -> bytes:
        raise RuntimeError("a bug in the filter")

    monkeypatch.setattr(UsageFilter, "feed", lambda self, data: broken(data))
    assert tee(b' an event"}\n\n') == b'data: {"half an event"}\n\n'
    monkeypatch.undo()
    assert tee(USAGE) == USAGE, "from then on everything passes"


def test_an_abort_keeps_the_partial_text() -> None:
    ex = exchange()
    tee = Tee(ex, decoder_for("chat", SSE, 200), None, lambda: None, lambda: 101.0)
    tee(ROLE + chunk("Hel"))
    tee.close()
    tee.close()
    assert ex.summary is not None and ex.summary.choices[0].content == "Hel" and not ex.summary.complete


def test_the_prompt_of_a_stream_that_was_cut_is_estimated() -> None:
    installer = TeeInstaller(lambda: None)
    body = b'{"model":"m","messages":[{"role":"user","content":"count to ten"}],"stream":true}'
    for whole in (True, True, True, False):
        ex = exchange()
        ex.parsed = parse("chat", body)
        ex.tee = Tee(ex, decoder_for("chat", SSE, 200), None, lambda: None, ticking([1.0] * 20).__next__)
        for piece in STREAM if whole else STREAM[:3]:
            ex.tee(piece)
        ex.tee.close()
        installer.on_finish(tflow.tflow(), ex)
        assert ex.summary is not None
        if whole:
            assert (ex.summary.usage.prompt_tokens, ex.summary.usage.source) == (3, "upstream")
    usage = ex.summary.usage
    assert (usage.completion_tokens, usage.source) == (2, "estimated")
    assert usage.prompt_tokens is not None and abs(usage.prompt_tokens - 3) <= 3


def reply(content_type: str, content: bytes, request: bytes) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow(resp=True)
    flow.response = http.Response.make(200, content, {"content-type": content_type})
    ex = exchange()
    ex.parsed = parse("chat", request)
    return flow, ex


def test_event_streams_are_teed_and_bodies_read_whole() -> None:
    installer = TeeInstaller(lambda: None, lambda: 101.0)
    flow, ex = reply(SSE, b"", b'{"model":"m","messages":[],"stream":true}')
    installer.on_responseheaders(flow, ex)
    assert flow.response is not None and flow.response.stream is ex.tee

    body = orjson.dumps(
        {
            "id": "c",
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        }
    )
    flow, ex = reply("application/json", body, b'{"model":"m","messages":[]}')
    installer.on_responseheaders(flow, ex)
    assert flow.response is not None and not flow.response.stream
    installer.on_response(flow, ex)
    assert ex.summary is not None and ex.summary.choices[0].content == "hi" and ex.reply_body is None
