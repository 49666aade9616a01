"""Streamed and collected bodies, one piece after the other; through a running lane they are in test_relay.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import flow as mflow
from mitmproxy.test import tflow

from llmtap.core.errors import InternalError, UpstreamFailed
from llmtap.lane.pieces import Collected, Pieces
from llmtap.lane.refusals import Killed
from llmtap.lane.timing import Watch


class Writer:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def streaming(change: Callable[[bytes], Any] | bool, **how: Any) -> tuple[Pieces, Writer, list[Exception]]:
    flow = tflow.tflow(resp=True)
    assert flow.response is not None
    flow.response.stream = change
    failed: list[Exception] = []
    pieces = Pieces(flow, None, lambda: 7.0, failed.append, **how)
    writer = Writer()
    pieces.writer = writer  # type: ignore[assignment]
    return pieces, writer, failed


def test_pieces_go_through_the_callable_to_the_client() -> None:
    pieces, writer, failed = streaming(lambda data: [data.upper(), b"!"] if data else b"tail")
    pieces(b"a")
    assert pieces.changed(b"b") == b"B!" and pieces.tail() == b"tail"
    assert writer.written == [b"A!"] and not failed and not pieces.unseen


def test_a_callable_with_an_after_is_told_when_a_piece_has_been_written() -> None:
    seen: list[Any] = []

    class Change:
        def __call__(self, data: bytes) -> bytes:
            return data

        def after(self) -> None:
            seen.append(list(writer.written))

    pieces, writer, _ = streaming(Change())
    pieces(b"a")
    pieces.changed(b"b")
    assert seen == [[b"a"]]
    pieces.written()
    assert seen == [[b"a"], [b"a"]]
    streaming(lambda data: data)[0].written()


def test_nothing_is_written_for_nobody_and_empty_pieces_are_nothing() -> None:
    pieces, writer, _ = streaming(lambda data: b"")
    pieces(b"a")
    pieces, other, _ = streaming(True)
    pieces.mute = True
    pieces(b"a")
    assert writer.written == other.written == [] and pieces.tail() == b""


def test_a_callable_that_raises_ends_the_exchange_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(data: bytes) -> bytes:
        raise ValueError("oops")

    pieces, writer, failed = streaming(broken)
    pieces(b"a")
    assert isinstance(failed[0], InternalError) and not writer.written and "stream callable failed" in caplog.text


def test_a_kill_shows_with_the_next_piece() -> None:
    pieces, _, failed = streaming(True)
    pieces._flow.error = mflow.Error(mflow.Error.KILLED_MESSAGE)
    pieces(b"a")
    assert isinstance(failed[0], Killed)


def test_what_is_stored_is_what_the_client_got(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, _, _ = streaming(bytes.upper, stores=True)
    response = pieces._flow.response
    assert response is not None
    response.data.content = None
    pieces(b"a")
    pieces(b"b")
    assert pieces.unseen and response.data.content is None
    pieces.show()
    assert response.data.content == b"AB" and not pieces.unseen
    monkeypatch.setattr("llmtap.lane.pieces._STORED_BYTES", 3)
    pieces(b"cd")
    pieces(b"e")
    pieces.tail()
    assert response.data.content is None


async def test_a_collected_body_has_a_bound() -> None:
    failed: list[Exception] = []
    flow = tflow.tflow(resp=True)
    watch = Watch(asyncio.get_running_loop(), 0, lambda limit: None)
    collected = Collected(flow, watch, lambda: 42.0, failed.append, 3)
    collected(b"ab")
    collected(b"c")
    assert collected.content() == b"abc" and watch.touched == 42.0 and not failed
    collected(b"d")
    assert isinstance(failed[0], UpstreamFailed) and collected.content() == b""
    collected = Collected(flow, watch, lambda: 42.0, failed.append, 3)
    flow.error = mflow.Error(mflow.Error.KILLED_MESSAGE)
    collected(b"")
    assert isinstance(failed[1], Killed)
