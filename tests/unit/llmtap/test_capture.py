"""Capture: what is written when, and what happens when it cannot be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from mitmproxy.test import tflow

from llmtap import capture as capture_module
from llmtap.capture import GRACE_S, Capture, CaptureUnavailable, WriterProcess
from llmtap.core.config import Config
from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.errors import SpoolError
from llmtap.core.record import Choice, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.spool.direct import DirectWriter
from llmtap.spool.reader import read
from llmtap.wire.request import parse


def config(folder: Path, **capture: Any) -> Config:
    return Config.model_validate({"capture": {"dir": str(folder), **capture}})


def exchange() -> Exchange:
    ex = Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.body = b'{"model":"m",\n"messages":[]}'
    ex.parsed = parse("chat", ex.body)
    return ex


def records(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(item) for path in sorted(folder.glob("spool/*")) for _, item in read(path, 0) if isinstance(item, bytes)]


def test_begin_before_forwarding_end_at_the_end(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    ex = exchange()
    capture.on_request(tflow.tflow(), ex)
    assert [(r["t"], r["uid"]) for r in records(tmp_path)] == [("begin", ex.uid)]
    ex.deltas = [5, 6]
    ex.finalise("ok", ex.started + 1.5)
    capture.on_finish(tflow.tflow(), ex)
    begin, end = records(tmp_path)
    assert begin["body"]["json"] == {"model": "m", "messages": []} and begin["request_bytes"] == len(ex.body or b"")
    assert end["uid"] == ex.uid and end["duration_ms"] == 1500.0 and end["deltas"] == [5, 6]
    assert end["at_us"] == ex.started_us + 1_500_000
    capture.stop()


async def test_on_a_loop_the_backend_does_not_wait_for_the_record(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    forwarded, quick = exchange(), exchange()
    for ex in (forwarded, quick):
        capture.on_request(tflow.tflow(), ex)
    quick.finalise("ok", quick.started)
    capture.on_finish(tflow.tflow(), quick)
    assert [(r["t"], r["uid"]) for r in records(tmp_path)] == [("begin", quick.uid), ("end", quick.uid)]
    await asyncio.sleep(0)
    assert [(r["t"], r["uid"]) for r in records(tmp_path)][2:] == [("begin", forwarded.uid)], "in the same turn, and once"
    capture.stop()


async def test_what_fails_out_of_sight_is_told_where_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    ex = exchange()

    def broken(kind: str, fields: Mapping[str, Any], body_size: int = 0) -> bool:
        raise RuntimeError("oops")

    monkeypatch.setattr(capture.sink, "write_fields", broken)
    capture.on_request(tflow.tflow(), ex)
    await asyncio.sleep(0)
    ex.finalise("ok", ex.started)
    with pytest.raises(RuntimeError, match="oops"):
        capture.on_finish(tflow.tflow(), ex)
    capture.stop()


LONG = orjson.dumps({"model": "m", "prompt": "x" * 200_000})


def long_exchange() -> Exchange:
    ex = exchange()
    ex.body, ex.parsed = LONG, parse("chat", LONG)
    return ex


async def test_a_long_request_is_written_by_a_thread_and_its_reply_waits_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    let_go = threading.Event()
    monkeypatch.setattr(DirectWriter, "append_group", gated(DirectWriter.append_group, let_go))
    ex, quick = long_exchange(), long_exchange()
    for one in (ex, quick):
        capture.on_request(tflow.tflow(), one)
    await asyncio.sleep(0)
    assert capture.on_responseheaders(tflow.tflow(), quick) is None, "so soon that nobody waits"
    await asyncio.sleep(GRACE_S * 2)
    waiting = capture.on_responseheaders(tflow.tflow(), ex)
    assert waiting is not None
    reply = asyncio.ensure_future(waiting)
    await asyncio.sleep(0.05)
    assert not reply.done() and not records(tmp_path)
    let_go.set()
    await asyncio.wait_for(reply, 5)
    assert ex.uid in [r["uid"] for r in records(tmp_path)]
    assert capture.on_responseheaders(tflow.tflow(), ex) is None
    capture.stop()
    assert all(r["body"]["json"] == orjson.loads(LONG) for r in records(tmp_path))


async def test_a_disk_that_stands_still_keeps_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap.capture.PATIENCE_S", 0.05)
    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    let_go = threading.Event()
    monkeypatch.setattr(DirectWriter, "append_group", gated(DirectWriter.append_group, let_go))
    ex = long_exchange()
    capture.on_request(tflow.tflow(), ex)
    await asyncio.sleep(GRACE_S * 2)
    waiting = capture.on_responseheaders(tflow.tflow(), ex)
    assert waiting is not None
    await asyncio.wait_for(waiting, 2)
    let_go.set()
    capture.stop()
    assert [r["uid"] for r in records(tmp_path)] == [ex.uid], "and it is written all the same"


async def test_what_the_thread_cannot_write_is_there_before_the_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: DirectWriter, records: Sequence[Sequence[bytes]]) -> int:
        raise SpoolError("broken")

    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    monkeypatch.setattr(DirectWriter, "append_group", broken)
    ex = long_exchange()
    capture.on_request(tflow.tflow(), ex)
    await asyncio.sleep(0)
    assert ex.capture_pending is not None
    capture.sink._long.drain()
    assert capture.on_responseheaders(tflow.tflow(), ex) is None
    assert [r["uid"] for r in records(tmp_path)] == [ex.uid]
    capture.stop()


def gated(
    append: Callable[[DirectWriter, Sequence[bytes]], int], let_go: threading.Event
) -> Callable[[DirectWriter, Sequence[bytes]], int]:
    def waits(self: DirectWriter, json: Sequence[bytes]) -> int:
        assert let_go.wait(10)
        return append(self, json)

    return waits


async def test_required_capture_is_written_before_the_backend_is_asked(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path, required=True), lambda reason, n: None)
    capture.start()
    capture.on_request(tflow.tflow(), exchange())
    assert [r["t"] for r in records(tmp_path)] == ["begin"]
    capture.stop()


def test_a_refused_request_has_both_records(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    ex = exchange()
    ex.finalise("rejected", ex.started)
    capture.on_finish(tflow.tflow(), ex)
    assert [r["t"] for r in records(tmp_path)] == ["begin", "end"]
    capture.stop()


def test_timings_can_be_left_out(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path, timings=False), lambda reason, n: None)
    ex = exchange()
    ex.deltas = [5]
    ex.finalise("ok", ex.started)
    capture.on_finish(tflow.tflow(), ex)
    assert "deltas" not in records(tmp_path)[1]
    capture.stop()


def test_required_capture_refuses_what_it_cannot_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: dict[str, int] = {}
    capture = Capture(config(tmp_path, required=True), lambda reason, n: dropped.update({reason: n}))
    monkeypatch.setattr(capture.sink._segment, "_write", _full)
    with pytest.raises(CaptureUnavailable) as caught:
        capture.on_request(tflow.tflow(), exchange())
    assert caught.value.status == 503 and caught.value.retry_after_s
    monkeypatch.undo()
    capture.report()
    assert sum(dropped.values()) >= 1
    capture.stop()


def _full(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_disk_trouble_does_not_reach_a_request_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    monkeypatch.setattr(capture.sink._segment, "_write", _full)
    capture.on_request(tflow.tflow(), exchange())
    monkeypatch.undo()
    assert sum(capture.sink.dropped.values()) >= 1
    capture.stop()


async def test_the_flusher_runs_on_the_loop_and_stops(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    capture.start()
    assert capture._task is not None
    capture.stop()
    with pytest.raises(BaseException):  # noqa: B017 - CancelledError
        await capture._task


def test_the_writer_is_told_of_our_end_by_its_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def popen(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert argv[:4] == [sys.executable, "-m", "llmtap_launcher", "ingest"] and "--parent-pipe" in argv
        assert any(part.endswith("launcher") for part in options["env"]["PYTHONPATH"].split(":"))
        child = original([sys.executable, "-c", "import sys; sys.stdin.read()"], **options)
        started.append(child)
        return child

    monkeypatch.setattr(capture_module.subprocess, "Popen", popen)
    writer = WriterProcess(config(tmp_path))
    writer.start()
    assert started[0].poll() is None
    writer.stop()
    assert started[0].wait(timeout=20) == 0
    writer.stop()


def test_a_writer_that_cannot_start_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def popen(argv: list[str], **options: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(capture_module.subprocess, "Popen", popen)
    WriterProcess(config(tmp_path)).start()
    assert "captures stay in the spool" in caplog.text


def test_the_writer_is_told_where_prices_stand(tmp_path: Path) -> None:
    assert "--config" not in WriterProcess(config(tmp_path))._argv
    told = WriterProcess(config(tmp_path), file=tmp_path / "llmtap.yaml")._argv
    assert told[told.index("--config") + 1] == str(tmp_path / "llmtap.yaml")


def test_a_body_that_is_sent_on_as_it_comes_has_its_size_at_the_end(tmp_path: Path) -> None:
    class Upload:
        received = 0

    capture = Capture(config(tmp_path), lambda reason, n: None)
    ex = exchange()
    ex.body, ex.upload = None, Upload()
    capture.on_request(tflow.tflow(), ex)
    Upload.received = 12_345
    ex.finalise("client_abort", ex.started + 1)
    capture.on_finish(tflow.tflow(), ex)
    begin, end = records(tmp_path)
    assert begin["body_dropped"] == "streamed" and begin["request_bytes"] == 0 and "body" not in begin
    assert end["request_bytes"] == 12_345
    capture.stop()


def answered(ex: Exchange) -> None:
    ex.summary = Summary("r1", "m", [Choice(0, content="the answer", finish_reason="stop")], Usage(3, 4, source="upstream"))
    ex.summary.error_message = "your prompt was: hello"
    ex.deltas = [5, 6]
    ex.finalise("ok", ex.started + 1)


@pytest.mark.parametrize("early", [True, False])
def test_metadata_only(tmp_path: Path, early: bool) -> None:
    capture = Capture(config(tmp_path), lambda reason, n: None)
    ex = exchange()
    ex.capture_wish = "metadata"
    if early:
        capture.on_request(tflow.tflow(), ex)
    answered(ex)
    capture.on_finish(tflow.tflow(), ex)
    begin, end = records(tmp_path)
    assert "body" not in begin and begin["body_dropped"] == "opted_out" and begin["request_bytes"] == len(ex.body or b"")
    assert end["body_dropped"] == "opted_out" and end["deltas"] == [5, 6]
    assert end["summary"]["choices"][0]["finish_reason"] == "stop" and end["summary"]["usage"]["completion_tokens"] == 4
    text = b"".join(path.read_bytes() for path in tmp_path.glob("spool/*"))
    assert b"answer" not in text and b"prompt was" not in text and b"messages" not in text
    assert ex.summary is not None and ex.summary.choices[0].content == "the answer", "others still see it"
    capture.stop()


def test_opted_out_leaves_no_trace(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path, rules=[{"model": "m", "capture": "off"}]), lambda reason, n: None)
    for early in (True, False):
        ex = exchange()
        if early:
            capture.on_request(tflow.tflow(), ex)
        answered(ex)
        capture.on_finish(tflow.tflow(), ex)
    assert records(tmp_path) == []
    capture.stop()


def test_large_bodies_can_be_left_out(tmp_path: Path) -> None:
    capture = Capture(config(tmp_path, max_body_kb=1), lambda reason, n: None)
    ex = exchange()
    ex.body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 2000)
    ex.parsed = parse("chat", ex.body)
    capture.on_request(tflow.tflow(), ex)
    begin = records(tmp_path)[0]
    assert begin["body_dropped"] == "too_large" and begin["request_bytes"] == len(ex.body)
    capture.stop()
