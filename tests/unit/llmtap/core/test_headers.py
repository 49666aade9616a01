from __future__ import annotations

from mitmproxy.http import Headers

from llmtap.core.headers import by_name, changed, text

FIELDS = ((b"Host", b"a"), (b"Accept", b"x"), (b"accept", b"y"), (b"X-Tag", b"\xff\xc3\xa4"))


def test_by_name_is_what_mitmproxy_says() -> None:
    headers = Headers(FIELDS)
    assert {n.decode(): text(v) for n, v in by_name(FIELDS).items()} == {n.lower(): headers[n] for n in headers}
    assert by_name(()) == {} and by_name(FIELDS[:2]) == {b"host": b"a", b"accept": b"x"}


def test_text() -> None:
    assert text(None) is None and text(b"a\xff") == "a\udcff"


def test_changed_keeps_places_and_spelling_and_everything_else() -> None:
    assert changed(FIELDS, {}) == FIELDS
    assert changed(FIELDS, {b"accept": b"z", b"x-new": b"1", b"host": None, b"x-gone": None}) == (
        (b"Accept", b"z"),
        (b"X-Tag", b"\xff\xc3\xa4"),
        (b"x-new", b"1"),
    )
    assert changed((), {b"b": b"1", b"a": b"2"}) == ((b"b", b"1"), (b"a", b"2"))
