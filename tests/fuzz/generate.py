"""Byte streams to try a proxy with: valid requests, requests wrong in a known way, and bytes altered anywhere.

All from one `random.Random`: the same seed gives the same streams. A `Case` says what it is (`kind`) and, if it is valid, which
messages it has to be read as.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Key = tuple[bytes, bytes, bytes]

_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD")
_TARGETS = (b"/", b"/v1/models", b"/v1/chat/completions", b"/v1/x?a=1&b=%20", b"/a;b=c/d", b"/v1/embeddings?")
_BODIES = (b"", b"{}", b"hello", b"0\r\n\r\n", b"GET /inner HTTP/1.1\r\nHost: i\r\n\r\n", b"\x00\xff\r\n", b"x" * 40)
_PLAIN = (
    b"Accept: */*",
    b"accept-encoding: gzip, deflate",
    b"X-Empty:",
    b"X-Spaced: \t a  b \t",
    b"X-Obs: \xe9\xff",
    b"Authorization: Bearer abc",
    b"User-Agent: OpenAI/Python 1.70.0",
    b"Cookie: a=b; c=d",
    b"Connection: keep-alive",
    b"TE: trailers",
    b"X-Number: 1",
    b"X-Number: 2",
    b"Content-Type: application/json",
    b"X_Under-score!#$%&'*+.^`|~: t",
)
_EXTENSIONS = (b"", b"", b";a", b";a=b", b';a="b c"', b";a=b;c=d", b';q="\\""', b';a="x;y"')
_UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
#: what gets put anywhere
TOKENS = (
    b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\x0b", b"\x0c", b"\x7f",
    b"\x80",
    b"\xa0", b"\xff", b"0", b"-", b"+", b"_", b"0x", b"1", b"9" * 20, b"f" * 17, b"/", b"HTTP/1.1", b"HTTP/1.0", b"chunked",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\nContent-Length: 0", b"Host: h\r\n", b" chunked",
    b"0\r\n\r\n",
    b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n", b"\r\n ", b"\r\n\t", b'"',
    b"GET / HTTP/1.1\r\nHost: s\r\n\r\n", b"1\r\na\r\n",
)  # fmt: skip


@dataclass
class Case:
    """`expected`: the messages, when every byte of it is valid."""

    kind: str
    data: bytes
    expected: list[Key] | None = None


# ---- valid

_HOSTS = (b"Host: g", b"Host: g:8000", b"host:g", b"HOST: g ") * 4 + (b"HOST: \tg ", b"host:\tg\t")
_SIZES = (b"Content-Length: %d", b"content-length:%d", b"Content-Length: 00%d", b"CONTENT-LENGTH: %d ") * 4 + (
    b"CONTENT-LENGTH: \t%d ",
)


def _chunks(rng: Random, body: bytes) -> bytes:
    out = b""
    while body:
        size = rng.randint(1, len(body))
        digits = rng.choice((b"%x", b"%X", b"0%x", b"000000%x")) % size
        out += digits + rng.choice(_EXTENSIONS) + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    out += rng.choice((b"0", b"000")) + rng.choice(_EXTENSIONS) + b"\r\n"
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        out += rng.choice((b"X-Trailer: t\r\n", b"Etag:\r\n", b"X-Sum: \t1 2 \r\n"))
    return out + b"\r\n"


def _head(rng: Random, method: bytes, target: bytes, lines: list[bytes], version: bytes = b"HTTP/1.1") -> bytes:
    lines = [rng.choice(_HOSTS), *lines, *rng.sample(_PLAIN, rng.choice((0, 1, 1, 2, 4)))]
    if len(lines) > 2:
        rng.shuffle(lines)
    return b"%b %b %b\r\n%b\r\n\r\n" % (method, target, version, b"\r\n".join(lines))


def valid(rng: Random) -> tuple[bytes, Key]:
    """One request that any server of HTTP/1.1 takes, with a connection that stays open."""
    method, target = rng.choice(_METHODS), rng.choice(_TARGETS)
    lines: list[bytes] = []
    how = rng.random()
    if how < 0.2:
        body = wire = b""
    elif how < 0.6:
        body = wire = rng.choice(_BODIES)
        lines.append(rng.choice(_SIZES) % len(body))
    else:
        body = rng.choice(_BODIES)
        wire = _chunks(rng, body)
        lines.append(rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked", b"TRANSFER-ENCODING: CHUNKED ")))
    if rng.random() < 0.06:
        lines += _UPGRADE
    elif wire and rng.random() < 0.1:
        lines.append(rng.choice((b"Expect: 100-continue", b"expect: 100-Continue")))
    return _head(rng, method, target, lines) + wire, (method, target, body)


# ---- wrong in a known way


def _with(rng: Random, *lines: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    return _head(rng, method, b"/wrong", list(lines)) + body


def _pick(*choices: bytes) -> Callable[[Random], bytes]:
    return lambda rng: rng.choice(choices)


_LAST = b"0\r\n\r\n"
_CL3, _TE = b"Content-Length: 3", b"Transfer-Encoding: chunked"
_lengths = _pick(
    b"+3", b"-3", b"0x3", b"3,3", b"3, 3", b"3,4", b"", b" ", b"3 3", b"3;", b"3.0", b"3e0", b"\x0b3", b"3\x0c", b"\xb23", b"'3'",
    b'"3"', b"1_0", b"\xd9\xa3", b"3\0", b"three", b"0b11",
)  # fmt: skip
_huge = _pick(
    b"9" * 19, b"9" * 20, b"18446744073709551619", b"18446744073709551615", b"9223372036854775808", b"4294967299", b"9" * 400,
    b"0" * 5000 + b"3"
)  # fmt: skip
_codings = _pick(
    b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked", b"chunked\x0b", b"\x0bchunked", b"chunked,",
    b",chunked",
    b"chunked;q=1", b'"chunked"', b"chun ked", b"", b"chunked, chunked", b"chunked, identity", b"\xa0chunked", b"chunked\0",
    b"cHuNkEd\x7f",
)  # fmt: skip
_te_names = _pick(
    b"Transfer-Encoding : chunked", b" Transfer-Encoding: chunked", b"Transfer-Encoding\t: chunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding\0: chunked", b"Transfer-Encoding\x0b: chunked", b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked", b"Transfer Encoding: chunked", b"Transfer-Encoding", b"\xefTransfer-Encoding: chunked",
)  # fmt: skip
_cl_names = _pick(
    b"Content-Length : 3", b" Content-Length: 3", b"Content-Length\t: 3", b"Content_Length: 3", b"Content-Length\0: 3",
    b"Content-Length",
    b"X: y\rContent-Length: 3", b"X: y\nContent-Length: 3", b"Content-\r\n Length: 3",
)  # fmt: skip
_folds = _pick(
    b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n b", b"Transfer-Encoding:\r\n chunked", b"Content-Length: 3\r\n 0", b"X: a\r\n \r\n b"
)
_bad_chunks = _pick(
    b"3\nabc\r\n0\r\n\r\n", b"3;a\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"4\r\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n",
    b" 3\r\nabc\r\n0\r\n\r\n",
    b"3\t\r\nabc\r\n0\r\n\r\n", b"\r\n3\r\nabc\r\n0\r\n\r\n", b"3\r\r\nabc\r\n0\r\n\r\n", b"3\r\nabc0\r\n\r\n",
    b"3\r\nabc\r\n\r\n",
    b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n", b"10000000000000003\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\n\n",
    b"3\r\nabc\r\n0\r\n\n", b"3\r\nabc\r\n0\n\r\n", b"3g\r\nabc\r\n0\r\n\r\n", b"3\0\r\nabc\r\n0\r\n\r\n",
    b"3_\r\nabc\r\n0\r\n\r\n",
    b"8000000000000000\r\nabc\r\n0\r\n\r\n", b"100000003\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\rX0\r\n\r\n", b"0 \r\n\r\n",
    b"\r\n0\r\n\r\n",
)  # fmt: skip
_bad_extensions = _pick(
    b";", b";;", b";=", b";a=", b";=b", b"; a", b" ;a", b";a b", b';a="b', b';a="b\rc"', b';a="b\nc"', b";a\0", b";a=\x01",
    b";\r\n\r\n",
    b';a="\\\r"', b";a=b\r", b";\n", b";a;", b'";a', b";\xff", b",a", b"\t;a", b"; a = b", b';a="b"c', b";a=b=c", b';a="\x7f"',
)  # fmt: skip
_bad_trailers = _pick(
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"a\r\n", b" a: b\r\n", b"A: b\r\n c\r\n", b"A: b\n",
    b"A : b\r\n", b"A: \0\r\n",
    b"\n", b"A: b\rC: d\r\n", b"Host: evil\r\n", b"Connection: close\r\n", b": x\r\n", b"Upgrade: h2c\r\n",
)  # fmt: skip
_lines = _pick(
    b"GET  / HTTP/1.1", b" GET / HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /a b HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\t",
    b"GET /",
    b"GET / ", b"GET / HTTP/", b"GET / HTTP/1", b"GET / HTTP/1.", b"GET / HTTP/1.10", b"GET / HTTP/01.1", b"GET / HTTP/2.0",
    b"GET / HTTP/0.9", b"GET / http/1.1", b"GET / HTTP/1,1", b"GET / HTTPS/1.1", b"GET / HTTP/1.2", b"GET / HTTP/1.9",
    b"GET / HTTP/3.1",
    b"GET / ICE/1.0", b"SOURCE / HTTP/1.1", b"GET / RTSP/1.0", b"GET /\0 HTTP/1.1", b"GET /\x7f HTTP/1.1",
    b"GET /\xff HTTP/1.1", b"GET /\r HTTP/1.1",
    b"GET /\n HTTP/1.1", b"GET / HTTP/1.1\r\r", b"GET  HTTP/1.1", b"GET HTTP/1.1", b"", b"HTTP/1.1 200 OK", b"GET /#x HTTP/1.1",
)  # fmt: skip
_targets = _pick(
    b"http://evil/", b"http://g/x", b"https://g/", b"//evil/x", b"*", b"evil:443", b"x", b"?a", b"/../../x", b"/%00", b"/%zz",
    b"/%", b"/a\\b",
    b"http:/x", b"ftp://x/", b"/http://evil/", b"/" + b"a" * 3000, b"/a#b", b"/\xc3\xa9", b'/"', b"/.", b"/..", b"/a/../..",
    b"/<>{}|^`",
)  # fmt: skip
_methods = _pick(
    b"get", b"FOO", b"TRACE", b"CONNECT", b"PRI", b"GE T", b"G\0ET", b"GET:", b"POSTT", b"M-SEARCH", b"PROPFIND", b"QUERY",
    b"A" * 300, b"G[T", b"",
    b"_GET", b"GETX", b"LINK", b"DESCRIBE", b"Get", b"OPTION", b"PATCHE",
)  # fmt: skip
_controls = _pick(*(b"X: a%cb" % c for c in (*range(9), *range(11, 13), *range(14, 32), 127)))
_names = _pick(
    b": x",
    b"X y: z",
    b"X(: z",
    b"X\x80: z",
    b"X",
    b"\tX: y",
    b"X\r: y",
    b"X\n: y",
    b'"X": y',
    b"X@Y: z",
    b"X\x01: z",
    b"{: z",
    b"X\x7f: y",
)
_hosts = _pick(
    b"Host: b", b"host:", b"Host : g", b"HOST: evil/x", b"Host: a@b", b"Host: a b", b"Host: g, h", b"Host: [::1", b"Host:\tg"
)
_hops = _pick(
    b"Connection: close, Host", b"Connection: Content-Length", b"Connection: Transfer-Encoding, close", b"Connection: ,",
    b"Connection: close",
    b"Connection: CLOSE", b"Connection: keep-alive, close", b"Connection: close, keep-alive", b"Connection: closed",
    b"Connection: x-close",
    b"Connection: keep-alive\r\nConnection: close", b"Connection: close\r\nConnection: keep-alive", b"Connection: \x0bclose",
    b"Proxy-Connection: close",
    b"Connection: close ", b"Connection: close\t, a", b"Connection:close,a", b"Connection: a close", b"Connection: close;a",
    b"Connection: upgrade, close",
    b"Connection: clos\r\nConnection: e",
)  # fmt: skip
_upgrades = _pick(
    b"Connection: Upgrade\r\nUpgrade: h2c", b"Connection: Upgrade\r\nUpgrade: websocket", b"Upgrade: h2c", b"Connection: Upgrade",
    b"Connection: upgrade, close\r\nUpgrade: h2c", b"Connection: close\r\nConnection: Upgrade\r\nUpgrade: h2c",
    b"Connection: Upgrade\r\nUpgrade: foo/2, h2c",
    b"Connection: upgrade\r\nUpgrade:", 
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: WebSocket",
)  # fmt: skip
_expects = _pick(
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Expect: ",
    b"Expect: 100-continue, 100-continue",
    b"Expect:100-continue\r\nExpect: x",
)
_ends = _pick(
    b"\n", b"\n\r\n", b"\r", b"\r\r\n", b"\n\n", b"\r\n\n", b"\r\n \r\n", b" \r\n\r\n", b"\0\r\n\r\n", b"\r\n\r", b"\r\n\r\r\n"
)


def _framed(rng: Random, line: bytes) -> bytes:
    """A body to go with a head that has this line, in either framing or none."""
    how = rng.randrange(4)
    if how == 0:
        return _with(rng, line, method=b"GET")
    if how == 1:
        return _with(rng, line, b"Content-Length: 5", body=b"hello")
    if how == 2:
        return _with(rng, line, _TE, body=b"5\r\nhello\r\n0\r\n\r\n")
    return _with(rng, line, method=b"GET", body=_LAST)


def _both(rng: Random) -> bytes:
    lines = [
        b"Content-Length: %d" % rng.choice((0, 3, 5, 6)),
        b"Transfer-Encoding: " + rng.choice((b"chunked", b"Chunked", _codings(rng))),
    ]
    rng.shuffle(lines)
    return _with(rng, *lines, body=_LAST)


def _extended(rng: Random, extension: bytes) -> bytes:
    if rng.random() < 0.5:
        return _with(rng, _TE, body=b"3" + extension + b"\r\nabc\r\n0\r\n\r\n")
    return _with(rng, _TE, body=b"3\r\nabc\r\n0" + extension + b"\r\n\r\n")


def _large(rng: Random) -> bytes:
    n = rng.choice((100, 3000, 70_000))
    return rng.choice(
        (
            b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"x" * n + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: g\r\nX:" + b" " * n + b"x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: g\r\n" + b"A: b\r\n" * (n // 50) + b"\r\n",
            b"POST / HTTP/1.1\r\nHost: g\r\n" + _TE + b"\r\n\r\n0;" + b"a" * n + b"\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: g\r\n" + _TE + b"\r\n\r\n0\r\nA: " + b"a" * n + b"\r\n\r\n",
            b"\r\n" * n,
        )
    )  # fmt: skip


#: class of wrongness → one message of it (some of each are harmless: the reference says which)
WRONG: dict[str, Callable[[Random], bytes]] = {
    "cl and te": _both,
    "odd length": lambda r: _with(r, b"Content-Length:" + r.choice((b"", b" ")) + _lengths(r), body=b"abc"),
    "huge length": lambda r: _with(r, b"Content-Length: " + _huge(r), body=b"abc"),
    "two lengths": lambda r: _with(r, _CL3, b"Content-Length: " + r.choice((b"3", b"0", b"5", _lengths(r))), body=b"abc"),
    "te spelling": lambda r: _with(r, b"Transfer-Encoding: " + _codings(r), body=_LAST),
    "te name": lambda r: _with(r, _te_names(r), *r.choice(((), (_CL3,))), body=r.choice((_LAST, b"abc"))),
    "cl name": lambda r: _with(r, _cl_names(r), *r.choice(((), (_TE,))), body=r.choice((_LAST, b"abc"))),
    "te twice": lambda r: _with(r, _TE, b"Transfer-Encoding: " + r.choice((b"chunked", b"identity", b"", _codings(r))),
        body=_LAST),
    "te in 1.0": lambda r: b"POST / HTTP/1.0\r\nHost: g\r\n" + _TE + r.choice((b"",
        b"\r\nConnection: keep-alive")) + b"\r\n\r\n" + _LAST,
    "http/1.0": lambda r: r.choice((b"GET", b"POST")) + b" /old HTTP/1.0\r\n" + r.choice((b"", _hops(r) + b"\r\n",
        b"Connection: keep-alive\r\n")) + b"\r\n",
    "obs-fold": lambda r: _framed(r, _folds(r)),
    "fold first": lambda r: b"POST / HTTP/1.1\r\n" + r.choice((b" ", b"\t")) + r.choice((b"A: b", _TE,
        b"")) + b"\r\nHost: g\r\n\r\n",
    "bare line ends": lambda r: _framed(r, b"X: y").replace(b"\r\n", r.choice((b"\n", b"\r", b"\n\r", b"\r\r\n")),
        r.choice((1, 2, 3, 99))),
    "head end": lambda r: b"GET / HTTP/1.1\r\nHost: g" + _ends(r),
    "control in value": lambda r: _framed(r, _controls(r)),
    "field name": lambda r: _framed(r, _names(r)),
    "chunk": lambda r: _with(r, _TE, body=_bad_chunks(r)),
    "chunk extension": lambda r: _extended(r, _bad_extensions(r)),
    "trailer": lambda r: _with(r, _TE, body=b"0\r\n" + _bad_trailers(r) + b"\r\n"),
    "request line": lambda r: _lines(r) + b"\r\nHost: g\r\n\r\n",
    "target": lambda r: _head(r, r.choice(_METHODS), _targets(r), []),
    "method": lambda r: _head(r, _methods(r), b"/m", r.choice(([], [_CL3]))) + r.choice((b"", b"abc")),
    "host": lambda r: _framed(r, _hosts(r)),
    "no host": lambda r: b"GET / HTTP/1.1\r\n" + r.choice((b"", b"X: y\r\n")) + b"\r\n",
    "connection": lambda r: _framed(r, _hops(r)),
    "upgrade": lambda r: _framed(r, _upgrades(r)),
    "expect": lambda r: _framed(r, _expects(r)),
    "large": _large,
    "other protocol": _pick(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n", b"\0" * 64, b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
}  # fmt: skip


# ---- streams


def case(rng: Random) -> Case:
    """A stream of some requests: valid, with a wrong one among them, or altered anywhere."""
    how = rng.random()
    made = [valid(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5)))]
    if how < 0.2:
        between = rng.choice((b"", b"", b"", b"\r\n"))
        return Case("valid", between.join(wire for wire, _ in made), [key for _, key in made])
    wires = [wire for wire, _ in made]
    kind = "altered"
    if how < 0.75:
        kind = rng.choice(_KINDS)
        wires.insert(rng.randrange(len(wires)), WRONG[kind](rng))
    data = b"".join(wires)
    if kind == "altered" or rng.random() < 0.1:
        data = alter(rng, data)
    return Case(kind, data)


def alter(rng: Random, data: bytes) -> bytes:
    """Bytes put in, taken out, changed, repeated; or the end cut off."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        how = rng.random()
        if how < 0.5:
            data = data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, 0, 1, 2)) :]
        elif how < 0.65:
            data = data[:at] + data[at + rng.choice((1, 1, 2, 5, 20)) :]
        elif how < 0.8:
            data = data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
        elif how < 0.9:
            data = data[:at] + data[max(0, at - rng.randint(1, 40)) :]
        elif how < 0.97:
            lines = data.split(b"\r\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            data = b"\r\n".join(lines)
        else:
            data = data[:at]
    return data


def cut(rng: Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces: two, some, or one byte each."""
    how = rng.random()
    size = len(data)
    if size > 2 and (how < 0.7 or size > 2000):
        edges = sorted({0, size, *(rng.randrange(1, size) for _ in range(rng.choice((1, 1, 2, 5))))})
        return [data[a:b] for a, b in itertools.pairwise(edges)]
    return [data[i : i + 1] for i in range(size)]


_KINDS = tuple(WRONG)
KINDS = ("valid", "altered", *_KINDS)

# ---- responses


_STATUS = (
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 201 Very Fine",
    b"HTTP/1.1 503 Busy",
    b"HTTP/1.1 404",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Same",
)
_ODD_STATUS = _pick(
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1 101 Switching", b"HTTP/2.0 200 OK",
    b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200\tOK", b"http/1.1 200 OK", b"SSH-2.0-x",
    b"HTTP/1.1 200 a\0b", b"HTTP/1.1 200 a\rb",
    b"HTTP/1.1 099 x", b"HTTP/1.1 -20 x", b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 OK ", b"ICY 200 OK",
    b"HTTP/1.2 200 OK", b"HTTP/1.1 200 \xff",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK",
)  # fmt: skip


@dataclass
class ReplyCase:
    data: bytes
    head_only: bool
    eof: bool


def reply(rng: Random) -> ReplyCase:
    """What a backend may send for one request, right or wrong."""
    body = rng.choice(_BODIES)
    lines = [rng.choice(_STATUS) if rng.random() < 0.85 else _ODD_STATUS(rng)]
    how = rng.random()
    wire = body
    if how < 0.35:
        lines.append(b"Content-Length: %d" % (len(body) + rng.choice((0, 0, 0, 0, 1, -1))))
    elif how < 0.7:
        lines.append(_TE)
        wire = _chunks(rng, body) if rng.random() < 0.8 else _bad_chunks(rng)
    elif how < 0.85:
        lines.append(rng.choice((b"Connection: close", b"X: y")))
    lines += rng.sample(_PLAIN, rng.choice((0, 1, 2)))
    if rng.random() < 0.3:
        wrong = (_hops, _folds, _controls, _names, _te_names, _cl_names, _upgrades)
        lines.append(
            rng.choice(
                (
                    b"Content-Length: " + _lengths(rng),
                    b"Content-Length: " + _huge(rng),
                    b"Transfer-Encoding: " + _codings(rng),
                    rng.choice(wrong)(rng),
                )
            )
        )
    data = b"\r\n".join(lines) + b"\r\n\r\n" + wire
    more = rng.random()
    if more < 0.1:
        data += rng.choice((b"\r\n", b"x", b"\0", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    elif more < 0.4:
        data = alter(rng, data)
    return ReplyCase(data, rng.random() < 0.1, rng.random() < 0.3)
