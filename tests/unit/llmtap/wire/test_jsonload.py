from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.wire.jsonload import CutShort, load_object, loads


def test_strict_json_is_exact() -> None:
    assert loads('{"a":[1,2.5,null,"ü"]}'.encode()) == ({"a": [1, 2.5, None, "ü"]}, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"\xef\xbb\xbf[1]", [1]),
        (b'["\\ud83d"]', ["\ud83d"]),
        (b"[Infinity]", [math.inf]),
        (b"[1e999]", [math.inf]),
    ],
)
def test_what_python_servers_accept_and_orjson_does_not(text: bytes, value: object) -> None:
    assert loads(text) == (value, False)


def test_not_a_number() -> None:
    value, exact = loads(b"[NaN]")
    assert math.isnan(value[0])
    assert not exact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{x", "not valid JSON at line 1, column 2"),
        (b'{"secret": "prompt" oops}', "not valid JSON at line 1, column 21"),
        (b'"\xff"', "not valid UTF-8 at byte 1"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[NaN," + b"9" * 5000 + b"]", "number that is too long"),
    ],
)
def test_errors_say_where_and_never_what(text: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message) as caught:
        loads(text)
    assert not isinstance(caught.value, CutShort)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback would show the text


@pytest.mark.parametrize("text", ['{"a":1,"b":[true,"ü\\u00e4"],"c":-1.5e3}', '{"a":NaN,"b":"x\\u00e4y","c":[-Infinity,null]}'])
def test_every_beginning_of_an_object_is_cut_short(text: str) -> None:
    data = text.encode()
    assert loads(data)
    for end in range(len(data)):
        with pytest.raises(CutShort):
            loads(data[:end])


def test_objects_only() -> None:
    assert load_object(b'{"a":NaN}').keys() == {"a"}
    for text in (b"[]", b"1", b'"x"', b"null", b"NaN"):
        with pytest.raises(WireError, match="not an object"):
            load_object(text)


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    try:
        loads(data)
    except WireError as error:
        assert str(error)
