"""mitmproxy's flow files, written by mitmproxy itself."""

from __future__ import annotations

import io
from typing import Any

from mitmproxy import http
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow, tutils

from llmtap_launcher.importing.entries import Entry, Malformed
from llmtap_launcher.importing.flows import entries
from llmtap_launcher.importing.web import NotInference

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}'
STREAM = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hey"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def flow(path: bytes = b"/v1/chat/completions", **response: Any) -> http.HTTPFlow:
    asked = tutils.treq(
        method=b"POST",
        path=path,
        content=BODY,
        headers=http.Headers(((b"user-agent", b"curl"), (b"authorization", b"Bearer sk-secret"))),
    )
    headers = http.Headers(((b"content-type", b"text/event-stream"),))
    return tflow.tflow(req=asked, resp=tutils.tresp(content=STREAM, headers=headers, **response))


def written(*flows: Any) -> io.BytesIO:
    file = io.BytesIO()
    writer = FlowWriter(file)
    for one in flows:
        writer.add(one)
    file.seek(0)
    return file


def test_an_exchange(stored: Any) -> None:
    (found,) = entries(written(flow()))
    assert isinstance(found, Entry)
    row, asked, said = stored(found)
    assert (asked[0]["content"], said["content"], row["stream"], row["client_ip"]) == ("hi", "hey", 1, "127.0.0.1")
    assert (row["duration_ms"], row["ttft_ms"], row["user_agent"]) == (3000.0, 2000.0, "curl")
    assert "sk-secret" not in str(row)


def test_packed_and_failed_and_others() -> None:
    packed = flow()
    assert packed.response is not None
    packed.response.encode("gzip")
    failed = flow()
    failed.response, failed.error = None, tflow.terr("connection refused")
    found = list(entries(written(packed, failed, tflow.ttcpflow(), flow(b"/login"), tflow.tflow(resp=True))))
    assert [type(it) for it in found] == [Entry, Entry, NotInference, NotInference, NotInference]
    first, second = found[:2]
    assert isinstance(first, Entry) and isinstance(second, Entry)
    assert (first.reply, second.error, second.status) == (STREAM, "connection refused", None)


def test_a_damaged_file_gives_what_is_before() -> None:
    data = written(flow(), flow()).getvalue()
    found = list(entries(io.BytesIO(data[:-30])))
    assert [type(it) for it in found] == [Entry, Malformed]
    (odd,) = entries(io.BytesIO(b"2:1:]"))
    assert isinstance(odd, Malformed)
