"""The request log: one line an exchange, never a prompt."""

from __future__ import annotations

import asyncio
import io
import json
import threading

import pytest
from mitmproxy.test import tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.record import Outcome, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.request_log import MAX_PROMPT, MAX_WAITING, RequestLog, prompt_of
from llmtap.wire.request import parse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def exchange(outcome: Outcome = "ok", model: str = "m") -> Exchange:
    ex = Exchange("POST", "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"], "openai", "127.0.0.1")
    ex.parsed = parse("chat", json.dumps({"model": model, "messages": [{"role": "user", "content": "SECRET PROMPT"}]}).encode())
    ex.started, ex.status, ex.backend = 10.0, 200, "a"
    ex.summary = Summary(usage=Usage(prompt_tokens=3, completion_tokens=2, source="upstream"))
    ex.first_content = 10.25
    ex.finalise(outcome, 11.0)
    return ex


def test_json() -> None:
    out = io.StringIO()
    ex = exchange()
    RequestLog("INFO", True, out).on_finish(tflow.tflow(), ex)
    line = json.loads(out.getvalue())
    assert line["uid"] == ex.uid and line["outcome"] == "ok" and line["status"] == 200
    assert (line["prompt_tokens"], line["completion_tokens"], line["ttft_ms"], line["duration_ms"]) == (3, 2, 250.0, 1000.0)
    assert "SECRET" not in out.getvalue()


def test_a_person_gets_columns_without_control_characters() -> None:
    out = Terminal()
    RequestLog("INFO", True, out).on_finish(tflow.tflow(), exchange(model="evil\x1b[2J\nmodel"))
    text = out.getvalue()
    assert text.count("\n") == 1 and "\x1b" not in text
    assert "3+2 tok" in text and "ttft 250.0 ms" in text


def test_levels() -> None:
    out = io.StringIO()
    log = RequestLog("WARNING", True, out)
    log.on_finish(tflow.tflow(), exchange("ok"))
    assert out.getvalue() == ""
    log.on_finish(tflow.tflow(), exchange("upstream_error"))
    assert json.loads(out.getvalue())["level"] == "WARNING"


def test_the_prompt_only_if_asked_for() -> None:
    out = io.StringIO()
    RequestLog("INFO", True, out, prompts=True).on_finish(tflow.tflow(), exchange())
    assert json.loads(out.getvalue())["prompt"] == "SECRET PROMPT"
    terminal = Terminal()
    RequestLog("INFO", True, terminal, prompts=True).on_finish(tflow.tflow(), exchange())
    assert terminal.getvalue().endswith('  "SECRET PROMPT"\n')


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        (
            "chat",
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]},
            "b",
        ),
        ("chat", {"messages": [{"role": "assistant", "content": None}]}, ""),
        ("completions", {"prompt": ["a", "b"]}, "a\nb"),
        ("completions", {"prompt": [1, 2]}, ""),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "c"}]}]}, "c"),
        ("embeddings", {"input": "x" * (MAX_PROMPT + 1)}, "x" * MAX_PROMPT + "…"),
        ("rerank", {"query": "q", "documents": []}, "q"),
        ("chat", {}, None),
        ("chat", {"messages": 3}, ""),
    ],
)
def test_what_the_prompt_is(endpoint: str, body: dict[str, object], text: str | None) -> None:
    ex = exchange()
    ex.parsed = parse(endpoint, json.dumps(body).encode())
    assert prompt_of(ex) == text


def test_any_bytes_in_a_header_can_be_logged() -> None:
    out = io.StringIO()
    ex = exchange()
    ex.request_id = "a\udc80"  # a byte that is no UTF-8, as headers come
    RequestLog("INFO", True, out).on_finish(tflow.tflow(), ex)
    assert json.loads(out.getvalue())["request_id"] == "a?"


class Stuck(io.StringIO):
    """A pipe nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.released.wait(10)
        return super().write(text)


async def test_a_reader_that_stands_still_does_not_stop_the_traffic() -> None:
    out = Stuck()
    log = RequestLog("INFO", True, out)
    log.on_finish(tflow.tflow(), exchange())
    await asyncio.to_thread(out.entered.wait, 10)
    ex = exchange()
    for _ in range(MAX_WAITING + 5):
        log.on_finish(tflow.tflow(), ex)
    out.released.set()
    while out.getvalue().count("\n") < MAX_WAITING + 2:
        await asyncio.sleep(0)
    log.stop()
    assert "5 lines of the request log were dropped" in out.getvalue().splitlines()[-1]


async def test_the_end_writes_what_is_left() -> None:
    out = io.StringIO()
    log = RequestLog("INFO", True, out)
    log.on_finish(tflow.tflow(), exchange())
    assert out.getvalue() == ""
    log.stop()
    assert out.getvalue().count("\n") == 1


def test_nobody_there_to_read() -> None:
    out = io.StringIO()
    log = RequestLog("INFO", True, out)
    out.close()
    log.on_finish(tflow.tflow(), exchange())
    log.stop()
