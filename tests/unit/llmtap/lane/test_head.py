import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.lane.head import HOP, BadHead, HeaderKinds, build, is_target, trailer_lines, wants_close

FIRST = b"HTTP/1.1 200 OK"


def head(*fields: tuple[bytes, bytes], **how: object) -> bytes:
    how.setdefault("length", None)
    return build(FIRST, fields, HeaderKinds(), **how)  # type: ignore[arg-type]


def test_order_case_and_duplicates_stay() -> None:
    assert head((b"X-b", b"1"), (b"a", b""), (b"X-B", b" 2 ")) == b"HTTP/1.1 200 OK\r\nX-b: 1\r\na: \r\nX-B:  2 \r\n\r\n"


@pytest.mark.parametrize(
    "name", [b"Connection", b"KEEP-ALIVE", b"Proxy-Connection", b"te", b"Upgrade", b"Expect", b"Proxy-Authorization"]
)
def test_hop_by_hop_headers_go(name: bytes) -> None:
    assert head((name, b"x"), (b"A", b"b")) == b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"


def test_so_do_those_a_connection_header_names_wherever_they_stand() -> None:
    fields = ((b"X-1", b"a"), (b"Connection", b"keep-alive, x-1 ,X-2"), (b"x-2", b"b"), (b"X-3", b"c"))
    assert head(*fields) == b"HTTP/1.1 200 OK\r\nX-3: c\r\n\r\n"


def test_but_a_connection_header_cannot_take_away_framing_or_address() -> None:
    fields = ((b"Connection", b"content-length, host, transfer-encoding, connection"), (b"Host", b"h"), (b"Content-Length", b"9"))
    assert head(*fields, length=3) == b"HTTP/1.1 200 OK\r\nHost: h\r\nContent-Length: 3\r\n\r\n"


def test_the_length_is_put_where_it_was_once_or_at_the_end() -> None:
    fields = ((b"Content-length", b"9"), (b"A", b"b"), (b"content-length", b"8"))
    assert head(*fields, length=3) == b"HTTP/1.1 200 OK\r\nContent-length: 3\r\nA: b\r\n\r\n"
    assert head((b"A", b"b"), length=0) == b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 0\r\n\r\n"
    assert head(*fields) == b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"


def test_chunked_replaces_any_other_framing() -> None:
    fields = ((b"Content-Length", b"9"), (b"Transfer-encoding", b"gzip"), (b"A", b"b"), (b"transfer-encoding", b"x"))
    assert head(*fields, length=3, chunked=True) == b"HTTP/1.1 200 OK\r\nTransfer-encoding: chunked\r\nA: b\r\n\r\n"
    assert head(chunked=True) == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert head(*fields, length=3) == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n\r\n"


def test_host_is_replaced_in_its_place_or_put_first() -> None:
    assert head((b"A", b"b"), (b"Host", b"x"), host=b"y") == b"HTTP/1.1 200 OK\r\nA: b\r\nHost: y\r\n\r\n"
    assert head((b"A", b"b"), host=b"y") == b"HTTP/1.1 200 OK\r\nHost: y\r\nA: b\r\n\r\n"
    assert head((b"Host", b"x"), (b"host", b"z")) == b"HTTP/1.1 200 OK\r\nHost: x\r\n\r\n"


def test_replaced_headers_leave_no_other_of_their_name() -> None:
    got = head((b"Authorization", b"client"), (b"authorization", b"too"), (b"A", b"b"), replace=((b"authorization", b"backend"),))
    assert got == b"HTTP/1.1 200 OK\r\nA: b\r\nauthorization: backend\r\n\r\n"


BREAKS = [b"a\r\nX: y", b"a\nX: y", b"a\rb", b"a\0b", b"\r\n\r\nGET / HTTP/1.1"]


@pytest.mark.parametrize("bad", BREAKS)
def test_nothing_ends_a_header_early(bad: bytes) -> None:
    for how in ({"host": bad}, {"replace": ((b"x", bad),)}, {"extra": (bad,)}):
        with pytest.raises(BadHead):
            head(**how)
    for field in ((b"x", bad), (bad, b"x")):
        with pytest.raises(BadHead):
            head(field)
    with pytest.raises(BadHead):
        build(b"HTTP/1.1 200 " + bad, (), HeaderKinds(), length=None)
    with pytest.raises(BadHead):
        trailer_lines(((b"x", bad),), HeaderKinds())


@pytest.mark.parametrize("name", [b"", b"a b", b"a:b", b"a\tb", b"\xff", b"(x)", b" a", b"a "])
def test_names_are_tokens(name: bytes) -> None:
    with pytest.raises(BadHead):
        head((name, b"x"))


def test_names_are_learned_up_to_a_bound() -> None:
    kinds = HeaderKinds()
    for i in range(5000):
        assert kinds[b"x-%d" % i] == 0
    assert len(kinds) == 2048 and kinds[b"TE"] == HOP


@given(st.lists(st.tuples(st.from_regex(rb"x-[a-zA-Z0-9]{1,8}", fullmatch=True), st.binary(max_size=30))))
def test_whatever_is_let_through_reads_back_the_same(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        got = head(*fields)
    except BadHead:
        assert any(set(b"\r\n\0") & set(value) for _, value in fields)
        return
    lines = got[: -len(b"\r\n\r\n")].split(b"\r\n")[1:]
    assert [tuple(line.split(b": ", 1)) for line in lines] == fields


def test_trailers_cannot_change_the_framing() -> None:
    fields = ((b"X", b"1"), (b"Content-Length", b"3"), (b"transfer-encoding", b"chunked"), (b"Host", b"h"), (b"Y", b""))
    assert trailer_lines(fields, HeaderKinds()) == b"X: 1\r\nY: \r\n\r\n"
    assert trailer_lines((), HeaderKinds()) == b"\r\n"


@pytest.mark.parametrize("path", [b"/", b"/a?b=c&d", b"/%20", b"/\xc3\xa9", b'/"'])
def test_targets(path: bytes) -> None:
    assert is_target(path)


@pytest.mark.parametrize("path", [b"", b"a", b"*", b"http://x/", b"/a b", b"/a\r\n", b"/a\n", b"/#", b"/\0", b"/\x7f", b"/\t"])
def test_no_targets(path: bytes) -> None:
    assert not is_target(path)


def test_wants_close() -> None:
    assert wants_close([(b"CONNECTION", b"Close")]) and wants_close([(b"connection", b"x, close")])
    assert not wants_close([(b"connection", b"keep-alive"), (b"x", b"close")])
