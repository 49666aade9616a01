"""The load client: `python tests/bench/load.py '{"port": 8000, "connections": 32, "seconds": 1}'` prints one JSON object.

A closed loop: every connection sends its next request when the reply to the last one is complete. It measures what a client
sees, and reads what the server under test used (its utime + stime and its memory in /proc) at both ends of the same window.
Times in the result are microseconds, memory is bytes. One thread, epoll: asyncio's transports would cost twice as much a chunk.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

sys.path.insert(0, __file__.rpartition("/")[0])

import proc

now_ns = time.monotonic_ns

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
STAMP = re.compile(rb"@(\d{12,20})@")
CHUNKS, TO_THE_END = -1, -2  # how long a reply is, when it does not say so in bytes
FIRST_ABORT = 10_000_000  # the streams that are left are numbered from about here; the fake knows them by `max_tokens`
LAST = b"0\r\n\r\n"  # ends a chunked reply; the fake's texts never end so


@dataclass
class Job:
    """What to do. A window of `seconds` follows `warm` seconds that count for nothing (and opening all connections)."""

    port: int
    connections: int = 1
    seconds: float = 1.0
    warm: float = 0.3
    requests: int = 0  # 0: as many as fit into the window; else the run ends after so many, window or not
    stream: bool = False
    tokens: int = 64
    delay_us: int = 0  # between two tokens of a stream
    prompt_bytes: int = 800
    new_connections: bool = False  # one for each request
    mixed: bool = False  # plain, streamed and long requests in turn
    abort: bool = False  # leave every stream after its third chunk
    ramp: float = 2000.0  # connections opened a second
    model: str = "fake"
    watch: tuple[int, ...] = ()  # processes whose CPU and memory are read
    known: tuple[int, ...] = ()  # others that belong to the measurement: what remains of the machine's load disturbs it
    backend: int = 0  # port of the fake, which knows when an aborted stream reached it


@dataclass
class Request:
    """Bytes ready to send; `head % number` when `numbered`."""

    data: bytes
    stream: bool
    numbered: bool = False


def build(job: Job, *, stream: bool, prompt_bytes: int, tokens: int) -> Request:
    text = ("the quick brown fox jumps over " * (prompt_bytes // 31 + 1))[:prompt_bytes]
    body: dict[str, Any] = {"model": job.model, "temperature": 0.7, "max_tokens": tokens}
    if stream:
        body |= {"seed": job.delay_us, "stream": True, "stream_options": {"include_usage": True}}
    body["messages"] = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
    data = json.dumps(body, separators=(",", ":")).encode()
    if job.abort:
        data = data.replace(b'"max_tokens":%d' % tokens, b'"max_tokens":%d')
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{job.port}",
        "Authorization: Bearer sk-bench",
        "Accept: application/json",
        "User-Agent: OpenAI/Python 2.0",
        "Content-Type: application/json",
        f"Content-Length: {len(data) + (len(str(FIRST_ABORT)) - 2 if job.abort else 0)}",
        *(["Connection: close"] if job.new_connections else []),
    ]
    return Request("\r\n".join([*lines, "", ""]).encode() + data, stream, job.abort)


def requests_of(job: Job) -> list[Request]:
    if not job.mixed:
        return [build(job, stream=job.stream, prompt_bytes=job.prompt_bytes, tokens=job.tokens)]
    plain, stream = build(job, stream=False, prompt_bytes=800, tokens=64), build(job, stream=True, prompt_bytes=800, tokens=16)
    return [plain, stream, plain, build(job, stream=False, prompt_bytes=20_000, tokens=64)]


def quantiles(values: list[int]) -> dict[str, float]:
    """n, p50, p99 and max of nanoseconds, in microseconds."""
    if not values:
        return {"n": 0}
    values.sort()
    last = len(values) - 1
    at = {"p50": values[round(0.5 * last)], "p99": values[round(0.99 * last)], "max": values[-1]}
    return {"n": len(values)} | {name: round(value / 1000, 1) for name, value in at.items()}


class Connection:
    """One connection of the client and the reply it waits for."""

    __slots__ = (
        "began",
        "connecting",
        "fd",
        "head",
        "keep",
        "left",
        "marks",
        "number",
        "part",
        "request",
        "sock",
        "status",
        "tail",
    )

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.fd = -1
        self.number = 0


class Load:
    """One run of a `Job`."""

    def __init__(self, job: Job) -> None:
        self.job, self.kinds = job, requests_of(job)
        self.epoll = select.epoll()
        self.room = bytearray(proc.ROOM)
        self.view = memoryview(self.room)
        self.by_fd: dict[int, Connection] = {}
        self.waiting: deque[tuple[int, Connection]] = deque()  # (when, who) connects again after a failure
        self.counting = False
        # another number than any stream of an earlier run, whose end the fake may only now be told of
        self.sent = FIRST_ABORT + now_ns() // 1_000_000 % 80_000 * 1000 if job.abort else 0
        self.opened = self.done = self.finished = self.marks = self.errors = self.short = 0
        self.latency: list[int] = []
        self.first: list[int] = []
        self.oneway: list[int] = []
        self.aborted: dict[int, int] = {}
        self.statuses: Counter[int] = Counter()
        self.complaint = ""

    # ---- connections

    def connect(self, c: Connection) -> None:
        c.sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.job.new_connections:  # one address has 28,000 ports, each unusable for a minute after its connection
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect
            sock.bind((f"127.0.0.{2 + self.opened % 60}", 0))
        self.opened += 1
        c.began = now_ns()
        sock.connect_ex(("127.0.0.1", self.job.port))
        c.connecting = True
        c.fd = sock.fileno()
        self.by_fd[c.fd] = c
        self.epoll.register(c.fd, select.EPOLLOUT)

    def drop(self, c: Connection) -> None:
        if c.sock is not None:
            del self.by_fd[c.fd]
            c.sock.close()
            c.sock = None

    def fail(self, c: Connection, why: str) -> None:
        self.drop(c)
        self.errors += 1
        self.complaint = self.complaint or why
        self.waiting.append((now_ns() + 50_000_000, c))

    def connected(self, c: Connection) -> None:
        assert c.sock is not None
        if error := c.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.fail(c, f"connect: errno {error}")
            return
        c.connecting = False
        self.epoll.modify(c.fd, select.EPOLLIN)
        self.send(c, c.began if self.job.new_connections else now_ns())

    def send(self, c: Connection, began: int) -> None:
        assert c.sock is not None
        c.request = self.kinds[self.sent % len(self.kinds)]
        c.number = self.sent
        self.sent += 1
        data = c.request.data % c.number if c.request.numbered else c.request.data
        c.began, c.head, c.status, c.marks, c.part, c.tail = began, b"", 0, 0, b"", b""
        while data:
            try:
                data = data[c.sock.send(data) :]
            except BlockingIOError:  # a long prompt: nothing else is measured while it goes out
                select.select((), (c.sock,), (), 1.0)
            except OSError as error:
                self.fail(c, f"send: {error}")
                return

    # ---- replies

    def readable(self, c: Connection) -> None:
        assert c.sock is not None
        try:
            size = c.sock.recv_into(self.room)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(c, f"recv: {error}")
            return
        t = now_ns()
        data = bytes(self.view[:size])
        if not data:
            if c.status and c.left == TO_THE_END:
                self.complete(c, t)
            else:
                self.fail(c, "the reply was cut")
            return
        if not c.status:
            c.head += data
            end = c.head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = c.head[: end + 2], c.head[end + 4 :]
            c.status = int(head[9:12])
            c.keep = not CLOSE.search(head)
            length = LENGTH.search(head)
            c.left = int(length[1]) if length else CHUNKS if CHUNKED.search(head) else TO_THE_END
            if c.status != 200 and not self.complaint:
                self.complaint = f"status {c.status}: {data[:200].decode(errors='replace')}"
        if c.request.stream and data:
            self.marked(c, data, t)
            if c.sock is None:
                return
        if c.left >= 0:
            c.left -= len(data)
            if c.left <= 0:
                self.complete(c, t)
        elif c.left == CHUNKS:
            c.tail = data[-5:] if len(data) >= 5 else (c.tail + data)[-5:]
            if c.tail == LAST:
                self.complete(c, t)

    def marked(self, c: Connection, data: bytes, t: int) -> None:
        """Count the stamps in a piece of a stream (two `@` each) and see how old they are."""
        n = data.count(b"@")
        if not n:
            if c.part:
                c.part += data
            return
        if c.marks < 2 <= c.marks + n and self.counting:
            self.first.append(t - c.began)
        c.marks += n
        if self.counting:
            self.marks += n
            if self.job.delay_us:
                self.oneway += [t - int(stamp) for stamp in STAMP.findall(c.part + data)]
        c.part = data[data.rfind(b"@") :] if c.marks & 1 else b""
        if self.job.abort and c.marks >= 6:
            if self.counting:
                self.aborted[c.number] = now_ns()
            self.drop(c)
            self.finished += 1
            self.connect(c)

    def complete(self, c: Connection, t: int) -> None:
        self.finished += 1
        self.statuses[c.status] += 1
        if c.request.stream and c.status == 200 and not self.job.mixed and c.marks != 2 * self.job.tokens:
            self.short += 1
        if self.counting and c.status == 200:
            self.done += 1
            self.latency.append(t - c.began)
        if self.job.requests and self.sent >= self.job.requests:
            self.drop(c)
        elif self.job.new_connections or not c.keep or c.left == TO_THE_END:
            self.drop(c)
            self.connect(c)
        else:
            self.send(c, t)

    # ---- the run

    def run(self) -> dict[str, Any]:
        job = self.job
        pids = [pid for root in job.watch for pid in proc.family(root)]
        all_known = [*pids, *job.known, os.getpid()]
        todo = [Connection() for _ in range(job.connections)]
        start = now_ns()
        opens = start if job.requests else start + int(1e9 * (job.warm + (job.connections - 1) / job.ramp))
        ends = opens + int(1e9 * job.seconds)
        opened, began, rss, own, cpu, foreign = 0, 0, 0, 0.0, 0.0, 0.0
        while True:
            t = now_ns()
            if not self.counting and t >= opens:
                self.counting, began, own = True, t, time.process_time()
                cpu, rss = proc.cpu_seconds(pids), proc.rss_bytes(pids)
                foreign = proc.busy_seconds() - proc.cpu_seconds(all_known)
            if job.requests:
                if self.finished >= job.requests or self.errors > 1000:
                    break
            elif t >= ends:
                break
            want = min(job.connections, int((t - start) / 1e9 * job.ramp) + 1)
            while opened < want:
                self.connect(todo[opened])
                opened += 1
            while self.waiting and self.waiting[0][0] <= t:
                self.connect(self.waiting.popleft()[1])
            for fd, _ in self.epoll.poll(0.001 if opened < job.connections else 0.01, 1024):
                c = self.by_fd.get(fd)
                if c is not None:
                    (self.connected if c.connecting else self.readable)(c)
        seconds = (now_ns() - began) / 1e9
        cpu, grown = proc.cpu_seconds(pids) - cpu, proc.rss_bytes(pids) - rss
        own = time.process_time() - own
        foreign = proc.busy_seconds() - proc.cpu_seconds(all_known) - foreign
        active = len(self.by_fd)
        for c in list(self.by_fd.values()):
            self.drop(c)
        self.epoll.close()
        shares = {"cpu_share": cpu / seconds, "load_share": own / seconds, "foreign_share": max(0.0, foreign / seconds)}
        result = self.result(seconds, cpu) | {name: round(share, 3) for name, share in shares.items()}
        return result | {"connections": active, "rss": rss + grown, "rss_growth": grown}

    def result(self, seconds: float, cpu: float) -> dict[str, Any]:
        job, chunks = self.job, self.marks // 2
        out: dict[str, Any] = {
            "seconds": round(seconds, 3),
            "requests": self.done,
            "per_second": round(self.done / seconds, 1),
            "errors": self.errors + sum(n for status, n in self.statuses.items() if status != 200),
            "short": self.short,
        }
        if self.complaint:
            out["complaint"] = self.complaint
        if job.abort:
            return out | {"abort": self.aborts()}
        if self.done:
            out |= {"latency": quantiles(self.latency), "cpu_per_request": round(1e6 * cpu / self.done, 1)}
        if chunks:
            out |= {"ttft": quantiles(self.first), "oneway": quantiles(self.oneway), "chunks": chunks}
            out |= {"chunks_per_second": round(chunks / seconds), "cpu_per_chunk": round(1e6 * cpu / chunks, 2)}
        if job.stream and job.delay_us:
            out["delivered"] = round(chunks / (job.connections * seconds * 1e6 / job.delay_us), 4)
        return out

    def aborts(self) -> dict[str, Any]:
        """From the client's close to the backend's notice of it; `missing`: the backend was not told within two seconds."""
        seen: dict[int, int] = {}

        def all_seen() -> bool:
            backend = HTTPConnection("127.0.0.1", self.job.backend, timeout=5)
            backend.request("GET", "/bench/aborts")
            seen.update((int(number), int(t)) for number, t in json.loads(backend.getresponse().read()).items())
            backend.close()
            return self.aborted.keys() <= seen.keys()

        proc.wait_until(all_seen, 2.0)
        found = [seen[number] - t for number, t in self.aborted.items() if number in seen]
        return quantiles(found) | {"missing": len(self.aborted) - len(found)}


def run(job: Job) -> dict[str, Any]:
    """Do it in this process."""
    gc.disable()  # it would interrupt the measurement; nothing here is cyclic
    try:
        return Load(job).run()
    finally:
        gc.enable()


def main(argv: Sequence[str]) -> int:
    proc.raise_nofile()
    print(json.dumps(run(Job(**json.loads(argv[1])))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
