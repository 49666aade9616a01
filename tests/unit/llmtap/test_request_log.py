"""The request log: one line an exchange, never a prompt."""

from __future__ import annotations

import io
import json

from mitmproxy.test import tflow

from llmtap.core.endpoints import ENDPOINTS
from llmtap.core.record import Outcome, Summary, Usage
from llmtap.exchange import Exchange
from llmtap.request_log import RequestLog
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
