"""A real Prometheus scrapes a gateway under load: every query of the shipped dashboard, and what vLLM's own dashboard asks for
under vLLM's names, gives data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.gateway import Gateway, free_port, running_gateway, wait_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
MODEL = "sim-small"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "llmtap.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
#: the metrics of vLLM's own Grafana dashboard (examples/observability/prometheus_grafana, November 2026): a quantile and a
#: mean of some, a rate of others, gauges as they are. Not here: vllm:kv_cache_usage_perc, which only the engine knows.
VLLM_QUANTILES = ("e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds")
VLLM_RATES = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum",
    "request_decode_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
)
VLLM_GAUGES = ("num_requests_running", "num_requests_waiting")


def binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False)

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query with numbers. Grafana's variables get the values it would give them."""
        for variable, value in (("$__rate_interval", "8s"), ("$model_name", MODEL), ("$model", ".*")):
            query = query.replace(variable, value)
        answer = self._http.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return [series for series in answer["data"]["result"] if series["value"][1] not in ("NaN", "+Inf")]

    def targets(self) -> list[dict[str, Any]]:
        return list(self._http.get("/api/v1/targets").json()["data"]["activeTargets"])

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two ways to one engine, so that what fails is tried again; a writer; load, refusals among it."""
    with running_sim(model=MODEL, tokens_per_second=300, ttft_ms=5) as sim:
        config = {
            "backends": [{"name": name, "url": sim.url} for name in ("a", "b")],
            "metrics": {"vllm_names": True, "engine_label": "0"},
        }
        with running_gateway(tmp_path_factory.mktemp("gateway"), config, writer=True) as running:
            stop = threading.Event()
            threads = [threading.Thread(target=load, args=(running, sim, stop)) for _ in range(2)]
            wait_up(running)
            for thread in threads:
                thread.start()
            yield running
            stop.set()
            for thread in threads:
                thread.join()


def load(gateway: Gateway, sim: Any, stop: threading.Event) -> None:
    """Requests of all kinds until told to stop; one in five meets an engine that fails, so that another attempt is made."""
    n = 0
    with httpx.Client(base_url=gateway.url, timeout=30, trust_env=False) as http:
        while not stop.is_set():
            n += 1
            if n % 5 == 0:
                sim.fail("http_503", times=1)
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a story"}], "max_tokens": 20, "stream": n % 3 > 0}
            http.post("/v1/chat/completions", json=body)
            http.post("/sleep")


@pytest.fixture(scope="module")
def prometheus(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    (shown,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", PAGE, re.DOTALL)
    config = yaml.safe_load(shown.replace(":8000", f":{gateway.port}"))
    every = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"global": every, **config}))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            env=os.environ | {"GOMAXPROCS": "1"},
        )
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: _ready(found.url), f"Prometheus did not get ready: {(folder / 'log').read_text()[-2000:]}")
        yield found
    finally:
        found.close()
        process.terminate()
        process.wait(timeout=20)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_both_pages_are_scraped(prometheus: Prometheus) -> None:
    eventually(lambda: len([t for t in prometheus.targets() if t["health"] == "up"]) == 2, str(prometheus.targets()))
    assert all(not target["lastError"] for target in prometheus.targets())
    series = eventually(lambda: prometheus.query('vllm:num_requests_running{job="engines"}'), "nothing of the engine")
    assert {one["metric"]["backend"] for one in series} == {"a", "b"}


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboard_gives_data(prometheus: Prometheus, query: str) -> None:
    assert eventually(lambda: prometheus.query(query), f"no data: {query}", timeout_s=40, every_s=0.3)


def stock_queries() -> Iterator[str]:
    for name in VLLM_QUANTILES:
        buckets = f'vllm:{name}_bucket{{model_name="$model_name",job="llmtap"}}'
        yield f"histogram_quantile(0.95, sum by(le) (rate({buckets}[$__rate_interval])))"
        sums = f'vllm:{name}_sum{{model_name="$model_name",job="llmtap"}}'
        yield f"rate({sums}[$__rate_interval]) / rate({sums.replace('_sum{', '_count{')}[$__rate_interval])"
    for name in VLLM_RATES:
        yield f'rate(vllm:{name}{{model_name="$model_name",job="llmtap"}}[$__rate_interval])'
    for name in VLLM_GAUGES:
        yield f'vllm:{name}{{model_name="$model_name",job="llmtap"}}'


@pytest.mark.parametrize("query", list(stock_queries()))
def test_what_vllms_dashboard_asks_for_gives_data(prometheus: Prometheus, query: str) -> None:
    assert eventually(lambda: prometheus.query(query), f"no data: {query}", timeout_s=40, every_s=0.3)


def test_promtool_reads_it(gateway: Gateway) -> None:
    """Its linter has opinions about names (vLLM's colons); what counts is that it reads the whole."""
    done = subprocess.run(
        [binary("promtool"), "check", "metrics"],
        input=httpx.get(f"{gateway.url}/metrics").text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line and not line.startswith("vllm:")]
    assert complaints == []
