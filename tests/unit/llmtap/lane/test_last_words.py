import json

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from llmtap.core.errors import UpstreamFailed
from llmtap.lane.last_words import last_words

ERROR = UpstreamFailed("the backend died")


def flow(path: str = "/v1/chat/completions", kind: str = "text/event-stream; charset=utf-8", status: int = 200) -> http.HTTPFlow:
    made = tflow.tflow(resp=True)
    made.request.path = path
    made.response = http.Response.make(status, b"", {"content-type": kind})
    return made


def test_an_event_in_the_clients_dialect() -> None:
    words = last_words(flow(), ERROR, b"data: 1\n\n")
    assert words.startswith(b"data: ") and words.endswith(b"\n\n")
    assert json.loads(words[6:])["error"]["code"] == "upstream_error"
    assert last_words(flow("/v1/messages"), ERROR, b"").startswith(b"event: error\ndata: ")
    line = last_words(flow("/api/chat", "application/x-ndjson"), ERROR, b'{"done":false}\n')
    assert json.loads(line) == {"error": "the backend died"} and line.endswith(b"\n")


@pytest.mark.parametrize(
    ("tail", "gap"),
    [(b"", b""), (b"data: 1\n\n", b""), (b"data: 1\r\n\r\n", b""), (b'data: {"a', b"\n\n"), (b"data: 1\n", b"\n\n")],
)
def test_an_unfinished_event_does_not_swallow_it(tail: bytes, gap: bytes) -> None:
    assert last_words(flow(), ERROR, tail).startswith(gap + b"data: ")


def test_an_unfinished_line_does_not_either() -> None:
    assert last_words(flow("/api/chat", "application/x-ndjson"), ERROR, b'{"mess').startswith(b'\n{"error"')


@pytest.mark.parametrize(
    ("path", "kind", "tail"),
    [
        ("/v1/chat/completions", "text/event-stream", b"data: x\n\ndata: [DONE]\n\n"),
        ("/v1/responses", "text/event-stream", b'event: response.completed\ndata: {"a":1}\n\n'),
        ("/v1/messages", "text/event-stream", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("/api/chat", "application/x-ndjson", b'{"model":"m","done":true,"eval_count":3}\n'),
    ],
)
def test_a_stream_that_had_its_end_gets_nothing(path: str, kind: str, tail: bytes) -> None:
    assert last_words(flow(path, kind), ERROR, tail) == b""


def test_nothing_where_an_event_would_be_out_of_place() -> None:
    assert last_words(flow(kind="application/json"), ERROR, b'{"a":') == b""
    assert last_words(flow(status=500), ERROR, b"") == b""
    zipped = flow()
    assert zipped.response is not None
    zipped.response.headers["content-encoding"] = "gzip"
    assert last_words(zipped, ERROR, b"") == b""
    empty = flow()
    empty.response = None
    assert last_words(empty, ERROR, b"") == b""
