"""A vLLM that costs next to nothing: `python tests/bench/fake.py` prints its port and answers what a benchmark asks.

    POST, "stream": true    max_tokens chunks of about 250 bytes, the end chunk, usage, [DONE]; "seed": microseconds between two
                            tokens (a field every gateway forwards), 0: as fast as the socket takes them
    POST                    a reply of 600 bytes
    GET /v1/models          the model `fake`
    GET /bench/aborts       {max_tokens: the moment this stream was cut by the other side}, of streams with more than a million,
                            which no run lasts to the end of (the one field that every router forwards untouched); then forgotten
    GET anything else       a small JSON object that satisfies the health checks of every router measured

Every chunk carries the moment it was sent (`@CLOCK_MONOTONIC in ns@`), so that the client knows its way through the gateway.
One thread, epoll, pre-built bytes: asyncio's transports would cost twice as much a chunk.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import sys
import time
from collections import deque

sys.path.insert(0, __file__.rpartition("/")[0])

import proc

FILL = "The quick brown fox jumps over the lazy dog while the gateway counts tokens and the cache warms up; " * 3
ID = '{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion'
#: paced streams: at least this long between two looks at the clock, so that chunks due together are sent together
TICK_S = 0.00025
BATCH = 64
MILLION = 1_000_000

SEED = re.compile(rb'"seed": ?(\d+)')
TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
STREAM = re.compile(rb'"stream": ?true')
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")

now_ns = time.monotonic_ns


def framed(event: str) -> bytes:
    """An event as one chunk of chunked encoding. `@@` becomes room for a stamp of 19 digits."""
    data = f"data: {event}\n\n".replace("@@", "@%019d@").encode()
    return b"%x\r\n%s\r\n" % (len(data) + (14 if b"%019d" in data else 0), data)


def answer(body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
    return (head + body).encode()


def event(delta: str, finish: str) -> bytes:
    choice = f'{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish}}}'
    return framed(f'{ID}.chunk","created":1700000000,"model":"fake","choices":[{choice}]}}')


HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 23:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
FIRST = event('"role":"assistant","content":" token @@"', "null")
CHUNK = event('"content":" token @@"', "null")
USAGE = '"usage":{"prompt_tokens":210,"total_tokens":274,"completion_tokens":64}}'
END = (
    event("", '"stop"')
    + framed(f'{ID}.chunk","created":1700000000,"model":"fake","choices":[],{USAGE}')
    + framed("[DONE]")
    + b"0\r\n\r\n"
)
MESSAGE = f'{{"role":"assistant","content":"{FILL}","tool_calls":[]}}'
CHOICE = f'{{"index":0,"message":{MESSAGE},"logprobs":null,"finish_reason":"stop","stop_reason":null}}'
PLAIN = answer(f'{ID}","created":1700000000,"model":"fake","choices":[{CHOICE}],{USAGE}')
MODEL = '{"id":"fake","object":"model","created":1700000000,"owned_by":"vllm","root":"fake","parent":null,"max_model_len":131072}'
MODELS = answer(f'{{"object":"list","data":[{MODEL}]}}')
ABOUT = '"model_path":"fake","model_id":"fake","served_model_name":"fake","is_generation":true,"tp_size":1,"dp_size":1'
OTHER = answer(f'{{"status":"ok","version":"0.9.0",{ABOUT},"internal_states":[{{}}]}}')


class Connection:
    """One client of the fake."""

    __slots__ = ("buffered", "due", "fd", "left", "number", "open", "out", "sock", "want")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.fd = sock, sock.fileno()
        self.buffered = b""
        self.want = 0  # bytes the request in `buffered` needs to be whole; 0: its head is not known yet
        self.out = b""  # what the socket did not take
        self.left = 0  # tokens of the stream still to send; 0: no stream
        self.due = 0
        self.number = 0  # tokens asked for
        self.open = True


class Fake:
    """The server. `run` serves for ever."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=16384)
        self.listener.setblocking(False)
        self.port = int(self.listener.getsockname()[1])
        self.room = bytearray(proc.ROOM)
        self.view = memoryview(self.room)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.queues: dict[int, deque[Connection]] = {}  # one for each delay, so that the first is always the next due
        self.fast: list[Connection] = []  # streams without a delay that the socket holds up are driven by EPOLLOUT
        self.aborts: dict[int, int] = {}

    def run(self) -> None:
        poll, listener = self.epoll.poll, self.listener.fileno()
        while True:
            wait = self.next_due()
            if wait < 0:
                ready = poll()
            else:
                if wait > 0:  # epoll counts in milliseconds, select in microseconds
                    select.select((self.epoll,), (), (), max(wait, TICK_S))
                ready = poll(0, 1024)
            for fd, what in ready:
                if fd == listener:
                    self.accept()
                    continue
                connection = self.connections.get(fd)
                if connection is None:
                    continue
                if what & ~select.EPOLLOUT:
                    self.read(connection)
                if what & select.EPOLLOUT and connection.open:
                    self.flush(connection)
            self.send_due()

    def next_due(self) -> float:
        """Seconds until a token is due; -1: never."""
        first = min((queue[0].due for queue in self.queues.values() if queue), default=0)
        return max(0.0, (first - now_ns()) / 1e9) if first else -1

    def accept(self) -> None:
        for _ in range(256):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = Connection(sock)
            self.epoll.register(sock, select.EPOLLIN)

    def close(self, c: Connection) -> None:
        if not c.open:
            return
        if c.left and c.number > MILLION:
            self.aborts[c.number] = now_ns()
        c.open, c.left = False, 0
        del self.connections[c.fd]
        c.sock.close()

    def read(self, c: Connection) -> None:
        try:
            data = bytes(self.view[: c.sock.recv_into(self.room)])
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(c)
            return
        c.buffered = c.buffered + data if c.buffered else data
        while c.open and c.buffered and not c.left and len(c.buffered) >= c.want:
            if not c.want and not self.measure(c):
                return
            if len(c.buffered) < c.want:
                return
            request, c.buffered, c.want = c.buffered[: c.want], c.buffered[c.want :], 0
            self.respond(c, request)

    def measure(self, c: Connection) -> bool:
        """Find how long the request is; False: not known yet."""
        end = c.buffered.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = c.buffered[: end + 2]
        if length := LENGTH.search(head):
            c.want = end + 4 + int(length[1])
        elif CHUNKED.search(head):
            last = c.buffered.find(b"0\r\n\r\n", end + 4)
            if last < 0:
                return False
            c.want = last + 5
        else:
            c.want = end + 4
        return True

    def respond(self, c: Connection, request: bytes) -> None:
        if request.startswith(b"POST"):
            # the fields asked for stand before or behind a long prompt, never in it
            near = request if len(request) < 8192 else request[:4096] + request[-4096:]
            if STREAM.search(near):
                self.start_stream(c, near)
            else:
                self.send(c, PLAIN)
        elif request.startswith(b"GET /v1/models"):
            self.send(c, MODELS)
        elif request.startswith(b"GET /bench/aborts"):
            self.send(c, answer(json.dumps(self.aborts)))
            self.aborts = {}
        else:
            self.send(c, OTHER)

    def start_stream(self, c: Connection, request: bytes) -> None:
        tokens, seed = TOKENS.search(request), SEED.search(request)
        c.left = c.number = max(1, int(tokens[1])) if tokens else 128
        delay = int(seed[1]) * 1000 if seed else 0
        c.left -= 1
        c.due = now_ns() + delay if delay else 0
        self.send(c, HEAD + FIRST % now_ns() + (b"" if c.left else END))
        if not delay:
            self.rush(c)
        elif c.left:
            self.queues.setdefault(delay, deque()).append(c)

    def rush(self, c: Connection) -> None:
        """Send tokens in batches until the socket is full or all are out."""
        while c.open and c.left and not c.out:
            n = min(BATCH, c.left)
            c.left -= n
            self.send(c, (CHUNK % now_ns()) * n + (b"" if c.left else END))

    def send_due(self) -> None:
        for delay, queue in self.queues.items():
            now = now_ns()
            while queue and queue[0].due <= now:
                c = queue.popleft()
                if not c.open:
                    continue
                c.left -= 1
                self.send(c, CHUNK % now_ns() if c.left else CHUNK % now_ns() + END)
                if c.left:
                    c.due = now if c.due + 2 * delay < now else c.due + delay
                    queue.append(c)
                elif c.open and c.buffered:
                    self.read(c)

    def send(self, c: Connection, data: bytes) -> None:
        if not c.open:
            return
        if c.out:
            c.out += data
            return
        try:
            sent = c.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(c)
            return
        if sent < len(data):
            c.out = data[sent:]
            self.epoll.modify(c.fd, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, c: Connection) -> None:
        data, c.out = c.out, b""
        if data:
            self.send(c, data)
        if c.open and not c.out:
            self.epoll.modify(c.fd, select.EPOLLIN)
            if c.left and not c.due:
                self.rush(c)


def main() -> None:
    proc.raise_nofile()
    gc.disable()  # nothing here is cyclic
    fake = Fake(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(fake.port, flush=True)
    fake.run()


if __name__ == "__main__":
    main()
