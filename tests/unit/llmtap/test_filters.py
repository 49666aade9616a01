"""Filters as a step: order, own rules, what goes on the wire, and what is remembered of what was received."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.config import Config
from llmtap.core.endpoints import endpoint_of
from llmtap.core.errors import ConfigError, Forbidden, InternalError
from llmtap.exchange import Exchange
from llmtap.filters import Filters, load_rule
from llmtap.policy.keys import Client
from llmtap.transforms import Transforms

RULES = """
from llmtap.core.errors import Forbidden
SEEN = []

def note(request, about):
    SEEN.append((request["model"], about.key, about.endpoint, about.tags, about.metadata))

def double(request, about):
    return {**request, "max_tokens": request["max_tokens"] * 2}

async def later(request, about):
    return {**request, "seed": 7}

def refuse(request, about):
    raise Forbidden("not on Sundays", code="closed")

def broken(request, about):
    raise RuntimeError("boom")

def odd(request, about):
    return "text"

not_a_function = 3
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


def filters(*entries: dict[str, Any]) -> Filters:
    return Filters(Config.model_validate({"filters": entries}).filters)


def arriving(body: bytes, path: str = "/v1/chat/completions") -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", f"http://gw{path}", body, {"content-type": "application/json"})
    endpoint = endpoint_of(path)
    assert endpoint is not None
    ex = Exchange("POST", path, endpoint, "openai", "1.2.3.4")
    ex.body, ex.client, ex.tags, ex.metadata = body, Client("alice"), ["t"], {"a": 1}
    Transforms().on_request(flow, ex)
    return flow, ex


def sent(flow: http.HTTPFlow) -> Any:
    content = flow.request.content or b""
    assert flow.request.headers["content-length"] == str(len(content))
    return orjson.loads(content)


def test_one_after_the_other() -> None:
    flow, ex = arriving(b'{"model":"m","max_tokens":900,"logit_bias":{},"messages":[]}')
    step = filters(
        {"max_tokens": 500},
        {"models": ["other"], "set": {"temperature": 9}},
        {"set": {"max_tokens": 600, "temperature": 0}, "strip": ["logit_bias"]},
    )
    assert step.on_request(flow, ex) is None
    assert sent(flow) == {"model": "m", "max_tokens": 600, "temperature": 0, "messages": []}
    assert ex.parsed is not None and ex.parsed.max_tokens == 600 and ex.parsed.exact
    assert ex.body is not None and b"logit_bias" in ex.body, "as received"
    assert ex.filtered == flow.request.content and ex.received_exact


def test_nothing_to_change_nothing_changed() -> None:
    body = b'{ "model": "m", "max_tokens": 5 }'
    flow, ex = arriving(body)
    filters({"max_tokens": 500}, {"keys": ["bob"], "strip": ["model"]}).on_request(flow, ex)
    assert flow.request.content == body and ex.filtered is None
    flow, ex = arriving(b"", "/v1/audio/transcriptions")
    filters({"max_tokens": 5}).on_request(flow, ex)
    assert ex.filtered is None


def test_usage_is_still_asked_for_and_withheld() -> None:
    flow, ex = arriving(b'{"model":"m","stream":true,"messages":[]}')
    assert ex.usage_injected
    filters({"set": {"temperature": 0}}).on_request(flow, ex)
    assert sent(flow)["stream_options"] == {"include_usage": True} and ex.usage_injected
    assert ex.filtered is not None and b"stream_options" not in ex.filtered
    flow, ex = arriving(b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}')
    filters({"set": {"temperature": 0}}).on_request(flow, ex)
    assert not ex.usage_injected


async def test_own_rules(rules: Path) -> None:
    flow, ex = arriving(b'{"model":"m","max_tokens":3}')
    step = filters(
        {"python": f"{rules}:note"},
        {"max_tokens": 2, "python": f"{rules}:double"},
        {"python": f"{rules}:later"},
        {"set": {"top_p": 1}},
    )
    waiting = step.on_request(flow, ex)
    assert waiting is not None
    await waiting
    assert sent(flow) == {"model": "m", "max_tokens": 4, "seed": 7, "top_p": 1}
    hook = step._filters[0].hook
    assert hook is not None and hook.__globals__["SEEN"] == [("m", "alice", "chat", ("t",), {"a": 1})]


@pytest.mark.parametrize(("rule", "error"), [("refuse", Forbidden), ("broken", RuntimeError), ("odd", InternalError)])
async def test_rules_that_refuse_and_rules_that_fail(rules: Path, rule: str, error: type[Exception]) -> None:
    flow, ex = arriving(b'{"model":"m"}')
    waiting = filters({"python": f"{rules}:{rule}"}).on_request(flow, ex)
    assert waiting is not None
    with pytest.raises(error):
        await waiting
    assert ex.filtered is None


def test_rules_of_installed_modules(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(rules.parent))
    monkeypatch.delitem(sys.modules, "rules", raising=False)
    assert load_rule("rules:note", "k").__name__ == "note"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("no_such_module_anywhere:f", "ModuleNotFoundError"),
        ("no/such/file.py:f", "FileNotFoundError"),
        ("{rules}:missing", "AttributeError"),
        ("{rules}:not_a_function", "is no function"),
    ],
)
def test_a_rule_that_cannot_be_loaded_is_told_at_once(rules: Path, where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        filters({"strip": ["x"]}, {"python": where.format(rules=rules)})
    assert str(caught.value).startswith("filters[1].python: ")
