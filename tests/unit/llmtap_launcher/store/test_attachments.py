"""Lifting: what comes back is what went in, byte for byte; what would not come back stays."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.store.attachments import MIN_CHARS, PREFIX, lift, reference, restore

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
B64 = base64.b64encode(PNG).decode()


def there_and_back(content: list[Any]) -> list[Any]:
    parts, found = lift(content)
    stored = {it.hash: it.content for it in found}
    back: list[Any] = restore(parts, stored.get)
    return back


@pytest.mark.parametrize(
    ("part", "mime"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{B64}", "detail": "low"}}, "image/webp"),
        ({"type": "input_image", "image_url": f"data:image/PNG;base64,{B64}"}, "image/png"),
        ({"type": "input_audio", "input_audio": {"data": B64, "format": "mp3"}}, "audio/mpeg"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": B64}}, "image/gif"),
        ({"type": "image", "data": B64}, "image/png"),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{B64}"}}, "application/pdf"),
        ({"type": "image_url", "image_url": {"url": f"data:;base64,{B64}"}}, "image/png"),
    ],
)
def test_every_api(part: dict[str, Any], mime: str) -> None:
    content = [{"type": "text", "text": "look"}, part]
    parts, found = lift(content)
    assert [(it.mime, it.content) for it in found] == [(mime, PNG)]
    assert B64 not in str(parts)
    assert there_and_back(content) == content


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/png;base64,{B64[:-3]}!!!",
        f"data:image/png;base64,{B64}\n",
        f"data:image/png,{'x' * MIN_CHARS}",
        f"https://example.org/{'x' * MIN_CHARS}",
        f"data:image/png;base64,{B64[:100]}",
        f"data:image/png;base64,{'A' * 999}B==",
    ],
)
def test_what_would_not_come_back_stays(value: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": value}}]
    parts, found = lift(content)
    assert (parts is content, found) == (True, ())


def test_long_texts_stay() -> None:
    content = [{"type": "text", "text": B64}]
    assert lift(content) == (content, ())


@given(
    st.recursive(
        st.none() | st.text() | st.binary(max_size=900).map(lambda b: base64.b64encode(b).decode()),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "url", "x", "file_data"]), inner),
    )
)
def test_any_value_comes_back(value: Any) -> None:
    assert there_and_back([value]) == [value]


def test_unknown_references_stay() -> None:
    assert reference("attachment:00:x") is None
    assert reference(7) is None
    text = f"{PREFIX}{'0' * 32}:data:image/png;base64,"
    assert reference(text) == (bytes(16), "data:image/png;base64,")
    assert restore([text, {"a": text}], lambda _: None) == [text, {"a": text}]
