"""The sockets between gateway and launcher."""

from __future__ import annotations

import orjson

from llmtap.core import sockets


def test_both_have_the_same_length_so_that_one_check_of_the_path_does() -> None:
    assert len(sockets.CONTROL) <= len(sockets.MANAGEMENT) < 32


def test_a_line_has_room_for_ten_thousand_requests() -> None:
    row = {"id": "0" * 26, "path": "/v1/chat/completions", "model": "m" * 200, "backend": "b" * 64, "key": "k" * 64}
    assert len(orjson.dumps([row] * 10_000)) < sockets.MAX_LINE
