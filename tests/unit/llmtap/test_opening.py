"""The first look at a request."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.endpoints import OTHER
from llmtap.core.errors import BadRequest
from llmtap.exchange import Exchange
from llmtap.opening import open_exchange, read_own_headers


def arriving(
    path: str | None = "/v1/chat/completions", target: str | None = None, **headers: str
) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.tflow()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    flow.request = http.Request.make("POST", f"http://h{target or path}", b"", fields)
    return flow, open_exchange(flow, path)


def test_what_the_head_tells() -> None:
    _, ex = arriving(user_agent="sdk/1", x_session_id="s", x_request_id="r-1")
    assert (ex.method, ex.path, ex.endpoint.name, ex.dialect) == ("POST", "/v1/chat/completions", "chat", "openai")
    assert (ex.user_agent, ex.session_hint, ex.request_id) == ("sdk/1", "s", "r-1")
    assert ex.client_ip == "127.0.0.1"


def test_a_path_without_canonical_form_is_kept_for_the_record_without_its_query() -> None:
    _, ex = arriving(None, "/v1/../sleep?api_key=secret")
    assert ex.path == "/v1/../sleep" and ex.endpoint is OTHER


@pytest.mark.parametrize("bad", ["x" * 129, "two words", "tab\t", "é", ""])
def test_odd_request_ids_are_not_taken(bad: str) -> None:
    _, ex = arriving(x_request_id=bad)
    assert ex.request_id is None and ex.client_request_id == ex.uid


def test_tags_and_metadata() -> None:
    flow, ex = arriving(x_llmtap_tags="a, b,,", x_llmtap_metadata='{"user": 7}')
    read_own_headers(flow.request, ex)
    assert ex.tags == ["a", "b"] and ex.metadata == {"user": 7}


@pytest.mark.parametrize("bad", ["[1]", "not json", "3"])
def test_metadata_must_be_an_object(bad: str) -> None:
    flow, ex = arriving(x_llmtap_metadata=bad)
    with pytest.raises(BadRequest) as caught:
        read_own_headers(flow.request, ex)
    assert caught.value.param == "x-llmtap-metadata" and bad not in caught.value.message


def test_how_much_is_to_be_recorded() -> None:
    for given, wish in (("off", "off"), (" Metadata ", "metadata"), ("full", "full")):
        flow, ex = arriving(x_llmtap_capture=given)
        read_own_headers(flow.request, ex)
        assert ex.capture_wish == wish
    flow, ex = arriving(x_llmtap_capture="none")
    with pytest.raises(BadRequest) as caught:
        read_own_headers(flow.request, ex)
    assert caught.value.param == "x-llmtap-capture"
