"""The instruments of `make bench` on each other: they count, time and blame rightly. The figures themselves are no test."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from support.size import size

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bench reads /proc and uses epoll"),
]


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[int, int]]:
    """(port, pid) of a fake engine."""
    process = subprocess.Popen([sys.executable, str(BENCH / "fake.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline()), process.pid
    process.terminate()
    process.wait(timeout=10)
    process.stdout.close()


def load(port: int, **job: Any) -> dict[str, Any]:
    argv = [sys.executable, str(BENCH / "load.py"), json.dumps({"port": port, "warm": 0.05, "seconds": 0.2, **job})]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_fake_speaks_as_vllm_does(fake: tuple[int, int]) -> None:
    connection = HTTPConnection("127.0.0.1", fake[0], timeout=10)
    messages = [{"role": "user", "content": "x"}]

    def ask(**fields: Any) -> str:
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "fake", "messages": messages, **fields}))
        return connection.getresponse().read().decode()

    assert json.loads(ask())["usage"]["completion_tokens"] == 64
    for seed in (0, 1000):
        events = ask(stream=True, max_tokens=5, seed=seed).split("\n\n")
        assert events.pop() == "" and events.pop() == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
        assert [content.count("@") for content in contents] == [2] * 5 + [0]
        assert chunks[-1]["usage"]["completion_tokens"] == 64 and chunks[-2]["choices"][0]["finish_reason"] == "stop"
    connection.request("GET", "/v1/models")
    assert json.loads(connection.getresponse().read())["data"][0]["id"] == "fake"
    connection.close()


def test_plain_requests(fake: tuple[int, int]) -> None:
    result = load(fake[0], connections=4, watch=[fake[1]])
    assert result["errors"] == 0 and result["requests"] > 20
    assert 0 < result["latency"]["p50"] <= result["latency"]["p99"] <= result["latency"]["max"] < 5e6
    assert result["per_second"] == pytest.approx(result["requests"] / result["seconds"], rel=0.01)
    assert result["cpu_per_request"] == pytest.approx(
        1e6 * result["cpu_share"] * result["seconds"] / result["requests"], rel=0.02
    )
    assert result["rss"] > 1e6


def test_paced_streams_come_at_their_pace(fake: tuple[int, int]) -> None:
    result = load(fake[0], connections=20, stream=True, tokens=100, delay_us=20_000, seconds=0.5)
    assert result["delivered"] == pytest.approx(1.0, abs=0.15)
    assert result["oneway"]["n"] == result["chunks"] and 0 < result["oneway"]["p50"] < 1e6


def test_streams_as_fast_as_possible_are_whole(fake: tuple[int, int]) -> None:
    result = load(fake[0], connections=4, stream=True, tokens=100, requests=40)
    assert result["requests"] == 40 and result["short"] == result["errors"] == 0
    assert result["chunks"] == 40 * 100


def test_other_kinds_of_requests(fake: tuple[int, int]) -> None:
    assert load(fake[0], prompt_bytes=250_000, requests=5)["requests"] == 5
    assert load(fake[0], new_connections=True, requests=30)["requests"] == 30
    assert load(fake[0], mixed=True, requests=40)["requests"] == 40


def test_a_client_that_leaves_is_noticed(fake: tuple[int, int]) -> None:
    result = load(fake[0], connections=2, stream=True, tokens=64, delay_us=1000, abort=True, backend=fake[0])
    assert result["abort"]["n"] > 10 and result["abort"]["missing"] == 0
    assert 0 < result["abort"]["p50"] < 1e6


def test_failures_are_counted_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = load(port, connections=1)
    assert result["requests"] == 0 and result["errors"] > 0 and result["complaint"].startswith("connect: errno")


def test_a_run_ends_in_tables(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run = [
        sys.executable,
        str(BENCH / "run.py"),
        "--targets",
        "direct",
        "--scenarios",
        "plain1",
        "--rounds",
        "1",
        "--json",
        str(out),
    ]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "plain, c=1" in done.stdout and "not measured" in done.stdout
    data = json.loads(out.read_text())
    assert data["results"]["plain1"]["direct"]["latency.p50"] > 0
    page = subprocess.run([sys.executable, str(BENCH / "report.py"), str(out)], capture_output=True, text=True, timeout=60)
    assert page.returncode == 0 and "| plain, c=1 | p50 |" in page.stdout


@pytest.mark.timeout(3600)
def test_the_pages_of_a_large_database(tmp_path: Path) -> None:
    rows = size("LLMTAP_PAGES_ROWS", 1500, 1_000_000)
    argv = [sys.executable, str(BENCH / "pages.py"), "--exchanges", str(rows), "--dir", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=3500)
    print(done.stdout)
    assert done.stderr == ""
    assert done.returncode == 0, f"a page took longer than a second:\n{done.stdout}"
    assert f"{rows:,} exchanges" in done.stdout
    memory = [int(mb) for mb in re.findall(r"(\d+) MB(?: of memory|$)", done.stdout, re.M)]
    assert len(memory) >= 2 and all(20 < mb < 300 for mb in memory[-2:]), "Datasette's and the writer's"
