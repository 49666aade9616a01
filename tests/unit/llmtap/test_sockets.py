"""Websocket messages: kept within bounds, and what is left out is counted."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage

from llmtap.core.endpoints import ENDPOINTS, OTHER, Endpoint
from llmtap.exchange import Exchange
from llmtap.sockets import MESSAGE_BYTES, SIDE_BYTES, SocketLog, Sockets


def arriving(endpoint: Endpoint = ENDPOINTS["/v1/realtime"]) -> tuple[http.HTTPFlow, Exchange]:
    flow = tflow.twebsocketflow()
    return flow, Exchange("GET", "/v1/realtime", endpoint, "openai", "127.0.0.1")


def say(
    sockets: Sockets, flow: http.HTTPFlow, ex: Exchange, content: bytes, from_client: bool = False, text: bool = True
) -> None:
    assert flow.websocket is not None
    flow.websocket.messages.append(WebSocketMessage(1 if text else 2, from_client, content))
    sockets.on_message(flow, ex)


def test_messages_are_kept_with_their_times() -> None:
    flow, ex = arriving(OTHER)
    sockets = Sockets(keep=True, clock=lambda: ex.started + 0.25)
    say(sockets, flow, ex, "ä".encode(), from_client=True)
    say(sockets, flow, ex, b"\xff", text=False)
    assert ex.socket is not None and ex.socket.messages == [
        {"at_ms": 250.0, "from": "client", "bytes": 2, "text": "ä"},
        {"at_ms": 250.0, "from": "server", "bytes": 1, "base64": "/w=="},
    ]
    assert ex.socket.received == 2 and ex.socket.dropped == 0 and ex.last_chunk == ex.started + 0.25
    assert ex.summary is None, "nobody here knows what it means"


def test_long_ones_are_cut_on_a_character() -> None:
    log = SocketLog(0.0, keep=True, reads=False)
    log.note(True, True, b"x" + "ä".encode() * MESSAGE_BYTES, 1.0)
    (message,) = log.messages
    assert message["truncated"] and message["bytes"] == 1 + 2 * MESSAGE_BYTES
    assert message["text"] == "x" + "ä" * (MESSAGE_BYTES // 2 - 1)


def test_a_talkative_client_does_not_cost_the_answers() -> None:
    log = SocketLog(0.0, keep=True, reads=False)
    for _ in range(200):
        log.note(True, True, b"x" * 10_000, 1.0)
    log.note(False, True, b"answer", 1.0)
    kept = [m for m in log.messages if m["from"] == "client"]
    assert len(kept) + log.dropped == 200 and SIDE_BYTES - 11_000 < len(kept) * 10_064 <= SIDE_BYTES
    assert log.messages[-1]["text"] == "answer" and log.received == 2_000_000


def test_without_capture_nothing_is_kept_and_all_is_read() -> None:
    flow, ex = arriving()
    sockets = Sockets(keep=False)
    say(sockets, flow, ex, b'{"type":"session.update","model":"m"}', from_client=True)
    say(sockets, flow, ex, b'{"type":"transcription.delta","delta":"hi"}')
    sockets.on_finish(flow, ex)
    assert ex.socket is not None and ex.socket.messages == [] and ex.socket.received == 37
    assert ex.summary is not None and ex.summary.model == "m" and ex.summary.choices[0].content == "hi"
    assert ex.first_content is not None


def test_other_requests_are_left_alone() -> None:
    flow, ex = arriving()
    flow.websocket = None
    Sockets(keep=True).on_message(flow, ex)
    Sockets(keep=True).on_finish(flow, ex)
    assert ex.socket is None
