"""A form's model is changed however the form is cut, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire.form import MAX_HEAD, MAX_VALUE
from llmtap.wire.form_rename import FormRename

BOUNDARY = b"xYzZy"


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (BOUNDARY, name.encode(), more, value)


FILE = part("file", b"RIFF\r\n--xYz\r\n--xYzZ\r\n--xYzZyno\r\n\x00\xff", b'; filename="model.wav"\r\nContent-Type: audio/wav')
END = b"--%b--\r\n" % BOUNDARY


def renamed(pieces: list[bytes], model: str | None = "org/served") -> bytes:
    rename = FormRename(BOUNDARY)
    rename.model = model
    return b"".join([*(rename(piece) for piece in pieces if piece), rename(b"")])


@pytest.mark.parametrize(
    "form",
    [
        part("model", b"nick") + FILE + END,
        FILE + part("model", b"nick") + part("language", b"en") + END,
        part("language", b"model") + part("model", b"nick") + END + b"epilogue",
        b"preamble\r\n" + part("model", b"nick") + END,
        part("models", b"a") + part("file", b"nick", b'; filename="x"') + part("model", b"nick") + END,
    ],
)
def test_every_cut_gives_the_same(form: bytes) -> None:
    at = form.rindex(b"\r\n\r\nnick\r\n")
    expected = form[:at] + b"\r\n\r\norg/served\r\n" + form[at + len(b"\r\n\r\nnick\r\n") :]
    assert renamed([form]) == expected
    assert renamed([bytes([b]) for b in form]) == expected
    for cut in range(1, len(form)):
        assert renamed([form[:cut], form[cut:]]) == expected, cut
    assert renamed([form], None) == form


def test_what_is_no_delimiter_is_passed_on_at_once() -> None:
    rename = FormRename(BOUNDARY)
    rename.model = "m"
    begin = part("file", b"", b'; filename="x"')[:-2]
    out = rename(begin + b"x" * 100_000)
    assert len(out) > 100_000 - 20


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"no form at all",
        END,
        part("language", b"en") + END,
        part("model", b"cut off")[:-4],
        b'--xYzZy\r\nContent-Disposition: form-data; name="model"\r\n',
        b"--xYzZy\r\n" + b"h" * (MAX_HEAD + 10) + b"\r\n\r\nx\r\n" + END,
        part("model", b"v" * (MAX_VALUE + 100)) + END,
    ],
)
def test_what_cannot_be_read_goes_through(form: bytes) -> None:
    assert renamed([form]) == form
    assert renamed([form[i : i + 7] for i in range(0, len(form), 7)]) == form


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_other_bytes_are_never_changed(pieces: list[bytes]) -> None:
    assert renamed(pieces) == b"".join(pieces)
