from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.errors import WireError
from llmtap.wire.form import FormScanner, boundary_of, request_of
from support import cutting


def part(name: str, value: bytes, more: str = "", headers: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'.encode() + value + b"\r\n"


FILE = part("file", b"RIFF\x00\r\n--bogus\r\n\r\nmodel\r\n-" * 50, '; filename="a.wav"', "Content-Type: audio/wav\r\n")
END = b"--b--\r\n"


def scan(pieces: list[bytes]) -> tuple[dict[str, str], bool, list[bool]]:
    scanner = FormScanner(b"b")
    known = [scanner.feed(piece) for piece in pieces]
    return scanner.fields, scanner.ended, known


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        (part("model", b"whisper") + FILE + END, {"model": "whisper"}),
        (FILE + part("model", b"whisper") + part("stream", b"true") + END, {"model": "whisper", "stream": "true"}),
        (b"preamble\r\n" + part("model", "modèle/ß".encode()) + END, {"model": "modèle/ß"}),
        (part("model", b"") + END, {"model": ""}),
        (part("language", b"en") + END, {}),
        (part("model", b"x", '; filename="model"') + END, {}),
        (part("model", b"a\r\n--bb\r\nb") + END, {"model": "a\r\n--bb\r\nb"}),  # begins like a delimiter, and is none
        (b"--b \t\r\ncontent-disposition:form-data;name=model\r\n\r\nx\r\n--b--", {"model": "x"}),
        (b"--b\r\n\r\nno headers\r\n" + part("model", b"x") + END, {"model": "x"}),
        (b'--b\r\nContent-Disposition: form-data; name="mo\\"del"\r\n\r\nx\r\n' + END, {}),
        (b"not a form", {}),
    ],
)
def test_fields(form: bytes, fields: dict[str, str]) -> None:
    assert scan([form])[0] == fields
    assert scan(cutting.bytewise(form))[0] == fields


def test_it_says_when_it_knows_enough() -> None:
    assert scan([part("language", b"en"), part("model", b"m"), b"--b\r\n", FILE])[2] == [False, False, True, True]
    assert scan([b"--b\r\n\r\n\r\n", END])[1:] == (True, [False, True])


@pytest.mark.parametrize(
    "form",
    [
        b"--b\r\nX: " + b"y" * 20_000,
        b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        part("model", b"m" * 20_000),
    ],
)
def test_what_has_no_bounds_ends_the_scan(form: bytes) -> None:
    assert scan([form]) == ({}, True, [True])
    assert scan(cutting.bytewise(form))[:2] == ({}, True)


def test_a_field_given_twice_is_an_error() -> None:
    scanner = FormScanner(b"b")
    assert scanner.feed(part("model", b"small") + FILE) is True
    with pytest.raises(WireError, match="model"):
        scanner.feed(part("model", b"large") + END)


def test_nothing_of_a_file_is_kept() -> None:
    scanner = FormScanner(b"b")
    scanner.feed(part("file", b"", '; filename="a"')[:-2])
    for _ in range(100):
        assert not scanner.feed(b"x" * 100_000)
    assert len(scanner._buffer) < 100


@given(cuts=cutting.cuts, fields=st.dictionaries(st.sampled_from(["model", "stream", "prompt"]), st.binary(max_size=40)))
def test_every_cut_gives_the_same(cuts: list[int], fields: dict[str, bytes]) -> None:
    form = FILE + b"".join(part(name, value) for name, value in fields.items()) + END
    whole = scan([form])
    assert scan(cutting.at(form, cuts))[:2] == whole[:2]
    if not any(b"\r\n--b" in value for value in fields.values()):
        expected = {n: v.decode("utf-8", "replace") for n, v in fields.items() if n != "prompt"}
        assert whole[0] == expected and whole[1]


@given(st.binary(max_size=300), cutting.cuts)
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(WireError):
        scan(cutting.at(b"--b\r\n" + data, cuts))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b\\"c"', b'a b"c'),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=" + "x" * 300, None),
        ("multipart/mixed; boundary=abc", None),
        ("application/json", None),
        ("", None),
    ],
)
def test_boundaries(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


def test_what_a_form_asks_for() -> None:
    asked = request_of("transcriptions", {"model": "m", "stream": " True"})
    assert (asked.model, asked.stream, asked.exact, asked.obj) == ("m", True, False, {})
    asked = request_of("transcriptions", {"model": "", "stream": "no"})
    assert (asked.model, asked.stream) == (None, False)
