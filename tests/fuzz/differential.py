"""The same bytes through real sockets: the lane, nginx and (for information) stock mitmproxy, each before a backend of its own
that notes which messages reach it.

A request the client never made, or not so, must not reach the backend through the lane. `compare` says what is wrong with one
input; `EXCEPTIONS` names the differences to nginx that are meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mitmproxy import http

from fuzz import reference
from fuzz.generate import Key
from llmtap.core.plan import Plan, Target
from support.lane import LaneHandle, Limits, running_lane

#: closes the connection of every well-formed stream; and shows whether somebody takes it for a part of what was before
SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
WAIT_S = 0.5  # what the proxies wait for the rest of something
HANG_S = 10.0
_QUIET_S = 0.4  # stock mitmproxy waits for ever: it is given up then

_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_header_timeout {wait}ms; client_body_timeout {wait}ms; keepalive_timeout {wait}ms; lingering_close off;
  client_max_body_size 64m; large_client_header_buffers 4 64k; keepalive_requests 100000;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host up;
  {servers}
}}
"""
_SERVER = "server {{ listen unix:{folder}/{slot}.sock; location / {{ proxy_pass http://unix:{folder}/up{slot}.sock; }} }}\n"


@dataclass
class Seen:
    """What reached the backend, and what the client got. `garbled`: bytes the reference does not take."""

    messages: list[Key] = field(default_factory=list)
    garbled: list[bytes] = field(default_factory=list)
    answer: bytes = b""
    hung: bool = False

    @property
    def statuses(self) -> list[int]:
        return [int(s) for s in re.findall(rb"HTTP/1\.1 ([2-9][0-9][0-9]) ", self.answer)]


class Backend:
    """Notes every message in `seen`, which whoever runs an input replaces."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self.port = 0

    async def start(self, path: Path | None = None) -> Backend:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        data = b""
        try:
            while piece := await reader.read(65536):
                data += piece
                got = reference.requests(data)
                for message in got.messages:
                    self.seen.messages.append(message.key)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                if got.end in ("invalid", "closed"):
                    if got.end == "invalid":
                        self.seen.garbled.append(data)
                    break
                data = data[len(data) - got.rest :]
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def talk(backend: Backend, connect: Connect, pieces: Sequence[bytes], quiet_s: float | None = None) -> Seen:
    """Send the pieces, read to the end of the connection (or till it is quiet for so long)."""
    seen = backend.seen = Seen()
    reader, writer = await connect()
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    try:
        while data := await asyncio.wait_for(reader.read(65536), quiet_s or HANG_S):
            seen.answer += data
    except ConnectionError:
        pass
    except TimeoutError:
        seen.hung = quiet_s is None
    writer.transport.abort()
    return seen


class ToBackend:
    """Sends each client's requests to the backend of its slot."""

    name = "fuzz.to_backend"

    def __init__(self) -> None:
        self.targets: dict[int, Target] = {}
        self.lane: LaneHandle

    def request(self, flow: http.HTTPFlow) -> None:
        assert flow.client_conn.peername is not None
        self.lane.rec.plans[flow] = Plan([self.targets[flow.client_conn.peername[1]]])
        self.lane.rec.flows.clear()
        self.lane.rec.events.clear()


class Bench:
    """So many slots, each with its own backends behind all proxies."""

    def __init__(self, slots: int, folder: Path) -> None:
        self.slots = slots
        self._folder = folder
        self._addon = ToBackend()
        self._lane: list[Backend] = []
        self._nginx: list[Backend] = []
        self._mitm: list[Backend] = []
        self._mitm_ports: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self, nginx: bool = True, mitmproxy: bool = False) -> AsyncIterator[Bench]:
        log = logging.getLogger("llmtap.lane")
        level = log.level
        log.setLevel(logging.CRITICAL)
        limits = Limits(head_timeout_s=WAIT_S, body_timeout_s=WAIT_S, keepalive_timeout_s=WAIT_S, linger_s=0.05)
        processes: list[asyncio.subprocess.Process] = []
        for slot in range(self.slots):
            self._lane.append(await Backend().start())
            self._nginx.append(await Backend().start(self._folder / f"up{slot}.sock"))
            if mitmproxy:
                self._mitm.append(await Backend().start())
        try:
            if nginx:
                processes.append(await self._start_nginx())
            if mitmproxy:
                processes.append(await self._start_mitmproxy())
            async with running_lane(self._addon, limits=limits) as lane:
                self._addon.lane = lane
                yield self
        finally:
            log.setLevel(level)
            for process in processes:
                process.terminate()
                await process.wait()
            for backend in (*self._lane, *self._nginx, *self._mitm):
                await backend.stop()

    async def _start_nginx(self) -> asyncio.subprocess.Process:
        servers = "".join(_SERVER.format(folder=self._folder, slot=slot) for slot in range(self.slots))
        config = self._folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=self._folder, wait=int(WAIT_S * 1000), servers=servers), encoding="utf-8")
        process = await asyncio.create_subprocess_exec("nginx", "-p", str(self._folder), "-c", str(config), "-e", "stderr")
        await self._up(process, lambda: asyncio.open_unix_connection(self._folder / "0.sock"))
        return process

    async def _start_mitmproxy(self) -> asyncio.subprocess.Process:
        modes = []
        for backend in self._mitm:
            server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            server.close()
            self._mitm_ports.append(port)
            modes += ["--mode", f"reverse:http://127.0.0.1:{backend.port}@127.0.0.1:{port}"]
        script = Path(sys.executable).with_name("mitmdump")
        process = await asyncio.create_subprocess_exec(
            script, "-q", *modes, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await self._up(process, lambda: asyncio.open_connection("127.0.0.1", self._mitm_ports[-1]))
        return process

    async def _up(self, process: asyncio.subprocess.Process, connect: Connect) -> None:
        async with asyncio.timeout(30):
            while process.returncode is None:
                try:
                    (await connect())[1].close()
                    return
                except OSError:
                    await asyncio.sleep(0.02)
        raise RuntimeError("a proxy to compare with does not start")

    async def lane(self, slot: int, pieces: Sequence[bytes]) -> Seen:
        backend = self._lane[slot]
        made: list[int] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._addon.lane.port)
            made.append(writer.get_extra_info("sockname")[1])
            self._addon.targets[made[0]] = Target("b", "127.0.0.1", backend.port, host_header=b"up")
            return reader, writer

        try:
            return await talk(backend, connect, pieces)
        finally:
            self._addon.targets.pop(made[0], None)

    async def nginx(self, slot: int, pieces: Sequence[bytes]) -> Seen:
        return await talk(self._nginx[slot], lambda: asyncio.open_unix_connection(self._folder / f"{slot}.sock"), pieces)

    async def mitmproxy(self, slot: int, pieces: Sequence[bytes]) -> Seen:
        port = self._mitm_ports[slot]
        return await talk(self._mitm[slot], lambda: asyncio.open_connection("127.0.0.1", port), pieces, _QUIET_S)


def available() -> str | None:
    """Why there is nothing to compare with, or None."""
    return None if shutil.which("nginx") else "nginx is not installed (Debian: apt-get install nginx-light)"


# ---- comparing

Rewrite = Callable[[bytes], bytes]
_SINGLE = (b"authorization", b"expect", b"upgrade", b"keep-alive", b"range", b"if-match")


def _line_by_line(head: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    first, *lines = head[:-4].split(b"\r\n")
    made = [change(line.partition(b":")[0], line.partition(b":")[2]) for line in lines]
    return b"\r\n".join([first, *(line for line in made if line is not None)]) + b"\r\n\r\n"


def _trimmed(head: bytes) -> bytes:
    return _line_by_line(head, lambda name, value: name + b":" + (b" " + value.strip(b" \t") if b"\t" in value else value))


def _short(head: bytes) -> bytes:
    return _line_by_line(head, lambda name, value: name + b":" + (value.strip(b" \t") if len(value) > 4096 else value))


def _close(name: bytes, value: bytes) -> bytes | None:
    options = [option.strip(b" \t").lower() for option in value.split(b",")]
    odd = name.lower() == b"connection" and b"close" in value.lower() and b"close" not in options
    return None if odd else name + b":" + value


def _not_close(head: bytes) -> bytes:
    return _line_by_line(head, _close)


def _once(head: bytes) -> bytes:
    seen: set[bytes] = set()

    def first(name: bytes, value: bytes) -> bytes | None:
        again = name.lower() in seen
        seen.add(name.lower())
        return None if again and name.lower() in _SINGLE else name + b":" + value

    return _line_by_line(head, first)


def _host(head: bytes) -> bytes:
    return _line_by_line(head, lambda n, v: b"Host: g" if n.lower() == b"host" and b".." in v else n + b":" + v)


def _target(head: bytes) -> bytes:
    """Dots and per cent signs by something harmless."""
    first, end, rest = head.partition(b"\r\n")
    method, target, version = first.split()
    return b" ".join((method, target.replace(b"..", b"__").replace(b"%", b"_"), version)) + end + rest


def _http(head: bytes) -> bytes:
    first, end, rest = head.partition(b"\r\n")
    return re.sub(rb" (RTSP|ICE)/1", b" HTTP/1", first) + end + rest


#: what the lane takes and nginx refuses or reads otherwise: (what, why that is meant, the head as nginx takes it). Each is
#: checked by giving nginx the rewritten head: it must then have the very same messages.
EXCEPTIONS: tuple[tuple[str, str, Rewrite], ...] = (
    ("tab around a value", "white space around a value may be tabs (RFC 9110 5.5, 5.6.3); nginx knows spaces only", _trimmed),
    ("much white space", "the limit of a head counts names and values; nginx's counts the white space around them too", _short),
    (
        "close inside a word",
        "`closed` and `x-close` are no `close` (RFC 9110 7.6.1); nginx looks for the letters anywhere in Connection",
        _not_close,
    ),
    ("a header twice", "not framing: nginx wants Authorization, Expect and some others once; addons see them joined", _once),
    ("two dots in a host", "RFC 3986 allows them; nginx guards against them because it looks up files by host", _host),
    (
        "path above the root",
        "`/..` and odd `%xx` are sent on as they are, as nothing is looked up by path; nginx resolves both and refuses some",
        _target,
    ),
    ("another protocol's name", "llhttp reads `GET / RTSP/1.0` as HTTP/1.0 and does not tell; the framing is the same", _http),
)


def rewritten(data: bytes, exceptions: Sequence[tuple[str, str, Rewrite]]) -> bytes:
    """The bytes with the heads of all whole messages as nginx takes them."""
    out, end = b"", 0
    for message in reference.requests(data).messages:
        start, body, after = message.at
        head = data[start:body]
        for _, _, rewrite in exceptions:
            head = rewrite(head)
        out += data[end:start] + head + data[body:after]
        end = after
    return out + data[end:]


def compare(data: bytes, lane: Seen, nginx: Seen) -> tuple[str | None, str]:
    """(what is wrong or None, how the two relate: same, stricter, wrong, or `differs`, for which there may be an exception)."""
    if lane.hung:
        return "the lane hangs", "wrong"
    if lane.garbled:
        return f"the lane sends on {lane.garbled[0][:200]!r}", "wrong"
    expected = reference.requests(data)
    if lane.messages != expected.keys[: len(lane.messages)]:
        return f"the lane sends {lane.messages}, the reference has {expected.keys}", "wrong"
    if lane.messages == nginx.messages[: len(lane.messages)]:
        return None, "same" if len(lane.messages) == len(nginx.messages) else "stricter"
    return f"the lane sends {lane.messages}, nginx {nginx.messages} {nginx.statuses}", "differs"


async def run_one(bench: Bench, slot: int, data: bytes, pieces: Sequence[bytes]) -> tuple[str | None, str, Seen]:
    """One input through both. (what is wrong or None, how they relate or the exceptions used, what the lane did)"""
    lane, nginx = await asyncio.gather(bench.lane(slot, pieces), bench.nginx(slot, pieces))
    wrong, relation = compare(data, lane, nginx)
    if relation != "differs":
        return wrong, relation, lane
    for tried in (*((e,) for e in EXCEPTIONS), EXCEPTIONS):  # one of them, or several
        other = rewritten(data, tried)
        if other == data:
            continue
        nginx = await bench.nginx(slot, [other])
        count = len(lane.messages)
        if nginx.messages[:count] == reference.requests(other).keys[:count]:
            return None, tried[0][0] if len(tried) == 1 else "several of these", lane
    return wrong, relation, lane
