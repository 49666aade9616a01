"""Routing through real gateways: names, policies, the queue, ports, health; in the lane and, where it can, in a stock mode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway, free_port, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
CHAT = "/v1/chat/completions"
FAST = {"tokens_per_second": 0, "ttft_ms": 0}


def chat(prompt: str, model: str = "big", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 3, **more}


@pytest.fixture(scope="module")
def sims() -> Iterator[tuple[SimHandle, SimHandle]]:
    with running_sim(model="big", **FAST) as a, running_sim(model="small", **FAST) as b:
        yield a, b


@contextlib.contextmanager
def gateway_for(tmp_path: Path, *backends: dict[str, Any], **config: Any) -> Iterator[Gateway]:
    config["routing"] = {"health_interval_s": 0.3, **config.get("routing", {})}
    with running_gateway(tmp_path, {"backends": list(backends), "logging": {"request_log": False}, **config}) as gateway:
        wait_up(gateway)
        yield gateway


def backend(name: str, sim: SimHandle, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": sim.url, **more}


def state(gateway: Gateway, name: str) -> dict[str, Any]:
    told: list[dict[str, Any]] = httpx.get(f"{gateway.url}/stats").json()["backends"]
    return next(b for b in told if b["name"] == name)


# ---- names


def test_aliases_and_fallbacks(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    names = {"aliases": {"gpt-4": "big", "nowhere": "nobody"}, "fallbacks": {"gone": ["nobody", "small"], "big": ["small"]}}
    with gateway_for(tmp_path, backend("a", sims[0]), backend("b", sims[1]), routing=names) as gateway:
        models = {m["id"]: m for m in httpx.get(f"{gateway.url}/v1/models").json()["data"]}
        assert set(models) == {"big", "small", "gpt-4"} and models["gpt-4"]["root"] == "big"
        assert httpx.get(f"{gateway.url}/v1/models/gpt-4").json()["id"] == "gpt-4"
        assert httpx.get(f"{gateway.url}/v1/models/org/none").status_code == 404

        stream = httpx.post(f"{gateway.url}{CHAT}", json=chat("by its alias", "gpt-4", stream=True))
        assert stream.status_code == 200 and stream.headers["x-llmtap-backend"] == "a" and b"[DONE]" in stream.content
        begin, end = gateway.exchange(stream.headers["x-request-id"])
        assert begin["model"] == "gpt-4" and end["summary"]["model"] == "big" and end["summary"]["usage"]["source"] == "upstream"
        sent = json.loads(next(r["body"] for r in sims[0].requests(CHAT) if "by its alias" in r["body"]))
        assert sent["model"] == "big" and sent["stream_options"] == {"include_usage": True}
        assert gateway.metric("llmtap_requests_total", model="gpt-4") == 1

        fell_back = httpx.post(f"{gateway.url}{CHAT}", json=chat("nobody has it", "gone"))
        assert fell_back.status_code == 200 and fell_back.headers["x-llmtap-backend"] == "b"
        assert fell_back.headers["x-llmtap-attempts"] == "1" and fell_back.json()["model"] == "small"
        unknown = httpx.post(f"{gateway.url}{CHAT}", json=chat("x", "nowhere"))
        assert unknown.status_code == 404 and "`nowhere`" in unknown.json()["error"]["message"]

        sims[0].fail("http_503", times=1, path=CHAT)
        failed_over = httpx.post(f"{gateway.url}{CHAT}", json=chat("it fails there"))
        assert failed_over.status_code == 200 and failed_over.headers["x-llmtap-attempts"] == "2"
        assert failed_over.headers["x-llmtap-backend"] == "b" and failed_over.json()["model"] == "small"


def test_an_alias_in_a_form_that_goes_on_as_it_comes(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    names = {"aliases": {"whisper-1": "small"}}
    with gateway_for(tmp_path, backend("a", sims[0]), backend("b", sims[1]), routing=names) as gateway:
        for name in ("whisper-1", "small"):
            for file_first in (False, True):
                files = [("file", (f"{name}.wav", b"RIFF" * 50_000, "audio/wav"))]
                form = [("model", (None, name.encode())), ("language", (None, b"en"))]
                parts = [*files, *form] if file_first else [*form, *files]
                reply = httpx.post(f"{gateway.url}/v1/audio/transcriptions", files=parts)  # type: ignore[arg-type]
                assert reply.status_code == 200, reply.text
                assert reply.headers["x-llmtap-backend"] == "b"
                begin, _ = gateway.exchange(reply.headers["x-request-id"])
                assert begin["model"] == name


# ---- who gets it


def test_sessions_and_prefixes_stay_together_and_spread(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    twins = [backend(n, sims[0], models=["big"]) for n in "abc"]
    with gateway_for(tmp_path, *twins, routing={"policy": "prefix_hash"}) as gateway, httpx.Client(base_url=gateway.url) as http:

        def served(*messages: dict[str, str], **headers: str) -> str:
            reply = http.post(CHAT, json={"model": "big", "messages": list(messages), "max_tokens": 1}, headers=headers)
            return reply.headers["x-llmtap-backend"]

        homes: Counter[str] = Counter()
        for i in range(30):
            conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {i}"}]
            where = set()
            for turn in range(3):
                where.add(served(*conversation))
                answer = {"role": "assistant", "content": f"answer {turn}"}
                conversation += [answer, {"role": "user", "content": f"more {turn}"}]
            assert len(where) == 1
            homes.update(where)
        assert set(homes) == set("abc")
        sessions = {
            i: {served({"role": "user", "content": f"{i} {k}"}, **{"x-session-id": f"s{i}"}) for k in range(3)} for i in range(12)
        }
        assert all(len(where) == 1 for where in sessions.values()) and len(set().union(*sessions.values())) == 3


@pytest.mark.parametrize("policy", ["least_connections", "round_robin", "p2c"])
def test_the_other_policies_use_all(sims: tuple[SimHandle, SimHandle], tmp_path: Path, policy: str) -> None:
    twins = [backend(n, sims[0], models=["big"]) for n in "abc"]
    with gateway_for(tmp_path, *twins, routing={"policy": policy}) as gateway, httpx.Client(base_url=gateway.url) as http:
        served = Counter(http.post(CHAT, json=chat("who")).headers["x-llmtap-backend"] for _ in range(30))
        assert set(served) == set("abc")
        if policy != "p2c":
            assert set(served.values()) == {10}


# ---- the queue


@pytest.fixture(params=["lane", "stock"])
def mode(request: Any, sims: tuple[SimHandle, SimHandle]) -> str | None:
    return None if request.param == "lane" else f"reverse:{sims[0].url}"


@contextlib.contextmanager
def small_gateway(tmp_path: Path, sim: SimHandle, mode: str | None, **queue: Any) -> Iterator[Gateway]:
    """One backend with room for one request. (In a stock mode the URL is the backend: the limit is the one over all.)"""
    config = {"backends": [backend("a", sim)], "queue": {"max_concurrency": 1, **queue}, "routing": {"health_interval_s": 0.3}}
    with running_gateway(tmp_path, config, mode=mode) as gateway:
        wait_up(gateway)
        yield gateway


@contextlib.contextmanager
def busy(gateway: Gateway, tokens: int = 2000, rate: int = 100) -> Iterator[httpx.Response]:
    """A stream that takes the only place until the context is left."""
    body = chat(f"[[sim:tokens={tokens}]] [[sim:tps={rate}]] busy", stream=True)
    body["max_tokens"] = tokens
    with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body, timeout=30) as reply:
        pieces = reply.iter_raw()  # let go, it would close the connection
        next(pieces)
        yield reply


def test_requests_wait_their_turn(sims: tuple[SimHandle, SimHandle], tmp_path: Path, mode: str | None) -> None:
    with small_gateway(tmp_path, sims[0], mode) as gateway, ThreadPoolExecutor(4) as pool:
        with busy(gateway):
            waiting = [pool.submit(httpx.post, f"{gateway.url}{CHAT}", json=chat(f"later {i}"), timeout=30) for i in range(3)]
            eventually(lambda: gateway.metric("llmtap_requests_waiting") == 3, "nobody waits")
            assert httpx.get(f"{gateway.url}/stats").json()["waiting"] == 3
            assert not any(w.done() for w in waiting)
        replies = [w.result(30) for w in waiting]
        assert {r.status_code for r in replies} == {200}
        assert all(float(r.headers["x-llmtap-queue-ms"]) > 0 for r in replies)
        _, end = gateway.exchange(replies[0].headers["x-request-id"])
        assert end["queue_ms"] > 0 and end["overhead_ms"] < end["queue_ms"] + 1000
        assert gateway.metric("llmtap_requests_waiting") == 0
        eventually(lambda: gateway.metric("llmtap_requests_running") == 0, "a place was not given back")
        free = httpx.post(f"{gateway.url}{CHAT}", json=chat("now"))
        assert float(free.headers["x-llmtap-queue-ms"]) == 0


def test_a_full_queue_and_the_end_of_patience(sims: tuple[SimHandle, SimHandle], tmp_path: Path, mode: str | None) -> None:
    with small_gateway(tmp_path, sims[0], mode, max_waiting=1, timeout_s=1.5) as gateway, ThreadPoolExecutor(2) as pool:
        with busy(gateway):
            waiting = pool.submit(httpx.post, f"{gateway.url}{CHAT}", json=chat("in vain"), timeout=30)
            eventually(lambda: gateway.metric("llmtap_requests_waiting") == 1, "nobody waits")
            full = httpx.post(f"{gateway.url}{CHAT}", json=chat("too many"))
            assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full" and int(full.headers["retry-after"])
            late = waiting.result(30)
        assert late.status_code == 503 and late.json()["error"]["code"] == "queue_timeout" and int(late.headers["retry-after"])
        assert 1400 < float(late.headers["x-llmtap-queue-ms"]) < 10_000
        for code in ("queue_full", "queue_timeout"):
            assert gateway.metric("llmtap_refusals_total", code=code) == 1
        _, end = gateway.exchange(late.headers["x-request-id"])
        assert end["outcome"] == "rejected" and end["attempts"] == 0


def test_who_leaves_the_queue_never_reaches_a_backend(
    sims: tuple[SimHandle, SimHandle], tmp_path: Path, mode: str | None
) -> None:
    with small_gateway(tmp_path, sims[0], mode) as gateway:
        with busy(gateway):
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                body = json.dumps(chat("left the queue")).encode()
                head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                eventually(lambda: gateway.metric("llmtap_requests_waiting") == 1, "it does not wait")
            eventually(lambda: gateway.metric("llmtap_requests_waiting") == 0, "it still waits")
        eventually(lambda: gateway.metric("llmtap_requests_total", outcome="client_abort", backend="none") == 1, "not counted")
        assert httpx.post(f"{gateway.url}{CHAT}", json=chat("and on")).status_code == 200
        assert not any("left the queue" in r["body"] for r in sims[0].requests(CHAT))


def test_each_backend_has_its_own_limit(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    backends = [backend("a", sims[0], max_concurrency=1), backend("b", sims[1])]
    with gateway_for(tmp_path, *backends) as gateway, ThreadPoolExecutor(1) as pool, busy(gateway):
        waiting = pool.submit(httpx.post, f"{gateway.url}{CHAT}", json=chat("for a"), timeout=30)
        eventually(lambda: gateway.metric("llmtap_requests_waiting") == 1, "nobody waits")
        for i in range(5):  # another model's requests are not held up
            assert httpx.post(f"{gateway.url}{CHAT}", json=chat(f"for b {i}", "small")).status_code == 200
        assert not waiting.done()


def test_who_waits_goes_on_waiting_under_another_configuration(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    """The place that one request of the old configuration gives back is for those of both."""
    config = {"backends": [backend("a", sims[0], max_concurrency=1)], "routing": {"health_interval_s": 0.3}}
    quietly = {"options": ("--set", "termlog_verbosity=info"), "quiet": False}
    with running_gateway(tmp_path, config, **quietly) as gateway, ThreadPoolExecutor(2) as pool:
        wait_up(gateway)
        with busy(gateway):
            old = pool.submit(httpx.post, f"{gateway.url}{CHAT}", json=chat("under the old one"), timeout=30)
            eventually(lambda: gateway.metric("llmtap_requests_waiting") == 1, "it does not wait")
            path = gateway.data / "llmtap.yaml"
            path.write_text(path.read_text() + "queue: {max_waiting: 500}\n")
            gateway.process.send_signal(signal.SIGHUP)
            eventually(lambda: "configuration was loaded again" in "".join(gateway.output), "not loaded again")
            new = pool.submit(httpx.post, f"{gateway.url}{CHAT}", json=chat("under the new one"), timeout=30)
            eventually(lambda: gateway.metric("llmtap_requests_waiting") == 2, "it does not wait")
        assert old.result(30).status_code == new.result(30).status_code == 200
        eventually(lambda: state(gateway, "a")["in_flight"] == 0, "a place was not given back")


# ---- ports


class Odd(BaseHTTPRequestHandler):
    """A server that speaks no language we know."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, body))  # type: ignore[attr-defined]
        out = b"\x00odd\xff" + self.path.encode()
        self.send_response(207)
        self.send_header("content-type", "application/x-odd")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args: Any) -> None: ...


@contextlib.contextmanager
def odd_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_straight_to_a_backends_port(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    with gateway_for(tmp_path, backend("a", sims[0]), backend("b", sims[1])) as gateway:
        base = f"{gateway.url}/proxy/{sims[1].port}"
        reply = httpx.post(f"{base}{CHAT}?a=b%20c&d=//", json=chat("straight", "small", stream=True))
        assert reply.status_code == 200 and reply.headers["x-llmtap-backend"] == "b"
        (seen,) = [r for r in sims[1].requests(CHAT) if "straight" in r["body"]]
        assert (seen["path"], seen["query"]) == (CHAT, "a=b%20c&d=//")
        begin, end = gateway.exchange(reply.headers["x-request-id"])
        assert begin["path"] == f"/proxy/{sims[1].port}{CHAT}" and begin["endpoint"] == "chat"
        assert end["summary"]["usage"]["completion_tokens"] > 0 and end["backend"] == "b"
        assert httpx.get(f"{base}/health").status_code == 200 and "vllm:" in httpx.get(f"{base}/metrics").text
        for path in ("/sleep", "/sim/state", "/docs"):
            assert httpx.post(base + path).status_code == 404


def test_straight_to_a_port_that_is_opened(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    with odd_server() as odd:
        port = odd.server_address[1]
        with gateway_for(tmp_path, backend("a", sims[0]), routing={"direct_ports": [port]}) as gateway:
            base = f"{gateway.url}/proxy/{port}"
            reply = httpx.put(f"{base}/some/where+else?x=%2F&y", content=b"\x01\x02")
            assert reply.status_code == 207 and reply.content == b"\x00odd\xff/some/where+else?x=%2F&y"
            assert reply.headers["content-type"] == "application/x-odd"
            assert odd.seen == [("PUT", "/some/where+else?x=%2F&y", b"\x01\x02")]  # type: ignore[attr-defined]
            assert reply.headers["x-llmtap-backend"] == f"port-{port}"
            _, end = gateway.exchange(reply.headers["x-request-id"])
            assert end["outcome"] == "ok" and end["status"] == 207
            assert httpx.post(f"{base}/sleep").status_code == 404
            assert httpx.get(f"{gateway.url}/proxy/{sims[0].port}/v1/models").status_code == 404, "only those that are named"


# ---- health


def test_a_backend_that_sleeps_or_is_paused_is_not_ready(tmp_path: Path) -> None:
    with running_sim(model="big", enable_sleep_mode=True, **FAST) as sim, gateway_for(tmp_path, backend("a", sim)) as gateway:
        for begin, end, reason in (("/sleep", "/wake_up", "it sleeps"), ("/pause", "/resume", "it is paused")):
            httpx.post(sim.url + begin)
            eventually(lambda: state(gateway, "a")["state"] == "asleep", "not noticed")
            assert httpx.get(f"{sim.url}/health").status_code == 200 and state(gateway, "a")["reason"] == reason
            reply = httpx.post(f"{gateway.url}{CHAT}", json=chat("awake?"))
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "no_healthy_backend"
            assert httpx.get(f"{gateway.url}/health/ready").status_code == 503
            httpx.post(sim.url + end)
            eventually(lambda: state(gateway, "a")["state"] == "up", "it is not taken in again")
            assert httpx.post(f"{gateway.url}{CHAT}", json=chat("awake?")).status_code == 200
        assert gateway.metric("llmtap_backend_state_changes_total", backend="a", state="asleep") == 2


def test_a_burst_of_errors_moves_the_load_and_recovery_is_tried_with_single_requests(tmp_path: Path) -> None:
    with (
        running_sim(model="big", **FAST) as a,
        running_sim(model="big", **FAST) as b,
        gateway_for(tmp_path, backend("a", a), backend("b", b)) as gateway,
        httpx.Client(base_url=gateway.url) as http,
    ):
        a.fail("http_500", times=None, path=CHAT)
        failed = 0
        while state(gateway, "a")["state"] == "up":
            failed += http.post(CHAT, json=chat("x")).status_code == 500
            assert failed <= 5
        assert failed == 5 and "status" in state(gateway, "a")["reason"]
        a.reset()
        served = lambda: http.post(CHAT, json=chat("y")).headers["x-llmtap-backend"]  # noqa: E731
        eventually(lambda: served() == "a", "it is never tried again")
        assert state(gateway, "a")["state"] == "up"


def test_the_last_backend_is_used_however_its_requests_fare(tmp_path: Path) -> None:
    """Bad requests of one client must not take the only backend from all others."""
    slowly = {"health_interval_s": 30}  # its trial begins after that, and ends as long after the last failure
    with running_sim(model="big", **FAST) as sim, gateway_for(tmp_path, backend("a", sim), routing=slowly) as gateway:
        for _ in range(8):
            assert httpx.post(f"{gateway.url}{CHAT}", json=chat("[[sim:fail=http_500]]")).status_code == 500
        assert state(gateway, "a")["state"] == "failing"
        assert httpx.post(f"{gateway.url}{CHAT}", json=chat("a good one")).status_code == 200
        assert state(gateway, "a")["state"] == "up"


def test_without_a_healthy_backend_the_answer_comes_at_once(tmp_path: Path) -> None:
    config = {"backends": [{"name": "gone", "url": f"http://127.0.0.1:{free_port()}"}]}
    with running_gateway(tmp_path, config) as gateway, httpx.Client(base_url=gateway.url) as http:
        eventually(lambda: http.get("/health/ready").json()["backends"] == {"gone": "down"}, "not noticed")
        took = []
        for _ in range(20):
            began = time.perf_counter()
            reply = http.post(CHAT, json=chat("anyone"))
            took.append(time.perf_counter() - began)
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "no_healthy_backend"
            assert int(reply.headers["retry-after"]) > 0
        assert min(took) < 0.005, sorted(took)


async def test_many_healthy_requests_open_no_breaker(tmp_path: Path) -> None:
    """2,048 at the same time, on a backend that is slow because of them."""
    many = 2048
    with running_sim(model="big", tokens_per_second=0, ttft_ms=1500, max_num_seqs=4096) as sim:
        config = {"backends": [backend("a", sim, max_concurrency=4096)], "routing": {"health_interval_s": 0.2}}
        config["timeouts"] = {"connect_s": 60}  # on a machine that is busy with other things, too
        with running_gateway(tmp_path, config | {"logging": {"request_log": False}}) as gateway:
            wait_up(gateway)
            body = json.dumps(chat("slowly", stream=True)).encode()
            request = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n" % CHAT.encode()
            request += b"content-length: %d\r\n\r\n%b" % (len(body), body)

            async def one() -> tuple[bytes, bool]:
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                writer.write(request)
                reply = await reader.read()
                writer.close()
                return reply[9:12], b"[DONE]" in reply

            async with asyncio.timeout(120):
                replies = await asyncio.gather(*(one() for _ in range(many)))
            assert Counter(replies) == {(b"200", True): many}
            for name in ("failing", "trial", "down"):
                assert gateway.metric("llmtap_backend_state_changes_total", backend="a", state=name) == 0
            assert gateway.metric("llmtap_backend_failures_total") == 0 and state(gateway, "a")["state"] == "up"


# ---- Ollama


class Ollama(BaseHTTPRequestHandler):
    """As much of it as routing looks at."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, body))  # type: ignore[attr-defined]
        kind = "application/json"
        if self.path == "/api/tags":
            out = b'{"models":[{"name":"llama3:latest","model":"llama3:latest","modified_at":"2026-08-01T10:00:00Z"}]}'
        elif self.path in ("/api/chat", "/api/generate"):
            kind = "application/x-ndjson"
            line = b'{"model":"llama3","message":{"role":"assistant","content":"hi"},"response":"hi","done":false}\n'
            out = line + b'{"model":"llama3","done":true,"done_reason":"stop","prompt_eval_count":4,"eval_count":1}\n'
        elif self.path == "/api/version":
            out = b'{"version":"0.31.0"}'
        else:
            out = b'{"object":"chat.completion","model":"llama3","choices":[]}'
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None: ...


def test_ollamas_api_goes_to_ollama(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    ollama = {"name": "o", "url": f"http://127.0.0.1:{server.server_address[1]}", "kind": "ollama"}
    try:
        with gateway_for(tmp_path, backend("v", sims[0]), ollama, routing={"aliases": {"pet": "llama3"}}) as gateway:
            assert [m["id"] for m in httpx.get(f"{gateway.url}/v1/models").json()["data"]] == ["big", "llama3:latest", "pet"]
            assert [m["name"] for m in httpx.get(f"{gateway.url}/api/tags").json()["models"]] == ["llama3:latest", "pet"]
            assert httpx.get(f"{gateway.url}/api/version").json() == {"version": "0.31.0"}
            for name, sent in (("llama3", b"llama3"), ("llama3:latest", b"llama3:latest"), ("pet", b"llama3")):
                body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
                reply = httpx.post(f"{gateway.url}/api/chat", json=body)
                assert reply.status_code == 200 and reply.headers["x-llmtap-backend"] == "o"
                # (the gateway's own questions, for health and models, may have come since)
                chats = [body for path, body in server.seen if path == "/api/chat"]  # type: ignore[attr-defined]
                assert b'"' + sent + b'"' in chats[-1]
            begin, end = gateway.exchange(reply.headers["x-request-id"])
            assert begin["endpoint"] == "ollama_chat" and end["summary"]["usage"]["completion_tokens"] == 1
            through_openai = httpx.post(f"{gateway.url}{CHAT}", json=chat("hi", "llama3"))
            assert through_openai.headers["x-llmtap-backend"] == "o"
            refused = httpx.post(f"{gateway.url}/api/pull", json={"model": "llama3"})
            assert refused.status_code == 404 and isinstance(refused.json()["error"], str)
            unknown = httpx.post(f"{gateway.url}/api/chat", json={"model": "big", "messages": []})
            assert unknown.status_code == 404, "the other backend speaks no Ollama"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
