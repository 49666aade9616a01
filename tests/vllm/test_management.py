"""A real vLLM started, used and stopped over the management API of a launcher that begins with nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmtap_launcher import guard
from support.launcher import Up, running_up
from support.wait import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ENV = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up"), config={"datasette": {"enabled": False}}, env=ENV) as launcher:
        yield launcher


def ask(up: Up, model: str) -> int:
    body = {"model": model, "prompt": "hello", "max_tokens": 4}
    return httpx.post(f"{up.url}/v1/completions", json=body, timeout=120, trust_env=False).status_code


def test_up_is_ok_exactly_when_a_completion_works_and_down_leaves_no_process(up: Up, tiny: Path) -> None:
    args = {"served-model-name": "fresh", "max-model-len": 512, "enforce-eager": True}
    wish = {"model": str(tiny), "dtype": "float32", "args": args}
    answers: list[httpx.Response] = []

    def start() -> None:
        answers.append(httpx.post(f"{up.url}/api/v1/inference/up", json=wish, timeout=600, trust_env=False))

    starting = threading.Thread(target=start)
    starting.start()
    took: list[float] = []
    with httpx.Client(base_url=f"{up.url}/api/v1", timeout=10, trust_env=False) as client:
        client.get("/status")
        while starting.is_alive():
            began = time.perf_counter()
            assert client.get("/status").status_code == 200
            took.append(time.perf_counter() - began)
            # as soon as one is served, the answer is on its way: it waits for the gateway to see the engine, no longer
            if ask(up, "fresh") == 200:
                starting.join(5)
                assert answers
            starting.join(0.5)
        assert answers[0].status_code == 200, answers[0].text
        assert ask(up, "fresh") == 200
        print(f"up took {answers[0].json()['seconds']:.1f} s; status meanwhile: {len(took)} times,", end=" ")
        print(f"median {sorted(took)[len(took) // 2] * 1000:.1f} ms, at most {max(took) * 1000:.1f} ms")
        assert sorted(took)[len(took) // 2] < 0.05
        row = answers[0].json()["backend"]
        argv = Path(f"/proc/{row['pid']}/cmdline").read_bytes().split(b"\0")
        assert b"--shutdown-timeout" in argv
        assert client.post("/inference/down", json={"name": row["name"]}, timeout=90).status_code == 200
        assert client.get("/backends").json() == {"backends": []}
    assert not guard.group_alive(row["pid"])
    eventually(lambda: not [pid for pid in guard.marked(up.run) if _is_vllm(pid)], "an engine process is left")


def test_a_model_that_does_not_exist_is_told_in_the_engines_own_words(up: Up) -> None:
    wish = {"model": "/nowhere/no-such-model", "dtype": "float32"}
    answer = httpx.post(f"{up.url}/api/v1/inference/up", json=wish, timeout=600, trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "engine_failed")
    assert any("/nowhere/no-such-model" in line for line in error["log"])
    eventually(lambda: not [pid for pid in guard.marked(up.run) if _is_vllm(pid)], "an engine process is left")


def _is_vllm(pid: int) -> bool:
    try:
        return b"vllm" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getpid() != pid
    except OSError:
        return False
