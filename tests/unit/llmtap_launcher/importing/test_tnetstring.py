"""Typed netstrings, against mitmproxy's own writer, and against anything."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.io import tnetstring as theirs

from llmtap_launcher.importing.tnetstring import BadNetstring, loads, read

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(values)
def test_what_mitmproxy_writes(value: Any) -> None:
    assert loads(theirs.dumps(value)) == value


@given(st.lists(values, max_size=4))
def test_a_file_of_them(listed: list[Any]) -> None:
    assert list(read(io.BytesIO(b"".join(theirs.dumps(value) for value in listed)))) == listed


@given(st.binary())
def test_any_bytes_are_values_or_the_one_error(data: bytes) -> None:
    for parse in (loads, lambda d: list(read(io.BytesIO(d)))):
        with suppress(BadNetstring):
            parse(data)


@pytest.mark.parametrize(
    "data",
    [b"5:hell", b"5:hello", b"x:", b":", b"3:abc?", b"3:abc#", b"4:nope!", b"1:a~", b"9" * 40, b"3:1:a}", b"4:1:a,}", b"1:\xff;"],
)
def test_damaged_ones(data: bytes) -> None:
    with pytest.raises(BadNetstring):
        list(read(io.BytesIO(data)))


def test_more_than_one_value_is_not_one() -> None:
    with pytest.raises(BadNetstring):
        loads(b"1:1#1:2#")
