"""The codec and the handshake; the whole of it is in tests/integration/test_lane_websocket.py."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, events
from wsproto.connection import Connection
from wsproto.extensions import PerMessageDeflate

from llmtap.lane.websocket import Closing, Codec, Message, is_accepted, understood

DEFLATE = "permessage-deflate"


def client(extension: str) -> Connection:
    made = PerMessageDeflate()
    if extension:
        made.finalize(extension)
    return Connection(ConnectionType.CLIENT, [made])


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(
    frames=st.lists(st.text(), min_size=1, max_size=4) | st.lists(st.binary(), min_size=1, max_size=4),
    sizes=st.lists(st.integers(0, 9), max_size=9),
    extension=st.sampled_from(["", DEFLATE, DEFLATE + "; client_no_context_takeover; server_max_window_bits=10"]),
)
def test_a_message_is_the_same_however_it_is_cut_and_goes_on_as_it_came(
    frames: list[Any], sizes: list[int], extension: str
) -> None:
    sender = client(extension)
    kind = events.TextMessage if isinstance(frames[0], str) else events.BytesMessage
    data = b"".join(sender.send(kind(f, message_finished=i == len(frames))) for i, f in enumerate(frames, 1))  # type: ignore[operator]
    data += sender.send(events.Ping(b"p"))
    codec = Codec(True, extension, 1 << 20)
    got = [event for piece in cut(data, sizes) for event in codec.feed(piece)]
    message, ping = got
    assert isinstance(message, Message) and isinstance(ping, events.Ping)
    whole = frames[0][:0].join(frames)
    assert message.content == (whole.encode() if isinstance(whole, str) else whole)
    assert message.is_text is isinstance(whole, str)
    onward = Codec(False, extension, 1 << 20)
    (back,) = Codec(True, extension, 1 << 20).feed(onward.message(message.frames))
    assert isinstance(back, Message) and back.content == message.content


@given(data=st.binary(max_size=200), extension=st.sampled_from(["", DEFLATE]))
def test_any_bytes_give_events_and_nothing_comes_after_a_closing(data: bytes, extension: str) -> None:
    codec = Codec(True, extension, 100)
    got = list(codec.feed(data))
    closings = [event for event in got if isinstance(event, Closing)]
    assert len(closings) <= 1 and (not closings or got[-1] is closings[0])
    if closings:
        assert list(codec.feed(b"\x81\x80\0\0\0\0")) == []
        codec.close(closings[0].code, closings[0].reason)


def test_a_bomb_shows_before_it_is_inflated() -> None:
    data = client(DEFLATE).send(events.BytesMessage(b"\0" * 200_000_000))
    assert len(data) < 300_000
    codec = Codec(True, DEFLATE, 1 << 20)
    (closing,) = codec.feed(bytes(data))
    assert isinstance(closing, Closing) and closing.code == 1009 and not closing.clean
    assert codec.close(closing.code, closing.reason)[2:4] == b"\x03\xf1"
    assert codec.close(1000, None) == b""


@pytest.mark.parametrize("extension", [DEFLATE + "; client_max_window_bits=7", DEFLATE + "; server_max_window_bits=x"])
def test_odd_parameters_are_a_value_error(extension: str) -> None:
    with pytest.raises(ValueError):
        Codec(True, extension, 1)


def test_only_understood_extensions_are_offered() -> None:
    fields = (
        (b"A", b"b"),
        (b"Sec-WebSocket-Extensions", b"x; y=1, permessage-deflate; z , w"),
        (b"sec-websocket-extensions", b"x"),
    )
    assert understood(fields) == ((b"A", b"b"), (b"Sec-WebSocket-Extensions", b"permessage-deflate; z"))


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        (((b"Upgrade", b"WebSocket"), (b"Connection", b"keep-alive, Upgrade")), True),
        (((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Content-Length", b"0")), True),
        (((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Sec-WebSocket-Extensions", b"permessage-deflate;a")), True),
        (((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Sec-WebSocket-Extensions", b"x")), False),
        (((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Content-Length", b"1")), False),
        (((b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Transfer-Encoding", b"chunked")), False),
        (((b"Upgrade", b"h2c"), (b"Connection", b"upgrade")), False),
        (((b"Upgrade", b"websocket"),), False),
    ],
)
def test_what_a_101_must_say(fields: tuple[tuple[bytes, bytes], ...], accepted: bool) -> None:
    assert is_accepted(fields) is accepted
