from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.record import Usage
from llmtap.wire.realtime import Realtime


def event(kind: str, **more: object) -> str:
    return json.dumps({"type": kind, **more})


def test_a_session() -> None:
    session = Realtime()
    session.client(event("session.update", model="whisper"))
    session.client(event("input_audio_buffer.append", audio="A" * 50_000))
    assert not session.server(event("session.created", id="sess-1"))
    assert [session.server(event("transcription.delta", delta=d)) for d in ("to be ", "", "or not")] == [True, False, True]
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    session.server(event("transcription.done", text="to be or not", usage=usage))
    session.server(event("transcription.delta", delta="that"))
    session.server(event("transcription.done", text="that is", usage={"prompt_tokens": 1, "completion_tokens": 1}))
    summary = session.summary
    assert (summary.model, summary.response_id, summary.complete) == ("whisper", "sess-1", True)
    assert summary.choices[0].content == "to be or not\nthat is"
    assert summary.usage == Usage(10, 4, None, None, "upstream")


def test_what_was_not_finished_is_kept() -> None:
    session = Realtime()
    session.server(event("transcription.delta", delta="half a"))
    assert not session.summary.complete and session.summary.choices == []
    session.close()
    session.close()
    assert session.summary.choices[0].content == "half a" and not session.summary.complete


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"error": "no audio", "code": "invalid"}, "invalid", "no audio"),
        ({"error": {"message": "no audio", "type": "bad"}}, "bad", "no audio"),
        ({}, "error", None),
    ],
)
def test_errors(more: dict[str, object], kind: str, message: str | None) -> None:
    session = Realtime()
    session.server(event("error", **more))
    assert (session.summary.error_type, session.summary.error_message) == (kind, message)


def test_openai_nests_the_session() -> None:
    session = Realtime()
    session.client(event("session.update", session={"model": "m"}))
    session.server(event("session.created", session={"id": "s"}))
    assert (session.summary.model, session.summary.response_id) == ("m", "s")


MARKS = st.sampled_from(['"transcription.', '"session.created"', '"error"', '"session.update"', "{", "}", '"type":'])


@given(st.lists(MARKS | st.text(max_size=10)))
def test_any_text(pieces: list[str]) -> None:
    session = Realtime()
    session.client("".join(pieces))
    session.server("".join(pieces))


KINDS = st.sampled_from(["transcription.delta", "transcription.done", "error", "session.created", "session.update"])
VALUES = (
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers())
)


@given(KINDS, st.dictionaries(st.sampled_from(["delta", "text", "usage", "error", "code", "id", "session", "model"]), VALUES))
def test_any_values(kind: str, values: dict[str, object]) -> None:
    session = Realtime()
    session.client(event(kind, **values))
    session.server(event(kind, **values))
    session.close()
