"""The gateway as users meet it: a real mitmdump, real HTTP, the official SDK, simulated engines behind it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.gateway import ROOT, Gateway, free_port, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL = "sim-small"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def sims() -> Iterator[tuple[SimHandle, SimHandle]]:
    with (
        running_sim(model=MODEL, tokens_per_second=400, ttft_ms=5) as a,
        running_sim(model=MODEL, tokens_per_second=400, ttft_ms=5) as b,
    ):
        yield a, b


@pytest.fixture(scope="module", params=["lane", "master", "stock"])
def gateway(request: Any, sims: tuple[SimHandle, SimHandle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two engines behind the lane, in mitmdump and alone, and one behind mitmproxy's stock reverse mode: the same tests."""
    backends = [{"name": name, "url": sim.url} for name, sim in zip("ab", sims, strict=True)]
    config = {"backends": backends, "server": {"max_body_mb": 1}, "routing": {"health_interval_s": 0.5}}
    mode = f"reverse:{sims[0].url}" if request.param == "stock" else None
    with running_gateway(tmp_path_factory.mktemp("gateway"), config, mode=mode, master=request.param == "master") as running:
        wait_up(running)
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-client-secret", max_retries=0) as sdk:
        yield sdk


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}


# ---- the main job


def test_a_streamed_chat_reaches_the_client_and_the_spool(gateway: Gateway, client: openai.OpenAI) -> None:
    stream = client.chat.completions.with_raw_response.create(**chat("tell me about rivers", stream=True, max_tokens=30))
    uid = stream.headers["x-request-id"]
    text = "".join(c.choices[0].delta.content or "" for c in stream.parse() if c.choices)
    begin, end = gateway.exchange(uid)
    assert begin["endpoint"] == "chat" and begin["model"] == MODEL and begin["stream"] is True
    assert begin["body"]["json"]["messages"][0]["content"] == "tell me about rivers"
    assert end["outcome"] == "ok" and end["status"] == 200
    choice = end["summary"]["choices"][0]
    assert text and choice["content"] == text and choice["finish_reason"] in ("stop", "length")
    usage = end["summary"]["usage"]
    assert usage["source"] == "upstream" and usage["completion_tokens"] > 0 and usage["prompt_tokens"] > 0
    assert 0 < end["ttft_ms"] < end["duration_ms"]
    assert len(end["deltas"]) == len([d for d in end["deltas"] if d >= 0]) > 5
    assert stream.headers["x-llmtap-backend"] == end["backend"] and stream.headers["x-llmtap-attempts"] == "1"


def test_a_whole_reply(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**chat("and about lakes"))
    reply = raw.parse()
    _, end = gateway.exchange(raw.headers["x-request-id"])
    assert end["summary"]["choices"][0]["content"] == reply.choices[0].message.content
    assert reply.usage is not None
    assert end["summary"]["usage"]["prompt_tokens"] == reply.usage.prompt_tokens
    assert end["summary"]["usage"]["completion_tokens"] == reply.usage.completion_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_wants_to_be_recorded_less(gateway: Gateway, client: openai.OpenAI, stream: bool) -> None:
    def ask(how: str, words: str) -> str:
        raw = client.chat.completions.with_raw_response.create(
            **chat(words, stream=stream, max_tokens=5), extra_headers={"x-llmtap-capture": how}
        )
        if stream:
            assert [c for c in raw.parse()]
        return raw.headers["x-request-id"]

    hidden, private = ask("off", "wholly-unseen"), ask("metadata", "halfway-unseen")
    begin, end = gateway.exchange(private)
    assert begin["body_dropped"] == end["body_dropped"] == "opted_out" and "body" not in begin
    assert end["outcome"] == "ok" and end["summary"]["usage"]["completion_tokens"] > 0
    assert "content" not in end["summary"]["choices"][0] or end["summary"]["choices"][0]["content"] is None
    assert not [r for r in gateway.records() if r.get("uid") == hidden]
    for path in gateway.data.rglob("*"):
        assert not path.is_file() or b"-unseen" not in path.read_bytes(), path
    with pytest.raises(openai.BadRequestError, match="x-llmtap-capture"):
        ask("nothing", "x")


async def test_the_async_sdk(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as sdk:
        whole = await sdk.completions.create(model=MODEL, prompt="once upon a time", max_tokens=12)
        assert whole.choices[0].text
        stream = await sdk.completions.create(model=MODEL, prompt="once upon a time", max_tokens=12, stream=True)
        assert "".join([c.choices[0].text async for c in stream if c.choices]) == whole.choices[0].text
    _, end = gateway.last()
    assert end["summary"]["choices"][0]["content"] == whole.choices[0].text


def test_tools(gateway: Gateway, client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "weather of a city", "parameters": schema}}]
    request = chat("What is the weather in Paris and London?", tools=tools)
    whole = client.chat.completions.create(**request)
    calls = whole.choices[0].message.tool_calls
    assert calls and {json.loads(c.function.arguments)["city"] for c in calls} == {"Paris", "London"}
    for chunk in client.chat.completions.create(**request, stream=True):
        assert chunk.object == "chat.completion.chunk"
    _, end = gateway.last()
    captured = end["summary"]["choices"][0]["tool_calls"]
    assert [(c["name"], c["arguments"]) for c in captured] == [(c.function.name, c.function.arguments) for c in calls]
    assert end["summary"]["choices"][0]["finish_reason"] == "tool_calls"


def test_bytes_equal_direct_ones(sims: tuple[SimHandle, SimHandle], gateway: Gateway) -> None:
    """Ids and times aside: status, body and content headers, streamed and not, usage asked for or not."""
    for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "n": 2}):
        body = chat("compare these bytes", **more)
        direct, through = (httpx.post(f"{url}{CHAT}", json=body) for url in (sims[0].url, gateway.url))
        assert direct.status_code == through.status_code == 200
        assert normal(direct.content) == normal(through.content), more
        assert direct.headers["content-type"] == through.headers["content-type"]


def normal(body: bytes) -> list[Any]:
    """Every JSON object of a body without its ids and times, key order kept; other lines as they are."""
    out: list[Any] = []
    for line in body.split(b"\n"):
        payload = line.removeprefix(b"data: ")
        try:
            obj = json.loads(payload)
        except ValueError:
            out.append(line)
            continue
        out.append([line[: len(line) - len(payload)], [(k, v) for k, v in obj.items() if k not in ("id", "created")]])
    return out


def test_models_are_a_union_and_requests_spread(sims: tuple[SimHandle, SimHandle], gateway: Gateway) -> None:
    assert [m["id"] for m in httpx.get(f"{gateway.url}/v1/models").json()["data"]] == [MODEL]
    with httpx.Client(base_url=gateway.url) as http:
        served = {http.post(CHAT, json=chat("who", max_tokens=1)).headers["x-llmtap-backend"] for _ in range(6)}
    assert served == set(httpx.get(f"{gateway.url}/health/ready").json()["backends"])


def test_own_headers_are_recorded_and_not_forwarded(sims: tuple[SimHandle, SimHandle], gateway: Gateway) -> None:
    headers = {
        "authorization": "Bearer sk-client-secret",
        "x-request-id": "my-own-id",
        "x-llmtap-tags": "a, b",
        "x-llmtap-metadata": '{"user": 7}',
        "x-session-id": "s1",
        "cookie": "session=sk-cookie-secret",
        "accept-encoding": "gzip",
    }
    reply = httpx.post(f"{gateway.url}{CHAT}?api_key=sk-query-secret", json=chat("headers please", max_tokens=2), headers=headers)
    assert reply.headers["x-request-id"] == "my-own-id"
    begin, _ = gateway.last()
    assert begin["request_id"] == "my-own-id" and begin["uid"] != "my-own-id"
    assert begin["tags"] == ["a", "b"] and begin["metadata"] == {"user": 7} and begin["session_hint"] == "s1"
    seen = [r for sim in sims for r in sim.requests() if b"headers please" in _bytes(r["body"])][-1:]
    names = {name.lower() for name in seen[0]["headers"]}
    assert not names & {"x-llmtap-tags", "x-llmtap-metadata", "x-session-id"}
    assert seen[0]["headers"]["accept-encoding"] == "identity"
    written = b"".join(p.read_bytes() for p in (gateway.data / "spool").glob("*"))
    assert b"secret" not in written


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode() if not isinstance(body, str) else body.encode()


# ---- what goes wrong


def error_of(reply: httpx.Response) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/json", reply.text
    body: dict[str, Any] = reply.json()["error"]
    return body


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "code"),
    [
        (CHAT, b"not json", {}, 400, "bad_request"),
        (CHAT, b"", {}, 400, "bad_request"),
        (CHAT, b'{"model":"sim-small","messages":[{"role":"user","content":"\xff\xfe"}]}', {}, 400, "bad_request"),
        (CHAT, b'{"model":"sim-small"}', {"content-type": "text/plain"}, 400, "bad_request"),
        (CHAT, b'{"model":"nobody","messages":[]}', {}, 404, "model_not_found"),
        (CHAT, b'{"model":"sim-small"}', {"x-llmtap-metadata": "[1]"}, 400, "bad_request"),
        ("/sleep", b"{}", {}, 404, "path_not_allowed"),
        ("/v1/../sleep", b"{}", {}, 404, "path_not_allowed"),
        ("/nothing/here", b"{}", {}, 404, "path_not_allowed"),
        (CHAT, b"x" * (1 << 20) + b"more", {}, 413, "request_too_large"),
    ],
)  # fmt: skip
def test_bad_requests(gateway: Gateway, path: str, content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    reply = raw_post(gateway.port, path, content, {"content-type": "application/json"} | headers)
    assert reply.status_code == status
    error = error_of(reply)
    assert error["code"] == code and set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    _, end = gateway.exchange(reply.headers["x-request-id"])
    assert end["outcome"] == "rejected" and end["status"] == status and end["error_type"] == code


def raw_post(port: int, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
    """A POST whose target is sent as written (HTTP libraries tidy paths up)."""
    head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        s.sendall(
            f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        data = b""
        while piece := s.recv(65536):
            data += piece
    head_bytes, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head_bytes.decode().split("\r\n")
    return httpx.Response(int(first.split()[1]), headers=[tuple(line.split(": ", 1)) for line in lines], content=body)


def test_a_chunked_body_over_the_limit_is_refused(gateway: Gateway) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    try:
        reply = httpx.post(f"{gateway.url}{CHAT}", content=pieces(), headers={"content-type": "application/json"})
    except httpx.TransportError:
        pass  # answered and closed while we were still sending
    else:
        assert reply.status_code == 413 and error_of(reply)["code"] == "request_too_large"
    begin, end = gateway.last()
    assert end["status"] == 413 and end["outcome"] == "rejected" and begin["path"] == CHAT


def test_a_method_that_does_not_fit(gateway: Gateway) -> None:
    reply = httpx.get(f"{gateway.url}{CHAT}")
    assert reply.status_code == 400 and error_of(reply)["code"] == "method_not_allowed"


def test_unreadable_http(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n")
        data = s.recv(65536)
    assert data.startswith(b"HTTP/1.1 400") and b"application/json" in data and b"<html" not in data


@pytest.mark.parametrize(
    ("fault", "status", "code", "outcome"),
    [
        ("die_before_headers", 502, "upstream_error", "upstream_error"),
        ("refuse", 502, "upstream_error", "upstream_error"),
        ("garbage", 502, "upstream_error", "upstream_error"),
        ("http_500", 500, None, "upstream_error"),
        ("http_503", 503, None, "upstream_error"),
    ],
)
def test_backend_faults(gateway: Gateway, fault: str, status: int, code: str | None, outcome: str) -> None:
    wait_up(gateway)
    reply = httpx.post(f"{gateway.url}{CHAT}", json=chat(f"[[sim:fail={fault}]] please"))
    assert reply.status_code == status
    if code is not None:
        assert error_of(reply)["code"] == code
    _, end = gateway.exchange(reply.headers["x-request-id"])
    assert end["outcome"] == outcome and end["status"] == status


def test_a_stream_that_dies_ends_with_an_error_event_and_keeps_its_text(gateway: Gateway) -> None:
    wait_up(gateway)
    body = chat("[[sim:fail=die_mid_stream=6]] [[sim:tokens=40]] story", stream=True)
    received = b""
    with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body) as reply:
        uid = reply.headers["x-request-id"]
        try:
            for piece in reply.iter_raw():
                received += piece
        except httpx.RemoteProtocolError:
            pass  # cut without the last chunk, after the error event
    last = received.strip().rpartition(b"\n\n")[2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    _, end = gateway.exchange(uid)
    assert end["outcome"] == "upstream_error" and end["error_type"] == "upstream_error"
    assert end["summary"]["choices"][0]["content"], "the partial text is kept"


def test_an_engine_that_dies_mid_stream(sims: tuple[SimHandle, SimHandle], gateway: Gateway) -> None:
    """vLLM's own way: an error event, then [DONE]. It reaches the client as it came."""
    wait_up(gateway)
    body = chat("[[sim:fail=engine_dead]] [[sim:tokens=40]] story", stream=True)
    reply = httpx.post(f"{gateway.url}{CHAT}", json=body)
    for sim in sims:
        sim.reset()
    wait_up(gateway)
    assert b'"error"' in reply.content and reply.content.endswith(b"data: [DONE]\n\n")
    _, end = gateway.exchange(reply.headers["x-request-id"])
    assert end["outcome"] == "upstream_error" and end["error_type"]


def test_bad_json_in_a_stream_is_passed_on_and_counted(gateway: Gateway) -> None:
    wait_up(gateway)
    reply = httpx.post(f"{gateway.url}{CHAT}", json=chat("[[sim:fail=bad_json]] [[sim:tokens=10]] story", stream=True))
    assert reply.status_code == 200
    _, end = gateway.exchange(reply.headers["x-request-id"])
    assert end["response_bytes"] > 0


def test_a_client_that_leaves_is_captured_with_the_partial_text(sims: tuple[SimHandle, SimHandle], gateway: Gateway) -> None:
    wait_up(gateway)
    body = chat("[[sim:tokens=2000]] [[sim:tps=100]] endless", stream=True, max_tokens=2000)
    with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body) as reply:
        uid = reply.headers["x-request-id"]
        seen = b""
        for piece in reply.iter_raw():
            seen += piece
            if seen.count(b"data: ") > 5:
                break
    _, end = gateway.exchange(uid)
    assert end["outcome"] == "client_abort" and end["status"] == 499
    assert end["summary"]["choices"][0]["content"]
    aborted = [r for sim in sims for r in sim.requests() if b"endless" in _bytes(r["body"])]
    eventually(
        lambda: all(r["aborted"] for sim in sims for r in sim.requests() if b"endless" in _bytes(r["body"])), "still generating"
    )
    assert aborted


# ---- retries and times, which the lane alone can do


@pytest.fixture
def lane(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> Iterator[Gateway]:
    backends = [{"name": name, "url": sim.url} for name, sim in zip("ab", sims, strict=True)]
    times = {"first_byte_s": 1.0, "idle_s": 0.5}
    with running_gateway(tmp_path, {"backends": backends, "timeouts": times, "routing": {"retries": 1}}) as running:
        wait_up(running)
        yield running


@pytest.mark.parametrize("fault", ["refuse", "die_before_headers", "http_503", "garbage"])
def test_a_backend_that_fails_before_the_first_byte_is_not_seen(
    sims: tuple[SimHandle, SimHandle], lane: Gateway, fault: str
) -> None:
    """The next candidate answers; only x-llmtap-attempts tells."""
    sims[0].fail(fault, times=1, path=CHAT)
    try:
        replies = [httpx.post(f"{lane.url}{CHAT}", json=chat("retry me", stream=True, max_tokens=5)) for _ in range(4)]
    finally:
        sims[0].reset()
    assert {r.status_code for r in replies} == {200} and all(r.content.endswith(b"data: [DONE]\n\n") for r in replies)
    retried = [r for r in replies if r.headers["x-llmtap-attempts"] == "2"]
    assert len(retried) == 1 and retried[0].headers["x-llmtap-backend"] == "b"
    _, end = lane.exchange(retried[0].headers["x-request-id"])
    assert end["outcome"] == "ok" and end["attempts"] == 2 and end["backend"] == "b"
    assert lane.metric("llmtap_backend_failures_total", backend="a") == 1


def test_a_backend_that_takes_too_long(lane: Gateway) -> None:
    reply = httpx.post(f"{lane.url}{CHAT}", json=chat("[[sim:fail=slow_headers=30]]"), timeout=20)
    assert reply.status_code == 504 and error_of(reply)["code"] == "upstream_timeout"
    _, end = lane.exchange(reply.headers["x-request-id"])
    assert end["outcome"] == "timeout" and end["status"] == 504 and end["attempts"] == 2


def test_a_stream_that_stalls_ends_with_an_error_event(lane: Gateway) -> None:
    received = b""
    with httpx.stream("POST", f"{lane.url}{CHAT}", json=chat("[[sim:fail=stall=30]] story", stream=True), timeout=20) as reply:
        uid = reply.headers["x-request-id"]
        try:
            for piece in reply.iter_raw():
                received += piece
        except httpx.RemoteProtocolError:
            pass  # cut after the error event
    last = received.strip().rpartition(b"\n\n")[2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"
    _, end = lane.exchange(uid)
    assert end["outcome"] == "timeout" and end["status"] == 200 and end["error_type"] == "upstream_timeout"


def test_no_healthy_backend(tmp_path: Path) -> None:
    config = {"backends": [{"name": "gone", "url": f"http://127.0.0.1:{free_port()}"}]}
    with running_gateway(tmp_path, config) as gateway:
        eventually(lambda: httpx.get(f"{gateway.url}/health/ready").json()["backends"] == {"gone": "down"}, "not noticed")
        assert httpx.get(f"{gateway.url}/health/ready").status_code == 503
        assert httpx.get(f"{gateway.url}/health").json() == {"status": "ok"}
        reply = httpx.post(f"{gateway.url}{CHAT}", json=chat("anyone"))
        assert reply.status_code == 503 and error_of(reply)["code"] == "no_healthy_backend"
        assert int(reply.headers["retry-after"]) > 0


def test_a_backend_that_comes_back_is_used_again(tmp_path: Path) -> None:
    port = free_port()
    config = {"backends": [{"name": "a", "url": f"http://127.0.0.1:{port}"}], "routing": {"health_interval_s": 0.2}}
    with running_gateway(tmp_path, config) as gateway:
        with running_sim(model=MODEL, port=port, tokens_per_second=0, ttft_ms=0):
            wait_up(gateway)
            with httpx.Client(base_url=gateway.url) as http:
                assert http.post(CHAT, json=chat("hi", max_tokens=2)).status_code == 200
        with httpx.Client(base_url=gateway.url) as http:
            codes = {http.post(CHAT, json=chat("hi", max_tokens=2)).status_code for _ in range(3)}
            assert codes <= {502, 503}
            with running_sim(model=MODEL, port=port, tokens_per_second=0, ttft_ms=0):
                wait_up(gateway)
                # the very same client connection: a failed connect must not stick to it
                assert http.post(CHAT, json=chat("hi", max_tokens=2)).status_code == 200


# ---- stopped


def refused(port: int) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return True
    return False


def test_a_stop_lets_running_streams_end(tmp_path: Path) -> None:
    with running_sim(model=MODEL, tokens_per_second=40, ttft_ms=5) as sim:
        with running_gateway(tmp_path, {"backends": [{"name": "a", "url": sim.url}]}) as gateway:
            wait_up(gateway)
            with httpx.stream("POST", f"{gateway.url}{CHAT}", json=chat("[[sim:tokens=40]] slowly", stream=True)) as reply:
                pieces = reply.iter_raw()
                received = next(pieces)
                gateway.process.terminate()
                eventually(lambda: refused(gateway.port), "it still takes connections")
                assert gateway.process.poll() is None, "it did not wait"
                received += b"".join(pieces)
            assert received.endswith(b"data: [DONE]\n\n")
            assert gateway.process.wait(timeout=20) == 0
        _, end = gateway.last()
        assert end["outcome"] == "ok"


@pytest.mark.parametrize("twice", [True, False])
def test_a_stop_does_not_wait_for_ever(tmp_path: Path, twice: bool) -> None:
    """Until server.drain_timeout_s, or the second signal; what was running is captured as lost, with its text."""
    config: dict[str, Any] = {"server": {"drain_timeout_s": 60 if twice else 0.3}}
    with running_sim(model=MODEL, tokens_per_second=20, ttft_ms=5) as sim:
        with running_gateway(tmp_path, {"backends": [{"name": "a", "url": sim.url}], **config}) as gateway:
            wait_up(gateway)
            body = chat("[[sim:tokens=2000]] for ever", stream=True, max_tokens=2000)
            with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body) as reply:
                pieces = reply.iter_raw()
                while b'"content":"' not in next(pieces):
                    pass
                next(pieces)
                gateway.process.terminate()
                if twice:  # two signals at once are one
                    eventually(lambda: refused(gateway.port), "it still takes connections")
                    gateway.process.terminate()
                assert gateway.process.wait(timeout=20) == 0
        _, end = gateway.last()
        assert end["outcome"] == "lost" and end["summary"]["choices"][0]["content"]


# ---- started in other ways


def test_reverse_mode_needs_no_file_and_no_installed_package(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    # what an editable install put on the path is taken off it again
    unpath = f"sys.path[:] = [p for p in sys.path if p not in {[str(ROOT / 'addons'), str(ROOT / 'launcher')]!r}]"
    command = [sys.executable, "-c", f"import sys; {unpath}; from mitmproxy.tools.main import mitmdump; mitmdump()"]
    options: dict[str, Any] = {"env": {"LLMTAP_CAPTURE__DIR": ""}, "writer": True, "command": command}
    with running_gateway(tmp_path, mode=f"reverse:{sims[0].url}", **options) as gateway:
        gateway.data = tmp_path / "llmtap-data"
        wait_up(gateway)
        reply = httpx.post(f"{gateway.url}{CHAT}", json=chat("reverse", stream=True))
        _, end = gateway.exchange(reply.headers["x-request-id"])
        assert end["outcome"] == "ok" and end["summary"]["choices"][0]["content"]
        eventually(lambda: (gateway.data / "capture.db").exists(), "no writer was started")


def test_only_the_configured_port_opens(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    """mitmproxy's default listener would be an open proxy on all interfaces."""
    with running_gateway(tmp_path, {"backends": [{"name": "a", "url": sims[0].url}]}) as gateway:
        assert listening(gateway.process.pid) == {("127.0.0.1", gateway.port)}


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses (IPv4) and ports a process listens on, from /proc."""
    inodes = {
        p.readlink().name for p in Path(f"/proc/{pid}/fd").iterdir() if p.is_symlink() and str(p.readlink()).startswith("socket:")
    }
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                host = ".".join(str(b) for b in bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add((host, int(port, 16)))
    return found


def test_a_bad_configuration_is_one_clear_line(tmp_path: Path) -> None:
    with running_gateway(tmp_path, {"servr": {}}, ready=False) as gateway:
        assert gateway.process.wait(timeout=20) == 1
    eventually(lambda: "servr" in "".join(gateway.output), "no message")
    text = "".join(gateway.output)
    assert "llmtap.yaml" in text and "Traceback" not in text


def test_a_port_that_is_taken(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    with running_gateway(tmp_path, {"backends": [{"name": "a", "url": sims[0].url}]}, port=sims[1].port, ready=False) as gateway:
        assert gateway.process.wait(timeout=20) == 1
    assert "Traceback" not in "".join(gateway.output)


def test_a_data_folder_that_cannot_be_made(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    config = {"backends": [{"name": "a", "url": sims[0].url}], "capture": {"dir": str(blocked / "data")}}
    with running_gateway(tmp_path / "g", config, env={"LLMTAP_CAPTURE__DIR": str(blocked / "data")}, ready=False) as gateway:
        assert gateway.process.wait(timeout=20) == 1
    text = "".join(gateway.output)
    assert str(blocked) in text and "Traceback" not in text
