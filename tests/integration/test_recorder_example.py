"""The service of docs/recorder.md, as it stands there: run, asked, its metrics read, its commands tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import free_port
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recorder.md").read_text(encoding="utf-8")
MODEL = "sim-small"


@pytest.fixture(scope="module")
def sim() -> Iterator[SimHandle]:
    with running_sim(model=MODEL, tokens_per_second=300, ttft_ms=5) as running:
        yield running


@pytest.fixture(scope="module")
def service(sim: SimHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="the example is a FastAPI service (development group of pyproject.toml)")
    folder = tmp_path_factory.mktemp("service")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (folder / "service.py").write_text(code)
    (line,) = re.findall(r"\$ MODEL=\S+ UPSTREAM=\S+ uvicorn (.*)", PAGE)
    port = free_port()
    argv = [sys.executable, "-m", "uvicorn", *line.replace("9000", str(port)).split()]
    path = os.pathsep.join([str(ROOT / "addons"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"MODEL": MODEL, "UPSTREAM": sim.url, "PYTHONPATH": path}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: answers(url) or process.poll() is not None, "the service did not start")
        assert process.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/metrics", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def value(url: str, name: str, **labels: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(
        s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())
    )


def body(**more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "a story"}], "max_tokens": 20, **more}


def test_whole_replies_and_streams_are_counted(service: str) -> None:
    whole = httpx.post(f"{service}/v1/chat/completions", json=body()).json()["usage"]
    text = httpx.post(f"{service}/v1/chat/completions", json=body(stream=True)).text
    assert text.rstrip().endswith("data: [DONE]")
    assert value(service, "llmtap_requests_total", outcome="ok") == 2
    assert value(service, "llmtap_prompt_tokens_total") == 2 * whole["prompt_tokens"]
    assert value(service, "llmtap_time_to_first_token_seconds_count") == 1
    assert value(service, "llmtap_inter_token_latency_seconds_count") >= 10
    assert value(service, "vllm:request_success_total", model_name=MODEL) == 2
    assert value(service, "llmtap_requests_running") == value(service, "llmtap_requests_waiting") == 0


def test_a_client_that_leaves_and_an_engine_that_fails(service: str, sim: SimHandle) -> None:
    with httpx.stream("POST", f"{service}/v1/chat/completions", json=body(stream=True, max_tokens=4000)) as reply:
        next(line for line in reply.iter_lines() if '"content":"' in line)
    eventually(lambda: value(service, "llmtap_requests_total", outcome="client_abort") == 1, "not counted")
    sim.fail("http_503", times=1)
    assert httpx.post(f"{service}/v1/chat/completions", json=body()).status_code == 503
    assert value(service, "llmtap_requests_total", outcome="upstream_error", status="503") == 1
    eventually(lambda: value(service, "llmtap_requests_running") == 0, "still running")


@pytest.mark.parametrize("command", re.findall(r"\$ llmtap (.*)", PAGE))
def test_its_commands(service: str, command: str) -> None:
    words = [word.replace("http://127.0.0.1:9000", service) for word in command.split()]
    more = ["--once", "--interval", "0.1"] if words[0] == "top" else []
    argv = [sys.executable, "-m", "llmtap_launcher", *words, *more]
    path = os.pathsep.join([str(ROOT / "addons"), str(ROOT / "launcher"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert MODEL in done.stdout or words[0] == "metrics"
    assert "running" in done.stdout
