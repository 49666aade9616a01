"""A running gateway's metrics: formats, numbers held against the engine's own, the backends' page, several gateways at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
LLMTAP = (sys.executable, "-m", "llmtap_launcher")
MODEL = "sim-small"
NAMES = {"metrics": {"vllm_names": True, "max_model_len": 32768}}


@pytest.fixture(scope="module")
def sims() -> Iterator[tuple[SimHandle, SimHandle]]:
    with (
        running_sim(model=MODEL, tokens_per_second=400, ttft_ms=5) as a,
        running_sim(model=MODEL, tokens_per_second=400, ttft_ms=5) as b,
    ):
        yield a, b


@pytest.fixture(scope="module", params=["lane", "stock"])
def gateway(request: Any, sims: tuple[SimHandle, SimHandle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One backend behind the lane, and the same behind mitmproxy's reverse mode."""
    config = {"backends": [{"name": "a", "url": sims[0].url}], "routing": {"health_interval_s": 0.5}, **NAMES}
    mode = f"reverse:{sims[0].url}" if request.param == "stock" else None
    with running_gateway(tmp_path_factory.mktemp("gateway"), config, mode=mode) as running:
        wait_up(running)
        yield running


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "addons"), str(ROOT / "launcher"), os.environ.get("PYTHONPATH", "")])
    return {k: v for k, v in os.environ.items() if not k.startswith("LLMTAP_")} | {"PYTHONPATH": path}


def samples(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    return {(s.name, frozenset(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def engine_counts(url: str) -> dict[str, float]:
    """What vLLM's own families count, by name (and finish reason)."""
    wanted = ("prompt_tokens_total", "generation_tokens_total", "request_success_total", "request_params_n_sum")
    wanted += tuple(f"request_{name}_{end}" for name in ("prompt_tokens", "generation_tokens") for end in ("count", "sum"))
    wanted += ("e2e_request_latency_seconds_count",)
    return {
        f"{name.removeprefix('vllm:')}{dict(labels).get('finished_reason', '')}": value
        for (name, labels), value in samples(url).items()
        if name.removeprefix("vllm:") in wanted and name.startswith("vllm:")
    }


def test_both_formats_parse(gateway: Gateway) -> None:
    plain = httpx.get(f"{gateway.url}/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(plain.text)}
    assert families["llmtap_backend_up"].samples[0].value == 1
    assert families["vllm:request_success"].type == "counter"
    scraper = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
    modern = httpx.get(f"{gateway.url}/metrics", headers=scraper)
    assert modern.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert {f.name for f in parse_openmetrics(modern.text)} == {name for name in families if not name.endswith("_created")}
    head = httpx.head(f"{gateway.url}/metrics")
    assert head.status_code == 200 and head.content == b""
    assert httpx.get(f"{gateway.url}/internal/healthz").json() == {"status": "ok"}


def test_a_mixed_load_is_counted_as_the_engine_counts_it(gateway: Gateway, sims: tuple[SimHandle, SimHandle]) -> None:
    """Streamed and not, tools, two choices, several prompts: our families under vLLM's names move as the engine's own do, and
    our own counters with them."""
    ours, theirs = engine_counts(gateway.url), engine_counts(sims[0].url)
    ok = {"model": MODEL, "endpoint": "chat", "outcome": "ok"}
    requests = gateway.metric("llmtap_requests_total", **ok)

    def one(n: int) -> None:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:
            if n % 3 == 0:
                client.completions.create(model=MODEL, prompt=["once upon", "a time there was"], max_tokens=5 + n)
            else:
                more: dict[str, Any] = {"n": 2} if n % 5 == 1 else {}
                messages: Any = [{"role": "user", "content": f"tell me about number {n}"}]
                stream = client.chat.completions.create(
                    model=MODEL, messages=messages, stream=n % 2 == 0, max_tokens=10 + n, **more
                )
                if n % 2 == 0:
                    for _ in stream:
                        pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))
    moved = eventually(lambda: _moved(engine_counts(gateway.url), ours), "nothing counted")
    assert moved == _moved(engine_counts(sims[0].url), theirs)
    assert gateway.metric("llmtap_requests_total", **ok) - requests == 26
    assert moved["prompt_tokens_total"] <= gateway.metric("llmtap_prompt_tokens_total", model=MODEL)
    stats = httpx.get(f"{gateway.url}/stats").json()
    assert stats["running"] == stats["waiting"] == 0
    row = next(row for row in stats["models"] if row["model"] == MODEL)
    assert row["errors"] == 0 and 0.004 < row["ttft_p50_s"] <= row["ttft_p95_s"] < 5


def _moved(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in now.items()}


def test_an_aborted_stream_counts_what_it_produced(gateway: Gateway) -> None:
    before = gateway.metric("llmtap_generation_tokens_total", endpoint="chat", model=MODEL)
    first = gateway.metric("llmtap_time_to_first_token_seconds_count", endpoint="chat", model=MODEL)
    gone = {"endpoint": "chat", "outcome": "client_abort", "status": "499"}
    aborted = gateway.metric("llmtap_requests_total", **gone)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "a very long story"}]
        stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True, max_tokens=4000)
        seen = 0
        for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
            if seen == 10:
                break
        stream.close()
    eventually(lambda: gateway.metric("llmtap_requests_total", **gone) == aborted + 1, "not counted")
    produced = gateway.metric("llmtap_generation_tokens_total", endpoint="chat", model=MODEL) - before
    assert 10 <= produced < 200
    assert gateway.metric("llmtap_time_to_first_token_seconds_count", endpoint="chat", model=MODEL) == first + 1


def test_the_numbers_agree_with_what_a_client_sees(gateway: Gateway) -> None:
    """Latency as measured from outside: never more, and not much less (once in five: this machine may be busy)."""
    labels = {"endpoint": "chat", "model": MODEL}
    names = ("e2e_request_latency", "time_to_first_token")

    async def measured() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}], "stream": True, "max_tokens": 60}
        first = 0.0
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"{gateway.url}/health")  # the connection is there
            started = loop.time()
            async with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not first and '"content":"' in line and '"content":""' not in line:
                        first = loop.time() - started
        return loop.time() - started, first

    def missing() -> list[float]:
        """What of the times a client saw was not told, per name, as a part of what may be missing."""
        before = {name: gateway.metric(f"llmtap_{name}_seconds_sum", **labels) for name in names}
        out = []
        for name, seen in zip(names, asyncio.run(measured()), strict=True):
            told = eventually(
                lambda name=name: gateway.metric(f"llmtap_{name}_seconds_sum", **labels) - before[name],  # type: ignore[misc]
                "not counted",
            )
            assert told <= seen + 0.002
            out.append((seen - told) / (0.05 + 0.02 * seen))
        return out

    assert min(max(missing()) for _ in range(5)) < 1


def speak(gateway: Gateway) -> None:
    """One stream, so that there is something to show whichever test comes first."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 5}
    assert "[DONE]" in httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=30).text


@pytest.mark.parametrize("command", re.findall(r"\$ llmtap (.*)", PAGE))
def test_the_commands_of_the_page(gateway: Gateway, command: str) -> None:
    speak(gateway)
    words = [word.replace("http://127.0.0.1:8000", gateway.url) for word in command.split()]
    done = subprocess.run([*LLMTAP, *words], capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, done.stderr
    assert ("TTFT p50" if words[0] == "top" else "llmtap_time_to_first_token_seconds") in done.stdout
    assert MODEL in done.stdout


def test_top_on_a_terminal(gateway: Gateway) -> None:
    """It redraws until Ctrl-C, which is no failure."""
    speak(gateway)
    ours, theirs = pty.openpty()
    argv = [*LLMTAP, "top", gateway.url, "--interval", "0.1"]
    env = environment() | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    # a shell without job control has what it puts into the background ignore Ctrl-C, this test's processes with it
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, preexec_fn=heed)
    os.close(theirs)
    os.set_blocking(ours, False)
    screen = b""

    def drawn() -> bool:
        nonlocal screen
        with contextlib.suppress(BlockingIOError):
            screen += os.read(ours, 1 << 16)
        return screen.count(b"TTFT p50") >= 3

    try:
        eventually(drawn, "not drawn", timeout_s=30)
        assert MODEL.encode() in screen and b"Traceback" not in screen
        process.send_signal(signal.SIGINT)

        def ended() -> bool:
            with contextlib.suppress(OSError):  # the other end closes with the process
                os.read(ours, 1 << 16)
            return process.poll() is not None

        eventually(ended, "still there", timeout_s=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_backends_page(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    backends = [{"name": name, "url": sim.url} for name, sim in zip("ab", sims, strict=True)]
    backends.append({"name": "gone", "url": "http://127.0.0.1:1"})
    with running_gateway(tmp_path, {"backends": backends}) as gateway:
        text = httpx.get(f"{gateway.url}/metrics/backends", timeout=20).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    up = {s.labels["backend"]: s.value for s in families["llmtap_backend_scrape_up"].samples}
    assert up == {"a": 1, "b": 1, "gone": 0}
    running = families["vllm:num_requests_running"]
    assert {s.labels["backend"] for s in running.samples} == {"a", "b"} and running.type == "gauge"
    assert families["vllm:e2e_request_latency_seconds"].type == "histogram"


def test_metrics_can_be_off(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    config = {"backends": [{"name": "a", "url": sims[0].url}], "metrics": {"enabled": False}}
    with running_gateway(tmp_path, config) as gateway:
        for path in ("/metrics", "/metrics/backends", "/internal/metrics", "/stats"):
            assert httpx.get(gateway.url + path).status_code == 404
        assert httpx.get(f"{gateway.url}/health").status_code == 200
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json=body).status_code == 200


def test_gateways_that_share_a_folder_answer_for_each_other(sims: tuple[SimHandle, SimHandle], tmp_path: Path) -> None:
    """What workers on one port do; one is killed, its counts stay."""
    config = {"backends": [{"name": "a", "url": sims[0].url}]}
    shared = ("--set", f"llmtap_shared_metrics={tmp_path / 'shared'}")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    with running_gateway(tmp_path / "1", config, options=shared) as one:
        with running_gateway(tmp_path / "2", config, options=shared) as two:
            for gateway in (one, two, two):
                httpx.post(f"{gateway.url}/v1/chat/completions", json=body).raise_for_status()
            for gateway in (one, two):
                eventually(lambda g=gateway: g.metric("llmtap_requests_total") == 3, "not summed")  # type: ignore[misc]
            assert httpx.get(f"{one.url}/stats").json()["models"][0]["requests"] == 3
            two.process.kill()
            two.process.wait()
        assert one.metric("llmtap_requests_total") == 3
        with running_gateway(tmp_path / "3", config, options=shared) as three:
            httpx.post(f"{three.url}/v1/chat/completions", json=body).raise_for_status()
            eventually(lambda: one.metric("llmtap_requests_total") == 4, "not summed")
